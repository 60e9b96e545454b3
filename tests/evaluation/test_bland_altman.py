# SPDX-License-Identifier: Apache-2.0
"""Bias and limits of agreement: those of Bland and Altman's own data."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from brainseg_bids.evaluation.bland_altman import limits_of_agreement, single_sd
from tests.evaluation.agreements import agreement_row

# Bland and Altman, Lancet 327, 1986, table: peak flow by a large and a mini meter, first reading.
LARGE = (494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427)
MINI = (512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451)


def lines(pairs, **about):
    rows = [
        agreement_row(f"sub-{k:02}", volumes_mm3=(float(t), float(g)), **about)
        for k, (t, g) in enumerate(pairs)
    ]
    return {line.unit: line for line in limits_of_agreement(rows)}


def test_the_first_published_example_comes_out_as_printed():
    found = lines(zip(MINI, LARGE, strict=True))["mm3"]
    assert (found.n_subjects, found.bias) == (17, pytest.approx(-2.1, abs=0.05))
    assert found.sd == pytest.approx(38.8, abs=0.05)
    assert (found.bias_low, found.bias_high) == pytest.approx((-22.0, 17.8), abs=0.1)
    # Printed with 2 sd and a rounded variance of the limits: -79.7 (-114.3 to -45.1).
    assert (found.lower, found.upper) == pytest.approx((-79.7, 75.5), abs=1.7)
    assert (found.lower_low, found.lower_high) == pytest.approx((-114.3, -45.1), abs=2)
    assert (found.upper_low, found.upper_high) == pytest.approx((40.9, 110.1), abs=2)


def test_the_interval_of_a_limit_covers_it_as_often_as_it_says(rng):
    hits = 0
    for _ in range(200):
        found = lines([(1000, 1000 + d) for d in rng.normal(0, 10, 15)])["mm3"]
        hits += found.upper_low <= 19.6 <= found.upper_high
    assert 0.9 <= hits / 200 <= 0.985


def test_per_cent_is_of_the_mean_of_both():
    found = lines([(900, 1100), (1800, 2200), (450, 550)])["percent"]
    assert (found.bias, found.sd) == pytest.approx((20, 0))


def test_the_slope_is_the_regression_of_differences_on_means(rng):
    truth = rng.uniform(500, 1500, 20)
    guess = truth * 1.2 + rng.normal(0, 5, 20)
    found = lines(zip(truth, guess, strict=True))["mm3"]
    fit = stats.linregress((truth + guess) / 2, guess - truth)
    assert (found.slope, found.slope_p) == pytest.approx((fit.slope, fit.pvalue))
    assert found.slope == pytest.approx(0.2 / 1.1, abs=0.03)
    half = stats.t.ppf(0.975, 18) * fit.stderr
    assert (found.slope_low, found.slope_high) == pytest.approx(
        (fit.slope - half, fit.slope + half)
    )
    flat = lines(zip(truth, truth + rng.normal(0, 5, 20), strict=True))["mm3"]
    assert flat.slope_low < 0 < flat.slope_high


def test_structures_of_one_map_only_are_left_out_and_counted():
    statuses = ("both", "both", "both", "reference only", "prediction only", "neither")
    rows = [agreement_row(f"sub-{k}", status=status) for k, status in enumerate(statuses)]
    found = limits_of_agreement(rows)[0]
    assert (found.n_subjects, found.bias) == (3, 100)
    assert (found.n_reference_only, found.n_prediction_only, found.n_neither) == (1, 1, 1)
    rows = [agreement_row("sub-1", status="neither")]
    assert limits_of_agreement(rows)[0].note == "no image in which both have it"


def test_one_subject_has_a_bias_but_no_limits():
    found = lines([(1000, 1100)])["mm3"]
    assert (found.bias, found.lower, found.sd) == (100, None, None)
    assert found.note == "1 subject: no limits of agreement"


def test_two_subjects_have_limits_but_no_slope():
    found = lines([(1000, 1100), (2000, 2300)])["mm3"]
    assert found.sd == pytest.approx(100 * 2**0.5)
    assert found.slope is None
    assert "no slope" in found.note


def test_several_images_of_a_subject_add_their_variances(rng):
    n, m = 400, 3
    values = rng.normal(0, 3, n)[:, None] + rng.normal(0, 4, (n, m))
    subjects = np.repeat(np.arange(n), m)
    assert single_sd(values.ravel(), subjects) == pytest.approx(5, rel=0.06)
    uneven = np.arange(n * m) % 7 != 0
    assert single_sd(values.ravel()[uneven], subjects[uneven]) == pytest.approx(5, rel=0.06)


def test_points_of_the_plot_are_kept_out_of_the_row():
    found = lines([(1000, 1100), (2000, 2300)])["mm3"]
    assert found.points == (("sub-00", 1050, 100), ("sub-01", 2150, 300))
    assert "points" not in found.row()


def test_rows_without_volumes_are_refused():
    row = {k: v for k, v in agreement_row("sub-1").items() if not k.endswith("mm3")}
    with pytest.raises(ValueError, match="no column 'predicted_mm3'"):
        limits_of_agreement([row])
