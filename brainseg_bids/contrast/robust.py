# SPDX-License-Identifier: Apache-2.0
"""Robust location and scale."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import ndtr

MAD_TO_SD = 1.4826
"""Standard deviation of a normal distribution in units of its median absolute deviation."""

CUT_SD = 2.5
"""Values further from the location than this many scales do not count."""

_DENSITY = math.exp(-0.5 * CUT_SD**2) / math.sqrt(2 * math.pi)
KEPT_VARIANCE = 1 - 2 * CUT_SD * _DENSITY / (2 * float(ndtr(CUT_SD)) - 1)
"""Variance of a standard normal distribution truncated at `CUT_SD` on both sides: 0.911."""


def median_mad(values: np.ndarray) -> tuple[float, float]:
    """Median, and 1.4826 times the median absolute deviation from it.

    Parameters
    ----------
    values : (n,) float

    Examples
    --------
    >>> median_mad(np.array([1.0, 2, 3, 4, 1000]))
    (3.0, 1.4826)
    """
    middle = float(np.median(values))
    return middle, MAD_TO_SD * float(np.median(np.abs(values - middle)))


def location_scale(values: np.ndarray, weights: np.ndarray | None = None) -> tuple[float, float]:
    """Robust mean and standard deviation, by iterated trimming from median and MAD.

    In each step, values further than `CUT_SD` scales from the location are left out, and the
    standard deviation of the rest is corrected for the truncation. The estimate is unbiased for
    normal distributions. It is redescending: gross outliers have no influence (Maronna et al.
    2019, *Robust Statistics*, 2.8).

    Parameters
    ----------
    values : (n,) float
    weights : (n,) float, optional
        Weight of each value.

    Returns
    -------
    location, scale : float

    Examples
    --------
    >>> values = np.random.default_rng(0).normal(100, 5, 20_000)
    >>> values[:2000] = 200
    >>> location, scale = location_scale(values)
    >>> abs(location - 100) < 0.2, abs(scale - 5) < 0.15
    (True, True)
    """
    values = np.asarray(values, dtype=np.float64)
    weights = np.ones_like(values) if weights is None else np.asarray(weights, dtype=np.float64)
    location, scale = median_mad(values)
    # More than half of the values are equal, as in coarsely quantised images.
    scale = scale or float(values.std())
    for _ in range(50):
        kept = np.abs(values - location) <= CUT_SD * scale
        total = weights[kept].sum()
        if scale == 0 or total == 0:
            return location, scale
        mean = float((weights[kept] * values[kept]).sum() / total)
        variance = float((weights[kept] * (values[kept] - mean) ** 2).sum() / total)
        moved = abs(mean - location)
        location, before, scale = mean, scale, math.sqrt(variance / KEPT_VARIANCE)
        if moved <= 1e-4 * scale and abs(scale - before) <= 1e-4 * scale:
            break
    return location, scale
