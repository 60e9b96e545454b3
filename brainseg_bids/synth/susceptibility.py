# SPDX-License-Identifier: Apache-2.0
"""Signal loss near air: susceptibility gradients dephase the spins within a voxel."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from brainseg_bids.synth.recipe import Susceptibility

AIR_PPM = 9.4
"""Susceptibility of air minus that of tissue, SI ppm: 0.36 - (-9.05) (Schenck, Med Phys 1996)."""

GAMMA_HZ_PER_T = 42.577e6
"""Gyromagnetic ratio of protons divided by 2 pi."""

PAD_CELLS = 10
"""Cells of padding on each side, to separate periodic copies."""


def signal_left(
    air: Tensor,
    susceptibility: Susceptibility,
    *,
    spacing_mm: float,
    voxel_size_mm: float = 1.0,
) -> Tensor:
    """Fraction of signal that remains in a gradient echo, (nx, ny, nz) float32 between 0 and 1.

    Along each axis it is |sinc| of the number of phase cycles across a voxel at the echo time.
    This is exact for a box-shaped voxel and a linear field. Shifts in k-space and geometric
    distortion are not modelled.

    Parameters
    ----------
    air : (nx, ny, nz) float
        Fraction of air in each cell, inside and outside of the head, in RAS+ axis order.
    susceptibility : Susceptibility
    spacing_mm : float
        Size of a cell. Since finer structure is averaged, losses within one cell of a border tend
        to be underestimated.
    voxel_size_mm : float
        Voxel size of the scan, isotropic.

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
    """Shift of the main field by air in tissue in ppm, (nx, ny, nz) float32; B0 is along S.

    Computed with the dipole kernel 1/3 - kz^2 / k^2 in k-space (Salomir et al., Concepts Magn
    Reson B 2003; Marques and Bowtell, same journal, 2005), with the Lorentz sphere. The array is
    extended by its border values. The mean is arbitrary.

    Parameters
    ----------
    air : (nx, ny, nz) float
        Fraction of air in each cell; cells are cubes of any size.
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
