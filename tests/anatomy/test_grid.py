# SPDX-License-Identifier: Apache-2.0
"""Grids: axis orders, voxel sizes and the world stay together."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable, UnknownLabelError


def turned_grid(order, signs, sizes=(1.0, 2.0, 3.0), shape=(3, 4, 5)) -> Grid:
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis in range(3):
        affine[order[axis], axis] = signs[axis] * sizes[axis]
    affine[:3, 3] = (5, -7, 11)
    return Grid(shape, affine)


ORIENTATIONS = list(product(permutations(range(3)), product((1, -1), repeat=3)))


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_turning_to_ras_keeps_every_voxel_at_its_place(order, signs):
    grid = turned_grid(order, signs)
    array = np.arange(60).reshape(grid.shape)
    ras, turned = grid.to_ras(), grid.array_to_ras(array)
    assert turned.shape == ras.shape
    assert (np.diag(ras.affine)[:3] > 0).all()
    for index in np.ndindex(ras.shape):
        world = ras.affine @ [*index, 1]
        there = np.rint(np.linalg.inv(grid.affine) @ world)[:3].astype(int)
        assert array[tuple(there)] == turned[index]
    np.testing.assert_array_equal(grid.array_from_ras(turned), array)


@given(st.lists(st.floats(-0.35, 0.35), min_size=3, max_size=3))
def test_an_oblique_grid_comes_back_from_ras(angles):
    rx, ry, rz = angles
    x = np.array([[1, 0, 0], [0, np.cos(rx), -np.sin(rx)], [0, np.sin(rx), np.cos(rx)]])
    y = np.array([[np.cos(ry), 0, np.sin(ry)], [0, 1, 0], [-np.sin(ry), 0, np.cos(ry)]])
    z = np.array([[np.cos(rz), -np.sin(rz), 0], [np.sin(rz), np.cos(rz), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = x @ y @ z @ np.diag([-1, -1, 2])
    grid = Grid((3, 4, 5), affine)
    array = np.arange(60).reshape(grid.shape)
    np.testing.assert_array_equal(grid.array_from_ras(grid.array_to_ras(array)), array)
    assert grid.to_ras().voxel_volume_mm3 == pytest.approx(2)


def test_axes_at_45_degrees_are_each_used_once():
    s = np.sqrt(0.5)
    affine = np.eye(4)
    affine[:3, :3] = [[s, s, 0], [s, -s, 0], [0, 0, 1]]
    assert sorted(axis for axis, _ in Grid((3, 3, 3), affine).orientation()) == [0, 1, 2]


@given(st.floats(0.3, 3), st.integers(3, 40))
def test_another_voxel_size_keeps_centre_and_covers_the_box(size_mm, n):
    grid = turned_grid((1, 0, 2), (1, -1, 1), shape=(n, 7, 9))
    other = grid.with_voxel_size(size_mm)
    np.testing.assert_allclose(other.center_mm, grid.center_mm, atol=1e-9)
    np.testing.assert_allclose(other.voxel_size_mm, size_mm)
    assert all(a >= b - 1e-3 for a, b in zip(other.extent_mm, grid.extent_mm, strict=True))


def test_grids_that_place_no_voxel_are_refused():
    with pytest.raises(ValueError, match="positive"):
        Grid((0, 3, 3), np.eye(4))
    with pytest.raises(ValueError, match="inverted"):
        Grid((3, 3, 3), np.diag([1.0, 0, 1, 1]))
    with pytest.raises(ValueError, match="finite"):
        Grid((3, 3, 3), np.full((4, 4), np.nan))


def test_a_grid_of_any_unit_is_told_from_one_without_extent():
    tiny = np.diag([1e-4, 2e-4, 1e-4, 1])  # cubes of 1e-12: small, but of three dimensions
    assert Grid((3, 3, 3), tiny).voxel_size_mm == pytest.approx((1e-4, 2e-4, 1e-4))
    flat = np.array([[100, 0, 100, 0], [0, 100, 100, 0], [0, 0, 1e-7, 0], [0, 0, 0, 1.0]])
    with pytest.raises(ValueError, match="inverted"):
        Grid((3, 3, 3), flat)


def test_the_files_unit_stays_with_derived_grids_and_makes_no_difference():
    grid = Grid((4, 5, 6), np.diag([2.0, -2, 2, 1]), "micron")
    for derived in (grid.to_ras(), grid.with_voxel_size(1), grid.crop((1, 1, 1), (2, 2, 2))):
        assert derived.file_unit == "micron"
    assert grid == Grid((4, 5, 6), grid.affine)
    assert grid.is_close(Grid((4, 5, 6), grid.affine))
    assert grid.voxel_volume_mm3 == 8
    with pytest.raises(ValueError, match="micron"):
        Grid((4, 5, 6), grid.affine, "inch")


def test_closeness_is_judged_in_millimetres_at_the_corners():
    grid = Grid((100, 3, 3), np.eye(4))
    tilted = np.eye(4)
    tilted[1, 0] = 1e-3
    assert not grid.is_close(Grid((100, 3, 3), tilted))
    assert grid.is_close(Grid((100, 3, 3), tilted), tolerance_mm=0.11)


def test_a_crop_places_its_first_voxel():
    grid = turned_grid((2, 0, 1), (1, -1, -1))
    crop = grid.crop((1, 2, 3), (2, 2, 2))
    np.testing.assert_allclose(crop.affine @ [0, 0, 0, 1], grid.affine @ [1, 2, 3, 1])


def test_label_maps_refuse_what_does_not_fit():
    table, grid = LabelTable.packaged("brainseg"), Grid((2, 2, 2), np.eye(4))
    with pytest.raises(UnknownLabelError):
        LabelMap(np.full((2, 2, 2), 99), grid, table)
    with pytest.raises(ValueError, match="do not fit"):
        LabelMap(np.zeros((2, 2, 3), int), grid, table)
    with pytest.raises(ValueError, match="integers"):
        LabelMap(np.zeros((2, 2, 2)), grid, table)


def test_a_symmetric_head_is_its_own_mirror_image(head):
    np.testing.assert_array_equal(head.mirrored().voxels, head.voxels)


def test_the_brain_mask_holds_ventricles_and_no_scalp(head):
    mask, table = head.brain_mask(), head.table
    for name in ("Left-Thalamus", "Right-Lateral-Ventricle", "Brain-Stem", "Left-Cerebral-Cortex"):
        assert mask[head.voxels == table[name].index].all()
    for name in ("Skin", "Bone-Cortical", "CSF"):
        assert not mask[head.voxels == table[name].index].any()


def test_what_a_grid_covers_is_where_its_box_is_whatever_its_axes():
    turned = Grid(
        (20, 30, 40), np.array([[0, 0, -1, 30], [2, 0, 0, -10], [0, 1, 0, 5], [0, 0, 0, 1.0]])
    )
    other = Grid((50, 60, 45), np.eye(4))
    world = np.indices(other.shape).reshape(3, -1)
    own = np.linalg.inv(turned.affine) @ np.vstack([world, np.ones(world.shape[1])])
    limits = np.array(turned.shape)[:, None]
    expected = ((own[:3] >= -0.5) & (own[:3] <= limits - 0.5)).all(axis=0)
    assert np.array_equal(turned.covers(other).ravel(), expected)
    assert turned.covers(turned).all()
