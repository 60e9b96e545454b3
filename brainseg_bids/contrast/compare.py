# SPDX-License-Identifier: Apache-2.0
"""Distance between the intensities of a label in a synthetic and in a real image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True, eq=False)
class Histogram:
    """Histogram of intensities, with a uniform distribution within each bin.

    Parameters
    ----------
    edges : (n + 1,) float
        Ascending.
    counts : (n,) float
        Not negative, and not all zero.

    Raises
    ------
    ValueError
        If edges or counts are invalid.
    """

    edges: np.ndarray
    counts: np.ndarray

    def __post_init__(self) -> None:
        edges = np.asarray(self.edges, dtype=float)
        counts = np.asarray(self.counts, dtype=float)
        if edges.size != counts.size + 1 or (np.diff(edges) <= 0).any():
            raise ValueError(
                f"a histogram of {counts.size} counts needs {counts.size + 1} ascending edges, "
                f"not {edges.size}"
            )
        if (counts < 0).any() or not counts.sum() > 0:
            raise ValueError("a histogram's counts must not be negative, nor all 0")
        object.__setattr__(self, "edges", edges)
        object.__setattr__(self, "counts", counts)


Intensities = np.ndarray | Histogram
"""Samples, (n,) float, or their histogram."""


def energy_distance(real: Intensities, synthetic: Intensities) -> float:
    """Energy distance of two distributions of intensity, ``2 E|X-Y| - E|X-X'| - E|Y-Y'|``.

    In one dimension it is exactly twice the integral of the squared difference of the cumulative
    distributions (Székely and Rizzo 2013, J. Stat. Plan. Inference 143). It has the units of the
    intensities, and is zero if and only if the distributions are equal.
    ``scipy.stats.energy_distance`` is its square root, and accepts samples only.

    Parameters
    ----------
    real, synthetic : (n,) float or Histogram
        Samples, not empty, or a histogram.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If there are no samples, or some are not finite.

    Examples
    --------
    >>> energy_distance(np.array([0.0]), np.array([1.0]))
    2.0
    >>> one = Histogram([0, 1], [5])
    >>> energy_distance(one, one), round(energy_distance(one, Histogram([1, 2], [3])), 6)
    (0.0, 1.333333)
    """
    pair = [_ready(real), _ready(synthetic)]
    points = np.unique(np.concatenate([_points(one) for one in pair]))
    # Between neighbouring points both are straight lines, so their difference is one, too.
    start = _cumulative(pair[0], points, "right") - _cumulative(pair[1], points, "right")
    end = _cumulative(pair[0], points, "left") - _cumulative(pair[1], points, "left")
    first, last = start[:-1], end[1:]
    squares = (first**2 + first * last + last**2) / 3
    return float(2 * np.sum(squares * np.diff(points)))


def _ready(values: Intensities) -> Intensities:
    if isinstance(values, Histogram):
        return values
    samples = np.sort(np.asarray(values, dtype=float).ravel())
    if not samples.size or not np.isfinite(samples).all():
        raise ValueError("intensities to compare must be finite, and there must be some")
    return samples


def _points(values: Intensities) -> np.ndarray:
    return values.edges if isinstance(values, Histogram) else values


def _cumulative(
    values: Intensities, points: np.ndarray, side: Literal["left", "right"]
) -> np.ndarray:
    """Cumulative distribution just after (``right``) or before (``left``) each point."""
    if isinstance(values, Histogram):
        passed = np.concatenate([[0.0], np.cumsum(values.counts)]) / values.counts.sum()
        return np.interp(points, values.edges, passed)
    return np.searchsorted(values, points, side=side) / values.size
