# SPDX-License-Identifier: Apache-2.0
"""What a pixel of the picture shows: the right place, label and colour."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.reports.figures import PlaneRows, cut_planes
from brainseg_bids.reports.slices import OPACITY, Plane

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


@dataclass(frozen=True)
class Tile:
    """One cut in one style."""

    rows: PlaneRows
    at_mm: float
    pixels: np.ndarray

    @property
    def plane(self) -> Plane:
        return self.rows.slices.planes[0]

    def pixel(self, world_mm) -> tuple[int, int]:
        """Row and column at which a world position is shown."""
        box_mm, px_per_mm = self.rows.box_mm, self.rows.slices.px_per_mm
        column = (world_mm[self.plane.right] - box_mm[self.plane.right, 0]) * px_per_mm
        row = (box_mm[self.plane.up, 1] - world_mm[self.plane.up]) * px_per_mm
        return int(row), int(column)


def tiles_of(planes: list[PlaneRows], style: str, plane: str = "") -> list[Tile]:
    return [
        Tile(rows, at_mm, pixels)
        for rows in planes
        for at_mm, pixels in zip(rows.at_mm, rows.rows[style], strict=True)
        if plane in ("", rows.slices.planes[0].name)
    ]


def is_filled_with(pixel: np.ndarray, beneath: np.ndarray, code: int) -> bool:
    wanted = (1 - OPACITY) * beneath + OPACITY * 255 * np.array(TABLE[code].rgb)
    return bool(np.abs(pixel.astype(float) - wanted).max() <= 1)


@pytest.mark.parametrize("name", GRIDS)
def test_every_pixel_shows_the_label_of_its_world_position(name):
    image, labels = head_on(GRIDS[name])
    planes = cut_planes(image, labels, n_cuts=5)
    size = max(labels.grid.voxel_size_mm)
    checked = 0
    for plain, filled in zip(tiles_of(planes, "image"), tiles_of(planes, "labels"), strict=True):
        plane = plain.plane
        for right, up in itertools.product(range(-50, 51, 10), repeat=2):
            world = np.zeros(3)
            world[[plane.axis, plane.right, plane.up]] = plain.at_mm, right, up
            near = world + size * np.array(list(itertools.product((-0.9, 0, 0.9), repeat=3)))
            codes = set(head_in_world(near).tolist())
            if len(codes) > 1:
                continue  # within a voxel of a border either label is right
            code = codes.pop()
            beneath = plain.pixels[plain.pixel(world)]
            pixel = filled.pixels[filled.pixel(world)]
            assert beneath[0] == beneath[1] == beneath[2]
            assert is_filled_with(pixel, beneath, code) if code else (pixel == beneath).all()
            checked += 1
    assert checked > 200


@pytest.mark.parametrize("name", GRIDS)
def test_the_persons_left_is_left_in_coronal_and_axial_tiles(name):
    image, labels = head_on(GRIDS[name])
    planes = cut_planes(image, labels, n_cuts=5)
    for plane in ("Coronal", "Axial"):
        for tile in tiles_of(planes, "labels", plane):
            # The thalamus is the only saturated green in this head.
            green = (tile.pixels[..., 1].astype(int) - tile.pixels[..., 0] > 40).nonzero()[1]
            if green.size:
                assert green.max() < tile.pixels.shape[1] / 2


def test_the_thalamus_in_front_lies_to_the_right_of_sagittal_tiles_and_above_the_middle():
    planes = cut_planes(*head_on(GRIDS["isotropic"]), n_cuts=5)
    assert list(planes[0].at_mm) == sorted(planes[0].at_mm)
    plain, filled = (
        min(tiles_of(planes, style, "Sagittal"), key=lambda tile: abs(tile.at_mm + 20))
        for style in ("image", "labels")
    )
    row, column = filled.pixel((-20, 15, 10))
    assert column > filled.pixels.shape[1] / 2
    assert row < filled.pixels.shape[0] / 2
    assert is_filled_with(filled.pixels[row, column], plain.pixels[row, column], LEFT_THALAMUS)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_reoriented_copies_give_the_same_picture(order):
    image, labels = head_on(GRIDS["thick slices"])
    expected = cut_planes(image, labels, n_cuts=3)
    signs = [(-1) ** (k + order[0]) for k in range(3)]
    turn = np.zeros((4, 4))
    turn[3, 3] = 1
    for new, old in enumerate(order):
        turn[old, new] = signs[new]
        turn[old, 3] = 0 if signs[new] > 0 else labels.grid.shape[old] - 1
    flips = tuple(slice(None, None, sign) for sign in signs)
    grid = Grid(tuple(labels.grid.shape[old] for old in order), labels.grid.affine @ turn)
    copy = LabelMap(labels.voxels.transpose(order)[flips], grid, TABLE)
    found = cut_planes(image.transpose(order)[flips], copy, n_cuts=3)
    for one, other in zip(found, expected, strict=True):
        assert one.slices == other.slices
        assert one.at_mm == other.at_mm
        for style, tiles in one.rows.items():
            for tile, wanted in zip(tiles, other.rows[style], strict=True):
                assert np.abs(tile.astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("name", GRIDS)
def test_a_ball_is_as_wide_as_it_is_tall_whatever_the_voxels(name):
    planes = cut_planes(*head_on(GRIDS[name]), n_cuts=5)
    slack_mm = 2 * max(GRIDS[name].voxel_size_mm)
    for plane in ("Sagittal", "Coronal", "Axial"):
        tile = min(tiles_of(planes, "labels", plane), key=lambda t: abs(t.at_mm))
        rows, columns = tile.pixels.any(axis=2).nonzero()
        tall_mm = (np.ptp(rows) + 1) / tile.rows.slices.px_per_mm
        wide_mm = (np.ptp(columns) + 1) / tile.rows.slices.px_per_mm
        across_mm = 2 * np.sqrt(60**2 - tile.at_mm**2)
        assert tall_mm == pytest.approx(across_mm, abs=slack_mm)
        assert wide_mm == pytest.approx(across_mm, abs=slack_mm)


def test_cuts_are_spread_over_the_brain_and_a_stray_voxel_does_not_move_them():
    image, labels = head_on(GRIDS["isotropic"])
    clean = cut_planes(image, labels, n_cuts=7)
    voxels = labels.voxels.copy()
    voxels[0, 0, 0] = LEFT_WM
    stray = cut_planes(image, LabelMap(voxels, labels.grid, TABLE), n_cuts=7)
    for one, other in zip(clean, stray, strict=True):
        at, moved = np.array(one.at_mm), np.array(other.at_mm)
        assert at.min() > -45
        assert at.max() < 45
        assert np.ptp(at) > 60
        np.testing.assert_allclose(moved, at, atol=1.5)


def test_the_window_ignores_bright_fat_and_single_hot_voxels():
    image, labels = head_on(GRIDS["isotropic"])
    image = np.where(labels.voxels == SKIN, 2000.0, 100.0) * (labels.voxels > 0)
    image[22, 22, 22] = 1e6
    low, high = cut_planes(image, labels, n_cuts=5)[0].window
    assert 100 <= high < 200
    assert low < 100


def test_an_image_without_any_label_is_shown_whole_and_plain():
    image, labels = head_on(GRIDS["isotropic"])
    empty = LabelMap(np.zeros_like(labels.voxels), labels.grid, TABLE)
    planes = cut_planes(image, empty, n_cuts=3)
    np.testing.assert_allclose(planes[0].box_mm, [[-66, 66]] * 3)
    for plain, filled in zip(planes[2].rows["image"], planes[2].rows["labels"], strict=True):
        np.testing.assert_array_equal(plain, filled)
        assert plain.max() > 100


@pytest.mark.parametrize("value", [0.0, 7.0, np.nan])
def test_a_constant_or_missing_image_does_not_stop_the_picture(value):
    _, labels = head_on(GRIDS["isotropic"])
    planes = cut_planes(np.full(labels.voxels.shape, value), labels, n_cuts=1)
    assert np.isfinite(planes[0].window).all()
    assert all(tile.any() for tile in planes[0].rows["labels"])


def test_what_does_not_fit_together_is_refused():
    image, labels = head_on(GRIDS["isotropic"])
    with pytest.raises(ValueError, match="differ in shape"):
        cut_planes(image[1:], labels)
    with pytest.raises(ValueError, match="n_cuts"):
        cut_planes(image, labels, n_cuts=0)


def test_outlines_leave_the_image_inside_a_label_as_it_is():
    image, labels = head_on(GRIDS["isotropic"])
    planes = cut_planes(image, labels, n_cuts=3)
    for plain, lined in zip(tiles_of(planes, "image"), tiles_of(planes, "outlines"), strict=True):
        changed = (plain.pixels != lined.pixels).any(axis=2).mean()
        assert 0 < changed < 0.25
