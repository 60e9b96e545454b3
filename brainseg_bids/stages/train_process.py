# SPDX-License-Identifier: Apache-2.0
"""The training process: started, watched, and handed signals; and several tasks of one Slurm step.

``srun brainseg ... --stages train`` starts the whole command once per accelerator. The first task
finds, checks, plans, and later bundles; the others wait until it says what to run.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from brainseg_bids.bids.description import write_json
from brainseg_bids.console import working
from brainseg_bids.documents import InputError, read_object
from brainseg_bids.lifetime import for_children
from brainseg_bids.locks import Lock, lock_file
from brainseg_bids.stages.train_job import now

if TYPE_CHECKING:
    from brainseg_bids.options import Settings

log = logging.getLogger("brainseg")

PASSED_ON = ("SIGTERM", "SIGINT", "SIGUSR1")
"""Signals that are handed to the training process; batch systems send the first and the last."""

_CLOCK = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ")
_TRAIN_ERROR = "train: ERROR: "
_VALIDATED = re.compile(r"^step \d+( of \d+)?, ")
"""What the training process says after each validation begins like this."""


LONGEST_WAIT_S = 6 * 3600.0
"""For the first task to read label maps and plan; beyond it is taken for dead."""
LOOK_EVERY_S = 1.0


# -- the process --------------------------------------------------------------------------


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[int]:
    """A lock on the folder while the block lasts, as a file descriptor that children may keep.

    Raises
    ------
    InputError
        If another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        found = lock_file(file)
        if found is Lock.BUSY:
            raise InputError(
                f"{folder}: another process is training here. Wait for it, or choose another "
                "--name."
            )
        if found is Lock.UNKNOWN:
            log.warning("%s: cannot be locked; do not train twice in it at a time", folder)
        yield file.fileno()


@dataclass(frozen=True)
class Ended:
    """How the training process ended: code (-n: by signal n), its errors, signals handed on."""

    code: int
    errors: Sequence[str]
    received: Sequence[int]


def watch(
    argv: Sequence[str],
    folder: Path,
    log_path: Path,
    settings: Settings,
    lock: int | None = None,
    on_validation: Callable[[], None] = lambda: None,
) -> Ended:
    """Run the training process to its end; what it says is passed on and kept."""
    errors: list[str] = []
    with log_path.open("a", encoding="utf-8") as record:
        record.write(f"{now()} {shlex.join(argv)}\n")
        process = subprocess.Popen(
            argv,
            cwd=folder,  # recipe spaces of the job lie there
            env=_environment(settings),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # An interrupt from the keyboard shall reach it once, from us.
            start_new_session=True,
            # Whoever is left over when this process is killed still holds the folder.
            pass_fds=() if lock is None else (lock,),
        )
        with _passing_on(process) as received, working("training"):
            for line in process.stdout:
                record.write(line)
                record.flush()
                if _VALIDATED.match(_pass_on_line(line.rstrip(), errors)):
                    on_validation()
            code = process.wait()
    return Ended(code, errors, received)


def _environment(settings: Settings) -> dict[str, str]:
    """The environment of the training process."""
    own = for_children() | {"PYTHONUNBUFFERED": "1"}
    if settings.device == "cpu":
        own |= {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}
    return own


def _handle(names: Sequence[str], handler) -> dict[int, object]:
    """Handle signals; what handled them before, by number. Nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {n: signal.signal(n, handler) for n in (getattr(signal, name) for name in names)}


@contextlib.contextmanager
def _passing_on(process: subprocess.Popen) -> Iterator[list[int]]:
    """Hand signals on to the training process and its like; which ones came is kept."""
    received: list[int] = []

    def hand_on(number: int, _frame) -> None:
        received.append(number)
        log.warning(
            "%s: asked to stop; the checkpoint is being written", signal.Signals(number).name
        )
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)

    before = _handle(PASSED_ON, hand_on)
    try:
        yield received
    except BaseException:  # whatever ends us ends it
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _pass_on_line(line: str, errors: list[str]) -> str:
    """A line of the training process, on the console; without its clock."""
    line = _CLOCK.sub("", line)
    if line.startswith(_TRAIN_ERROR):
        errors.append(line.removeprefix(_TRAIN_ERROR))
    elif line:
        log.info("%s", line)
    return line


def launcher(settings: Settings, devices: int, tasks: Tasks) -> list[str]:
    """What starts the processes of several nodes.

    Raises
    ------
    InputError
        If it is not there.
    """
    if settings.nodes == 1 or tasks.count > 1:
        return []
    srun = shutil.which("srun")
    if srun is None or "SLURM_JOB_ID" not in os.environ:
        raise InputError(
            f"--nodes {settings.nodes}: several nodes need a Slurm job that has them. Run the "
            "command in a batch script (docs/how-to/train.md)."
        )
    tasks = f"--ntasks={settings.nodes * devices}", f"--ntasks-per-node={devices}"
    return [srun, f"--nodes={settings.nodes}", *tasks, "--kill-on-bad-exit"]


# -- several tasks ------------------------------------------------------------------------


@dataclass(frozen=True)
class Tasks:
    """This process among those that train together.

    Parameters
    ----------
    rank, count : int
    call : Path
        Where the first one leaves what the others shall run.
    """

    rank: int
    count: int
    call: Path

    def broadcast(self, what: Mapping) -> None:
        """Leave a message, once: ``argv`` and ``folder`` to run, or the ``code`` to end with."""
        if self.rank == 0 and self.count > 1 and not self.call.exists():
            write_json(self.call, dict(what))

    def receive(self) -> dict:
        """The first one's message.

        Raises
        ------
        InputError
            If it does not within `LONGEST_WAIT_S`.
        """
        until_s = time.monotonic() + LONGEST_WAIT_S
        while not (message := read_object(self.call)):
            if time.monotonic() > until_s:
                raise InputError(f"{self.call}: the first task has not written what to run.")
            time.sleep(LOOK_EVERY_S)
        return message

    def check(self, devices: int, nodes: int) -> None:
        """Raise `InputError` unless there is a task for each device of each node."""
        if self.count > 1 and self.count != devices * nodes:
            raise InputError(
                f"srun has started {self.count} tasks, but --devices {devices} --nodes {nodes} "
                f"are {devices * nodes}. Start as many, or run the command once without srun."
            )


def find_tasks(environ: Mapping[str, str], folder: Path) -> Tasks:
    """Who this process is; alone unless ``srun`` has started several.

    Parameters
    ----------
    environ : mapping of str to str
    folder : Path
        That all tasks see.

    Examples
    --------
    >>> find_tasks({"SLURM_JOB_ID": "7"}, Path("logs")).count
    1
    >>> env = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4"}
    >>> tasks = find_tasks(env | {"SLURM_PROCID": "3"}, Path("logs"))
    >>> tasks.rank, tasks.count, tasks.call.name
    (3, 4, 'train_7_0_0.json')
    """
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    key = "_".join(environ.get(name, "0") for name in names)
    # Set by srun only; a batch script's own processes have the others, but not this.
    count = int(environ.get("SLURM_STEP_NUM_TASKS", "1"))
    rank = int(environ.get("SLURM_PROCID", "0")) if count > 1 else 0
    return Tasks(rank, count, folder / f"train_{key}.json")
