# SPDX-License-Identifier: Apache-2.0
"""Joint distribution of the locations of labels over images: means, spreads, correlations.

Spreads and correlations are estimated separately (Barnard, McCulloch and Meng 2000, Statistica
Sinica 10), each with shrinkage towards a prior value. One subject is sufficient, and several
images of one subject count as one. A missing location does not affect the estimates of other
labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from brainseg_bids.anatomy.labels import Label
from brainseg_bids.contrast.weighted import (
    PSEUDO_SUBJECTS,
    shrunk_deviation,
    weighted_deviation,
    weighted_median,
)

USUAL_FRAC = 0.12
"""Prior standard deviation over images relative to the mean. The median over the classes of the T1
priors published with SynthSeg (Billot et al. 2023) is 0.13, for brain tissue 0.12."""
USUAL_UNITS = 5.0
"""Prior standard deviation that is added in quadrature, with `TOP` = 255: CSF and bone vary more
than in proportion to their low mean."""

CLIP = 3.0
"""Number of standard deviations at which the deviation of a single label is limited."""
CLIPPED_VARIANCE = 0.99501
"""Variance of a standard normal variable clipped at `CLIP`."""
FAR = 2.5
"""Mean deviation of an image in standard deviations beyond which its weight is reduced."""
OUTLYING = 3.5
"""Mean deviation of an image in standard deviations beyond which it is reported."""
LEAST_FRAC, LEAST_UNITS = 0.03, 1.0
"""Smallest standard deviation of a label, relative to its mean and in units of 255."""
NORMAL_MEAN_ABS = 0.798
"""Mean absolute value of a standard normal variable."""
INDEPENDENT = 4.0
"""Effective number of independent labels, since labels are correlated."""

SHARED = {"head": 0.2, "compartment": 0.4, "tissue": 0.2, "pair": 0.15}
"""Prior variance that a label has in common with the whole head, with the brain (or all that is
not brain), with the same tissue, and with its counterpart; 0.05 is its own."""

TISSUES = {1: "grey", 8: "grey", 9: "grey", 11: "grey", 2: "white", 10: "white", 7: "white"}
"""BIDS standard codes with similar intensities; every other code is a tissue of its own."""


@dataclass(frozen=True)
class Joint:
    """Joint distribution of the locations of p labels, estimated from n images.

    Parameters
    ----------
    mean, sd : (p,) float
        Mean and standard deviation over images.
    correlation : (p, p) float
        Positive definite.
    outlyingness : (n,) float
        Mean distance of an image's labels from those of other images, in robust standard
        deviations; 1 is expected.
    weights : (n,) float
        Number of subjects that an image stands for, reduced for outliers.
    """

    mean: np.ndarray
    sd: np.ndarray
    correlation: np.ndarray
    outlyingness: np.ndarray
    weights: np.ndarray


def typical_sd(mean: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Prior standard deviation over images for each mean, in the units of the prior, (p,) float.

    >>> typical_sd(np.array([160.0, 44.0, 8.0]), np.array([False, False, True])).round(1).tolist()
    [19.8, 7.3, 2.0]
    """
    tissue = np.hypot(USUAL_FRAC * mean, USUAL_UNITS)
    # Air is noise, or exactly zero: it varies by a share, 1.8 of 7.0 in those priors.
    return np.where(background, np.minimum(0.25 * np.abs(mean), USUAL_UNITS), tissue)


def typical_correlation(labels: Sequence[Label]) -> np.ndarray:
    """Prior correlation of the locations of labels, (p, p) float.

    It is a sum of variance components (`SHARED`), and therefore positive definite: 0.95 between
    counterparts, 0.8 within a tissue, 0.6 within the brain, 0.2 between brain and the rest of the
    head, 0 with air.

    Examples
    --------
    >>> from brainseg_bids.anatomy.labels import LabelTable
    >>> table = LabelTable.packaged("fullhead")
    >>> typical_correlation([table[n] for n in (2, 41, 3, 511, 0)]).round(2)[0].tolist()
    [1.0, 0.95, 0.6, 0.2, 0.0]
    """
    keys = [
        {
            "head": "head",
            "compartment": label.is_brain,
            "tissue": (label.is_brain, TISSUES.get(label.mapping, label.mapping)),
            "pair": min(label.index, label.mirror),
        }
        if not is_background(label)
        else dict.fromkeys(SHARED, f"air {label.index}")
        for label in labels
    ]
    total = np.zeros((len(labels), len(labels)))
    for part, share in SHARED.items():
        mine = np.unique([str(key[part]) for key in keys], return_inverse=True)[1]
        total += share * (mine[:, None] == mine[None, :])
    return total + (1 - sum(SHARED.values())) * np.eye(len(labels))


