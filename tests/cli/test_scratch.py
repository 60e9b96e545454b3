# SPDX-License-Identifier: Apache-2.0
"""The scratch folder is kept apart by dataset and output, and by participant at a time."""

import errno
import fcntl
import logging
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from brainseg_bids import scratch
from brainseg_bids.documents import InputError
from brainseg_bids.locks import Lock, lock_file
from brainseg_bids.scratch import explain, participants_of, scratch_dir, working_alone
from brainseg_bids.settings import Settings

HOLD = """
import fcntl, sys
file = open(sys.argv[1], "a+b")
how = fcntl.LOCK_SH if sys.argv[3] == "shared" else fcntl.LOCK_EX
fcntl.lockf(file, how, 1, int(sys.argv[2]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def settings(tmp_path):
    for name in ("data", "out"):
        (tmp_path / name / "sub-01").mkdir(parents=True)
    return Settings(tmp_path / "data", tmp_path / "out", "participant", work_dir=tmp_path / "work")


@pytest.fixture
def holder(settings):
    """Another process that holds a byte of the lock file; called, it lets go."""
    running = []

    def hold(offset, how="alone"):
        settings.work_dir.mkdir(exist_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, settings.work_dir / scratch.LOCK, str(offset), how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        assert process.stdout.readline() == "held\n"
        return process.stdin.close

    yield hold
    for process in running:
        process.kill()
        process.wait()


def offset_of(settings, name):
    return scratch._offset(f"{scratch_dir(settings).name}/{name}")


def test_datasets_and_outputs_have_folders_of_their_own(settings, tmp_path):
    (tmp_path / "elsewhere" / "data").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "data")
    other = replace(settings, bids_dir=tmp_path / "elsewhere" / "data")
    into = replace(settings, output_dir=tmp_path / "out2")
    assert len({scratch_dir(one) for one in (settings, other, into)}) == 3
    same = replace(settings, bids_dir=tmp_path / "link")
    assert scratch_dir(same) == scratch_dir(settings)
    assert scratch_dir(settings).parent == settings.work_dir


@pytest.mark.parametrize("name", ["[a]*?", "a b", "ä" * 200, "\udcff"])
def test_any_name_of_a_dataset_gives_a_folder_that_nipype_can_work_in(settings, name):
    path = scratch_dir(replace(settings, bids_dir=Path("/data") / name))
    path.mkdir(parents=True)
    assert not set(path.name) & set("[]*? ")


def test_participants_are_those_asked_for_or_all(settings, tmp_path):
    (tmp_path / "out" / "sub-02").mkdir()
    (tmp_path / "out" / "sub-03.html").write_text("")
    assert set(participants_of(settings)) == {"sub-01", "sub-02"}
    assert participants_of(replace(settings, participant_label=("02",))) == ["sub-02"]


@pytest.mark.input(
    "runs",
    "the same participant in two jobs at a time, with one scratch folder",
    "the second one says that it waits, then reuses the results",
    0,
)
def test_a_run_waits_for_another_one_on_the_same_participant(settings, holder, caplog):
    caplog.set_level(logging.INFO, "brainseg")
    let_go = holder(offset_of(settings, "sub-01"))
    threading.Timer(0.3, let_go).start()
    with working_alone(settings, ["sub-02", "sub-01"]):
        assert "sub-01: another run" in caplog.text
        assert "sub-02:" not in caplog.text
    assert str(settings.work_dir) in caplog.text


def test_runs_on_other_participants_datasets_or_outputs_do_not_wait(settings, holder, caplog):
    caplog.set_level(logging.INFO, "brainseg")
    holder(scratch.ANYONE, "shared")
    holder(offset_of(settings, "sub-02"))
    holder(offset_of(replace(settings, output_dir=Path("/elsewhere")), "sub-01"))
    with working_alone(settings, ["sub-01"]):
        pass
    assert "another run" not in caplog.text


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
@pytest.mark.input(
    "runs",
    "a scratch folder on a file system without locks",
    "a warning, and the run continues",
    0,
)
def test_without_locks_it_is_said_and_the_run_goes_on(settings, monkeypatch, caplog, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    monkeypatch.setattr(fcntl, "flock", refuse)
    with working_alone(settings, ["sub-01", "sub-02"]):
        pass
    (warning,) = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert str(settings.work_dir) in warning
    with (settings.work_dir / "any").open("w") as file:
        assert lock_file(file) is Lock.UNKNOWN


def test_many_participants_take_one_open_file(settings):
    def n_open():
        return len(os.listdir("/proc/self/fd"))

    before = n_open()
    with working_alone(settings, [f"sub-{number}" for number in range(2000)]):
        assert n_open() == before + 1
    assert n_open() == before


def test_the_scratch_folder_is_emptied_before_the_run(settings):
    (settings.work_dir / "old" / "deep").mkdir(parents=True)
    (settings.work_dir / "file").write_text("")
    with working_alone(replace(settings, clean_workdir=True), ["sub-01"]):
        assert [path.name for path in settings.work_dir.iterdir()] == [scratch.LOCK]


@pytest.mark.input(
    "runs",
    "--clean-workdir while another run works in the folder",
    "refused, nothing is removed",
    2,
)
def test_a_folder_that_another_run_works_in_is_not_emptied(settings, holder):
    holder(scratch.ANYONE, "shared")
    (settings.work_dir / "theirs").mkdir()
    with (
        pytest.raises(InputError, match=r"--clean-workdir: "),
        working_alone(replace(settings, clean_workdir=True), ["sub-01"]),
    ):
        pass
    assert (settings.work_dir / "theirs").is_dir()


@pytest.mark.parametrize(
    ("reason", "place", "remedy"),
    [
        pytest.param(
            "[Errno 28] No space left on device: '{work}/x/_0x1_unfinished.json'",
            "{work}",
            "-w",
            marks=pytest.mark.input(
                "runs", "a scratch disk that is full", "each image that is left failed", 1
            ),
        ),
        ("T1w: the segmentation failed (OSError: [Errno 28] No space left).", "{work}", "-w"),
        ("[Errno 122] Disk quota exceeded", "{work}", "-w"),
        ("[Errno 30] Read-only file system: '{work}/x'", "{work}", "-w"),
        (
            "[Errno 28] No space left on device: '/out/sub-01.json'",
            "/out/sub-01.json",
            "Make room",
        ),
        pytest.param(
            "[Errno 24] Too many open files: '/usr/lib/python/x.js'",
            "too many files",
            "ulimit -n",
            marks=pytest.mark.input(
                "runs", "too few files may be open", "each image that is left failed", 1
            ),
        ),
        ("[Errno 23] Too many open files in system", "too many files", "later"),
    ],
)
def test_what_the_system_says_is_told_with_a_remedy(tmp_path, reason, place, remedy):
    told = explain(reason.format(work=tmp_path), tmp_path)
    assert told.startswith(place.format(work=tmp_path))
    assert remedy in told
    assert "x.js" not in told


def test_what_a_step_says_itself_stays(tmp_path):
    assert explain("T1w.nii: is empty. Copy it again.", tmp_path) == (
        "T1w.nii: is empty. Copy it again."
    )
