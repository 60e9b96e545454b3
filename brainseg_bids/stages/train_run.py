# SPDX-License-Identifier: Apache-2.0
"""What stage ``train`` does: plan, train, bundle, report; and on from where it stopped."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from brainseg_bids.bids.description import write_json
from brainseg_bids.console import one_line, working
from brainseg_bids.documents import InputError, read_object
from brainseg_bids.exit_codes import DONE, FAILED, SAVED, UNUSABLE
from brainseg_bids.files import DAY_S, remove_unfinished, write_text
from brainseg_bids.lifetime import CODES, at_end
from brainseg_bids.options import to_toml
from brainseg_bids.programs.bundle import bundle_run
from brainseg_bids.programs.training_job import TrainingJob
from brainseg_bids.stages.train_job import (
    JobPlan,
    check_same,
    describe_job,
    plan_job,
    write_job,
)
from brainseg_bids.stages.train_plan import expected_time, make_plan
from brainseg_bids.stages.train_process import Ended, Tasks, alone, find_tasks, launcher, watch
from brainseg_bids.stages.train_real import check_real, write_real
from brainseg_bids.training.deadline import Deadline, planned_steps
from brainseg_bids.training.job_changes import same_validation
from brainseg_bids.training.resume import MAY_CHANGE, steps_done
from brainseg_bids.units import duration

if TYPE_CHECKING:
    from brainseg_bids.options import Settings

log = logging.getLogger("brainseg")


def train(settings: Settings, *, began_s: float | None = None) -> int:
    """Plan, train, bundle, report.

    Parameters
    ----------
    settings : Settings
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
        with at_end(lambda number: tasks.broadcast({"code": CODES[number]})):
            code = _train(settings, tasks, began_s)
    finally:
        tasks.broadcast({"code": code})
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
    launcher(settings, max(1, settings.devices), tasks)
    job = plan_job(settings)
    with alone(job.training) as lock:
        remove_unfinished(job.training.glob(".*"), older_than_s=DAY_S)
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
        code = _conclude(job, page) if code == DONE else code
        if code == DONE and deadline and (late_s := -deadline.left_s()) > 0:
            log.warning("--minutes %g: ended %s later", deadline.minutes, duration(late_s))
        return code


def _follow(tasks: Tasks, settings: Settings) -> int:
    """Train with the first task, which decides and speaks for all."""
    message = tasks.receive()
    if "code" in message:
        return message["code"]
    folder = Path(message["folder"])
    ended = watch(message["argv"], folder, folder / f"log-task-{tasks.rank}.txt", settings)
    for error in ended.errors:
        log.error("task %d: %s", tasks.rank, error)
    if ended.code == SAVED or -ended.code in ended.received:
        return SAVED
    return ended.code if ended.code in (DONE, UNUSABLE) else FAILED


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
        from brainseg_bids.reports import training as pages  # late: pandas, Matplotlib

        title = f"Training {self.job.name}"
        return pages.write_training_page(self.job.folder, self.path, title=title)

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
    wanted, before = read_object(plan), read_object(job.training / "plan.json")
    total, done = wanted["total_steps"], steps_behind(job.checkpoint)
    changed = {key for key, value in wanted.items() if before.get(key) != value}
    # That spaces have the same content was checked; their files may have moved.
    ignored = set(MAY_CHANGE) - {"total_steps"} | {"spaces"}
    if same_validation(job.before, read_object(job.training / "job.json")):
        ignored.add("validation_space")
    if done == total and changed <= ignored:
        log.info("all %d steps are done already", done)
        return DONE
    if done:
        aim = f" of {total}" if planned_steps(total) else ""
        log.info("going on after step %d%s", done, aim)
    if deadline and deadline.is_too_late():
        raise InputError(str(deadline.too_short()))
    began_s = time.monotonic()
    try:
        argv = _argv(job, plan, settings, tasks, deadline)
        tasks.broadcast({"argv": argv, "folder": str(job.training)})
        record = job.training / "log.txt"
        code = _explain(job, watch(argv, job.training, record, settings, lock, page.renew))
        if code != DONE and job.checkpoint.is_file():
            page.finish()
        return code
    finally:
        written = read_object(job.training / "job.json")
        spent_s = written.get("seconds", 0.0) + time.monotonic() - began_s
        write_json(job.training / "job.json", written | {"seconds": round(spent_s, 1)})


