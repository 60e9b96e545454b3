# SPDX-License-Identifier: Apache-2.0
"""Agreement of label maps: known overlaps come out as the formula says."""

from __future__ import annotations

import numpy as np
import pytest

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import Label, LabelTable
from brainseg_bids.evaluation.agreement import compare, confusion, dice_from, mean_dice

TABLE = LabelTable([Label(0, "Background"), Label(3, "Cube"), Label(900, "Plate")], name="shapes")
GRID = Grid((20, 18, 16), np.diag([2.0, 1.5, 1.0, 1.0]))


def cube(shift: int = 0) -> LabelMap:
    voxels = np.zeros(GRID.shape, dtype=np.int16)
    voxels[4 + shift : 10 + shift, 4:10, 4:10] = 3
    return LabelMap(voxels, GRID, TABLE)


@pytest.mark.parametrize("shift", [0, 1, 3, 6, 8])
def test_dice_of_a_shifted_cube_is_its_overlap(shift):
    found = {a.name: a for a in compare(cube(), cube(shift))}
    assert found["Cube"].dice == pytest.approx(max(0, 6 - shift) / 6)
    assert found["Cube"].reference_mm3 == found["Cube"].predicted_mm3 == 6**3 * 3.0


def test_a_label_in_neither_map_has_no_dice_and_one_in_a_single_map_has_zero():
    plate = cube().voxels.copy()
    plate[:, 17] = 900
    found = {a.name: a for a in compare(cube(), cube())}
    assert np.isnan(found["Plate"].dice)
    found = {a.name: a for a in compare(cube(), LabelMap(plate, GRID, TABLE))}
    assert found["Plate"].dice == 0
    assert np.isnan(found["Plate"].volume_error)


def test_mean_leaves_out_absent_labels_and_refuses_when_all_are_absent():
    agreements = compare(cube(), cube(3))
    assert mean_dice(agreements, [3, 900]) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="no mean Dice"):
        mean_dice(agreements, [900])


def test_counts_equal_those_of_one_mask_per_label(rng):
    reference, predicted = rng.integers(0, 6, size=(2, 37, 11, 5))
    counts = confusion(reference, predicted, 7)
    assert counts.sum() == reference.size
    for a in range(7):
        for b in range(7):
            assert counts[a, b] == np.sum((reference == a) & (predicted == b))
    dice = dice_from(counts)
    mask_a, mask_b = reference == 2, predicted == 2
    assert dice[2] == pytest.approx(2 * (mask_a & mask_b).sum() / (mask_a.sum() + mask_b.sum()))
    assert np.isnan(dice[6])


def test_only_voxels_within_the_mask_count():
    within = np.zeros(GRID.shape, dtype=bool)
    within[5:10] = True
    found = {a.name: a for a in compare(cube(), cube(1), within=within)}
    assert found["Cube"].dice == 1
    assert found["Cube"].reference_mm3 == 5 * 36 * 3.0


def test_volume_error_is_relative_to_the_reference():
    bigger = cube().voxels.copy()
    bigger[10:13, 4:10, 4:10] = 3
    found = compare(cube(), LabelMap(bigger, GRID, TABLE))
    assert found[1].volume_error == pytest.approx(0.5)


def test_maps_on_different_grids_or_of_different_tables_are_refused():
    moved = GRID.affine.copy()
    moved[0, 3] += 0.01
    with pytest.raises(ValueError, match="different grids"):
        compare(cube(), LabelMap(cube().voxels, Grid(GRID.shape, moved), TABLE))
    other = LabelTable(
        [Label(0, "Background"), Label(3, "Ball"), Label(900, "Plate")], name="other"
    )
    with pytest.raises(ValueError, match="tables shapes and other differ"):
        compare(cube(), LabelMap(cube().voxels, GRID, other))
