# SPDX-License-Identifier: Apache-2.0
"""Two raters on the same images: scipy's numbers, Holm's family, reasons instead of gaps."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from brainseg_bids.evaluation.bootstrap import Bootstrap
from brainseg_bids.evaluation.comparison import compare_raters
from tests.evaluation.agreements import NAMES, agreement_row, many_rows

QUICK = Bootstrap(n_draws=500)


def dice_of(rows, rater, name):
    return np.array([r["dice"] for r in rows if (r["rater"], r["name"]) == (rater, name)])


def of_all(rows, **how):
    found = compare_raters(rows, bootstrap=QUICK, **how)
    return {line.name: line for line in found if line.stratum == "all"}


def test_numbers_are_those_of_scipy_on_paired_differences(rng):
    rows = many_rows(rng, gains={"ours": 0.01})
    line = of_all(rows)[NAMES[1]]
    differences = dice_of(rows, "ours", NAMES[1]) - dice_of(rows, "theirs", NAMES[1])
    assert (line.first, line.second, line.n_subjects) == ("ours", "theirs", 12)
    assert line.mean_difference == pytest.approx(differences.mean())
    assert line.median_difference == pytest.approx(np.median(differences))
    assert line.p == pytest.approx(stats.wilcoxon(differences, method="exact").pvalue)
    assert line.low < line.mean_difference < line.high
    assert line.hodges_lehmann_low < line.hodges_lehmann < line.hodges_lehmann_high
    assert line.favours == "ours"


def test_means_over_structures_are_compared_too_in_a_family_of_their_own(rng):
    rows = many_rows(rng, gains={"ours": 0.01})
    found = of_all(rows)
    line = found["mean of 3 structures"]
    means = {r: np.mean([dice_of(rows, r, n) for n in NAMES], axis=0) for r in ("ours", "theirs")}
    expected = stats.wilcoxon(means["ours"] - means["theirs"], method="exact").pvalue
    assert (line.p, line.p_holm) == pytest.approx((expected, expected))
    assert (line.n_tests, found[NAMES[0]].n_tests) == (1, 3)
    assert line.family != found[NAMES[0]].family


def test_holm_is_over_all_pairs_and_structures(rng):
    rows = many_rows(rng, raters=("a", "b", "c"), gains={"a": 0.01})
    found = [
        line
        for line in compare_raters(rows, bootstrap=QUICK)
        if line.stratum == "all" and line.name in NAMES
    ]
    assert {line.n_tests for line in found} == {9}
    ordered = sorted(found, key=lambda line: line.p)
    assert ordered[0].p_holm == pytest.approx(min(1, 9 * ordered[0].p))
    assert all(line.p_holm >= line.p for line in found)


def test_lower_distances_are_better(rng):
    rows = many_rows(rng, gains={"ours": 0.05})
    line = of_all(rows, metrics=["assd_mm"])[NAMES[0]]
    assert line.mean_difference < 0
    assert (line.rank_biserial, line.favours) == (-1, "ours")


def test_signed_errors_are_compared_by_their_size():
    rows = [
        agreement_row(f"sub-{k}", rater=rater, volumes_mm3=(1000.0, 1000.0 + error + k))
        for k in range(8)
        for rater, error in (("ours", -30), ("theirs", 60))
    ]
    line = of_all(rows, metrics=["volume_error_mm3"])[NAMES[0]]
    assert line.metric == "|volume_error_mm3|"
    assert line.favours == "ours"
    assert line.mean_difference == pytest.approx(26.5 - 63.5)


def test_only_common_images_count_and_the_rest_is_shown(rng):
    rows = many_rows(rng)
    kept = [r for r in rows if r["rater"] == "ours" or r["image"] < "sub-08"]
    line = of_all(kept)[NAMES[0]]
    differences = (dice_of(rows, "ours", NAMES[0]) - dice_of(rows, "theirs", NAMES[0]))[:8]
    assert (line.n_subjects, line.n_left_out) == (8, 4)
    assert line.mean_difference == pytest.approx(differences.mean())


def test_a_miss_of_one_rater_is_zero_overlap_but_no_distance():
    rows = [
        agreement_row(f"sub-{k}", rater=rater, dice=0.8,
                      status="reference only" if (rater, k) == ("theirs", 0) else "both")
        for k in range(8)
        for rater in ("ours", "theirs")
    ]  # fmt: skip
    line = of_all(rows, metrics=["dice"])[NAMES[0]]
    assert (line.n_subjects, line.n_zero, line.n_left_out) == (8, 7, 0)
    assert line.mean_difference == pytest.approx(0.1)
    line = of_all(rows, metrics=["hd95_mm"])[NAMES[0]]
    assert (line.n_subjects, line.n_left_out, line.p) == (7, 1, 1)


def test_images_of_a_subject_make_one_pair(rng):
    rows = many_rows(rng, n=8)
    again = [row | {"image": f"{row['image']}_run-2"} for row in rows]
    once, twice = of_all(rows)[NAMES[0]], of_all(rows + again)[NAMES[0]]
    assert (twice.n_subjects, twice.n_images) == (8, 16)
    assert twice.p == once.p


def test_too_few_pairs_have_a_reason_instead_of_a_p(rng):
    line = of_all(many_rows(rng, n=5))[NAMES[0]]
    assert (line.p, line.p_holm, line.n_tests) == (None, None, 0)
    assert "5 pairs" in line.note
    assert line.low is not None
    line = of_all(many_rows(rng, n=1))[NAMES[0]]
    assert (line.n_subjects, line.low, line.p) == (1, None, None)
    assert "1 subject:" in line.note


def test_raters_without_a_common_image_have_a_reason(rng):
    rows = [agreement_row("sub-1"), agreement_row("sub-2", rater="theirs")]
    line = of_all(rows)[NAMES[0]]
    assert (line.n_subjects, line.n_left_out, line.mean_difference) == (0, 2, None)
    assert line.note == "no image has a number of both"


def test_equal_raters_show_nothing(rng):
    rows = many_rows(rng, raters=("ours",))
    found = of_all(rows + [row | {"rater": "theirs"} for row in rows])
    for line in found.values():
        assert (line.p, line.mean_difference, line.rank_biserial, line.favours) == (1, 0, 0, "")
