# SPDX-License-Identifier: Apache-2.0
"""Plots of an evaluation: every subject a dot, boxes by rater, volumes after Bland and Altman."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from brainseg_bids.evaluation.bland_altman import BlandAltman
from brainseg_bids.evaluation.bootstrap import subject_means
from brainseg_bids.evaluation.scores import ALL, Scores, metric
from brainseg_bids.reports.canvas import FAINT, FONT, INK, LINE, Canvas
from brainseg_bids.reports.plots import axes_on, name_axes, no_data
from brainseg_bids.reports.slices import MARGIN_PX, WIDTH_PX

RATER_COLORS = (
    "#8ab4f8", "#e58a54", "#7fd38b", "#d6a3f5", "#f2d06b", "#6fd6d6", "#f28b82", "#c3c8cf",
)  # fmt: skip
"""In the order of raters; a ninth begins again."""
MARKERS = "o^sDvP*X"
"""Of strata, in alphabetical order."""
MOST_STRUCTURES = 48
"""More than these are left out of a plot, with a word."""
FEWEST_FOR_BOX = 5
"""Fewer subjects are dots and a median: quartiles of them say nothing."""

_HEAD_PX, _NAMES_PX = 104, 250
_ROW_PX, _LINE_PX, _BLOCK_PX = 26, 15, 12
_PITCH_PX, _PLOT_PX = 262, 184
_LONG = 12  # structures: beyond it the axis is written above too
_FAR = 4.0  # times the interquartile range of all values
_WHISKER = 1.5  # times the interquartile range (Tukey)


def rater_colors(raters: Sequence[str]) -> dict[str, str]:
    """A colour for each rater, the same on every plot of a page.

    >>> rater_colors(["ours", "theirs"])
    {'ours': '#8ab4f8', 'theirs': '#e58a54'}
    """
    return {rater: RATER_COLORS[k % len(RATER_COLORS)] for k, rater in enumerate(raters)}


def metric_title(name: str) -> str:
    """A column of the rows for the eye.

    >>> metric_title("assd_mm"), metric_title("nsd_0.6mm"), metric_title("|volume_error_frac|")
    ('ASSD (mm)', 'NSD at 0.6 mm', '|volume error|')
    """
    bare = name.strip("|")
    known = {
        "dice": "Dice",
        "iou": "IoU",
        "assd_mm": "ASSD (mm)",
        "hd95_mm": "HD95 (mm)",
        "hd100_mm": "HD100 (mm)",
        "volume_error_frac": "volume error",
        "volume_error_mm3": "volume error (mm³)",
        "reference_to_prediction_mm": "reference to prediction (mm)",
        "prediction_to_reference_mm": "prediction to reference (mm)",
    }
    if bare.startswith("nsd_"):
        found = f"NSD at {bare.removeprefix('nsd_').removesuffix('mm')} mm"
    else:
        found = known.get(bare, bare)
    return f"|{found}|" if bare != name else found


def subject_values(
    scores: Scores, rater: str, names: Sequence[str], column: str
) -> dict[str, float]:
    """Mean over structures in each image, then over a subject's images; by subject.

    What is left out of the metric (see `brainseg_bids.evaluation.scores.metric`) is left out.
    """
    if rater not in scores.raters or not names:
        return {}
    cells = scores.values(metric(column))[scores.raters.index(rater)][:, scores.places(names)]
    kept = np.isfinite(cells).any(axis=1)
    subjects = [s for s, keep in zip(scores.subjects, kept, strict=True) if keep]
    if not subjects:
        return {}
    means = subject_means(np.nanmean(cells[kept], axis=1), subjects)
    return dict(zip(sorted(set(subjects)), means.tolist(), strict=True))


# -- means over structures ----------------------------------------------------------------


def draw_headline(
    path: Path,
    scores: Scores,
    names: Sequence[str],
    metrics: Sequence[str],
    raters: Sequence[str],
) -> Path:
    """Draw the mean over structures: a box and a dot per subject for each rater and stratum.

    Parameters
    ----------
    path : Path
        PNG file, written whole or not at all.
    scores : Scores
        Of one reference.
    names : sequence of str
        Structures that the mean is of.
    metrics : sequence of str
        A panel each, at most five.
    raters : sequence of str
        From above; one subject's dots are joined from rater to rater.
    """
    metrics = list(metrics)[:5]
    strata = scores.by_stratum()
    block_px = _ROW_PX * len(raters) + 46
    canvas = Canvas(WIDTH_PX, _HEAD_PX + block_px * len(strata) + 6)
    _write_title(
        canvas,
        f"Mean of {len(names)} structure{'s' * (len(names) != 1)}, by rater",
        "dots: subjects, joined from rater to rater; boxes: quartiles and median "
        f"({FEWEST_FOR_BOX} subjects or more); whiskers: {_WHISKER:g} times the box; "
        "arrows: far beyond the axis",
    )
    left = MARGIN_PX + 130
    pitch = (WIDTH_PX - left - 10) / len(metrics)
    for column, name in enumerate(metrics):
        found = [
            {rater: subject_values(part, rater, names, name) for rater in raters}
            for _, part in strata
        ]
        limits = _limits([v for block in found for own in block.values() for v in own.values()])
        for row, (stratum, _) in enumerate(strata):
            top = _HEAD_PX + row * block_px
            axes = axes_on(canvas, left + column * pitch, top, pitch - 44, _ROW_PX * len(raters))
            name_axes(axes, title=metric_title(name) if not row else "")
            _draw_rows(axes, found[row], limits, named=not column)
            if len(strata) > 1 and not column:
                words = "all images" if stratum == ALL else stratum
                canvas.text(MARGIN_PX - 20, top - 12, words[:18], color=FAINT, weight="bold")
    return canvas.save(path)


def _draw_rows(
    axes: Axes, found: Mapping[str, Mapping[str, float]], limits: tuple, *, named: bool
) -> None:
    """A row of dots and a box for each rater."""
    colors = rater_colors(list(found))
    axes.set(xlim=limits, ylim=(len(found) - 0.5, -0.5))
    axes.set_yticks(range(len(found)), _short(found, 20) if named else [""] * len(found), **FONT)
    axes.tick_params(axis="y", length=0)
    _grid(axes)
    own = list(found.values())
    for row, (upper, lower) in enumerate(pairwise(own)):
        for who in upper.keys() & lower.keys():
            axes.plot(
                [upper[who], lower[who]], [row, row + 1], color=FAINT, linewidth=0.6, alpha=0.5
            )
    for row, (rater, values) in enumerate(found.items()):
        _draw_box(axes, row, list(values.values()), colors[rater], height=0.5)
        _draw_dots(axes, row, list(values.values()), colors[rater], "o", height=0.0)


# -- structures ---------------------------------------------------------------------------


def draw_structures(
    path: Path,
    scores: Scores,
    names: Sequence[str],
    metrics: Sequence[str],
    raters: Sequence[str],
    swatches: Mapping[str, str],
) -> Path:
    """Draw each structure: a box and a dot per subject for each rater, strata by their markers.

    Parameters
    ----------
    path, scores, raters
        As in `draw_headline`.
    names : sequence of str
        From above; of more than `MOST_STRUCTURES` the last are left out, with a word.
    metrics : sequence of str
        A panel each, at most three.
    swatches : mapping of str to str
        ``#rrggbb`` of each structure.
    """
    shown, metrics = list(names)[:MOST_STRUCTURES], list(metrics)[:3]
    block_px = _LINE_PX * len(raters) + _BLOCK_PX
    height = block_px * max(len(shown), 1)
    canvas = Canvas(WIDTH_PX, _HEAD_PX + height + 40)
    more = len(names) - len(shown)
    _write_title(
        canvas,
        "Structures, by rater",
        "dots: subjects; boxes: quartiles and median; arrows: far beyond the axis"
        + (f"; {more} more structures are in the table" if more else ""),
    )
    _write_key(canvas, raters, sorted(set(scores.strata) - {""}))
    left = MARGIN_PX + _NAMES_PX
    pitch = (WIDTH_PX - left - 10) / len(metrics)
    for column, name in enumerate(metrics):
        axes = axes_on(canvas, left + column * pitch, _HEAD_PX, pitch - 34, height)
        far_px = 34 if len(shown) > _LONG else 14
        canvas.text(left + column * pitch, _HEAD_PX - far_px, metric_title(name), weight="bold")
        axes.tick_params(axis="x", labeltop=len(shown) > _LONG)
        _draw_blocks(axes, scores, shown, name, raters)
    for row, name in enumerate(shown):
        y = _HEAD_PX + (row + 0.5) * block_px
        canvas.box(MARGIN_PX - 20, y - 7, 18, 14, swatches.get(name, FAINT))
        canvas.text(MARGIN_PX + 8, y, name if len(name) <= 32 else name[:31] + "…")
    return canvas.save(path)


def _draw_blocks(
    axes: Axes, scores: Scores, names: Sequence[str], column: str, raters: Sequence[str]
) -> None:
    """All structures in one metric; a block each."""
    colors = rater_colors(raters)
    step = 1 / (len(raters) + _BLOCK_PX / _LINE_PX)
    strata = sorted(set(scores.strata) - {""})
    parts = [scores.of_stratum(stratum) for stratum in strata] or [scores]
    everything = [
        value
        for rater in raters
        for name in names
        for value in subject_values(scores, rater, [name], column).values()
    ]
    axes.set(xlim=_limits(everything), ylim=(max(len(names), 1), 0), yticks=[])
    for row, name in enumerate(names):
        if row % 2:
            axes.axhspan(row, row + 1, color=LINE, alpha=0.16, linewidth=0)
        for k, rater in enumerate(raters):
            y = row + step * (k + 0.5) + (1 - step * len(raters)) / 2
            values = list(subject_values(scores, rater, [name], column).values())
            _draw_box(axes, y, values, colors[rater], height=0.62 * step)
            for part, marker in zip(parts, _cycle(MARKERS), strict=False):
                own = list(subject_values(part, rater, [name], column).values())
                _draw_dots(axes, y, own, colors[rater], marker, height=0.4 * step)
    _grid(axes)
    if not everything:
        no_data(axes, "no numbers")


def _write_key(canvas: Canvas, raters: Sequence[str], strata: Sequence[str]) -> None:
    """Colours of raters and markers of strata, above the plots at the right."""
    entries = [(rater, {"marker": "s", "color": color}) for rater, color in
               rater_colors(raters).items()]  # fmt: skip
    entries += [
        (stratum, {"marker": marker, "color": INK})
        for stratum, marker in zip(strata, _cycle(MARKERS), strict=False)
    ]
    axes = axes_on(canvas, WIDTH_PX - 1000, 10, 990, 50)
    axes.set_axis_off()
    lines = [axes.plot([], [], linestyle="", **style)[0] for _, style in entries]
    legend = axes.legend(
        lines, _short([name for name, _ in entries], 24), frameon=False, labelcolor=INK,
        prop={"size": 9.5, "family": FONT["family"]}, loc="upper right",
        ncols=-(-len(entries) // 2) if len(entries) > 5 else len(entries),
        columnspacing=1.2, handletextpad=0.2, borderaxespad=0,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)


# -- volumes ------------------------------------------------------------------------------


def draw_bland_altman(path: Path, found: Sequence[BlandAltman], raters: Sequence[str]) -> Path:
    """Draw differences of volumes over their means, structure by structure.

    Parameters
    ----------
    path : Path
        PNG file, written whole or not at all.
    found : sequence of BlandAltman
        Of one reference, stratum and unit; a panel for each structure, in their order.
    raters : sequence of str
    """
    by_name: dict[str, list[BlandAltman]] = {}
    for one in found:
        if one.points:
            by_name.setdefault(one.name, []).append(one)
    shown = list(by_name)[:MOST_STRUCTURES]
    rows = max(1, -(-len(shown) // 4))
    canvas = Canvas(WIDTH_PX, _HEAD_PX + rows * _PITCH_PX)
    more = len(by_name) - len(shown)
    _write_title(
        canvas,
        "Volumes: predicted less reference",
        "per cent of their mean, over their mean in ml; lines: bias; dashed: 95 % limits"
        + (f"; {more} more structures are in the table" if more else ""),
    )
    _write_key(canvas, raters, [])
    colors = rater_colors(raters)
    pitch = (WIDTH_PX - MARGIN_PX) / 4
    for number, name in enumerate(shown or [""]):
        left, top = MARGIN_PX + number % 4 * pitch + 24, _HEAD_PX + number // 4 * _PITCH_PX
        axes = axes_on(canvas, left, top, pitch - 62, _PLOT_PX)
        if name:
            _draw_volumes(axes, by_name[name], colors)
        else:
            no_data(axes, "no structure is in both maps")
    return canvas.save(path)


def _draw_volumes(axes: Axes, found: Sequence[BlandAltman], colors: Mapping[str, str]) -> None:
    """One structure, all raters."""
    name = found[0].name
    name_axes(axes, title=name if len(name) <= 34 else name[:33] + "…", x="mean of both (ml)")
    axes.axhline(0, color=FAINT, linewidth=0.9, zorder=0)
    ends = []
    for one in found:
        color = colors.get(one.rater, INK)
        x = [size / 1000 for _, size, _ in one.points]
        y = [difference for _, _, difference in one.points]
        axes.plot(x, y, "o", color=color, markersize=4, alpha=0.85, markeredgewidth=0)
        ends += y
        for level, style in ((one.bias, "-"), (one.lower, "--"), (one.upper, "--")):
            if level is not None and one.n_subjects > 1:
                axes.axhline(level, color=color, linewidth=1.2, linestyle=style, alpha=0.8)
                ends.append(level)
    far = 1.12 * max(5.0, *np.abs(ends))
    axes.set_ylim(-far, far)
    axes.margins(x=0.08)
    ticks = [tick for tick in axes.get_yticks() if abs(tick) <= far]
    words = [f"{tick:+g}".replace("-", "−") if tick else "0 %" for tick in ticks]
    axes.set_yticks(ticks, words, fontsize=8.5, **FONT)


# -- marks --------------------------------------------------------------------------------


def _draw_box(axes: Axes, y: float, values: Sequence[float], color: str, *, height: float) -> None:
    """Quartiles, median and whiskers; of few values the median alone."""
    if not values:
        return
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    half = height / 2
    if len(values) >= FEWEST_FOR_BOX:
        reach = _WHISKER * (high - low)
        near = [value for value in values if low - reach <= value <= high + reach]
        axes.plot([min(near), max(near)], [y, y], color=color, linewidth=0.9, alpha=0.8)
        axes.fill_between([low, high], y - half, y + half, color=color, alpha=0.34, linewidth=0.8)
    if len(values) > 1:
        axes.plot([middle, middle], [y - half, y + half], color=color, linewidth=2)


def _draw_dots(
    axes: Axes, y: float, values: Sequence[float], color: str, marker: str, *, height: float
) -> None:
    """Single values; neighbours lie on three lines so that they do not hide each other.

    What lies beyond the axis is an arrow at its end.
    """
    low, high = axes.get_xlim()
    style = {"color": color, "markersize": 4, "linestyle": "", "clip_on": False}
    edge = {"markeredgecolor": "#0b0d10", "markeredgewidth": 0.5}
    near = [value for value in sorted(values) if low <= value <= high]
    heights = [y + height * ((k % 3) - 1) / 2 for k in range(len(near))]
    axes.plot(near, heights, marker, alpha=0.9, **style, **edge)
    for end, arrow, n in (
        (low, "<", sum(value < low for value in values)),
        (high, ">", sum(value > high for value in values)),
    ):
        if n:
            axes.plot(end, y, arrow, **(style | {"markersize": 6}))


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Ends of an axis that shows all values but those far from the rest.

    A structure that was missed must not flatten the others: it becomes an arrow at the end.
    """
    if not len(values):
        return 0.0, 1.0
    q1, q3 = np.quantile(values, [0.25, 0.75])
    reach = _FAR * (q3 - q1) or np.inf
    near = [value for value in values if q1 - reach <= value <= q3 + reach]
    low, high = min(near), max(near)
    margin = 0.05 * (high - low) or 0.05 * max(abs(high), 0.1)
    return low - margin, high + margin


def _grid(axes: Axes) -> None:
    """Faint lines to read values by."""
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="x", color=LINE, alpha=0.35, linewidth=0.7)
    axes.set_axisbelow(True)


def _cycle(markers: str) -> list[str]:
    """Markers for any number of strata."""
    return list(markers) * 8


def _short(names: Sequence[str], most: int) -> list[str]:
    return [name if len(name) <= most else name[: most - 1] + "…" for name in names]


def _write_title(canvas: Canvas, title: str, note: str) -> None:
    canvas.text(MARGIN_PX, 20, title, size_px=19, weight="bold")
    canvas.text(MARGIN_PX, 43, note, color=FAINT)
