# SPDX-License-Identifier: Apache-2.0
"""Pictures of a training run: curves, every class over time, one pair as it is learned."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import FuncFormatter, MaxNLocator

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.reports.canvas import BLUE, FAINT, FONT, INK, LINE, RED, Canvas, shorten
from brainseg_bids.reports.contrast import label_row
from brainseg_bids.reports.groups import GROUPS, OTHER
from brainseg_bids.reports.plots import axes_on, key, name_axes, no_data
from brainseg_bids.reports.slices import BACKGROUND, MARGIN_PX, WIDTH_PX
from brainseg_bids.reports.training_log import BRAIN, Curve, Sample, TrainingLog
from brainseg_bids.reports.volume_table import anatomical

GREEN, ORANGE = "#81c995", "#fdd663"
REAL_COLORS = (GREEN, ORANGE, "#c58af9", "#78d9ec", RED, "#fcad70")
PLANES = ("Axial", "Coronal", "Sagittal")
LONGEST_WAIT_FRAC = 0.05
"""Share of a step's time that waiting for data may take."""

_DICE = LinearSegmentedColormap.from_list(
    "dice", ["#3b0f1a", "#8c2d2f", "#d1703c", "#f0c75e", "#8fcf8a", "#2f9e8f"]
)
_LEARNING_PX, _SPEED_PX, _PLOT_TOP_PX = 430, 330, 78
_CLASS_ROW_PX, _CLASS_TOP_PX, _GROUP_PX, _NAMES_PX = 19, 66, 12, 290
_FARTHEST = 3
_WRONG = (1.0, 0.25, 0.2)
_MOST_LISTED = 6
"""Real images with a line of their own in the key."""


# -- curves -------------------------------------------------------------------------------


def draw_learning(path: Path, log: TrainingLog, *, total_steps: int | None = None) -> Path:
    """Draw loss, accuracy and learning rate over steps; dashed where training was resumed.

    Parameters
    ----------
    path : Path
        PNG file, written whole or not at all.
    log : TrainingLog
    total_steps : int, optional
        Of the plan: the axes reach to it, but not beyond three times what is done.
    """
    canvas = Canvas(WIDTH_PX, _LEARNING_PX)
    # A run that has just begun would be squeezed into a corner.
    end = max(log.steps_done, min(total_steps or 0, _FARTHEST * log.steps_done), 1)
    note = f"{log.steps_done:,} steps" + (f" of {total_steps:,}" if total_steps else "")
    if log.resumes:
        note += "; dashed: training was resumed"
    canvas.title("Learning", note)
    height = _LEARNING_PX - _PLOT_TOP_PX - 64
    loss, dice, rate = (
        axes_on(canvas, left, _PLOT_TOP_PX + 14, width, height)
        for left, width in ((MARGIN_PX + 34, 540), (MARGIN_PX + 656, 500), (MARGIN_PX + 1244, 290))
    )
    _draw_loss(loss, log["loss"])
    _draw_dice(dice, log)
    _draw_line(rate, log["lr"].finite(), BLUE, title="Learning rate")
    for axes in (loss, dice, rate):
        _over_steps(axes, end, log.resumes)
    return canvas.save(path)


def _draw_loss(axes: Axes, curve: Curve) -> None:
    name_axes(axes, title="Loss of the training pairs", note="line: running mean")
    raw = curve.finite()
    if not len(raw):
        no_data(axes, "no loss was logged")
        return
    axes.plot(raw.steps, raw.values, color=BLUE, linewidth=0.7, alpha=0.6)
    smooth = raw.smoothed()
    axes.plot(smooth.steps, smooth.values, color=BLUE, linewidth=2)
    if len(raw) == 1:
        axes.plot(raw.steps, raw.values, "o", color=BLUE, markersize=5)
    low, high = float(raw.values.min()), float(np.quantile(raw.values, 0.995))
    room = 0.06 * (max(high, smooth.values.max()) - low) or 0.1
    axes.set_ylim(low - room, max(high, float(smooth.values.max())) + room)
    for step in curve.steps[~np.isfinite(curve.values)]:
        axes.axvline(step, color=RED, linewidth=1.4, alpha=0.9)
    _grid(axes)


