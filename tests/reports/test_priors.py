# SPDX-License-Identifier: Apache-2.0
"""The page of contrast priors: what it rests on, in numbers and pictures, escaped."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.contrast.measured import BiasField, NoiseLaw
from brainseg_bids.contrast.prior import NoisePrior, Spread
from brainseg_bids.reports import prior_figures
from brainseg_bids.reports.canvas import Canvas
from brainseg_bids.reports.densities import IntensityComparison
from brainseg_bids.reports.prior_figures import (
    draw_densities,
    draw_fields,
    measured_names,
    to_units,
)
from brainseg_bids.stages.priors_page import write_priors_page
from tests.reports.looks import looks, prior_of
from tests.reports.reading import cells, read

TABLE = LabelTable.packaged("fullhead")
EVIL = "<script>alert('x')</script>&\"<img src=x onerror=y>"


@pytest.fixture(scope="module")
def statistics(head):
    rng = np.random.default_rng(2)
    return {
        f"sub-{n:02d}_T1w": looks(head, rng, gain=gain, log_sd=0.05 + 0.05 * n)[1]
        for n, gain in enumerate((0.5, 1.0, 4.0), start=1)
    }


@pytest.fixture(scope="module")
def prior(statistics):
    return prior_of(statistics)


@pytest.fixture
def undrawn(monkeypatch):
    """Pages without the time that pictures take."""

    def draw(*_):
        return Canvas(6, 4)

    for name in ("draw_densities", "draw_relations", "draw_fields", "draw_comparisons"):
        monkeypatch.setattr(f"brainseg_bids.stages.priors_page.{name}", draw)


def written(path, prior, statistics, **changes):
    given = {"title": "Phantoms", "priors": [prior], "version": "1.2.3"}
    return write_priors_page(path, statistics={prior.name: statistics}, **(given | changes))


def comparisons() -> list[IntensityComparison]:
    edges, real = (0.0, 0.5, 1.0), (10, 90)
    return [
        IntensityComparison(
            label,
            {"fitted": fitted, "agnostic": 0.5, "synthseg": 0.25},
            edges,
            real,
            {"fitted": (20, 80), "agnostic": (50, 50), "synthseg": (0, 100)},
        )
        for label, fitted in (("Left-Putamen", 0.0625), ("Right-Putamen", 0.04), ("CSF", 0.75))
    ]


def test_the_page_is_well_formed_and_holds_all_its_pictures(prior, statistics, tmp_path):
    preview = tmp_path / "pairs.png"
    Image.fromarray(np.full((4, 6, 3), 90, np.uint8)).save(preview)
    page = written(
        tmp_path / "priors.html",
        prior,
        statistics,
        comparisons={"T1w": comparisons()},
        previews={"T1w": [preview, tmp_path / "gone.png"]},
    )
    reader = read(page)
    assert len(reader.images) == 5  # densities, relations, fields, comparison, preview
    assert all(
        attrs["src"].startswith("data:image/png") and attrs["alt"] for attrs in reader.images
    )
    assert "gone.png" in reader.text
    for words in (
        "1 contrast.",
        "3 of 3 subjects",
        "sub-02 is unlike the others.",
        "Only 3 subjects",
        "sub-01_T1w and 2 more: Left-Putamen has 3 voxels",
        "Rician 100 %",
        "Magnetic field strength",
        "Mean",
    ):
        assert words in reader.text, words
    assert sorted(file.name for file in tmp_path.iterdir()) == ["pairs.png", "priors.html"]


@pytest.mark.usefixtures("undrawn")
def test_the_table_has_the_numbers_of_the_prior(prior, statistics, tmp_path):
    rows = cells(written(tmp_path / "priors.html", prior, statistics))
    (thalamus,) = [row for row in rows if row[0] == "Left-Thalamus"]
    own = prior["Left-Thalamus"]
    assert thalamus[1:5] == ["10", f"{own.mean:.1f}", f"{own.mean_sd:.1f}", f"{own.sd.median:.1f}"]
    assert thalamus[-2:] == ["3", "measured"]
    (imputed,) = [row for row in rows if row[0] == "Left-Putamen"]  # in no image by itself
    assert imputed[-1] == "imputed from CSF"


@pytest.mark.usefixtures("undrawn")
def test_the_nearest_method_is_marked_and_counted(prior, statistics, tmp_path):
    page = written(tmp_path / "priors.html", prior, statistics, comparisons={"T1w": comparisons()})
    rows = {row[0]: row[1:] for row in cells(page) if len(row) == 5}
    assert rows["Right-Putamen"] == ["0.04", "0.5", "0.25", "fitted"]
    assert rows["CSF"] == ["0.75", "0.5", "0.25", "synthseg"]
    assert rows["Median over labels"][:3] == ["0.062", "0.5", "0.25"]
    assert rows["Nearest in"][:3] == ["2 of 3", "0 of 3", "1 of 3"]
    text = page.read_text(encoding="utf-8")
    assert "<strong>0.04</strong>" in text
    assert "<strong>0.5</strong>" not in text


@pytest.mark.usefixtures("undrawn")
def test_nothing_that_is_passed_in_becomes_markup(prior, statistics, tmp_path):
    evil = replace(prior, name=EVIL, warnings=(EVIL,), metadata={EVIL: EVIL})
    row = IntensityComparison(EVIL, {EVIL: 1.0})
    some = next(iter(statistics.values()))
    page = write_priors_page(
        tmp_path / "priors.html",
        title=EVIL,
        priors=[evil],
        statistics={EVIL: {EVIL: some}},
        comparisons={EVIL: [row]},
        previews={EVIL: [tmp_path / "<b>.png"]},
        version="0",
    )
    reader = read(page)
    assert not [tag for tag, _ in reader.tags if tag in ("script", "b")]
    assert not [attrs for _, attrs in reader.tags if "onerror" in attrs]
    assert reader.text.count(EVIL) >= 8


@pytest.mark.usefixtures("undrawn")
def test_enough_subjects_are_no_reason_for_a_warning(prior, statistics, tmp_path):
    many = replace(prior, n_subjects=40, warnings=())
    quiet = {name: replace(own, warnings=()) for name, own in statistics.items()}
    assert "Nothing was flagged." in read(written(tmp_path / "priors.html", many, quiet)).text


def test_a_prior_without_its_images_has_a_table_and_no_pictures(prior, tmp_path):
    reader = read(written(tmp_path / "priors.html", prior, {}))
    assert not [tag for tag, _ in reader.tags if tag == "img"]
    assert "Left-Thalamus" in reader.text


def test_two_priors_of_one_name_are_refused(prior, tmp_path):
    with pytest.raises(ValueError, match="called T1w"):
        written(tmp_path / "priors.html", prior, {}, priors=[prior, prior])
    assert list(tmp_path.iterdir()) == []


def test_images_of_any_gain_come_to_the_priors_units(prior, statistics):
    white = "Left-Cerebral-White-Matter"
    for own in statistics.values():
        gain, offset = to_units(prior, own, TABLE)
        assert offset == 0
        assert gain * own[white].location == pytest.approx(prior[white].mean, rel=0.03)


def test_a_ratio_comes_to_the_priors_units_by_its_range(prior, statistics):
    ratio = replace(prior, noise=NoisePrior({"ratio": 1.0}, Spread(0.01, 0.2)))
    some = next(iter(statistics.values()))
    for low, high in ((0.0, 4095.0), (-0.5, 0.5)):
        measured = replace(some, noise=NoiseLaw("ratio", 0.01, low=low, high=high))
        gain, offset = to_units(ratio, measured, TABLE)
        assert (gain * low + offset, gain * high + offset) == pytest.approx((0, 255))


def test_only_measured_labels_are_correlated_left_beside_right(prior):
    names = measured_names(prior, TABLE)
    assert "Left-Putamen" not in names
    assert names.index("Right-Thalamus") == names.index("Left-Thalamus") + 1
    assert len(names) == sum(label.source == "measured" for label in prior.labels.values())


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 5, 3), (40, 36, 34)])
def test_fields_of_any_number_of_nodes_are_laid_over_each_other(shape):
    at = np.meshgrid(*[np.linspace(0, 1, n) for n in shape], indexing="ij")
    nodes = tuple(map(tuple, (at[0] + 2 * at[1] - at[2]).tolist()))
    same = prior_figures._same_shape(BiasField(0.1, 60.0, nodes, (1.0, 1.0, 1.0)))
    if shape == (1, 1, 1):
        assert np.ptp(same) == 0
    else:
        corners = [same[0, 0, 0], same[-1, 0, 0], same[0, -1, 0], same[-1, -1, -1]]
        np.testing.assert_allclose(corners, [0, 1, 2, 2], atol=1e-6)
        middle = tuple(n // 2 for n in same.shape)
        assert same[middle] == pytest.approx(1, abs=1e-3)


def test_many_fields_are_cut_off_with_a_word(prior, statistics, tmp_path, monkeypatch):
    titles = []
    original = Canvas.title
    monkeypatch.setattr(
        Canvas, "title", lambda canvas, *words: (titles.extend(words), original(canvas, *words))
    )
    monkeypatch.setattr(prior_figures, "MOST_FIELDS", 2)
    draw_fields("T1w", statistics)
    assert any("1 weaker" in words for words in titles)


def test_the_prior_is_drawn_over_the_histograms_it_was_pooled_from(
    prior, statistics, tmp_path, monkeypatch
):
    """Its density lies where the images' does: mean of the one, mean of the other."""
    models = []
    original = prior_figures._model

    def model(prior, names, statistics):
        found = original(prior, names, statistics)
        models.append((names, found))
        return found

    monkeypatch.setattr(prior_figures, "_model", model)
    draw_densities(prior, statistics, TABLE)
    at = np.linspace(-200, 500, 7001)
    for names, found in models:
        curve = found(at)
        assert np.trapezoid(curve, at) == pytest.approx(1, abs=1e-3)
        if "Left-Cerebral-Cortex" in names:
            wanted = prior["Left-Cerebral-Cortex"].mean
            assert np.trapezoid(at * curve, at) == pytest.approx(wanted, rel=0.02)
