# SPDX-License-Identifier: Apache-2.0
"""The picture of an image's contrast: field, histograms, and where each label lies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from scipy import ndimage, stats

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.contrast.measured import (
    BiasField,
    ContrastStatistics,
    LabelStatistics,
    NoiseLaw,
)
from brainseg_bids.reports.canvas import (
    FAINT,
    FONT,
    HEADER_PX,
    INK,
    LINE,
    Canvas,
    SliceRow,
    shorten,
    six_cuts,
    write_header,
)
from brainseg_bids.reports.contrast import contrast_rows, noise_words, times_words
from brainseg_bids.reports.densities import (
    BACKGROUND_CLASS,
    CLASSES,
    TissueClass,
    class_color,
    class_labels,
    density,
    in_bins,
    normal,
    parts,
    pooled_counts,
    quantile_range,
)
from brainseg_bids.reports.groups import plain_name, shown_labels
from brainseg_bids.reports.plots import (
    axes_on,
    color_bar,
    draw_together,
    log_factor,
    name_axes,
    no_data,
    panels,
)
from brainseg_bids.reports.slices import (
    MARGIN_PX,
    SIX_PLANES,
    WIDTH_PX,
    Cut,
    grey_window,
    paint_cut,
    view_mm,
)

LEFT, RIGHT = "#6aa9de", "#e58a54"
"""The page's colours of the two sides."""

_COLUMN_PX, _KEY_PX = 26, 96  # above the cuts; right of them
_PLOT_PX, _PLOT_PITCH_PX = 180, 246  # histograms
_DOT_PX = 19
_FIELD_COLORS = "RdBu_r"
_OUTSIDE_DIM = 0.45
_SMALLEST_RANGE = 0.05  # of the log field: noise must not look like a field


