# SPDX-License-Identifier: Apache-2.0
"""Forms in which one image may be stored, each read to the same voxels at the same place."""

from __future__ import annotations

import bz2
import gzip
import os
import shutil
import struct
from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.documents import InputError
from brainseg_bids.images import (
    read_grid,
    read_label_map,
    read_posteriors,
    read_top_posteriors,
    read_volume,
)
from tests.made_nifti import BOX_MM, ramp, write_nifti

PLACED_MM = BOX_MM.copy()
PLACED_MM[:3, 3] = (-60, -70, -80)
GRID = Grid((5, 6, 7), PLACED_MM)
TYPES = (
    "uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64",
)  # fmt: skip


def assert_read(path, expected=None):
    """Voxels and place of an image are those of the plain one."""
    image, grid = read_volume(path)
    assert image.dtype == np.float32
    assert image.dtype.isnative
    np.testing.assert_allclose(image, ramp() if expected is None else expected)
    assert grid.is_close(GRID)
    assert read_grid(path).is_close(GRID)


def assert_refused(path, words, door=read_volume):
    with pytest.raises(InputError, match=words) as caught:
        door(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def plain(folder, name="plain.nii", **fields):
    return write_nifti(folder / name, sform=PLACED_MM, **fields)


# What is read


@pytest.mark.input(
    "files",
    "voxels of any integer type of 8 to 64 bits, or of 32 or 64 bits of floating point",
    "read to the same numbers",
    0,
)
@pytest.mark.parametrize("kind", TYPES)
def test_every_type_of_voxels_is_read(kind, tmp_path):
    array = (ramp() % 120).astype(kind)
    path = write_nifti(tmp_path / "a.nii", array, sform=PLACED_MM)
    assert_read(path, array.astype(np.float32))


@pytest.mark.input("files", "a mask of 0 and 1 as bytes", "read", 0)
def test_masks_are_read(tmp_path):
    array = (ramp() > 100).astype(np.uint8)
    assert_read(write_nifti(tmp_path / "a.nii", array, sform=PLACED_MM), array)


VERSIONS = [
    pytest.param(
        ">", nib.Nifti1Header,
        marks=pytest.mark.input("files", "big-endian voxels and header", "read alike", 0),
    ),
    pytest.param(
        "<", nib.Nifti2Header,
        marks=pytest.mark.input("files", "NIfTI-2", "read like NIfTI-1", 0),
    ),
    pytest.param(">", nib.Nifti2Header),
]  # fmt: skip


@pytest.mark.parametrize("kind", ["int16", "uint16", "float32", "float64"])
@pytest.mark.parametrize(("endianness", "header"), VERSIONS)
def test_either_order_of_bytes_and_either_version_is_read(endianness, header, kind, tmp_path):
    given = {"sform": PLACED_MM, "endianness": endianness, "header_class": header}
    assert_read(write_nifti(tmp_path / "a.nii", ramp().astype(kind), **given))


@pytest.mark.input(
    "files", "a big-endian label map", "read; codes are in the machine's own order", 0
)
def test_a_big_endian_label_map_is_brought_to_the_machines_order(tmp_path):
    codes = np.where(ramp() > 100, 41, 2).astype(np.int16)
    path = write_nifti(tmp_path / "a.nii", codes, sform=PLACED_MM, endianness=">")
    voxels = read_label_map(path, LabelTable.packaged("brainseg")).voxels
    assert voxels.dtype.isnative
    np.testing.assert_array_equal(voxels, codes)


SCALINGS = [
    pytest.param(
        {"scl_slope": 0.5, "scl_inter": -7.0}, ramp() * 0.5 - 7,
        marks=pytest.mark.input("files", "slope and intercept in the header", "applied", 0),
    ),
    pytest.param(
        {"scl_slope": 0.0, "scl_inter": 9.0}, ramp(),
        marks=pytest.mark.input("files", "a slope of 0 or NaN", "no scaling, as NIfTI says", 0),
    ),
    pytest.param({"scl_slope": np.nan, "scl_inter": np.nan}, ramp()),
]  # fmt: skip


@pytest.mark.parametrize(("scaling", "expected"), SCALINGS)
def test_slopes_and_intercepts_are_applied(scaling, expected, tmp_path):
    stored = ramp().astype(np.int16)
    path = write_nifti(tmp_path / "a.nii", stored, sform=PLACED_MM, **scaling)
    assert_read(path, expected)


@pytest.mark.input("files", "an intercept of NaN beside a slope", "refused", 1)
def test_an_intercept_that_is_no_number_is_refused(tmp_path):
    path = plain(tmp_path, scl_slope=1.0, scl_inter=np.nan)
    assert_refused(path, "intercept")


def save_pair(folder, kind):
    path = folder / f"a.img{'.gz' if kind is nib.Nifti2Pair else ''}"
    nib.save(kind(ramp(), PLACED_MM), path)
    return path


@pytest.mark.input(
    "files",
    "`.hdr` and `.img` pairs of NIfTI-1, NIfTI-2 and SPM, where a file can be named (references, "
    "maps of other tools)",
    "read; in a BIDS dataset only `.nii` and `.nii.gz` are looked for",
    0,
)
@pytest.mark.parametrize("kind", [nib.Nifti1Pair, nib.Nifti2Pair, nib.Spm99AnalyzeImage])
def test_pairs_of_header_and_image_are_read(kind, tmp_path, recwarn):
    assert_read(save_pair(tmp_path, kind))
    assert [str(w.message) for w in recwarn if "guess" in str(w.message)] == []


@pytest.mark.input(
    "files",
    "an Analyze pair without SPM's `.mat`",
    "read; a warning says that left and right are a guess",
    0,
)
def test_analyze_is_read_and_its_sides_are_doubted(tmp_path):
    path = save_pair(tmp_path, nib.AnalyzeImage)
    with pytest.warns(UserWarning, match="a guess"):
        image, grid = read_volume(path)
    np.testing.assert_array_equal(image, ramp())
    assert grid.voxel_size_mm == GRID.voxel_size_mm


@pytest.mark.input("files", "one half of a pair", "refused", 1)
@pytest.mark.parametrize("missing", [".hdr", ".img"])
def test_half_a_pair_is_refused(missing, tmp_path):
    path = save_pair(tmp_path, nib.Nifti1Pair)
    path.with_suffix(missing).unlink()
    assert_refused(
        path if missing == ".hdr" else path.with_suffix(".hdr"), "cannot be read|no such file"
    )


@pytest.mark.input(
    "files",
    "MGH and MGZ, where a file can be named",
    "read",
    0,
)
@pytest.mark.parametrize("kind", ["uint8", "int16", "int32", "float32"])
@pytest.mark.parametrize("ending", [".mgh", ".mgz"])
def test_mgh_is_read_compressed_and_not(ending, kind, tmp_path):
    array = (ramp() % 120).astype(kind)
    nib.save(nib.MGHImage(array, PLACED_MM), tmp_path / f"a{ending}")
    assert_read(tmp_path / f"a{ending}", array)


@pytest.mark.input(
    "files",
    "MGH without orientation (goodRASFlag 0)",
    "read as FreeSurfer does; a warning says that left and right are a guess",
    0,
)
def test_mgh_without_orientation_is_told(tmp_path):
    nib.save(nib.MGHImage(ramp(), PLACED_MM), tmp_path / "a.mgh")
    stored = bytearray((tmp_path / "a.mgh").read_bytes())
    stored[28:30] = struct.pack(">h", 0)
    (tmp_path / "a.mgh").write_bytes(stored)
    with pytest.warns(UserWarning, match="a guess"):
        image, _ = read_volume(tmp_path / "a.mgh")
    np.testing.assert_array_equal(image, ramp())


@pytest.mark.input(
    "files",
    "shape (x, y, z, 1), (x, y, z, 1, 1) or more ones",
    "one volume",
    0,
)
@pytest.mark.parametrize("ones", [1, 2, 4])
def test_further_axes_of_one_are_one_volume(ones, tmp_path):
    array = ramp().reshape(5, 6, 7, *[1] * ones)
    assert_read(write_nifti(tmp_path / "a.nii", array, sform=PLACED_MM))


@pytest.mark.input("files", "any of the 48 orders and directions of axes", "read as they are", 0)
def test_all_orders_of_axes_lie_at_the_same_place(tmp_path):
    for order, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        flips = tuple(slice(None, None, sign) for sign in signs)
        turned = ramp().transpose(order)[flips]
        affine = PLACED_MM[:, [*order, 3]].copy()
        for axis, sign in enumerate(signs):
            if sign < 0:
                affine[:3, 3] += affine[:3, axis] * (turned.shape[axis] - 1)
                affine[:, axis] *= -1
        image, grid = read_volume(write_nifti(tmp_path / "a.nii", turned, sform=affine))
        assert grid.to_ras().is_close(GRID)
        np.testing.assert_array_equal(grid.array_to_ras(image), ramp())


@pytest.mark.input("files", "an image of 400 x 400 x 400 voxels", "read", 0)
def test_400_cubed_is_read(tmp_path):
    shape, first = (400, 400, 400), np.zeros((1, 1, 1), np.uint8)
    affine = np.diag([0.5, 0.5, 0.5, 1])
    path = write_nifti(tmp_path / "a.nii", first, sform=affine, dim=[3, *shape, 1, 1, 1, 1])
    with path.open("r+b") as file:  # sparse: the disk holds one page
        file.seek(352 + 400**3 - 1)
        file.write(b"\x07")
    image, grid = read_volume(path)
    assert image.shape == grid.shape == shape
    assert image[-1, -1, -1] == 7
    assert grid.extent_mm == (200, 200, 200)


# Where the file lies and how it is packed


@pytest.mark.input("files", "symbolic links, absolute and relative, and hard links", "read", 0)
def test_links_are_followed(tmp_path):
    path = plain(tmp_path)
    (tmp_path / "absolute.nii").symlink_to(path)
    (tmp_path / "relative.nii").symlink_to(path.name)
    os.link(path, tmp_path / "hard.nii")
    for name in ("absolute", "relative", "hard"):
        assert_read(tmp_path / f"{name}.nii")


@pytest.mark.input("files", "a link that leads nowhere", "refused, naming where it leads", 1)
@pytest.mark.parametrize("target", ["gone/b.nii", "a.nii"])
def test_a_link_that_leads_nowhere_is_told(target, tmp_path):
    (tmp_path / "a.nii").symlink_to(target)
    assert_refused(tmp_path / "a.nii", f"a link to {target}")


@pytest.mark.input("files", "a folder where an image should be", "refused", 1)
def test_a_folder_is_no_image(tmp_path):
    (tmp_path / "a.nii").mkdir()
    assert_refused(tmp_path / "a.nii", "cannot be read")


@pytest.mark.input(
    "files", "blanks, quotes, brackets and letters of any script in paths", "read", 0
)
def test_odd_paths_are_read(tmp_path):
    folder = tmp_path / "ünï köde 图 (1)'s [x]"
    folder.mkdir()
    assert_read(plain(folder, "sub 1 T1w.nii"))


@pytest.mark.input("files", "gzip, also in several members or padded with zeros; bzip2", "read", 0)
def test_compressed_files_are_read(tmp_path):
    stored = plain(tmp_path).read_bytes()
    for name, content in {
        "a.nii.gz": gzip.compress(stored),
        "b.nii.gz": gzip.compress(stored[:700]) + gzip.compress(stored[700:]),
        "c.nii.gz": gzip.compress(stored) + b"\0" * 100,
        "d.nii.bz2": bz2.compress(stored),
    }.items():
        (tmp_path / name).write_bytes(content)
        assert_read(tmp_path / name)


# What is not an image


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :]


