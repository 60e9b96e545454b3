# SPDX-License-Identifier: Apache-2.0
"""What the scanner resolved: slice profile, voxel size, and back to the pair's grid."""

from __future__ import annotations

import torch
from torch import Tensor

from brainseg_bids.synth.interpolate import along_axes, linear_matrix
from brainseg_bids.synth.intensity import draw_noise
from brainseg_bids.synth.recipe import Noise, Resolution

FWHM_PER_SD = 2.3548


def acquire(
    image: Tensor, resolution: Resolution, noise: Noise, *, voxel_size_mm: float, scale: float
) -> Tensor:
    """Blur by the slice profile, sample at the acquired voxels, add noise there, resample back.

    The profile is a Gaussian whose full width at half maximum is the slice thickness, less the
    width that the voxels of ``image`` already have.

    Parameters
    ----------
    image : (X, Y, Z) float
    scale : float
        Intensity that ``noise.sd_frac`` is a share of.
    """
    matrices = [
        _axis_matrices(n, voxel_size_mm, size, thickness)
        for n, size, thickness in zip(
            image.shape, resolution.voxel_size_mm, resolution.thickness_mm, strict=True
        )
    ]
    acquired = image
    if any(down is not None for down, _ in matrices):
        acquired = _apply(acquired, [down for down, _ in matrices])
    if noise.sd_frac > 0:
        sd = noise.sd_frac * scale
        # Magnitude images: the length of a complex number with noise in both parts (Rician).
        real = draw_noise(acquired.shape, noise.seed, image.device).mul_(sd).add_(acquired)
        imaginary = draw_noise(acquired.shape, noise.seed + 1, image.device).mul_(sd)
        acquired = torch.hypot(real, imaginary)
    if any(up is not None for _, up in matrices):
        acquired = _apply(acquired, [up for _, up in matrices])
    return acquired


def _axis_matrices(
    n: int, have_mm: float, size_mm: float, thickness_mm: float
) -> tuple[Tensor | None, Tensor | None]:
    """Matrix to the acquired samples and matrix back; ``None`` where nothing would change."""
    size_mm = max(size_mm, have_mm)
    width_mm = max(thickness_mm**2 - have_mm**2, 0.0) ** 0.5
    if size_mm <= have_mm * 1.001 and width_mm <= 0.1 * have_mm:
        return None, None
    count = max(2, round(n * have_mm / size_mm))
    at = (torch.arange(count, dtype=torch.float64) - (count - 1) / 2) * size_mm / have_mm + (n - 1) / 2
    distance = torch.arange(n, dtype=torch.float64)[None] - at[:, None]
    sd_vox = max(width_mm / have_mm / FWHM_PER_SD, 0.3)
    down = torch.exp(-0.5 * (distance / sd_vox) ** 2)
    down /= down.sum(1, keepdim=True).clamp(min=1e-12)
    back = (torch.arange(n, dtype=torch.float64) - at[0]) / (at[1] - at[0])
    return down.float(), linear_matrix(n, count, positions=back)


def _apply(image: Tensor, matrices: list[Tensor | None]) -> Tensor:
    full = [
        torch.eye(n) if matrix is None else matrix
        for n, matrix in zip(image.shape, matrices, strict=True)
    ]
    if all(matrix is not None for matrix in matrices):
        return along_axes(image, tuple(m.to(image.device) for m in full))
    for axis, matrix in enumerate(matrices):
        if matrix is not None:
            matrix = matrix.to(image.device)
            if axis == 2:
                image = image @ matrix.T
            elif axis == 1:
                image = matrix @ image
            else:
                image = (matrix @ image.flatten(1)).view(matrix.shape[0], *image.shape[1:])
    return image
