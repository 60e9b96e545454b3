# SPDX-License-Identifier: Apache-2.0
"""Interpolation kernels: weights as functions of the distance in source voxels."""

from __future__ import annotations

import csv
from collections.abc import Callable
from functools import cache
from importlib import resources

import numpy as np

from brainseg_bids.anatomy import upsample_band as band

CUBIC = -1.1
"""Keys' parameter. A partial volume is the mean over a voxel. Negative lobes that are larger than
Catmull and Rom's (-0.5) undo a part of this averaging (`benchmarks.upsampling`, GOUHFI 0.7 mm)."""


Profile = Callable[[np.ndarray], np.ndarray]


def linear_profile(distance: np.ndarray) -> np.ndarray:
    """Weights of linear interpolation, in the shape of ``distance``."""
    return np.maximum(0, 1 - distance)


def cubic_profile(distance: np.ndarray) -> np.ndarray:
    """Weights of cubic convolution over four points (Keys 1981), in the shape of ``distance``."""
    a = CUBIC
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance < 1, near, np.where(distance < 2, far, 0))


def lanczos_profile(distance: np.ndarray) -> np.ndarray:
    """Weights of the three-lobed Lanczos kernel (Duchon 1979), in the shape of ``distance``."""
    return np.where(distance < 3, np.sinc(distance) * np.sinc(distance / 3), 0)


@cache
def fitted_kernels() -> tuple[np.ndarray, np.ndarray]:
    """Kernels of the package that were fitted to upsampled anatomy.

    Returns
    -------
    factors : (n,) float
        Upsampling factor of each kernel.
    weights : (n, 6) float
        Weights at distances from 0 to 2.5 source voxels in steps of 0.5.
    """
    source = resources.files("brainseg_bids") / "data" / "upsampling_kernels.tsv"
    with source.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    columns = ("w0", "w0.5", "w1", "w1.5", "w2", "w2.5")
    weights = np.array([[float(row[name]) for name in columns] for row in rows])
    return np.array([float(row["factor"]) for row in rows]), weights


def fitted_profile(factor: float) -> Profile:
    """Fitted kernel for an upsampling factor, interpolated between the two nearest factors."""
    factors, weights = fitted_kernels()
    knots = [np.interp(factor, factors, column) for column in weights.T]
    return lambda distance: np.interp(distance, np.arange(len(knots)) / 2, knots)


def kernel_profile(kernel: str, step: float, sigma: float) -> tuple[Profile, int]:
    """Kernel as a function of distance in source voxels, and its radius in source voxels.

    Parameters
    ----------
    kernel : str
        One of `KERNELS`.
    step : float
        Size of a target voxel in source voxels. Above 1, weights are the overlap with the target
        voxel.
    sigma : float
        Standard deviation of an additional Gaussian, in source voxels.

    Raises
    ------
    ValueError
        If the smoothing needs a larger radius than upsampling supports.
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