def is_background(label: Label) -> bool:
    """Whether a label is air or background: code 0 of the BIDS standard table."""
    return label.mapping == 0


def fit(
    values: np.ndarray, subjects: np.ndarray, *, labels: Sequence[Label], target: np.ndarray
) -> Joint:
    """Robust joint distribution of the columns of ``values``.

    Parameters
    ----------
    values : (n, p) float
        Locations of p labels in n images, in the units of the prior; NaN if not measured. Every
        column has at least one value.
    subjects : (n,) float
        Number of subjects that an image stands for: 1 divided by the number of images of its
        subject.
    labels : sequence of p Label
    target : (p, p) float
        Target of the shrinkage of correlations, see `typical_correlation`.

    Returns
    -------
    Joint
    """
    background = np.array([is_background(label) for label in labels])
    outlyingness = _outlyingness(values, subjects, background)
    weights = subjects * np.minimum(1.0, (FAR / np.maximum(outlyingness, FAR)) ** 2)
    mean, sd = _centre(values, weights, background)
    scores = np.clip((values - mean) / sd, -CLIP, CLIP)
    return Joint(mean, sd, _correlation(scores, weights, target), outlyingness, weights)


def _outlyingness(values: np.ndarray, subjects: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Mean distance of each image's labels from the median in robust spreads, (n,)."""
    middle = weighted_median(values, subjects)
    known = np.isfinite(values)
    deviation = shrunk_deviation(
        weighted_deviation(values, subjects), typical_sd(middle, background), subjects @ known
    )
    least = np.maximum(LEAST_FRAC * np.abs(middle), LEAST_UNITS)
    far = np.abs(values - middle) / np.maximum(deviation, least)
    # One label far off is that label's affair, so no label counts more than ten.
    far = np.where(known, np.minimum(far, 10.0), 0.0)
    return far.sum(axis=1) / np.maximum(known.sum(axis=1), 1) / NORMAL_MEAN_ABS


def _centre(
    values: np.ndarray, weights: np.ndarray, background: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and spread of each column with deviations clipped at `CLIP` spreads (Huber 1981)."""
    known = np.isfinite(values)
    heads = weights @ known
    freedom = np.maximum(heads - 1, 0)
    mean = weighted_median(values, weights)
    usual = typical_sd(mean, background)
    sd = np.maximum(shrunk_deviation(weighted_deviation(values, weights), usual, heads), 1e-9)
    for _ in range(30):
        scores = np.where(known, np.clip((values - mean) / sd, -CLIP, CLIP), 0)
        scatter = sd**2 * (weights @ scores**2) / CLIPPED_VARIANCE
        mean = mean + sd * (weights @ scores) / heads
        usual = np.maximum(typical_sd(mean, background), 1e-9)
        before = PSEUDO_SUBJECTS * _level(scatter / usual**2, freedom) * usual**2
        sd = np.sqrt((before + scatter) / (PSEUDO_SUBJECTS + freedom))
    return mean, sd


def _level(ratios: np.ndarray, freedom: np.ndarray) -> float:
    """Factor on all usual variances that these images suggest (empirical Bayes).

    Labels tell together how alike the images are long before each does by itself. Their median
    variance over the usual one counts as `INDEPENDENT` labels' evidence.

    Parameters
    ----------
    ratios : (p,) float
        Scatter over usual variance; its expectation is ``freedom`` where spreads are as usual.
    freedom : (p,) float
        Subjects less one.
    """
    has = freedom > 0
    if not has.any():
        return 1.0
    # Median of a chi-square variable over its mean (Wilson and Hilferty 1931).
    median = np.maximum(1 - 2 / (9 * np.maximum(freedom[has], 0.5)), 0.1) ** 3
    ratio = float(np.median(ratios[has] / freedom[has] / median))
    evidence = INDEPENDENT * float(np.median(freedom[has]))
    return (PSEUDO_SUBJECTS + evidence * ratio) / (PSEUDO_SUBJECTS + evidence)


def _correlation(scores: np.ndarray, weights: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Correlation of the columns of ``scores`` drawn towards ``target``, (p, p).

    Gaps are filled by their expectation given the image's other labels, with the variance that
    this leaves (expectation maximisation; Little and Rubin 2002, section 11.2), so the result is
    positive definite, which correlations of pairs are not.
    """
    known = np.isfinite(scores)
    square = np.where(known, scores, 0.0) ** 2
    moment = (weights @ square) / np.maximum(weights @ known, 1e-12)
    # A label that never varies says nothing about correlations.
    varies = moment > 1e-12
    scores = np.where(known & varies, scores / np.sqrt(np.where(varies, moment, 1.0)), np.nan)
    share = _shrinkage(scores, weights, target)
    estimate = target
    if share >= 1:
        return estimate
    patterns, member = np.unique(np.isfinite(scores), axis=0, return_inverse=True)
    member = member.reshape(-1)
    for _ in range(1 if patterns.all() else 15):
        moments = sum(
            _moments(scores[member == i], weights[member == i], seen, estimate)
            for i, seen in enumerate(patterns)
        )
        scale = 1 / np.sqrt(np.diag(moments))
        estimate = share * target + (1 - share) * moments * np.outer(scale, scale)
    estimate = (estimate + estimate.T) / 2
    np.fill_diagonal(estimate, 1.0)
    return estimate


def _moments(
    scores: np.ndarray, weights: np.ndarray, seen: np.ndarray, estimate: np.ndarray
) -> np.ndarray:
    """Expected weighted sum of products of images that have the same labels, (p, p)."""
    filled = np.where(seen, scores, 0.0)
    left = np.zeros_like(estimate)
    gaps = ~seen
    if seen.any() and gaps.any():
        slope = np.linalg.solve(estimate[np.ix_(seen, seen)], estimate[np.ix_(seen, gaps)])
        filled[:, gaps] = filled[:, seen] @ slope
        open_ = estimate[np.ix_(gaps, gaps)] - estimate[np.ix_(gaps, seen)] @ slope
        left[np.ix_(gaps, gaps)] = open_
    elif gaps.any():
        left = estimate
    return (filled * weights[:, None]).T @ filled + weights.sum() * left


def _shrinkage(scores: np.ndarray, weights: np.ndarray, target: np.ndarray) -> float:
    """Share of the target that minimises the expected squared error of all correlations, 0..1.

    Variance of the correlations over their squared distance from the target (Ledoit and Wolf
    2003, J. Empirical Finance 10; Schäfer and Strimmer 2005, Stat. Appl. Genet. Mol. Biol. 4,
    article 32), but no less than `PSEUDO_SUBJECTS` subjects' worth.
    """
    known = np.isfinite(scores)
    z = np.where(known, scores, 0.0)
    weighted = weights[:, None]
    heads = (known * weighted).T @ known.astype(float)
    freedom = weights.sum() - 1
    if freedom <= 0:
        return 1.0
    least = PSEUDO_SUBJECTS / (PSEUDO_SUBJECTS + freedom)
    pairs = (heads > 2) & ~np.eye(len(target), dtype=bool)
    if not pairs.any():
        return least
    of = np.where(pairs, heads, 1.0)

    def mean(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return (first * weighted).T @ second / of

    r = mean(z, z)
    square = mean(z**2, z**2)
    skew, fourth = mean(z**3, z), mean(z**4, known.astype(float))
    # Influence of an image on a correlation: z1 z2 - r (z1^2 + z2^2) / 2.
    influence = square - r * (skew + skew.T) + r**2 / 4 * (fourth + fourth.T + 2 * square)
    variance = influence / np.maximum(of - 1, 1)
    best = variance[pairs].sum() / max(((r - target)[pairs] ** 2).sum(), 1e-12)
    return float(np.clip(best, least, 1.0))
