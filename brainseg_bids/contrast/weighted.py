# SPDX-License-Identifier: Apache-2.0
"""Weighted medians of columns with missing values, and lognormal spreads from them."""

from __future__ import annotations

import numpy as np

from brainseg_bids.contrast.robust import MAD_TO_SD

PSEUDO_SUBJECTS = 2.0
"""What is known beforehand about a spread or a correlation weighs as much as this many subjects.

With an inverse-Wishart prior on the covariance of p labels this is p + 1 + `PSEUDO_SUBJECTS`
degrees of freedom: the posterior mean is then
``(PSEUDO_SUBJECTS * before + scatter) / (PSEUDO_SUBJECTS + subjects - 1)``.
"""


def weighted_median(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted median of each column; NaN values are missing.

    Parameters
    ----------
    values : (n,) or (n, p) float
    weights : broadcast to ``values``
        Not negative.

    Returns
    -------
    () or (p,) float
        The mean of two values if the weights below and above are equal; NaN if all values of a
        column are missing.

    Examples
    --------
    >>> weighted_median(np.array([1.0, 2, 10, np.nan]), np.array([1.0, 1, 1, 1])).item()
    2.0
    >>> weighted_median(np.array([1.0, 2, 10]), np.array([1.0, 1, 2])).item()
    6.0
    """
    values = np.asarray(values, dtype=float)
    known = np.isfinite(values)
    shape = np.shape(weights) + (1,) * (values.ndim - np.ndim(weights))
    weights = np.where(known, np.broadcast_to(np.reshape(weights, shape), values.shape), 0.0)
    order = np.argsort(np.where(known, values, np.inf), axis=0, kind="stable")
    values = np.take_along_axis(values, order, axis=0)
    passed = np.cumsum(np.take_along_axis(weights, order, axis=0), axis=0)
    half = passed[-1] / 2
    slack = 1e-9 * half
    low = np.argmax(passed >= half - slack, axis=0)
    high = np.argmax(passed > half + slack, axis=0)
    pair = [np.take_along_axis(values, at[None], axis=0)[0] for at in (low, high)]
    return np.where(half > 0, (pair[0] + pair[1]) / 2, np.nan)


def weighted_deviation(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`MAD_TO_SD` times the weighted median absolute deviation of each column."""
    apart = np.abs(values - weighted_median(values, weights))
    return MAD_TO_SD * weighted_median(apart, weights)


def shrunk_deviation(
    deviation: np.ndarray, before: np.ndarray | float, subjects: np.ndarray | float
) -> np.ndarray:
    """Standard deviation shrunk towards the prior value ``before``, the more the fewer subjects.

    >>> shrunk_deviation(0.1, 0.3, 1.0).item(), round(shrunk_deviation(0.1, 0.3, 1e6).item(), 3)
    (0.3, 0.1)
    """
    freedom = np.maximum(np.asarray(subjects) - 1, 0)
    spread = np.where(freedom > 0, deviation, 0.0)
    variance = (PSEUDO_SUBJECTS * np.square(before) + freedom * np.square(spread)) / (
        PSEUDO_SUBJECTS + freedom
    )
    return np.sqrt(variance)


def log_spread(
    values: np.ndarray, weights: np.ndarray, *, before: float, least: float
) -> tuple[np.ndarray, np.ndarray]:
    """Median and standard deviation of the logarithm of positive quantities, for each column.

    Parameters
    ----------
    values : (n,) or (n, p) float
        NaN, zero and negative values count as missing.
    weights : (n,) float
        Number of subjects that an image stands for; the sum is the number of subjects.
    before : float
        Prior standard deviation of the logarithm, see `PSEUDO_SUBJECTS`.
    least : float
        Smallest result for the standard deviation.

    Returns
    -------
    median, log_sd : () or (p,) float
        NaN and ``before`` if all values of a column are missing.

    Examples
    --------
    >>> median, log_sd = log_spread(np.array([2.0, 2.0]), np.ones(2), before=0.3, least=0.05)
    >>> median.item(), round(log_sd.item(), 3)
    (2.0, 0.245)
    """
    values = np.asarray(values, dtype=float)
    known = np.isfinite(values) & (values > 0)
    logs = np.log(np.where(known, values, 1.0))
    logs[~known] = np.nan
    subjects = np.tensordot(weights, known, axes=1)
    deviation = np.nan_to_num(weighted_deviation(logs, weights))
    log_sd = np.maximum(shrunk_deviation(deviation, before, subjects), least)
    return np.exp(weighted_median(logs, weights)), log_sd
