# SPDX-License-Identifier: Apache-2.0
"""The door for images: what passes, what is refused and with which words."""

from __future__ import annotations

import gzip

import nibabel as nib
import numpy as np
import pytest

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labels import LabelTable, UnknownLabelError
from brainseg_bids.documents import InputError
from brainseg_bids.files import whole_or_nothing
from brainseg_bids.images import (
    read_label_map,
    read_volume,
    write_label_map,
    write_mask,
    write_volume,
)

AFFINE = np.array([[-0.7, 0, 0, 3], [0, 0, 0.8, 4], [0, 0.7, 0, 5], [0, 0, 0, 1.0]])


def save(path, array, affine=AFFINE):
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


@pytest.fixture
def ramp():
    return np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)


def test_what_is_written_is_read_at_its_place(ramp, tmp_path):
    path = write_volume(ramp, Grid(ramp.shape, AFFINE), tmp_path / "a.nii.gz")
    image, grid = read_volume(path)
    np.testing.assert_array_equal(image, ramp)
    np.testing.assert_allclose(grid.affine, AFFINE, atol=1e-6)


def test_label_maps_keep_codes_and_masks_are_bytes(head, tmp_path):
    again = read_label_map(write_label_map(head, tmp_path / "l.nii.gz"), head.table)
    np.testing.assert_array_equal(again.voxels, head.voxels)
    mask = nib.load(write_mask(head.brain_mask(), head.grid, tmp_path / "m.nii.gz"))
    assert mask.get_data_dtype() == np.uint8


def test_a_fourth_axis_of_one_volume_is_accepted(ramp, tmp_path):
    image, _ = read_volume(save(tmp_path / "a.nii.gz", ramp[..., None]))
    np.testing.assert_array_equal(image, ramp)


def test_mgh_files_are_read(ramp, tmp_path):
    nib.save(nib.MGHImage(ramp, AFFINE), tmp_path / "a.mgz")
    image, grid = read_volume(tmp_path / "a.mgz")
    np.testing.assert_array_equal(image, ramp)
    np.testing.assert_allclose(grid.affine, AFFINE, atol=1e-5)


@pytest.mark.input(
    "files",
    "a label map stored as floats",
    "read if every voxel is within 0.01 of a whole number, else refused",
    0,
)
def test_labels_stored_as_whole_floats_are_read_and_others_refused(tmp_path):
    table = LabelTable.packaged("brainseg")
    codes = np.zeros((3, 3, 3), np.float32)
    codes[1] = 41
    assert read_label_map(save(tmp_path / "a.nii.gz", codes), table).voxels.max() == 41
    with pytest.raises(InputError, match="not whole numbers"):
        read_label_map(save(tmp_path / "b.nii.gz", codes + 0.5), table)
    with pytest.raises(UnknownLabelError, match=r"c\.nii\.gz: .*9 voxels"):
        read_label_map(
            save(tmp_path / "c.nii.gz", np.where(codes > 0, 99, 0).astype(np.int16)), table
        )


def test_voxels_that_are_no_numbers_are_background_at_the_border(ramp, tmp_path):
    ramp[0] = np.nan
    image, _ = read_volume(save(tmp_path / "a.nii.gz", ramp))
    np.testing.assert_array_equal(image[1:], ramp[1:])
    assert np.isfinite(image).all()
    assert np.ptp(image[0]) == 0


REFUSED = {
    "missing": "no such file",
    "empty": "the file is empty",
    "text": "cannot be read as an image",
    "cut": "cannot be read as an image",
    "series": r"shape \(4, 5, 6, 3\) is not one 3D volume",
    "nan": "1 voxels inside the head are NaN or infinite. Replace them",
    "inf": "2 voxels inside the head are NaN or infinite. Replace them",
    "zero": "every voxel is 0",
    "slice": "a single slice",
    "complex": "complex numbers",
    "pointer": "(datalad|annex) get",
    "link": "(datalad|annex) get",
}


