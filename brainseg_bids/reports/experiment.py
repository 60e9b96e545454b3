# SPDX-License-Identifier: Apache-2.0
"""Words, tables and a picture of the prior-weight experiment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from brainseg_bids.evaluation.decision import FEWEST_SEEDS, Decision
from brainseg_bids.reports.canvas import BLUE, FAINT, FONT, INK, LINE, RED, Canvas
from brainseg_bids.reports.page import plural
from brainseg_bids.reports.plots import axes_on, name_axes
from brainseg_bids.reports.tables import markdown_table
from brainseg_bids.training.experiment import (
    BASELINE,
    OFF,
    ON,
    REAL,
    WHERE,
    Estimate,
    ExperimentPlan,
    Findings,
)

COLORS = {ON: BLUE, OFF: RED, REAL: "#81c995"}
SHIFT = 0.018
"""Of kappa, between the columns of two kinds of images."""
BAR_ALPHA = 0.55

_WIDTH_PX, _HEIGHT_PX = 1100, 520


def draw_experiment(path: Path, plan: ExperimentPlan, findings: Findings) -> Path:
    """Accuracy against the prior weight, and paired differences to the baseline, with intervals.

    Points are seeds, lines join means, bars are intervals over seeds.

    Parameters
    ----------
    path : Path
        PNG file, written whole or not at all.
    """
    canvas = Canvas(_WIDTH_PX, _HEIGHT_PX)
    title = f"Prior weight: contrast {plan.contrast}"
    if findings.thesis:
        title += f". By the rule: {findings.thesis.verdict}"
    canvas.text(30, 26, title, size_px=17, weight="bold")
    counts = sorted({len(one.values) for one in findings.accuracy})
    seeds = " to ".join(plural(n, "seed") for n in counts[:1] + counts[1:][-1:])
    words = f"{seeds}, {plan.steps} steps each. "
    canvas.text(30, 52, words + _bars(findings.accuracy, plan), color=FAINT)
    shown = [where for where in WHERE if any(one.where == where for one in findings.accuracy)]
    for number, where in enumerate(shown):
        canvas.box(30 + number * 270, 74, 14, 14, COLORS[where])
        canvas.text(52 + number * 270, 81, WHERE[where])
    for left, estimates, title, y in (
        (90, findings.accuracy, "Accuracy", "mean Dice of the brain's structures"),
        (640, findings.differences, f"Difference to kappa {BASELINE:g}", "of mean Dice, by seed"),
    ):
        axes = axes_on(canvas, left, 135, 420, 310)
        name_axes(axes, title=title, x="kappa (0: any contrast, 1: as measured)", y=y)
        for rank, where in enumerate(shown):
            shift = (rank - (len(shown) - 1) / 2) * SHIFT
            _draw_line(axes, _overall(estimates, where), COLORS[where], shift)
        axes.set_xticks(plan.kappas, [f"{kappa:g}" for kappa in plan.kappas])
        axes.set_xlim(-0.08, max(plan.kappas) + 0.08)
    axes.axhline(0, color=LINE, linewidth=1, zorder=0)
    axes.axhspan(-plan.margin, plan.margin, color=LINE, alpha=0.35, zorder=0, linewidth=0)
    axes.text(
        0.01, 0.02, f"band: differences within the margin of {plan.margin:g}",
        transform=axes.transAxes, color=FAINT, fontsize=9, **FONT,
    )  # fmt: skip
    return canvas.save(path)


def _bars(estimates: Sequence[Estimate], plan: ExperimentPlan) -> str:
    if all(one.low is None for one in estimates):
        return "One seed shows no interval."
    few = " Fewer than 5 seeds: likely too narrow." if any(one.note for one in estimates) else ""
    return f"Points are seeds, bars {100 * plan.bootstrap.level:g} % bootstrap intervals.{few}"


def _overall(estimates: Sequence[Estimate], where: str) -> list[Estimate]:
    """Of one kind of images: the mean over its spaces, or its only space."""
    own = [one for one in estimates if one.where == where]
    mean = [one for one in own if one.space == "all"]
    return sorted(mean or own, key=lambda one: one.kappa)


def _draw_line(axes: Axes, estimates: Sequence[Estimate], color: str, shift: float) -> None:
    at = np.array([one.kappa for one in estimates]) + shift
    axes.plot(at, [one.mean for one in estimates], color=color, linewidth=1.6, marker="o", ms=6)
    for x, one in zip(at, estimates, strict=True):
        values = list(one.values.values())
        axes.plot([x] * len(values), values, ".", color=INK, markersize=4, alpha=0.7, zorder=3)
        if one.low is not None and one.high is not None:
            axes.plot([x, x], [one.low, one.high], color=color, linewidth=3, alpha=BAR_ALPHA)


def experiment_page(plan: ExperimentPlan, findings: Findings, *, figure: str | None) -> str:
    """The report in Markdown; ``figure`` is the picture's file name."""
    parts = [
        f"# Prior weight: contrast {plan.contrast}",
        f"Planned {plan.planned} with brainseg-bids {plan.version}, before anything was run; "
        f"plan {plan.digest[:12]}. {len(plan.runs)} runs: kappa "
        f"{', '.join(f'{kappa:g}' for kappa in plan.kappas)}; seeds "
        f"{', '.join(map(str, plan.seeds))}; {plan.steps} steps each. Label maps to learn from: "
        f"{len(plan.maps)}; held out: {len(plan.validation)}; pairs of each of these and recipe "
        f"space: {plan.pairs_per_map}; real images: {len(plan.images)}.",
        "## What it shows",
        *verdict(plan, findings),
        "## The rule, as planned",
        plan.rule,
        "## Accuracy",
        "Mean Dice of the brain's structures that the reference has, with a "
        f"{plan.bootstrap.description} over seeds.",
        _table(findings.accuracy, signed=False),
        f"## Differences to kappa {BASELINE:g}, seed by seed",
        "One interval each; they are not corrected for how many there are.",
        _table(findings.differences, signed=True),
    ]
    if figure:
        parts.append(f"![Accuracy and differences against the prior weight]({figure})")
    return "\n\n".join(parts) + "\n"


