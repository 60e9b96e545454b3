# SPDX-License-Identifier: Apache-2.0
"""Intensities of many images in common units.

Magnitude images have arbitrary units. Each is multiplied by the factor at which its labels agree
best with those of the other images: this removes the gain and keeps the contrast between labels.
A percentile of the image would depend on fat, vessels and the field of view. MP2RAGE's UNI image
is a ratio from -0.5 to +0.5, which scanners store as whole numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from brainseg_bids.contrast.weighted import shrunk_deviation, weighted_deviation, weighted_median

TOP = 255.0
"""99.5th percentile of a typical head, or a ratio of +0.5, in the units of the prior."""
RATIO_RANGES = (
    *((-0.5, 0.5), (0.0, 1.0), (-1.0, 1.0), (0.0, 255.0), (0.0, 1000.0), (-500.0, 500.0)),
    *((0.0, 4095.0), (-2048.0, 2047.0), (0.0, 10000.0)),
)
"""Ranges in which a ratio from -0.5 to +0.5 is stored. Siemens uses 0 to 4095 (or 0 to 4096 by
rounding)."""
RANGE_SLACK = 0.02
"""Tolerance, relative to the width of a range, for values beyond it (interpolation, other last
number)."""

FAINT = 0.03
"""Labels darker than this fraction of the head's 99.5th percentile are not used for the gain."""
FEWEST = 3
"""Smallest number of brain labels; if an image has fewer, all labels are used."""
USUAL_LOG_SD = 0.1
"""Prior standard deviation of the logarithm of a label's location about the common gain."""
ROUNDS, MEDIAN_ROUNDS = 50, 5
CLIP = 2.0
"""Number of standard deviations at which the influence of a label on the gain of its image is
limited."""


def gains(
    locations: np.ndarray,
    errors: np.ndarray,
    *,
    brain: np.ndarray,
    head_high: np.ndarray,
    weights: np.ndarray,
) -> np.ndarray:
    """Factor of each image that brings magnitude images to common units.

    The logarithm of a location is modelled as the gain of the image, plus the level of the label,
    plus a residual. Median polish (Tukey 1977, *Exploratory Data Analysis*) gives an initial
    estimate that is robust if up to half of the labels of an image are wrong. Huber's M-estimator
    (1981, *Robust Statistics*) refines it, since medians are unstable where white and grey matter
    differ in opposite directions. Labels are weighted by inverse variance, that over images plus
    the squared error in this image. The factors are scaled so that the median 99.5th percentile
    of the heads is `TOP`.

    Parameters
    ----------
    locations : (n, p) float
        Location of p labels in n images, in units of each image; NaN if it was not measured.
    errors : (n, p) float
        Standard error of the locations, in the same units.
    brain : (p,) bool
        Whether a label belongs to the brain.
    head_high : (n,) float
        99.5th percentile of the voxels of each head.
    weights : (n,) float
        Number of subjects that an image stands for.

    Returns
    -------
    (n,) float
        Positive factors.

    Examples
    --------
    >>> one = np.array([20.0, 60, 100])
    >>> two = gains(np.stack([one, 4 * one]), np.ones((2, 3)), brain=np.ones(3, bool),
    ...     head_high=np.array([102.0, 408.0]), weights=np.ones(2))
    >>> two.round(3).tolist()
    [2.5, 0.625]
    """
    logs, precision_of = _logarithms(locations, errors, brain, head_high)
    gain = _log_gains(logs, precision_of, np.log(head_high), weights)
    aligned = head_high * np.exp(-gain)
    return TOP / weighted_median(aligned, weights) * np.exp(-gain)


def _log_gains(
    logs: np.ndarray,
    precision_of: Callable[[np.ndarray], np.ndarray],
    gain: np.ndarray,
    weights: np.ndarray,
) -> np.ndarray:
    """Logarithm of each image's gain, (n,), from a first guess: median polish, then Huber's."""
    known = np.isfinite(logs)
    subjects = weights @ known
    for turn in range(ROUNDS):
        apart = logs - gain[:, None]
        own_sd = _own_sd(weighted_deviation(apart, weights), subjects)
        apart = apart - weighted_median(apart, weights)
        precision = precision_of(own_sd)
        if turn < MEDIAN_ROUNDS:
            step = weighted_median(apart.T, precision.T)
        else:
            clipped = np.clip(np.where(known, apart, 0.0), -CLIP * own_sd, CLIP * own_sd)
            step = (precision * clipped).sum(axis=1) / np.maximum(precision.sum(axis=1), 1e-12)
        step = np.where(np.isfinite(step), step, 0.0)
        gain = gain + step
        if turn >= MEDIAN_ROUNDS and np.abs(step).max() < 1e-9:
            break
    return gain


def _own_sd(deviation: np.ndarray, subjects: np.ndarray) -> np.ndarray:
    """Spread of each label about the gain, (p,)."""
    own = shrunk_deviation(np.nan_to_num(deviation), USUAL_LOG_SD, subjects)
    # Else the steadiest label would weigh ever more, until it alone were the gain.
    known = subjects > 0
    return np.maximum(own, np.median(own[known]) / 2) if known.any() else own


def _logarithms(
    locations: np.ndarray, errors: np.ndarray, brain: np.ndarray, head_high: np.ndarray
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """Log locations that say something about gain, (n, p), and their precision given own sd."""
    clear = np.nan_to_num(locations, nan=-np.inf) > FAINT * head_high[:, None]
    enough = (clear & brain).sum(axis=1) >= FEWEST
    clear &= brain | ~enough[:, None]
    safe = np.where(clear, locations, 1.0)
    error = np.where(clear, errors / safe, 0.0)

    def precision_of(own_sd: np.ndarray) -> np.ndarray:
        return np.where(clear, 1 / (own_sd**2 + error**2), 0.0)

    return np.where(clear, np.log(safe), np.nan), precision_of


def ratio_range(low: float, high: float) -> tuple[float, float]:
    """Stored values of the ratios -0.5 and +0.5, for an image with values ``low`` to ``high``.

    The narrowest of `RATIO_RANGES` that contains the values, with a tolerance of `RANGE_SLACK`,
    and of which both halves occur; of two equally narrow ones, that with the higher start. If
    there is none, the values themselves. In every head, CSF is in the lower half and white matter
    in the upper half.

    Examples
    --------
    >>> ratio_range(-0.49, 0.45), ratio_range(3, 4090), ratio_range(0.02, 0.9)
    ((-0.5, 0.5), (0.0, 4095.0), (0.0, 1.0))
    >>> ratio_range(0, 1000), ratio_range(0, 1500)
    ((0.0, 1000.0), (0.0, 1500.0))
    """
    fitting = []
    for bottom, top in RATIO_RANGES:
        width = top - bottom
        held = low >= bottom - RANGE_SLACK * width and high <= top + RANGE_SLACK * width
        if held and low < bottom + width / 2 < high:
            fitting.append((width, -bottom, (bottom, top)))
    return min(fitting)[2] if fitting else (float(low), float(high))
