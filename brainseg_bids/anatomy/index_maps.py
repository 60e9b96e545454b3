# SPDX-License-Identifier: Apache-2.0
"""Voxel indices of one grid as indices of another; copies where no interpolation is needed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from brainseg_bids.anatomy.grid import Grid

WHOLE_VOXEL_TOLERANCE = 0.02
"""Deviation in voxels below which a shift counts as whole: the linear arg-max is then the label of
the nearest voxel anyway (0.98³ > 1/2)."""
PARALLEL_TOLERANCE = 0.01
"""Largest deviation of the far corner, in voxels, for which two grids count as parallel."""


def index_map(source: Grid, target: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Matrix (3, 3) and shift (3,) that map a target voxel index to a source voxel index."""
    affine = np.linalg.inv(source.affine) @ target.affine
    return np.ascontiguousarray(affine[:3, :3]), np.ascontiguousarray(affine[:3, 3])


def parallel_axes(
    matrix: np.ndarray, shape: tuple[int, int, int]
) -> tuple[list[int], list[int]] | None:
    """Source axis and sign for each target axis, or None if axes are not parallel."""
    order = np.abs(matrix).argmax(0)
    if sorted(order) != [0, 1, 2]:
        return None
    rest = matrix.copy()
    rest[order, np.arange(3)] = 0
    if (np.abs(rest) @ np.array(shape)).max() > PARALLEL_TOLERANCE:
        return None
    return order.tolist(), [1 if matrix[axis, to] > 0 else -1 for to, axis in enumerate(order)]


def whole_steps(
    matrix: np.ndarray, shift: np.ndarray, shape: tuple[int, int, int]
) -> tuple[list[int], list[int], list[int]] | None:
    """Source axis, sign and first source index for each target axis.

    None unless the grids differ by permuted or flipped axes and shifts by whole voxels only.
    """
    turn = np.rint(matrix)
    if not (np.abs(turn).sum(0) == 1).all() or not (np.abs(turn).sum(1) == 1).all():
        return None
    reach = np.abs(matrix - turn) @ (np.array(shape) - 1) + np.abs(shift - np.rint(shift))
    if reach.max() > WHOLE_VOXEL_TOLERANCE:
        return None
    axes = np.abs(turn).argmax(0).tolist()
    signs = [int(turn[axis, to]) for to, axis in enumerate(axes)]
    return axes, signs, [int(np.rint(shift)[axis]) for axis in axes]


def copy_turned(
    source: np.ndarray,
    out: np.ndarray,
    axes: Sequence[int],
    signs: Sequence[int],
    first: Sequence[int],
) -> None:
    """Copy ``source`` into ``out`` where they overlap, along permuted and flipped axes.

    Parameters
    ----------
    source, out : (X, Y, Z), (X', Y', Z')
        ``out`` is changed in place; voxels outside of the source keep their value.
    axes, signs, first : three of int
        From `whole_steps`.
    """
    source = source.transpose(axes)
    here, there = [], []
    for n, size, sign, start in zip(out.shape, source.shape, signs, first, strict=True):
        # Source index of target index i: start + sign * i.
        ends = (-start, size - 1 - start) if sign > 0 else (start - size + 1, start)
        low, high = max(0, ends[0]), min(n - 1, ends[1])
        if low > high:
            return
        here.append(slice(low, high + 1))
        stop = start + sign * (high + 1)
        there.append(slice(start + sign * low, stop if stop >= 0 else None, sign))
    out[tuple(here)] = source[tuple(there)]
