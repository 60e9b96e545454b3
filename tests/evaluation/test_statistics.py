# SPDX-License-Identifier: Apache-2.0
"""Signed ranks against scipy, against all sign flips, and against printed tables."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats

from brainseg_bids.evaluation.statistics import hodges_lehmann, holm, sign_chances, signed_rank

# Hollander, Wolfe and Chicken, table 3.1: depression scores before and after a tranquilliser.
BEFORE = np.array([1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30])
AFTER = np.array([0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29])


@pytest.mark.parametrize("n", [6, 12, 30])
def test_p_is_that_of_scipys_exact_test(rng, n):
    differences = rng.normal(0.4, 1, n)
    theirs = stats.wilcoxon(differences, method="exact")
    found = signed_rank(differences)
    assert found.p == pytest.approx(theirs.pvalue, rel=1e-12)
    assert min(found.positive, found.negative) == theirs.statistic


def test_p_with_ties_and_zeros_is_the_share_of_sign_flips_at_least_as_far_out():
    differences = np.array([0.0, 1, 1, -1, 2, 2, 2, 3, 0, -4])
    ranks = stats.rankdata(np.abs(differences))[differences != 0]
    flips = np.array(list(product((0, 1), repeat=len(ranks))))
    sums = flips @ ranks
    centre = ranks.sum() / 2
    found = signed_rank(differences)
    expected = (np.abs(sums - centre) >= abs(found.positive - centre) - 1e-9).mean()
    assert found.p == pytest.approx(expected)
    assert found.n_zero == 2


def test_many_pairs_agree_with_the_normal_approximation(rng):
    differences = rng.normal(0.1, 1, 150)
    theirs = stats.wilcoxon(differences, method="asymptotic", correction=True)
    assert signed_rank(differences).p == pytest.approx(theirs.pvalue, rel=0.01)


def test_critical_values_are_those_of_printed_tables():
    for n, critical in ((6, 0), (8, 3), (10, 8), (15, 25), (20, 52), (25, 89)):
        below = np.cumsum(sign_chances(np.arange(1.0, n + 1))[::2])
        assert below[critical] <= 0.025 < below[critical + 1]


def test_a_textbooks_example_comes_out_as_printed():
    found = signed_rank(BEFORE - AFTER)
    assert (found.positive, found.p) == (40, pytest.approx(0.0390625))
    shift, interval = hodges_lehmann(BEFORE - AFTER, level=0.95)
    assert shift == pytest.approx(0.46, abs=0.005)
    assert (interval.low, interval.high) == pytest.approx((0.010, 0.786), abs=0.001)


def test_the_interval_of_the_shift_leaves_out_zero_exactly_where_the_test_rejects(rng):
    for shift in np.linspace(-1, 1, 41):
        differences = rng.normal(shift, 0.8, 11)
        _, interval = hodges_lehmann(differences)
        assert (signed_rank(differences).p <= 0.05) == (not interval.low < 0 < interval.high)


def test_too_few_pairs_have_no_p_but_an_effect():
    found = signed_rank(np.array([1.0, 2, -3, 4, 5]))
    assert found.p is None
    assert "fewer than 6" in found.note
    assert found.rank_biserial == pytest.approx(9 / 15)
    assert hodges_lehmann(np.arange(5.0))[1].low is None


def test_without_any_difference_nothing_is_shown():
    found = signed_rank(np.zeros(12))
    assert (found.p, found.rank_biserial, found.n_zero) == (1, 0, 12)
    assert hodges_lehmann(np.zeros(12))[1].high == 0


def test_rank_biserial_is_the_difference_of_shares_of_ranks():
    assert signed_rank(np.arange(1.0, 9)).rank_biserial == 1
    assert signed_rank(-np.arange(1.0, 9)).rank_biserial == -1
    found = signed_rank(np.array([-1.0, 2, 3, 4, 5, -6, 7]))
    assert found.rank_biserial == pytest.approx((21 - 7) / 28)


def test_rounding_does_not_break_ties():
    found = signed_rank(np.array([0.3 - 0.2, 0.2 - 0.1, 0.1, 0.4 - 0.3, 0.5 - 0.4, 0.7 - 0.6]))
    assert found.positive == 21
    exact = signed_rank(np.array([0.3 - 0.2, -0.1, 0.1, 0.4 - 0.3, 0.5 - 0.4, 0.7 - 0.6]))
    assert exact.negative == 3.5


def test_holm_by_hand():
    # Sorted: 0.005 x 4, 0.01 x 3, 0.03 x 2, 0.04 x 1; each at least as large as the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1, 1]


def test_holm_gives_what_statsmodels_gives():
    # statsmodels 0.15.0, multipletests(p, method="holm"). It is no dependency for this alone.
    p = [0.04, 0.01, 0.01, 0.6, 0.003, 0.2, 0.9, 1e-5]
    theirs = [0.16, 0.06, 0.06, 1.0, 0.021, 0.6000000000000001, 1.0, 8e-05]
    assert holm(p) == pytest.approx(theirs, rel=1e-12)


def test_holm_does_not_count_what_was_not_tested():
    assert holm([None, 0.02, None, 0.04]) == [None, 0.04, None, 0.04]
    assert holm([None]) == [None]
    assert holm([]) == []
