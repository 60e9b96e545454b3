# SPDX-License-Identifier: Apache-2.0
"""Summaries: every number with its n, whatever is missing shown, no matter the order of rows."""

from __future__ import annotations

import json

import numpy as np
import pytest

from brainseg_bids.evaluation.bootstrap import Bootstrap
from brainseg_bids.evaluation.summary import (
    common_structures,
    find_missing,
    headline,
    judged,
    summarise,
    tables,
)
from tests.evaluation.agreements import NAMES, agreement_row, many_rows

QUICK = Bootstrap(n_draws=500)


def one(found, **wanted):
    """The only line with these fields."""
    [line] = [a for a in found if all(getattr(a, k) == v for k, v in wanted.items())]
    return line


def test_numbers_are_those_of_numpy_with_their_n(rng):
    rows = many_rows(rng)
    values = [r["dice"] for r in rows if (r["rater"], r["name"]) == ("ours", NAMES[1])]
    found = one(summarise(rows, metrics=["dice"]), rater="ours", name=NAMES[1], stratum="all")
    assert (found.n_subjects, found.n_images, found.n_both, found.n_left_out) == (12, 12, 12, 0)
    assert found.mean == pytest.approx(np.mean(values))
    assert (found.q1, found.median, found.q3) == pytest.approx(
        tuple(np.percentile(values, [25, 50, 75]))
    )
    assert found.low < found.mean < found.high
    assert (found.worst, found.worst_image) == (min(values), f"sub-{np.argmin(values):02}")
    assert found.note == ""


def test_strata_are_given_beside_all_together(rng):
    found = summarise(many_rows(rng), metrics=["dice"], bootstrap=QUICK)
    n = {a.stratum: a.n_subjects for a in found if (a.rater, a.name) == ("ours", NAMES[0])}
    assert n == {"all": 12, "MP2RAGE": 9, "MPRAGE": 3}
    found = summarise([agreement_row("sub-1")], metrics=["dice"])
    assert [a.stratum for a in found] == ["all"]


def test_one_sided_rows_count_as_zero_overlap_and_are_left_out_of_distances():
    statuses = ("both", "both", "reference only", "prediction only", "neither")
    rows = [agreement_row(f"sub-{k}", status=status) for k, status in enumerate(statuses)]
    found = summarise(rows, bootstrap=QUICK)
    counts = {"n_both": 2, "n_reference_only": 1, "n_prediction_only": 1, "n_neither": 1}
    for metric, mean, n, left_out in (("dice", 0.45, 4, 1), ("hd95_mm", 0.5, 2, 3)):
        line = one(found, metric=metric)
        assert {key: getattr(line, key) for key in counts} == counts
        assert (line.mean, line.n_subjects, line.n_left_out) == (pytest.approx(mean), n, left_out)
    assert one(found, metric="dice").worst_image == "sub-2"


def test_nothing_to_average_is_said():
    rows = [agreement_row(f"sub-{k}", status="reference only") for k in range(3)]
    line = one(summarise(rows, metrics=["assd_mm"], bootstrap=QUICK))
    assert (line.mean, line.low, line.worst, line.n_subjects) == (None, None, None, 0)
    assert (line.n_reference_only, line.n_left_out) == (3, 3)
    assert line.note == "nothing is left to average"


def test_one_subject_has_numbers_but_no_interval():
    line = one(summarise([agreement_row("sub-1")], metrics=["dice"]))
    assert (line.mean, line.median, line.low, line.high) == (0.9, 0.9, None, None)
    assert line.note == "1 subject: no interval"


def test_equal_values_are_their_own_interval():
    rows = [agreement_row(f"sub-{k}") for k in range(12)]
    line = one(summarise(rows, metrics=["dice"], bootstrap=QUICK))
    assert [line.mean, line.median, line.q1, line.q3, line.worst] == pytest.approx([0.9] * 5)
    assert (line.low, line.high) == pytest.approx((0.9, 0.9))


def test_a_subject_counts_once_however_many_images_it_has():
    rows = [agreement_row(f"sub-1_run-{k}", subject="sub-1", dice=0.5) for k in range(8)]
    rows += [agreement_row(f"sub-{k}", dice=0.9) for k in (2, 3)]
    line = one(summarise(rows, metrics=["dice"], bootstrap=QUICK))
    assert (line.n_subjects, line.n_images) == (3, 10)
    assert line.mean == pytest.approx((0.5 + 0.9 + 0.9) / 3)
    assert line.median == pytest.approx(0.9)
    assert line.worst_image == "sub-1_run-0"


def test_signed_errors_keep_their_sign_and_the_worst_is_the_largest():
    rows = [
        agreement_row(f"sub-{k}", volumes_mm3=(1000.0, 1000.0 + error))
        for k, error in enumerate((50, 300, -200))
    ]
    line = one(summarise(rows, metrics=["volume_error_mm3"], bootstrap=QUICK))
    assert (line.mean, line.worst, line.worst_image) == (50, 300, "sub-1")


def test_the_worst_distance_is_the_longest():
    rows = [agreement_row(f"sub-{k}", assd_mm=mm) for k, mm in enumerate((0.4, 0.3, 2.5, 0.6))]
    line = one(summarise(rows, metrics=["assd_mm"], bootstrap=QUICK))
    assert (line.worst, line.worst_image) == (2.5, "sub-2")


