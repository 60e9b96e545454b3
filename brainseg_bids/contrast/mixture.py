# SPDX-License-Identifier: Apache-2.0
"""Mixture of one to three Gaussians for the intensities of a label, fitted to binned data."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from brainseg_bids.contrast.measured import Component
from brainseg_bids.contrast.robust import location_scale

BINS = 160

MOST_COMPONENTS = 3

GOOD_FIT = 0.04
"""Kolmogorov-Smirnov distance up to which one Gaussian is sufficient."""

SMALLEST_SHARE = 0.07
"""Components with a smaller weight are partial volume or wrong labels."""

INDEPENDENT_VOXELS = 2000
"""Effective number of independent voxels, since neighbouring voxels are correlated."""


@dataclass(frozen=True)
class Shape:
    """Distribution of the intensities of a label.

    Parameters
    ----------
    location, scale : float
        Mean and standard deviation of the whole mixture.
    components : tuple of Component
        Gaussians whose weights add up to 1.
    fit : float
        Kolmogorov-Smirnov distance of data and mixture, between 0 and 1.
    """

    location: float
    scale: float
    components: tuple[Component, ...]
    fit: float


def describe(values: np.ndarray, weights: np.ndarray | None = None) -> Shape:
    """Robust location and scale, and a Gaussian mixture if one Gaussian does not fit.

    The number of components is that with the lowest BIC (Schwarz 1978, Annals of Statistics
    6:461), with a sample size of at most `INDEPENDENT_VOXELS`. During the fit, a uniform component
    models outliers. The result does not contain it, nor components below `SMALLEST_SHARE`.

    Parameters
    ----------
    values : (n,) float
    weights : (n,) float, optional
        Weight of each value.

    Examples
    --------
    >>> rng = np.random.default_rng(1)
    >>> fat_and_muscle = np.concatenate([rng.normal(200, 15, 4000), rng.normal(80, 10, 6000)])
    >>> shape = describe(fat_and_muscle)
    >>> [(round(c.weight, 1), round(c.mean, -1)) for c in shape.components]
    [(0.6, 80.0), (0.4, 200.0)]
    >>> len(describe(rng.normal(100, 10, 5000)).components)
    1
    """
    values = np.asarray(values, dtype=np.float64)
    weights = np.ones_like(values) if weights is None else np.asarray(weights, dtype=np.float64)
    location, scale = location_scale(values, weights)
    single = (Component(1.0, location, scale),)
    distance = ks_distance(values, weights, single)
    one = Shape(location, scale, single, distance)
    if distance <= GOOD_FIT or scale == 0 or len(values) < 100:
        return one
    best = _best_mixture(values, weights)
    if len(best) == 1:
        return one
    location = sum(c.weight * c.mean for c in best)
    variance = sum(c.weight * (c.sd**2 + (c.mean - location) ** 2) for c in best)
    distance = ks_distance(values, weights, best)
    return Shape(location, math.sqrt(variance), best, distance)


def ks_distance(
    values: np.ndarray, weights: np.ndarray, components: tuple[Component, ...]
) -> float:
    """Kolmogorov-Smirnov distance of weighted values and a Gaussian mixture, between 0 and 1.

    Parameters
    ----------
    values, weights : (n,) float
    components : tuple of Component
    """
    order = np.argsort(values, kind="stable")
    ordered, share = values[order], np.cumsum(weights[order])
    share /= share[-1]
    # Equal values (integers) jump together: the distance is taken in the middle of the jump.
    steps = np.flatnonzero(np.append(np.diff(ordered) > 0, True))
    middle = (share[steps] + np.append(0.0, share[steps[:-1]])) / 2
    model = sum(c.weight * ndtr((ordered[steps] - c.mean) / max(c.sd, 1e-12)) for c in components)
    return float(np.abs(middle - model).max())


def _best_mixture(values: np.ndarray, weights: np.ndarray) -> tuple[Component, ...]:
    low, high = np.quantile(values, [0.002, 0.998])
    if high <= low:
        return (Component(1.0, float(low), 0.0),)
    counts, edges = np.histogram(values, bins=BINS, range=(low, high), weights=weights)
    centres = (edges[1:] + edges[:-1]) / 2
    independent = min(len(values), INDEPENDENT_VOXELS)
    counts = counts / counts.sum() * independent
    candidates = []
    for n in range(1, MOST_COMPONENTS + 1):
        components, log_likelihood = _expectation_maximisation(centres, counts, n)
        candidates.append(((3 * n) * math.log(independent) - 2 * log_likelihood, components))
    _, chosen = min(candidates, key=lambda pair: pair[0])
    kept = [c for c in chosen if c.weight >= SMALLEST_SHARE]
    total = sum(c.weight for c in kept)
    ordered = sorted(kept, key=lambda c: c.mean)
    return tuple(Component(c.weight / total, c.mean, c.sd) for c in ordered)


def _expectation_maximisation(
    centres: np.ndarray, counts: np.ndarray, n: int
) -> tuple[list[Component], float]:
    """Gaussians and one uniform component; the log likelihood of ``counts``."""
    total, width = counts.sum(), centres[1] - centres[0]
    share = np.cumsum(counts) / total
    mean = np.interp((np.arange(n) + 0.5) / n, share, centres)
    spread = math.sqrt((counts * (centres - (counts @ centres) / total) ** 2).sum() / total)
    sd, weight, uniform = np.full(n, spread / n), np.full(n, 0.98 / n), 0.02
    flat = 1 / (len(centres) * width)
    floor = max(width, 0.05 * spread)
    before = -math.inf
    for _ in range(300):
        z = (centres - mean[:, None]) / sd[:, None]
        density = weight[:, None] * np.exp(-0.5 * z**2) / (sd[:, None] * math.sqrt(2 * math.pi))
        whole = density.sum(0) + uniform * flat
        log_likelihood = float(counts @ np.log(whole * width))
        if log_likelihood - before < 1e-4:
            break
        before = log_likelihood
        members = counts * density / whole
        size = np.maximum(members.sum(1), 1e-9)
        mean = members @ centres / size
        sd = np.sqrt((members * (centres - mean[:, None]) ** 2).sum(1) / size)
        sd = np.maximum(sd, floor)
        # Outliers are the exception; a broad label is to be fitted by Gaussians.
        uniform = min(float((counts * uniform * flat / whole).sum() / total), 0.08)
        weight = size / size.sum() * (1 - uniform)
    parts = zip(weight.tolist(), mean.tolist(), sd.tolist(), strict=True)
    return [Component(w, m, s) for w, m, s in parts], log_likelihood