@pytest.mark.input(
    "files",
    "kept probabilities (`desc-top4`, `--probseg`) with a damaged byte, which unpack all the same",
    "refused by their check sum",
    1,
)
def test_probabilities_are_read_to_their_check_sum(tmp_path):
    table = LabelTable.packaged("brainseg")
    header = nib.Nifti1Header()
    header.set_data_shape((9, 9, 9, 2))
    header.set_data_dtype(np.uint8)
    header.set_sform(np.diag([20.0, 20, 20, 1]), code=1)
    header["vox_offset"], header["magic"] = 352, header.single_magic
    stored = gzip.compress(header.binaryblock + bytes(4 + 2 * 9**3), 0)
    sound, damaged = tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"
    sound.write_bytes(stored)
    damaged.write_bytes(flipped(stored, 600))
    _, posteriors = read_posteriors([sound], [2, 41])
    assert [code for code, _ in posteriors] == [2, 41]
    assert read_top_posteriors(sound, sound, table).codes.shape == (2, 9, 9, 9)
    with pytest.raises(InputError, match=r"b\.nii\.gz: .*CRC"):
        list(read_posteriors([damaged], [2, 41])[1])
    with pytest.raises(InputError, match=r"b\.nii\.gz: .*CRC"):
        read_top_posteriors(sound, damaged, table)


