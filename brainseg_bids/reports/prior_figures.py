# SPDX-License-Identifier: Apache-2.0
"""Pictures of a contrast prior: densities, relations between labels, fields, and how it fits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from scipy import ndimage

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.contrast.alignment import FAINT as FAINT_FRAC
from brainseg_bids.contrast.alignment import TOP
from brainseg_bids.contrast.measured import BiasField, ContrastStatistics
from brainseg_bids.contrast.pool import range_of
from brainseg_bids.contrast.prior import ContrastPrior, LabelPrior, Spread
from brainseg_bids.reports.canvas import BLUE, FAINT, FONT, INK, Canvas, shorten
from brainseg_bids.reports.comparison import (
    draw_methods,
    method_colors,
    one_side,
    write_methods,
)
from brainseg_bids.reports.contrast import label_row, noise_kinds
from brainseg_bids.reports.densities import (
    BACKGROUND_CLASS,
    CLASSES,
    IntensityComparison,
    TissueClass,
    class_color,
    class_labels,
    density,
    in_bins,
    normal,
    pooled_counts,
    quantile_range,
    rebinned,
)
from brainseg_bids.reports.plots import (
    axes_on,
    color_bar,
    draw_together,
    key,
    log_factor,
    name_axes,
    no_data,
    panels,
)
from brainseg_bids.reports.slices import MARGIN_PX, WIDTH_PX
from brainseg_bids.reports.volume_table import anatomical

MOST_FIELDS = 21
"""Small pictures of fields; beyond it the weaker ones are left out."""

_HEAD_PX = 58
_PITCH_PX, _PLOT_PX = 252, 180
_CELL_PX = 17
_FIELD_COLORS = "RdBu_r"
_FIELD_SHAPE = (33, 41, 33)


def to_units(
    prior: ContrastPrior, statistics: ContrastStatistics, table: LabelTable
) -> tuple[float, float]:
    """Gain and offset that take an image's intensities to the prior's units.

    A ratio's range is known. Another image's gain is the one at which its labels agree best
    with the prior's: a median over those of the brain, or over all if it has none.

    Returns
    -------
    gain, offset : float
        The prior's units are ``gain * intensity + offset``.
    """
    if prior.is_ratio:
        low, high = range_of(statistics)
        return TOP / (high - low), -low * TOP / (high - low)
    known = [
        (table[name].is_brain, prior[name].mean / own.location)
        for name, own in statistics.labels.items()
        if own.source == "measured"
        and name in prior.labels
        and own.location > FAINT_FRAC * statistics.head_high
    ]
    brain = [gain for is_brain, gain in known if is_brain]
    gains = brain or [gain for _, gain in known]
    if gains:
        return float(np.median(gains)), 0.0
    return (TOP / statistics.head_high if statistics.head_high > 0 else 1.0), 0.0


# -- densities ----------------------------------------------------------------------------


def draw_densities(
    prior: ContrastPrior,
    statistics: Mapping[str, ContrastStatistics],
    table: LabelTable,
) -> Canvas:
    """Draw the histogram of each tissue: every image thin, all together thick, the prior dashed.

    Parameters
    ----------
    prior : ContrastPrior
    statistics : mapping of str to ContrastStatistics
        By image: those that the prior was pooled from.
    table : LabelTable
        That the labels' names belong to.
    """
    canvas = Canvas(WIDTH_PX, _HEAD_PX + 2 * _PITCH_PX + 20)
    canvas.title(
        f"{prior.name}: intensities of each tissue",
        "away from borders, field removed; "
        + (
            "0 to 255 is UNI of −0.5 to +0.5"
            if prior.is_ratio
            else "255 is the 99.5th percentile of a usual head"
        ),
    )
    tissues = [tissue for tissue in CLASSES if tissue.name != BACKGROUND_CLASS]
    units = {image: to_units(prior, own, table) for image, own in statistics.items()}
    found = {t.name: _histograms(statistics, units, class_labels(table, t)) for t in tissues}
    counts = [pair for pairs in found.values() for pair in pairs]
    limits = quantile_range([c for c, _ in counts], [e for _, e in counts], 0.003) or (0.0, 255.0)
    edges = np.linspace(*limits, 161)
    plots = panels(canvas, _HEAD_PX + 34, 8, pitch_px=_PITCH_PX, plot_px=_PLOT_PX)
    together = {}
    for axes, tissue in zip(plots, tissues, strict=False):
        color = class_color(table, tissue)
        thick = _draw_tissue(axes, tissue, found[tissue.name], edges, color)
        model = _model(prior, [label.name for label in class_labels(table, tissue)], statistics)
        if model is not None:
            middle = (edges[:-1] + edges[1:]) / 2
            axes.plot(middle, in_bins(model, edges), color=INK, linewidth=1.5, dashes=(4, 2))
        if thick is not None:
            together[tissue.name] = (thick, color)
    draw_together(plots[6], together, edges, x="intensity (prior's units)")
    plots[7].set_axis_off()
    key(
        plots[7],
        {
            "one image": {"color": FAINT, "linewidth": 0.8},
            "all images, equal weight": {"color": FAINT, "linewidth": 2.4},
            "what the prior draws on average": {"color": INK, "dashes": (4, 2)},
        },
        loc="center left",
    )
    return canvas


def _histograms(statistics, units, labels) -> list[tuple[np.ndarray, np.ndarray]]:
    """Counts and edges in the prior's units, of each image that has any of the labels."""
    found = []
    for image, own in statistics.items():
        counts, _ = pooled_counts(own, [label.name for label in labels])
        if counts.sum() > 0:
            gain, offset = units[image]
            found.append((counts, np.asarray(own.edges) * gain + offset))
    return found


