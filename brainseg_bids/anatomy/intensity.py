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
"""Fraction of the intensity range above which a voxel counts as head instead of air."""

STRIDES = (61, 59, 53, 47)
"""Every 61st voxel is sampled: 40,000 of 128³ voxels, which is accurate to 1 % of a tissue's
standard deviation. If rows are a multiple of it, another prime is used, since whole planes would
be missed."""

MOST_SAMPLED = 4_000_000


class IntensityRange(NamedTuple):
    """The intensities that normalisation maps to 0 and to 1."""

    low: float
    high: float

    @property
    def span(self) -> float:
        """Difference between the two, rounded to float32; 1 if they are equal."""
        return float(np.float32(self.high) - np.float32(self.low)) if self.high > self.low else 1.0

    def scaled(self, image: Any) -> Any:
        """Image scaled so that the range becomes 0 to 1, and clipped to it.

        >>> IntensityRange(10.0, 20.0).scaled(np.float32([0, 10, 15, 30])).tolist()
        [0.0, 0.0, 0.5, 1.0]
        """
        return ((image - self.low) / self.span).clip(0, 1)

    def level(self, value: float) -> float:
        """A value on this scale, not clipped: 0 at the low end of the range, 1 at the high end."""
        return (value - self.low) / self.span


def quantiles(image: Any, *wanted: float) -> list[float]:
    """Quantiles of an image, from a regular sample of its voxels, with float32 precision.

    Parameters
    ----------
    image : (X, Y, Z) or (X, Y) float
        Array, or tensor on any device.
    wanted : float
        Quantiles between 0 and 1.
    """
    stride = next(step for step in STRIDES if image.shape[-1] % step)
    sample = image.reshape(-1)[::stride][:MOST_SAMPLED]
    if isinstance(sample, np.ndarray):
        return np.quantile(sample.astype(np.float32, copy=False), wanted).tolist()
    sample = sample.float()  # a tensor; on its own device
    return sample.quantile(sample.new_tensor(wanted)).tolist()


def intensity_range(image: Any) -> IntensityRange:
    """Range between the 0.5th and the 99.5th percentile of an image, see `quantiles`."""
    return IntensityRange(*quantiles(image, LOW, HIGH))


def rescale(image: Any) -> Any:
    """Image as networks get it: 0.5th and 99.5th percentile become 0 and 1, and it is clipped.

    >>> rescale(np.arange(1001.0, dtype=np.float32)[:, None, None])[[5, 500, 995], 0, 0].round(2)
    array([0.  , 0.51, 1.  ], dtype=float32)
    """
    return intensity_range(image).scaled(image)