def noise(folder) -> bytes:
    """An image that does not compress, so that a cut falls into its voxels."""
    array = np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32)
    return write_nifti(folder / "noise.nii", array, sform=BOX_MM).read_bytes()


DAMAGED = [
    pytest.param(
        "empty.nii.gz", lambda nii: b"", "file is empty",
        marks=pytest.mark.input("files", "an empty file", "refused", 1),
    ),
    pytest.param(
        "cut.nii.gz", lambda nii: gzip.compress(nii)[:9000], "cannot be read",
        marks=pytest.mark.input("files", "a compressed file that is cut", "refused", 1),
    ),
    pytest.param("tail.nii.gz", lambda nii: gzip.compress(nii)[:-8], "cannot be read"),
    pytest.param("nothing.nii.gz", lambda nii: gzip.compress(b""), "cannot be read"),
    pytest.param(
        "bit.nii.gz", lambda nii: flipped(gzip.compress(nii, 0), 5000), "cannot be read.*CRC",
        marks=pytest.mark.input(
            "files", "a compressed file with a damaged byte, which unpacks all the same",
            "refused by its check sum", 1,
        ),
    ),
    pytest.param(
        "cut.nii", lambda nii: nii[:-20], "cannot be read",
        marks=pytest.mark.input("files", "an uncompressed file that is cut", "refused", 1),
    ),
    pytest.param("header.nii", lambda nii: nii[:352], "cannot be read"),
    pytest.param("short.nii", lambda nii: nii[:100], "cannot be read"),
    pytest.param(
        "named.nii.gz", lambda nii: nii, r"not compressed. Rename it to named\.nii\.",
        marks=pytest.mark.input(
            "files", "an uncompressed NIfTI named `.nii.gz`", "refused, with the right name", 1
        ),
    ),
    pytest.param(
        "named.nii", gzip.compress, r"is compressed. Rename it to named\.nii\.gz",
        marks=pytest.mark.input(
            "files", "a compressed NIfTI named `.nii`", "refused, with the right name", 1
        ),
    ),
    pytest.param("twice.nii.gz", lambda nii: gzip.compress(gzip.compress(nii)), "cannot be read"),
    pytest.param(
        "page.nii.gz", lambda nii: b"<!DOCTYPE html>" + b"x" * 3000, "cannot be read",
        marks=pytest.mark.input(
            "files", "DICOM, PNG, HTML or MGZ under the name of a NIfTI", "refused", 1
        ),
    ),
    pytest.param("dicom.nii.gz", lambda nii: bytes(128) + b"DICM" + nii, "cannot be read"),
    pytest.param("picture.nii", lambda nii: b"\x89PNG\r\n\x1a\n" + nii, "cannot be read"),
    pytest.param("other.mgz", gzip.compress, "cannot be read"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "stored", "words"), DAMAGED)
