# SPDX-License-Identifier: Apache-2.0
"""Acquired resolution: slice profile, voxel size, and resampling to the grid of the pair."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from brainseg_bids.anatomy.grid import triple
from brainseg_bids.synth.gibbs import ALL_READ, truncate
from brainseg_bids.synth.interpolate import (
    BandedProduct,
    linear_matrix,
    linear_weights,
    multiply_along,
    slabs,
)
from brainseg_bids.synth.noise import magnitude
from brainseg_bids.synth.recipe import Gibbs, Noise, Resolution

FWHM_PER_SD = 2.3548

TAIL_SD = 4
"""Standard deviations at which a slice profile is truncated; 0.006 % of it is beyond."""


def acquire(
    image: Tensor,
    resolution: Resolution,
    noise: Noise,
    *,
    voxel_size_mm: float,
    scale: float,
    gibbs: Gibbs = ALL_READ,
) -> Tensor:
    """Magnitude image as acquired, resampled to the grid of the pair, (X, Y, Z) float.

    The image is sampled at the acquired voxels, where Gibbs ringing and noise are added.

    Parameters
    ----------
    image : (X, Y, Z) float
    resolution : Resolution
    noise : Noise
    voxel_size_mm : float
        Voxel size of ``image``, isotropic.
    scale : float
        Intensity that ``noise.sd_frac`` is relative to.
    gibbs : Gibbs
    """
    voxels = AcquiredVoxels.of(triple(image.shape), resolution, voxel_size_mm=voxel_size_mm)
    acquired = truncate(voxels.sample(image), gibbs)
    return voxels.resample(magnitude(acquired, noise, scale=scale))


@dataclass(frozen=True)
class AcquiredVoxels:
    """Sampling of a pair at the acquired voxels, and resampling to its grid.

    Parameters
    ----------
    samplings : three of (profile matrix, positions) or None
        From `_sampling`, for each axis; None for axes without change.
    """

    samplings: tuple[tuple[Tensor, Tensor] | None, ...]

    @classmethod
    def of(
        cls, shape: tuple[int, int, int], resolution: Resolution, *, voxel_size_mm: float
    ) -> AcquiredVoxels:
        """Sampling of a pair with this shape and isotropic voxel size."""
        return cls(
            tuple(
                _sampling(n, voxel_size_mm, size, thickness)
                for n, size, thickness in zip(
                    shape, resolution.voxel_size_mm, resolution.thickness_mm, strict=True
                )
            )
        )

    def sample(self, image: Tensor) -> Tensor:
        """Image at the acquired voxels, after blurring by the slice profile.

        The profile is a Gaussian whose full width at half maximum is the slice thickness, reduced
        by the width that the voxels of ``image`` already have.
        """
        for axis, sampling in enumerate(self.samplings):
            if sampling is not None:
                image = _profile(image, sampling[0], axis)
        return image

    def resample(self, acquired: Tensor) -> Tensor:
        """Image on the grid of the pair, by linear interpolation of the acquired voxels."""
        # The last axis first, while the volume is small: it is the dearest to interpolate along.
        for axis, sampling in reversed(list(enumerate(self.samplings))):
            if sampling is not None:
                acquired = _interpolate(acquired, sampling[1], axis)
        return acquired


def _sampling(
    n: int, have_mm: float, size_mm: float, thickness_mm: float
) -> tuple[Tensor, Tensor] | None:
    """Along one axis: matrix to the acquired samples, and where the voxels lie among these.

    ``None`` where nothing would change.
    """
    size_mm = max(size_mm, have_mm)
    width_mm = max(thickness_mm**2 - have_mm**2, 0.0) ** 0.5
    if size_mm <= have_mm * 1.001 and width_mm <= 0.1 * have_mm:
        return None
    count = max(2, round(n * have_mm / size_mm))
    at = (torch.arange(count, dtype=torch.float64) - (count - 1) / 2) * size_mm / have_mm + (
        n - 1
    ) / 2
    distance = torch.arange(n, dtype=torch.float64)[None] - at[:, None]
    sd_vox = max(width_mm / have_mm / FWHM_PER_SD, 0.3)
    profile = torch.exp(-0.5 * (distance / sd_vox) ** 2)
    profile[distance.abs() > TAIL_SD * sd_vox + 1] = 0
    profile /= profile.sum(1, keepdim=True)
    back = (torch.arange(n, dtype=torch.float64) - at[0]) / (at[1] - at[0])
    return profile.float(), back


def _profile(image: Tensor, profile: Tensor, axis: int) -> Tensor:
    """Apply the matrix of a slice profile along one axis."""
    if axis == 0:
        return _by_slabs(BandedProduct(profile, image), len(profile))
    return multiply_along(image, profile, axis)


def _interpolate(image: Tensor, positions: Tensor, axis: int) -> Tensor:
    """Linear interpolation at ``positions`` along one axis; beyond the ends, the end value."""
    matrix = linear_matrix(len(positions), image.shape[axis], positions=positions)
    if axis == 2:
        return image @ matrix.to(image.device).T
    if axis == 0:
        return _by_slabs(BandedProduct(matrix, image), len(positions))
    low, weight = (values.to(image.device) for values in linear_weights(positions, image.shape[1]))
    weight = weight.float()[:, None]
    out = image.new_empty(image.shape[0], len(positions), image.shape[2])
    for plane, into in zip(image, out, strict=True):
        before = plane.index_select(0, low)
        after = plane.index_select(0, low + 1)
        # torch.lerp takes several times as long with a weight that is broadcast.
        torch.add(before, after.sub_(before).mul_(weight), out=into)
    return out


def _by_slabs(product: BandedProduct, n: int) -> Tensor:
    out = product.values.new_empty(n, *product.shape)
    for start, stop in slabs(n):
        out[start:stop] = product(start, stop)
    return out
