# SPDX-License-Identifier: Apache-2.0
"""Stage ``train``: from label maps to a model bundle, and on from where it stopped."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from brainseg_bids.bids.description import write_json
from brainseg_bids.cli.train_job import (
    JobPlan,
    check_same,
    describe_job,
    now,
    plan_job,
    write_job,
)
from brainseg_bids.cli.train_memory import make_plan
from brainseg_bids.cli.train_real import check_real, write_real
from brainseg_bids.cli.train_tasks import Tasks, find_tasks
from brainseg_bids.cli.train_time import expected_time
from brainseg_bids.console import one_line, working
from brainseg_bids.exit_codes import DONE, FAILED, SAVED, UNUSABLE
from brainseg_bids.lifetime import CODES, at_end, for_children
from brainseg_bids.locks import Lock, lock_file
from brainseg_bids.nets.bundle import BundleError
from brainseg_bids.settings import Settings
from brainseg_bids.stages.jobs import read_object
from brainseg_bids.training.deadline import Deadline, planned_steps
from brainseg_bids.volumes import InputError

log = logging.getLogger("brainseg")

"""Exit code of a run that was told to stop and can go on (EX_TEMPFAIL, sysexits.h)."""
PASSED_ON = ("SIGTERM", "SIGINT", "SIGUSR1")
"""Signals that are handed to the training process; batch systems send the first and the last."""

_CLOCK = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ")
_TRAIN_ERROR = "train: ERROR: "
_VALIDATED = re.compile(r"^step \d+( of \d+)?, ")
"""What the training process says after each validation begins like this."""


def train(settings: Settings, run_dir: Path, *, began_s: float | None = None) -> int:
    """Plan, train, bundle, report.

    Parameters
    ----------
    settings : Settings
    run_dir : Path
        Of the log.
    began_s : float, optional
        `time.time` when the command began, for ``--minutes``; default: now.

    Returns
    -------
    int
        Exit code: 0 done; 1 it failed or was killed; 2 the input is at fault; 75 stopped by a
        signal, the same command goes on.

    Raises
    ------
    InputError
        If something is wrong with what was given; nothing is trained then.
    """
    tasks = find_tasks(os.environ, settings.output_dir / "logs")
    if tasks.rank:
        return _follow(tasks, settings)
    began_s = time.time() if began_s is None else began_s
    code = UNUSABLE
    try:
        with at_end(lambda number: tasks.tell({"code": CODES[number]})):
            code = _train(settings, tasks, began_s)
    finally:
        tasks.tell({"code": code})
    return code


def _deadline(settings: Settings, began_s: float) -> Deadline | None:
    if not settings.minutes:
        return None
    try:
        return Deadline(settings.minutes, began_s)
    except ValueError as error:
        raise InputError(str(error)) from error


def _train(settings: Settings, tasks: Tasks, began_s: float) -> int:
    deadline = _deadline(settings, began_s)
    check_real(settings)
    _launcher(settings, max(1, settings.devices), tasks)
    job = plan_job(settings)
    with _alone(job.training) as lock:
        with working("reading label maps"):
            described = describe_job(job, settings)
        if job.before:
            check_same(job, described)
            done, total = steps_behind(job.checkpoint), job.recipe.values["total_steps"]
            if done > total:
                # The run stays as it is, and so does what the command without --steps means.
                log.warning("%d steps are done already: %d cannot be gone back to", done, total)
                return DONE if settings.plan_only else _conclude(job, _Page(job, settings))
        write_job(job, described)
        with working("planning the network and trying a step"):
            plan = make_plan(job, settings)
        if settings.plan_only:
            done = steps_behind(job.checkpoint) if job.before else 0
            with working("timing a step"):
                log.info("  %s", expected_time(job, plan, settings, done=done))
            log.info("planned; nothing was trained (--plan-only): %s", job.training)
            return DONE
        page = _Page(job, settings)
        code = _run_unless_done(job, plan, settings, lock, tasks, page, deadline)
        return _conclude(job, page) if code == DONE else code


def _follow(tasks: Tasks, settings: Settings) -> int:
    """Train with the first task, which decides and speaks for all."""
    said = tasks.hear()
    if "code" in said:
        return said["code"]
    folder = Path(said["folder"])
    ended = _watch(said["argv"], folder, folder / f"log-task-{tasks.rank}.txt", settings)
    for error in ended.errors:
        log.error("task %d: %s", tasks.rank, error)
    if ended.code == SAVED or -ended.code in ended.received:
        return SAVED
    return ended.code if ended.code in (DONE, UNUSABLE) else FAILED


def _handle(names: Sequence[str], handler) -> dict[int, object]:
    """Handle signals; what handled them before, by number. Nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {n: signal.signal(n, handler) for n in (getattr(signal, name) for name in names)}


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[int]:
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


