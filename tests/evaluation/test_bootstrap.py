# SPDX-License-Identifier: Apache-2.0
"""Intervals: those of scipy, and honest about few subjects and several images of one."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from brainseg_bids.evaluation import bootstrap
from brainseg_bids.evaluation.bootstrap import Bootstrap, Draws, mean_interval

PLAIN = Bootstrap(n_draws=40_000, expand=False)


def ends(values, subjects, settings=None):
    found = mean_interval(np.asarray(values), subjects, Draws(settings or Bootstrap()))
    return found.low, found.high


@pytest.mark.parametrize(("method", "theirs"), [("bca", "BCa"), ("percentile", "percentile")])
def test_ends_are_those_of_scipy_within_the_error_of_drawing(rng, method, theirs):
    values = rng.exponential(1, 25)
    settings = Bootstrap(n_draws=40_000, method=method, expand=False)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=40_000, method=theirs, rng=rng
    ).confidence_interval
    assert ends(values, range(25), settings) == pytest.approx(tuple(expected), abs=0.015)


def test_skewed_values_shift_the_accelerated_interval_towards_their_tail(rng):
    values = rng.exponential(1, 15) ** 2
    accelerated = ends(values, range(15), PLAIN)
    plain = ends(values, range(15), Bootstrap(n_draws=40_000, method="percentile", expand=False))
    assert accelerated[0] > plain[0]
    assert accelerated[1] > plain[1]


def test_expanded_intervals_of_few_subjects_are_as_wide_as_students(rng):
    values = rng.normal(0, 1, 12)
    half = stats.t.ppf(0.975, 11) * values.std(ddof=1) / 12**0.5
    low, high = ends(values, range(12))
    assert (high - low) / 2 == pytest.approx(half, rel=0.06)
    low, high = ends(values, range(12), PLAIN)
    assert (high - low) / 2 < 0.93 * half


def test_expanded_quantiles_are_those_of_hesterbergs_formula(rng):
    values, settings = rng.normal(0, 1, 12), Bootstrap(method="percentile")
    tail = stats.norm.cdf(-((12 / 11) ** 0.5) * stats.t.ppf(0.975, 11))
    drawn = Draws(settings).weights(range(12)) @ values
    expected = tuple(np.quantile(drawn, [tail, 1 - tail]))
    assert ends(values, range(12), settings) == pytest.approx(expected)


def test_expanded_intervals_cover_the_truth_more_often_than_plain_ones(rng):
    covered = {True: 0, False: 0}
    for expand in covered:
        draws = Draws(Bootstrap(n_draws=1000, expand=expand))
        for values in np.random.default_rng(1).normal(0, 1, (300, 8)):
            found = mean_interval(values, range(8), draws)
            covered[expand] += found.low <= 0 <= found.high
    assert covered[True] / 300 > 0.9 > covered[False] / 300


def test_images_of_a_subject_do_not_pass_for_subjects(rng):
    per_subject = rng.normal(0, 1, 12)
    subjects = np.repeat(np.arange(12), 20)
    many = ends(np.repeat(per_subject, 20), subjects)
    assert many == pytest.approx(ends(per_subject, range(12)), abs=0.05)
    alone = ends(np.repeat(per_subject, 20), range(240))
    assert np.ptp(many) > 3 * np.ptp(alone)


def test_images_that_differ_within_subjects_widen_the_interval():
    subjects = np.repeat(np.arange(12), 4)
    means = np.repeat(np.linspace(-1, 1, 12), 4)
    noise = np.tile([-3.0, -1, 1, 3], 12)
    assert np.ptp(ends(means + noise, subjects)) > 1.2 * np.ptp(ends(means, subjects))


def test_weights_of_the_hierarchy_have_the_moments_that_follow_from_it():
    subjects = ["b", "a", "a", "a", "b", "c"]
    weights = Draws(Bootstrap(n_draws=20_000)).weights(subjects)
    assert weights.sum(axis=1) == pytest.approx(np.ones(20_000))
    assert weights.mean(axis=0) == pytest.approx(
        np.array([1 / 2, 1 / 3, 1 / 3, 1 / 3, 1 / 2, 1]) / 3, abs=0.004
    )
    # Subject c has all weight once in 27 draws, and then its only image has all of it.
    assert (weights[:, 5] == 1).mean() == pytest.approx(1 / 27, abs=0.005)


def test_weights_of_many_subjects_do_not_fill_the_memory(monkeypatch):
    # Each structure may have other subjects, so each has weights of its own.
    monkeypatch.setattr(bootstrap, "KEPT_BYTES", 100_000)
    draws = Draws(Bootstrap(n_draws=100))
    for n in range(2, 100):
        weights = draws.weights(range(n))
        assert np.array_equal(weights, Draws(draws.settings).weights(range(n)))
    assert sum(one.nbytes for one in draws._kept.values()) <= 100_000


def test_subjects_need_not_stand_together(rng):
    values, subjects = rng.normal(0, 1, 9), np.repeat([2, 0, 1], 3)
    order = np.argsort(subjects, kind="stable")
    assert ends(values, subjects) == ends(values[order], subjects[order])


def test_the_same_seed_gives_the_same_interval_and_another_one_another(rng):
    values = rng.normal(0, 1, 12)
    assert ends(values, range(12)) == ends(values, range(12))
    assert ends(values, range(12)) != ends(values, range(12), Bootstrap(seed=1))


def test_one_subject_has_no_interval_however_many_images():
    found = mean_interval(np.array([0.8, 0.9]), ["sub-01"] * 2, Draws(Bootstrap()))
    assert (found.low, found.high, found.note) == (None, None, "1 subject: no interval")


def test_equal_values_have_an_interval_of_one_point():
    found = mean_interval(np.full(12, 0.1), range(12), Draws(Bootstrap()))
    assert (found.low, found.high) == pytest.approx((0.1, 0.1))
    assert found.note == "all values are equal"


def test_two_subjects_span_the_interval_and_are_called_few():
    found = mean_interval(np.array([0.8, 0.9]), range(2), Draws(Bootstrap()))
    assert (found.low, found.high) == pytest.approx((0.8, 0.9))
    assert found.note == "2 subjects: likely too narrow"


@pytest.mark.parametrize(
    "wrong", [{"level": 95}, {"n_draws": 10}, {"method": "jackknife"}], ids=lambda w: next(iter(w))
)
def test_settings_without_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        Bootstrap(**wrong)
