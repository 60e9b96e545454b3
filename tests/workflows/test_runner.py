# SPDX-License-Identifier: Apache-2.0
"""A run comes to its end whatever fails on the way."""

from itertools import pairwise

import pytest
from nipype.pipeline import engine as pe

from brainseg_bids.workflows.runner import Crash, configure_nipype, run_workflow
from tests.workflows.steps import Step


@pytest.fixture
def run(tmp_path):
    """Run independent steps, each with a follower; failures by name, and tries by name."""

    def run_steps(*, nprocs=2, plugin=None, **steps):
        crash_dir = tmp_path / "crash"
        configure_nipype(crash_dir=crash_dir, stop_on_first_crash=False, resource_monitor=False)
        workflow = pe.Workflow(name="w", base_dir=str(tmp_path / "work"))
        for name, inputs in steps.items():
            first = pe.Node(Step(value=1, mark=str(tmp_path / name), **inputs), name=name)
            then = pe.Node(Step(mark=str(tmp_path / f"{name}_then")), name=f"{name}_then")
            workflow.connect(first, "value", then, "value")
        failures = run_workflow(
            workflow, nprocs=nprocs, memory_gb=4, crash_dir=crash_dir, plugin=plugin
        )
        tries = {
            name: len(path.read_text()) if (path := tmp_path / name).exists() else 0
            for step in steps for name in (step, f"{step}_then")
        }  # fmt: skip
        return failures, tries

    return run_steps


def test_a_step_that_fails_is_told_in_its_own_words_and_stops_only_its_followers(run):
    failures, tries = run(good={}, bad={"message": "x.nii.gz: it is broken: mend it."})
    assert failures == {"w.bad": Crash("x.nii.gz: it is broken: mend it.")}
    assert tries == {"good": 1, "good_then": 1, "bad": 1, "bad_then": 0}


def test_a_worker_that_is_always_killed_is_a_failure_not_a_hang(run):
    failures, tries = run(good={}, doomed={"deaths": 9, "sleep_s": 1.0})
    assert set(failures) == {"w.doomed"}
    assert "killed" in failures["w.doomed"].reason
    assert tries["doomed"] == 2
    assert tries["good_then"] >= 1


def test_a_worker_that_is_killed_once_gets_another_try(run):
    failures, tries = run(unlucky={"deaths": 1})
    assert failures == {}
    assert tries == {"unlucky": 2, "unlucky_then": 1}


def test_results_of_one_image_are_written_before_the_next_image_is_begun(tmp_path):
    configure_nipype(
        crash_dir=tmp_path / "crash", stop_on_first_crash=False, resource_monitor=False
    )
    workflow = pe.Workflow(name="w", base_dir=str(tmp_path / "work"))
    for image in "abc":
        heavy = pe.Node(Step(value=1, mark=str(tmp_path / image)), name=image, mem_gb=2)
        light = pe.Node(
            Step(mark=str(tmp_path / f"{image}_then")), name=f"{image}_then", mem_gb=0.1
        )
        workflow.connect(heavy, "value", light, "value")
    assert run_workflow(workflow, nprocs=1, memory_gb=4, crash_dir=tmp_path / "crash") == {}
    order = sorted("abc", key=lambda image: (tmp_path / image).stat().st_mtime)
    for image, following in pairwise(order):
        written = (tmp_path / f"{image}_then").stat().st_mtime
        assert written < (tmp_path / following).stat().st_mtime


def test_another_plugin_tells_the_same_failures(run):
    failures, tries = run(
        plugin={"plugin": "Linear", "plugin_args": {}}, bad={"message": "mend it"}, good={}
    )
    assert failures == {"w.bad": Crash("mend it")}
    assert tries["good_then"] == 1