# -- run ----------------------------------------------------------------------------------


class _Page:
    """The page of a training, written while it runs by a thread, so that nothing waits for it.

    Parameters
    ----------
    job : JobPlan
    settings : Settings
    """

    def __init__(self, job: JobPlan, settings: Settings) -> None:
        self.job, self.path = job, settings.output_dir / f"train_{job.name}.html"
        self._thread: threading.Thread | None = None

    def renew(self) -> None:
        """Write it beside what goes on, unless it is being written; a fault is a warning."""
        if self._thread is None:
            log.info("report, written again at each validation: %s", self.path)
        elif self._thread.is_alive():
            return
        self._thread = threading.Thread(target=self._try, daemon=True)
        self._thread.start()

    def _try(self) -> None:
        try:
            self.write()
        except Exception as error:  # whatever it is, training goes on
            log.warning("%s: the report was not written (%s)", self.path, one_line(error))
            log.debug("report", exc_info=True)

    def finish(self) -> None:
        """Write it as it is now; a fault is a warning."""
        self.wait()
        self._try()

    def write(self) -> Path:
        """Write it now."""
        from brainseg_bids.reports.training import write_training_page  # late: matplotlib

        return write_training_page(self.job.folder, self.path, title=f"Training {self.job.name}")

    def wait(self) -> None:
        """Until it is not being written."""
        if self._thread is not None:
            self._thread.join()


def _run_unless_done(
    job: JobPlan,
    plan: Path,
    settings: Settings,
    lock: int,
    tasks: Tasks,
    page: _Page,
    deadline: Deadline | None,
) -> int:
    """Train what is left of the plan; the exit code."""
    from brainseg_bids.training.resume import MAY_CHANGE  # late: torch

    wanted, before = read_object(plan), read_object(job.training / "plan.json")
    total, done = wanted["total_steps"], steps_behind(job.checkpoint)
    changed = {key for key, value in wanted.items() if before.get(key) != value}
    if done == total and changed <= set(MAY_CHANGE) - {"total_steps"}:
        log.info("all %d steps are done already", done)
        return DONE
    if done:
        aim = f" of {total}" if planned_steps(total) else ""
        log.info("going on after step %d%s", done, aim)
    if deadline and deadline.left_s() <= 0:
        raise InputError(str(deadline.too_short()))
    began_s = time.monotonic()
    try:
        argv = _argv(job, plan, settings, tasks, write_real(settings, job.training))
        if deadline:
            argv += ["--minutes", f"{deadline.minutes:g}", "--began", f"{deadline.began_s:.3f}"]
        tasks.tell({"argv": argv, "folder": str(job.training)})
        record = job.training / "log.txt"
        code = _explain(job, _watch(argv, job.training, record, settings, lock, page.renew))
        if code != DONE and job.checkpoint.is_file():
            page.finish()
        return code
    finally:
        said = read_object(job.training / "job.json")
        spent_s = said.get("seconds", 0.0) + time.monotonic() - began_s
        write_json(job.training / "job.json", said | {"seconds": round(spent_s, 1)})


def steps_behind(checkpoint: Path) -> int:
    """Steps behind a checkpoint; 0 if there is none.

    Raises
    ------
    InputError
        If it is damaged.
    """
    from brainseg_bids.training.resume import steps_done  # late: torch

    try:
        return steps_done(checkpoint)
    except Exception as error:  # torch and zip files raise half a dozen kinds
        raise InputError(
            f"{checkpoint}: cannot be read ({one_line(error)}). Move it away to begin anew."
        ) from error


@dataclass(frozen=True)
class _Ended:
    """How the training process ended: code (-n: by signal n), its errors, signals handed on."""

    code: int
    errors: Sequence[str]
    received: Sequence[int]


def _watch(
    argv: Sequence[str],
    folder: Path,
    log_path: Path,
    settings: Settings,
    lock: int | None = None,
    on_validation: Callable[[], None] = lambda: None,
) -> _Ended:
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
                if _VALIDATED.match(_tell(line.rstrip(), errors)):
                    on_validation()
            code = process.wait()
    return _Ended(code, errors, received)


