# SPDX-License-Identifier: Apache-2.0
"""Viewers and ratings, from one end to the other."""

from __future__ import annotations

import json

import pytest

from brainseg_bids.files import sha256

VIEWER = "sub-01/figures/sub-01_seg-brainseg_dseg.html"
LABELS = "sub-01/anat/sub-01_seg-brainseg_dseg.nii.gz"


@pytest.fixture(scope="module")
def segmented(lasting_app):
    lasting_app.images("sub-01_T1w")
    return lasting_app()


def test_the_page_links_to_the_viewer_and_the_viewer_back(segmented):
    viewer = segmented.output / VIEWER
    assert f'href="{VIEWER}"' in (segmented.output / "sub-01.html").read_text()
    text = viewer.read_text()
    assert 'href="../../sub-01.html"' in text
    assert (viewer.parent / "../../sub-01.html").resolve() == segmented.output / "sub-01.html"
    # A rating of what is saved, not of what lies in the scratch folder.
    assert sha256(segmented.output / LABELS) in text
    assert LABELS in text


def test_without_viewer_an_outdated_one_goes(segmented, lasting_app):
    viewer, page = segmented.output / VIEWER, segmented.output / "sub-01.html"
    assert lasting_app("--no-viewer").code == 0  # results are reused, and the viewer shows them
    assert viewer.is_file()
    next(segmented.output.glob("sub-01/anat/*volumes_morph.tsv")).unlink()
    assert lasting_app("--no-viewer").code == 0
    assert not viewer.exists()
    assert VIEWER not in page.read_text()
    assert lasting_app().code == 0
    assert viewer.is_file()
    assert VIEWER in page.read_text()


@pytest.mark.input(
    "metadata",
    "`--ratings` with a damaged file, or one about other results, among others",
    "is named and ignored; the others are used",
    0,
)
def test_ratings_are_collected_and_bad_files_named(segmented, lasting_app, tmp_path):
    said = {
        "Segmentation": LABELS,
        "LabelsSHA256": sha256(segmented.output / LABELS),
        "Rating": "good",
    }
    (tmp_path / "sub-01_seg-brainseg_rating-1.json").write_text(json.dumps(said))
    (tmp_path / "sub-01_seg-brainseg_rating-2.json").write_text("{")
    (tmp_path / "other.json").write_text("{")
    done = lasting_app("--ratings", tmp_path, level="group")
    assert done.code == 0
    assert "sub-01_seg-brainseg_rating-2.json" in done.log
    assert "other.json" not in done.log
    table = segmented.output / "group_seg-brainseg_desc-ratings_morph.tsv"
    assert len(table.read_text().splitlines()) == 2
    assert "1 good" in (segmented.output / "group.html").read_text()


@pytest.mark.input("metadata", "`--ratings` with a folder that is not there", "refused", 2)
def test_a_folder_of_ratings_that_is_not_there_is_refused(segmented, lasting_app):
    done = lasting_app("--ratings", segmented.output / "none", level="group")
    assert done.code == 2
    assert "--ratings" in done.log
