# SPDX-License-Identifier: Apache-2.0
"""Coarse fields to fine ones, as one matrix product per axis."""

from __future__ import annotations

import torch
from torch import Tensor

from brainseg_bids.anatomy.grid import triple

SLAB = 8
"""Planes worked on at once: what belongs to them stays in the processor's cache."""


def slabs(n: int) -> list[tuple[int, int]]:
    """Start and stop of each slab of ``n`` planes; the last one may overlap the one before.

    All slabs are equally thick, because MKL's products of 5, 6 or 7 rows are not the same with
    one thread as with two.

    >>> slabs(20)
    [(0, 8), (8, 16), (12, 20)]
    """
    last = max(n - SLAB, 0)
    return [(min(start, last), min(start + SLAB, n)) for start in range(0, n, SLAB)]


class BandedProduct:
    """``matrix @ values``, a few rows at a time, without the zeros beside the matrix's band.

    Parameters
    ----------
    matrix : (n_fine, n_coarse) float, on the CPU
        Its band goes down and to the right: first and last nonzero columns never move back.
    values : (n_coarse, ...) float

    Examples
    --------
    >>> finer = BandedProduct(linear_matrix(5, 3), torch.tensor([[0.0], [2.0], [6.0]]))
    >>> finer(1, 4).flatten()
    tensor([1., 2., 4.])
    """

    def __init__(self, matrix: Tensor, values: Tensor) -> None:
        used = matrix != 0
        self.first = used.int().argmax(1).tolist()
        self.last = (used.shape[1] - used.flip(1).int().argmax(1)).tolist()
        self.matrix = matrix.to(values.device)
        self.values = values.flatten(1)
        self.shape = values.shape[1:]

    def columns(self, start: int, stop: int) -> slice:
        """Rows of ``values`` that the given rows of the product depend on."""
        return slice(self.first[start], self.last[stop - 1])

    def __call__(self, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop`` of the product, (stop - start, ...)."""
        band = self.columns(start, stop)
        product = self.matrix[start:stop, band] @ self.values[band]
        return product.view(stop - start, *self.shape)


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
    low, weight = linear_weights(positions, n_coarse)
    matrix = torch.zeros(n_fine, n_coarse, dtype=torch.float64)
    rows = torch.arange(n_fine)
    matrix[rows, low] += 1 - weight
    matrix[rows, (low + 1).clamp(max=n_coarse - 1)] += weight
    return matrix.float()


def linear_weights(positions: Tensor, n_coarse: int) -> tuple[Tensor, Tensor]:
    """Sample before each position, and the weight of the one after it.

    >>> linear_weights(torch.tensor([-1.0, 1.25]), 3)
    (tensor([0, 1]), tensor([0.0000, 0.2500], dtype=torch.float64))
    """
    positions = positions.double().clamp(0, n_coarse - 1)
    low = positions.floor().clamp(max=max(n_coarse - 2, 0)).long()
    return low, positions - low


def cubic_matrix(n_fine: int, n_coarse: int, *, positions: Tensor) -> Tensor:
    """Matrix of uniform cubic B-spline synthesis, (n_fine, n_coarse), C2-smooth.

    Coefficients beyond the ends repeat the end coefficient.
    """
    positions = positions.double().clamp(0, n_coarse - 1)
    base = positions.floor().long()
    t = positions - base
    weights = torch.stack(
        [
            (1 - t) ** 3 / 6,
            (3 * t**3 - 6 * t**2 + 4) / 6,
            (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6,
            t**3 / 6,
        ]
    )
    matrix = torch.zeros(n_fine, n_coarse, dtype=torch.float64)
    rows = torch.arange(n_fine)
    for k in range(4):
        matrix.index_put_(
            (rows, (base + k - 1).clamp(0, n_coarse - 1)), weights[k], accumulate=True
        )
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
    return torch.randn(channels, *sizes, generator=generator), triple(matrices)


def smooth_field(
    shape: tuple[int, int, int],
    *,
    voxel_size_mm: float,
    node_spacing_mm: float,
    seed: int,
    device: torch.device,
    spread: float = 1.0,
) -> BandedProduct:
    """Random B-spline field over a box, by slabs of its first axis; same spread in every voxel.

    Parameters
    ----------
    node_spacing_mm : float
        Distance between the nodes of the field.
    spread : float
        Standard deviation of each voxel.
    """
    nodes, matrices = smooth_noise(
        shape, voxel_size_mm=voxel_size_mm, node_spacing_mm=node_spacing_mm, seed=seed
    )
    # A voxel's variance is the sum of the squares of its weights, a product over the axes.
    to_x, to_y, to_z = (m / m.square().sum(1, keepdim=True).sqrt() for m in matrices)
    nodes = (nodes[0] * spread).to(device)
    return BandedProduct(to_x, to_y.to(device) @ (nodes @ to_z.to(device).T))


def multiply_along(image: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """Product of a matrix with every line of a volume along one axis.

    Parameters
    ----------
    image : (X, Y, Z) float
    matrix : (n_out, n_in) float
    """
    matrix = matrix.to(image.device)
    if axis == 2:
        return image @ matrix.T
    if axis == 0:
        return (matrix @ image.flatten(1)).view(len(matrix), *image.shape[1:])
    out = image.new_empty(image.shape[0], len(matrix), image.shape[2])
    for plane, into in zip(image, out, strict=True):
        torch.mm(matrix, plane, out=into)
    return out
