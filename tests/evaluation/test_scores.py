# SPDX-License-Identifier: Apache-2.0
"""Rows: what contradicts itself is refused, and structures are judged with reasons."""

from __future__ import annotations

import numpy as np
import pytest

from brainseg_bids.evaluation.scores import judge, metric, read_scores
from tests.evaluation.agreements import NAMES, agreement_row, many_rows


def test_a_metric_is_left_out_only_at_statuses_that_have_none_of_it():
    statuses = ("both", "reference only", "prediction only", "neither")
    rows = [agreement_row(f"sub-{k}", status=status) for k, status in enumerate(statuses)]
    [scores] = read_scores(rows)
    for name, expected in {
        "dice": [0.9, 0, 0, None],
        "nsd_1mm": [0.9, 0, 0, None],
        "hd95_mm": [0.5, None, None, None],
        "volume_error_mm3": [100, -1000, 1100, None],
        "volume_error_frac": [0.1, -1, None, None],
    }.items():
        found = scores.values(metric(name))[0, :, 0]
        assert [None if np.isnan(v) else pytest.approx(v) for v in found] == expected


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"status": "unsure"}, "unknown status 'unsure'"),
        ({"subject": None}, "has no subject"),
        ({"stratum": "all"}, "rename it"),
        ({"definition": "voxel"}, "rows mix the definitions surface and voxel"),
        ({"image": "sub-1", "name": "Other", "subject": "sub-9"}, "two subjects or strata"),
        ({"image": "sub-1"}, "two rows of rater ours, sub-1, Left-Thalamus"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_rows_that_make_no_sense_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        read_scores([agreement_row("sub-1"), agreement_row("sub-2") | change])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "n/a"])
def test_a_number_that_should_be_there_and_is_not_is_an_error(value):
    rows = [agreement_row("sub-1"), agreement_row("sub-2") | {"dice": value}]
    with pytest.raises(ValueError, match="sub-2, Left-Thalamus"):
        read_scores(rows)[0].values(metric("dice"))


def test_unknown_metrics_and_columns_are_named():
    with pytest.raises(ValueError, match="'beauty'"):
        metric("beauty")
    with pytest.raises(ValueError, match="no column 'nsd_2mm'"):
        read_scores([agreement_row("sub-1")])[0].values(metric("nsd_2mm"))


def test_references_are_kept_apart(rng):
    rows = [agreement_row("sub-1"), agreement_row("sub-1", reference="second")]
    assert [scores.reference for scores in read_scores(rows)] == ["manual", "second"]


def test_structures_are_in_order_of_code_and_groups_last(rng):
    rows = [*many_rows(rng, n=2), agreement_row("sub-00", "Brain", index=None, stratum="MPRAGE")]
    assert read_scores(rows[::-1])[0].names == (*NAMES, "Brain")


def test_only_what_all_know_is_judged_and_the_rest_has_its_reason(rng):
    rows = [row for row in many_rows(rng) if (row["rater"], row["name"]) != ("theirs", NAMES[1])]
    rows += [
        agreement_row(image, name, rater=rater, index=index, status=status, stratum=stratum)
        for image, stratum in (("sub-00", "MPRAGE"), ("sub-01", "MP2RAGE"))
        for rater in ("ours", "theirs")
        for name, index, status in (
            ("Deep-GM", None, "both"),
            ("Lesion", 25, "prediction only"),
            ("Vessel", 30, "both"),
        )
    ]
    [scores] = read_scores(rows)
    found = {one.name: one.reason for one in judge(scores, known={"ours": NAMES})}
    assert found == {
        NAMES[0]: "",
        NAMES[1]: "not known to theirs",
        NAMES[2]: "",
        "Deep-GM": "a group, or not asked for",
        "Lesion": "the reference has it in no image",
        "Vessel": "not known to ours",
    }
    found = [one for one in judge(scores, structures=["Deep-GM", "Nowhere"]) if one.used]
    assert [one.name for one in found] == ["Deep-GM"]
    assert judge(scores, structures=["Nowhere"])[-1].reason == "no row is of it"


def test_a_structure_that_a_rater_always_misses_counts_as_missed(rng):
    rows = [
        agreement_row(r["image"], r["name"], rater=r["rater"], stratum=r["stratum"],
                      status="reference only" if r["rater"] == "theirs" else "both")
        for r in many_rows(rng)
    ]  # fmt: skip
    assert all(one.used for one in judge(read_scores(rows)[0]))


def test_groups_are_judged_where_there_is_nothing_else():
    [scores] = read_scores([agreement_row("sub-1", "Brain", index=None)])
    assert [one.used for one in judge(scores)] == [True]


@pytest.mark.parametrize("turn", [1, -1])
def test_a_label_of_one_rater_that_is_a_group_of_another_is_a_label(turn):
    rows = [
        agreement_row("sub-1", "Thalamus", index=None),
        agreement_row("sub-1", "Thalamus", rater="theirs", index=10),
    ]
    assert read_scores(rows[::turn])[0].single == (True,)
