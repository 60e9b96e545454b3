# SPDX-License-Identifier: Apache-2.0
"""Effective resolution of an image along each axis, from the sharpest edges.

An edge spread function is fitted to profiles across borders of strong contrast, as in the
slanted-edge method (ISO 12233). The alternative is the autocorrelation of the noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from brainseg_bids.anatomy.grid import triple

FWHM_PER_SD = 2.3548

HALF_VOX = 6
"""Number of voxels of a profile on each side of a border."""

FLAT_FROM_VOX = 4
"""Distance from the border from which both sides must be flat."""

SAME_SHARE = 0.15
"""Largest difference of labels on one side of a border, relative to its contrast."""

FEWEST_PROFILES = 40
MOST_PROFILES, MOST_VOXELS = 20_000, 60_000

SHARP_QUANTILE = 0.35
"""Quantile of edge widths that is the resolution: most anatomical borders are oblique or folded
within a voxel, and none is sharper than the resolution."""

SDS_VOX = np.linspace(0.05, 3.0, 60)


@dataclass(frozen=True)
class Profiles:
    """Profiles of intensity across borders, along one axis.

    Parameters
    ----------
    values : (n, 2 * HALF_VOX) float
        Intensities; the border is within one voxel of the centre.
    expected : (n, 2 * HALF_VOX) float
        Location of the label of each voxel.
    slant : (n,) float
        Cosine of the angle between the axis and the normal of the border.
    """

    values: np.ndarray
    expected: np.ndarray
    slant: np.ndarray


def edge_fwhm_mm(
    image: np.ndarray,
    indices: np.ndarray,
    locations: np.ndarray,
    noise_sd: float,
    voxel_size_mm: tuple[float, float, float],
    *,
    rng: np.random.Generator,
) -> tuple[float | None, float | None, float | None]:
    """Full width at half maximum of the point spread along each axis, from label borders.

    The width is None along axes without suitable borders.

    Parameters
    ----------
    image : (X, Y, Z) float, C order
    indices : (X, Y, Z) uint8 or uint16
        Class indices.
    locations : (labels,) float
        Location of each label; NaN if unknown.
    noise_sd : float
        Standard deviation of the noise.
    """
    found = []
    contrast = np.abs(locations[:, None] - locations[None])
    usual = np.nanmax(contrast) if np.isfinite(contrast).any() else 0.0
    strong = np.nan_to_num(contrast) > max(0.3 * usual, 8 * noise_sd)
    for axis in range(3):
        profiles = _profiles(image, indices, locations, strong, axis, voxel_size_mm, rng)
        width = None if profiles is None else _width_vox(profiles, noise_sd)
        found.append(None if width is None else width * voxel_size_mm[axis])
    return triple(found)


def _profiles(
    image: np.ndarray,
    indices: np.ndarray,
    locations: np.ndarray,
    strong: np.ndarray,
    axis: int,
    voxel_size_mm: tuple[float, float, float],
    rng: np.random.Generator,
) -> Profiles | None:
    """Profiles across borders that lie across the axis."""
    n = indices.shape[axis]
    if n < 2 * HALF_VOX + 2 or min(indices.shape) < 4:
        return None
    # Two voxels to each side: noise of the labels sits at the border itself.
    left = indices.take(range(HALF_VOX - 3, n - HALF_VOX - 3), axis)
    right = indices.take(range(HALF_VOX, n - HALF_VOX), axis)
    border = (left != right) & strong[left, right]
    flat = np.flatnonzero(border)
    if len(flat) < FEWEST_PROFILES:
        return None
    if len(flat) > MOST_PROFILES:
        flat = rng.choice(flat, MOST_PROFILES, replace=False)
    positions = np.stack(np.unravel_index(flat, border.shape))
    positions[axis] += HALF_VOX - 3
    positions = _to_steepest(image, positions, axis)
    slant = _slant(image, positions, axis, voxel_size_mm)
    steps = np.arange(1 - HALF_VOX, HALF_VOX + 1)
    at = [np.broadcast_to(p[:, None], (len(p), len(steps))) for p in positions]
    at[axis] = np.clip(at[axis] + steps, 0, n - 1)
    return Profiles(image[tuple(at)].astype(np.float64), locations[indices[tuple(at)]], slant)


def _to_steepest(image: np.ndarray, positions: np.ndarray, axis: int) -> np.ndarray:
    """Move each position, by up to two voxels, to the steepest change to the next voxel."""
    n = image.shape[axis]
    changes = []
    for k in range(4):
        here, there = positions.copy(), positions.copy()
        here[axis] = np.clip(positions[axis] + k, 0, n - 1)
        there[axis] = np.clip(positions[axis] + k + 1, 0, n - 1)
        changes.append(np.abs(image[tuple(there)] - image[tuple(here)]))
    moved = positions.copy()
    moved[axis] += np.argmax(changes, axis=0)
    inside = (moved[axis] >= HALF_VOX - 1) & (moved[axis] < n - HALF_VOX)
    return np.unique(moved[:, inside], axis=1)


def _slant(
    image: np.ndarray, positions: np.ndarray, axis: int, voxel_size_mm: tuple[float, float, float]
) -> np.ndarray:
    """Cosine between axis and gradient; the border lies between a position and the next."""

    def value(k: int, step: int, beside: int) -> np.ndarray:
        at = positions.copy()
        at[axis] += beside
        at[k] = np.clip(at[k] + step, 0, image.shape[k] - 1)
        return image[tuple(at)].astype(float)

    slope = np.zeros((3, positions.shape[1]))
    for k in range(3):
        if k == axis:
            rise = (value(k, 2, 0) - value(k, -1, 0)) / 3
        else:
            rise = sum(value(k, 2, beside) - value(k, -2, beside) for beside in (0, 1)) / 8
        slope[k] = rise / voxel_size_mm[k]
    return np.abs(slope[axis]) / np.maximum(np.linalg.norm(slope, axis=0), 1e-12)


def _width_vox(profiles: Profiles, noise_sd: float) -> float | None:
    """Width of the point spread in voxels."""
    values, slant = profiles.values, profiles.slant
    outer = HALF_VOX - FLAT_FROM_VOX + 1
    low, high = values[:, :outer], values[:, -outer:]
    rise = high.mean(1) - low.mean(1)
    unrest = np.maximum(np.ptp(low, axis=1), np.ptp(high, axis=1))
    allowed = np.maximum(0.12 * np.abs(rise), 3.5 * noise_sd)
    good = (np.abs(rise) > 8 * noise_sd) & (unrest < allowed) & (slant > 0.9) & (rise != 0)
    good &= np.abs(rise) > 0.4 * np.quantile(np.abs(rise), 0.9)
    # One border only: CSF, cortex and white matter in a row look like one that is soft.
    beside = HALF_VOX - 1
    steps = [
        np.ptp(side, axis=1)
        for side in (profiles.expected[:, :beside], profiles.expected[:, -beside:])
    ]
    good &= np.maximum(*steps) < SAME_SHARE * np.abs(rise)
    if good.sum() < FEWEST_PROFILES:
        return None
    scaled = (values[good] - low[good].mean(1, keepdims=True)) / rise[good, None]
    # Folds and thin layers overshoot; one border does not.
    slack = np.maximum(0.2, 4 * noise_sd / np.abs(rise[good]))[:, None]
    single = ((scaled > -slack) & (scaled < 1 + slack)).all(1)
    if single.sum() < FEWEST_PROFILES:
        return None
    spread, misfit = _edge_spread(scaled[single])
    one = misfit < np.maximum(0.08, 4 * noise_sd / np.abs(rise[good][single]))
    if one.sum() < FEWEST_PROFILES:
        return None
    spread = (spread * slant[good][single])[one]
    return point_spread_fwhm(float(np.quantile(spread, SHARP_QUANTILE)))


def _edge_spread(scaled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Standard deviation of each profile's edge in voxels, and the largest misfit.

    Profiles go from 0 to 1.
    """
    at = np.arange(scaled.shape[1], dtype=float)
    middle = at[-1] + 0.5 - scaled.sum(1)
    best = np.full(len(scaled), np.inf)
    sd, largest = np.zeros(len(scaled)), np.zeros(len(scaled))
    for shift in (-0.25, -0.125, 0.0, 0.125, 0.25):
        away = at - (middle + shift)[:, None]
        for candidate in SDS_VOX:
            off = np.abs(scaled - ndtr(away / candidate))
            misfit = (off**2).sum(1)
            better = misfit < best
            best[better], sd[better] = misfit[better], candidate
            largest[better] = off[better].max(1)
    return sd, largest


