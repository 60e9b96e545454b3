# SPDX-License-Identifier: Apache-2.0
"""How well a synthetic image's intensities match a real one's, label by label."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from brainseg_bids.contrast.measured import ContrastStatistics


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts between edges; within a bin intensities are taken to be spread evenly.

    Parameters
    ----------
    edges : (n + 1,) float
        Ascending.
    counts : (n,) float
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


@dataclass(frozen=True)
class Match:
    """One label in a real and in a synthetic image.

    Parameters
    ----------
    name : str
    energy : float
        See `energy_distance`; in the units of the intensities.
    real_median, synthetic_median : float
    real_iqr, synthetic_iqr : float
        Third less first quartile.
    """

    name: str
    energy: float
    real_median: float
    synthetic_median: float
    real_iqr: float
    synthetic_iqr: float


@dataclass(frozen=True)
class MatchSummary:
    """All labels of an image, each with the same weight.

    Parameters
    ----------
    labels : int
        That both images have.
    mean, median : float
        Energy distance over labels; NaN without labels.
    worst : str
        Label with the largest.
    worst_energy : float
    missing : tuple of str
        Labels that one of the two lacks.
    """

    labels: int
    mean: float
    median: float
    worst: str
    worst_energy: float
    missing: tuple[str, ...] = ()


def energy_distance(real: Intensities, synthetic: Intensities) -> float:
    """Energy distance of two distributions of intensity, ``2 E|X-Y| - E|X-X'| - E|Y-Y'|``.

    In one dimension it is exactly twice the integral of the squared difference of the cumulative
    distributions (Székely and Rizzo 2013, J. Stat. Plan. Inference 143). Zero if and only if
    the two are equal; in the units of the intensities. (``scipy.stats.energy_distance`` is its
    square root, and takes samples only.)

    Parameters
    ----------
    real, synthetic : (n,) float or Histogram
        Not empty; one may be samples and the other a histogram.

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


def compare_histograms(
    real: Mapping[str, Intensities], synthetic: Mapping[str, Intensities]
) -> tuple[Match, ...]:
    """Match of every label that both images have, in the order of ``real``.

    Parameters
    ----------
    real, synthetic : mapping of label to (n,) float or Histogram
        In the same units: after the network's rescaling, see `anatomy.intensity` and `histograms`.
    """
    return tuple(
        Match(
            name,
            energy_distance(real[name], synthetic[name]),
            *(quantile(one[name], 0.5) for one in (real, synthetic)),
            *(quantile(one[name], 0.75) - quantile(one[name], 0.25) for one in (real, synthetic)),
        )
        for name in real
        if name in synthetic
    )


def summarise(
    matches: tuple[Match, ...],
    real: Mapping[str, Intensities] | None = None,
    synthetic: Mapping[str, Intensities] | None = None,
) -> MatchSummary:
    """One row for an image: each label counts the same, however large.

    >>> rows = compare_histograms({"A": np.array([0.0]), "B": np.array([0.0])},
    ...     {"A": np.array([1.0]), "B": np.array([0.0])})
    >>> summarise(rows).mean, summarise(rows).worst
    (1.0, 'A')
    """
    missing = tuple(sorted(set(real or ()) ^ set(synthetic or ())))
    if not matches:
        return MatchSummary(0, float("nan"), float("nan"), "n/a", float("nan"), missing)
    energies = [match.energy for match in matches]
    worst = matches[int(np.argmax(energies))]
    mean, median = float(np.mean(energies)), float(np.median(energies))
    return MatchSummary(len(matches), mean, median, worst.name, worst.energy, missing)


def histograms(
    statistics: ContrastStatistics, low: float | None = None, high: float | None = None
) -> dict[str, Histogram]:
    """Histograms of an image's measured labels after the network's rescaling.

    Bins beyond ``low`` or ``high`` are cut there, and what they hold counts at the cut, within a
    thousandth.

    Parameters
    ----------
    statistics : ContrastStatistics
    low, high : float
        0.5th and 99.5th percentile of the image; of its head if not given.
    """
    low = statistics.head_low if low is None else low
    high = statistics.head_high if high is None else high
    span = high - low if high > low else 1.0
    edges = (np.asarray(statistics.edges, dtype=float) - low) / span
    return {
        name: _clipped(edges, np.asarray(label.histogram, dtype=float))
        for name, label in statistics.labels.items()
        if label.source == "measured" and sum(label.histogram) > 0
    }


def quantile(values: Intensities, share: float) -> float:
    """Intensity below which ``share`` of them lie.

    >>> quantile(Histogram([0, 1, 3], [1, 1]), 0.75)
    2.0
    """
    if not isinstance(values, Histogram):
        return float(np.quantile(_ready(values), share))
    passed = np.concatenate([[0.0], np.cumsum(values.counts)]) / values.counts.sum()
    bin_ = int(np.clip(np.searchsorted(passed, share, side="left") - 1, 0, values.counts.size - 1))
    low, high = values.edges[bin_], values.edges[bin_ + 1]
    held = passed[bin_ + 1] - passed[bin_]
    return float(low + (high - low) * ((share - passed[bin_]) / held if held > 0 else 0.0))


def _clipped(edges: np.ndarray, counts: np.ndarray) -> Histogram:
    """Bins within 0..1, what lies beyond in a narrow bin at either end."""
    cuts = np.array([0.0, 1e-3, 1 - 1e-3, 1.0])
    inner = edges[(edges > cuts[1]) & (edges < cuts[2])]
    passed = np.concatenate([[0.0], np.cumsum(counts)])
    whole = np.concatenate([cuts[:2], inner, cuts[2:]])
    cumulative = np.interp(whole, edges, passed)
    cumulative[0], cumulative[-1] = 0.0, passed[-1]
    return Histogram(whole, np.maximum(np.diff(cumulative), 0.0))


def _ready(values: Intensities) -> Intensities:
    if isinstance(values, Histogram):
        return values
    samples = np.sort(np.asarray(values, dtype=float).ravel())
    if not samples.size or not np.isfinite(samples).all():
        raise ValueError("intensities to compare must be finite, and there must be some")
    return samples


def _points(values: Intensities) -> np.ndarray:
    return values.edges if isinstance(values, Histogram) else values


def _cumulative(values: Intensities, points: np.ndarray, side: str) -> np.ndarray:
    """Cumulative distribution just after (``right``) or before (``left``) each point."""
    if isinstance(values, Histogram):
        passed = np.concatenate([[0.0], np.cumsum(values.counts)]) / values.counts.sum()
        return np.interp(points, values.edges, passed)
    return np.searchsorted(values, points, side=side) / values.size
