# SPDX-License-Identifier: Apache-2.0
"""A rating on another grid, or with other axes, says the same of each place in the world."""

from __future__ import annotations

import numpy as np

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import Label, LabelTable
from brainseg_bids.evaluation.ratings import Rating, reoriented, resampled

TABLE = LabelTable([Label(0, "Background"), Label(7, "Seven"), Label(9, "Nine")])
RAS = Grid((6, 5, 4), np.diag([1.0, 2.0, 3.0, 1.0]))
LIA = Grid(  # the same voxels: x from the left, then z downwards, then y
    (6, 4, 5), np.array([[-1.0, 0, 0, 5], [0, 0, 2, 0], [0, -3, 0, 9], [0, 0, 0, 1]])
)


def rating(rng, grid: Grid) -> Rating:
    voxels = rng.choice([0, 7, 9], grid.shape).astype(np.int16)
    return Rating(LabelMap(voxels, grid, TABLE), rng.random(grid.shape) < 0.3)


def at(array: np.ndarray, grid: Grid, place_mm: np.ndarray):
    index = np.linalg.inv(grid.affine) @ [*place_mm, 1]
    return array[tuple(np.rint(index[:3]).astype(int))]


def test_turned_axes_leave_each_label_at_its_place():
    before = rating(np.random.default_rng(0), LIA)
    after = reoriented(before, RAS)
    assert after.labels.grid == RAS
    for index in np.ndindex(RAS.shape):
        place_mm = (RAS.affine @ [*index, 1])[:3]
        assert after.labels.voxels[index] == at(before.labels.voxels, LIA, place_mm)
        assert after.void[index] == at(before.void, LIA, place_mm)
    back = reoriented(after, LIA)
    np.testing.assert_array_equal(back.labels.voxels, before.labels.voxels)
    np.testing.assert_array_equal(back.void, before.void)


def test_on_finer_voxels_labels_and_void_keep_their_volume():
    voxels, void = np.zeros(RAS.shape, np.int16), np.zeros(RAS.shape, bool)
    voxels[1:5, 1:4, 1:3], void[3:5, 1:4, 1:3] = 7, True
    before = Rating(LabelMap(voxels, RAS, TABLE), void)
    after = resampled(before, RAS.with_voxel_size((0.5, 1.0, 1.5)))
    # All but the corners, which linear weights round off.
    kept_mm3 = before.labels.volumes_mm3()[7] - 8 * after.labels.grid.voxel_volume_mm3
    assert after.labels.volumes_mm3()[7] == kept_mm3
    void_voxels = RAS.voxel_volume_mm3 / after.labels.grid.voxel_volume_mm3 * void.sum() - 8
    assert after.void.sum() == void_voxels
    assert not (after.void & (after.labels.voxels == 0)).any()
    assert resampled(Rating(before.labels, None), after.labels.grid).void is None
