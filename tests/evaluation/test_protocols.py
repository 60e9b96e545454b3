# SPDX-License-Identifier: Apache-2.0
"""Ratings in common labels, and what of two can be judged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.bids.adapters import Adapter, read_adapter
from brainseg_bids.documents import InputError
from brainseg_bids.evaluation.agreement import compare
from brainseg_bids.evaluation.protocols import comparison, within_evaluable
from brainseg_bids.evaluation.ratings import Rating, merge_sides, nearest_labels, translate
from tests.phantom.head import phantom_head

FULL = LabelTable.packaged("fullhead")
COMMON_CORTEX = (2, 3, 41, 42)


def line(*codes, table=FULL):
    """Codes in a row of voxels."""
    voxels = np.array(codes, np.int16).reshape(-1, 1, 1)
    return LabelMap(voxels, Grid(voxels.shape, np.eye(4)), table)


def rating(*codes, void=None, can_say=None):
    table = FULL if can_say is None else FULL.subset({0, *can_say})
    return Rating(
        line(*codes, table=table),
        None if void is None else np.array(void, bool).reshape(-1, 1, 1),
    )


def codes_of(labels):
    return labels.voxels.ravel().tolist()


@pytest.fixture(scope="module")
def small_head():
    """The phantom at 8 mm, as the labels that raters of UltraCortex would leave."""
    return phantom_head((24, 28, 26), 8.0)


# ---- translation


def test_a_target_of_several_is_that_of_the_nearest_in_mm():
    codes = np.zeros((5, 1, 5), int)
    codes[0, 0, 2], codes[2, 0, 4], codes[2, 0, 2] = 1, 2, 9
    meaning = {0: (0,), 1: (2,), 2: (41,), 9: (2, 41)}
    for sizes, expected in (((1, 1, 3), 2), ((3, 1, 1), 41)):
        labels, void = translate(codes, Grid(codes.shape, np.diag([*sizes, 1])), meaning)
        assert labels.voxels[2, 0, 2] == expected
        assert void is None


def test_nearest_labels_are_exact_beyond_the_first_box(rng):
    labels = np.zeros((40, 6, 7), np.int16)
    labels[39, 2, 3], labels[0, 5, 6] = 2, 41
    where = np.zeros(labels.shape, bool)
    where[rng.integers(4, 36, 12), rng.integers(0, 6, 12), rng.integers(0, 7, 12)] = True
    sizes_mm = (0.5, 2.0, 1.0)
    found = nearest_labels(labels, where, (2, 41), sizes_mm)
    places = np.argwhere(where) * sizes_mm
    to_2 = np.linalg.norm(places - np.array([39, 2, 3]) * sizes_mm, axis=1)
    to_41 = np.linalg.norm(places - np.array([0, 5, 6]) * sizes_mm, axis=1)
    assert found.tolist() == np.where(to_2 < to_41, 2, 41).tolist()
    assert {2, 41} == set(found.tolist())


def test_nothing_to_be_near_to_is_void():
    labels, void = translate(
        np.array([[[9, 0]]]), Grid((1, 1, 2), np.eye(4)), {0: (0,), 9: (2, 41)}
    )
    assert void.ravel().tolist() == [True, False]
    assert not labels.voxels.any()


def test_merging_sides_forgets_which_side_only(small_head):
    merged = merge_sides(Rating(small_head, None)).labels
    assert np.array_equal(merged.voxels > 0, small_head.voxels > 0)
    both = small_head.volumes_mm3()
    assert merged.volumes_mm3()[3] == both[3] + both[42] > 0
    assert merge_sides(Rating(merged, None)).labels is merged


# ---- what is judged


def test_only_labels_that_both_have_are_judged():
    reference = rating(0, 2, 3, 10, can_say=(2, 3, 10))
    rater = rating(0, 2, 3, 0, can_say=(2, 3, 4))
    found = comparison(reference, rater, Adapter("x"), name="mine")
    rows = compare(found.prediction, found.reference, groups=found.groups, within=found.within)
    assert [row.name for row in rows] == ["Left-Cerebral-White-Matter", "Left-Cerebral-Cortex"]
    assert found.notes == ("mine: has no label for Left-Thalamus; not judged.",)
    with pytest.raises(InputError, match="no label that"):
        comparison(reference, rating(0, 4, 4, 4, can_say=(4,)), Adapter("x"), name="mine")


def test_what_is_void_to_the_reference_counts_for_nobody():
    reference = rating(2, 0, 0, void=[0, 1, 0])
    found = comparison(reference, rating(2, 2, 0), Adapter("x"), name="mine")
    row = compare(found.prediction, found.reference, labels=[2], within=found.within)[0]
    assert row.dice == 1
    assert found.excluded_mm3 == 1
    void_to_rater = rating(2, 0, 0, void=[0, 1, 0])
    found = comparison(rating(2, 2, 0), void_to_rater, Adapter("x"), name="mine")
    row = compare(found.prediction, found.reference, labels=[2], within=found.within)[0]
    assert row.dice == pytest.approx(2 / 3)
    assert found.within is None


def test_one_rater_without_sides_merges_those_of_both():
    reference = rating(0, 3, 42, 10, can_say=(3, 42, 10, 49))
    rater = merge_sides(rating(0, 3, 3, 10, can_say=(3, 10)))
    found = comparison(reference, rater, Adapter("x"), name="meshnet")
    rows = compare(found.prediction, found.reference, groups=found.groups)
    assert {row.name: row.dice for row in rows} == {"Cerebral-GM": 1, "Thalamus": 1}
    assert found.notes == ("meshnet: left and right are judged as one.",)


def test_structures_have_the_same_names_with_and_without_sides(small_head):
    whole = Rating(small_head, None)
    sided = comparison(whole, whole, read_adapter("oasis_manual"), name="a")
    merged = comparison(whole, merge_sides(whole), read_adapter("oasis_manual"), name="b")
    of_merged = {label.name for label in merged.reference.table} | set(merged.groups)
    assert set(sided.groups) <= of_merged
    full = compare(sided.prediction, sided.reference, groups=sided.groups)
    flat = compare(merged.prediction, merged.reference, groups=merged.groups)
    volumes = {row.name: row.reference_mm3 for row in flat}
    assert volumes["Thalamus"] > 0
    for row in full:
        if row.name in sided.groups:
            assert row.reference_mm3 == volumes[row.name], row.name


def test_hippocampus_is_left_out_of_the_cortex_unless_the_adapter_says_so():
    adapter = read_adapter("ultracortex")
    reference, rater = rating(3, 3, 42, 0), rating(3, 17, 54, 0)
    found = comparison(reference, rater, adapter, name="mine")
    assert codes_of(found.prediction) == [3, 0, 0, 0]
    assert "left out" in found.notes[0]
    cortex = replace(adapter, hippocampus_amygdala="cortex")
    found = comparison(reference, rater, cortex, name="mine")
    assert codes_of(found.prediction) == [3, 3, 42, 0]
    assert "count as cortex" in found.notes[0]


def test_the_two_protocols_differ_where_somebody_sees_unlabelled_tissue():
    adapter = read_adapter("ultracortex")
    reference = rating(3, 0, 0, 3)
    wrong, other = rating(3, 3, 3, 8), rating(3, 8, 24, 3)
    restricted = comparison(reference, wrong, adapter, name="mine")
    assert (restricted.within, restricted.protocol) == (None, "label-restricted")
    within = comparison(
        reference, wrong, adapter, name="mine", protocol="within-evaluable", others=[other]
    )
    # The second voxel is cerebellum to another. CSF is not unlabelled; the last is labelled.
    assert within.within.ravel().tolist() == [True, False, True, True]
    assert within.excluded_mm3 == 1
    assert within.protocol == "within-evaluable"
    dice = [
        compare(c.prediction, c.reference, labels=[3], within=c.within)[0].dice
        for c in (restricted, within)
    ]
    assert dice == pytest.approx([2 * 1 / 5, 2 * 1 / 4])


def test_the_mask_of_the_judged_rater_alone_changes_no_row(small_head):
    adapter = read_adapter("ultracortex")
    truth = np.where(np.isin(small_head.voxels, COMMON_CORTEX), small_head.voxels, 0)
    reference = Rating(replace(small_head, voxels=truth), None)
    moved = Rating(replace(small_head, voxels=np.roll(small_head.voxels, 1, axis=1)), None)
    rows = []
    for protocol in ("label-restricted", "within-evaluable"):
        found = comparison(reference, moved, adapter, name="mine", protocol=protocol)
        rows.append(
            compare(found.prediction, found.reference, groups=found.groups, within=found.within)
        )
    assert found.excluded_mm3 > 0
    assert rows[0] == rows[1]


def test_hippocampus_as_cortex_is_not_unlabelled():
    adapter = replace(read_adapter("ultracortex"), hippocampus_amygdala="cortex")
    found = comparison(
        rating(3, 0, 0), rating(3, 17, 8), adapter, name="mine", protocol="within-evaluable"
    )
    assert found.within.ravel().tolist() == [True, True, False]
    assert codes_of(found.prediction) == [3, 3, 0]


def test_within_evaluable_needs_a_reference_with_unlabelled_tissue():
    with pytest.raises(InputError, match="no protocol within-evaluable"):
        comparison(rating(2), rating(2), Adapter("x"), name="mine", protocol="within-evaluable")


def test_a_merged_map_counts_in_the_mask_like_any_other():
    unlabelled = ["Left-Thalamus", "Right-Thalamus"]
    sided, reference = rating(49, 10, 3), line(0, 3, 0)
    merged = merge_sides(sided).labels
    masks = [within_evaluable(reference, [m], unlabelled) for m in (sided.labels, merged)]
    assert masks[0].ravel().tolist() == masks[1].ravel().tolist() == [False, True, True]
