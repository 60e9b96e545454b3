# SPDX-License-Identifier: Apache-2.0
"""Runs of an output folder: which is at work, which has ended, and how."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from brainseg_bids.documents import InputError, read_object
from brainseg_bids.hpc.schedulers import SCHEDULERS
from brainseg_bids.locks import Lock, lock_byte
from brainseg_bids.settings import Settings, SettingsError

RECORD = "run.json"
"""File in a run's folder below ``logs``; its first byte is locked while the run is at work."""

AT_WORK, ENDED, LOST, UNKNOWN = "at work", "ended", "lost", "unknown"

END_REASONS = re.compile(r"DUE TO TIME LIMIT|oom.kill|Out Of Memory|CANCELLED|NODE FAIL", re.I)
"""What Slurm writes into a job's log when it ends it."""


@dataclass(frozen=True)
class PastRun:
    """One run, as its folder below ``logs`` tells.

    Parameters
    ----------
    folder : Path
    settings : Settings
    state : str
        `AT_WORK`; `ENDED` in order, whatever failed; `LOST` without a word; or `UNKNOWN`, where
        the file system cannot tell.
    where : str
        Computer, and the job of Slurm if it was one.
    began_s : float
        By the clock of the file system.
    """

    folder: Path
    settings: Settings
    state: str
    where: str
    began_s: float


@contextlib.contextmanager
def recorded(run_dir: Path) -> Iterator[Callable[[int], None]]:
    """Leave a record of this run, by which others see that it is at work.

    Yields
    ------
    callable
        To be told the exit code; a run that does not come to that is one that was lost.
    """
    record = {
        "Began": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "Host": socket.gethostname(),
        "Pid": os.getpid(),
        "SlurmJob": _own_task(),
    }
    with (run_dir / RECORD).open("w+", encoding="utf-8") as file:

        def write(**more: object) -> None:
            with contextlib.suppress(OSError):  # a full disk: the run itself will say so
                file.seek(0)
                file.write(json.dumps(record | more, indent=2) + "\n")
                file.truncate()
                file.flush()

        lock_byte(file, 0)
        write()
        yield lambda code: write(Ended=time.strftime("%Y-%m-%dT%H:%M:%S%z"), ExitCode=code)


def past_runs(output_dir: Path) -> list[PastRun]:
    """Runs of the participant level, the newest last."""
    found = []
    for record in sorted((output_dir / "logs").glob(f"*/{RECORD}")):
        path = record.with_name("settings.toml")
        settings = read_settings(path)
        if settings is None or settings.analysis_level != "participant":
            continue
        said = read_object(record)
        job = said.get("SlurmJob")
        where = f"job {job}" if job else f"process {said.get('Pid')} on {said.get('Host')}"
        state, began_s = _state(record, said), path.stat().st_mtime
        found.append(PastRun(record.parent, settings, state, where, began_s))
    return found


def _state(record: Path, said: dict) -> str:
    if "ExitCode" in said:
        return ENDED
    try:
        with record.open("r+") as file:
            held = lock_byte(file, 0)
    except OSError:
        return UNKNOWN
    return {Lock.BUSY: AT_WORK, Lock.HELD: LOST}.get(held, UNKNOWN)


def read_settings(path: Path) -> Settings | None:
    """Settings that a run or a submission has left; None if they are not there or outdated."""
    try:
        return Settings.from_toml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, SettingsError, TypeError):
        return None


def _own_task() -> str:
    """This job of Slurm, such as ``12_3``, or nothing."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")


# -- batch systems ------------------------------------------------------------------------


class Task(NamedTuple):
    """One task of an array that was submitted.

    Parameters
    ----------
    name : str
        ``JOB_TASK``.
    scheduler : str
        One of `SCHEDULERS`.
    labels : tuple of str
        Its participants.
    listed : Path
        File that names them.
    submitted_s : float
        By the clock of the file system.
    """

    name: str
    scheduler: str
    labels: tuple[str, ...]
    listed: Path
    submitted_s: float


def tasks(output_dir: Path) -> list[Task]:
    """Tasks of the arrays that were submitted to any batch system, the newest last."""
    found = []
    for scheduler in SCHEDULERS:
        for path in (output_dir / "logs" / scheduler).glob("tasks_*.txt"):
            job, submitted_s = path.stem.removeprefix("tasks_"), path.stat().st_mtime
            for index, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
                labels = tuple(line.split())
                found.append(Task(f"{job}_{index}", scheduler, labels, path, submitted_s))
    return sorted(found, key=lambda task: task.submitted_s)


def queue() -> dict[str, str] | None:
    """State of this user's tasks that wait or run, by ``JOB_TASK``; None without Slurm.

    Raises
    ------
    InputError
        If Slurm does not answer: what waits would seem never to have been submitted.
    """
    remedy = "Try again, on a login node of the cluster."
    # By number: users of some containers have no name, and --me is new.
    user = f"--user={os.getuid()}"
    command = ["squeue", user, "--noheader", "--array", "--format=%i %T"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except OSError:
        return None
    except subprocess.TimeoutExpired as error:
        raise InputError(f"squeue does not answer. {remedy}") from error
    if done.returncode:
        why = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise InputError(f"squeue does not tell what waits ({why}). {remedy}")
    return dict(line.split(None, 1) for line in done.stdout.splitlines() if " " in line)


def last_log_line(output_dir: Path, task: str) -> str:
    """Why Slurm ended a task, if its log says so."""
    log = output_dir / "logs" / "slurm" / f"{task}.log"
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    said = next((line for line in reversed(lines) if END_REASONS.search(line)), "")
    return " ".join(said.split())[:200]
