# SPDX-License-Identifier: Apache-2.0
"""Ratings: the form in a browser, the file that it saves, and the table of all files."""

from __future__ import annotations

import csv
import json
import os

import pytest

from brainseg_bids.bids.names import Scan, sidecar
from brainseg_bids.documents import InputError
from brainseg_bids.files import sha256
from brainseg_bids.reports.image_section import image_section
from brainseg_bids.reports.page import write_subject_page
from brainseg_bids.reports.ratings import (
    find_ratings,
    latest,
    nameless,
    rating_form,
    read_ratings,
)
from brainseg_bids.stages.summary import write_group
from tests.reports.browser import Browser, needs_browser
from tests.reports.reading import cells, read

LABELS = "sub-01/ses-A/anat/sub-01_ses-A_seg-brainseg_dseg.nii.gz"
TABLE = "group_seg-brainseg_desc-ratings_morph.tsv"


@pytest.fixture
def out(tmp_path):
    """A derivative with one segmentation and its volumes."""
    folder = tmp_path / "out"
    labels = folder / LABELS
    labels.parent.mkdir(parents=True)
    labels.write_bytes(b"labels")
    (folder / "sub-01" / "figures").mkdir()
    (folder / "seg-brainseg_dseg.tsv").write_text(
        "index\tname\n0\tBackground\n10\tLeft-Thalamus\n"
    )
    name = labels.name.replace("_dseg.nii.gz", "_desc-volumes_morph.tsv")
    row = "index\tname\themisphere\tvolume_mm3\n10\tLeft-Thalamus\tleft\t7300\n"
    labels.with_name(name).write_text(row)
    return folder


def save(out, name="a", **changes):
    """A rating file as a page saves it."""
    said = {
        "Segmentation": LABELS,
        "LabelsSHA256": sha256(out / LABELS),
        "Rating": "usable",
        "Artefacts": ["motion"],
        "Comment": "a\tb\nc",
        "Rater": "me",
        "RatedOn": "2026-11-30T12:00:00Z",
    } | changes
    path = out / "sub-01" / "figures" / f"{name}_rating-1.json"
    path.write_text(json.dumps({key: value for key, value in said.items() if value is not None}))
    return path


def test_a_rating_becomes_a_row(out):
    save(out)
    rows, errors = read_ratings(find_ratings(out), out)
    assert errors == []
    (row,) = rows
    assert (row["participant_id"], row["session_id"]) == ("sub-01", "ses-A")
    assert (row["rating"], row["artefacts"]) == ("usable", "motion")
    assert row["comment"] == "a b c"
    assert row["is_current"] == "yes"
    assert read_ratings(find_ratings(out), out, ["02"]) == ([], [])
    assert read_ratings(find_ratings(out), out, sessions=["B"]) == ([], [])
    assert read_ratings(find_ratings(out), out, ["01"], ["A"]) == (rows, [])


def test_the_image_is_called_as_in_messages(out):
    save(out)
    source = "bids:raw:sub-01/ses-A/anat/sub-01_ses-A_inv-2_T1w.nii.gz"
    sidecar(out / LABELS).write_text(json.dumps({"Input": source}))
    (row,), _ = read_ratings(find_ratings(out), out)
    assert row["image"] == Scan.from_path(source).title == "sub-01 ses-A inv-2 T1w"


def test_raters_without_a_name_are_not_one_person(out):
    save(out, "a", Rating="bad", Rater="", RatedOn="2026-11-30T10:00:00Z")
    save(out, "b", Rating="good", Rater=None)
    save(out, "c", Rating="usable", Rater="me")
    rows, _ = read_ratings(find_ratings(out), out)
    assert {row["rater"] for row in rows} == {"n/a", "me"}
    assert latest(rows) == {"sub-01_ses-A": "bad"}
    assert nameless(rows) == ["a_rating-1.json", "b_rating-1.json"]
    assert nameless(rows[:1]) == []
    named = [row | {"rater": "me"} for row in rows]
    assert latest(named[:2]) == {"sub-01_ses-A": "good"}


def test_a_rating_of_labels_that_were_made_again_says_so(out):
    save(out)
    (out / LABELS).write_bytes(b"other labels")
    (row,), _ = read_ratings(find_ratings(out), out)
    assert row["is_current"] == "no"


