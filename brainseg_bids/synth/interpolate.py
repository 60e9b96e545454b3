# SPDX-License-Identifier: Apache-2.0
"""Interpolation of coarse fields, by one matrix product per axis."""

from __future__ import annotations

import torch
from torch import Tensor

from brainseg_bids.anatomy.grid import triple

SLAB = 8
"""Planes that are processed at a time, so that their data stays in the CPU cache."""


def slabs(n: int) -> list[tuple[int, int]]:
    """Start and stop of each slab of ``n`` planes; the last two slabs may overlap.

    All slabs have the same thickness, because MKL's matrix products with 5, 6 or 7 rows depend on
    the number of threads.

    >>> slabs(20)
    [(0, 8), (8, 16), (12, 20)]
    """
    last = max(n - SLAB, 0)
    return [(min(start, last), min(start + SLAB, n)) for start in range(0, n, SLAB)]


class BandedProduct:
    """``matrix @ values`` for a range of rows, for banded matrices.

    Parameters
    ----------
    matrix : (n_fine, n_coarse) float, on the CPU
        Banded: the first and the last nonzero column do not decrease from row to row.
    values : (n_coarse,) float, with any further axes

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
        """Slice of the rows of ``values`` that rows ``start`` to ``stop - 1`` depend on."""
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
        Positions of the fine samples, in units of coarse samples; default: both have the same
        ends. Positions outside take the value at the end.

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
    """Index of the sample before each position, and weight of the sample after it.

    >>> linear_weights(torch.tensor([-1.0, 1.25]), 3)
    (tensor([0, 1]), tensor([0.0000, 0.2500], dtype=torch.float64))
    """
    positions = positions.double().clamp(0, n_coarse - 1)
    low = positions.floor().clamp(max=max(n_coarse - 2, 0)).long()
    return low, positions - low


def cubic_matrix(n_fine: int, n_coarse: int, *, positions: Tensor) -> Tensor:
    """Matrix (n_fine, n_coarse) from coefficients of uniform cubic B-splines to values.

    Coefficients beyond the ends are equal to the last one.
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
    """Field (..., X, Y, Z): product of a field (..., x, y, z) with one matrix per spatial axis."""
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
    """Random B-spline field over a box, as nodes and interpolation matrices.

    Nodes are drawn on the CPU, so that the field is the same on every device.

    Returns
    -------
    nodes : (channels, nx, ny, nz) float
        Standard normal.
    matrices : three of (ceil((shape - 1) / stride) + 1, n) float
        From nodes to every ``stride``-th voxel along each axis.
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
    """Random B-spline field over a box, computed in slabs along the first axis.

    Parameters
    ----------
    shape : tuple of 3 int
    voxel_size_mm, node_spacing_mm : float
        Voxel size of the box, and distance of the nodes.
    seed : int
    device : torch.device
    spread : float
        Standard deviation, the same in every voxel.
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
