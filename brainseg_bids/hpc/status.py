# SPDX-License-Identifier: Apache-2.0
"""How far each participant is, as the stages themselves would decide it now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from brainseg_bids.bids.inputs import find_participants, label_error
from brainseg_bids.documents import InputError
from brainseg_bids.hpc import runs
from brainseg_bids.hpc.schedulers import SCHEDULERS
from brainseg_bids.settings import Settings
from brainseg_bids.units import natural_order

if TYPE_CHECKING:
    from brainseg_bids.stages.jobs import SubjectPlan

DONE, FAILED, RUNNING, QUEUED = "done", "failed", "running", "queued"
UNKNOWN, OUTDATED, NOT_STARTED, NOTHING = "unknown", "outdated", "not started", "no image"
STATES = (DONE, FAILED, RUNNING, QUEUED, UNKNOWN, OUTDATED, NOT_STARTED, NOTHING)

TO_SUBMIT = (FAILED, OUTDATED, NOT_STARTED)
"""States of those whom ``--resubmit-failed`` submits."""
SAME_TIME_S = 5.0
"""A task may begin before the list of its array is written."""


@dataclass(frozen=True)
class State:
    """How far one participant is.

    Parameters
    ----------
    participant : str
        With ``sub-``.
    state : str
        One of `STATES`.
    images : int
        Results that are there, of all stages.
    of : int
        Results that were asked for.
    reason : str
        Why not more.
    """

    participant: str
    state: str
    images: int
    of: int
    reason: str = ""


def last_settings(output_dir: Path) -> Settings:
    """What the output folder is for: the last command, whether it was submitted or run.

    Participants and sessions are those of the last submission and of the runs since then; without
    a submission all of them, unless every run named the same sessions.

    Raises
    ------
    InputError
        If nothing has run there or was submitted.
    """
    past = [
        run
        for run in runs.past_runs(output_dir)
        if not (run.settings.reports_only or run.settings.boilerplate_only)
    ]
    submitted = _last_submission(output_dir)
    if submitted is None:
        if not past:
            raise InputError(
                f"{output_dir}: no run of the participant level has left its settings in logs. "
                "Give the output folder of one."
            )
        # Runs of a few each, as other submitters start them, are runs of one dataset.
        last, first = past[-1].settings, past[0].settings
        alike = all(set(run.settings.session_label) == set(first.session_label) for run in past)
        sessions = last.session_label if alike else ()
        return replace(last, participant_label=(), session_label=sessions)
    settings, submitted_s = submitted
    # A task may belong to an earlier submission.
    tasks = {f"job {task.name}" for task in runs.tasks(output_dir)}
    later = [run for run in past if run.began_s > submitted_s and run.where not in tasks]
    commands = [settings, *(run.settings for run in later)]
    return replace(
        commands[-1],
        participant_label=_together(one.participant_label for one in commands),
        session_label=_together(one.session_label for one in commands),
    )


def _together(labels: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """What several commands ask for together; one without labels asks for all.

    >>> _together([("2",), ("1", "2")]), _together([("2",), ()])
    (('1', '2'), ())
    """
    labels = list(labels)
    return tuple(sorted(set().union(*labels), key=natural_order)) if all(labels) else ()


def _last_submission(output_dir: Path) -> tuple[Settings, float] | None:
    """Settings of the last submission, and its time by the clock of the file system."""
    found = [
        (path.stat().st_mtime, settings)
        for path in (output_dir / "logs").glob("*/submitted.toml")
        if (settings := runs.read_settings(path))
    ]
    submitted_s, settings = max(found, key=lambda one: one[0], default=(0.0, None))
    return (settings, submitted_s) if settings else None


def states_of(settings: Settings) -> list[State]:
    """State of each participant whom the settings ask for.

    Raises
    ------
    InputError, BundleError, Refused
        As the stages, if nothing can be decided for anyone.
    """
    labels = find_participants(settings.bids_dir, settings.participant_label)
    refused = {label: why for label in labels if (why := label_error(settings.bids_dir, label))}
    # Before the plans: a job that ends while they are made is running or done, not outdated.
    heard = _Heard(settings.output_dir)
    plans, waiting = _plans(settings)
    return [
        State(f"sub-{label}", FAILED, 0, 0, refused[label])
        if label in refused
        else _state(label, plans.get(label), waiting.get(label, {}), heard)
        for label in labels
    ]


def _plans(settings: Settings) -> tuple[dict[str, SubjectPlan], dict[str, dict[str, str]]]:
    """What the stages would do now, and what cannot be planned yet, by participant."""
    from brainseg_bids.stages import PARTICIPANT, passes
    from brainseg_bids.stages.base import Run
    from brainseg_bids.stages.jobs import SubjectPlan, joined

    run = Run(settings)
    run.models  # noqa: B018 - raises if one is not there
    chosen = {stage.name for stage in PARTICIPANT.values() if stage.is_chosen(settings)}
    plans: dict[str, SubjectPlan] = {}
    waiting: dict[str, dict[str, str]] = {}
    for number, together in enumerate(passes(chosen)):
        found = []
        for stage in together:
            try:
                found += stage.plan(run)
            except InputError as error:
                if number == 0:
                    raise
                why = {label: {f"sub-{label} {stage.name}": str(error)} for label in plans}
                found += [SubjectPlan(label, (), errors) for label, errors in why.items()]
        unfinished = {label for label, plan in plans.items() if plan.to_run or plan.errors}
        for plan in found:
            if plan.label in unfinished:  # what a later stage lacks is not there yet
                waiting.setdefault(plan.label, {}).update(plan.errors)
        found = [replace(plan, errors={}) if plan.label in unfinished else plan for plan in found]
        plans = {plan.label: plan for plan in joined([*plans.values(), *found])}
    return plans, waiting


class _Heard:
    """What runs and Slurm have left of participants.

    Parameters
    ----------
    output_dir : Path
    """

    def __init__(self, output_dir: Path) -> None:
        self.output_dir = output_dir
        self.past = runs.past_runs(output_dir)
        self.tasks: dict[str, list[runs.Task]] = {}
        for task in runs.tasks(output_dir):
            for label in task.labels:
                self.tasks.setdefault(label, []).append(task)
        of_slurm = any(task.scheduler == "slurm" for own in self.tasks.values() for task in own)
        of_slurm = of_slurm or any(run.where.startswith("job") for run in self.past)
        self.queue = runs.queue() if of_slurm else None

    def at_work(self, label: str) -> tuple[str, str] | None:
        """State and reason if a task or a run has the participant in hand, or may have it."""
        tasks = self.tasks.get(label, [])
        for task in reversed(tasks):
            if task.scheduler == "slurm" and (said := (self.queue or {}).get(task.name)):
                return (
                    QUEUED if said == "PENDING" else RUNNING
                ), f"job {task.name}: {said.lower()}"
        for run in reversed(self._runs(label)):
            asked = self.queue is not None and run.where.startswith("job")
            # Jobs of other submitters have no list of tasks.
            queued = asked and run.where.removeprefix("job ") in self.queue
            if run.state == runs.AT_WORK or (run.state == runs.UNKNOWN and queued):
                return RUNNING, run.where
            if run.state == runs.UNKNOWN and not asked:
                return UNKNOWN, f"{run.where} has not told its end"
        if tasks and not self._has_begun(tasks[-1], label):
            task, asks = tasks[-1], SCHEDULERS[tasks[-1].scheduler].asks
            return UNKNOWN, (
                f"job {task.name} has not begun; only {asks}, outside of a container, tells "
                f"whether it waits. If it does not, remove {task.listed}"
            )
        return None

    def _has_begun(self, task: runs.Task, label: str) -> bool:
        """Whether a task has begun with a participant, or is gone."""
        if task.scheduler == "slurm" and self.queue is not None:
            return True  # it would be in the queue
        return any(run.began_s > task.submitted_s - SAME_TIME_S for run in self._runs(label))

    def lost(self, label: str) -> str:
        """Why the last run that had the participant in hand says nothing of it, if it was lost."""
        own = self._runs(label)
        if not own or own[-1].state == runs.ENDED:
            return ""
        where = own[-1].where
        words = runs.last_log_line(self.output_dir, where.removeprefix("job "))
        told = words or "killed, or out of time"
        return f"{where} ended before it was done ({told}); log: {own[-1].folder}"

    def _runs(self, label: str) -> list[runs.PastRun]:
        return [run for run in self.past if label in (run.settings.participant_label or (label,))]


def _state(
    label: str, plan: SubjectPlan | None, waiting: Mapping[str, str], heard: _Heard
) -> State:
    from brainseg_bids.stages.jobs import noted_failures

    scans = plan.scans if plan else ()
    missing = plan.to_run if plan else ()
    errors = plan.errors if plan else {}
    counts = (len(scans) - len(missing), len(scans) + len(errors) + len(waiting))

    def state(name: str, reasons: Iterable[str] = ()) -> State:
        return State(f"sub-{label}", name, *counts, "; ".join(dict.fromkeys(reasons)))

    if not scans and not errors:
        return state(NOTHING)
    if not missing and not errors:
        return state(DONE)
    if found := heard.at_work(label):
        return state(found[0], [found[1]])
    noted = noted_failures(label, output_dir=heard.output_dir)
    titles = {*(scan.title for scan in missing), *waiting}
    failed = {**{title: why for title, why in noted.items() if title in titles}, **errors}
    if failed:
        return state(FAILED, (f"{title}: {why}" for title, why in failed.items()))
    if why := heard.lost(label):
        return state(FAILED, [why])
    outdated = missing and all(scan.main.is_file() for scan in missing) and not waiting
    reasons = (f"{scan.title}: {scan.reason}" for scan in missing)
    return state(OUTDATED if outdated else NOT_STARTED, reasons)


def counted(states: Sequence[State]) -> str:
    """How many there are of each state.

    >>> counted([State("sub-1", DONE, 1, 1), State("sub-2", FAILED, 0, 1, "gone")])
    '1 done, 1 failed'
    """
    numbers = {name: sum(one.state == name for one in states) for name in STATES}
    return ", ".join(f"{number} {name}" for name, number in numbers.items() if number)
