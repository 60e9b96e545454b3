# SPDX-License-Identifier: Apache-2.0
"""Runs at the same time: scratch folders of their own, one run for a participant at a time."""

import errno
import fcntl
import logging
import os
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from brainseg_bids import scratch
from brainseg_bids.documents import InputError
from brainseg_bids.files import whole_or_nothing
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
    """Another process that holds a byte of a lock file; called, it lets go."""
    running = []

    def hold(offset, how="alone", path=settings.output_dir / scratch.OUTPUT_LOCK):
        path.parent.mkdir(exist_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, path, str(offset), how],
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
    "the same participant in two jobs at a time, into one output folder",
    "the second one says that it waits, then reuses the results",
    0,
)
@pytest.mark.parametrize("work", ["work", "elsewhere"])
def test_a_run_waits_for_another_one_on_the_same_participant(settings, holder, caplog, work):
    caplog.set_level(logging.INFO, "brainseg")
    let_go = holder(scratch._offset("sub-01"))
    threading.Timer(0.3, let_go).start()
    settings = replace(settings, work_dir=settings.work_dir.with_name(work))
    with working_alone(settings, ["sub-02", "sub-01"]) as alone:
        assert alone
        assert "sub-01: another run" in caplog.text
        assert "sub-02:" not in caplog.text
    assert str(settings.output_dir) in caplog.text


def test_runs_on_other_participants_datasets_or_outputs_do_not_wait(settings, holder, caplog):
    caplog.set_level(logging.INFO, "brainseg")
    holder(scratch.ANYONE, "shared", settings.work_dir / scratch.LOCK)
    holder(scratch._offset("sub-02"))
    other = replace(settings, output_dir=settings.output_dir.with_name("elsewhere"))
    with working_alone(settings, ["sub-01"]), working_alone(other, ["sub-02"]):
        pass
    assert "another run" not in caplog.text


@pytest.mark.parametrize(("sessions", "waits"), [(["B"], False), (["A"], True), ([], True)])
def test_runs_on_other_sessions_do_not_wait(settings, holder, caplog, sessions, waits):
    caplog.set_level(logging.INFO, "brainseg")
    ends = [
        holder(scratch._offset("sub-01"), "shared"),
        holder(scratch._offset("sub-01_ses-A")),
    ]
    for let_go in ends:
        threading.Timer(0.3, let_go).start()
    with working_alone(settings, ["sub-01"], sessions=sessions):
        assert ("another run" in caplog.text) is waits


def test_who_cannot_be_kept_apart_by_the_output_is_by_the_scratch_folder(settings, holder, caplog):
    caplog.set_level(logging.INFO, "brainseg")
    (settings.output_dir / "logs").write_text("not a folder")
    name = f"{scratch_dir(settings).name}/sub-01"
    let_go = holder(scratch._offset(name), path=settings.work_dir / scratch.LOCK)
    threading.Timer(0.3, let_go).start()
    with working_alone(settings, ["sub-01"]) as alone:
        assert not alone
    assert "another run" in caplog.text
    (warning,) = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert str(settings.output_dir) in warning


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
@pytest.mark.input(
    "runs",
    "an output folder on a file system without locks",
    "a warning, and the run continues",
    0,
)
def test_without_locks_it_is_said_and_the_run_goes_on(settings, monkeypatch, caplog, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    monkeypatch.setattr(fcntl, "flock", refuse)
    with working_alone(settings, ["sub-01", "sub-02"]) as alone:
        assert not alone
    (warning,) = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert str(settings.output_dir) in warning
    with (settings.work_dir / "any").open("w") as file:
        assert lock_file(file) is Lock.UNKNOWN


def test_many_participants_take_two_open_files(settings):
    def n_open():
        return len(os.listdir("/proc/self/fd"))

    before = n_open()
    with working_alone(settings, [f"sub-{number}" for number in range(2000)]):
        assert n_open() == before + 2
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
    holder(scratch.ANYONE, "shared", settings.work_dir / scratch.LOCK)
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


# -- what a killed run leaves -------------------------------------------------------------


@pytest.mark.input(
    "runs",
    "temporary files of a run that was killed (SIGKILL) beside the outputs",
    "the next run of the participant removes them",
    0,
)
def test_temporary_files_of_a_killed_run_go_with_the_next(app):
    app.images("sub-01_T1w")
    output = app().output
    anat = output / "sub-01" / "anat"
    left = killed_while_writing(anat / "sub-01_seg-brainseg_dseg.nii.gz")
    other = killed_while_writing(output / "sub-02" / "anat" / "sub-02_dseg.json")
    young, old = (killed_while_writing(output / "sub-01.html") for _ in range(2))
    os.utime(old, (0, 0))
    own = anat / ".notes.txt"
    own.write_text("of the user")
    before = sorted(path.name for path in anat.iterdir() if path != left)
    app("--participant-label", "01")
    assert sorted(path.name for path in anat.iterdir()) == before
    # Others may be writing these.
    assert [path.exists() for path in (left, other, young, old)] == [False, True, True, False]


def killed_while_writing(path):
    """The temporary file that a process leaves that is killed while it writes a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = set(path.parent.iterdir())
    with suppress(ZeroDivisionError), whole_or_nothing(path) as temporary:
        temporary.write_text("half")
        os.link(temporary, path.parent / "kept")
        1 / 0  # noqa: B018
    (path.parent / "kept").rename(temporary)
    assert set(path.parent.iterdir()) - before == {temporary}
    return temporary