def _argv(
    job: JobPlan, plan: Path, settings: Settings, tasks: Tasks, real: Path | None
) -> list[str]:
    """Command of the training process."""
    devices = read_object(plan)["devices"]
    tasks.check(devices, settings.nodes)
    threads = max(1, settings.nprocs // (devices if tasks.count == 1 else 1))
    argv = [sys.executable, "-m", "brainseg_bids.cli.train", "--plan", str(plan)]
    argv += ["--heads", *(str(one.path.absolute()) for one in job.heads)]
    argv += ["--validation", *(str(one.path.absolute()) for one in job.held_out)]
    argv += ["--cache", str(job.cache.absolute())]
    argv += ["--out", str(job.training.absolute()), "--threads", str(threads)]
    argv += ["--memory", str(job.training.absolute() / "memory.json")]
    if real:
        argv += ["--real", str(real)]
    if job.start_from and not job.before:
        argv += ["--start-from", str(job.start_from.path)]
    return [*_launcher(settings, devices, tasks), *argv]


def _launcher(settings: Settings, devices: int, tasks: Tasks) -> list[str]:
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


def _environment(settings: Settings) -> dict[str, str]:
    """The environment of the training process."""
    own = for_children() | {"PYTHONUNBUFFERED": "1"}
    if settings.device == "cpu":
        own |= {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}
    return own


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


def _tell(line: str, errors: list[str]) -> str:
    """A line of the training process, on the console; without its clock."""
    line = _CLOCK.sub("", line)
    if line.startswith(_TRAIN_ERROR):
        errors.append(line.removeprefix(_TRAIN_ERROR))
    elif line:
        log.info("%s", line)
    return line


def _explain(job: JobPlan, ended: _Ended) -> int:
    """Say how training ended; our exit code."""
    code = ended.code
    for error in ended.errors:
        log.error("%s", error)
    if code == DONE:
        return DONE
    done = steps_behind(job.checkpoint) if job.checkpoint.is_file() else 0
    if code == SAVED or -code in ended.received:
        log.warning("stopped after step %d; run the same command again", done)
        log.info("to try the model as it is: %s", _bundle_command(job))
        return SAVED
    if code == UNUSABLE:
        if not ended.errors:
            log.error("training cannot use what it was given; see %s", job.training / "log.txt")
        return UNUSABLE
    kept = f"Nothing is lost up to step {done}" if done else "It had not saved a step yet"
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        why = " (usually because memory ran out)" if -code == signal.SIGKILL else ""
        log.error(
            "training was killed by %s%s. %s; run the same command again, and if it is killed "
            "again with a smaller --memory-budget.",
            name,
            why,
            kept,
        )
    else:
        log.error(
            "training failed (exit code %d). %s; the reason is at the end of %s",
            code,
            kept,
            job.training / "log.txt",
        )
    return FAILED


# -- conclude -----------------------------------------------------------------------------


def _conclude(job: JobPlan, page: _Page) -> int:
    """Bundle, page, and how to use them; the exit code."""
    from brainseg_bids.cli.bundle import bundle_run  # late: torch

    code = DONE
    try:
        with working("making the bundle"):
            bundle = bundle_run(job.training)
    except BundleError as error:
        log.error("%s", error)
        return FAILED
    log.info("model %s: %s, digest %s", bundle.name, bundle.path, bundle.digest[:12])
    try:
        page.wait()
        log.info("report: %s", page.write())
    except (OSError, ValueError, KeyError) as error:
        log.error(
            "%s: the report could not be written (%s); run again", page.path, one_line(error)
        )
        code = FAILED
    for fault in _implausible(job):
        log.warning("model %s: look at it: %s", job.name, fault)
    log.info("segment with it: brainseg BIDS OUT participant --model %s", bundle.path)
    return code


def _implausible(job: JobPlan) -> list[str]:
    """What cannot be right about the model; kept in the job's JSON."""
    from brainseg_bids.reports.training import to_look_at
    from brainseg_bids.reports.training_log import read_job

    found = to_look_at(read_job(job.folder))
    path = job.training / "job.json"
    write_json(path, read_object(path) | {"to_look_at": found})
    return found


def models_to_look_at(output_dir: Path, since_s: float) -> list[str]:
    """Models made since a `time.time` that cannot be right, as messages call them."""
    return [
        f"model {path.parents[1].name.removeprefix('model-')}"
        for path in sorted(output_dir.glob("derivatives/model-*/training/job.json"))
        if path.stat().st_mtime >= since_s and read_object(path).get("to_look_at")
    ]


def _bundle_command(job: JobPlan) -> str:
    return shlex.join(["python", "-m", "brainseg_bids.cli.bundle", "--run", str(job.training)])
