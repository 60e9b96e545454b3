# SPDX-License-Identifier: Apache-2.0
"""Headers that contradict themselves, units of length, and sizes that no head has."""

from __future__ import annotations

import warnings
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.documents import InputError
from brainseg_bids.images import (
    read_again,
    read_grid,
    read_label_map,
    read_posteriors,
    read_top_posteriors,
    read_volume,
    write_label_map,
    write_mask,
    write_volume,
)
from brainseg_bids.interfaces.headlabels import read_source
from tests.made_nifti import BOX_MM, ramp, write_nifti

PLACED_MM = BOX_MM.copy()
PLACED_MM[:3, 3] = (-60, -70, -80)
OBLIQUE_MM = PLACED_MM.copy()
OBLIQUE_MM[:3, :3] = (
    np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]]) @ [[0, 1, 0], [0, 0, -1], [1, 0, 0]]
) @ BOX_MM[:3, :3]


def scaled(affine, factor):
    other = affine.copy()
    other[:3] *= factor
    return other


def notes_on(path) -> list[str]:
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        read_volume(path)
    assert all(str(path) in str(note.message) for note in noted)
    return [str(note.message) for note in noted]


CONTRADICTIONS = [
    pytest.param(
        {"sform": PLACED_MM, "pixdim": (24.0, 20.8, 22.4)}, ("2.184e+04 mm3", "1.118e+04 mm3"),
        id="another size",
        marks=pytest.mark.input(
            "geometry", "sform of 1 mm voxels, pixdim of 0.8 mm, qform not declared",
            "the sform is used; a warning names both voxel volumes", 0,
        ),
    ),
    pytest.param(
        {"sform": PLACED_MM, "qform": PLACED_MM, "pixdim": (24.0, 20.8, 22.4)},
        ("2.184e+04 mm3", "1.118e+04 mm3"), id="another size of the qform",
        marks=pytest.mark.input(
            "geometry", "sform of 1 mm voxels, pixdim and qform of 0.8 mm",
            "the sform is used; warnings name both voxel volumes and how far the transforms are "
            "apart", 0,
        ),
    ),
    pytest.param(
        {"sform": OBLIQUE_MM, "pixdim": (26.0, 28.0, 30.0)}, ("26 x 28 x 30", "30 x 26 x 28"),
        id="other axes",
        marks=pytest.mark.input(
            "geometry", "pixdim in another order of axes than the sform, so that volumes agree",
            "the sform is used; a warning names both voxel sizes", 0,
        ),
    ),
    pytest.param(
        {"sform": PLACED_MM, "pixdim": (0.03, 0.026, 0.028)}, ("2.184e-05 mm3", "2.184e+04 mm3"),
        id="another unit",
        marks=pytest.mark.input(
            "geometry", "pixdim in metres beside a sform in mm",
            "the sform is used; a warning names both voxel volumes", 0,
        ),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("said", "named"), CONTRADICTIONS)
def test_voxel_sizes_that_contradict_the_sform_are_told(said, named, tmp_path):
    path = write_nifti(tmp_path / "a.nii", **said)
    (note,) = [note for note in notes_on(path) if "contradicts itself" in note]
    assert all(part in note for part in named)
    assert read_grid(path).is_close(Grid((5, 6, 7), said["sform"]))


def test_what_is_odd_is_said_once(tmp_path, caplog, recwarn):
    path = write_nifti(tmp_path / "a.nii", sform=PLACED_MM, pixdim=(24.0, 20.8, 22.4))
    image, grid = read_again(path)
    assert not caplog.records
    assert not recwarn.list
    assert len(notes_on(path)) == len(caplog.records) == 1
    np.testing.assert_array_equal(image, read_volume(path)[0])
    assert grid == read_grid(path)
    with pytest.raises(InputError):
        read_again(tmp_path / "b.nii")


AGREE = [
    {"sform": PLACED_MM},
    {"qform": OBLIQUE_MM, "pixdim": np.diag(BOX_MM)[:3]},
    {"sform": PLACED_MM, "qform": PLACED_MM},
    {"sform": PLACED_MM, "pixdim": np.diag(BOX_MM)[:3] * 1.002},
    {"sform": PLACED_MM, "pixdim": -np.diag(BOX_MM)[:3]},
]


@pytest.mark.parametrize("said", AGREE)
def test_headers_that_agree_with_themselves_are_not_doubted(said, tmp_path):
    notes = notes_on(write_nifti(tmp_path / "a.nii", **said))
    assert [note for note in notes if "nibabel mends" not in note] == []


@pytest.mark.input(
    "geometry", "pixdim of 0 beside a sform", "the sform is used; a warning says so", 0
)
def test_sizes_that_are_not_given_contradict_nothing(tmp_path):
    path = write_nifti(tmp_path / "a.nii", sform=PLACED_MM, pixdim=(0, 0, 0))
    (note,) = notes_on(path)
    assert "pixdim" in note
    assert read_grid(path).voxel_size_mm == (30, 26, 28)


@pytest.mark.input(
    "geometry", "pixdim of 0, and no sform", "refused: nothing says how large a voxel is", 1
)
@pytest.mark.parametrize("said", [{}, {"qform": PLACED_MM}])
def test_an_image_without_voxel_sizes_is_refused(said, tmp_path):
    path = write_nifti(tmp_path / "a.nii", **said, **{"pixdim": (30, 0, 28)})
    for door in (read_volume, read_grid):
        with pytest.raises(InputError, match=r"a\.nii: .*Repair"):
            door(path)


@pytest.mark.input(
    "geometry",
    "a transform code that NIfTI does not have",
    "what is left of the header is used; a warning names the code",
    0,
)
def test_what_nibabel_mends_is_told_with_the_files_name(tmp_path, capfd):
    path = write_nifti(tmp_path / "a.nii", sform=OBLIQUE_MM, qform=PLACED_MM, sform_code=99)
    (note,) = notes_on(path)
    assert "sform_code 99" in note
    assert read_grid(path).is_close(Grid((5, 6, 7), PLACED_MM))
    assert "sform_code" not in capfd.readouterr().err.replace(note, "")


UNITS = [
    pytest.param(
        3, 1000.0, "micron",
        marks=pytest.mark.input(
            "geometry", "a header in microns, and numbers in microns",
            "converted to mm, with a warning; results are written in microns, so that they lie "
            "on the image in every viewer", 0,
        ),
    ),
    pytest.param(
        1, 0.001, "meter",
        marks=pytest.mark.input(
            "geometry", "a header in metres, and numbers in metres",
            "converted to mm, with a warning; results are written in metres", 0,
        ),
    ),
]  # fmt: skip


@pytest.mark.parametrize("transform", ["sform", "qform"])
@pytest.mark.parametrize("affine", [PLACED_MM, OBLIQUE_MM], ids=["straight", "oblique"])
@pytest.mark.parametrize(("code", "factor", "unit"), UNITS)
def test_other_units_are_converted_and_results_keep_them(
    code, factor, unit, affine, transform, tmp_path
):
    given = {transform: scaled(affine, factor), "xyzt_units": code}
    path = write_nifti(tmp_path / "a.nii", **given)
    (note,) = notes_on(path)
    assert "converted to mm" in note
    image, grid = read_volume(path)
    assert grid == read_grid(path)
    assert grid.is_close(Grid((5, 6, 7), affine))
    np.testing.assert_array_equal(image, ramp())
    for grid_of_result in (
        grid,
        grid.to_ras(),
        grid.with_voxel_size(13),
        grid.crop((1, 1, 1), (3, 3, 3)),
    ):
        array = np.ones(grid_of_result.shape)
        written = write_volume(array, grid_of_result, tmp_path / "result.nii.gz")
        file = nib.load(written)
        assert file.header.get_xyzt_units()[0] == unit
        np.testing.assert_allclose(file.affine, scaled(grid_of_result.affine, factor), rtol=1e-5)
        np.testing.assert_allclose(file.header.get_qform(), file.affine, atol=1e-4 * factor)
        assert read_grid(written).is_close(grid_of_result)


def test_a_sheared_image_in_metres_gets_no_qform(tmp_path):
    sheared = PLACED_MM.copy()
    sheared[0, 1] = 0.5
    path = write_nifti(tmp_path / "a.nii", sform=scaled(sheared, 0.001), xyzt_units=1)
    grid = read_grid(path)
    assert grid.is_close(Grid((5, 6, 7), sheared))
    file = nib.load(write_mask(np.ones(grid.shape), grid, tmp_path / "m.nii.gz"))
    assert int(file.header["qform_code"]) == 0


def test_labels_and_probabilities_go_through_the_same_door(tmp_path):
    """Label maps of later stages are read, derived and compared in mm, whatever the unit."""
    table = LabelTable.packaged("brainseg")
    path = write_nifti(tmp_path / "a.nii", sform=scaled(PLACED_MM, 1000), xyzt_units=3)
    grid, in_mm = read_grid(path), Grid((5, 6, 7), PLACED_MM)
    labels = write_label_map(LabelMap(np.full(grid.shape, 41), grid, table), tmp_path / "l.nii.gz")
    again = read_label_map(labels, table)
    assert again.grid.is_close(in_mm)
    assert again.grid.file_unit == "micron"
    assert again.grid.voxel_volume_mm3 == pytest.approx(30 * 26 * 28)
    codes = write_volume(np.full((5, 6, 7, 2), 41, np.int16), grid, tmp_path / "c.nii.gz")
    weights = write_volume(np.ones((5, 6, 7, 2), np.uint8), grid, tmp_path / "w.nii.gz")
    assert read_top_posteriors(codes, weights, table).grid.is_close(in_mm)
    assert read_posteriors([weights], [2, 41])[0].is_close(in_mm)


def test_maps_of_other_tools_lie_on_an_image_in_microns(head, tmp_path):
    image = write_volume(
        np.ones(head.grid.shape), replace(head.grid, file_unit="micron"), tmp_path / "um.nii"
    )
    ours = Crosswalk.packaged("fullhead", "brainseg").translate(head)
    labels = write_label_map(ours, tmp_path / "dseg.nii")
    source = read_source(read_grid(image), tool="model", labels=str(labels))
    assert source.labels.grid.file_unit == "micron"
    assert source.labels.grid.is_close(head.grid)
    np.testing.assert_array_equal(source.labels.voxels > 0, head.voxels > 0)


IMPOSSIBLE = [
    pytest.param(
        {"sform": PLACED_MM, "xyzt_units": 1}, "196 metres long.*2 .mm.",
        marks=pytest.mark.input(
            "geometry", "a header that says metres, and numbers in mm (a head of 200 m)",
            "refused; the line names the unit that would be right", 1,
        ),
    ),
    pytest.param(
        {"sform": PLACED_MM, "xyzt_units": 3}, "196 microns long.*2 .mm.",
        marks=pytest.mark.input(
            "geometry", "a header that says microns, and numbers in mm (a head of 0.2 mm)",
            "refused; the line names the unit that would be right", 1,
        ),
    ),
    pytest.param(
        {"sform": scaled(PLACED_MM, 0.001), "xyzt_units": 2}, r"0\.196 mm long.*1 .metres.",
        marks=pytest.mark.input(
            "geometry", "a header that says mm, and numbers in metres (a head of 0.2 mm)",
            "refused; the line names the unit that would be right", 1,
        ),
    ),
    pytest.param(
        {"qform": scaled(PLACED_MM, 1000)}, "196000 mm long.*3 .microns.",
        marks=pytest.mark.input(
            "geometry", "a header without a unit, and numbers in microns (a head of 200 m)",
            "refused; the line names the unit that would be right", 1,
        ),
    ),
    pytest.param(
        {"sform": scaled(PLACED_MM, 60)}, "11760 mm long.*repair its affine",
        marks=pytest.mark.input(
            "geometry", "an image of 12 m that no unit makes a head",
            "refused", 1,
        ),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("said", "words"), IMPOSSIBLE)
def test_sizes_that_no_head_has_are_refused_at_both_doors(said, words, tmp_path):
    path = write_nifti(tmp_path / "a.nii", **said)
    for door in (read_volume, read_grid):
        with pytest.raises(InputError, match=rf"a\.nii: .*{words}"):
            door(path)


@pytest.mark.input(
    "geometry",
    "an image of 4 mm, 20 mm or 1.2 m (specimens, small animals, whole bodies)",
    "done; a warning names its length",
    0,
)
@pytest.mark.parametrize(("factor", "length"), [(0.02, "3.92"), (0.1, "19.6"), (6.0, "1176")])
def test_unusual_sizes_are_told(factor, length, tmp_path):
    path = write_nifti(tmp_path / "a.nii", sform=scaled(PLACED_MM, factor))
    (note,) = notes_on(path)
    assert f"{length} mm long" in note


def test_slabs_and_thick_slices_are_no_unusual_sizes(tmp_path):
    slab = write_nifti(tmp_path / "a.nii", ramp((240, 200, 4)), sform=np.diag([0.8, 0.8, 1.3, 1]))
    assert notes_on(slab) == []
    thick = np.diag([0.5, 0.5, 6.0, 1])
    assert notes_on(write_nifti(tmp_path / "b.nii", ramp((300, 300, 24)), sform=thick)) == []


@pytest.mark.input(
    "geometry", "a unit of length that NIfTI does not have", "taken for mm, with a warning", 0
)
def test_a_unit_that_nifti_does_not_know_is_told(tmp_path):
    path = write_nifti(tmp_path / "a.nii", sform=PLACED_MM, xyzt_units=5)
    (note,) = notes_on(path)
    assert "length 5" in note
    assert read_grid(path).voxel_size_mm == (30, 26, 28)


@pytest.mark.input("geometry", "a header without a unit of length", "taken for mm", 0)
@pytest.mark.parametrize("code", [0, 2, 8, 10])
def test_no_unit_is_mm_and_units_of_time_do_not_count(code, tmp_path):
    path = write_nifti(tmp_path / "a.nii", sform=PLACED_MM, xyzt_units=code)
    assert notes_on(path) == []
    assert read_grid(path).file_unit == "mm"
