# SPDX-License-Identifier: Apache-2.0
"""Bland-Altman analysis of volumes: bias of a rater and limits of agreement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from scipy import stats

from brainseg_bids.anatomy.grid import triple
from brainseg_bids.evaluation.bootstrap import number_subjects, subject_means
from brainseg_bids.evaluation.scores import STATUSES, Row, Scores, TableLine, read_scores

Z = 1.96
"""Limits contain 95 % of normally distributed differences."""
FEWEST_FOR_SLOPE = 3


@dataclass(frozen=True)
class BlandAltman(TableLine):
    """Predicted minus reference volume of one structure (Bland and Altman, Lancet 327, 1986).

    Parameters
    ----------
    reference, rater, stratum, name : str
    unit : {"mm3", "percent"}
        ``percent`` is relative to the mean of both volumes.
    n_subjects, n_images : int
        Number of subjects and images in which both maps have the structure.
    n_reference_only, n_prediction_only, n_neither : int
        Number of images that are left out, since their differences are not normally distributed.
    bias : float or None
        Mean over subjects; None if no image is left.
    bias_low, bias_high : float or None
        95 % confidence interval by Student's t. This and all following values are None with fewer
        than two subjects.
    sd : float or None
        Standard deviation of a single difference. With several images per subject, it combines the
        variance between and within subjects (Bland and Altman, Journal of Biopharmaceutical
        Statistics 17, 2007).
    lower, upper : float or None
        Limits of agreement, bias - 1.96 sd and bias + 1.96 sd.
    lower_low, lower_high, upper_low, upper_high : float or None
        Ends of their 95 % confidence intervals.
    slope, slope_low, slope_high, slope_p : float or None
        Proportional bias: slope of the subjects' mean differences over their mean volumes in mm³,
        with its interval and p (Bland and Altman, Lancet 346, 1995). None with fewer than three
        subjects or equal volumes.
    note : str
        Reason why values are missing.
    points : tuple of (str, float, float)
        Points of the plot: image, mean of both volumes in mm³, difference in ``unit``. Not part of
        `row`.
    """

    reference: str
    rater: str
    stratum: str
    name: str
    unit: str
    n_subjects: int
    n_images: int
    n_reference_only: int
    n_prediction_only: int
    n_neither: int
    bias: float | None
    bias_low: float | None
    bias_high: float | None
    sd: float | None
    lower: float | None
    lower_low: float | None
    lower_high: float | None
    upper: float | None
    upper_low: float | None
    upper_high: float | None
    slope: float | None
    slope_low: float | None
    slope_high: float | None
    slope_p: float | None
    note: str
    points: tuple[tuple[str, float, float], ...]

    def row(self) -> dict[str, int | float | str | None]:
        """Row of a table: values by column, without the points."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "points"}


def limits_of_agreement(rows: Sequence[Row]) -> list[BlandAltman]:
    """Bias and limits of agreement for each rater, structure and stratum, in mm³ and in percent.

    Parameters
    ----------
    rows : sequence of mapping
        See `scores.read_scores`; ``reference_mm3`` and ``predicted_mm3`` are needed.

    Raises
    ------
    ValueError
        If rows have no volumes or contradict each other.
    """
    result = []
    for scores in read_scores(rows):
        if lacking := {"reference_mm3", "predicted_mm3"} - set(scores.columns):
            raise ValueError(f"{scores.reference}: rows have no column {min(lacking)!r}")
        for stratum, part in scores.by_stratum():
            result += [
                _bland_altman(part, stratum, rater, name, unit)
                for rater in range(len(part.raters))
                for name in range(len(part.names))
                if (part.status[rater, :, name] >= 0).any()
                for unit in ("mm3", "percent")
            ]
    return result


