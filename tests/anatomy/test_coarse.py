# SPDX-License-Identifier: Apache-2.0
"""A brain tool that does not tell left from right, beside a head tool that does."""

import numpy as np
import pytest

from brainseg_bids.anatomy.coarse import refine, refined
from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.merge import Source, merge

BRAINCHOP = Crosswalk.packaged("brainchop", "fullhead")
SIAM = Crosswalk.packaged("siam", "fullhead")


def without(walk: Crosswalk, head: LabelMap) -> LabelMap:
    """The phantom as a tool would label it that has only the targets of a crosswalk."""
    voxels = head.voxels.copy()
    for target, among in walk.coarse.items():
        voxels[np.isin(voxels, list(among))] = target
    return LabelMap(voxels, head.grid, head.table)


@pytest.mark.parametrize("walk", [BRAINCHOP, SIAM], ids=["brainchop", "siam"])
def test_the_head_map_gives_back_what_the_brain_tool_does_not_tell(walk, head):
    lumped = without(walk, head)
    assert not np.isin(lumped.voxels, [41, 42, 49]).any()
    merged = merge(Source("model", head), Source("tool", lumped, coarse=walk.coarse))
    assert np.array_equal(merged.labels.voxels, head.voxels)
    (line,) = [rule for rule in merged.report.to_json()["rules"] if rule["rule"] == "coarse"]
    assert line["voxels"] == np.count_nonzero(lumped.voxels != head.voxels)


def test_where_the_head_map_says_another_structure_the_nearest_side_counts(head):
    ras = head.grid.to_ras()
    truth = np.ascontiguousarray(head.grid.array_to_ras(head.voxels)).astype(np.int16)
    lumped = np.where(truth == 42, 3, truth).astype(np.int16)
    guide = truth.copy()
    guide[np.isin(guide, [3, 42])] = 24  # the ribbon but for a voxel of each side
    for code in (3, 42):
        guide.reshape(-1)[np.flatnonzero(truth == code)[::7]] = code
    refine(lumped, {3: frozenset({3, 42})}, guide, ras, head.table)
    assert (lumped == truth)[truth == 42].mean() > 0.98
    assert (lumped == truth)[truth == 3].mean() > 0.98


def test_a_structure_that_the_head_map_lacks_gets_the_side_of_its_surroundings(head):
    ras = head.grid.to_ras()
    truth = np.ascontiguousarray(head.grid.array_to_ras(head.voxels)).astype(np.int16)
    guide = np.where(np.isin(truth, [12, 51]), 0, truth).astype(np.int16)  # no putamen
    lumped = np.where(truth == 51, 12, truth).astype(np.int16)
    changed, left = refine(lumped, {12: frozenset({12, 51})}, guide, ras, head.table)
    assert not left
    assert changed == np.count_nonzero(truth == 51)
    assert np.array_equal(lumped, truth)


def test_without_any_side_in_the_head_map_it_is_flagged(head):
    brain = without(BRAINCHOP, head)
    air = LabelMap(np.where(head.voxels > 500, head.voxels, 0), head.grid, head.table)
    flags = merge(Source("model", air), Source("brainchop", brain, coarse=BRAINCHOP.coarse))
    assert any("brainchop" in flag and "Left-Thalamus" in flag for flag in flags.report.flags)


def test_a_map_on_any_axes_is_refined(head):
    turned = head.grid.affine @ np.array(
        [[0, -1, 0, head.grid.shape[0] - 1], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]]
    )
    # Voxel (i, j, k) of the turned map is voxel (n - 1 - j, k, i) of the phantom.
    voxels = np.ascontiguousarray(head.voxels[::-1].transpose(2, 0, 1))
    guide = LabelMap(voxels, Grid(voxels.shape, turned), head.table)
    made = refined(without(BRAINCHOP, guide), BRAINCHOP.coarse, guide)
    assert np.array_equal(made.voxels, voxels)
    assert made.grid == guide.grid