def _draw_dice(axes: Axes, log: TrainingLog) -> None:
    """Of validation pairs, and of each real image."""
    name_axes(axes, title="Dice, mean of brain structures", note="validation")
    lines = {"synthetic pairs held out": (log[BRAIN].finite(), BLUE)}
    for number, (name, curve) in enumerate(log.real().items()):
        color = REAL_COLORS[number % len(REAL_COLORS)]
        lines[shorten(name, 34)] = (curve.finite(), color)
    lines = {name: line for name, line in lines.items() if len(line[0])}
    if not lines:
        no_data(axes, "no validation yet")
        return
    for curve, color in lines.values():
        axes.plot(curve.steps, curve.values, color=color, linewidth=1.8, marker="o", markersize=3)
    best = max(float(curve.values.max()) for curve, _ in lines.values())
    axes.set_ylim(0, min(1.0, 1.12 * best) or 1.0)
    shown = dict(list(lines.items())[:_MOST_LISTED])
    styles = {name: {"color": color, "linewidth": 2} for name, (_, color) in shown.items()}
    if len(lines) > len(shown):
        styles[f"and {len(lines) - len(shown)} more"] = {"color": FAINT, "linestyle": ""}
    key(axes, styles, loc="lower right")
    _grid(axes)


def draw_speed(path: Path, log: TrainingLog, memory: Mapping | None = None) -> Path:
    """Draw pairs and voxels a second, time lost waiting for data, and memory, over steps.

    Parameters
    ----------
    path : Path
        PNG file, written whole or not at all.
    log : TrainingLog
    memory : mapping, optional
        The memory plan in force: ``predicted_gib``, ``probed_gib`` and ``budget_gib`` are drawn
        as lines.
    """
    canvas = Canvas(WIDTH_PX, _SPEED_PX)
    canvas.title("Speed and memory", "as logged, by step")
    pitch, height = (WIDTH_PX - MARGIN_PX) / 4, _SPEED_PX - _PLOT_TOP_PX - 64
    pairs, voxels, waiting, used = (
        axes_on(canvas, MARGIN_PX + 24 + k * pitch, _PLOT_TOP_PX + 14, pitch - 64, height)
        for k in range(4)
    )
    _draw_line(pairs, log["pairs_per_s"].finite(), BLUE, title="Pairs a second")
    per_s = log["voxels_per_s"].finite()
    millions = Curve(per_s.steps, per_s.values / 1e6)
    _draw_line(voxels, millions, BLUE, title="Million voxels a second")
    lost = log["waiting_frac"].finite()
    percent = Curve(lost.steps, 100 * lost.values)
    _draw_line(waiting, percent, BLUE, title="Waiting for data (% of time)")
    if len(percent):
        _level(waiting, 100 * LONGEST_WAIT_FRAC, RED, f"{100 * LONGEST_WAIT_FRAC:g} %")
    _draw_line(used, log["memory_gib"].finite(), BLUE, title="Memory (GiB)")
    _draw_memory_levels(used, memory or {})
    end = max(log.steps_done, 1)
    for axes in (pairs, voxels, waiting, used):
        _over_steps(axes, end, log.resumes)
    return canvas.save(path)


def _draw_memory_levels(axes: Axes, memory: Mapping) -> None:
    if not axes.lines:
        return
    for name, color in (("predicted", ORANGE), ("probed", GREEN), ("budget", RED)):
        value = memory.get(f"{name}_gib")
        top = axes.get_ylim()[1]
        # A budget that is far away would flatten the curve; the table below the picture has it.
        if isinstance(value, int | float) and not (name == "budget" and value > 2 * top):
            _level(axes, float(value), color, name, below=name == "probed")


