# SPDX-License-Identifier: Apache-2.0
"""Interpolation kernels: weight as a function of distance in source voxels."""

from __future__ import annotations

import csv
from collections.abc import Callable
from functools import cache
from importlib import resources

import numpy as np

from brainseg_bids.anatomy import upsample_band as band

CUBIC = -1.1
"""Keys' parameter. A partial volume is a mean over its voxel; lobes that are deeper than Catmull
and Rom's (-0.5) take that mean back in part (`benchmarks.upsampling`, GOUHFI 0.7 mm)."""


Profile = Callable[[np.ndarray], np.ndarray]


def linear_profile(distance: np.ndarray) -> np.ndarray:
    """Triangle: trilinear interpolation in three dimensions."""
    return np.maximum(0, 1 - distance)


def cubic_profile(distance: np.ndarray) -> np.ndarray:
    """Cubic convolution over four points (Keys 1981)."""
    a = CUBIC
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance < 1, near, np.where(distance < 2, far, 0))


def lanczos_profile(distance: np.ndarray) -> np.ndarray:
    """Lanczos window of three lobes (Duchon 1979)."""
    return np.where(distance < 3, np.sinc(distance) * np.sinc(distance / 3), 0)


@cache
def fitted_kernels() -> tuple[np.ndarray, np.ndarray]:
    """Factors, (n,), and weights at 0, 0.5, ..., 2.5 source voxels, (n, 6), of the package."""
    source = resources.files("brainseg_bids") / "data" / "upsampling_kernels.tsv"
    with source.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    columns = ("w0", "w0.5", "w1", "w1.5", "w2", "w2.5")
    weights = np.array([[float(row[name]) for name in columns] for row in rows])
    return np.array([float(row["factor"]) for row in rows]), weights


def fitted_profile(factor: float) -> Profile:
    """Fitted kernel of the nearest factors, in between by interpolation."""
    factors, weights = fitted_kernels()
    knots = [np.interp(factor, factors, column) for column in weights.T]
    return lambda distance: np.interp(distance, np.arange(len(knots)) / 2, knots)


def kernel_profile(kernel: str, step: float, sigma: float) -> tuple[Profile, int]:
    """Weight as a function of distance in source voxels, and how many voxels it reaches.

    Parameters
    ----------
    kernel : str
        One of `KERNELS`.
    step : float
        Target voxel in source voxels; above 1, the overlap with the target voxel is taken.
    sigma : float
        Of a Gaussian on top, in source voxels.
    """
    if step > 1 + 1e-3:
        support = step / 2 + 0.5
        profile = lambda distance: np.clip(support - distance, 0, min(1, step))  # noqa: E731
    elif kernel == "linear":
        support, profile = 1.0, linear_profile
    elif kernel == "fitted":
        support, profile = 2.5, fitted_profile(1 / step)
    else:
        support, profile = 3.0, lanczos_profile
    if sigma > 0:
        profile, support = _smoothed(profile, sigma), support + 2.5 * sigma
    reach = int(np.ceil(support - 0.5 - 1e-6))
    if reach > band.MAX_REACH:
        raise ValueError(
            f"smoothing reaches {reach} source voxels, at most {band.MAX_REACH} can be used: "
            "smooth less"
        )
    return profile, reach


def _smoothed(profile: Profile, sigma: float) -> Profile:
    """Convolved with a Gaussian that is cut at 2.5 standard deviations."""
    offsets = np.linspace(-2.5, 2.5, 101) * sigma
    weights = np.exp(-((offsets / sigma) ** 2) / 2)
    weights /= weights.sum()

    def smooth(distance: np.ndarray) -> np.ndarray:
        parts = zip(weights, offsets, strict=True)
        return sum(w * profile(np.abs(distance - offset)) for w, offset in parts)

    return smooth
