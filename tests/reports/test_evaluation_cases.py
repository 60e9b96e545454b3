# SPDX-License-Identifier: Apache-2.0
"""The picture of one case: outlines, differences and distances where they were put."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import Label, LabelTable, UnknownLabelError
from brainseg_bids.evaluation.offsets import surface_offsets_mm
from brainseg_bids.reports import evaluation_cases as cases
from brainseg_bids.reports.evaluation_cases import MARKS, draw_case
from brainseg_bids.reports.slices import BACKGROUND, WIDTH_PX

TABLE = LabelTable(
    [
        Label(0, "Background"),
        Label(3, "Shell", "#c8a0ff", 1),
        Label(7, "Core", "#00760e", 9),
        Label(9, "Dot", "#ec0db0", 9),
    ],
    name="test",
)


def ball(radius_mm: float, grid: Grid, centre_mm=(0.0, 0.0, 0.0)) -> np.ndarray:
    at = np.indices(grid.shape).reshape(3, -1)
    world = grid.affine[:3, :3] @ at + grid.affine[:3, 3:]
    near = np.linalg.norm(world - np.array(centre_mm)[:, None], axis=0) <= radius_mm
    return near.reshape(grid.shape)


def grid_of(shape=(44, 50, 46), size_mm=(2.5, 2.0, 2.0)) -> Grid:
    affine = np.diag([*size_mm, 1.0])
    affine[:3, 3] = -np.array(size_mm) * (np.array(shape) - 1) / 2
    return Grid(shape, affine)


@pytest.fixture(scope="module")
def pair() -> tuple[LabelMap, LabelMap]:
    """A core in a shell; the prediction's core is too large and its dot is missing."""
    grid = grid_of()
    maps = []
    for core_mm, dot in ((16, True), (22, False)):
        voxels = np.zeros(grid.shape, np.int16)
        voxels[ball(38, grid)] = 3
        voxels[ball(core_mm, grid)] = 7
        if dot:
            voxels[ball(5, grid, (0, 43, 0))] = 9
        maps.append(LabelMap(voxels, grid, TABLE))
    return tuple(maps)


@pytest.fixture(scope="module")
def image(pair) -> np.ndarray:
    return (40.0 + 20 * pair[0].voxels).astype(np.float32)


def pixels_of(path) -> np.ndarray:
    pixels = np.asarray(Image.open(path)).astype(int)
    assert pixels.shape[1] == WIDTH_PX
    assert (pixels[-2:] == BACKGROUND).all()
    return pixels


def near(pixels: np.ndarray, color, within: int = 40) -> np.ndarray:
    return (np.abs(pixels - 255 * np.array(color)) < within).all(axis=2)


def test_a_core_that_is_too_large_lies_outside_by_what_it_was_grown(pair):
    reference, prediction = pair
    offsets = surface_offsets_mm(prediction, reference)
    core = offsets[prediction.voxels == 7]
    assert np.nanmedian(core) == pytest.approx(6, abs=1)
    # The shell's inner surface has moved into the shell, its outer one has not.
    shell = offsets[prediction.voxels == 3]
    shell = shell[np.isfinite(shell)]
    assert shell.max() == 0
    assert shell.min() == pytest.approx(-6, abs=1.5)
    assert (shell == 0).mean() > 0.5


def test_distances_are_in_mm_along_each_axis_and_signed_the_other_way_round(pair):
    reference, prediction = pair
    back = surface_offsets_mm(reference, prediction)
    core = back[reference.voxels == 7]
    assert np.nanmedian(core) == pytest.approx(-6, abs=1)
    assert np.isnan(back[reference.voxels == 9]).all()  # the prediction has none


def test_distances_are_asked_for_where_they_are_wanted_only(pair):
    reference, prediction = pair
    wanted = np.zeros(reference.grid.shape, bool)
    wanted[:, :, 20] = True
    part = surface_offsets_mm(prediction, reference, wanted)
    whole = surface_offsets_mm(prediction, reference)
    np.testing.assert_array_equal(part[:, :, 20], whole[:, :, 20])
    assert np.isnan(part[:, :, :20]).all()


def test_a_voxel_in_the_corner_of_an_image_is_surface():
    voxels = np.full((2, 2, 2), 7)
    labels = LabelMap(voxels, Grid((2, 2, 2), np.eye(4)), TABLE)
    assert (surface_offsets_mm(labels, labels) == 0).all()


def test_the_picture_shows_outlines_differences_and_distances(pair, image, tmp_path):
    reference, prediction = pair
    path = draw_case(tmp_path / "case.png", image, reference, prediction, title="sub-01, ours")
    pixels = pixels_of(path)
    assert (pixels == (0x00, 0x76, 0x0E)).all(axis=2).sum() > 300  # outlines of the core
    # Without the row of distances, whose colours are alike.
    short = pixels_of(
        draw_case(tmp_path / "b.png", image, reference, prediction, title="s", distances=False)
    )
    assert len(short) < 0.8 * len(pixels)
    swapped, missed, extra = (
        near(short, MARKS[name][1]).sum() for name in ("swapped", "missed", "extra")
    )
    assert swapped > 10_000
    assert missed > 1000  # the dot
    assert extra < 300  # its key alone
    assert sorted(file.name for file in tmp_path.iterdir()) == ["b.png", "case.png"]