def _draw_tissue(
    axes: Axes, tissue: TissueClass, found: list, edges: np.ndarray, color: str
) -> np.ndarray | None:
    """All images of one tissue; their mean density, or None if no image has it."""
    if not found:
        name_axes(axes, title=tissue.name)
        no_data(axes, "in no image")
        return None
    curves = [density(rebinned(counts, own, edges), edges) for counts, own in found]
    middle = (edges[:-1] + edges[1:]) / 2
    # Many thin lines are a shade; a few are lines.
    alpha = float(np.clip(6 / len(curves), 0.12, 0.7))
    for curve in curves:
        axes.plot(middle, curve, color=color, linewidth=0.8, alpha=alpha)
    mean = np.mean(curves, axis=0)
    axes.plot(middle, mean, color=color, linewidth=2.4)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, None)
    axes.set_yticks([])
    name_axes(axes, title=tissue.name, note=f"{len(curves)} image{'s' * (len(curves) > 1)}")
    return mean


def _model(prior: ContrastPrior, names: list[str], statistics):
    """Density that a prior expects of measured labels together, as a function, or None.

    Each label counts as it does in the images' histograms, all images alike.
    """
    shares: dict[str, float] = {}
    for own in statistics.values():
        counts = {
            name: sum(own[name].histogram)
            for name in names
            if name in own.labels and name in prior.labels and prior[name].source == "measured"
        }
        for name, count in counts.items():
            shares[name] = shares.get(name, 0.0) + count / max(sum(counts.values()), 1)
    total = sum(shares.values())
    if not total:
        return None
    shares = {name: share / total for name, share in shares.items() if share}
    return lambda at: sum(share * _expected(prior[name], at) for name, share in shares.items())


def _expected(label: LabelPrior, at: np.ndarray) -> np.ndarray:
    """Density of one label over images: its mixture, blurred by how its mean varies."""
    total = np.zeros(len(at))
    for part in label.components:
        mean = label.mean + part.mean * label.sd.median
        sd = math.hypot(part.sd * label.sd.median, label.mean_sd)
        total += part.weight * normal(at, mean, sd)
    return total


# -- relations ----------------------------------------------------------------------------


def draw_relations(
    prior: ContrastPrior,
    statistics: Mapping[str, ContrastStatistics],
    table: LabelTable,
) -> Canvas:
    """Draw how locations of labels go together, and how noise, blur and field vary.

    Labels that were measured are shown, in anatomical order. Parameters are those of
    `draw_densities`.
    """
    names = measured_names(prior, table)
    side = max(_CELL_PX * len(names), 420)
    canvas = Canvas(WIDTH_PX, _HEAD_PX + 34 + side + 206)
    canvas.title(f"{prior.name}: what goes together, and what varies",
        f"{prior.n_images} image{'s' * (prior.n_images != 1)} of {prior.n_subjects} "
        f"subject{'s' * (prior.n_subjects != 1)}",
    )  # fmt: skip
    _draw_correlation(canvas, prior, names, side)
    left = MARGIN_PX + 236 + min(860, side) + 110
    quantities = _quantities(prior, statistics, table)
    pitch = (side + 150) / len(quantities)
    for row, (title, unit, values, spread) in enumerate(quantities):
        axes = axes_on(canvas, left, _HEAD_PX + 34 + row * pitch, WIDTH_PX - left - 36, pitch - 62)
        _draw_spread(axes, title, unit, values, spread)
    return canvas