def _level(axes: Axes, value: float, color: str, words: str, *, below: bool = False) -> None:
    """A level to compare a curve with; words above it at the right, or below it at the left."""
    axes.axhline(value, color=color, linewidth=1.2, linestyle=":")
    axes.set_ylim(0, max(axes.get_ylim()[1], 1.15 * value))
    axes.annotate(
        words, (0.02 if below else 1, value), xycoords=("axes fraction", "data"),
        xytext=(0, -4) if below else (-3, 3), textcoords="offset points", color=color,
        fontsize=8.5, ha="left" if below else "right", va="top" if below else "bottom", **FONT,
    )  # fmt: skip


def _draw_line(axes: Axes, curve: Curve, color: str, *, title: str) -> None:
    """A curve from zero up."""
    name_axes(axes, title=title)
    if not len(curve):
        no_data(axes, "not logged")
        return
    marker = {"marker": "o", "markersize": 4} if len(curve) < 3 else {}
    axes.plot(curve.steps, curve.values, color=color, linewidth=1.4, **marker)
    axes.set_ylim(0, 1.12 * float(curve.values.max()) or 1.0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    _grid(axes)


def _over_steps(axes: Axes, end: int, resumes: Sequence[int]) -> None:
    """The same axis for all curves, with the steps at which training went on."""
    if not axes.lines and not axes.collections:
        return
    axes.set_xlim(0, 1.01 * end)
    for step in resumes:
        axes.axvline(step, color=FAINT, linewidth=1, linestyle="--", zorder=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: short_step(step)))
    axes.set_xlabel("step", color=FAINT, fontsize=9, labelpad=2, **FONT)


def short_step(step: float) -> str:
    """
    >>> short_step(0), short_step(250), short_step(2500), short_step(20000)
    ('0', '250', '2.5k', '20k')
    """
    return f"{step / 1000:g}k" if step >= 1000 else f"{step:g}"


# -- every class over time ----------------------------------------------------------------


def label_order(names: Sequence[str], table: LabelTable | None) -> list[tuple[str, list[str]]]:
    """Label names by anatomical group, sides of a structure as neighbours.

    What the table does not have stands last, in alphabetical order.

    >>> table = LabelTable.packaged("brainseg")
    >>> label_order(["CSF", "Right-Caudate", "what", "Left-Caudate"], table)
    [('Brain', ['Left-Caudate', 'Right-Caudate']), ('CSF', ['CSF']), ('Other', ['what'])]
    """
    known = [label_row(table[name], 0.0) for name in names if table and name in table]
    groups: dict[str, list[str]] = {}
    for row in anatomical(known):
        groups.setdefault(row["group"], []).append(row["name"])
    unknown = sorted(name for name in names if not table or name not in table)
    if unknown:
        groups.setdefault(OTHER, []).extend(unknown)
    return [(group, groups[group]) for group in GROUPS if group in groups]


def draw_classes(path: Path, log: TrainingLog, table: LabelTable | None) -> Path:
    """Draw validation Dice of every label at every validation, as a table of colours.

    Parameters
    ----------
    path : Path
        PNG file, written whole or not at all.
    log : TrainingLog
    table : LabelTable or None
        For groups and colours.
    """
    classes, last = log.classes(), log.last_dice()
    groups = label_order(list(classes), table)
    steps = sorted({int(step) for curve in classes.values() for step in curve.steps})
    n_rows = len(classes)
    height = n_rows * _CLASS_ROW_PX + _GROUP_PX * len(groups)
    canvas = Canvas(WIDTH_PX, _CLASS_TOP_PX + max(height, 40) + 44)
    canvas.title(
        "Dice of each label at each validation",
        "grey: the pairs and the network have none of it; numbers: last validation",
    )
    _write_scale(canvas)
    top = _CLASS_TOP_PX
    for number, (_, names) in enumerate(groups):
        tall = _CLASS_ROW_PX * len(names)
        left = MARGIN_PX + _NAMES_PX
        axes = axes_on(canvas, left, top, WIDTH_PX - left - 70, tall)
        _draw_cells(axes, [classes[name] for name in names], steps, last=number == len(groups) - 1)
        for row, name in enumerate(names):
            _write_class(canvas, top + (row + 0.5) * _CLASS_ROW_PX, name, last[name], table)
        top += tall + _GROUP_PX
    if not groups:
        no_data(axes_on(canvas, MARGIN_PX, top, WIDTH_PX - 2 * MARGIN_PX, 40), "no validation yet")
    return canvas.save(path)


