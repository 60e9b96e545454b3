# SPDX-License-Identifier: Apache-2.0
"""The page of an evaluation: the numbers of the tables, what is missing, escaped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from brainseg_bids.evaluation.bootstrap import Bootstrap
from brainseg_bids.evaluation.summary import Missing, find_missing, tables
from brainseg_bids.reports.canvas import Canvas
from brainseg_bids.reports.evaluation import (
    Evidence,
    SourceNote,
    WorstCase,
    find_worst,
    methods_text,
    write_evaluation_page,
)
from tests.evaluation.agreements import agreement_row, many_rows
from tests.reports.test_page import cells, read

RATERS = ("ours", "theirs", "silent")
FAST = Bootstrap(n_draws=200)
EVIL = "<script>alert('x')</script>&\"<img src=x onerror=y>"


@pytest.fixture(scope="module")
def rows():
    """Two strata; "theirs" is worse, lacks an image, misses a structure and invents another."""
    found = many_rows(np.random.default_rng(4), gains={"theirs": -0.05})
    found = [row for row in found if (row["rater"], row["image"]) != ("theirs", "sub-05")]
    for image, status in (("sub-01", "reference only"), ("sub-02", "prediction only")):
        for rater, own in (("ours", "both"), ("theirs", status)):
            found.append(
                agreement_row(
                    image, "Left-Amygdala", rater=rater, status=own, index=18, stratum="MP2RAGE"
                )
            )
    return found


@pytest.fixture(scope="module")
def numbers(rows):
    return tables(rows, bootstrap=FAST)


@pytest.fixture
def undrawn(monkeypatch):
    """Pages without the time that plots take."""

    def draw(*_):
        return Canvas(6, 4)

    for name in ("draw_headline", "draw_structures", "draw_bland_altman"):
        monkeypatch.setattr(f"brainseg_bids.reports.evaluation.{name}", draw)


def written(path: Path, rows, **changes) -> Path:
    given = {
        "title": "Twelve brains",
        "reference": "manual",
        "raters": RATERS,
        "worst": [],
        "missing": [],
        "notes": [],
        "methods": "",
        "version": "1.2.3",
        "bootstrap": FAST,
    }
    return write_evaluation_page(path, Evidence(rows=rows, **(given | changes)))


def headline_of(numbers, rater: str, metric: str) -> dict:
    wanted = ("all", rater, metric)
    (line,) = [
        line
        for line in numbers["headline"]
        if (line["stratum"], line["rater"], line["metric"]) == wanted
    ]
    return line


def test_the_page_is_well_formed_and_holds_its_plots_and_words(rows, numbers, tmp_path):
    picture = tmp_path / "case.png"
    Image.fromarray(np.full((4, 6, 3), 90, np.uint8)).save(picture)
    page = written(
        tmp_path / "page.html",
        rows,
        tables=numbers,
        worst=[WorstCase("sub-01", "theirs", "Left-Amygdala", 0.0, picture)],
        notes=[
            SourceNote("manual", "reference", "Someone (2025)", "CC0", ("Brain",), ("No neck",))
        ],
        methods="First.\n\nSecond.",
        failures=["sub-09_T1w.nii.gz: on another grid"],
    )
    reader = read(page)
    images = [attrs for tag, attrs in reader.tags if tag == "img"]
    assert len(images) == 4  # by rater, by structure, volumes, worst case
    assert all(attrs["src"].startswith("data:image/png") and attrs["alt"] for attrs in images)
    assert not [tag for tag, _ in reader.tags if tag in ("script", "link")]
    identifiers = [attrs["id"] for _, attrs in reader.tags if "id" in attrs]
    assert len(identifiers) == len(set(identifiers))
    for words in (
        "MP2RAGE (9), MPRAGE (3)",
        "no comparison at all: silent",
        "sub-09_T1w.nii.gz: on another grid",
        "Left-Amygdala: Dice 0.000",
        "Someone (2025)",
        "CC0",
        "can be judged: Brain",
        "No neck",
        "Second.",
    ):
        assert words in reader.text, words
    assert sorted(file.name for file in tmp_path.iterdir()) == ["case.png", "page.html"]


@pytest.mark.usefixtures("undrawn")
def test_the_league_table_has_means_intervals_counts_and_marks_the_best(rows, numbers, tmp_path):
    page = written(tmp_path / "page.html", rows, tables=numbers)
    found = [row for row in cells(page) if row[0] == "theirs" and len(row) == 9]
    dice = headline_of(numbers, "theirs", "dice")
    league = found[0]
    assert league[1] == (
        f"{dice['mean']:.3f} (−{dice['n_left_out']}) [{dice['low']:.3f}, {dice['high']:.3f}]"
    )
    assert league[5:] == ["11", "1", "1", str(dice["n_no_row"])]
    text = page.read_text(encoding="utf-8")
    assert f"<strong>{headline_of(numbers, 'ours', 'dice')['mean']:.3f}</strong>" in text
    assert f"<strong>{dice['mean']:.3f}</strong>" not in text


@pytest.mark.usefixtures("undrawn")
def test_every_table_of_metrics_names_the_definition_of_surfaces(rows, numbers, tmp_path):
    text = written(tmp_path / "page.html", rows, tables=numbers).read_text(encoding="utf-8")
    parts = text.split("<table>")[1:]
    metrics = [part for part in parts if "ASSD" in part.split("</table>")[0]]
    assert len(metrics) >= 7  # league, ranks, pairs of three strata, structures of three strata
    assert all(
        "Surfaces by the definition: surface (" in part.split("</table>")[1] for part in metrics
    )


@pytest.mark.usefixtures("undrawn")
def test_ranks_and_pairs_are_those_of_the_tables(rows, numbers, tmp_path):
    found = cells(written(tmp_path / "page.html", rows, tables=numbers))
    assert ["ours", *["1 (100 / 0 %)"] * 4] in found
    (pair,) = [
        line
        for line in numbers["comparisons"]
        if (line["stratum"], line["metric"]) == ("all", "dice") and line["name"].startswith("mean")
    ]
    row = next(row for row in found if row[:2] == ["ours", "theirs"])
    assert row[2] == "11"
    assert row[3].startswith(f"+{pair['mean_difference']:.3f} [+{pair['low']:.3f}")
    assert row[5:] == ["+1.000", "&lt;0.001", "&lt;0.001", "ours"]


@pytest.mark.usefixtures("undrawn")
def test_a_structure_has_the_colour_of_its_label_and_its_misses(rows, numbers, tmp_path):
    page = written(tmp_path / "page.html", rows, tables=numbers)
    assert 'background-color: #00760e"></span>Left-Thalamus' in page.read_text(encoding="utf-8")
    found = cells(page)
    head = next(k for k, row in enumerate(found) if "Worst Dice" in row)
    start = found.index(["Left-Amygdala"], head)
    ours, theirs = found[start + 1], found[start + 2]
    assert (ours[0], ours[-3]) == ("ours", "none")
    assert (theirs[0], theirs[-3:]) == ("theirs", ["1 / 1", "0.000", "sub-01"])


@pytest.mark.usefixtures("undrawn")
def test_what_is_missing_is_listed_by_name(rows, numbers, tmp_path):
    gone = find_missing(rows, references={"manual": [f"sub-{k:02}" for k in range(13)]})
    gone.append(Missing("reference without prediction", "another reference", "ours", "sub-99"))
    page = written(tmp_path / "page.html", rows, tables=numbers, missing=gone)
    found = cells(page)
    assert ["reference without prediction", "theirs", "", "2", "sub-05, sub-12"] in found
    assert ["structure in the reference only", "theirs", "Left-Amygdala", "1", "sub-01"] in found
    assert ["structure in the prediction only", "theirs", "Left-Amygdala", "1", "sub-02"] in found
    assert "sub-99" not in read(page).text


@pytest.mark.usefixtures("undrawn")
def test_nothing_missing_is_said(tmp_path):
    whole = many_rows(np.random.default_rng(1))
    reader = read(written(tmp_path / "page.html", whole, raters=("ours", "theirs")))
    assert "Nothing is missing" in reader.text
    assert "intervals are likely too narrow" not in reader.text  # twelve subjects


@pytest.mark.usefixtures("undrawn")
def test_a_rater_that_has_seen_an_image_is_marked_wherever_it_stands(rows, numbers, tmp_path):
    leaks = [("theirs", "sub-03"), ("theirs", "sub-01")]
    worst = [WorstCase("sub-01", "theirs", "Left-Amygdala", 0.0)]
    page = written(tmp_path / "page.html", rows, tables=numbers, leaks=leaks, worst=worst)
    assert "theirs: sub-01, sub-03" in read(page).text
    named = [row for row in cells(page) if row[0].startswith("theirs")]
    assert named
    assert all(row[0] == "theirs † seen" for row in named)
    clean = [row for row in cells(page) if row[0].startswith("ours")]
    assert all("seen" not in row[0] for row in clean)
    assert "seen images" not in read(written(page, rows, tables=numbers)).text


@pytest.mark.usefixtures("undrawn")
def test_one_subject_has_no_intervals_and_the_page_says_so(rows, tmp_path):
    one = [row for row in rows if row["subject"] == "sub-00"]
    page = written(tmp_path / "page.html", one, raters=("ours", "theirs"))
    reader = read(page)
    assert "no intervals" in reader.text
    assert "no test" in reader.text
    assert "bootstrap interval" not in reader.text
    assert not [cell for row in cells(page) for cell in row if "[" in cell]
    # A stratum of all images would say everything twice.
    assert not [row for row in cells(page) if row[0] in ("MPRAGE", "all images")]
    assert "MPRAGE" in reader.text


@pytest.mark.usefixtures("undrawn")
def test_few_subjects_are_a_reason_for_a_warning(rows, tmp_path):
    few = [row for row in rows if row["subject"] in ("sub-00", "sub-03", "sub-04")]
    page = written(tmp_path / "page.html", few, raters=("ours", "theirs"))
    assert "3 subjects" in read(page).text


def test_nothing_to_compare_is_a_page_too(tmp_path):
    gone = [Missing("reference without prediction", "manual", "ours", "sub-01")]
    reader = read(written(tmp_path / "page.html", [], missing=gone))
    assert "Nothing could be" in reader.text
    assert "sub-01" in reader.text
    assert not [tag for tag, _ in reader.tags if tag == "img"]


@pytest.mark.usefixtures("undrawn")
def test_nothing_that_is_passed_in_becomes_markup(tmp_path):
    row = agreement_row(EVIL, EVIL, rater=EVIL, reference=EVIL, stratum=EVIL, subject=EVIL)
    lone = agreement_row(
        EVIL, EVIL + "2", rater=EVIL, reference=EVIL, status="reference only", index=11,
        stratum=EVIL, subject=EVIL,
    )  # fmt: skip
    page = written(
        tmp_path / "page.html",
        [row, lone],
        title=EVIL,
        reference=EVIL,
        raters=[EVIL],
        worst=[WorstCase(EVIL, EVIL, EVIL, 0.1, tmp_path / "<b>.png")],
        missing=[Missing(EVIL, EVIL, EVIL, EVIL, EVIL)],
        notes=[SourceNote(EVIL, EVIL, EVIL, EVIL, (EVIL,), (EVIL,))],
        methods=EVIL,
        version=EVIL,
        leaks=[(EVIL, EVIL)],
        failures=[EVIL],
    )
    reader = read(page)
    assert not [tag for tag, _ in reader.tags if tag in ("script", "b")]
    assert not [attrs for _, attrs in reader.tags if "onerror" in attrs]
    assert "<b>.png" in reader.text
    assert reader.text.count(EVIL) > 15


@pytest.mark.usefixtures("undrawn")
def test_worst_cases_stand_lowest_first_and_share_their_picture(rows, numbers, tmp_path):
    picture = tmp_path / "case.png"
    Image.fromarray(np.full((4, 6, 3), 90, np.uint8)).save(picture)
    worst = [
        WorstCase("sub-02", "ours", "Left-Putamen", 0.7),
        WorstCase("sub-01", "theirs", "Left-Thalamus", 0.5, picture),
        WorstCase("sub-01", "theirs", "Left-Amygdala", 0.0, picture),
    ]
    text = written(tmp_path / "page.html", rows, tables=numbers, worst=worst).read_text("utf-8")
    assert "Left-Amygdala: Dice 0.000; Left-Thalamus: Dice 0.500" in text
    assert text.index("Left-Thalamus: Dice 0.500") < text.index("Left-Putamen: Dice 0.700")
    assert text.count('alt="Outlines of') == 1


def test_a_structure_far_below_its_own_median_is_worse_than_a_thin_one():
    rows = [
        agreement_row(f"sub-{k}", name, dice=dice, index=code)
        for k in range(5)
        for code, name, dice in ((10, "Left-Thalamus", 0.9), (62, "Left-Vessel", 0.3))
        if (k, name) != (3, "Left-Thalamus")
    ]
    rows.append(agreement_row("sub-3", "Left-Thalamus", dice=0.6))
    rows.append(agreement_row("sub-4", "Left-Choroid", status="neither", index=31))
    worst = find_worst(rows, "manual", n_cases=2)
    assert (worst[0].image, worst[0].structure, worst[0].dice) == ("sub-3", "Left-Thalamus", 0.6)
    assert len(worst) == len({case.image for case in worst}) == 2
    assert find_worst(rows, "another") == []
    only = find_worst(rows, "manual", names=["Left-Vessel"])
    assert {case.structure for case in only} == {"Left-Vessel"}


@pytest.mark.usefixtures("undrawn")
def test_rows_of_other_references_are_left_out(rows, numbers, tmp_path):
    other = [agreement_row("sub-77", reference="another", rater="stranger")]
    reader = read(written(tmp_path / "page.html", rows + other, tables=numbers))
    assert "sub-77" not in reader.text
    assert "stranger" not in reader.text


def test_rows_of_a_rater_that_is_not_in_the_list_are_refused(rows, tmp_path):
    with pytest.raises(ValueError, match="rater theirs"):
        written(tmp_path / "page.html", rows, raters=("ours",))
    assert list(tmp_path.iterdir()) == []


def test_methods_name_their_definition_and_refuse_another():
    assert "surface-distance" in methods_text("surface", "label-restricted")
    words = methods_text("voxel", "within-evaluable", FAST)
    assert "200 draws" in words
    assert "Protocol within-evaluable" in words
    with pytest.raises(ValueError, match="'edge'"):
        methods_text("edge", "label-restricted")
