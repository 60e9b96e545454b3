# SPDX-License-Identifier: Apache-2.0
"""Signal lost near air: its susceptibility bends the field, and spins in a voxel fall apart."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from brainseg_bids.synth.recipe import Susceptibility

AIR_PPM = 9.4
"""Susceptibility of air minus that of tissue, SI ppm: 0.36 - (-9.05) (Schenck, Med Phys 1996)."""

GAMMA_HZ_PER_T = 42.577e6
"""Gyromagnetic ratio of protons over 2 pi."""

PAD_CELLS = 10
"""Cells put around the box on each side, so that its periodic images stay away."""


def signal_left(
    air: Tensor,
    susceptibility: Susceptibility,
    *,
    spacing_mm: float,
    voxel_size_mm: float = 1.0,
) -> Tensor:
    """Share of the signal that a gradient echo keeps, (nx, ny, nz) float32 in 0..1.

    |sinc| of the cycles that the field's slope puts across a voxel until the echo, along each
    axis: exact for a box-shaped voxel and a straight slope. Shifts of k-space and of positions
    are left out.

    Parameters
    ----------
    air : (nx, ny, nz) float
        Share of air in each cell, inside and outside of the head, RAS; 0: tissue.
    susceptibility : Susceptibility
    spacing_mm : float
        Size of a cell. What is finer than a cell is averaged, so that losses within a cell of a
        border are too small rather than too large.
    voxel_size_mm : float
        Of the scan, isotropic.

    Examples
    --------
    >>> air = torch.zeros(16, 16, 16)
    >>> air[6:10, 6:10, 6:10] = 1.0
    >>> left = signal_left(air, Susceptibility(10.0, field_t=7.0), spacing_mm=4.0)
    >>> bool(left[8, 8, 10] < 0.5), bool(left[0, 0, 0] > 0.99)
    (True, True)
    """
    if susceptibility.echo_time_ms <= 0:
        return torch.ones_like(air, dtype=torch.float32)
    # ppm of B0 over a cell -> cycles across a voxel
    cycles = (
        field_shift_ppm(air)
        * (1e-6 * susceptibility.field_t * GAMMA_HZ_PER_T * susceptibility.echo_time_ms * 1e-3)
        * (voxel_size_mm / spacing_mm)
    )
    left = torch.ones_like(cycles)
    for axis, n in enumerate(air.shape):
        if n > 1:
            (slope,) = torch.gradient(cycles, dim=axis)
            left *= torch.sinc(slope).abs()
    return left


def field_shift_ppm(air: Tensor) -> Tensor:
    """Change of the main field by air in tissue, (nx, ny, nz) float32, in ppm of B0, which is S.

    Dipole kernel 1/3 - kz^2 / k^2 in k-space (Salomir et al., Concepts Magn Reson B 2003;
    Marques and Bowtell, same, 2005), with the sphere of Lorentz. Beyond the box goes on what is
    at its faces. Its mean is arbitrary.

    Parameters
    ----------
    air : (nx, ny, nz) float
        Share of air in each cell; cells are cubes of any size.
    """
    pads = [_pad(n) for n in air.shape]
    around = [side for pad in reversed(pads) for side in pad]
    padded = functional.pad(air.float()[None, None], around, mode="replicate")[0, 0]
    spectrum = torch.fft.rfftn(padded) * _dipole(padded.shape, air.device)
    field = torch.fft.irfftn(spectrum, s=padded.shape)
    inside = tuple(slice(pad[0], pad[0] + n) for pad, n in zip(pads, air.shape, strict=True))
    return field[inside] * AIR_PPM


def _pad(n: int) -> tuple[int, int]:
    """Cells before and after, so that the sum is a multiple of 8: fast to transform."""
    total = -(-(n + 2 * PAD_CELLS) // 8) * 8 - n
    return total // 2, total - total // 2


def _dipole(shape: torch.Size, device: torch.device) -> Tensor:
    kx, ky = (torch.fft.fftfreq(n, device=device) for n in shape[:2])
    kz = torch.fft.rfftfreq(shape[2], device=device)
    along = kz.square()
    k2 = kx.square()[:, None, None] + ky.square()[:, None] + along
    k2[0, 0, 0] = 1.0
    kernel = 1 / 3 - along / k2
    kernel[0, 0, 0] = 0.0
    return kernel