def test_what_is_no_image_gets_one_line(name, stored, words, tmp_path):
    path = tmp_path / name
    path.write_bytes(stored(noise(tmp_path)))
    assert_refused(path, words)


HEADERS = [
    pytest.param({"vox_offset": 0}, "vox_offset 0", id="voxels begin in the header"),
    pytest.param({"vox_offset": 1e6}, "cannot be read", id="voxels begin behind the file"),
    pytest.param({"datatype": 77}, "cannot be read", id="unknown type"),
    pytest.param({"dim": [3, 5, -6, 7, 1, 1, 1, 1]}, "cannot be read", id="negative size"),
    pytest.param({"dim": [3, 5, 0, 7, 1, 1, 1, 1]}, "single slice", id="size of 0"),
    pytest.param({"dim": [3, 30000, 30000, 30000, 1, 1, 1, 1]}, "", id="size beyond all memory"),
    pytest.param({"srow_x": [np.nan] * 4}, "finite", id="NaN in the sform"),
    pytest.param({"srow_x": [0] * 4}, "no extent", id="zeros in the sform"),
]


@pytest.mark.input(
    "files",
    "headers whose sizes, type, offset or sform cannot be (negative, 0, NaN, past the file's end)",
    "refused",
    1,
)
@pytest.mark.parametrize(("fields", "words"), HEADERS)
def test_headers_that_cannot_be_are_refused(fields, words, tmp_path):
    assert_refused(plain(tmp_path, **fields), words)


