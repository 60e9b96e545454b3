# SPDX-License-Identifier: Apache-2.0
"""``brainseg status`` and ``--resubmit-failed``: who is done, who failed, who is missing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from brainseg_bids.__main__ import main
from brainseg_bids.cli.parser import parse
from brainseg_bids.cli.run import run
from brainseg_bids.documents import InputError
from brainseg_bids.hpc import runs, status
from brainseg_bids.hpc.status import last_settings, states_of
from brainseg_bids.locks import Lock
from tests.fakes import dataset, templates

ROOT = Path(__file__).parents[2]


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Three participants and a model; Slurm's queue is empty."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs, "queue", dict)
    data = dataset.write_dataset(tmp_path / "data", *(f"sub-0{n}_T1w" for n in (1, 2, 3)))
    dataset.write_bundle(tmp_path / "model")
    return data


def settings(study, *arguments):
    words = [str(study), "out", "participant", "--model", str(study.parent / "model")]
    return parse([*words, "--nprocs", "1", *arguments])


def image(study, label):
    return study / f"sub-{label}" / "anat" / f"sub-{label}_T1w.nii.gz"


def states(study):
    return {one.participant: one.state for one in states_of(settings(study))}


def write_lost_run(study, label):
    """A run as it is left when its job is killed."""
    chosen = settings(study, "--participant-label", label)
    folder = chosen.output_dir / "logs" / "20990101-000000_lost"
    folder.mkdir(parents=True)
    (folder / "settings.toml").write_text(chosen.to_toml())
    said = {"Host": "n1", "Pid": 1, "SlurmJob": "7_0"}
    (folder / runs.RECORD).write_text(json.dumps(said))
    return folder


def test_done_failed_and_never_started(study, capsys):
    image(study, "02").write_bytes(b"no image")
    assert run(settings(study, "--participant-label", "01", "02"), program=dataset.PREDICT) == 1
    capsys.readouterr()
    assert main(["status", "out"]) == 1
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in lines if line.startswith("sub-")}
    assert rows["sub-01"].split()[1] == "done"
    assert rows["sub-02"].split()[1] == "failed"
    assert str(image(study, "02")) in rows["sub-02"]
    assert "not started" in rows["sub-03"]


def test_no_failure_is_exit_code_0_and_files_can_be_read_by_programs(study, capsys):
    assert run(settings(study, "--participant-label", "01"), program=dataset.PREDICT) == 0
    capsys.readouterr()
    assert main(["status", "out", "--json"]) == 0
    (first, *others) = json.loads(capsys.readouterr().out)
    assert (first["participant"], first["state"], first["images"]) == ("sub-01", "done", 1)
    assert [one["state"] for one in others] == ["not started"] * 2
    assert main(["status", "out", "--tsv", "--participant-label", "sub-03"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split("\t")[:2] == ["participant", "state"]
    assert row.split("\t")[:2] == ["sub-03", "not started"]


def test_an_image_that_has_changed_since_is_not_done(study):
    assert run(settings(study), program=dataset.PREDICT) == 0
    assert set(states(study).values()) == {"done"}
    shutil.copy(image(study, "01"), image(study, "03"))
    image(study, "03").write_bytes(image(study, "03").read_bytes() + b"\0")
    assert states(study)["sub-03"] == "outdated"


def test_results_of_another_model_are_outdated_and_are_submitted_again(study, capsys):
    assert run(settings(study, "--participant-label", "01"), program=dataset.PREDICT) == 0
    shutil.rmtree(study.parent / "model")
    dataset.write_bundle(study.parent / "model", name="other")
    (first, second, _) = states_of(settings(study))
    assert (first.state, second.state) == ("outdated", "not started")
    assert "model" in first.reason
    capsys.readouterr()
    assert run(settings(study, "--slurm", "--resubmit-failed")) == 0
    assert "01\n02\n03\n" in capsys.readouterr().out
    assert main(["status", "out"]) == 0


def test_a_run_after_a_submission_decides_what_should_be_there(study, capsys):
    assert run(settings(study, "--slurm", "--participant-label", "01", "03")) == 0
    submitted = study.parent / "out" / "logs" / "slurm" / "submitted.toml"
    os.utime(submitted, (time.time() - 100,) * 2)
    later = settings(study, "--participant-label", "01", "--probseg")
    assert run(later, program=dataset.PREDICT) == 0
    asked = last_settings(study.parent / "out")
    assert asked.probseg
    assert asked.participant_label == ("01", "03")
    os.utime(submitted, (time.time() + 100,) * 2)
    assert not last_settings(study.parent / "out").probseg


def write_run(chosen, name):
    """A run that has ended, as far as its settings tell."""
    folder = chosen.output_dir / "logs" / name
    folder.mkdir(parents=True)
    (folder / "settings.toml").write_text(chosen.to_toml())
    (folder / runs.RECORD).write_text(json.dumps({"ExitCode": 0, "Pid": 1}))


@pytest.mark.input(
    "runs",
    "`brainseg status` after runs of a session each, as BABS starts them",
    "nobody is `done` before all sessions are, whichever was run last",
    0,
)
def test_runs_of_a_session_each_are_runs_of_one_dataset(study):
    output = study.parent / "out"
    write_run(settings(study, "--participant-label", "01", "--session-label", "1"), "20260101-1")
    assert last_settings(output).session_label == ("1",)
    write_run(settings(study, "--participant-label", "01", "--session-label", "2"), "20260101-2")
    assert last_settings(output).session_label == ()


def test_a_run_of_one_session_after_a_submission_of_all_does_not_hide_the_others(study, capsys):
    assert run(settings(study, "--slurm")) == 0
    output = study.parent / "out"
    os.utime(output / "logs" / "slurm" / "submitted.toml", (time.time() - 100,) * 2)
    write_run(settings(study, "--participant-label", "01", "--session-label", "2"), "20260101-1")
    asked = last_settings(output)
    assert (asked.participant_label, asked.session_label) == ((), ())


@pytest.mark.parametrize("scheduler", ["pbs", "lsf", "sge", "slurm"])
@pytest.mark.input(
    "runs",
    "`--resubmit-failed` where the queue cannot be asked (PBS, LSF, Grid Engine; no `squeue`)",
    "submitted participants that have not begun are `unknown` and left out, with a warning",
    0,
)
def test_what_may_wait_in_a_queue_that_cannot_be_asked_is_unknown(
    study, monkeypatch, capsys, scheduler
):
    monkeypatch.setattr(runs, "queue", lambda: None)
    tasks = study.parent / "out" / "logs" / scheduler / "tasks_9.txt"
    tasks.parent.mkdir(parents=True)
    tasks.write_text("01 02\n")
    assert list(states(study).values()) == ["unknown", "unknown", "not started"]
    assert str(tasks) in states_of(settings(study))[0].reason
    assert run(settings(study, "--slurm", "--resubmit-failed")) == 0
    said = capsys.readouterr()
    assert "tasks=(\n03\n)" in said.out
    assert str(tasks) in said.err
    image(study, "02").write_bytes(b"no image")
    os.utime(tasks, (time.time() - 100,) * 2)
    assert run(settings(study, "--participant-label", "01", "02"), program=dataset.PREDICT) == 1
    assert list(states(study).values()) == ["done", "failed", "not started"]


def test_a_run_that_was_killed_has_failed_with_what_slurm_said(study):
    write_lost_run(study, "01")
    log = study.parent / "out" / "logs" / "slurm" / "7_0.log"
    log.parent.mkdir()
    log.write_text("slurmstepd: error: *** JOB 7 ON n1 CANCELLED DUE TO TIME LIMIT ***\n")
    (first, second, _) = states_of(settings(study))
    assert first.state == "failed"
    assert "7_0" in first.reason
    assert "TIME LIMIT" in first.reason
    assert second.state == "not started"


def test_a_run_at_work_is_seen_by_its_lock_and_is_lost_once_it_is_killed(study):
    program = "import sys, time\nfrom pathlib import Path\nfrom brainseg_bids.hpc.runs import *\n"
    program += (
        "with recorded(Path(sys.argv[1])):\n    print('up', flush=True)\n    time.sleep(60)\n"
    )
    folder = write_lost_run(study, "02")
    command = [sys.executable, "-c", program, str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        process.stdout.readline()
        seen = states(study)
        process.send_signal(signal.SIGKILL)
    assert seen["sub-02"] == "running"
    assert states(study)["sub-02"] == "failed"


def test_a_job_that_ends_while_its_results_are_looked_for_is_running(study, monkeypatch):
    tasks = study.parent / "out" / "logs" / "slurm" / "tasks_9.txt"
    tasks.parent.mkdir(parents=True)
    tasks.write_text("01\n")
    queue = {"9_0": "RUNNING"}
    monkeypatch.setattr(runs, "queue", lambda: dict(queue))
    decide = status._plans

    def slowly(chosen):
        plans = decide(chosen)
        queue.clear()
        return plans

    monkeypatch.setattr(status, "_plans", slowly)
    assert states(study)["sub-01"] == "running"


def test_what_waits_in_slurms_queue_is_not_submitted_again(study, monkeypatch, capsys):
    image(study, "02").write_bytes(b"no image")
    run(settings(study, "--participant-label", "01", "02"), program=dataset.PREDICT)
    tasks = study.parent / "out" / "logs" / "slurm" / "tasks_9.txt"
    tasks.parent.mkdir()
    tasks.write_text("01 02\n03\n")
    monkeypatch.setattr(runs, "queue", lambda: {"9_1": "PENDING"})
    assert states(study) == {"sub-01": "done", "sub-02": "failed", "sub-03": "queued"}
    capsys.readouterr()
    again = settings(study, "--slurm", "--resubmit-failed")
    assert run(again) == 0
    script = capsys.readouterr().out
    assert "tasks=(\n02\n)" in script
    monkeypatch.setattr(runs, "queue", lambda: {"9_0": "RUNNING", "9_1": "PENDING"})
    assert run(again) == 2
    assert "1 done, 1 running, 1 queued" in capsys.readouterr().err


def test_a_submission_decides_who_should_be_there(study, capsys):
    assert run(settings(study, "--slurm", "--participant-label", "01", "03")) == 0
    capsys.readouterr()
    assert main(["status", "out"]) == 0
    said = capsys.readouterr().out
    assert "sub-02" not in said
    assert "2 participant(s): 2 not started" in said


def test_what_waits_for_labels_has_not_failed(study, monkeypatch, tmp_path):
    templates.use_home(templates.write_home(tmp_path / "templates"), monkeypatch)
    chosen = settings(study, "--output-spaces", templates.NAME)
    assert {(one.state, one.of) for one in states_of(chosen)} == {("not started", 2)}


def test_who_has_labels_is_not_done_if_the_template_of_another_result_is_missing(
    study, monkeypatch, tmp_path
):
    templates.use_home(templates.write_home(tmp_path / "templates"), monkeypatch)
    assert run(settings(study, "--participant-label", "01"), program=dataset.PREDICT) == 0
    first, second, _ = states_of(settings(study, "--output-spaces", f"{templates.NAME}:res-3"))
    assert first.state == "failed"
    assert "templateflow get" in first.reason
    assert second.state == "not started"


def write_squeue(folder, monkeypatch, body):
    folder.mkdir()
    (folder / "squeue").write_text(f"#!/bin/sh\n{body}\n")
    (folder / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_a_queue_that_cannot_be_read_is_not_an_empty_one(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert runs.queue() is None
    write_squeue(tmp_path / "down", monkeypatch, "echo 'Unable to contact slurmctld' >&2; exit 1")
    with pytest.raises(InputError, match=r"squeue.*slurmctld.*Try again"):
        runs.queue()
    write_squeue(tmp_path / "up", monkeypatch, "echo 7_0 PENDING; echo 7_1 RUNNING")
    assert runs.queue() == {"7_0": "PENDING", "7_1": "RUNNING"}


def test_a_job_is_not_lost_where_neither_lock_nor_queue_can_tell(study, monkeypatch):
    write_lost_run(study, "01")
    monkeypatch.setattr(runs, "lock_byte", lambda *_: Lock.UNKNOWN)
    assert states(study)["sub-01"] == "failed"  # Slurm's queue does not have it
    monkeypatch.setattr(runs, "queue", lambda: {"7_0": "RUNNING"})
    assert states(study)["sub-01"] == "running"
    monkeypatch.setattr(runs, "queue", lambda: None)
    assert states(study)["sub-01"] == "unknown"


@pytest.mark.input(
    "runs", "`brainseg status` of a folder without runs", "refused, folder named", 2
)
def test_a_folder_without_runs_is_refused(tmp_path, capsys):
    assert main(["status", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path) in line


def test_a_run_knows_when_it_began(study):
    run(settings(study, "--participant-label", "01"), program=dataset.PREDICT)
    (past,) = runs.past_runs(study.parent / "out")
    assert past.state == runs.ENDED
    said = json.loads((past.folder / runs.RECORD).read_text())
    assert said["ExitCode"] == 0
    assert said["Began"][:4] == time.strftime("%Y")
