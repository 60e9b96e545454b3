# SPDX-License-Identifier: Apache-2.0
"""Noise distribution of an image, from the air around the head or from within tissue."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.optimize import minimize
from scipy.special import gammainc, ive

from brainseg_bids.contrast.alignment import ratio_range
from brainseg_bids.contrast.measured import NoiseLaw
from brainseg_bids.contrast.robust import MAD_TO_SD, median_mad

BLOCK_MM = 8.0

NEAR_MM = 8.0
"""Air nearer to the head than this is not used: ghosts, ringing, unlabelled skin."""

FEWEST_BLOCKS = 12

SAMPLES = 200_000

RATIO_SPREAD = 0.15
"""Standard deviation of noise relative to the intensity range above which an image is a ratio. It
is 0.29 for uniform noise, and much less in magnitude images."""

BAD_FIT = 0.12
MOST_VOXELS = 60_000
"""Largest number of voxels of a label whose neighbours are looked at."""


@dataclass(frozen=True)
class Background:
    """Blocks of air far from the head.

    Parameters
    ----------
    values : (n,) float32
        Intensities of blocks with the lowest noise level; empty if there are too few.
    everywhere : (m,) float32
        Intensities of all blocks of air, including masked ones.
    masked_share : float
        Fraction of blocks that are constant.
    spread_share : float
        Median standard deviation within a block, as a fraction of the intensity range of the
        image.
    quiet_share : float
        Fraction of blocks with less noise than in unmasked UNI images, see `RATIO_SPREAD`.
    """

    values: np.ndarray
    everywhere: np.ndarray
    masked_share: float
    spread_share: float
    quiet_share: float = 0.0


def find_background(
    image: np.ndarray,
    air: np.ndarray,
    voxel_size_mm: tuple[float, float, float],
    *,
    rng: np.random.Generator,
) -> Background:
    """Intensities of the air, measured in blocks.

    Blocks that contain or touch anything except air are left out. Constant blocks (masked,
    defaced, outside of the field of view) are only counted. Of the others the darker ones are
    used, since ghosts and parts of the head without labels are brighter than noise.

    Parameters
    ----------
    image : (X, Y, Z) float
    air : (X, Y, Z) bool
        Voxels outside of the head.
    """
    block = [max(2, round(BLOCK_MM / s)) for s in voxel_size_mm]
    counts = [n // b for n, b in zip(image.shape, block, strict=True)]
    nothing = np.zeros(0, dtype=np.float32)
    if min(counts) == 0:
        return Background(nothing, nothing, 0.0, 0.0)
    inner = tuple(slice(0, c * b) for c, b in zip(counts, block, strict=True))
    by_block = [part for pair in zip(counts, block, strict=True) for part in pair]
    head = ~air[inner].reshape(by_block).all(axis=(1, 3, 5))
    reach = max(1, round(NEAR_MM / BLOCK_MM))
    far = ~ndimage.binary_dilation(head, np.ones((3, 3, 3), bool), iterations=reach)
    if not far.any():
        return Background(nothing, nothing, 0.0, 0.0)
    blocks = image[inner].reshape(by_block).transpose(0, 2, 4, 1, 3, 5)[far]
    blocks = blocks.reshape(len(blocks), -1)
    blocks = blocks[np.isfinite(blocks).all(1)]
    return _sort_blocks(blocks, _range(image), rng)


def _sort_blocks(blocks: np.ndarray, full_range: float, rng: np.random.Generator) -> Background:
    nothing = np.zeros(0, dtype=np.float32)
    if len(blocks) == 0:
        return Background(nothing, nothing, 0.0, 0.0)
    # A block of noise has no value in more than half of its voxels, unless it is coarsely rounded.
    usual = np.median(blocks, axis=1, keepdims=True)
    sd = blocks.std(1)
    constant = (sd == 0) | ((blocks == usual).mean(1) > 0.9)
    live = blocks[~constant]
    everywhere = _some(blocks.ravel(), rng)
    masked_share = float(constant.mean())
    quiet_share = float((constant | (sd <= RATIO_SPREAD * full_range)).mean())
    if len(live) < FEWEST_BLOCKS:
        return Background(nothing, everywhere, masked_share, 0.0, quiet_share)
    mean = np.abs(live).mean(1)
    # A block half outside the field of view is darker still: the darkest fifth is left aside.
    middle = np.quantile(mean, 0.2)
    for _ in range(5):
        quiet = np.abs(mean - middle) <= 0.12 * middle
        middle = np.median(mean[quiet])
    values = _some(live[quiet].ravel(), rng)
    spread = float(np.median(live.std(1))) / full_range
    return Background(values, everywhere, masked_share, spread, quiet_share)


def _some(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return values if len(values) <= SAMPLES else rng.choice(values, SAMPLES, replace=False)


def _range(image: np.ndarray) -> float:
    some = image[::3, ::3, ::3]
    low, high = np.quantile(some[np.isfinite(some)], [0.002, 0.998])
    return float(high - low) or 1.0


def is_ratio(background: Background) -> bool:
    """Whether the noise fills the range of the image: a UNI image without masking or denoising."""
    return background.spread_share > RATIO_SPREAD and background.masked_share < 0.9


def ratio_span(image: np.ndarray) -> tuple[float, float]:
    """Values of an image that stand for UNI of -0.5 and +0.5, see `alignment.ratio_range`.

    >>> ratio_span(np.array([-0.49, 0.1, 0.5])), ratio_span(np.array([0, 1000, 4094.0]))
    ((-0.5, 0.5), (0.0, 4095.0))
    """
    finite = image[np.isfinite(image)]
    return ratio_range(float(finite.min()), float(finite.max()))


def magnitude_law(values: np.ndarray) -> NoiseLaw:
    """Rician or non-central chi noise, fitted to intensities of air.

    Maximum likelihood on binned values up to their 99th percentile; each integer has its own bin.
    Zeros are left out, since scanners and defacing set voxels to zero. Without signal, the root of
    the sum of squares of the real and imaginary parts of n channels follows a chi distribution
    with 2n degrees of freedom (Constantinides et al. 1997, MRM 38:852).

    Parameters
    ----------
    values : (n,) float
        Intensities of air, not all equal.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> law = magnitude_law(np.hypot(*rng.normal(0, 7.0, (2, 20000))))
    >>> law.kind, round(law.sigma)
    ('rician', 7)
    """
    values = np.asarray(values, dtype=np.float64)
    if (values < 0).mean() > 0.2:
        _, sigma = median_mad(values)
        return NoiseLaw("gaussian", sigma, voxels=len(values))
    edges = _bins(values)
    counts = np.histogram(values, edges)[0].astype(float)
    second = float((values[values <= edges[-1]] ** 2).mean())
    rician, rician_fit, rician_cost = _fit_chi(edges, counts, second, channels=1.0)
    chi, chi_fit, chi_cost = _fit_chi(edges, counts, second, channels=None)
    # BIC for one further parameter, as if 2000 independent voxels had been seen.
    gain = (rician_cost - chi_cost) * 2 * min(len(values), 2000) / len(values)
    if gain > math.log(2000) and rician_fit > 0.02 and chi[1] > 1.1:
        return NoiseLaw("chi", chi[0], round(chi[1], 2), len(values), chi_fit)
    return NoiseLaw("rician", rician[0], 1.0, len(values), rician_fit)


def _bins(values: np.ndarray) -> np.ndarray:
    top = float(np.quantile(values, 0.99))
    if (values == np.rint(values)).all():
        step = max(1, math.ceil(top / 100))
        return np.arange(0.5, max(top, 2 * step) + 1, step)
    return np.linspace(np.nextafter(0, 1), top, 81)


def _fit_chi(
    edges: np.ndarray, counts: np.ndarray, second: float, *, channels: float | None
) -> tuple[tuple[float, float], float, float]:
    """(sigma, channels), Kolmogorov-Smirnov distance, negative log likelihood."""
    share = counts / counts.sum()

    def distribution(sigma: float, n: float) -> np.ndarray:
        below = gammainc(n, edges**2 / (2 * sigma**2))
        return (below - below[0]) / max(below[-1] - below[0], 1e-12)

    def unpack(x: np.ndarray) -> tuple[float, float]:
        n = channels if channels is not None else float(np.clip(math.exp(x[1]), 0.3, 128))
        return math.exp(x[0]), n

    def cost(x: np.ndarray) -> float:
        inside = np.diff(distribution(*unpack(x)))
        return -float(counts @ np.log(np.maximum(inside, 1e-9)))

    first = [0.5 * math.log(second / (2 * (channels or 1.0)))] + ([] if channels else [0.0])
    found = minimize(cost, first, method="Nelder-Mead", options={"xatol": 1e-4, "fatol": 1e-3})
    sigma, n = unpack(found.x)
    off = np.abs(distribution(sigma, n)[1:] - np.cumsum(share)).max()
    return (sigma, n), float(off), float(found.fun)


def tissue_sigma(image: np.ndarray, flat: np.ndarray, level: np.ndarray) -> float:
    """Standard deviation of the noise within a label.

    It is estimated from the difference of each voxel and the mean of its six neighbours, divided
    by sqrt(7/6), the factor for white noise. Only voxels are used whose neighbours have the same
    label (``level`` above 0).

    Parameters
    ----------
    image : (X, Y, Z) float, C order
    flat : (n,) int
        Flat indices of voxels of one label.
    level : (X, Y, Z) uint8
        See `interior.border_depth`.
    """
    positions = np.stack(np.unravel_index(flat[:: max(1, len(flat) // MOST_VOXELS)], image.shape))
    edge = np.array(image.shape)[:, None] - 1
    positions = positions[:, ((positions > 0) & (positions < edge)).all(0)]
    positions = positions[:, level[tuple(positions)] > 0]
    if positions.shape[1] < 20:
        return math.nan
    at = np.ravel_multi_index(tuple(positions), image.shape)
    strides = (image.shape[1] * image.shape[2], image.shape[2], 1)
    flat_image = image.reshape(-1)
    around = sum(flat_image[at + s] + flat_image[at - s] for s in strides) / 6
    differs = flat_image[at] - around
    sigma = MAD_TO_SD * float(np.median(np.abs(differs - np.median(differs))))
    if sigma == 0:  # rounded to few values
        sigma = float(differs.std())
    return sigma / math.sqrt(7 / 6)


def rician_corrected(sigma: float, location: float) -> float:
    """Standard deviation of the real part of Rician noise, from that of the magnitude.

    Uses the correction factor of Koay and Basser 2006 (JMR 179:317), by fixed-point iteration.

    Parameters
    ----------
    sigma, location : float
        Standard deviation and mean of the magnitude.

    Examples
    --------
    >>> round(rician_corrected(0.655, 1.2533), 1), round(rician_corrected(5.0, 500.0), 1)
    (1.0, 5.0)
    """
    if sigma <= 0:
        return sigma
    if location / sigma > 20:
        return sigma
    snr = max(location / sigma - 1.0, 0.0)
    factor = 1.0
    for _ in range(200):
        quarter = snr**2 / 4
        bessel = (1 + 2 * quarter) * ive(0, quarter) + 2 * quarter * ive(1, quarter)
        mean = math.sqrt(math.pi / 2) * bessel
        factor = max(2 + snr**2 - mean**2, 0.4292)
        moved = math.sqrt(max(factor * (1 + (location / sigma) ** 2) - 2, 0.0))
        if abs(moved - snr) < 1e-6:
            break
        snr = moved
    return sigma / math.sqrt(factor)
