# SPDX-License-Identifier: Apache-2.0
"""Intensity normalisation, the same for training pairs, for images to segment, and for figures.

Works on NumPy arrays and on PyTorch tensors alike.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

LOW, HIGH = 0.005, 0.995
"""Quantiles that become 0 and 1."""

AIR_SHARE = 0.12
"""What is brighter than this share of the range counts as head rather than air."""

STRIDES = (61, 59, 53, 47)
"""Every 61st voxel is looked at: 40,000 of 128³, good to 1 % of a class's spread. Another prime
where rows are a multiple of it, or whole planes would be missed."""

MOST_SAMPLED = 4_000_000


class IntensityRange(NamedTuple):
    """Intensities that become 0 and 1."""

    low: float
    high: float

    @property
    def span(self) -> float:
        """Between the two, rounded as float32; 1 where there is none."""
        return float(np.float32(self.high) - np.float32(self.low)) if self.high > self.low else 1.0

    def scaled(self, image: Any) -> Any:
        """Intensities as 0..1, clipped.

        >>> IntensityRange(10.0, 20.0).scaled(np.float32([0, 10, 15, 30])).tolist()
        [0.0, 0.0, 0.5, 1.0]
        """
        return ((image - self.low) / self.span).clip(0, 1)

    def level(self, value: float) -> float:
        """Where a value lies: 0 at the low end, 1 at the high one, not clipped."""
        return (value - self.low) / self.span


def quantiles(image: Any, *wanted: float) -> list[float]:
    """Quantiles of a sample of an image's voxels, float32.

    Parameters
    ----------
    image : (X, Y, Z) or (X, Y) float
        Array, or tensor on any device.
    wanted : float
        0..1.
    """
    stride = next(step for step in STRIDES if image.shape[-1] % step)
    sample = image.reshape(-1)[::stride][:MOST_SAMPLED]
    if isinstance(sample, np.ndarray):
        return np.quantile(sample.astype(np.float32, copy=False), wanted).tolist()
    sample = sample.float()  # a tensor; on its own device
    return sample.quantile(sample.new_tensor(wanted)).tolist()


def intensity_range(image: Any) -> IntensityRange:
    """0.5th and 99.5th percentile of an image."""
    return IntensityRange(*quantiles(image, LOW, HIGH))


def rescale(image: Any) -> Any:
    """Intensities to 0..1 between the 0.5th and 99.5th percentile, clipped: what networks see.

    >>> rescale(np.arange(1001.0, dtype=np.float32)[:, None, None])[[5, 500, 995], 0, 0].round(2)
    array([0.  , 0.51, 1.  ], dtype=float32)
    """
    return intensity_range(image).scaled(image)
