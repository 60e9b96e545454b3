# SPDX-License-Identifier: Apache-2.0
"""Tissues of a contrast prior, without the noise that was measured with them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import ndtri

from brainseg_bids.contrast.prior import LabelPrior, Spread
from brainseg_bids.synth.classes import clip_mean
from brainseg_bids.synth.recipe import (
    Resolution,
    Tissue,
)
from brainseg_bids.synth.resolution import AcquiredVoxels

UNITS = 255.0
"""Intensity in a prior that stands for the 99.5th percentile, or for a ratio of +0.5."""
LEAST_SD_FRAC = 0.1
"""Smallest fraction of a measured standard deviation that remains after noise is removed."""
MOST_VARIANCE_LOST = 36.0
"""Largest factor of variance lost by blur; more would need patches brighter than any tissue."""


@dataclass(frozen=True)
class MeasuredNoise:
    """Noise that is part of the standard deviations of a prior, for its removal.

    Parameters
    ----------
    sigma : float
        Standard deviation of the noise of magnitude images, in the units of the prior.
    channels : int
    inversions_frac : float
        For ratio images, noise of the two inversion images, as ``Ratio.noise_frac``.
    """

    sigma: float = 0.0
    channels: int = 1
    inversions_frac: float = 0.0

    def variance(self, mean: float) -> float:
        """Variance of the noise in a label with this mean."""
        slope = ratio_slope(mean / UNITS - 0.5)
        return self.sigma**2 + (UNITS * self.inversions_frac * slope) ** 2

    def removed(self, mean: float, sd: float, variance: float) -> tuple[float, float]:
        """Mean and standard deviation of the signal without noise, from the measured ones.

        The second moment of a non-central chi distribution is that of the signal plus
        ``2 channels sigma^2`` (Koay and Basser, Journal of Magnetic Resonance 179, 2006).

        Parameters
        ----------
        mean, sd : float
            Measured mean and standard deviation of a label.
        variance : float
            Variance of the noise. A fraction of the standard deviation always remains, see
            `LEAST_SD_FRAC`.

        Examples
        --------
        >>> bright = MeasuredNoise(3.0).removed(100.0, 5.0, 9.0)
        >>> [round(value, 2) for value in bright]
        [99.95, 4.0]
        >>> air = MeasuredNoise(4.0).removed(4 * 1.2533, 4 * 0.6551, 16.0)
        >>> bool(air[0] < 0.5)
        True
        """
        mean = max(mean, 0.0)
        if variance <= 0:
            return mean, sd
        left = math.sqrt(max(sd**2 - variance, (LEAST_SD_FRAC * sd) ** 2))
        if self.sigma > 0:
            square = mean**2 + sd**2 - left**2 - 2 * self.channels * self.sigma**2
            mean = math.sqrt(max(square, 0.0))
        return mean, left


def variance_lost(resolution: Resolution, voxel_size_mm: float) -> float:
    """Factor by which acquisition reduces the variance of white noise in a pair.

    It is the variance in the voxels of the pair, divided by that in the acquired voxels, and at
    most `MOST_VARIANCE_LOST`.

    Parameters
    ----------
    resolution : Resolution
    voxel_size_mm : float
        Voxel size of the pair.

    Examples
    --------
    >>> variance_lost(Resolution(), 1.0)
    1.0
    """
    voxels = AcquiredVoxels.of((48, 48, 48), resolution, voxel_size_mm=voxel_size_mm)
    left = 1.0
    for sampling in voxels.samplings:
        if sampling is not None:
            left *= float(sampling[0].square().sum(1).mean())
    return min(1 / left, MOST_VARIANCE_LOST)


def fitted_tissue(
    prior: LabelPrior,
    *,
    location: float,
    spread: float,
    noise: MeasuredNoise,
    gain: float,
    order: Sequence[int],
) -> Tissue:
    """Tissue of a prior without the measured noise.

    Parameters
    ----------
    prior : LabelPrior
    location, spread : float
        Standard normal numbers, which determine mean and standard deviation as quantiles.
    noise : MeasuredNoise
    gain : float
        Factor of the standard deviation that compensates later blur, see `PriorSpace.at`.
    order : sequence of int
        Order of the components; patches of successive components are adjacent in the image. If it
        has one entry only, one Gaussian of the same mean and standard deviation replaces the
        mixture.
    """
    mean = prior.mean + prior.mean_sd * location
    sd = prior.sd.median * math.exp(prior.sd.log_sd * spread)
    total = sum(part.weight for part in prior.components)
    parts = [(p.weight / total, p.mean, p.sd) for p in prior.components]
    if len(order) == 1 < len(parts):
        offset = sum(w * m for w, m, _ in parts)
        variance = sum(w * (s**2 + (m - offset) ** 2) for w, m, s in parts)
        parts = [(1.0, offset, math.sqrt(variance))]
    variance = noise.variance(mean)
    if variance > 0 and prior.tissue_sd is not None:
        own = prior.tissue_sd.median * math.exp(prior.tissue_sd.log_sd * spread)
        variance = max(sd**2 - own**2, 0.0)
    painted = [noise.removed(mean + m * sd, s * sd, variance) for _, m, s in parts]
    return Tissue(
        mean=tuple(clip_mean(painted[k][0]) for k in order),
        sd=tuple(gain * painted[k][1] for k in order),
        weight=tuple(parts[k][0] for k in order) if len(parts) > 1 else (),
    )


def between_tissues(agnostic: Tissue, fitted: Tissue, prior_weight: float) -> Tissue:
    """Tissue between an agnostic one and that of a prior, by prior weight.

    Components of both mixtures are paired in the order of their means, with as many parts as
    necessary. Each part is interpolated linearly.

    Examples
    --------
    >>> between_tissues(Tissue((100.0,), (10.0,)), Tissue((50.0, 90.0), (4.0, 6.0), (0.75, 0.25)),
    ...     0.5)
    Tissue(mean=(75.0, 95.0), sd=(7.0, 8.0), weight=(0.75, 0.25))
    """
    if prior_weight in (0, 1):
        return fitted if prior_weight == 1 else agnostic
    parts = []
    mine, theirs = _by_brightness(agnostic), _by_brightness(fitted)
    while mine and theirs:
        (mine_left, k), (theirs_left, other) = mine[0], theirs[0]
        weight = min(mine_left, theirs_left)
        parts.append((k, other, weight))
        mine[0], theirs[0] = (mine_left - weight, k), (theirs_left - weight, other)
        mine, theirs = ([p for p in side if p[0] > 1e-9] for side in (mine, theirs))
    # In the order of the components, which is by chance, rather than of their brightness.
    parts.sort()

    def moved(one: Sequence[float], two: Sequence[float]) -> tuple[float, ...]:
        return tuple(
            (1 - prior_weight) * one[k] + prior_weight * two[other] for k, other, _ in parts
        )

    return Tissue(
        mean=moved(agnostic.mean, fitted.mean),
        sd=moved(agnostic.sd, fitted.sd),
        weight=tuple(weight for *_, weight in parts) if len(parts) > 1 else (),
    )


def _by_brightness(tissue: Tissue) -> list[tuple[float, int]]:
    """Weight and rank of each component, the darkest first."""
    n = len(tissue.mean)
    weights = tissue.weight or (1 / n,) * n
    return [(weights[k], k) for k in sorted(range(n), key=lambda k: tissue.mean[k])]


def quantile(spread: Spread, u: float) -> float:
    """Quantile of a lognormal distribution at probability ``u``.

    >>> quantile(Spread(2.0, 0.3), 0.5)
    2.0
    """
    return float(spread.median * math.exp(spread.log_sd * ndtri(min(max(u, 1e-9), 1 - 1e-9))))


def ratio_slope(uni: float) -> float:
    """Factor from the noise of the inversion images to that of UNI, for a signal of 1.

    If ``t`` is the ratio of the two inversion images, UNI is ``t / (1 + t^2)`` (Marques et al.,
    NeuroImage 49, 2010), and the factor for small noise is ``(1 - t^2) / (1 + t^2)^1.5``.

    Parameters
    ----------
    uni : float
        Between -0.5 and 0.5.

    Examples
    --------
    >>> ratio_slope(0.0), ratio_slope(0.5)
    (1.0, 0.0)
    """
    q = math.sqrt(max(1 - 4 * uni**2, 0.0))
    return q * math.sqrt((1 + q) / 2)