@pytest.mark.parametrize("fault", sorted(REFUSED))
def test_bad_input_gets_one_line_that_names_the_file(fault, ramp, tmp_path):
    path = tmp_path / f"{fault}_T1w.nii.gz"
    if fault == "empty":
        path.touch()
    elif fault == "text":
        path.write_text("not an image at all, " * 100)
    elif fault == "cut":
        noise = np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32)
        whole = save(path, noise).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif fault == "series":
        save(path, np.repeat(ramp[..., None], 3, 3))
    elif fault in ("nan", "inf"):
        ramp[2, 2, 2] = np.nan if fault == "nan" else np.inf
        ramp[2, 2, 3] = 0 if fault == "nan" else -np.inf
        save(path, ramp)
    elif fault == "zero":
        save(path, ramp * 0)
    elif fault == "slice":
        save(path, ramp[:, :, :1])
    elif fault == "complex":
        save(path, ramp.astype(np.complex64))
    elif fault == "pointer":
        path.write_text("/annex/objects/MD5E-s1234--abc.nii.gz\n")
    elif fault == "link":
        path.symlink_to(tmp_path / ".git" / "annex" / "objects" / "x")
    with pytest.raises(InputError, match=REFUSED[fault]) as caught:
        read_volume(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.input(
    "geometry",
    "qform and sform that put the image at two places, more than 0.1 mm apart",
    "the sform is used; a warning says how far they are apart",
    0,
)
def test_a_conflict_of_qform_and_sform_is_told_and_the_sform_used(ramp, tmp_path):
    image = nib.Nifti1Image(ramp, AFFINE)
    other = AFFINE.copy()
    other[:3, 3] += 7
    image.set_qform(other, code=1)
    image.set_sform(AFFINE, code=1)
    nib.save(image, tmp_path / "a.nii.gz")
    with pytest.warns(UserWarning, match=r"7\.0 mm"):
        _, grid = read_volume(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(grid.affine, AFFINE, atol=1e-5)


@pytest.mark.input(
    "geometry",
    "neither qform nor sform",
    "done; a warning says that left and right are a guess",
    0,
)
def test_an_image_without_orientation_is_told(ramp, tmp_path):
    image = nib.Nifti1Image(ramp, None)
    nib.save(image, tmp_path / "a.nii.gz")
    with pytest.warns(UserWarning, match="a guess"):
        read, _ = read_volume(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read, ramp)


def test_a_damaged_qform_beside_a_sound_sform_is_told(ramp, tmp_path):
    image = nib.Nifti1Image(ramp, AFFINE)
    image.set_sform(AFFINE, code=1)
    image.header["qform_code"] = 1
    image.header["quatern_b"] = image.header["quatern_c"] = 1.0
    nib.save(image, tmp_path / "a.nii")
    with pytest.warns(UserWarning, match="sform is used"):
        _, grid = read_volume(tmp_path / "a.nii")
    np.testing.assert_allclose(grid.affine, AFFINE, atol=1e-5)


@pytest.mark.input(
    "geometry",
    "a sheared sform",
    "done; results have the same sform and no qform, which cannot hold it",
    0,
)
def test_a_sheared_image_is_written_without_a_qform_that_contradicts(ramp, tmp_path, recwarn):
    sheared = AFFINE.copy()
    sheared[0, 1] = 0.3
    path = write_volume(ramp, Grid(ramp.shape, sheared), tmp_path / "a.nii.gz")
    _, grid = read_volume(path)
    np.testing.assert_allclose(grid.affine, sheared, atol=1e-5)
    assert [w for w in recwarn if "qform" in str(w.message)] == []


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "out.json"
    with whole_or_nothing(path) as first, whole_or_nothing(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_half_written_stays(tmp_path):
    path = tmp_path / "out.nii.gz"

    def fail():
        with whole_or_nothing(path) as temporary:
            temporary.write_bytes(gzip.compress(b"half"))
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert list(tmp_path.iterdir()) == []
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