def test_without_an_image_labels_are_filled(pair, tmp_path):
    reference, prediction = pair
    pixels = pixels_of(draw_case(tmp_path / "a.png", None, reference, prediction, title="none"))
    filled = near(pixels, np.array([0xC8, 0xA0, 0xFF]) / 255 * 0.5 * 0.7, within=12)
    assert filled.sum() > 20_000


def test_equal_maps_are_said_to_be_equal(pair, image, tmp_path, monkeypatch):
    words = []
    original = cases.Canvas.text
    monkeypatch.setattr(
        cases.Canvas,
        "text",
        lambda self, x, y, text, **style: (
            words.append(text),
            original(self, x, y, text, **style),
        ),
    )
    reference, prediction = pair
    pixels = pixels_of(draw_case(tmp_path / "a.png", image, reference, reference, title="same"))
    assert any("do not differ" in text for text in words)
    assert near(pixels, MARKS["swapped"][1]).sum() < 1000  # its key alone
    words.clear()
    draw_case(tmp_path / "b.png", image, reference, prediction, title="other")
    assert ": Dot" in " ".join(words)


def test_cuts_go_where_the_structure_in_question_differs(pair, image):
    reference, prediction = pair
    at_mm = cases._prepare(image, reference, prediction, None, "Dot").at_mm
    assert at_mm == pytest.approx((0, 43, 0), abs=2.6)
    anywhere = cases._prepare(image, reference, prediction, None, "").at_mm
    assert np.abs(anywhere).max() < 15  # the core


def test_cuts_are_the_same_however_the_voxels_lie_in_the_file(pair, image):
    reference, prediction = pair
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = reference.grid.shape[0] - 1
    grid = Grid(reference.grid.shape, reference.grid.affine @ flip)
    turned = [LabelMap(one.voxels[::-1], grid, TABLE) for one in pair]
    for focus in ("Dot", "Core"):
        here = cases._prepare(image, reference, prediction, None, focus).at_mm
        there = cases._prepare(image[::-1], *turned, None, focus).at_mm
        assert here == pytest.approx(there, abs=0.01)


def test_what_is_not_judged_does_not_differ(pair, image):
    reference, prediction = pair
    within = ~ball(30, reference.grid)
    case = cases._prepare(image, reference, prediction, within, "")
    assert not (case.reference.voxels[case.left_out] > 0).any()
    differs = case.reference.voxels != case.prediction.voxels
    assert set(np.unique(case.reference.voxels[differs])) == {9}  # the core is left out


def test_labels_that_the_reference_does_not_know_are_background(pair, image):
    reference, prediction = pair
    small = LabelTable([label for label in TABLE if label.name != "Shell"], name="small")
    core = LabelMap(np.where(reference.voxels == 3, 0, reference.voxels), reference.grid, small)
    case = cases._prepare(image, core, prediction, None, "")
    assert set(np.unique(case.prediction.voxels)) == {0, 7}


def test_what_is_seen_is_cut_out_of_a_large_image(pair):
    reference, prediction = pair
    case = cases._prepare(None, reference, prediction, None, "")
    assert case.image.shape == case.reference.voxels.shape
    volumes = reference.volumes_mm3(), case.reference.volumes_mm3()
    assert volumes[0][7] == volumes[1][7]
    padded = Grid((144, 150, 146), reference.grid.crop((-50, -50, -50), (144, 150, 146)).affine)
    wide = [LabelMap(np.pad(one.voxels, 50), padded, TABLE) for one in pair]
    large = cases._prepare(None, *wide, None, "")
    assert np.prod(large.image.shape) < 3 * np.prod(reference.grid.shape)


def test_what_does_not_fit_together_is_refused(pair, image, tmp_path):
    reference, prediction = pair
    moved = Grid(reference.grid.shape, np.diag([1.0, 1, 1, 1]))
    path = tmp_path / "a.png"
    with pytest.raises(ValueError, match="different grids"):
        draw_case(path, image, reference, replace(prediction, grid=moved), title="")
    with pytest.raises(ValueError, match="differ in shape"):
        draw_case(path, image[1:], reference, prediction, title="")
    with pytest.raises(UnknownLabelError):
        draw_case(path, image, reference, prediction, title="", focus="Tail")
    assert not path.exists()


def test_nothing_labelled_is_a_picture_too(pair, image, tmp_path):
    def coloured(reference, prediction) -> int:
        path = draw_case(tmp_path / "a.png", image, reference, prediction, title="case")
        return int((np.ptp(pixels_of(path), axis=2) > 60).sum())

    empty = LabelMap(np.zeros(pair[0].grid.shape, np.int16), pair[0].grid, TABLE)
    # What is left has its colour from letters, keys and the scale alone.
    assert coloured(empty, empty) < 0.5 * coloured(*pair)