def _bland_altman(scores: Scores, stratum: str, rater: int, name: int, unit: str) -> BlandAltman:
    """One line."""
    status = scores.status[rater, :, name]
    both = status == STATUSES.index("both")
    truth, guess = (
        scores.columns[column][rater, both, name] for column in ("reference_mm3", "predicted_mm3")
    )
    if not np.isfinite([truth, guess]).all():
        raise ValueError(
            f"{scores.reference}, {scores.names[name]}, rater {scores.raters[rater]}: a volume is "
            "no number although both maps have the structure; compare again"
        )
    size, difference = (truth + guess) / 2, guess - truth
    if unit == "percent":
        difference = 100 * difference / size
    images = [image for image, keep in zip(scores.images, both, strict=True) if keep]
    subjects = [subject for subject, keep in zip(scores.subjects, both, strict=True) if keep]
    counts = triple(int((status == code).sum()) for code in (1, 2, 3))
    where = (scores.reference, scores.raters[rater], stratum, scores.names[name], unit)
    points = tuple(zip(images, size.tolist(), difference.tolist(), strict=True))
    n = (len(set(subjects)), len(images), *counts)
    numbers: tuple[Any, ...] = (*_numbers(size, difference, subjects), points)
    return BlandAltman(*where, *n, *numbers)


def _numbers(size: np.ndarray, difference: np.ndarray, subjects: Sequence[str]) -> tuple[Any, ...]:
    """Fields of `BlandAltman` from ``bias`` to ``note``."""
    n = len(set(subjects))
    if n == 0:
        return (*[None] * 14, "no image in which both have it")
    means = subject_means(difference, subjects)
    bias = float(means.mean())
    if n == 1:
        return (bias, *[None] * 13, "1 subject: no limits of agreement")
    t = float(stats.t.ppf(0.975, n - 1))
    bias_half = t * float(means.std(ddof=1)) / n**0.5
    sd = single_sd(difference, subjects)
    # The limits' variance is that of the mean and 1.96 times that of the standard deviation.
    half = t * (bias_half**2 / t**2 + Z**2 * sd**2 / (2 * (n - 1))) ** 0.5
    ends = [
        end
        for limit in (bias - Z * sd, bias + Z * sd)
        for end in (limit, limit - half, limit + half)
    ]
    slope = _slope(subject_means(size, subjects), means)
    note = "" if slope[0] is not None else "no slope: too few subjects, or equal volumes"
    return (bias, bias - bias_half, bias + bias_half, sd, *ends, *slope, note)


def single_sd(difference: np.ndarray, subjects: Sequence[str]) -> float:
    """Standard deviation of a single difference, from a one-way analysis of variance.

    Parameters
    ----------
    difference : (n,) float
    subjects : (n,) sequence
        At least two different subjects. With one value for each subject, the result is the sample
        standard deviation.

    Examples
    --------
    >>> single_sd(np.array([1.0, 3.0]), ["a", "b"]) == 2**0.5
    True
    >>> single_sd(np.array([1.0, 1.0, 3.0, 3.0]), ["a", "a", "b", "b"]) == 2**0.5
    True
    """
    means = subject_means(difference, subjects)
    numbers, sizes = number_subjects(subjects)
    n, total = len(sizes), len(difference)
    if total == n:
        return float(means.std(ddof=1))
    within = float(((difference - means[numbers]) ** 2).sum()) / (total - n)
    between = float((sizes * (means - difference.mean()) ** 2).sum()) / (n - 1)
    typical = (total - (sizes**2).sum() / total) / (n - 1)
    return float((max(0.0, (between - within) / typical) + within) ** 0.5)


def _slope(size: np.ndarray, difference: np.ndarray) -> tuple[float | None, ...]:
    """Slope, its interval and p."""
    n = len(size)
    if n < FEWEST_FOR_SLOPE or np.ptp(size) == 0:
        return (None,) * 4
    fit = stats.linregress(size, difference)
    half = float(stats.t.ppf(0.975, n - 2) * fit.stderr)
    return float(fit.slope), float(fit.slope - half), float(fit.slope + half), float(fit.pvalue)