def _draw_cells(axes: Axes, curves: Sequence[Curve], steps: Sequence[int], *, last: bool) -> None:
    column = {step: k for k, step in enumerate(steps)}
    cells = np.full((len(curves), len(steps)), np.nan)
    for row, curve in enumerate(curves):
        for step, value in zip(curve.steps, curve.values, strict=True):
            cells[row, column[int(step)]] = value
    axes.set_facecolor("#3c4043")
    axes.imshow(cells, cmap=_DICE, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    for spine in axes.spines.values():
        spine.set_visible(False)
    shown = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), 12)).round().astype(int))
    axes.set_yticks([])
    axes.set_xticks(shown if last else [], [short_step(steps[k]) for k in shown] if last else [])
    if last:
        axes.set_xlabel("step", color=FAINT, fontsize=9, labelpad=2, **FONT)


def _write_class(
    canvas: Canvas, y: float, name: str, dice: float, table: LabelTable | None
) -> None:
    """Swatch and name before a row, Dice at the last validation behind it."""
    color = table[name].color if table is not None and name in table else LINE
    canvas.box(MARGIN_PX, y - 6, 18, 12, color)
    canvas.text(MARGIN_PX + 28, y, shorten(name, 34), size_px=13)
    words = "n/a" if math.isnan(dice) else f"{dice:.2f}"
    canvas.text(WIDTH_PX - 58, y, words, size_px=13, color=RED if dice == 0 else INK)


def _write_scale(canvas: Canvas) -> None:
    """Colours of Dice, above the picture at the right."""
    left, width = WIDTH_PX - 400, 300
    axes = axes_on(canvas, left, 16, width, 14)
    axes.imshow(np.linspace(0, 1, 256)[None], cmap=_DICE, aspect="auto")
    axes.set_axis_off()
    canvas.text(left - 8, 23, "Dice 0", ha="right", color=FAINT)
    canvas.text(left + width + 8, 23, "1", color=FAINT)


# -- one pair as it is learned ------------------------------------------------------------


def draw_samples(path: Path, samples: Sequence[Sample], table: LabelTable | None) -> Path:
    """Draw three planes of a pair, its labels, and what was found in it at several steps.

    Columns: image, truth, found at each step, and at the last step what is wrong, in red.

    Parameters
    ----------
    path : Path
        PNG file, written whole or not at all.
    samples : sequence of Sample
        Of one pair, in the order of steps, at least one.
    table : LabelTable or None
        For colours; ranks are places in it.
    """
    last = samples[-1]
    colors = rank_colors(table, max(int(max(s.truth.max(), s.found.max())) for s in samples) + 1)
    names = ["image", "truth", *(f"step {one.steps:,}" for one in samples), "wrong, last step"]
    rows = []
    for plane in range(len(last.image)):
        box = _filled(last, plane)
        # Kept as the network got it: 0..1.
        grey = np.clip(np.nan_to_num(last.image[plane][box]), 0, 1)
        found = [_blend(grey, one.found[plane][box], colors) for one in samples]
        truth = _blend(grey, last.truth[plane][box], colors)
        differs = (last.found[plane][box] != last.truth[plane][box])[..., None]
        wrong = np.where(differs, _WRONG, 0.5 * grey[..., None])
        rows.append([np.repeat(grey[..., None], 3, axis=2), truth, *found, wrong])
    pitch = (WIDTH_PX - MARGIN_PX) / len(names)
    scale = min((pitch - 6) / max(row[0].shape[1] for row in rows), 4.0)
    tall = [max(1, round(scale * row[0].shape[0])) for row in rows]
    canvas = Canvas(WIDTH_PX, 92 + sum(tall) + 8 * len(tall))
    note = "middle planes; colours of the label table"
    canvas.title("One validation pair as it is learned", note)
    for column, name in enumerate(names):
        canvas.text(
            MARGIN_PX + (column + 0.5) * pitch, 76, name, ha="center", size_px=14, weight="bold"
        )
    _place(canvas, rows, tall, pitch=pitch, scale=scale)
    return canvas.save(path)


