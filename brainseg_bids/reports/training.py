# SPDX-License-Identifier: Apache-2.0
"""A page about a training run: what learned from what, how well, how fast, in how much memory."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from markupsafe import Markup

from brainseg_bids import __version__
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.anatomy.plausibility import implausible_model
from brainseg_bids.reports.page import (
    blocks,
    bullets,
    code,
    facts,
    figure,
    fold,
    heading,
    plural,
    pre,
    section,
    text,
    warnings_box,
    write_page,
)
from brainseg_bids.reports.tables import faint, html_table, share_bar, strong, swatch
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
    run_words,
    space_rows,
    speed_facts,
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
from brainseg_bids.units import listed

MEMORY_TOLERANCE_FRAC = 0.1
"""How far the predicted peak may be from the one used."""
FEWEST_LOSSES = 9
"""Points of the loss curve from which on it is judged."""
_LEAST_FALL_FRAC = 0.02
_LOW_DICE = 0.5
_MOST_NAMED = 12
_MOST_OPEN = 60
"""Rows of the table of labels beyond which it is folded away."""


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
    notes = _notes(n_other, n_samples=len(job.samples), n_shown=len(samples))
    with tempfile.TemporaryDirectory() as folder:
        figures = _figures(Path(folder), job, samples)
        return write_page(
            Path(out_html),
            section(
                "summary",
                text(words) if (words := plan_words(job)) else "",
                facts(summary_facts(job)),
                warnings_box(warnings(job), "Look at this before using the model"),
            ),
            section("learning", *_learning(job, figures.get("learning"))),
            _samples(figures.get("samples"), notes),
            section("classes", *_labels(job, figures.get("classes"))),
            section("speed", *_speed(job, figures.get("speed"))),
            section("plan", *_plan(job)),
            title=title,
            name=f"{title}: brainseg training",
            version=__version__,
        )


def _figures(folder: Path, job: Job, samples: Sequence) -> dict[str, Path]:
    """Each picture for which there is something to draw."""
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
    return {name: one(folder / f"{name}.png") for name, one in draw.items()}


def _picture(image: Path, words: str) -> Markup:
    return figure(image, words, caption=f"{words}.")


# -- sections -----------------------------------------------------------------------------


def _learning(job: Job, image: Path | None) -> list[Markup]:
    runs = run_words(job)
    real = {name: dice_text(curve.finite().last) for name, curve in job.log.real().items()}
    words = (
        "Loss of the training pairs, mean Dice of brain structures at each validation, and "
        "learning rate"
    )
    return [
        heading("Learning", level=2, stay=True),
        _picture(image, words) if image else text("Nothing was logged."),
        text(f"Trained in {len(runs)} training runs: {'; '.join(runs)}.", faint=True)
        if runs
        else Markup(),
        facts(real, "Real images, Dice of the brain at the last validation"),
    ]


def _samples(image: Path | None, notes: Sequence[str]) -> Markup:
    said = text(" ".join(notes), faint=True) if notes else Markup()
    if not image:
        return said
    words = (
        "First validation pair: image, truth, what was found in it at several steps, and in red "
        "what is wrong at the last of them"
    )
    return section(
        "samples", heading("A pair as it is learned", level=2), _picture(image, words), said
    )


def _labels(job: Job, image: Path | None) -> list[Markup]:
    rows = class_rows(job.log, job.table)
    if not rows:
        return [heading("Labels", level=2), text("No validation yet.")]
    n_real = sum(bool(dice) for dice in job.log.real_dice().values())
    frame = pd.DataFrame([_label_cells(row) for row in rows], dtype=object)
    frame = frame if n_real else frame.drop(columns="Real images")
    table = html_table(
        frame,
        numbers=("Dice", "Best", "Real images"),
        css={"Structure": "name", "Label": "n faint", "at step": "n faint"},
    )
    summary = "Dice of each label at the last validation, lowest first"
    words = "Dice of each label on the validation pairs, from the first validation to the last"
    return [
        heading("Labels", level=2),
        _picture(image, words) if image else Markup(),
        fold(summary, table, is_open=len(rows) <= _MOST_OPEN),
        text(
            "Over all validation pairs at once. Pairs are synthetic and of the plan's own recipe "
            "spaces: they say whether learning works, not how good the model is on real images. "
            "n/a: no pair has the label."
            + f" Real images: mean over those that were judged by structure ({n_real})."
            * bool(n_real),
            faint=True,
        ),
    ]


def _label_cells(row: Mapping) -> dict[str, object]:
    """A row of the table of labels."""
    value, dice = row["value"], row["dice"]
    if value is None:
        dice = faint(dice)
    elif value == 0:
        dice = strong(dice, far=True)
    return {
        "Structure": swatch(row["color"], row["name"]),
        "Label": row["index"],
        "Dice": dice,
        "": "" if value is None else share_bar(value, low=value < _LOW_DICE),
        "Over time": _spark(row["spark"]),
        "Best": row["best"],
        "at step": row["best_step"],
        "Real images": row["real"],
    }


def _spark(points: str) -> Markup:
    if not points:
        return Markup()
    return Markup(
        '<svg width="90" height="16" viewBox="0 0 90 16" role="img" aria-label="Dice over time">'
        '<polyline points="{}" fill="none" stroke="currentColor" stroke-width="1.4"/></svg>'
    ).format(points)


def _speed(job: Job, image: Path | None) -> list[Markup]:
    speed, memory = speed_facts(job), memory_rows(job.memory)
    words = "Pairs and voxels a second, time lost waiting for data, memory in use"
    tried = (
        "Every plan that was tried, in order. Probed: one real step on the device before "
        "training. Used: the peak while training."
    )
    return [
        heading("Speed and memory", level=2),
        facts(speed),
        text("Medians over the log; waiting is the mean.", faint=True) if speed else Markup(),
        _picture(image, words) if image else text("Neither speed nor memory was logged."),
        facts(memory_facts(job), "Memory"),
        _memory_table(memory) if memory else Markup(),
        text(tried if memory else "No memory plan was found.", faint=True),
    ]


def _memory_table(rows: Sequence[Mapping]) -> Markup:
    numbers = ("Batch × sums", "Predicted (GiB)", "Probed (GiB)", "Used (GiB)")
    frame = pd.DataFrame(rows, dtype=object)
    return html_table(frame, numbers=numbers, css={"Patch": "name", "Why": "why"})


def _plan(job: Job) -> list[Markup]:
    """What was trained from what."""
    said, command = plan_facts(job), str(job.job.get("command") or "")
    spaces = pd.DataFrame(space_rows(job), dtype=object)
    return [
        heading("What was trained from what", level=2),
        facts(said) if said else text("No plan was found."),
        blocks(heading("Command"), pre(command)) if command else Markup(),
        blocks(heading("Recipe spaces"), html_table(spaces, numbers=("Share",)))
        if len(spaces)
        else Markup(),
        *(
            fold(
                f"{words}: {plural(len(names), 'label map')}",
                bullets(Markup("{} {}").format(code(name), faint(size)) for name, size in names),
            )
            for words, names in map_names(job).items()
        ),
        *(fold(bad_step_words(bad), pre(bad_step_json(bad))) for bad in job.bad_steps),
        fold("Plan (JSON)", pre(json.dumps(job.plan, indent=1))) if job.plan else Markup(),
    ]


# -- what to look at ----------------------------------------------------------------------


def warnings(job: Job) -> list[str]:
    """What somebody who uses the model must know first, a line each."""
    log = job.log
    return [
        *(f"Look at this model before you use it: {fault}." for fault in to_review(job)),
        *_unfinished(job),
        *(bad_step_words(bad) for bad in job.bad_steps),
        *_loss_warnings(log),
        *_absent_warnings(job),
        *_dice_warnings(log, job.table),
        *_waiting_warnings(job),
        *_memory_warnings(job),
        *job.errors,
    ]


def to_review(job: Job) -> list[str]:
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
    judged = job.log.classes().values()
    if done and not any(len(curve.finite()) for curve in (job.log[BRAIN], *judged)):
        yield "The network was not validated yet: nothing is known of how good it is."


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
        names = listed(absent, _MOST_NAMED)
        yield f"Not judged at the last validation, since no pair has them: {names}."


def _absent_warnings(job: Job) -> Iterable[str]:
    absent = job.job.get("absent")
    if isinstance(absent, list) and absent:
        names = listed([str(name) for name in absent], _MOST_NAMED)
        yield f"In no map that was learned from, so they are never found: {names}."


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


def _notes(n_other: int, *, n_samples: int, n_shown: int) -> list[str]:
    """About the samples."""
    notes = []
    if n_shown and n_shown < n_samples:
        notes.append(f"{n_shown} of {n_samples} samples are shown.")
    if n_other:
        notes.append(
            f"{n_other} sample{'s' * (n_other != 1)} could not be read or show another pair."
        )
    return notes
