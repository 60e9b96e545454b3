# SPDX-License-Identifier: Apache-2.0
"""What a pixel of the picture shows: the right place, label and colour."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.reports.slices import BACKGROUND, OPACITY, arrange

TABLE = LabelTable.packaged("brainseg")
LEFT_WM, RIGHT_WM, LEFT_THALAMUS, SKIN = 2, 41, 10, 511


def head_in_world(points_mm: np.ndarray) -> np.ndarray:
    """Codes of a head at world positions (..., 3): ball of skin, brain halves, left thalamus."""
    x, y, z = np.moveaxis(points_mm, -1, 0)
    codes = np.where(x**2 + y**2 + z**2 < 60**2, SKIN, 0)
    brain = x**2 + y**2 + z**2 < 45**2
    codes[brain] = np.where(x < 0, LEFT_WM, RIGHT_WM)[brain]
    # A fifth of the brain wide, in front and above: tells all directions apart.
    codes[(np.abs(x + 20) < 10) & (np.abs(y - 15) < 10) & (np.abs(z - 10) < 10)] = LEFT_THALAMUS
    return codes.astype(np.int16)


def head_on(grid: Grid) -> tuple[np.ndarray, LabelMap]:
    """The head seen by a grid, and an image of it: dark at the back, bright in front."""
    voxels = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1)
    world = voxels @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    codes = head_in_world(world)
    return (world[..., 1] + 100) * (codes > 0), LabelMap(codes, grid, TABLE)


def centred(shape: tuple[int, int, int], linear: np.ndarray) -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = -linear @ ((np.array(shape) - 1) / 2)
    return Grid(shape, affine)


def tilted() -> np.ndarray:
    angle = np.radians(20)
    turn = np.array(
        [[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]]
    )
    return turn @ np.diag([3.0, 2.5, 3.0])


GRIDS = {
    "isotropic": centred((44, 44, 44), np.diag([3.0, 3, 3])),
    "thick slices": centred((66, 66, 17), np.diag([2.0, 2, 8])),
    "flipped and permuted": centred(
        (44, 50, 44), np.array([[0, 0, -3.0], [3, 0, 0], [0, -2.7, 0]])
    ),
    "oblique": centred((48, 64, 56), tilted()),
}


def tiles_of(montage, plane: str, *, overlay: bool):
    style = "filled" if overlay else "plain"
    return [t for t in montage.tiles if t.plane.name == plane and t.style == style]


def is_filled_with(pixel: np.ndarray, beneath: np.ndarray, code: int) -> bool:
    wanted = (1 - OPACITY) * beneath + OPACITY * 255 * np.array(TABLE[code].rgb)
    return bool(np.abs(pixel.astype(float) - wanted).max() <= 1)


@pytest.mark.parametrize("name", GRIDS)
def test_every_pixel_shows_the_label_of_its_world_position(name):
    image, labels = head_on(GRIDS[name])
    montage = arrange(image, labels, n_cuts=5)
    size = max(labels.grid.voxel_size_mm)
    checked = 0
    for plain, filled in zip(
        [t for t in montage.tiles if t.style == "plain"],
        [t for t in montage.tiles if t.style == "filled"],
        strict=True,
    ):
        plane = plain.plane
        for right, up in itertools.product(range(-50, 51, 10), repeat=2):
            world = np.zeros(3)
            world[[plane.axis, plane.right, plane.up]] = plain.at_mm, right, up
            near = world + size * np.array(list(itertools.product((-0.9, 0, 0.9), repeat=3)))
            codes = set(head_in_world(near).tolist())
            if len(codes) > 1:
                continue  # within a voxel of a border either label is right
            code = codes.pop()
            row, column = montage.pixel(filled, tuple(world))
            beneath = montage.pixels[montage.pixel(plain, tuple(world))]
            pixel = montage.pixels[row, column]
            assert beneath[0] == beneath[1] == beneath[2]
            assert is_filled_with(pixel, beneath, code) if code else (pixel == beneath).all()
            checked += 1
    assert checked > 200


@pytest.mark.parametrize("name", GRIDS)
def test_the_persons_left_is_left_in_coronal_and_axial_tiles(name):
    image, labels = head_on(GRIDS[name])
    montage = arrange(image, labels, n_cuts=5)
    for plane in ("Coronal", "Axial"):
        for tile in tiles_of(montage, plane, overlay=True):
            box = montage.pixels[tile.top : tile.top + tile.height, tile.left :][:, : tile.width]
            # The thalamus is the only saturated green in this head.
            green = (box[..., 1].astype(int) - box[..., 0] > 40).nonzero()[1]
            if green.size:
                assert green.max() < tile.width / 2


def test_the_thalamus_in_front_lies_to_the_right_of_sagittal_tiles_and_above_the_middle():
    montage = arrange(*head_on(GRIDS["isotropic"]), n_cuts=5)
    at = [tile.at_mm for tile in tiles_of(montage, "Sagittal", overlay=True)]
    assert at == sorted(at)
    plain, filled = (
        min(tiles_of(montage, "Sagittal", overlay=overlay), key=lambda t: abs(t.at_mm + 20))
        for overlay in (False, True)
    )
    row, column = montage.pixel(filled, (-20, 15, 10))
    assert column > filled.left + filled.width / 2
    assert row < filled.top + filled.height / 2
    beneath = montage.pixels[montage.pixel(plain, (-20, 15, 10))]
    assert is_filled_with(montage.pixels[row, column], beneath, LEFT_THALAMUS)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_reoriented_copies_give_the_same_picture(order):
    image, labels = head_on(GRIDS["thick slices"])
    expected = arrange(image, labels, n_cuts=3)
    signs = [(-1) ** (k + order[0]) for k in range(3)]
    turn = np.zeros((4, 4))
    turn[3, 3] = 1
    for new, old in enumerate(order):
        turn[old, new] = signs[new]
        turn[old, 3] = 0 if signs[new] > 0 else labels.grid.shape[old] - 1
    flips = tuple(slice(None, None, sign) for sign in signs)
    grid = Grid(tuple(labels.grid.shape[old] for old in order), labels.grid.affine @ turn)
    copy = LabelMap(labels.voxels.transpose(order)[flips], grid, TABLE)
    found = arrange(image.transpose(order)[flips], copy, n_cuts=3)
    assert found.tiles == expected.tiles
    assert np.abs(found.pixels.astype(int) - expected.pixels).max() <= 1


@pytest.mark.parametrize("name", GRIDS)
def test_a_ball_is_as_wide_as_it_is_tall_whatever_the_voxels(name):
    montage = arrange(*head_on(GRIDS[name]), n_cuts=5)
    slack_mm = 2 * max(GRIDS[name].voxel_size_mm)
    for plane in ("Sagittal", "Coronal", "Axial"):
        tile = min(tiles_of(montage, plane, overlay=True), key=lambda t: abs(t.at_mm))
        box = montage.pixels[tile.top : tile.top + tile.height, tile.left :][:, : tile.width]
        rows, columns = box.any(axis=2).nonzero()
        tall_mm = (np.ptp(rows) + 1) / montage.px_per_mm
        wide_mm = (np.ptp(columns) + 1) / montage.px_per_mm
        across_mm = 2 * np.sqrt(60**2 - tile.at_mm**2)
        assert tall_mm == pytest.approx(across_mm, abs=slack_mm)
        assert wide_mm == pytest.approx(across_mm, abs=slack_mm)


def test_cuts_are_spread_over_the_brain_and_a_stray_voxel_does_not_move_them():
    image, labels = head_on(GRIDS["isotropic"])
    clean = arrange(image, labels, n_cuts=7)
    voxels = labels.voxels.copy()
    voxels[0, 0, 0] = LEFT_WM
    stray = arrange(image, LabelMap(voxels, labels.grid, TABLE), n_cuts=7)
    for plane in ("Sagittal", "Coronal", "Axial"):
        at = np.array([tile.at_mm for tile in tiles_of(clean, plane, overlay=False)])
        moved = np.array([tile.at_mm for tile in tiles_of(stray, plane, overlay=False)])
        assert at.min() > -45
        assert at.max() < 45
        assert np.ptp(at) > 60
        np.testing.assert_allclose(moved, at, atol=1.5)


def test_the_window_ignores_bright_fat_and_single_hot_voxels():
    image, labels = head_on(GRIDS["isotropic"])
    image = np.where(labels.voxels == SKIN, 2000.0, 100.0) * (labels.voxels > 0)
    image[22, 22, 22] = 1e6
    low, high = arrange(image, labels, n_cuts=5).window
    assert 100 <= high < 200
    assert low < 100


def test_an_image_without_any_label_is_shown_whole_and_plain():
    image, labels = head_on(GRIDS["isotropic"])
    empty = LabelMap(np.zeros_like(labels.voxels), labels.grid, TABLE)
    montage = arrange(image, empty, n_cuts=3)
    np.testing.assert_allclose(montage.box_mm, [[-66, 66]] * 3)
    for plain, filled in zip(
        tiles_of(montage, "Axial", overlay=False),
        tiles_of(montage, "Axial", overlay=True),
        strict=True,
    ):
        boxes = [
            montage.pixels[t.top : t.top + t.height, t.left : t.left + t.width]
            for t in (plain, filled)
        ]
        np.testing.assert_array_equal(*boxes)
        assert boxes[0].max() > 100


@pytest.mark.parametrize("value", [0.0, 7.0, np.nan])
def test_a_constant_or_missing_image_does_not_stop_the_picture(value):
    _, labels = head_on(GRIDS["isotropic"])
    montage = arrange(np.full(labels.voxels.shape, value), labels, n_cuts=1)
    assert np.isfinite(montage.window).all()
    assert (montage.pixels != BACKGROUND).any()


def test_what_does_not_fit_together_is_refused():
    image, labels = head_on(GRIDS["isotropic"])
    with pytest.raises(ValueError, match="differ in shape"):
        arrange(image[1:], labels)
    with pytest.raises(ValueError, match="n_cuts"):
        arrange(image, labels, n_cuts=0)


def test_outlines_leave_the_image_inside_a_label_as_it_is():
    image, labels = head_on(GRIDS["isotropic"])
    montage = arrange(image, labels, n_cuts=3)
    for plain, lined in zip(
        [t for t in montage.tiles if t.style == "plain"],
        [t for t in montage.tiles if t.style == "outlined"],
        strict=True,
    ):
        assert (plain.at_mm, plain.plane) == (lined.at_mm, lined.plane)
        one, other = (
            montage.pixels[t.top : t.top + t.height, t.left : t.left + t.width]
            for t in (plain, lined)
        )
        changed = (one != other).any(axis=2).mean()
        assert 0 < changed < 0.25