@pytest.mark.input("geometry", "a damaged quaternion and no sform", "refused", 1)
@pytest.mark.parametrize("damage", [1.0, np.nan])
def test_a_damaged_qform_alone_is_refused(damage, tmp_path):
    broken = {"quatern_b": damage, "quatern_c": 1.0}
    path = write_nifti(tmp_path / "a.nii", qform=PLACED_MM, **broken)
    for door in (read_volume, read_grid):
        assert_refused(path, "w2|finite", door)


@pytest.mark.input(
    "geometry", "a damaged quaternion beside a sform", "the sform is used, with a warning", 0
)
@pytest.mark.parametrize("damage", [1.0, np.nan])
def test_a_damaged_qform_beside_a_sform_is_told(damage, tmp_path):
    broken = {"quatern_b": damage, "quatern_c": 1.0}
    path = write_nifti(tmp_path / "a.nii", sform=PLACED_MM, qform=PLACED_MM, **broken)
    with pytest.warns(UserWarning, match="sform is used"):
        _, grid = read_volume(path)
    assert grid.is_close(GRID)


SHAPES = [
    pytest.param(
        (5, 6, 7, 2), "not one 3D volume",
        marks=pytest.mark.input("files", "several volumes", "refused", 1),
    ),
    pytest.param((5, 6, 7, 1, 3), "not one 3D volume"),
    pytest.param((5, 6, 7, 2, 1), "not one 3D volume"),
    pytest.param((30, 7), "not one 3D volume"),
    pytest.param(
        (30, 7, 1), "single slice",
        marks=pytest.mark.input("files", "a single slice", "refused", 1),
    ),
    pytest.param((1, 30, 7), "single slice"),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "words"), SHAPES)
def test_what_is_not_one_volume_is_refused(shape, words, tmp_path):
    assert_refused(write_nifti(tmp_path / "a.nii", ramp(shape), sform=PLACED_MM), words)


