# SPDX-License-Identifier: Apache-2.0
"""Plots of an evaluation: every subject has its dot, where the numbers say."""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

from brainseg_bids.evaluation.bland_altman import limits_of_agreement
from brainseg_bids.evaluation.scores import read_scores
from brainseg_bids.reports import evaluation_figures as figures
from brainseg_bids.reports.slices import BACKGROUND, WIDTH_PX
from tests.evaluation.agreements import NAMES, agreement_row, many_rows

RATERS = ("ours", "theirs")
METRICS = ("dice", "assd_mm")


@pytest.fixture(scope="module")
def rows():
    return many_rows(np.random.default_rng(4), gains={"theirs": -0.05})


@pytest.fixture(scope="module")
def scores(rows):
    (found,) = read_scores(rows)
    return found


@pytest.fixture
def dots(monkeypatch):
    """All dots that are drawn, with their markers."""
    tables = []
    original = figures.sns.stripplot

    def draw(data, **options):
        tables.append(data.assign(marker=options["marker"]))
        return original(data, **options)

    monkeypatch.setattr(figures.sns, "stripplot", draw)
    return tables


def shown(canvas) -> np.ndarray:
    pixels = canvas.pixels()
    assert pixels.shape[1] == WIDTH_PX
    assert (pixels[-3:] == BACKGROUND).all()  # nothing runs off the foot of the picture
    return pixels


def test_means_over_structures_have_a_dot_for_each_subject_and_stratum(scores, dots):
    shown(figures.draw_headline(scores, NAMES, METRICS, RATERS))
    dice, assd = dots
    sizes = dice.groupby(["name", "rater"]).size().to_dict()
    of = {"all images": 12, "MP2RAGE": 9, "MPRAGE": 3}
    assert sizes == {(name, rater): n for name, n in of.items() for rater in RATERS}
    assert len(assd) == len(dice)
    values = scores.columns["dice"][scores.raters.index("theirs")].mean(axis=1)
    drawn = dice[(dice["name"] == "all images") & (dice["rater"] == "theirs")]["value"]
    np.testing.assert_allclose(sorted(drawn), sorted(values))


def test_structures_tell_strata_by_their_markers(scores, dots):
    shown(figures.draw_structures(scores, scores.names, METRICS, RATERS, {}))
    by_marker = pd.concat(dots).groupby("marker").size().to_dict()
    assert by_marker == {"o": 9 * 3 * 2 * 2, "^": 3 * 3 * 2 * 2}


def test_no_subject_lacks_its_dot_for_want_of_a_stratum_or_of_a_marker(scores):
    strata = ("", "", *(f"site {number}" for number in range(10)))
    several = replace(scores, strata=strata)
    markers = dict(zip(sorted(set(strata)), cycle(figures.MARKERS), strict=False))
    groups = {NAMES[0]: [NAMES[0]]}
    found = figures.values_by_marker(several, groups, "dice", ["theirs"], markers)
    assert sorted(pd.concat(found.values())["subject"]) == sorted(scores.subjects)
    shown(figures.draw_structures(several, NAMES, METRICS, RATERS, {}))


def test_a_dot_of_no_stratum_is_drawn_beside_those_of_some(scores, dots):
    strata = ("", "", *scores.strata[2:])
    figures.draw_structures(replace(scores, strata=strata), NAMES, METRICS, RATERS, {})
    drawn = pd.concat(dots)
    assert len(drawn) == 12 * len(NAMES) * 2 * 2
    assert drawn["marker"].nunique() == 3


def test_a_structure_has_the_swatch_of_its_label(scores):
    pixels = shown(
        figures.draw_structures(scores, NAMES, METRICS, RATERS, {"Left-Putamen": "#ec0db0"})
    )
    assert (pixels == (0xEC, 0x0D, 0xB0)).all(axis=2).sum() > 100


def test_more_structures_than_fit_are_left_out_with_a_word(scores, monkeypatch):
    words = []
    monkeypatch.setattr(figures, "MOST_STRUCTURES", 2)
    monkeypatch.setattr(
        figures.Canvas, "text", lambda self, x, y, text, **style: words.append(text)
    )
    figures.draw_structures(scores, scores.names, METRICS, RATERS, {})
    assert any("1 more" in word for word in words)


def test_a_distance_of_a_missed_structure_is_no_dot(dots):
    lines = [agreement_row("sub-1"), agreement_row("sub-2", status="reference only")]
    (scores,) = read_scores(lines)
    figures.draw_structures(scores, scores.names, METRICS, ("ours", "absent"), {})
    assert [sorted(table["value"]) for table in dots] == [[0.0, 0.9], [0.5]]


def test_a_missed_structure_does_not_flatten_the_others(dots):
    values = [0.0, *np.linspace(0.8, 0.9, 20)]
    low, high = figures._limits(values)
    assert 0.75 < low < 0.8 < 0.9 < high
    (scores,) = read_scores([agreement_row(f"sub-{k}", dice=v) for k, v in enumerate(values)])
    figures.draw_structures(scores, scores.names, ["dice"], ["ours"], {})
    drawn = pd.concat(dots)
    assert drawn.groupby("marker").size().to_dict() == {"o": 20, "<": 1}
    assert drawn[drawn["marker"] == "<"]["value"].item() == low


def test_several_images_of_a_subject_are_one_dot():
    lines = [
        agreement_row(f"sub-1_run-{k}", subject="sub-1", dice=dice)
        for k, dice in ((1, 0.5), (2, 1.0))
    ]
    (scores,) = read_scores(lines)
    groups = {"mean": ["Left-Thalamus"]}
    (line,) = figures.subject_values(scores, groups, "dice", ["ours"]).itertuples(index=False)
    assert tuple(line) == ("mean", "ours", "sub-1", 0.75)


def test_volumes_are_drawn_in_ml_with_bias_and_limits(rows, monkeypatch):
    levels, places = [], []
    level, plot = Axes.axhline, Axes.plot
    monkeypatch.setattr(
        Axes, "axhline", lambda self, y, **style: (levels.append(y), level(self, y, **style))[1]
    )
    monkeypatch.setattr(
        Axes,
        "plot",
        lambda self, *data, **style: (places.append(data), plot(self, *data, **style))[1],
    )
    found = [
        one for one in limits_of_agreement(rows) if (one.stratum, one.unit) == ("all", "percent")
    ]
    shown(figures.draw_bland_altman(found, RATERS))
    assert {one.bias for one in found} <= set(levels)
    assert {one.upper for one in found} <= set(levels)
    across = [x for data in places if len(data) > 1 for x in data[0]]
    assert 0.7 < min(across) < max(across) < 1.4  # a thousand mm3


def test_no_volume_to_compare_is_said_in_the_picture(monkeypatch):
    words = []
    monkeypatch.setattr(figures, "no_data", lambda axes, text: words.append(text))
    lines = [agreement_row("sub-1", status="reference only")]
    figures.draw_bland_altman(limits_of_agreement(lines), RATERS)
    assert words == ["no structure is in both maps"]
