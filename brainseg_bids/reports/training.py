# SPDX-License-Identifier: Apache-2.0
"""A page about a training run: what learned from what, how well, how fast, in how much memory."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from brainseg_bids import __version__
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.anatomy.plausibility import implausible_model
from brainseg_bids.reports.page import embedded, render_page
from brainseg_bids.reports.training_facts import (
    bad_step_json,
    bad_step_words,
    class_rows,
    dice_text,
    map_names,
    memory_facts,
    memory_in_force,
    memory_rows,
    plan_facts,
    plan_words,
    predicted_and_used,
    space_rows,
    speed_facts,
    stretch_words,
    summary_facts,
    waiting_share,
)
from brainseg_bids.reports.training_figures import (
    LONGEST_WAIT_FRAC,
    draw_classes,
    draw_learning,
    draw_samples,
    draw_speed,
)
from brainseg_bids.reports.training_log import (
    BRAIN,
    Curve,
    Job,
    TrainingLog,
    read_job,
    read_samples,
)

MEMORY_TOLERANCE_FRAC = 0.1
"""How far the predicted peak may be from the one used."""
FEWEST_LOSSES = 9
"""Points of the loss curve from which on it is judged."""
_LEAST_FALL_FRAC = 0.02
_LOW_DICE = 0.5
_MOST_NAMED = 12


def write_training_page(job_dir: Path, out_html: Path, *, title: str) -> Path:
    """Write a training run as one self-contained HTML file, whole or not at all.

    Works on a job in any state: not yet validated, stopped half-way, resumed many times, with
    columns or files missing or damaged. What is not there is said on the page.

    Parameters
    ----------
    job_dir : Path
        Folder ``model-NAME`` with ``training`` and, once it is made, ``bundle``.
    out_html : Path
    title : str

    Raises
    ------
    ValueError
        If ``job_dir`` is no folder of a training job.
    """
    job = read_job(Path(job_dir))
    samples, n_other = read_samples(job.samples)
    with tempfile.TemporaryDirectory() as folder:
        figures = _figures(Path(folder), job, samples)
    return render_page(
        Path(out_html),
        "training.html.j2",
        title=title,
        version=__version__,
        summary=summary_facts(job),
        warnings=warnings(job),
        notes=_notes(job, n_other, n_samples=len(job.samples), n_shown=len(samples)),
        words=plan_words(job),
        facts=plan_facts(job),
        spaces=space_rows(job),
        maps=map_names(job),
        command=str(job.job.get("command") or ""),
        figures=figures,
        classes=class_rows(job.log, job.table),
        low=_LOW_DICE,
        n_judged_real=sum(bool(dice) for dice in job.log.real_dice().values()),
        real={name: dice_text(curve.finite().last) for name, curve in job.log.real().items()},
        speed=speed_facts(job),
        memory_facts=memory_facts(job),
        memory=memory_rows(job.memory),
        stretches=stretch_words(job),
        bad_steps=[(bad_step_words(bad), bad_step_json(bad)) for bad in job.bad_steps],
        plan_json=json.dumps(job.plan, indent=1) if job.plan else "",
    )


def _figures(folder: Path, job: Job, samples: Sequence) -> dict[str, str | None]:
    """Data URI of each picture; None where there is nothing to draw."""
    log = job.log
    draw: dict[str, Callable[[Path], Path]] = {}
    if len(log["loss"]) or len(log[BRAIN]):
        draw["learning"] = lambda path: draw_learning(path, log, total_steps=job.total_steps)
    if log.classes():
        draw["classes"] = lambda path: draw_classes(path, log, job.table)
    if samples:
        draw["samples"] = lambda path: draw_samples(path, samples, job.table)
    speed = ("pairs_per_s", "voxels_per_s", "waiting_frac", "memory_gib")
    if any(len(log[name].finite()) for name in speed):
        draw["speed"] = lambda path: draw_speed(path, log, memory_in_force(job.memory))
    found: dict[str, str | None] = dict.fromkeys(("learning", "classes", "samples", "speed"))
    return found | {name: embedded(one(folder / f"{name}.png")) for name, one in draw.items()}


# -- what to look at ----------------------------------------------------------------------


def warnings(job: Job) -> list[str]:
    """What somebody who uses the model must know first, a line each."""
    log = job.log
    return [
        *(f"Look at this model before you use it: {fault}." for fault in to_look_at(job)),
        *_unfinished(job),
        *(bad_step_words(bad) for bad in job.bad_steps),
        *_loss_warnings(log),
        *_absent_warnings(job),
        *_dice_warnings(log, job.table),
        *_waiting_warnings(job),
        *_memory_warnings(job),
        *job.faults,
    ]


def to_look_at(job: Job) -> list[str]:
    """What cannot be right about a model, see `plausibility.implausible_model`.

    Of one that is not finished, nobody expects that it has learned enough.
    """
    maps = job.job.get("heads")
    return implausible_model(
        job.log[BRAIN].finite().last if job.finished else None,
        len(maps) if isinstance(maps, list) else None,
    )


def _unfinished(job: Job) -> Iterable[str]:
    done, total = job.log.steps_done, job.total_steps
    if not done:
        yield "No step was logged: training has not begun, or was stopped before its first line."
    elif not job.finished and total:
        yield (
            f"Training is not finished: {done:,} of {total:,} steps. "
            "The same command again goes on from the last checkpoint."
        )
    if done and not any(len(curve.finite()) for curve in (job.log[BRAIN], *_classes(job.log))):
        yield "The network was not validated yet: nothing is known of how good it is."


def _classes(log: TrainingLog) -> list[Curve]:
    return list(log.classes().values())


def _loss_warnings(log: TrainingLog) -> Iterable[str]:
    loss = log["loss"]
    broken = loss.steps[~np.isfinite(loss.values)]
    if len(broken):
        yield f"The loss was not finite at {len(broken)} logged steps, first at {broken[0]:,}."
    if not loss_falls(loss):
        yield (
            "The loss does not fall: its median over the last third of the log is not below that "
            "of the first. Look at the learning rate, and whether images and labels fit together."
        )


def loss_falls(loss: Curve) -> bool:
    """Whether the last third of a curve lies below the first; true of too few points to tell.

    >>> steps = np.arange(1, 13)
    >>> loss_falls(Curve(steps, 1 / steps)), loss_falls(Curve(steps, np.ones(12)))
    (True, False)
    """
    values = loss.finite().values
    if len(values) < FEWEST_LOSSES:
        return True
    third = len(values) // 3
    first, last = float(np.median(values[:third])), float(np.median(values[-third:]))
    return last < first - _LEAST_FALL_FRAC * abs(first)


def _dice_warnings(log: TrainingLog, table: LabelTable | None) -> Iterable[str]:
    dice = log.last_dice()
    if not dice:
        return
    missed = sorted(name for name, value in dice.items() if value == 0)
    if missed:
        yield f"Dice is 0 at the last validation: {', '.join(missed)}. These are never found."
    known = [label.name for label in table if label.index] if table is not None else []
    absent = sorted(name for name in {*dice, *known} if math.isnan(dice.get(name, math.nan)))
    if absent:
        yield f"Not judged at the last validation, since no pair has them: {_named(absent)}."


def _absent_warnings(job: Job) -> Iterable[str]:
    absent = job.job.get("absent")
    if isinstance(absent, list) and absent:
        yield f"In no map that was learned from, so they are never found: {_named(absent)}."


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(map(str, names[:_MOST_NAMED])) + more


def _waiting_warnings(job: Job) -> Iterable[str]:
    share = waiting_share(job.log)
    if share is not None and share > LONGEST_WAIT_FRAC:
        on_cpu = memory_in_force(job.memory).get("device") == "cpu"
        yield (
            f"{100 * share:.0f} % of the time was lost waiting for data (goal: at most "
            f"{100 * LONGEST_WAIT_FRAC:g} %)."
            + (" On a CPU this is the time that it takes to make pairs." if on_cpu else "")
        )


def _memory_warnings(job: Job) -> Iterable[str]:
    predicted, used = predicted_and_used(job)
    if predicted is None or used is None or used <= 0:
        return
    off = predicted / used - 1
    if abs(off) > MEMORY_TOLERANCE_FRAC:
        which = "more" if off > 0 else "less"
        yield (
            f"Memory was predicted {100 * abs(off):.0f} % {which} than was used "
            f"({predicted:.2f} and {used:.2f} GiB; goal: {100 * MEMORY_TOLERANCE_FRAC:g} %)."
        )


def _notes(job: Job, n_other: int, *, n_samples: int, n_shown: int) -> list[str]:
    """About the samples."""
    notes = []
    if n_shown and n_shown < n_samples:
        notes.append(f"{n_shown} of {n_samples} samples are shown.")
    if n_other:
        notes.append(
            f"{n_other} sample{'s' * (n_other != 1)} could not be read or show another pair."
        )
    return notes