def draw_contrast(
    path: Path, image: np.ndarray, labels: LabelMap, statistics: ContrastStatistics
) -> Path:
    """Draw how an image looks: its smooth field, its tissues' histograms, each label's place.

    Above, six cuts of the image, of the estimated field as a factor, and of the image divided
    by it. Then the histogram of each class of tissue, away from borders and with the field
    removed, with the Gaussians that were fitted. Below, location and spread of every label.

    Parameters
    ----------
    path : Path
        PNG file, written whole or not at all.
    image : (X, Y, Z) float
        On the grid of ``labels``.
    labels : LabelMap
    statistics : ContrastStatistics
        Of this image and these labels.

    Raises
    ------
    ValueError
        If image and labels differ in shape.
    """
    if image.shape != labels.voxels.shape:
        raise ValueError(f"image {image.shape} and labels {labels.voxels.shape} differ in shape")
    box_mm = view_mm(labels)
    slice_row = SliceRow.fit(box_mm[:, 1] - box_mm[:, 0], SIX_PLANES, width_px=WIDTH_PX - _KEY_PX)
    structures = _structures(statistics, labels)
    cuts_px = _COLUMN_PX + 3 * slice_row.tall
    plots_px = 2 * _PLOT_PITCH_PX + 58
    dots_px = 100 + _DOT_PX * -(-len(structures) // 2)
    canvas = Canvas(WIDTH_PX, HEADER_PX + cuts_px + plots_px + dots_px)
    _draw_cuts(canvas, slice_row, image, labels, statistics.bias)
    _draw_histograms(canvas, HEADER_PX + cuts_px + 14, image, labels, statistics)
    _draw_dots(canvas, HEADER_PX + cuts_px + plots_px, structures)
    return canvas.save(path)


# -- the field ----------------------------------------------------------------------------


def field_map(bias: BiasField, grid: Grid) -> tuple[np.ndarray, Grid]:
    """Logarithm of the field over the box of ``grid``, fine enough to look smooth.

    Returns
    -------
    log_field : (nx, ny, nz) float32
        RAS axes; the outermost voxels lie on the outermost ones of ``grid``.
    Grid
        Its grid.
    """
    nodes, ras = bias.array(), grid.to_ras()
    shape = np.where(np.array(nodes.shape) > 1, 4 * (np.array(nodes.shape) - 1) + 1, 1)
    fine = ndimage.zoom(nodes, shape / nodes.shape, order=3, mode="nearest", grid_mode=False)
    # One node along an axis holds everywhere: a voxel as long as the box.
    step = np.where(
        shape > 1, (np.array(ras.shape) - 1) / np.maximum(shape - 1, 1), np.array(ras.shape)
    )
    start = np.where(shape > 1, 0, (np.array(ras.shape) - 1) / 2)
    affine = ras.affine.copy()
    affine[:3, :3] = ras.affine[:3, :3] * step
    affine[:3, 3] = ras.affine[:3, :3] @ start + ras.affine[:3, 3]
    return fine.astype(np.float32), Grid(tuple(int(n) for n in shape), affine)


def _draw_cuts(
    canvas: Canvas, slice_row: SliceRow, image: np.ndarray, labels: LabelMap, bias: BiasField
) -> None:
    box_mm = view_mm(labels)
    at_mm = six_cuts(labels, box_mm)
    cuts = slice_row.cuts(image, labels, at_mm, box_mm)
    log_field, grid = field_map(bias, labels.grid)
    nothing = LabelMap(np.zeros(grid.shape, dtype=np.int16), grid, labels.table)
    fields = [cut.grey for cut in slice_row.cuts(log_field, nothing, at_mm, box_mm)]
    window = grey_window(cuts, labels)
    largest = _largest(cuts, fields, labels)
    rows = {
        "image": [paint_cut(cut, labels, window, overlay=False) for cut in cuts],
        "smooth field": [
            _paint_field(cut, log, labels, largest) for cut, log in zip(cuts, fields, strict=True)
        ],
        "field removed": [
            paint_cut(replace(cut, grey=cut.grey / np.exp(log)), labels, window, overlay=False)
            for cut, log in zip(cuts, fields, strict=True)
        ],
    }
    top = HEADER_PX + _COLUMN_PX
    slice_row.write(canvas, top, rows, at_mm)
    write_header(canvas, labels.grid, window, slice_row.px_per_mm, empty=not labels.voxels.any())
    _write_key(canvas, top + slice_row.tall, slice_row.tall, largest)


def _largest(cuts: list[Cut], fields: list[np.ndarray], labels: LabelMap) -> float:
    """Largest absolute log field within the head on these cuts."""
    codes = [label.index for label in shown_labels(labels.table)]
    inside = [log[np.isin(cut.codes, codes)] for cut, log in zip(cuts, fields, strict=True)]
    seen = np.abs(np.concatenate(inside))
    return float(max(_SMALLEST_RANGE, np.percentile(seen, 99.5) if seen.size else 0.0))


def _paint_field(cut: Cut, log_field: np.ndarray, labels: LabelMap, largest: float) -> np.ndarray:
    """Colours of the field, (h, w, 3) uint8; dim outside the head, where it is a guess."""
    colors = colormaps[_FIELD_COLORS](0.5 + log_field / (2 * largest))[..., :3]
    head = np.isin(cut.codes, [label.index for label in shown_labels(labels.table)])
    share = np.where(head, 1.0, _OUTSIDE_DIM) * cut.inside
    return np.rint(255 * colors * share[..., None]).astype(np.uint8)


def _write_key(canvas: Canvas, top: int, tall: int, largest: float) -> None:
    """Bar of the field's colours beside its row; its ticks are factors."""
    axes = axes_on(canvas, WIDTH_PX - _KEY_PX + 18, top + 30, 18, tall - 66)
    color_bar(axes, _FIELD_COLORS, largest, log_factor)
    canvas.text(WIDTH_PX - _KEY_PX + 10, top + 14, "factor", color=FAINT)


# -- histograms ---------------------------------------------------------------------------


def _draw_histograms(
    canvas: Canvas, top: int, image: np.ndarray, labels: LabelMap, statistics: ContrastStatistics
) -> None:
    canvas.text(
        MARGIN_PX, top + 6, "Intensities of each tissue, away from borders, field removed",
        size_px=17, weight="bold",
    )  # fmt: skip
    canvas.text(
        WIDTH_PX - 20, top + 6,
        f"noise: {noise_words(statistics.noise, short=True)}   ·   point spread "
        f"{times_words(statistics.fwhm_mm)} (FWHM)",
        color=FAINT, ha="right",
    )  # fmt: skip
    edges = np.asarray(statistics.edges, dtype=float)
    curves = {}
    plots = panels(canvas, top + 50, 8, pitch_px=_PLOT_PITCH_PX, plot_px=_PLOT_PX)
    names = {
        tissue.name: [label.name for label in class_labels(labels.table, tissue)]
        for tissue in CLASSES
    }
    tissues = [tissue for tissue in CLASSES if tissue.name != BACKGROUND_CLASS]
    counts = {t.name: pooled_counts(statistics, names[t.name])[0] for t in tissues}
    limits = quantile_range(list(counts.values()), [edges] * len(counts), 0.003)
    for axes, tissue in zip(plots, tissues, strict=False):
        color = class_color(labels.table, tissue)
        if counts[tissue.name].sum() > 0:
            curves[tissue.name] = (density(counts[tissue.name], edges), color)
        _draw_class(axes, statistics, names[tissue.name], tissue, color, limits)
    _draw_background(plots[len(tissues)], image, labels, statistics, names[BACKGROUND_CLASS])
    x = "intensity (units of the image)"
    draw_together(plots[-1], curves, edges, x=x, limits=limits)


def _draw_class(
    axes: Axes,
    statistics: ContrastStatistics,
    names: list[str],
    tissue: TissueClass,
    color: str,
    limits: tuple[float, float] | None,
) -> None:
    """Histogram of a class, the Gaussians of its labels (thin) and their sum."""
    edges = np.asarray(statistics.edges, dtype=float)
    counts, found = pooled_counts(statistics, names)
    if not found or limits is None:
        name_axes(axes, title=tissue.name)
        no_data(axes, "nothing was measured")
        return
    axes.stairs(density(counts, edges), edges, fill=True, color=color, alpha=0.35, linewidth=0)
    middle = (edges[:-1] + edges[1:]) / 2
    total = np.zeros(len(middle))
    for label in found:
        share = sum(label.histogram) / counts.sum()
        for part in parts(label):
            curve = (
                share * part.weight * in_bins(partial(normal, mean=part.mean, sd=part.sd), edges)
            )
            axes.plot(middle, curve, color=color, linewidth=0.7, alpha=0.55)
            total += curve
    axes.plot(middle, total, color=color, linewidth=1.8)
    axes.set_xlim(limits)
    axes.set_ylim(0, None)
    axes.set_yticks([])
    name_axes(axes, title=tissue.name, note=_class_note(found))


def _class_note(found: list[LabelStatistics]) -> str:
    voxels = [sum(label.histogram) for label in found]
    fit = np.average([label.fit for label in found], weights=voxels)
    return f"{sum(voxels):,} voxels, fit {fit:.2f}"


def _draw_background(
    axes: Axes,
    image: np.ndarray,
    labels: LabelMap,
    statistics: ContrastStatistics,
    names: list[str],
) -> None:
    """Voxels outside the head as they are, and the law of the noise over them."""
    codes = [labels.table[name].index for name in names]
    values = np.asarray(image)[np.isin(labels.voxels, codes)]
    values = values[np.isfinite(values)]
    name_axes(axes, title="Outside the head", note=f"{values.size:,} voxels")
    low, high = np.percentile(values, [0, 99]) if values.size else (0.0, 0.0)
    if high <= low:
        no_data(axes, f"constant: {low:.3g}" if values.size else "there is none")
        return
    edges = _air_edges(values, float(low), float(high))
    seen = density(np.histogram(values, edges)[0], edges)
    axes.stairs(seen, edges, fill=True, color=FAINT, alpha=0.45, linewidth=0)
    # An air of which most was set to one value must not flatten the rest.
    tallest = float(np.sort(seen)[-2:].min())
    law = noise_density(statistics.noise)
    # A law that was measured within the tissue says nothing about the air.
    if law is not None and statistics.noise.voxels:
        curve = in_bins(law, edges)
        axes.plot((edges[:-1] + edges[1:]) / 2, curve, color=INK, linewidth=1.8)
        tallest = max(tallest, float(curve.max()))
    axes.set(xlim=(edges[0], edges[-1]), yticks=[])
    axes.set_ylim(0, 1.1 * tallest if tallest > 0 else None)
    axes.set_xlabel("intensity (units of the image)", color=FAINT, fontsize=9, labelpad=2)


def _air_edges(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Edges of some 80 bins; those of whole numbers lie between them."""
    some = values[:: max(1, values.size // 100_000)]
    if (some == np.rint(some)).all():
        step = max(1, round((high - low) / 80))
        return np.arange(np.floor(low) - 0.5, high + step, step)
    return np.linspace(low, high, 81)


def noise_density(noise: NoiseLaw) -> Callable[[np.ndarray], np.ndarray] | None:
    """Density of noise without signal, as a function of intensity; None where it has no law.

    Rician and non-central chi noise without signal is chi with two degrees of freedom a channel
    (Constantinides et al., Magnetic Resonance in Medicine 38, 1997).

    >>> float(noise_density(NoiseLaw("rician", 2.0))(np.array([2.0]))[0].round(4))
    0.3033
    """
    if noise.sigma <= 0 or noise.kind in ("none", "ratio"):
        return None
    if noise.kind == "gaussian":
        return partial(normal, mean=0.0, sd=noise.sigma)
    freedom = 2 * (noise.channels if noise.kind == "chi" else 1)
    return lambda at: stats.chi.pdf(at, freedom, scale=noise.sigma)


# -- locations ----------------------------------------------------------------------------


def _structures(statistics: ContrastStatistics, labels: LabelMap) -> list[tuple[str, list[dict]]]:
    """Structures with their rows, left and right together, in anatomical order."""
    found: dict[tuple[str, str], list[dict]] = {}
    for row in contrast_rows(statistics, labels.table):
        sided = row["hemisphere"] != "none"
        name = plain_name(row["name"]) if sided else row["name"].replace("-", " ")
        found.setdefault((row["group"], name.replace("_", " ")), []).append(row)
    return [(name, rows) for (_, name), rows in found.items()]


def _draw_dots(canvas: Canvas, top: int, structures: list[tuple[str, list[dict]]]) -> None:
    canvas.text(MARGIN_PX, top + 8, "Location and spread of each label", size_px=17, weight="bold")
    if not structures:
        canvas.text(MARGIN_PX, top + 36, "No label was measured.", color=FAINT)
        return
    half = -(-len(structures) // 2)
    ends = [
        end
        for _, rows in structures
        for row in rows
        for end in (row["location"] - row["scale"], row["location"] + row["scale"])
    ]
    margin = 0.03 * (max(ends) - min(ends)) or 1.0
    limits = (min(ends) - margin, max(ends) + margin)
    pitch = (WIDTH_PX - MARGIN_PX) / 2
    for column, shown in enumerate((structures[:half], structures[half:])):
        if not shown:
            continue
        axes = axes_on(
            canvas, MARGIN_PX + column * pitch + 210, top + 34, pitch - 240, _DOT_PX * half
        )
        for line, (_, rows) in enumerate(shown):
            axes.axhline(line, color=LINE, alpha=0.4, linewidth=0.8, zorder=0)
            for row in rows:
                _draw_dot(axes, row, line)
        axes.set(xlim=limits, ylim=(half - 0.4, -0.6))
        axes.set_yticks(range(len(shown)), [shorten(name, 28) for name, _ in shown], **FONT)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("intensity (units of the image)", color=FAINT, fontsize=9, **FONT)
        axes.spines["left"].set_visible(False)
    _write_dot_key(canvas, top + 8)


def _draw_dot(axes: Axes, row: dict, line: int) -> None:
    shift, color = {"left": (-0.17, LEFT), "right": (0.17, RIGHT)}.get(
        row["hemisphere"], (0.0, INK)
    )
    at, spread = row["location"], row["scale"]
    axes.plot(
        [at - spread, at + spread], [line + shift] * 2, color=color, linewidth=1.4, alpha=0.75
    )
    axes.plot(
        at, line + shift, "o", color=color, markersize=4.5, markeredgewidth=1.1,
        markerfacecolor="none" if row["imputed"] else color,
    )  # fmt: skip


def _write_dot_key(canvas: Canvas, y: float) -> None:
    x = WIDTH_PX - 620
    for words, color in (("left", LEFT), ("right", RIGHT), ("midline", INK)):
        canvas.box(x, y - 5, 22, 10, color)
        canvas.text(x + 30, y, words)
        x += 110
    canvas.text(x, y, "hollow: imputed from another label", color=FAINT)
