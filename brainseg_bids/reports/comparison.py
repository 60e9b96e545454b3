# SPDX-License-Identifier: Apache-2.0
"""Labels in real heads and in synthetic ones, made by one method or another."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from brainseg_bids.contrast.compare import Histogram, Intensities, energy_distance
from brainseg_bids.reports.canvas import FAINT, FONT, Canvas, shorten
from brainseg_bids.reports.densities import IntensityComparison, density, quantile_range, rebinned
from brainseg_bids.reports.plots import name_axes, no_data
from brainseg_bids.reports.slices import WIDTH_PX

METHODS = {"fitted": "#8ab4f8", "agnostic": "#e58a54", "synthseg": "#7fd38b"}
"""Colours of the usual ways to make synthetic images; others get one of `_MORE_COLORS`."""
_BINS = 64  # of a histogram, from the lowest value to the highest
_MORE_COLORS = ("#d6a3f5", "#f2d06b", "#6fd6d6", "#f28b82")


def compare(
    real: Mapping[str, Intensities],
    synthetic: Mapping[str, Mapping[str, Intensities]],
) -> list[IntensityComparison]:
    """Real heads against what each method makes, label by label.

    Parameters
    ----------
    real : mapping of str to (n,) float or Histogram
        By label (or class), all in the same units.
    synthetic : mapping of str to mapping of str to (n,) float or Histogram
        By method, then by label. A label that a method lacks is left out of it.

    Returns
    -------
    list of IntensityComparison
        In the order of ``real``.

    Examples
    --------
    >>> one, = compare({"CSF": np.array([0.1, 0.2])}, {"fitted": {"CSF": np.array([0.1, 0.2])}})
    >>> one.label, one.distances, sum(one.real)
    ('CSF', {'fitted': 0.0}, 2.0)
    """
    found = []
    for label, own in real.items():
        made = {method: by[label] for method, by in synthetic.items() if label in by}
        ends = [_ends(values) for values in (own, *made.values())]
        low, high = min(end[0] for end in ends), max(end[1] for end in ends)
        edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
        found.append(
            IntensityComparison(
                label=label,
                distances={m: energy_distance(own, values) for m, values in made.items()},
                edges=tuple(edges.tolist()),
                real=tuple(_counts(own, edges).tolist()),
                synthetic={m: tuple(_counts(v, edges).tolist()) for m, v in made.items()},
            )
        )
    return found


def _ends(values: Intensities) -> tuple[float, float]:
    points = values.edges if isinstance(values, Histogram) else values
    return float(np.min(points)), float(np.max(points))


def _counts(values: Intensities, edges: np.ndarray) -> np.ndarray:
    if isinstance(values, Histogram):
        return rebinned(values.counts, values.edges, edges)
    return np.histogram(values, edges)[0].astype(float)


def one_side(comparisons: Sequence[IntensityComparison]) -> list[IntensityComparison]:
    """Without right labels whose left counterpart is there: a picture has to end somewhere.

    >>> rows = [IntensityComparison(name, {}) for name in ("Left-Putamen", "Right-Putamen", "CSF")]
    >>> [row.label for row in one_side(rows)]
    ['Left-Putamen', 'CSF']
    """
    there = {comparison.label for comparison in comparisons}
    return [
        comparison
        for comparison in comparisons
        if not comparison.label.startswith("Right-")
        or comparison.label.replace("Right-", "Left-", 1) not in there
    ]


def method_colors(comparisons: Iterable[IntensityComparison]) -> dict[str, str]:
    """A colour for each method, the same on every picture.

    >>> method_colors([IntensityComparison("CSF", {"fitted": 1.0, "own": 2.0})])
    {'fitted': '#8ab4f8', 'own': '#d6a3f5'}
    """
    methods: dict[str, str] = {}
    others = 0
    for comparison in comparisons:
        for method in (*comparison.distances, *comparison.synthetic):
            if method not in methods:
                known = METHODS.get(method)
                methods[method] = known or _MORE_COLORS[others % len(_MORE_COLORS)]
                others += known is None
    return methods


def write_methods(canvas: Canvas, y: float, colors: Mapping[str, str]) -> None:
    """Which colour stands for which method, at the right."""
    x = WIDTH_PX - 20 - 150 * len(colors)
    for method, color in colors.items():
        canvas.box(x, y - 5, 24, 10, color)
        canvas.text(x + 32, y, shorten(method, 14))
        x += 150


def draw_methods(axes: Axes, comparison: IntensityComparison, colors: Mapping[str, str]) -> None:
    """Histogram of real heads, filled, and of each method as a line; distances beside."""
    name = comparison.label
    name_axes(axes, title=shorten(name, 34))
    edges = np.asarray(comparison.edges, dtype=float)
    if len(edges) < 2 or not np.sum(comparison.real):
        no_data(axes, "nothing was measured")
        return
    real = density(comparison.real, edges)
    axes.stairs(real, edges, fill=True, color=FAINT, alpha=0.55, linewidth=0)
    tallest = real.max()
    for method, counts in comparison.synthetic.items():
        curve = density(counts, edges)
        axes.stairs(curve, edges, color=colors[method], linewidth=1.5)
        tallest = max(tallest, min(curve.max(), 2 * real.max()))
    every = [np.asarray(counts) for counts in (comparison.real, *comparison.synthetic.values())]
    axes.set_xlim(quantile_range(every, [edges] * len(every), 0.005) or (edges[0], edges[-1]))
    axes.set_ylim(0, 1.25 * tallest)  # room for the numbers
    axes.set_yticks([])
    n = len(comparison.distances)
    for place, (method, value) in enumerate(comparison.distances.items()):
        axes.text(
            1 - (n - 1 - place) * 0.2, 0.99, distance_text(value), transform=axes.transAxes,
            fontsize=9.5, color=colors[method], ha="right", va="top",
            weight="bold" if method == comparison.nearest else "normal", **FONT,
        )  # fmt: skip


def distance_text(value: float | None) -> str:
    """An energy distance for the eye.

    >>> distance_text(0.01234), distance_text(2e-7), distance_text(21.345), distance_text(None)
    ('0.012', '<0.001', '21', 'n/a')
    """
    if value is None or not math.isfinite(value):
        return "n/a"
    if value < 0.001:
        return "<0.001"
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"
