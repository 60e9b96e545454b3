# SPDX-License-Identifier: Apache-2.0
"""Coarse fields to fine ones, as one matrix product per axis."""

from __future__ import annotations

import torch
from torch import Tensor


def linear_matrix(n_fine: int, n_coarse: int, *, positions: Tensor | None = None) -> Tensor:
    """Matrix of linear interpolation, (n_fine, n_coarse).

    Parameters
    ----------
    positions : (n_fine,) float, optional
        Where the fine samples lie, in units of coarse samples; by default the ends of both
        meet. Positions outside take the end value.

    Examples
    --------
    >>> linear_matrix(3, 2)
    tensor([[1.0000, 0.0000],
            [0.5000, 0.5000],
            [0.0000, 1.0000]])
    """
    if positions is None:
        positions = torch.linspace(0, n_coarse - 1, n_fine, dtype=torch.float64)
    positions = positions.double().clamp(0, n_coarse - 1)
    low = positions.floor().clamp(max=max(n_coarse - 2, 0)).long()
    weight = positions - low
    matrix = torch.zeros(n_fine, n_coarse, dtype=torch.float64)
    rows = torch.arange(n_fine)
    matrix[rows, low] += 1 - weight
    matrix[rows, (low + 1).clamp(max=n_coarse - 1)] += weight
    return matrix.float()


def cubic_matrix(n_fine: int, n_coarse: int, *, positions: Tensor) -> Tensor:
    """Matrix of uniform cubic B-spline synthesis, (n_fine, n_coarse), C2-smooth.

    Coefficients beyond the ends repeat the end coefficient.
    """
    positions = positions.double().clamp(0, n_coarse - 1)
    base = positions.floor().long()
    t = positions - base
    weights = torch.stack(
        [(1 - t) ** 3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6, t**3 / 6]
    )
    matrix = torch.zeros(n_fine, n_coarse, dtype=torch.float64)
    rows = torch.arange(n_fine)
    for k in range(4):
        matrix.index_put_((rows, (base + k - 1).clamp(0, n_coarse - 1)), weights[k], accumulate=True)
    return matrix.float()


def along_axes(field: Tensor, matrices: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Apply one matrix per spatial axis: (..., x, y, z) to (..., X, Y, Z)."""
    mx, my, mz = matrices
    field = field @ mz.T
    field = my @ field
    shape = field.shape
    flat = field.reshape(*shape[:-3], shape[-3], shape[-2] * shape[-1])
    return (mx @ flat).reshape(*shape[:-3], mx.shape[0], *shape[-2:])


def smooth_noise(
    shape: tuple[int, int, int],
    *,
    voxel_size_mm: float,
    node_spacing_mm: float,
    seed: int,
    channels: int = 1,
    stride: int = 1,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Random B-spline field over a box: its nodes and the matrices that make it fine.

    Nodes are drawn on the CPU, so that every device sees the same field.

    Returns
    -------
    nodes : (channels, nx, ny, nz) float
        Standard normal.
    matrices : three (ceil((shape - 1) / stride) + 1, n) float
    """
    generator = torch.Generator().manual_seed(seed)
    sizes, matrices = [], []
    for n in shape:
        fine = torch.arange(-(-(n - 1) // stride) + 1, dtype=torch.float64) * stride
        spacing_vox = node_spacing_mm / voxel_size_mm
        count = int((n - 1) / spacing_vox) + 4
        # The node lattice begins one node before the box, so that its border is no special place.
        matrices.append(cubic_matrix(len(fine), count, positions=fine / spacing_vox + 1))
        sizes.append(count)
    return torch.randn(channels, *sizes, generator=generator), tuple(matrices)
