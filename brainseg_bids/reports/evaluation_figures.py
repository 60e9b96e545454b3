# SPDX-License-Identifier: Apache-2.0
"""Plots of an evaluation: every subject a dot, boxes by rater, volumes after Bland and Altman."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from brainseg_bids.evaluation.bland_altman import BlandAltman
from brainseg_bids.evaluation.bootstrap import subject_means
from brainseg_bids.evaluation.scores import ALL, Scores, metric
from brainseg_bids.reports.canvas import FAINT, INK, LINE, Canvas, shorten
from brainseg_bids.reports.plots import axes_on, key, name_axes, no_data, panels
from brainseg_bids.reports.slices import MARGIN_PX, WIDTH_PX

RATER_COLORS = (
    "#8ab4f8", "#e58a54", "#7fd38b", "#d6a3f5", "#f2d06b", "#6fd6d6", "#f28b82", "#c3c8cf",
)  # fmt: skip
"""In the order of raters; a ninth begins again."""
MARKERS = "o^sDvP*X"
"""Of strata, in alphabetical order."""
NO_STRATUM = "no stratum"
"""What the key calls images of none, beside those of some."""
MOST_STRUCTURES = 48
"""More than these are left out of a plot, with a word."""
FEWEST_FOR_BOX = 5
"""Fewer subjects are dots and a median: quartiles of them say nothing."""

_HEAD_PX, _NAMES_PX = 104, 250
_LINE_PX, _BLOCK_PX = 15, 12
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
        title = f"NSD at {bare.removeprefix('nsd_').removesuffix('mm')} mm"
    else:
        title = known.get(bare, bare)
    return f"|{title}|" if bare != name else title


def subject_values(
    scores: Scores, groups: Mapping[str, Sequence[str]], column: str, raters: Sequence[str]
) -> pd.DataFrame:
    """Mean over structures in each image, then over a subject's images.

    What is left out of the metric (see `brainseg_bids.evaluation.scores.metric`) is left out.

    Parameters
    ----------
    scores : Scores
    groups : mapping of str to names
        Structures that each mean is of.
    column : str
        A metric.
    raters : sequence of str
        One without rows is passed over.

    Returns
    -------
    pandas.DataFrame
        Columns ``name`` (of the group), ``rater``, ``subject`` and ``value``.
    """
    lines = []
    for name, members in groups.items():
        for rater in filter(scores.raters.__contains__, raters):
            cells = scores.values(metric(column))[scores.raters.index(rater)]
            cells = cells[:, scores.indices_of(members)]
            kept = np.isfinite(cells).any(axis=1)
            subjects = [s for s, keep in zip(scores.subjects, kept, strict=True) if keep]
            if subjects:
                means = subject_means(np.nanmean(cells[kept], axis=1), subjects)
                lines += [
                    (name, rater, subject, mean)
                    for subject, mean in zip(sorted(set(subjects)), means, strict=True)
                ]
    return pd.DataFrame(lines, columns=["name", "rater", "subject", "value"])


def draw_headline(
    scores: Scores,
    names: Sequence[str],
    metrics: Sequence[str],
    raters: Sequence[str],
) -> Canvas:
    """Draw the mean over structures: a box and a dot per subject for each rater and stratum.

    Parameters
    ----------
    scores : Scores
        Of one reference.
    names : sequence of str
        Structures that the mean is of.
    metrics : sequence of str
        A panel each, at most five.
    raters : sequence of str
        From above; one subject's dots are joined from rater to rater.
    """
    parts = {"all images" if name == ALL else name: part for name, part in scores.by_stratum()}
    values = {
        name: pd.concat(
            [subject_values(part, {row: names}, name, raters) for row, part in parts.items()],
            ignore_index=True,
        )
        for name in metrics[:5]
    }
    return _draw_panels(
        f"Mean of {len(names)} structure{'s' * (len(names) != 1)}, by rater",
        "dots: subjects, joined from rater to rater; boxes: quartiles and median "
        f"({FEWEST_FOR_BOX} subjects or more); whiskers: {_WHISKER:g} times the box; "
        "arrows: far beyond the axis",
        values,
        {name: {MARKERS[0]: table} for name, table in values.items()},
        dict.fromkeys(parts, ""),
        raters,
        joined=True,
    )


def draw_structures(
    scores: Scores,
    names: Sequence[str],
    metrics: Sequence[str],
    raters: Sequence[str],
    swatches: Mapping[str, str],
) -> Canvas:
    """Draw each structure: a box and a dot per subject for each rater, strata by their markers.

    Parameters
    ----------
    scores, raters
        As in `draw_headline`.
    names : sequence of str
        From above; of more than `MOST_STRUCTURES` the last are left out, with a word.
    metrics : sequence of str
        A panel each, at most three.
    swatches : mapping of str to str
        ``#rrggbb`` of each structure.
    """
    groups = {name: [name] for name in names[:MOST_STRUCTURES]}
    markers = dict(zip(sorted(set(scores.strata)), cycle(MARKERS), strict=False))
    return _draw_panels(
        "Structures, by rater",
        "dots: subjects; boxes: quartiles and median; arrows: far beyond the axis"
        + _left_out(len(names) - len(groups)),
        {name: subject_values(scores, groups, name, raters) for name in metrics[:3]},
        {name: values_by_marker(scores, groups, name, raters, markers) for name in metrics[:3]},
        {name: swatches.get(name, FAINT) for name in groups},
        raters,
        markers={name or NO_STRATUM: marker for name, marker in markers.items()}
        if any(markers)
        else {},
    )


def values_by_marker(
    scores: Scores,
    groups: Mapping[str, Sequence[str]],
    column: str,
    raters: Sequence[str],
    markers: Mapping[str, str],
) -> dict[str, pd.DataFrame]:
    """`subject_values` of each stratum by its marker; strata that share one are put together."""
    found: dict[str, list[pd.DataFrame]] = {}
    for stratum, marker in markers.items():
        own = subject_values(scores.of_stratum(stratum), groups, column, raters)
        found.setdefault(marker, []).append(own)
    return {marker: pd.concat(own, ignore_index=True) for marker, own in found.items()}


def _draw_panels(
    title: str,
    note: str,
    boxes: Mapping[str, pd.DataFrame],
    dots: Mapping[str, Mapping[str, pd.DataFrame]],
    rows: Mapping[str, str],
    raters: Sequence[str],
    *,
    markers: Mapping[str, str] | None = None,
    joined: bool = False,
) -> Canvas:
    """A panel for each metric, a block for each row, a line for each rater.

    ``boxes`` are by metric, ``dots`` by metric and marker, ``rows`` names with their swatches.
    """
    block_px = _LINE_PX * len(raters) + _BLOCK_PX
    height = block_px * max(len(rows), 1)
    canvas = Canvas(WIDTH_PX, _HEAD_PX + height + 40)
    canvas.title(title, note)
    _write_key(canvas, raters, markers or {})
    is_long = len(rows) > _LONG
    left = MARGIN_PX + (_NAMES_PX if any(rows.values()) else _NAMES_PX // 2)
    pitch = (WIDTH_PX - left - 10) / len(boxes)
    for column, (name, table) in enumerate(boxes.items()):
        x = left + column * pitch
        axes = axes_on(canvas, x, _HEAD_PX, pitch - 34, height)
        canvas.text(x, _HEAD_PX - (34 if is_long else 14), metric_title(name), weight="bold")
        axes.set(xlim=_limits(table["value"]), ylim=(max(len(rows), 1) - 0.5, -0.5))
        _draw_values(axes, table, dots[name], list(rows), raters, joined=joined)
        axes.set(yticks=[], xlabel="", ylabel="")
        axes.tick_params(axis="x", labeltop=is_long)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.grid(axis="x", color=LINE, alpha=0.35, linewidth=0.7)
        axes.set_axisbelow(True)
    for row, (name, swatch) in enumerate(rows.items()):
        y = _HEAD_PX + (row + 0.5) * block_px
        if swatch:
            canvas.box(MARGIN_PX - 20, y - 7, 18, 14, swatch)
        canvas.text(MARGIN_PX + 8, y, shorten(name, 32))
    return canvas


def _draw_values(
    axes: Axes,
    boxes: pd.DataFrame,
    dots: Mapping[str, pd.DataFrame],
    rows: Sequence[str],
    raters: Sequence[str],
    *,
    joined: bool = False,
) -> None:
    """Boxes, medians and single values; arrows at the ends for what lies beyond the axis.

    Fewer than `FEWEST_FOR_BOX` values are a median alone.
    """
    if boxes.empty:
        return no_data(axes, "no numbers")
    width = _LINE_PX * len(raters) / (_LINE_PX * len(raters) + _BLOCK_PX)
    common = {
        "x": "value", "y": "name", "hue": "rater", "order": rows, "hue_order": raters,
        "palette": rater_colors(raters), "orient": "h", "legend": False, "ax": axes,
    }  # fmt: skip
    limits = low, high = axes.get_xlim()
    n = boxes.groupby(["name", "rater"])["value"].transform("size")
    sns.boxplot(
        boxes[n >= FEWEST_FOR_BOX], width=width, gap=0.35, whis=_WHISKER, showfliers=False,
        showcaps=False, boxprops={"alpha": 0.4}, medianprops={"visible": False}, linewidth=0.9,
        linecolor=FAINT, **common,
    )  # fmt: skip
    sns.pointplot(
        boxes[n > 1], estimator="median", errorbar=None, marker="|", linestyle="none",
        dodge=width * (1 - 1 / len(raters)), markersize=9, markeredgewidth=2, **common,
    )  # fmt: skip
    for marker, table in dots.items():
        shape = np.where(table["value"] < low, "<", np.where(table["value"] > high, ">", marker))
        inside = table.assign(value=table["value"].clip(low, high))
        for one in np.unique(shape):
            sns.stripplot(
                inside[shape == one], marker=one,
                jitter=False, dodge=True, size=4 if one == marker else 6, alpha=0.8,
                edgecolor="#0b0d10", linewidth=0.5, clip_on=False, **common,
            )  # fmt: skip
    for row, name in enumerate(rows):
        if row % 2:
            axes.axhspan(row - 0.5, row + 0.5, color=LINE, alpha=0.16, linewidth=0)
        if joined:
            own = boxes[boxes["name"] == name]
            wide = own.pivot(index="rater", columns="subject", values="value").reindex(raters)
            y = row + width * ((np.arange(len(raters)) + 0.5) / len(raters) - 0.5)
            axes.plot(wide, y, color=FAINT, linewidth=0.6, alpha=0.5, zorder=1)
    axes.set_xlim(limits)
    return None


def draw_bland_altman(lines: Sequence[BlandAltman], raters: Sequence[str]) -> Canvas:
    """Draw differences of volumes over their means, structure by structure.

    Parameters
    ----------
    lines : sequence of BlandAltman
        Of one reference, stratum and unit; a panel for each structure, in their order.
    raters : sequence of str
    """
    by_name: dict[str, list[BlandAltman]] = {}
    for one in lines:
        if one.points:
            by_name.setdefault(one.name, []).append(one)
    shown = list(by_name)[:MOST_STRUCTURES]
    rows = max(1, -(-len(shown) // 4))
    canvas = Canvas(WIDTH_PX, _HEAD_PX + rows * _PITCH_PX)
    note = "per cent of their mean, over their mean in ml; lines: bias; dashed: 95 % limits"
    note += _left_out(len(by_name) - len(shown))
    canvas.title("Volumes: predicted less reference", note)
    _write_key(canvas, raters, {})
    every = panels(canvas, _HEAD_PX, max(1, len(shown)), pitch_px=_PITCH_PX, plot_px=_PLOT_PX)
    for axes, name in zip(every, shown, strict=False):
        _draw_volumes(axes, by_name[name], rater_colors(raters))
    if not shown:
        no_data(every[0], "no structure is in both maps")
    return canvas


def _draw_volumes(axes: Axes, lines: Sequence[BlandAltman], colors: Mapping[str, str]) -> None:
    """One structure, all raters."""
    name_axes(axes, title=shorten(lines[0].name, 34), x="mean of both (ml)")
    axes.axhline(0, color=FAINT, linewidth=0.9, zorder=0)
    ends = []
    for one in lines:
        color = colors.get(one.rater, INK)
        size_mm3, difference = np.array([point[1:] for point in one.points]).T
        axes.plot(size_mm3 / 1000, difference, "o", color=color, markersize=4, alpha=0.85)
        levels = [one.bias, one.lower, one.upper] if one.n_subjects > 1 else []
        for level, style in zip(levels, ("-", "--", "--"), strict=False):
            axes.axhline(level, color=color, linewidth=1.2, linestyle=style, alpha=0.8)
        ends += [*difference, *levels]
    far = 1.12 * max(5.0, *np.abs(ends))
    axes.set_ylim(-far, far)
    axes.margins(x=0.08)
    axes.tick_params(axis="y", labelsize=8)
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda tick, _: f"{tick:+g}".replace("-", "−") if tick else "0 %")
    )


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


# -- words --------------------------------------------------------------------------------


def _write_key(canvas: Canvas, raters: Sequence[str], markers: Mapping[str, str]) -> None:
    """Colours of raters and markers of strata, above the plots at the right."""
    styles = {name: {"marker": "s", "color": c} for name, c in rater_colors(raters).items()}
    styles |= {name: {"marker": marker, "color": INK} for name, marker in markers.items()}
    axes = axes_on(canvas, WIDTH_PX - 1000, 10, 990, 50)
    axes.set_axis_off()
    key(
        axes,
        {shorten(name, 24): style | {"linestyle": ""} for name, style in styles.items()},
        loc="upper right",
        ncols=-(-len(styles) // 2) if len(styles) > 5 else len(styles),
        columnspacing=1.2,
        handletextpad=0.2,
        borderaxespad=0,
    )


def _left_out(n: int) -> str:
    return f"; {n} more structures are in the table" if n else ""
