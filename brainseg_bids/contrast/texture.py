# SPDX-License-Identifier: Apache-2.0
"""Correlated texture: variation within a label that is coarser than the resolution."""

from __future__ import annotations

import numpy as np

from brainseg_bids.contrast.interior import Interior

LONGEST_MM = 10.0
"""Largest distance of pairs: longer distances show regional differences (and residual bias field),
not texture."""

ANCHORS = 8000
FEWEST_PAIRS = 200

CUT = 9.0
"""Largest product of a pair, 3 by 3 scales; larger ones are clipped as outliers."""

FALL = 2.0
"""Exponent of the decay of the autocorrelation: that of a B-spline field is almost Gaussian."""

LEAST_SHARE = 0.05


def autocorrelation(
    residual: np.ndarray,
    indices: np.ndarray,
    interior: Interior,
    voxel_size_mm: tuple[float, float, float],
    *,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Autocovariance of each label along the axes, from pairs of voxels within it.

    Pairs are used only if all voxels between the two have the same label.

    Parameters
    ----------
    residual : (X, Y, Z) float32, C order
        Deviation from the label's location in units of its scale; NaN for voxels not to be used.
    indices : (X, Y, Z) uint8 or uint16
        Class indices.
    interior : Interior

    Returns
    -------
    distance_mm : (lags,) float
    product : (labels, lags) float
        Mean product of the two residuals; NaN if there are too few pairs.
    spread : (labels,) float
        Mean square of the residuals, truncated like the products.
    """
    n_labels = len(interior.starts) - 1
    anchors = _anchors(interior, rng)
    positions = np.stack(np.unravel_index(anchors, indices.shape))
    label = indices.reshape(-1)[anchors]
    value = residual.reshape(-1)[anchors]
    fine = np.isfinite(value)
    square = np.minimum(np.where(fine, value, 0) ** 2, CUT)
    spread = _mean_by(label, square, fine, n_labels)
    longest = [max(1, int(LONGEST_MM / size)) for size in voxel_size_mm]
    lags = [(axis, k) for axis in range(3) for k in range(1, longest[axis] + 1)]
    product = np.full((n_labels, len(lags)), np.nan)
    for column, (axis, k) in enumerate(lags):
        if k == 1:
            within = np.ones(len(anchors), dtype=bool)
        other = positions[axis] + k
        within &= other < indices.shape[axis]
        moved = list(positions)
        moved[axis] = np.minimum(other, indices.shape[axis] - 1)
        within &= indices[tuple(moved)] == label
        there = residual[tuple(moved)]
        good = within & fine & np.isfinite(there)
        pairs = np.clip(np.where(good, value * there, 0), -CUT, CUT)
        product[:, column] = _mean_by(label, pairs, good, n_labels)
    distance = np.array([k * voxel_size_mm[axis] for axis, k in lags])
    return distance, product, spread


def _anchors(interior: Interior, rng: np.random.Generator) -> np.ndarray:
    chosen = []
    for index, count in enumerate(interior.counts()):
        flat = interior.flat[interior.of(index)]
        chosen.append(flat if count <= ANCHORS else rng.choice(flat, ANCHORS, replace=False))
    return np.concatenate(chosen)


def _mean_by(label: np.ndarray, values: np.ndarray, good: np.ndarray, n: int) -> np.ndarray:
    count = np.bincount(label[good], minlength=n)
    total = np.bincount(label[good], values[good], minlength=n)
    return np.where(count >= FEWEST_PAIRS, total / np.maximum(count, 1), np.nan)


def correlated_texture(
    distance_mm: np.ndarray, product: np.ndarray, spread: float, *, resolution_mm: float
) -> tuple[float | None, float]:
    """Correlation length of the texture of a label, and its fraction of the variance.

    ``share * 2 ** -(distance / grain_mm) ** 2`` is fitted to the autocovariance. Pairs closer than
    the resolution are left out, since their noise is correlated.

    Parameters
    ----------
    distance_mm, product : (lags,) float
        See `autocorrelation`.
    spread : float
        Variance in the same units.
    resolution_mm : float
        Full width at half maximum of the image's point spread.

    Returns
    -------
    grain_mm : float or None
        Distance at which the autocorrelation has fallen to one half; None if not measurable.
    grain_frac : float
        Fraction of the variance, between 0 and 1.

    Examples
    --------
    >>> d = np.arange(1.0, 11)
    >>> grain_mm, share = correlated_texture(d, 0.4 * 2 ** -(d / 4) ** 2, 1.0, resolution_mm=1.0)
    >>> round(grain_mm), round(share, 1)
    (4, 0.4)
    """
    used = np.isfinite(product) & (distance_mm > 1.15 * resolution_mm)
    if used.sum() < 3 or not spread > 0 or len(np.unique(distance_mm[used])) < 2:
        return None, 0.0
    at, rho = distance_mm[used], product[used] / spread
    lengths = np.geomspace(max(1.0, 0.7 * at.min()), LONGEST_MM, 60)
    models = 2.0 ** -((at / lengths[:, None]) ** FALL)
    # Near pairs tell texture from nothing; far ones, from regions.
    weight = 1 / at
    shares = np.clip((models * rho * weight).sum(1) / (models**2 * weight).sum(1), 0, 1)
    misfit = ((rho - shares[:, None] * models) ** 2 * weight).sum(1)
    best = int(np.argmin(misfit))
    if shares[best] < LEAST_SHARE:
        return None, 0.0
    return float(lengths[best]), float(shares[best])
