# SPDX-License-Identifier: Apache-2.0
"""Agreement of label maps: known overlaps and distances come out as the formula says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import Label, LabelTable, UnknownLabelError
from brainseg_bids.evaluation.agreement import compare, confusion, dice_from, mean_dice
from tests.evaluation.test_surface import brute_force

TABLE = LabelTable([Label(0, "Background"), Label(3, "Cube"), Label(900, "Plate")], name="shapes")
GRID = Grid((20, 18, 16), np.diag([2.0, 1.5, 1.0, 1.0]))
DISTANCES = (
    "assd_mm",
    "reference_to_prediction_mm",
    "prediction_to_reference_mm",
    "hd95_mm",
    "hd100_mm",
)


def cube(shift: int = 0, *, code: int = 3) -> LabelMap:
    voxels = np.zeros(GRID.shape, dtype=np.int16)
    voxels[4 + shift : 10 + shift, 4:10, 4:10] = code
    return LabelMap(voxels, GRID, TABLE)


def by_name(found):
    return {row.name: row for row in found}


@pytest.mark.parametrize("shift", [0, 1, 3, 6, 8])
def test_overlap_of_a_shifted_cube_is_that_of_the_formula(shift):
    found = by_name(compare(cube(shift), cube()))["Cube"]
    common = max(0, 6 - shift)
    assert found.status == "both"
    assert found.dice == pytest.approx(common / 6)
    assert found.iou == pytest.approx(common / (12 - common))
    assert found.reference_mm3 == found.predicted_mm3 == 6**3 * 3.0


@pytest.mark.parametrize("definition", ["surface", "voxel"])
@pytest.mark.parametrize("shift", [1, 3, 9])
def test_the_largest_distance_of_a_shifted_cube_is_its_shift(shift, definition):
    found = by_name(compare(cube(shift), cube(), definition=definition))["Cube"]
    assert found.hd100_mm == pytest.approx(2.0 * shift)
    assert found.definition == definition
    assert found.reference_to_prediction_mm == pytest.approx(found.prediction_to_reference_mm)


def test_a_plate_that_is_further_off_is_that_far_everywhere():
    # Two endless plates: all the way through the map, three voxels of 2 mm apart.
    voxels = np.zeros((2, *GRID.shape), dtype=np.int16)
    voxels[0, 4], voxels[1, 7] = 900, 900
    first, second = (LabelMap(v, GRID, TABLE) for v in voxels)
    found = by_name(compare(second, first, definition="voxel", tolerances_mm=[5.9, 6]))["Plate"]
    assert found.assd_mm == found.hd95_mm == found.hd100_mm == 6.0
    assert found.nsd == ((5.9, 0.0), (6.0, 1.0))


def test_a_tolerance_of_one_voxel_holds_when_the_header_is_single_precision():
    size = float(np.float32(0.6))
    grid = Grid(GRID.shape, np.diag([size, size, size, 1]))
    voxels = np.zeros((2, *GRID.shape), dtype=np.int16)
    voxels[0, 4], voxels[1, 5] = 900, 900
    first, second = (LabelMap(v, grid, TABLE) for v in voxels)
    found = by_name(compare(second, first, definition="voxel", tolerances_mm=[0.6]))["Plate"]
    assert size > 0.6
    assert found.nsd_at(0.6) == 1


@pytest.mark.parametrize("definition", ["surface", "voxel"])
@pytest.mark.parametrize(
    ("in_prediction", "in_reference", "status"),
    [
        (False, True, "reference only"),
        (True, False, "prediction only"),
        (False, False, "neither"),
    ],
)
def test_an_empty_side_is_told_and_never_infinite(in_prediction, in_reference, status, definition):
    maps = [cube(code=3 if there else 0) for there in (in_prediction, in_reference)]
    found = by_name(compare(*maps, definition=definition, groups={"All": ["Cube", "Plate"]}))
    for row in (found["Cube"], found["All"]):
        assert row.status == status
        assert all(math.isnan(getattr(row, name)) for name in DISTANCES)
        overlaps = [row.dice, row.iou, *(share for _, share in row.nsd)]
        if status == "neither":
            assert all(map(math.isnan, overlaps))
        else:
            assert overlaps == [0] * 4
        assert row.reference_mm3 == 648 * in_reference
        assert row.predicted_mm3 == 648 * in_prediction
        assert not any(isinstance(v, float) and math.isinf(v) for v in row.row().values())


def test_volume_error_has_a_sign_and_is_relative_to_the_reference():
    bigger = cube().voxels.copy()
    bigger[10:13, 4:10, 4:10] = 3
    bigger = LabelMap(bigger, GRID, TABLE)
    found = by_name(compare(bigger, cube()))["Cube"]
    assert found.volume_error == pytest.approx(0.5)
    assert found.volume_error_mm3 == pytest.approx(324)
    assert by_name(compare(cube(), bigger))["Cube"].volume_error == pytest.approx(-1 / 3)
    assert math.isnan(by_name(compare(cube(), cube()))["Plate"].volume_error)


def test_a_group_is_judged_as_one_and_may_overlap_another():
    halves = cube().voxels.copy()
    halves[4:7, 4:10, 4:10] = 900
    groups = {"Block": ["Cube", "Plate"], "Again": [3, 900]}
    found = by_name(compare(LabelMap(halves, GRID, TABLE), cube(), groups=groups))
    assert found["Cube"].dice == pytest.approx(2 / 3)
    assert found["Plate"].status == "prediction only"
    for name in groups:
        assert (found[name].dice, found[name].hd100_mm, found[name].index) == (1, 0, None)


def test_only_what_the_reference_knows_gets_a_row():
    more = LabelTable([*TABLE, Label(5, "Ball")], name="more")
    voxels = cube().voxels.copy()
    voxels[15:17, 4:10, 4:10] = 5
    wider = LabelMap(voxels, GRID, more)
    assert list(by_name(compare(wider, cube()))) == ["Cube", "Plate"]
    found = by_name(compare(cube(), wider))
    assert found["Ball"].status == "reference only"
    assert list(by_name(compare(wider, cube(), labels=["Plate", 0]))) == ["Plate", "Background"]
    with pytest.raises(UnknownLabelError, match="Ball"):
        compare(wider, cube(), groups={"Round": ["Ball"]})


def test_only_voxels_within_the_mask_count():
    within = np.zeros(GRID.shape, dtype=bool)
    within[5:10] = True
    found = by_name(compare(cube(1), cube(), within=within))["Cube"]
    assert found.dice == 1
    assert found.hd100_mm == 0
    assert found.reference_mm3 == 5 * 36 * 3.0
    background = compare(cube(1), cube(), within=within, labels=[0])[0]
    assert background.reference_mm3 == (5 * 18 * 16 - 5 * 36) * 3.0


def test_topology_is_counted_on_demand():
    ring = cube().voxels.copy()
    ring[4:10, 6:8, 6:8] = 0
    ring[0, 0, 0] = 3
    found = by_name(compare(LabelMap(ring, GRID, TABLE), cube(), with_topology=True))
    shapes = found["Cube"].reference_topology, found["Cube"].predicted_topology
    assert [(shape.components, shape.euler) for shape in shapes] == [(1, 1), (2, 1)]
    assert found["Plate"].predicted_topology.components == 0
    assert found["Cube"].row()["predicted_euler"] == 1
    assert "predicted_euler" not in compare(cube(), cube())[0].row()


def test_mean_leaves_out_absent_labels_and_refuses_when_all_are_absent():
    agreements = compare(cube(3), cube())
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


def test_maps_that_do_not_go_together_are_refused_in_one_line():
    moved = GRID.affine.copy()
    moved[0, 3] += 0.01
    with pytest.raises(ValueError, match=r"different grids.*resample"):
        compare(cube(), LabelMap(cube().voxels, Grid(GRID.shape, moved), TABLE))
    other = LabelTable([Label(0, "Nothing"), Label(3, "Ball"), Label(900, "Plate")], name="other")
    with pytest.raises(ValueError, match=r"3 Cube"):
        compare(LabelMap(cube().voxels, GRID, other), cube())
    with pytest.raises(ValueError, match="voxels that count"):
        compare(cube(), cube(), within=np.ones((2, 2, 2), bool))
    with pytest.raises(ValueError, match="positive number"):
        compare(cube(), cube(), tolerances_mm=[0])
    with pytest.raises(ValueError, match="surface definition 'surfel'"):
        compare(cube(), cube(), definition="surfel")
    with pytest.raises(ValueError, match="of a label"):
        compare(cube(), cube(), groups={"Cube": ["Plate"]})


SMALL = LabelTable([Label(n, f"label-{n}") for n in range(4)], name="small")
voxels = arrays.arrays(np.int16, (2, 5, 4, 6), elements=st.integers(0, 3))
definitions = st.sampled_from(["surface", "voxel"])


def rows(maps, size=(1.0, 2.0, 0.7), **settings):
    grid = Grid(maps.shape[1:], np.diag([*size, 1.0]))
    pair = [LabelMap(v, grid, SMALL) for v in maps]
    return compare(*pair, groups={"Two": [1, 3]}, **settings)


@given(voxels, definitions)
@settings(max_examples=25, deadline=None)
def test_a_map_agrees_with_itself(maps, definition):
    for row in rows(maps[[0, 0]], definition=definition):
        if row.status == "both":
            assert (row.dice, row.assd_mm, row.hd100_mm, row.nsd_at(0.6)) == (1, 0, 0, 1)
        else:
            assert row.status == "neither"


@given(voxels, definitions)
@settings(max_examples=25, deadline=None)
def test_swapping_the_maps_changes_nothing_but_directions(maps, definition):
    there, back = rows(maps, definition=definition), rows(maps[::-1], definition=definition)
    for one, other in zip(there, back, strict=True):
        for name in ("dice", "iou", "assd_mm", "hd95_mm", "hd100_mm"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), nan_ok=True)
        assert one.reference_mm3 == other.predicted_mm3
        assert one.reference_to_prediction_mm == pytest.approx(
            other.prediction_to_reference_mm, nan_ok=True
        )


@given(voxels, definitions)
@settings(max_examples=25, deadline=None)
def test_every_row_is_that_of_masks_compared_site_by_site(maps, definition):
    size = np.array((1.0, 2.0, 0.7))
    for row in rows(maps, definition=definition):
        prediction, reference = np.isin(maps, [1, 3] if row.index is None else row.index)
        total = reference.sum() + prediction.sum()
        dice = 2 * (reference & prediction).sum() / total if total else float("nan")
        assert row.dice == pytest.approx(dice, nan_ok=True)
        if row.status == "both":
            expected = brute_force(reference, prediction, definition, np.diag(size))
            assert row.assd_mm == pytest.approx(expected[0], abs=1e-9)
            assert row.hd100_mm == pytest.approx(expected[3], abs=1e-9)


@pytest.mark.parametrize("definition", ["surface", "voxel"])
def test_results_do_not_depend_on_how_the_maps_lie_in_memory(rng, definition):
    maps = rng.integers(0, 4, (2, 7, 6, 5)).astype(np.uint8)
    grid = Grid(maps.shape[1:], np.diag([1.0, 2.0, 0.7, 1.0]))
    first, second = (LabelMap(v, grid, SMALL) for v in maps)
    turned = LabelMap(np.asfortranarray(maps[0]), grid, SMALL)
    wide = LabelMap(maps[1].astype(np.int64)[..., ::-1].copy()[..., ::-1], grid, SMALL)
    straight = compare(first, second, definition=definition)
    for one, other in zip(straight, compare(turned, wide, definition=definition), strict=True):
        assert one.row() == pytest.approx(other.row(), abs=1e-9)
