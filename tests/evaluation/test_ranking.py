# SPDX-License-Identifier: Apache-2.0
"""Ranks: firm where raters differ, a toss where they do not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from brainseg_bids.evaluation.bootstrap import Bootstrap
from brainseg_bids.evaluation.ranking import kendall_taus, rank_stability, ranks_of
from tests.evaluation.agreements import NAMES, agreement_row, many_rows

QUICK = Bootstrap(n_draws=2000)


def of_mean(rows, **how):
    found = rank_stability(rows, bootstrap=QUICK, **how)
    return [r for r in found if r.stratum == "all" and r.name.startswith("mean of")]


def test_clear_differences_give_firm_ranks(rng):
    rows = many_rows(rng, raters=("a", "b", "c"), gains={"a": -0.1, "c": 0.1})
    found = of_mean(rows)
    assert [(r.rater, r.rank) for r in found] == [("c", 1), ("b", 2), ("a", 3)]
    assert [r.chances for r in found] == [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
    assert {(r.kendall_tau, r.same_winner, r.same_order) for r in found} == {(1, 1, 1)}


def test_a_close_race_is_shown_as_one():
    # Each of the two wins half of the subjects by the same amount, but for one of them.
    rows = [
        agreement_row(f"sub-{k:02}", rater=rater, dice=0.81 if k % 2 == parity else 0.8)
        for k in range(13)
        for parity, rater in enumerate(("a", "b"))
    ]
    first, second = of_mean(rows)
    assert (first.rater, second.rater) == ("a", "b")
    # a wins a draw if at least 7 of 13 drawn subjects are among its 7.
    expected = stats.binom.sf(6, 13, 7 / 13)
    assert first.chances[0] == pytest.approx(expected, abs=0.03)
    assert first.same_winner == pytest.approx(expected, abs=0.03)
    assert first.kendall_tau == pytest.approx(2 * expected - 1, abs=0.06)
    assert first.mean_rank + second.mean_rank == pytest.approx(3)


def test_equal_raters_share_the_first_rank(rng):
    rows = many_rows(rng, raters=("a",))
    found = of_mean(rows + [row | {"rater": "b"} for row in rows])
    assert [(r.rank, r.chances, r.kendall_tau) for r in found] == [(1, (1, 0), None)] * 2


def test_rounding_does_not_break_a_tie():
    assert ranks_of(np.array([[0.1 + 0.2, 0.3, 0.4]])).tolist() == [[1, 1, 3]]


def test_distances_rank_the_lowest_first(rng):
    rows = many_rows(rng, gains={"ours": 0.1})
    assert of_mean(rows, metrics=["assd_mm"])[0].rater == "ours"


def test_raters_are_ranked_on_common_images_only(rng):
    rows = many_rows(rng, gains={"ours": 0.01})
    rows = [r for r in rows if r["rater"] == "ours" or r["image"] < "sub-06"]
    hard = [r | {"dice": 0.0} if r["image"] >= "sub-06" else r for r in rows]
    found = of_mean(hard)
    assert [(r.rater, r.n_subjects, r.n_left_out) for r in found] == [
        ("ours", 6, 18),
        ("theirs", 6, 18),
    ]


def test_each_structure_and_stratum_is_ranked(rng):
    found = rank_stability(many_rows(rng), bootstrap=QUICK)
    assert {r.name for r in found} == {"mean of 3 structures", *NAMES}
    assert {r.stratum for r in found} == {"all", "MPRAGE", "MP2RAGE"}


def test_one_subject_has_ranks_but_no_chances(rng):
    first = of_mean(many_rows(rng, n=1, gains={"ours": 0.1}))[0]
    assert (first.rater, first.rank, first.chances, first.note) == (
        "ours", 1, None, "1 subject: no draws",
    )  # fmt: skip
    assert first.row()["p_rank_2"] is None


def test_one_rater_is_not_ranked(rng):
    assert rank_stability(many_rows(rng, raters=("ours",)), bootstrap=QUICK) == []


def test_kendalls_tau_is_scipys_with_ties_too(rng):
    drawn = ranks_of(rng.integers(0, 4, (50, 5)).astype(float))
    ranks = np.array([1, 2, 2, 4, 5])
    expected = [stats.kendalltau(line, ranks).statistic for line in drawn]
    assert kendall_taus(drawn, ranks) == pytest.approx(expected, nan_ok=True)