def measured_names(prior: ContrastPrior, table: LabelTable) -> list[str]:
    """Labels of a prior that were measured, in anatomical order."""
    rows = [label_row(table[name], 0.0) for name in prior.labels]
    return [row["name"] for row in anatomical(rows) if prior[row["name"]].source == "measured"]


def _draw_correlation(canvas: Canvas, prior: ContrastPrior, names: list[str], side: int) -> None:
    width = min(860, side)
    axes = axes_on(canvas, MARGIN_PX + 236, _HEAD_PX + 34, width, side)
    name_axes(axes, title="Correlation of the labels' locations over images")
    if not names:
        no_data(axes, "no label was measured")
        return
    order = {name: at for at, name in enumerate(prior.labels)}
    at = [order[name] for name in names]
    shown = np.asarray(prior.correlation)[np.ix_(at, at)]
    axes.imshow(shown, cmap=_FIELD_COLORS, vmin=-1, vmax=1, aspect="auto")
    ticks = range(len(names))
    short = [shorten(name, 26) for name in names]
    size = float(np.clip(side / len(names) * 0.6, 6, 9.5))
    axes.set_yticks(ticks, short, fontsize=size, **FONT)
    axes.set_xticks(ticks, short, fontsize=size, rotation=90, **FONT)
    axes.tick_params(length=0)
    bar = axes_on(canvas, MARGIN_PX + 236 + width + 14, _HEAD_PX + 34, 14, min(side, 240))
    color_bar(bar, _FIELD_COLORS, 1, "{:g}".format)


def _quantities(
    prior: ContrastPrior, statistics, table: LabelTable
) -> list[tuple[str, str, list[float], Spread]]:
    """Title, unit, values of the images and the prior's spread."""
    known = list(statistics.values())
    kinds = noise_kinds(prior.noise.kinds)
    sigma = [
        own.noise.sigma * (1.0 if own.noise.kind == "ratio" else to_units(prior, own, table)[0])
        for own in known
        if own.noise.sigma > 0
    ]
    unit = "of UNI, −0.5 to 0.5" if prior.is_ratio else "prior's units"
    axes = zip(("left to right", "back to front", "bottom to top"), prior.fwhm_mm, strict=True)
    return [
        (f"Noise sigma ({kinds})", unit, sigma, prior.noise.sigma),
        *(
            (f"Point spread, {name} (FWHM)", "mm", [own.fwhm_mm[axis] for own in known], spread)
            for axis, (name, spread) in enumerate(axes)
        ),
        ("Strength of the field", "sd of its logarithm",
         [own.bias.log_sd for own in known], prior.bias_log_sd),
        ("Smoothness of the field", "mm between nodes",
         [own.bias.smoothness_mm for own in known], prior.bias_smoothness_mm),
    ]  # fmt: skip


def _draw_spread(axes: Axes, title: str, unit: str, values: list[float], spread: Spread) -> None:
    """Values of images as dots under the log-normal density that the prior has of them."""
    name_axes(axes, title=title, x=unit)
    log_sd = max(spread.log_sd, 1e-3)
    if spread.median <= 0:
        no_data(axes, "not measured")
        return
    reach = np.exp(np.clip(3 * log_sd, 0.05, 3.0))
    seen = [value for value in values if math.isfinite(value)]
    low, high = min([spread.median / reach, *seen]), max([spread.median * reach, *seen])
    at = np.linspace(low, high, 400)
    positive = np.maximum(at, 1e-12)
    curve = normal(np.log(positive), math.log(spread.median), log_sd) / positive
    axes.fill_between(at, curve / curve.max(), color=BLUE, alpha=0.3, linewidth=0)
    axes.axvline(spread.median, color=BLUE, linewidth=1.4)
    # Dots that would hide each other lie on a few lines.
    heights = [-0.12 - 0.1 * (n % 3) for n in range(len(seen))]
    axes.plot(sorted(seen), heights, "o", color=INK, markersize=3.5, alpha=0.7, markeredgewidth=0)
    margin = 0.03 * (high - low)
    axes.set(xlim=(low - margin, high + margin), ylim=(-0.42, 1.1), yticks=[])


# -- fields -------------------------------------------------------------------------------


