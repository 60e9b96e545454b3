# SPDX-License-Identifier: Apache-2.0
"""A run says what it is doing, and writes the page of each participant who is done."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from brainseg_bids import console
from brainseg_bids.cli.execute import _Steps
from brainseg_bids.cli.run import _Pages
from brainseg_bids.console import AtWork, logging_to, working
from brainseg_bids.stages.jobs import SubjectPlan


def test_what_takes_long_is_said_again_and_again(tmp_path, monkeypatch):
    monkeypatch.setattr(console.at_work, "silence_s", 0.05)
    path = tmp_path / "log.txt"
    with logging_to(path, verbose=0, debug=False):
        with working("stage synth"):
            time.sleep(0.3)
        time.sleep(0.15)
        logging.getLogger("brainseg").info("done")
    said = path.read_text()
    assert said.count("at work: stage synth") >= 2
    assert "at work" not in said.splitlines()[-1]


def test_a_line_names_steps_with_their_share_and_time():
    work = AtWork()
    for number in range(5):
        work.begin(f"sub-{number}: segment")
        work.began_s[f"sub-{number}: segment"] -= 200.0
    work.begin("sub-0: segment")  # begun already
    work.percent["sub-0: segment"] = 40
    assert work.line().startswith("at work: sub-0: segment (40 %, 3 min); sub-1: segment (3 min);")
    assert work.line().endswith("; 2 more")
    for number in range(5):
        work.end(f"sub-{number}: segment")
    assert work.began_s == work.percent == {}


def test_nothing_is_said_while_nothing_is_at_work(caplog):
    caplog.set_level("INFO", logger="brainseg")
    work, ended = AtWork(silence_s=0.01), threading.Event()
    watcher = threading.Thread(target=work.watch, args=[ended])
    watcher.start()
    time.sleep(0.05)
    ended.set()
    watcher.join()
    assert caplog.text == ""


# -- pages --------------------------------------------------------------------------------


def plan(label: str) -> SubjectPlan:
    scan = SimpleNamespace(
        name="segment_T1w_wf",
        stage="segment",
        title=f"sub-{label} T1w",
        scan=SimpleNamespace(path=Path("image")),
        has_results=False,
    )
    return SubjectPlan(label, (scan,), {})


@pytest.fixture
def steps(monkeypatch):
    """Of two participants with two steps each, and who was done when."""
    plans, done = [plan("01"), plan("02")], []
    monkeypatch.setattr(SubjectPlan, "to_run", property(lambda self: self.scans))
    names = [
        f"{one.name}.segment_T1w_wf.{step}"
        for one in plans
        for step in ("inputnode", "segment", "figure", "outputnode")
    ]
    workflow = SimpleNamespace(name="w", list_node_names=lambda: names)
    return _Steps(workflow, plans, done.append), plans, done


def test_a_participant_is_done_when_all_its_steps_have_ended_well(steps):
    watch, (one, two), done = steps
    for status in ("start", "end"):
        watch(f"w.{one.name}.segment_T1w_wf.segment", status)
        watch(f"w.{two.name}.segment_T1w_wf.segment", status)
    assert done == []
    watch(f"w.{two.name}.segment_T1w_wf.figure", "end")
    assert done == ["02"]
    watch(f"w.{one.name}.segment_T1w_wf.figure", "exception")
    assert done == ["02"]
    assert watch.words(f"w.{one.name}.segment_T1w_wf.figure") == "sub-01 T1w: figure"
    assert not console.at_work.began_s


@pytest.fixture
def pages(tmp_path, monkeypatch):
    """Pages, and which were written."""
    written = []

    def update(plan, **_):
        if plan.label == "bad":
            raise OSError("the disk is full")
        written.append(plan.label)

    monkeypatch.setattr("brainseg_bids.stages.pages.update_subject_page", update)
    settings = SimpleNamespace(
        output_dir=tmp_path, bids_dir=tmp_path, boilerplate_only=False, reports_only=False,
        to_toml=lambda: "",
    )  # fmt: skip
    return _Pages(settings), written


def test_in_the_end_those_pages_are_written_that_are_not_or_have_changed(pages):
    made, written = pages
    plans = [plan(label) for label in ("01", "02", "03")]
    made.write(plans[0], {})
    made.write(plans[1], {})
    assert written == ["01", "02"]
    assert made.write_rest(plans, {"sub-02 T1w": "another stage of it failed"}) == {}
    assert written == ["01", "02", "02", "03"]


def test_a_page_that_cannot_be_written_yet_is_told_in_the_end(pages):
    made, _ = pages
    made.write(plan("bad"), {})
    missed = made.write_rest([plan("bad")], {})
    assert "disk is full" in missed["sub-bad report"]
    assert "--reports-only" in missed["sub-bad report"]
