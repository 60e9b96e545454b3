# SPDX-License-Identifier: Apache-2.0
"""A run comes to its end whatever fails on the way."""

import errno
import os
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
from nipype.pipeline import engine as pe
from nipype.pipeline.engine.utils import load_resultfile
from nipype.pipeline.plugins import base

from brainseg_bids import workers
from brainseg_bids.files import read_ahead
from brainseg_bids.runner import configure_nipype, run_workflow
from brainseg_bids.stages.saving import init_ds_scan_wf
from brainseg_bids.workers import Crash
from tests.stages.steps import Read, Step


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


@pytest.mark.parametrize("light_gb", [0.1, 3])  # a figure may take more than the network
def test_results_of_one_image_are_written_before_the_next_image_is_begun(tmp_path, light_gb):
    configure_nipype(
        crash_dir=tmp_path / "crash", stop_on_first_crash=False, resource_monitor=False
    )
    workflow = pe.Workflow(name="w", base_dir=str(tmp_path / "work"))
    for image in "abc":
        heavy = pe.Node(Step(value=1, mark=str(tmp_path / image)), name=image, mem_gb=2)
        light = pe.Node(
            Step(mark=str(tmp_path / f"{image}_then")), name=f"{image}_then", mem_gb=light_gb
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


# -- what Nipype itself reads and writes --------------------------------------------------


@pytest.mark.input("runs", "a step's own record cannot be written", "that image failed", 1)
def test_a_step_whose_own_record_cannot_be_written_has_failed(run):
    failures, tries = run(good={}, bad={"in_the_way": "result_bad.pklz"})
    assert list(failures) == ["w.bad"]
    assert "result_bad.pklz" in failures["w.bad"].reason
    assert tries == {"good": 1, "good_then": 1, "bad": 1, "bad_then": 0}


def test_a_failure_is_told_when_there_is_no_room_for_its_file(run, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(base, "report_crash", full)
    failures, tries = run(good={}, bad={"message": "mend it"})
    assert failures == {"w.bad": Crash("mend it")}
    assert tries["good_then"] == 1


def test_a_step_that_cannot_be_started_has_failed(run, monkeypatch):
    submit = ProcessPoolExecutor.submit

    def some(pool, function, node, *others):
        if node.name == "bad":
            raise OSError(errno.EMFILE, "Too many open files")
        return submit(pool, function, node, *others)

    monkeypatch.setattr(ProcessPoolExecutor, "submit", some)
    failures, tries = run(good={}, bad={})
    assert failures == {"w.bad": Crash("[Errno 24] Too many open files")}
    assert tries == {"good": 1, "good_then": 1, "bad": 0, "bad_then": 0}


@pytest.mark.parametrize("damage", [lambda _: b"", lambda content: content[:-20], lambda _: b"x"])
def test_what_an_earlier_run_has_left_in_pieces_is_made_again(run, tmp_path, damage):
    assert run(one={}, other={})[0] == {}
    record = tmp_path / "work" / "w" / "one" / "result_one.pklz"
    record.write_bytes(damage(record.read_bytes()))
    failures, tries = run(one={}, other={})
    assert failures == {}
    assert (tries["one"], tries["other"]) == (2, 1)


def test_workflows_that_share_a_scratch_folder_write_nothing_in_common(run, tmp_path):
    run(plugin={"plugin": "Linear"}, one={})
    assert sorted(os.listdir(tmp_path / "work" / "w")) == ["one", "one_then"]


def test_a_file_of_the_same_size_and_time_is_read_again(tmp_path):
    path = tmp_path / "file.txt"

    def read(content):
        path.write_text(content)
        os.utime(path, (1, 1))
        configure_nipype(
            crash_dir=tmp_path / "crash", stop_on_first_crash=False, resource_monitor=False
        )
        workflow = pe.Workflow(name="w", base_dir=str(tmp_path / "work"))
        workflow.add_nodes([pe.Node(Read(image=path), name="read")])
        graph = workflow.run(plugin="Linear")
        return next(iter(graph.nodes)).result.outputs.content

    assert [read("one"), read("two"), read("two")] == ["one", "two", "two"]


def test_a_small_step_runs_beside_the_next_images_big_one_and_no_second_big_one_does(tmp_path):
    configure_nipype(
        crash_dir=tmp_path / "crash", stop_on_first_crash=False, resource_monitor=False
    )
    workflow = pe.Workflow(name="w", base_dir=str(tmp_path / "work"))
    for name in "abc":
        inputs = {"value": 1, "mark": str(tmp_path / name), "sleep_s": 1.0}
        big = pe.Node(Step(**inputs), name=f"{name}_big", n_procs=2, mem_gb=0.5)
        small = pe.Node(Step(mark=str(tmp_path / f"{name}2"), sleep_s=1.0), name=f"{name}_small")
        workflow.connect(big, "value", small, "value")
    running, seen = set(), set()

    def on_step(name, status):
        (running.add if status == "start" else running.discard)(name.removeprefix("w."))
        seen.add(frozenset(step[2:] for step in running) if len(running) > 1 else frozenset())
        assert sum(step.endswith("_big") for step in running) <= 1

    failures = run_workflow(
        workflow, nprocs=2, memory_gb=4, crash_dir=tmp_path / "crash", on_step=on_step
    )
    assert failures == {}
    assert frozenset({"big", "small"}) in seen


# -- what is saved ------------------------------------------------------------------------


@pytest.mark.parametrize("drawn", [True, False])
def test_a_figure_is_that_of_the_labels_beside_it_or_there_is_none(tmp_path, drawn):
    made, out = tmp_path / "made", tmp_path / "out"
    for folder, content in ((made, "new"), (out, "old")):
        folder.mkdir()
        for name in ("labels", "figure"):
            (folder / name).write_text(content)
    configure_nipype(
        crash_dir=tmp_path / "crash", stop_on_first_crash=False, resource_monitor=False
    )
    workflow = pe.Workflow(name="w", base_dir=str(tmp_path / "work"))
    save = init_ds_scan_wf(
        {name: str(out / name) for name in ("labels", "figure")}, {"labels": {}}, with_result=()
    )
    # Labels come late, so that a figure that did not wait for them would go with the old one.
    for name, late_s in (("labels", 0.5), ("figure", 0.0)):
        message = "" if drawn or name == "labels" else "the disk is full"
        step = Step(
            value=1, mark=str(tmp_path / name), passes=str(made / name), sleep_s=late_s,
            message=message,
        )  # fmt: skip
        workflow.connect(pe.Node(step, name=name), "passes", save, f"inputnode.{name}")
    failures = run_workflow(workflow, nprocs=2, memory_gb=4, crash_dir=tmp_path / "crash")
    assert bool(failures) == (not drawn)
    assert (out / "labels").read_text() == "new"
    assert (out / "figure").exists() == drawn
    assert not drawn or (out / "figure").read_text() == "new"


# -- the next image -----------------------------------------------------------------------


@pytest.fixture
def images(tmp_path):
    """Add a step for an image, in the order of their names; run them all."""
    configure_nipype(
        crash_dir=tmp_path / "crash", stop_on_first_crash=False, resource_monitor=False
    )
    workflow = pe.Workflow(name="w", base_dir=str(tmp_path / "work"))

    def begin(name):
        path = tmp_path / f"{name}.nii"
        step = Step(value=1, image=str(path), mark=str(tmp_path / name), sleep_s=0.5)
        first = pe.Node(step, name=name, mem_gb=ord(name) / 200)
        then = pe.Node(Step(mark=str(tmp_path / f"{name}2"), image="another"), name=f"{name}2")
        workflow.connect(first, "value", then, "value")
        return path

    def run(**options):
        return run_workflow(workflow, memory_gb=4, crash_dir=tmp_path / "crash", **options)

    return begin, run, workflow


@pytest.mark.parametrize("nprocs", [1, 2])
def test_the_next_images_are_read_once_while_those_before_are_at_work(images, nprocs, monkeypatch):
    begin, run, _ = images
    names = {str(begin(name)): name for name in "abcde"}
    begun, read = [], []
    monkeypatch.setattr(workers, "read_ahead", lambda path: read.append((names[path], len(begun))))

    def on_step(name, status):
        if status == "start" and len(name) == len("w.a"):
            begun.append(name[-1])

    assert run(nprocs=nprocs, on_step=on_step) == {}
    assert begun == list("abcde")
    assert [name for name, _ in read] == list("abcde")[nprocs:]
    for name, n_begun in read:
        assert n_begun <= begun.index(name) < n_begun + nprocs


def test_an_image_that_changes_after_it_was_read_ahead_is_taken_as_it_is(
    images, tmp_path, monkeypatch
):
    begin, run, workflow = images
    path = begin("a").with_name("b.nii")
    path.write_text("planned")
    workflow.add_nodes([pe.Node(Read(image=path), name="b", mem_gb=1)])

    def read_and_change(path):
        read_ahead(path)
        Path(path).write_text("changed")

    monkeypatch.setattr(workers, "read_ahead", read_and_change)
    assert run(nprocs=1) == {}
    result = load_resultfile(str(tmp_path / "work" / "w" / "b" / "result_b.pklz"))
    assert result.outputs.content == "changed"


def test_an_image_that_cannot_be_read_ahead_is_nobodys_failure_before_its_turn(images, tmp_path):
    begin, run, workflow = images
    begin("a")
    gone = tmp_path / "b.nii"
    gone.write_text("planned")
    workflow.add_nodes([pe.Node(Read(image=gone), name="b", mem_gb=1)])
    begin("z")
    gone.unlink()
    read_ahead(gone)
    assert list(run(nprocs=1)) == ["w.b"]


def test_workers_start_where_temporary_files_have_long_names(tmp_path):
    long = tmp_path / ("long" * 25)
    long.mkdir()
    program = (
        "import tempfile\nfrom brainseg_bids import workers\nworkers._start_server()\n"
        "print(tempfile.gettempdir())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"TMPDIR": str(long)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.strip() == str(long), done.stderr


def test_temporary_files_move_where_sockets_can_be(tmp_path, monkeypatch):
    class Socket(socket.socket):
        def bind(self, address):
            if str(address).startswith(str(tmp_path)):
                raise OSError(errno.EOPNOTSUPP, "Operation not supported")
            super().bind(address)

    monkeypatch.setattr(workers, "LONGEST_TEMPORARY", 1000)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with workers._temporary_for_sockets():
        assert tempfile.gettempdir() == str(tmp_path)
    monkeypatch.setattr(socket, "socket", Socket)
    with workers._temporary_for_sockets():
        assert tempfile.gettempdir() == "/tmp"
    assert tempfile.gettempdir() == str(tmp_path)
    assert not list(tmp_path.iterdir())