def draw_fields(name: str, statistics: Mapping[str, ContrastStatistics]) -> Canvas:
    """Draw the mean of the smooth fields in three planes, and each image's in an axial one.

    The images' boxes are laid over each other; fields are shown as factors, strongest first.
    """
    fields = {who: own.bias for who, own in statistics.items()}
    shown = sorted(fields, key=lambda who: -fields[who].log_sd)[:MOST_FIELDS]
    same = {who: _same_shape(fields[who]) for who in fields}
    mean = np.mean(list(same.values()), axis=0)
    # Not the largest value: beyond the head, at the corners of the box, a field is a guess.
    largest = max([0.05, *(2.5 * fields[who].log_sd for who in shown)])
    per_row, pitch = 7, (WIDTH_PX - MARGIN_PX) // 7
    rows = -(-len(shown) // per_row)
    canvas = Canvas(WIDTH_PX, _HEAD_PX + 320 + rows * (pitch + 34) + 20)
    canvas.title(f"{name}: smooth fields as factors",
        "strongest first; over the whole box of each image: beyond the head it is a guess"
        + _left_out(len(fields) - len(shown)),
    )  # fmt: skip
    size_mm = np.median([_size_mm(bias) for bias in fields.values()], axis=0)
    planes = (("Sagittal", 0, 1, 2), ("Coronal", 1, 0, 2), ("Axial", 2, 0, 1))
    for column, (plane, axis, right, up) in enumerate(planes):
        axes = axes_on(canvas, MARGIN_PX + column * 300, _HEAD_PX + 34, 280, 250)
        cut = np.take(mean, mean.shape[axis] // 2, axis=axis)
        _draw_field(axes, cut, (size_mm[right], size_mm[up]), largest)
        ends = ("P", "A") if axis == 0 else ("L", "R")
        name_axes(axes, title=f"Mean, {plane.lower()}", note=f"{ends[0]} | {ends[1]}")
    bar = axes_on(canvas, MARGIN_PX + 3 * 300 + 10, _HEAD_PX + 34, 18, 250)
    color_bar(bar, _FIELD_COLORS, largest, log_factor)
    for number, who in enumerate(shown):
        top = _HEAD_PX + 340 + number // per_row * (pitch + 34)
        axes = axes_on(canvas, MARGIN_PX + number % per_row * pitch, top, pitch - 12, pitch - 12)
        own = _size_mm(fields[who])
        cut = same[who][:, :, _FIELD_SHAPE[2] // 2]
        _draw_field(axes, cut, (own[0], own[1]), largest)
        axes.set_title(
            f"{who if len(who) <= 24 else '…' + who[-23:]}\nlog sd {fields[who].log_sd:.2f}",
            fontsize=8, color=INK, pad=2, **FONT,
        )  # fmt: skip
    return canvas


def _left_out(n: int) -> str:
    if not n:
        return ""
    return f"; {n} weaker one{'s are' if n > 1 else ' is'} not shown"


def _same_shape(bias: BiasField) -> np.ndarray:
    """Nodes of the log field, linear between them, at as many places in every image."""
    nodes = bias.array()
    return ndimage.zoom(nodes, np.divide(_FIELD_SHAPE, nodes.shape), order=1, mode="nearest")


def _size_mm(bias: BiasField) -> np.ndarray:
    """Size of the box that the nodes span, at least a millimetre."""
    steps = np.array(bias.array().shape) - 1
    return np.maximum(steps * np.array(bias.node_spacing_mm, dtype=float), 1.0)


def _draw_field(axes: Axes, cut: np.ndarray, size_mm: tuple[float, float], largest: float) -> None:
    axes.set(xticks=[], yticks=[])
    axes.set_anchor("NW")
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.imshow(
        cut.T, origin="lower", cmap=_FIELD_COLORS, vmin=-largest, vmax=largest,
        extent=(0, size_mm[0], 0, size_mm[1]), interpolation="bilinear",
    )  # fmt: skip


# -- real and synthetic -------------------------------------------------------------------


def draw_comparisons(name: str, comparisons: Sequence[IntensityComparison]) -> Canvas:
    """Draw the histograms of real heads (filled) and of synthetic ones, label by label.

    Of pairs the left side.
    """
    comparisons = one_side(comparisons)
    rows = -(-len(comparisons) // 4)
    canvas = Canvas(WIDTH_PX, _HEAD_PX + 30 + rows * _PITCH_PX + 10)
    canvas.title(
        f"{name}: real (filled) and synthetic",
        "energy distance to the real head, less is nearer",
    )
    colors = method_colors(comparisons)
    plots = panels(canvas, _HEAD_PX + 64, len(comparisons), pitch_px=_PITCH_PX, plot_px=_PLOT_PX)
    for axes, comparison in zip(plots, comparisons, strict=True):
        draw_methods(axes, comparison, colors)
    write_methods(canvas, 43, colors)
    return canvas
