# SPDX-License-Identifier: Apache-2.0
"""What a participant's page says about contrast: warnings once, numbers right, all escaped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from brainseg_bids.anatomy.labels import UnknownLabelError
from brainseg_bids.contrast.measured import NoiseLaw
from brainseg_bids.reports.contrast import (
    contrast_facts,
    contrast_rows,
    noise_words,
)
from brainseg_bids.reports.page import write_subject_page
from brainseg_bids.stages.contrast_section import contrast_section
from tests.reports.looks import IMPUTED, looks
from tests.reports.reading import cells, read

EVIL = "<script>alert('x')</script>&\"<img src=x onerror=y>"


@pytest.fixture(scope="module")
def statistics(head):
    return looks(head, np.random.default_rng(1))[1]


@pytest.fixture
def contrast(statistics, figure) -> dict:
    return {
        "title": "T1w",
        "source": "sub-01/anat/sub-01_T1w.nii.gz",
        "figure": figure,
        "statistics": statistics,
        "labels": "sub-01/anat/sub-01_dseg.nii.gz",
        "run": {"Time": "12 s", "Mode": ""},
        "outputs": ["sub-01/anat/sub-01_desc-contrast_morph.tsv"],
    }


def written(path: Path, contrasts: list[dict]) -> Path:
    sections = [contrast_section(**contrast) for contrast in contrasts]
    return write_subject_page(
        path, subject="01", sections=sections, settings="", errors=[], methods="", version="0"
    )


def test_a_page_of_contrasts_is_well_formed_and_says_what_was_measured(contrast, tmp_path):
    reader = read(written(tmp_path / "sub-01.html", [contrast, contrast]))
    for words in (
        "2 contrasts measured",
        "2 warnings",
        contrast["source"],
        contrast["labels"],
        contrast["outputs"][0],
        "12 s",
        "Rician, sigma 4",
        "4.40 × 4.40 × 4.40 mm, from edges",
        "log sd 0.15",
        "imputed from Right-Putamen",
    ):
        assert words in reader.text, words
    assert "Mode" not in reader.text  # an empty fact
    assert {"#contrast-1", "#contrast-2"} <= reader.links
    assert len(reader.images) == 2
    assert all("T1w" in attrs["alt"] for attrs in reader.images)


def test_the_table_has_the_numbers_of_the_statistics(contrast, statistics, tmp_path):
    rows = cells(written(tmp_path / "sub-01.html", [contrast]))
    (putamen,) = [row for row in rows if row[0] == "Right-Putamen"]
    own = statistics["Right-Putamen"]
    assert putamen[1:4] == ["51", f"{own.voxels:,}", f"{own.interior_voxels:,}"]
    assert putamen[4:6] == [f"{own.location:.3g}", f"{own.scale:.3g}"]
    (soft,) = [row for row in rows if row[0] == "Other-Tissues"]
    assert "60 % at" in soft[6]
    assert "40 % at" in soft[6]
    (imputed,) = [row for row in rows if row[0] == IMPUTED]
    assert imputed[-2:] == ["n/a", "imputed from Right-Putamen"]  # a fit to others' data is none


def test_a_poor_fit_is_marked_and_a_good_one_is_not(contrast, tmp_path):
    text = written(tmp_path / "sub-01.html", [contrast]).read_text(encoding="utf-8")
    assert text.count('<strong class="far">0.25</strong>') == 1
    assert '<strong class="far">0.02</strong>' not in text


def test_left_and_right_are_neighbours_in_anatomical_order(statistics):
    rows = contrast_rows(statistics)
    names = [row["name"] for row in rows]
    assert len(names) == len(statistics.labels)
    at = names.index("Left-Thalamus")
    assert names[at + 1] == "Right-Thalamus"
    groups = [row["group"] for row in rows]
    assert [g for n, g in enumerate(groups) if g not in groups[:n]] == ["Brain", "CSF", "Head"]
    assert [row["name"] for row in rows if row["imputed"]] == [IMPUTED]
    assert rows[at]["volume_mm3"] == statistics["Left-Thalamus"].voxels * 64


def test_a_name_that_the_table_lacks_is_an_error(statistics):
    odd = replace(statistics, labels={"No-Such-Thing": statistics["CSF"]})
    with pytest.raises(UnknownLabelError, match="No-Such-Thing"):
        contrast_rows(odd)


def test_a_warning_that_the_run_repeats_is_said_once(contrast, statistics):
    repeated = f"sub-01_T1w.nii.gz: {statistics.warnings[0]}"

    def shown(warnings: list[str]) -> list[str]:
        return list(contrast_section(**(contrast | {"warnings": warnings})).warnings)

    assert shown([repeated, "other"]) == [repeated, "other"]
    assert shown(["other"]) == [*statistics.warnings, "other"]


def test_nothing_that_is_passed_in_becomes_markup(contrast, statistics, tmp_path):
    labels = dict(statistics.labels)
    labels["CSF"] = replace(labels["CSF"], source=EVIL)
    evil = contrast | {
        "title": EVIL,
        "source": EVIL,
        "labels": EVIL,
        "statistics": replace(statistics, warnings=(EVIL,), labels=labels),
        "run": {EVIL: EVIL},
        "warnings": [EVIL],
        "outputs": [EVIL],
    }
    reader = read(written(tmp_path / "sub-01.html", [evil]))
    assert not [attrs for _, attrs in reader.tags if "onerror" in attrs]
    assert reader.text.count(EVIL) >= 8


def test_a_picture_that_is_not_there_is_said(contrast, tmp_path):
    gone = contrast | {"figure": tmp_path / "gone.png"}
    reader = read(written(tmp_path / "sub-01.html", [gone]))
    assert "could not be" in reader.text
    assert not [tag for tag, _ in reader.tags if tag == "img"]


def test_a_page_without_contrasts_does_not_speak_of_them(tmp_path):
    reader = read(written(tmp_path / "sub-01.html", []))
    assert "ontrast" not in reader.text
    assert "No image was" in reader.text


@pytest.mark.parametrize(
    ("noise", "wanted"),
    [
        (NoiseLaw("chi", 12.0, channels=4.04, voxels=9), "non-central chi of 4.0 channels"),
        (NoiseLaw("gaussian", 1.83), "Gaussian, sigma 1.83"),
        (NoiseLaw("ratio", 0.012, voxels=1000), "0.012 of UNI (−0.5 to 0.5) in white matter"),
        (NoiseLaw("none", 0.0), "background is a constant: no law"),
    ],
)
def test_each_law_of_noise_has_its_words(noise, wanted):
    assert wanted in noise_words(noise)


def test_white_matter_is_told_in_sigmas_unless_the_noise_is_in_other_units(statistics, head):
    facts = contrast_facts(statistics, head.table)
    assert facts["White matter over sigma"] == "36"
    ratio = replace(statistics, noise=NoiseLaw("ratio", 0.01))
    assert "White matter over sigma" not in contrast_facts(ratio, head.table)
