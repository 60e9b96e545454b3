# SPDX-License-Identifier: Apache-2.0
"""The rule of the prior-weight experiment, case by case."""

from __future__ import annotations

import numpy as np
import pytest

from brainseg_bids.evaluation.decision import decide

NOISE = np.array([-0.002, 0.001, 0.002, -0.001, 0.0, 0.0015, -0.0015, 0.0])


@pytest.mark.parametrize(
    ("on", "off", "verdict", "words"),
    [
        (0.02, 0.0, "better", "off contrast above -0.005"),
        (0.02, 0.02, "better", "on contrast above"),
        (0.02, -0.02, "worse", "off contrast below"),
        (-0.02, 0.0, "worse", "on contrast below"),
        (-0.02, -0.02, "worse", "on and off contrast below"),
        (0.0, 0.0, "no difference shown", "not above"),
        (0.005, 0.0, "no difference shown", "not above"),
        (0.02, -0.005, "no difference shown", "in doubt"),
        (-0.005, 0.0, "no difference shown", "not above"),
    ],
)
def test_the_rule_case_by_case(on, off, verdict, words):
    found = decide(NOISE + on, NOISE[::-1] + off, margin=0.005)
    assert found.verdict == verdict
    assert words in found.reason


def test_an_experiment_without_other_contrasts_is_judged_on_its_own():
    found = decide(NOISE + 0.02, None, margin=0.005)
    assert (found.verdict, found.off_mean) == ("better", None)
    assert "not measured" in found.reason


def test_few_seeds_show_nothing_however_large_the_difference():
    found = decide([0.3] * 4, [0.3] * 4, margin=0.005)
    assert found.verdict == "no difference shown"
    assert (found.n_seeds, found.on_mean) == (4, pytest.approx(0.3))


def test_noise_alone_is_seldom_called_better_or_worse():
    draws = np.random.default_rng(2).normal(0, 0.01, (150, 2, 6))
    verdicts = [decide(on, off, margin=0.002).verdict for on, off in draws]
    assert verdicts.count("better") <= 5
    assert verdicts.count("no difference shown") >= 135


def test_subjects_are_averaged_because_seeds_are_drawn(rng):
    subjects = NOISE[:, None] + 0.02 + np.linspace(-0.1, 0.1, 5)
    found = decide(subjects, None, margin=0.005)
    once = decide(NOISE + 0.02, None, margin=0.005)
    assert (found.on_low, found.on_high) == pytest.approx((once.on_low, once.on_high))


def test_the_row_holds_the_rule_and_how_intervals_were_made():
    row = decide(NOISE, NOISE, margin=0.005).row()
    assert "fewer than five" in row["rule"]
    assert "10000 draws" in row["interval"]


@pytest.mark.parametrize(
    ("on", "off", "margin", "words"),
    [
        (NOISE, NOISE, 0.0, "margin"),
        (NOISE, NOISE[1:], 0.01, "pair them"),
        ([0.1, float("nan")], None, 0.01, "finite"),
        ([], None, 0.01, "finite"),
    ],
)
def test_what_makes_no_sense_is_refused(on, off, margin, words):
    with pytest.raises(ValueError, match=words):
        decide(on, off, margin=margin)