def steps_behind(checkpoint: Path) -> int:
    """Steps behind a checkpoint; 0 if there is none.

    Raises
    ------
    InputError
        If it is damaged.
    """
    try:
        return steps_done(checkpoint)
    except ValueError as error:
        raise InputError(str(error)) from error


def _argv(
    job: JobPlan, plan: Path, settings: Settings, tasks: Tasks, deadline: Deadline | None
) -> list[str]:
    """Command of the training process; what it is given stands in ``run.toml``."""
    devices = read_object(plan)["devices"]
    tasks.check(devices, settings.nodes)
    training = job.training.absolute()
    given = TrainingJob(
        plan=plan,
        heads=tuple(str(one.path.absolute()) for one in job.heads),
        validation=tuple(str(one.path.absolute()) for one in job.held_out),
        cache=job.cache.absolute(),
        out=training,
        threads=max(1, settings.nprocs // (devices if tasks.count == 1 else 1)),
        memory=training / "memory.json",
        real=write_real(settings, job.training),
        start_from=str(job.start_from.path) if job.start_from and not job.before else "",
        minutes=deadline.minutes if deadline else None,
        began=deadline.began_s if deadline else 0.0,
        decay_share=job.decay_share(settings),
    )
    path = write_text(training / "run.toml", to_toml(given))
    argv = [sys.executable, "-m", "brainseg_bids.programs.train", "--job", str(path)]
    return [*launcher(settings, devices, tasks), *argv]


def _explain(job: JobPlan, ended: Ended) -> int:
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
    code = DONE
    try:
        with working("making the bundle"):
            bundle = bundle_run(job.training)
    except ImportError as error:  # files of the package were replaced while it trained
        log.error(
            "brainseg-bids was changed during the training (%s). The training is kept; make its "
            "model with: %s",
            one_line(error),
            _bundle_command(job),
        )
        return FAILED
    except (OSError, ValueError) as error:
        log.error("%s", error)
        return FAILED
    log.info("model %s: %s, digest %s", bundle.name, bundle.path, bundle.digest[:12])
    try:
        page.wait()
        log.info("report: %s", page.write())
    except (OSError, ValueError, KeyError, ImportError) as error:
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
    from brainseg_bids.reports import training as pages  # late: pandas, Matplotlib
    from brainseg_bids.reports.training_log import read_job

    found = pages.to_review(read_job(job.folder))
    path = job.training / "job.json"
    write_json(path, read_object(path) | {"to_look_at": found})
    return found


def models_to_review(output_dir: Path, since_s: float) -> list[str]:
    """Models made since a `time.time` that cannot be right, as messages call them."""
    return [
        f"model {path.parents[1].name.removeprefix('model-')}"
        for path in sorted(output_dir.glob("derivatives/model-*/training/job.json"))
        if path.stat().st_mtime >= since_s and read_object(path).get("to_look_at")
    ]


def _bundle_command(job: JobPlan) -> str:
    command = ["python", "-m", "brainseg_bids.programs.bundle", "--run", str(job.training)]
    return shlex.join(command)


def write_pages(settings: Settings) -> int:
    """Write the pages of the trainings that are there, of one or of all; the exit code."""
    from brainseg_bids.reports import training as pages  # late: pandas, Matplotlib

    pattern = f"model-{settings.model_name or '*'}"
    jobs = [
        path
        for path in sorted((settings.output_dir / "derivatives").glob(pattern))
        if (path / "training" / "job.json").is_file()
    ]
    if not jobs:
        raise InputError(
            f"{settings.output_dir / 'derivatives' / pattern}: no training is there whose page "
            "could be written. Run without --reports-only, or choose another --name."
        )
    code = DONE
    for job in jobs:
        name = job.name.removeprefix("model-")
        page = settings.output_dir / f"train_{name}.html"
        try:
            pages.write_training_page(job, page, title=f"Training {name}")
            log.info("report: %s", page)
        except (OSError, ValueError, KeyError) as error:
            log.error("%s: the report could not be written (%s)", page, error)
            code = FAILED
    return code