def _place(canvas: Canvas, rows, tall: Sequence[int], *, pitch: float, scale: float) -> None:
    """Tiles in rows and columns, each in the middle of its place, as one picture."""
    pixels = np.full((sum(tall) + 8 * len(tall), WIDTH_PX, 3), BACKGROUND, dtype=np.uint8)
    top = 0
    for number, (row, height) in enumerate(zip(rows, tall, strict=True)):
        for column, tile in enumerate(row):
            shown = _resized(tile, height, max(1, round(scale * tile.shape[1])))
            left = round(MARGIN_PX + (column + 0.5) * pitch - shown.shape[1] / 2)
            pixels[top : top + height, left : left + shown.shape[1]] = shown
        name = PLANES[number] if number < len(PLANES) else ""
        canvas.text(22, 92 + top + height / 2, name, rotation=90, ha="center", weight="bold")
        top += height + 8
    canvas.image(pixels, 92)


def rank_colors(table: LabelTable | None, n: int) -> np.ndarray:
    """Colours by rank, (n, 3) in 0..1; grey steps for ranks that no table names.

    >>> rank_colors(LabelTable.packaged("brainseg"), 2).round(2).tolist()
    [[0.0, 0.0, 0.0], [0.96, 0.96, 0.96]]
    """
    labels = list(table) if table is not None else []
    hues = [(0.35 + 0.5 * (rank * 0.37 % 1),) * 3 for rank in range(n)]
    own = [labels[rank].rgb if rank < len(labels) else hues[rank] for rank in range(n)]
    return np.array(own, dtype=float)


def _filled(sample: Sample, plane: int) -> tuple[slice, slice]:
    """Where a plane is not padding; planes of unlike sizes are padded with zeros to one."""
    inside = (sample.image[plane] != 0) | (sample.truth[plane] != 0)
    if not inside.any():
        return slice(None), slice(None)
    ends = [np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0)]
    return tuple(slice(int(found[0]), int(found[-1]) + 1) for found in ends)


def _blend(grey: np.ndarray, ranks: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Labels over the image; rank 0 is left open."""
    share = np.where(ranks > 0, 0.75, 0.0)[..., None]
    return (1 - share) * grey[..., None] + share * colors[ranks]


def _resized(tile: np.ndarray, height: int, width: int) -> np.ndarray:
    """Nearest voxel, (height, width, 3) uint8."""
    rows = (np.arange(height) + 0.5) * tile.shape[0] / height
    columns = (np.arange(width) + 0.5) * tile.shape[1] / width
    return np.rint(255 * tile[rows.astype(int)][:, columns.astype(int)]).astype(np.uint8)


# -- marks --------------------------------------------------------------------------------


def spark_points(curve: Curve, end: int) -> str:
    """Points of an SVG polyline of a curve within 0..1, 90 by 16; empty with fewer than two.

    >>> spark_points(Curve(np.array([50, 100]), np.array([0.0, 1.0])), 100)
    '45.0,15.0 90.0,1.0'
    """
    curve = curve.finite()
    if len(curve) < 2:
        return ""
    x = curve.steps * 90 / max(end, 1)
    y = 1 + (1 - np.clip(curve.values, 0, 1)) * 14
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))


def _grid(axes: Axes) -> None:
    axes.grid(color=LINE, alpha=0.3, linewidth=0.7)
    axes.set_axisbelow(True)