def point_spread_fwhm(edge_sd_vox: float) -> float:
    """Full width at half maximum of the point spread including the voxel, in voxels.

    The variance of the edge spread is that of the blur plus that of a voxel (1/12). The width of a
    Gaussian convolved with a box is approximately the cube root of the sum of their cubed widths.

    >>> round(point_spread_fwhm(0.2887), 2), round(point_spread_fwhm(1.0), 2)
    (1.0, 2.32)
    """
    blur = FWHM_PER_SD * math.sqrt(max(edge_sd_vox**2 - 1 / 12, 0.0))
    return (blur**3 + 1) ** (1 / 3)


def noise_correlation(
    image: np.ndarray, indices: np.ndarray, flat: np.ndarray
) -> tuple[float, float, float]:
    """Correlation r of the noise of adjacent voxels along each axis, within one label.

    It is estimated from the differences between voxels at distance 1 and 2, whose variances are
    proportional to 1 - r and 1 - r^4 for Gaussian blur. Slower variation cancels out.

    Parameters
    ----------
    image : (X, Y, Z) float, C order
    indices : (X, Y, Z) uint8 or uint16
        Class indices.
    flat : (n,) int
        Flat indices of voxels of one label.
    """
    positions = np.stack(np.unravel_index(flat[:: max(1, len(flat) // MOST_VOXELS)], image.shape))
    own = indices[tuple(positions)]
    found = []
    for axis in range(3):
        spreads = []
        for step in (1, 2):
            moved = positions.copy()
            moved[axis] = np.minimum(moved[axis] + step, image.shape[axis] - 1)
            same = (indices[tuple(moved)] == own) & (moved[axis] == positions[axis] + step)
            differs = image[tuple(moved)][same] - image[tuple(positions)][same]
            spreads.append(float(np.median(np.abs(differs))) if same.sum() > 100 else math.nan)
        ratio = (spreads[0] / spreads[1]) ** 2 if spreads[1] > 0 else math.nan
        rho = np.linspace(0, 0.97, 98)
        known = (1 - rho) / (1 - rho**4)
        found.append(float(np.interp(-ratio, -known, rho)) if math.isfinite(ratio) else 0.0)
    return triple(found)


def noise_fwhm_mm(
    correlation: tuple[float, float, float], voxel_size_mm: tuple[float, float, float]
) -> tuple[float, float, float]:
    """Full width at half maximum of the Gaussian that gives white noise this correlation.

    Noise blurred by a Gaussian of standard deviation s has an autocorrelation of
    exp(-d^2 / (4 s^2)) at distance d.

    >>> noise_fwhm_mm((0.0, 0.5, 0.0), (1.0, 1.0, 2.0))
    (1.0, 1.564, 2.0)
    """
    widths = []
    for rho, size in zip(correlation, voxel_size_mm, strict=True):
        rho = min(max(rho, 0.0), 0.97)
        sd_vox = math.sqrt(-1 / (4 * math.log(rho))) if rho > 0.02 else 0.0
        blur = FWHM_PER_SD * sd_vox
        widths.append(round(float(size * (blur**3 + 1) ** (1 / 3)), 3))
    return triple(widths)
