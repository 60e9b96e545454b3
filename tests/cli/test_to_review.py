# SPDX-License-Identifier: Apache-2.0
"""A result that cannot be right ends well, and says that somebody has to look at it."""

from __future__ import annotations

import csv
import json

import pytest


@pytest.fixture(scope="module")
def tiny(lasting_app):
    """A participant whose brain is of half a millilitre."""
    lasting_app.images("sub-tiny_T1w")
    return lasting_app()


@pytest.mark.input(
    "results",
    "an implausible segmentation",
    "log, JSON, page and group table say why; the last line counts them",
    0,
)
def test_the_last_line_of_the_log_counts_what_to_look_at(tiny):
    assert tiny.code == 0
    last = tiny.log.strip().splitlines()[-1]
    assert "1 to look" in last
    assert "successfully" not in tiny.log
    assert "brain of 0.47" in tiny.log


def test_the_json_says_why(tiny):
    path = tiny.output / "sub-tiny" / "anat" / "sub-tiny_seg-brainseg_dseg.json"
    assert json.loads(path.read_text())["ToLookAt"] == ["brain of 0.47 ml"]


def test_the_page_warns(tiny):
    assert "brain of 0.47" in (tiny.output / "sub-tiny.html").read_text()


def test_results_that_are_there_already_are_counted_too(tiny, lasting_app):
    again = lasting_app("--reports-only")
    assert again.code == 0
    assert "1 to look" in again.log


def test_the_group_table_and_page_name_it(tiny, lasting_app):
    done = lasting_app(level="group")
    assert done.code == 0
    assert "1 to look" in done.log
    called = tiny.log.rpartition("to look at: ")[2].strip()
    assert done.log.rpartition("to look at: ")[2].strip() == called == "sub-tiny T1w"
    with (tiny.output / "group_seg-brainseg_desc-volumes_morph.tsv").open(newline="") as file:
        rows = {row["image"]: row["to_look_at"] for row in csv.DictReader(file, delimiter="\t")}
    assert rows == {"sub-tiny T1w": "brain of 0.47 ml"}
    assert "brain of 0.47" in (tiny.output / "group.html").read_text()