@pytest.mark.parametrize(
    "changes",
    [
        {"Rating": "splendid"},
        {"Rating": None},
        {"Artefacts": "motion"},
        {"Artefacts": [{"a": 1}]},
        {"Comment": 5},
        {"LabelsSHA256": None},
        {"Segmentation": "../../etc/passwd"},
        {"Segmentation": "sub-02/anat/sub-02_seg-brainseg_dseg.nii.gz"},
    ],
)
def test_a_bad_file_is_named_and_the_others_are_taken(out, changes):
    bad = save(out, "bad", **changes)
    save(out, "good")
    rows, errors = read_ratings(find_ratings(out), out)
    assert [row["file"] for row in rows] == ["good_rating-1.json"]
    (fault,) = errors
    assert fault.startswith(str(bad))
    assert "\n" not in fault


def test_a_file_that_is_no_json_is_named(out):
    path = save(out)
    path.write_text("{")
    rows, (fault,) = read_ratings(find_ratings(out), out)
    assert rows == []
    assert str(path) in fault


def test_a_folder_that_is_not_there_is_refused(out):
    with pytest.raises(InputError, match="--ratings"):
        find_ratings(out, out / "none")


def test_the_group_makes_a_table_and_tells_what_is_bad(out):
    save(out, Rating="bad", Comment="<b>leaks</b>")
    rows, _ = read_ratings(find_ratings(out), out)
    ((page, *_),) = write_group(out, title="x", ratings=rows)
    with (out / TABLE).open(newline="") as file:
        (line,) = csv.DictReader(file, delimiter="\t")
    assert (line["rating"], line["comment"]) == ("bad", "<b>leaks</b>")
    assert "1 segmentation rated: 0 good, 0 usable, 1 bad" in read(page).text
    assert ["sub-01_ses-A", "bad", "motion", "&lt;b&gt;leaks&lt;/b&gt;"] in [
        row[:4] for row in cells(page)
    ]
    write_group(out, title="x")
    assert not (out / TABLE).exists()


def test_a_rating_file_can_be_a_pipe_or_a_link_to_nothing(out):
    folder = out / "sub-01" / "figures"
    os.mkfifo(folder / "p_rating-1.json")
    (folder / "l_rating-1.json").symlink_to("nowhere")
    rows, errors = read_ratings(find_ratings(out), out)
    assert (rows, len(errors)) == ([], 2)


@needs_browser
def test_the_form_saves_a_file_that_the_group_reads(out, figure, tmp_path):
    section = image_section(
        title="T1w",
        source="sub-01_T1w.nii.gz",
        figure=figure,
        look=rating_form(out / LABELS, LABELS),
    )
    given = {"subject": "01", "settings": "", "errors": [], "methods": "", "version": "0"}
    path = write_subject_page(out / "sub-01.html", sections=[section], **given)
    saved = out / "sub-01" / "figures"
    with Browser(tmp_path) as tab:
        tab.save_downloads(saved)
        tab.open(path)
        tab.click("summary")
        tab.click("form.rating button")  # nothing is chosen yet: nothing is saved
        assert tab.js("document.querySelector('form.rating output').textContent") == ""
        tab.click("input[value='bad']")
        tab.click("input[value='motion']")
        tab.js("document.querySelector('textarea').value = 'leaks “here” \\n and there'")
        tab.click("form.rating button")
        tab.until("document.querySelector('form.rating output').textContent !== ''")
        tab.wait_for_download()
    assert [url for url in tab.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert tab.messages == []
    (name,) = (one.name for one in find_ratings(out))
    assert name.startswith("sub-01_ses-A_seg-brainseg_rating-")
    (row,), errors = read_ratings(find_ratings(out), out)
    assert errors == []
    assert (row["rating"], row["artefacts"], row["is_current"]) == ("bad", "motion", "yes")
    assert row["comment"] == "leaks “here” and there"


@needs_browser
def test_without_scripts_nothing_can_be_pressed(out, figure, tmp_path):
    form = rating_form(out / LABELS, LABELS)
    section = image_section(title="T1w", source="a.nii.gz", figure=figure, look=form)
    given = {"subject": "01", "settings": "", "errors": [], "methods": "", "version": "0"}
    path = write_subject_page(out / "sub-01.html", sections=[section], **given)
    with Browser(tmp_path, scripts=False) as tab:
        tab.open(path)
        assert tab.js("document.querySelector('form.rating button').disabled")
        tab.js("document.querySelector('details').open = true")
        assert "needs JavaScript" in tab.js("document.querySelector('form.rating').innerText")