@pytest.mark.input("files", "colours (RGB, RGBA)", "refused", 1)
@pytest.mark.parametrize("channels", ["RGB", "RGBA"])
def test_colours_are_refused(channels, tmp_path):
    array = np.zeros((5, 6, 7), [(channel, "u1") for channel in channels])
    assert_refused(write_nifti(tmp_path / "a.nii", array, sform=PLACED_MM), "colours")


@pytest.mark.input("files", "complex numbers", "refused; give the magnitude", 1)
@pytest.mark.parametrize("kind", ["complex64", "complex128"])
def test_complex_numbers_are_refused(kind, tmp_path):
    assert_refused(
        write_nifti(tmp_path / "a.nii", ramp().astype(kind), sform=PLACED_MM), "magnitude"
    )


@pytest.mark.input("files", "every voxel the same", "refused", 1)
@pytest.mark.parametrize("value", [0, 3])
def test_a_constant_image_is_refused(value, tmp_path):
    array = np.full((5, 6, 7), value, np.int16)
    assert_refused(write_nifti(tmp_path / "a.nii", array, sform=PLACED_MM), "constant")


# The same on a real head


def permuted(voxels, affine):
    """Axes S, R, A with two of them turned round, and a tilt of 10 degrees in the world."""
    a = np.deg2rad(10)
    tilt = np.eye(4)
    tilt[:3, :3] = [[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]
    turned = voxels.transpose(2, 0, 1)[::-1, :, ::-1]
    moved = (tilt @ affine)[:, [2, 0, 1, 3]]
    for axis in (0, 2):
        moved[:3, 3] += moved[:3, axis] * (turned.shape[axis] - 1)
        moved[:, axis] *= -1
    return turned, moved, tilt


@pytest.mark.shared_data
def test_a_real_head_is_the_same_in_every_form(shared_data, tmp_path):
    """What is given to the network is equal, so that what comes of it is equal."""
    source = shared_data / "mne_sample_ecog" / "T1.mgz"
    whole, grid_of_whole = read_volume(source)
    voxels = whole[40:200, 60:220, 40:200]  # a quarter of the file: the brain, in a second
    grid = grid_of_whole.crop((40, 60, 40), voxels.shape)
    microns = grid.affine.copy()
    microns[:3] *= 1000
    turned, moved, tilt = permuted(voxels, grid.affine)
    as_bytes = voxels.astype(np.uint8)
    forms = {
        "bytes.nii": ({"sform": grid.affine}, as_bytes, np.eye(4)),
        "both.nii": (
            {"sform": grid.affine, "qform": grid.affine, "endianness": ">"},
            voxels.astype(np.uint16), np.eye(4),
        ),
        "second.nii": (
            {"sform": grid.affine, "endianness": ">", "header_class": nib.Nifti2Header},
            voxels.astype(np.float64), np.eye(4),
        ),
        "scaled.nii": (
            {"sform": grid.affine, "scl_slope": 0.5, "scl_inter": 3},
            (voxels * 2 - 6).astype(np.int16), np.eye(4),
        ),
        "microns.nii": ({"sform": microns, "xyzt_units": 3}, as_bytes, np.eye(4)),
        "turned.nii": ({"sform": moved}, turned.astype(np.uint8), tilt),
        "five.nii": ({"sform": grid.affine}, as_bytes[..., None, None], np.eye(4)),
    }  # fmt: skip
    expected = grid.array_to_ras(voxels)
    for name, (fields, array, moved_by) in forms.items():
        path = write_nifti(tmp_path / name, array, **fields)
        image, found = read_volume(path)
        in_world = Grid(found.shape, np.linalg.inv(moved_by) @ found.affine)
        assert in_world.to_ras().is_close(grid.to_ras(), tolerance_mm=0.01), name
        assert np.array_equal(found.array_to_ras(image), expected), name
        path.unlink()
    shutil.copy(source, tmp_path / "copy.mgz")
    assert np.array_equal(read_volume(tmp_path / "copy.mgz")[0], whole)