def test_the_headline_averages_structures_before_subjects():
    dices = {"sub-1": (0.9, 0.7), "sub-2": (0.8, 0.6), "sub-3": (0.5, None)}
    rows = [
        agreement_row(
            image, NAMES[k], index=10 + k, dice=dice or 0, status="both" if dice else "neither"
        )
        for image, pair in dices.items()
        for k, dice in enumerate(pair)
    ]
    line = one(headline(rows, metrics=["dice"], bootstrap=QUICK))
    assert line.name == "mean of 2 structures"
    assert line.mean == pytest.approx((0.8 + 0.7 + 0.5) / 3)
    assert (line.n_structures, line.n_subjects, line.n_both, line.n_left_out) == (2, 3, 5, 1)


def test_the_headline_holds_only_what_all_raters_know(rng):
    rows = [r for r in many_rows(rng) if (r["rater"], r["name"]) != ("theirs", NAMES[2])]
    rows += [agreement_row(f"sub-{k:02}", "Brain", index=None, dice=1.0,
                           stratum="MPRAGE" if k % 4 == 0 else "MP2RAGE")
             for k in range(12)]  # fmt: skip
    found = headline(rows, metrics=["dice"], bootstrap=QUICK)
    assert {a.n_structures for a in found} == {2}
    values = [r["dice"] for r in rows if r["rater"] == "ours" and r["name"] in NAMES[:2]]
    assert one(found, rater="ours", stratum="all").mean == pytest.approx(np.mean(values))
    reasons = {a.name: a.reason for a in judged(rows) if not a.used}
    assert reasons == {
        NAMES[2]: "not known to theirs",
        "Brain": "a group, or not asked for",
    }


def test_without_common_structures_there_is_no_headline_but_reasons(rng):
    rows = [agreement_row("sub-1"), agreement_row("sub-1", "Other", index=11, rater="theirs")]
    assert headline(rows) == []
    assert [a.reason for a in judged(rows)] == ["not known to theirs", "not known to ours"]


def test_the_order_of_rows_changes_nothing(rng):
    rows = many_rows(rng, raters=("a", "b", "c"), n=6)
    shuffled = [rows[k] for k in rng.permutation(len(rows))]
    shuffled = [dict(reversed(row.items())) if k % 2 else row for k, row in enumerate(shuffled)]
    first, second = tables(rows, bootstrap=QUICK), tables(shuffled, bootstrap=QUICK)
    for name, lines in first.items():
        key = lambda line: json.dumps(line, sort_keys=True)  # noqa: E731
        assert sorted(lines, key=key) == sorted(second[name], key=key)


def test_another_rater_does_not_move_the_interval(rng):
    rows = many_rows(rng, raters=("ours",))
    more = rows + [row | {"rater": "theirs", "dice": 0.1} for row in rows[:9]]
    alone = one(headline(rows, metrics=["dice"]), stratum="all")
    beside = one(headline(more, metrics=["dice"]), stratum="all", rater="ours")
    assert beside == alone


def test_the_same_seed_gives_the_same_tables(rng):
    rows = many_rows(rng, n=5)
    assert headline(rows, bootstrap=QUICK) == headline(rows, bootstrap=QUICK)
    assert headline(rows, bootstrap=QUICK) != headline(rows, bootstrap=Bootstrap(500, seed=1))


def test_tables_hold_plain_types_that_json_takes(rng):
    rows = [*many_rows(rng, n=4), agreement_row("sub-99", status="neither", rater="ours")]
    found = tables(rows, bootstrap=QUICK)
    assert set(found) == {
        "headline", "structures", "judged", "comparisons", "ranks", "bland_altman", "missing",
    }  # fmt: skip
    assert "NaN" not in json.dumps(found)
    assert all(found.values())
    assert set(tables([])) == set(found)


def test_images_of_one_side_only_are_listed(rng):
    rows = [agreement_row("sub-1"), agreement_row("sub-2")]
    rows += [agreement_row("sub-1", rater="theirs")]
    assert [(m.kind, m.rater, m.image) for m in find_missing(rows)] == [
        ("reference without prediction", "theirs", "sub-2")
    ]
    found = find_missing(
        rows,
        references={"manual": ["sub-1", "sub-2", "sub-3"]},
        raters={"ours": ["sub-1", "sub-2", "sub-4"]},
    )
    assert [(m.kind, m.rater, m.image) for m in found] == [
        ("reference without prediction", "ours", "sub-3"),
        ("prediction without reference", "ours", "sub-4"),
        ("reference without prediction", "theirs", "sub-2"),
        ("reference without prediction", "theirs", "sub-3"),
    ]


def test_a_structure_without_row_is_listed_and_counted():
    rows = [agreement_row(f"sub-{k}", NAMES[j], index=j) for k in range(3) for j in range(2)]
    gone = rows.pop()
    [found] = find_missing(rows)
    assert (found.kind, found.image, found.name) == (
        "no row of the structure", gone["image"], gone["name"],
    )  # fmt: skip
    line = one(headline(rows, metrics=["dice"], bootstrap=QUICK))
    assert (line.n_no_row, line.n_left_out) == (1, 1)


def test_a_rater_may_lack_a_reference_altogether():
    found = find_missing([], references={"manual": ["sub-1"]}, raters={"ours": []})
    assert [(m.kind, m.image) for m in found] == [("reference without prediction", "sub-1")]


def test_beside_a_rater_without_sides_structures_are_pairs_that_all_have():
    whole = [{"rater": "whole", "name": name, "index": 1} for name in ("Thalamus", "Putamen")]
    sides = [
        {"rater": "sides", "name": "Left-Thalamus", "index": 10},
        {"rater": "sides", "name": "Right-Thalamus", "index": 49},
        {"rater": "sides", "name": "Thalamus", "index": None},
        {"rater": "sides", "name": "Brain", "index": None},
    ]
    whole.append({"rater": "whole", "name": "Brain", "index": None})  # a group is no pair
    assert common_structures(whole + sides, {"whole"}) == {"Thalamus"}
    assert common_structures(sides, set()) is None