def verdict(plan: ExperimentPlan, findings: Findings) -> list[str]:
    """What may be said, a paragraph each; nothing before all runs are finished."""
    if findings.missing or findings.thesis is None:
        names = [run.name for run in findings.missing]
        return [
            f"**Nothing yet: {len(names)} of {len(plan.runs)} runs are not finished** "
            f"({', '.join(names[:4])}{', ...' if len(names) > 4 else ''}). Judging early would be "
            "choosing when to stop."
        ]
    said = [
        f"Thesis: {plan.thesis} **By the rule: {findings.thesis.verdict}.** "
        + _numbers(findings.thesis, WHERE[plan.judged_where])
    ]
    if findings.without_loss is not None:
        said.append(
            f"With other contrasts counted in: {findings.without_loss.verdict} "
            f"({findings.without_loss.reason}). {_off_numbers(findings.without_loss)}"
        )
    n = len(plan.seeds)
    if n == 1:
        said.append(
            "With one seed there are no intervals: chance and the prior weight look alike."
        )
    elif n < FEWEST_SEEDS:
        said.append(
            f"{n} seeds are too few: the rule calls nothing better or worse with fewer than "
            f"{FEWEST_SEEDS}. That no difference is shown does not mean that there is none."
        )
    if plan.judged_where == ON:
        said.append(
            "No real images were given. Pairs of the contrast are drawn from the very prior that "
            "the runs nearest to it learned from, which favours them: this shows what training "
            "for a contrast gains if the prior is right, not whether it is."
        )
    seen = sum(image.seen for image in plan.images)
    if seen:
        said.append(
            f"The prior was measured in {seen} of the {len(plan.images)} real images, which "
            "favours the runs nearest to it."
        )
    return said


def _numbers(decision: Decision, where: str) -> str:
    ends = _ends(decision.on_low, decision.on_high)
    return (
        f"Mean paired difference on {where}: {decision.on_mean:+.4f} ({ends}; "
        f"{plural(decision.n_seeds, 'seed')}, margin {decision.margin:g})."
    )


def _off_numbers(decision: Decision) -> str:
    ends = _ends(decision.off_low, decision.off_high)
    return f"Mean paired difference on {WHERE[OFF]}: {decision.off_mean:+.4f} ({ends})."


def _ends(low: float | None, high: float | None) -> str:
    return "no interval" if low is None or high is None else f"{low:+.4f} to {high:+.4f}"


def _table(estimates: Sequence[Estimate], *, signed: bool) -> str:
    if not estimates:
        return "None yet."
    columns = list(dict.fromkeys((one.where, one.space) for one in estimates))
    found = {(one.kappa, one.where, one.space): one for one in estimates}
    names = [where if space == where else f"{where}: {space}" for where, space in columns]
    rows = [
        [f"{kappa:g}", *(_cell(found.get((kappa, *c)), signed=signed) for c in columns)]
        for kappa in sorted({one.kappa for one in estimates})
    ]
    notes = sorted({one.note for one in estimates if one.note})
    text = markdown_table(["kappa", *names], rows)
    return f"{text}\n\n{'; '.join(notes)}." if notes else text


def _cell(one: Estimate | None, *, signed: bool) -> str:
    if one is None:
        return "n/a"
    form = "+.4f" if signed else ".4f"
    ends = "" if one.low is None else f" ({one.low:{form}} to {one.high:{form}})"
    return f"{one.mean:{form}}{ends}, n = {len(one.values)}"
