# SPDX-License-Identifier: Apache-2.0
"""The pages: well formed, self-contained, escaped, and with the right numbers."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import numpy as np
import pytest

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.reports import page as page_module
from brainseg_bids.reports.image_section import CALIBRATED, NOT_CALIBRATED, image_section
from brainseg_bids.reports.page import write_subject_page
from brainseg_bids.reports.volume_table import asymmetries
from brainseg_bids.stages.summary_page import spreads, write_group_page
from tests.reports.reading import cells, read


def rows(**volumes: float) -> list[dict]:
    """Rows of the packaged table, zero but for the given names (with _ for -)."""
    given = {name.replace("_", "-"): volume for name, volume in volumes.items()}
    table = LabelTable.packaged("brainseg")
    assert all(name in table for name in given)
    return [
        {
            "index": label.index,
            "name": label.name,
            "hemisphere": label.hemisphere,
            "color": label.color,
            "volume_mm3": given.get(label.name, 0.0),
        }
        for label in table
    ]


@pytest.fixture
def scan(figure) -> dict:
    return {
        "title": "T1w",
        "source": "sub-01/anat/sub-01_T1w.nii.gz",
        "figure": figure,
        "volumes": rows(
            Left_Thalamus=7300.0, Right_Thalamus=6700.0, Brain_Stem=20000.0, CSF=150000.0, Skin=4e5
        ),
        "run": {"Model": "demo-1", "Time": "41 s"},
        "warnings": ["slices are 5 mm thick"],
        "outputs": ["sub-01/anat/sub-01_seg-brainseg_dseg.nii.gz"],
    }


def bare(figure: Path, volumes: list[dict]) -> dict:
    return {"title": "T1w", "source": "a.nii.gz", "figure": figure, "volumes": volumes}


def written(path: Path, scans: list[dict], **changes) -> Path:
    given = {
        "subject": "01",
        "settings": "threads = 2\n",
        "errors": [],
        "methods": "First.\n\nSecond.",
        "version": "1.2.3",
    }
    sections = [image_section(**scan) for scan in scans]
    return write_subject_page(path, sections=sections, **(given | changes))


def test_the_page_is_well_formed_and_says_what_was_done(scan, tmp_path):
    reader = read(written(tmp_path / "sub-01.html", [scan, scan]))
    for words in (
        "sub-01",
        "2 images segmented",
        "2 warnings",
        "no errors",
        "demo-1",
        "41 s",
        "1.2.3",
        "slices are 5 mm thick",
        scan["source"],
        scan["outputs"][0],
        "threads = 2",
        "not for diagnosis",
    ):
        assert words in reader.text


def test_confidence_is_shown_and_low_ones_stand_out(scan, tmp_path):
    given = {"Left-Thalamus": (0.91, "no"), "Right-Thalamus": (0.55, "yes")}
    for row in scan["volumes"]:
        row["confidence"], row["low_confidence"] = given.get(row["name"], (None, "n/a"))
    path = written(tmp_path / "a.html", [scan])
    shown = {row[0]: row[-1] for row in cells(path) if row}
    assert (shown["Left-Thalamus"], shown["Right-Thalamus"]) == ("0.91", "0.55")
    assert shown["Skin"] == "n/a"
    assert re.findall(r'<strong class="far">(.*?)<', path.read_text(encoding="utf-8")) == ["0.55"]
    assert CALIBRATED in read(path).text
    for row in scan["volumes"]:
        row["low_confidence"] = "n/a"
    assert NOT_CALIBRATED in read(written(tmp_path / "b.html", [scan])).text
    for row in scan["volumes"]:  # of a run before there was any
        del row["confidence"], row["low_confidence"]
    assert "Confidence" not in read(written(tmp_path / "c.html", [scan])).text


def test_the_page_needs_nothing_but_itself(scan, figure, tmp_path):
    path = written(tmp_path / "sub-01.html", [scan])
    figure_bytes = figure.read_bytes()
    figure.unlink()
    reader = read(path)
    for tag, attrs in reader.tags:
        assert not any(name.startswith("on") for name in attrs)
        for name in ("src", "href", "srcset", "data"):
            assert attrs.get(name, "#").startswith(("#", "data:image/png;base64,")), (tag, attrs)
    text = path.read_text(encoding="utf-8")
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text
    (source,) = [attrs["src"] for tag, attrs in reader.tags if tag == "img"]
    assert base64.b64decode(source.split(",", 1)[1]) == figure_bytes


def test_what_users_write_is_shown_and_never_run(scan, figure, tmp_path):
    evil = "<script>alert('x')</script>&\"<img src=x onerror=y>"
    bad_row = {
        "index": 5,
        "name": evil,
        "hemisphere": "left",
        "volume_mm3": 3.0,
        "color": "red; background: url(http://example.org/)",
    }
    attacked = {
        "title": evil,
        "source": evil,
        "figure": figure,
        "volumes": [bad_row],
        "run": {evil: evil},
        "warnings": [evil],
        "outputs": [evil],
    }
    path = written(
        tmp_path / "sub-01.html",
        [attacked],
        subject=evil,
        settings=evil,
        errors=[evil],
        methods=evil,
        version=evil,
    )
    reader = read(path)
    assert {tag for tag, _ in reader.tags} <= {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "header",
        "p",
        "h1",
        "h2",
        "h3",
        "a",
        "section",
        "div",
        "strong",
        "ul",
        "li",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "code",
        "input",
        "label",
        "img",
        "dl",
        "dt",
        "dd",
        "span",
        "i",
        "details",
        "summary",
        "pre",
        "footer",
    }
    assert len(reader.images) == 1
    assert reader.text.count(evil) >= 10
    assert not any("example.org" in str(attrs) for _, attrs in reader.tags)


def test_volumes_are_sorted_by_group_in_mm3_and_ml_without_background(scan, tmp_path):
    table = cells(written(tmp_path / "sub-01.html", [scan]))
    names = [row[0] for row in table]
    order = ["Brain", "Left-Thalamus", "Right-Thalamus", "Brain-Stem", "CSF", "Head", "Skin"]
    places = [names.index(name) for name in order]
    assert places == sorted(places)
    assert ["Left-Thalamus", "10", "7,300", "7.30"] in table
    assert ["Brain", "34,000", "34.00"] in table
    assert ["CSF", "24", "150,000", "150.00"] in table
    assert "Background" not in names


def test_label_colours_are_those_of_the_rows(scan, tmp_path):
    reader = read(written(tmp_path / "sub-01.html", [scan]))
    styles = [attrs["style"] for _, attrs in reader.tags if attrs.get("class") == "swatch"]
    table = LabelTable.packaged("brainseg")
    assert sorted(styles) == sorted(f"background-color: {x.color}" for x in table if x.index)


def test_asymmetry_is_the_difference_over_the_mean(scan, tmp_path):
    table = cells(written(tmp_path / "sub-01.html", [scan]))
    # 100 * (7300 - 6700) / 7000
    assert ["Thalamus", "7.30", "6.70", "+8.6 %", ""] in table
    found = {pair.name: pair for pair in asymmetries(scan["volumes"])}
    assert found["Thalamus"].percent == pytest.approx(8.5714, abs=1e-4)
    assert len(found) == sum(x.hemisphere == "left" for x in LabelTable.packaged("brainseg"))


def test_larger_right_sides_are_negative_and_an_empty_side_is_200():
    found = {
        pair.name: pair.percent
        for pair in asymmetries(rows(Left_Caudate=90.0, Right_Caudate=110.0, Right_Putamen=5.0))
    }
    assert found["Caudate"] == pytest.approx(-20)
    assert found["Putamen"] == -200
    assert found["Pallidum"] is None


def test_a_structure_without_counterpart_is_kept_and_said(scan, figure, tmp_path):
    lonely = [row for row in rows(Left_Thalamus=7300.0) if row["name"] != "Right-Thalamus"]
    (pair,) = [pair for pair in asymmetries(lonely) if pair.name == "Thalamus"]
    assert (pair.left_mm3, pair.right_mm3, pair.percent) == (7300.0, None, None)
    path = written(tmp_path / "sub-01.html", [bare(figure, lonely)])
    assert ["Thalamus", "7.30", "n/a", "n/a", "no right counterpart"] in cells(path)


def test_rows_as_read_from_a_table_file_work_too(figure, tmp_path):
    texts = [{k: str(v) for k, v in row.items()} for row in rows(Left_Thalamus=1.5)]
    path = written(tmp_path / "sub-01.html", [bare(figure, texts)])
    assert ["Left-Thalamus", "10", "2", "0.00"] in cells(path)


def test_a_subject_with_nothing_but_errors_gets_a_page(tmp_path):
    reader = read(written(tmp_path / "sub-01.html", [], errors=["T1w: empty\nfetch it"]))
    assert "No image was" in reader.text
    assert "T1w: empty\nfetch it" in reader.text


def test_a_missing_figure_is_said_in_its_place(scan, figure, tmp_path):
    figure.unlink()
    assert "could not be" in read(written(tmp_path / "sub-01.html", [scan])).text


def test_a_failure_while_writing_leaves_the_old_page_and_nothing_else(scan, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    folder.mkdir()
    path = written(folder / "sub-01.html", [scan])
    before = path.read_bytes()

    def half(self, text, **options):
        self.write_bytes(text[:100].encode())
        raise OSError("No space left on device")

    monkeypatch.setattr(page_module.Path, "write_text", half)
    with pytest.raises(OSError, match="No space"):
        written(path, [scan], subject="02")
    assert path.read_bytes() == before
    assert list(folder.iterdir()) == [path]


@pytest.fixture
def cohort() -> dict[str, list[dict]]:
    rng = np.random.default_rng(0)
    people = {
        f"sub-{k:02d}": rows(Left_Thalamus=7000 + rng.uniform(-50, 50), Left_Caudate=3500.0 + k)
        for k in range(12)
    }
    people["sub-<odd>"] = rows(Left_Thalamus=2000.0, Left_Caudate=3506.0)
    return people


def test_the_group_page_names_who_is_far_from_the_rest(cohort, tmp_path):
    path = write_group_page(
        tmp_path / "group.html", title="Demo <study>", volumes=cohort, version="1.2.3"
    )
    reader = read(path)
    assert "Volumes of 42 structures in 13 segmentations" in reader.text
    assert "sub-<odd>: Left-Thalamus" in " ".join(reader.text.split())
    assert "Demo <study>" in reader.text
    far = {line.name: list(line.outliers) for line in spreads(cohort)}
    assert far["Left-Thalamus"] == ["sub-<odd>"]
    assert far["Left-Caudate"] == []
    assert all(attrs["src"].startswith("data:") for tag, attrs in reader.tags if tag == "img")


def test_few_participants_have_no_outliers(cohort, tmp_path):
    few = dict(list(cohort.items())[-4:])
    assert not any(line.outliers for line in spreads(few))
    path = write_group_page(tmp_path / "group.html", title="Demo", volumes=few, version="1")
    assert "outlier" in read(path).text


def test_sides_that_cannot_be_compared_have_no_table_but_a_reason(scan, tmp_path):
    one = scan | {"no_asymmetry": "Not compared: one pass."}
    path = written(tmp_path / "sub-01.html", [one])
    assert "Not compared" in read(path).text
    assert "+8.6 %" not in path.read_text(encoding="utf-8")
    assert ["Left-Thalamus", "10", "7,300", "7.30"] in cells(path)


def test_the_group_page_links_to_the_pages_that_are_there(cohort, tmp_path):
    there, lacking, *_ = [who for who in cohort if "<" not in who]
    (tmp_path / f"{there}.html").write_text("")
    path = write_group_page(tmp_path / "group.html", title="Demo", volumes=cohort, version="1")
    links = {attrs["href"] for tag, attrs in read(path).tags if tag == "a"}
    assert links == {f"{there}.html"}
    assert lacking in read(path).text


def test_methods_are_html_with_their_references(scan, tmp_path):
    text = "Made with *Nipype* [@gorgolewski2011] and `it` <b>.\n\nMore [@paszke2019]."
    path = written(tmp_path / "sub-01.html", [scan], methods=text)
    page = path.read_text()
    section = page[page.index('<section id="methods">') :]
    assert "<em>Nipype</em> (Gorgolewski et al., 2011) and <code>it</code> &lt;b&gt;." in section
    assert "doi:10.3389/fninf.2011.00013" in section
    assert "[@" not in section
