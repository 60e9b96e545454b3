# SPDX-License-Identifier: Apache-2.0
"""Label maps on another grid: no label is invented, none moves."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from brainseg_bids.anatomy import upsample_kernels as kernels
from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.membership import Membership

SLAB_VOXELS = 1 << 20
"""Target voxels in work at once and by each thread."""
SLAB_VOXELS_NUMPY = 1 << 15
"""The same without numba, where every voxel needs some hundred bytes on the way."""
WHOLE_VOXEL_TOLERANCE = 0.02
"""Voxels; below, the linear arg-max is the nearest voxel's label anyway (0.98³ > 1/2)."""


def regrid(labels: LabelMap, grid: Grid) -> LabelMap:
    """Label map on another grid, by the affines in world space.

    Where the grids differ by axis turns and whole voxels only, voxels are copied. Elsewhere a
    voxel gets the label with the largest trilinear weight, summed over points within the voxel
    where the target is coarser, so that its whole volume has a say. Outside the source: code 0.

    Parameters
    ----------
    labels : LabelMap
        Any affine: oblique, flipped, anisotropic, sheared.
    grid : Grid
        Any.

    Returns
    -------
    LabelMap
        On ``grid``, same table, same integer type.

    Notes
    -----
    Of labels with equal weight the lowest code wins where the sum of the target indices is even
    and the highest elsewhere: no label grows at the cost of another, whatever the source's axis
    order.

    Examples
    --------
    >>> from brainseg_bids.anatomy.labels import Label, LabelTable
    >>> table = LabelTable([Label(0, "Background"), Label(7, "Cube")])
    >>> voxels = np.zeros((4, 4, 4), np.int16); voxels[1:3, 1:3, 1:3] = 7
    >>> cube = LabelMap(voxels, Grid((4, 4, 4), np.eye(4)), table)
    >>> finer = regrid(cube, cube.grid.with_voxel_size(0.5))
    >>> finer.voxels.shape, finer.volumes_mm3()[7]
    ((8, 8, 8), 7.0)
    """
    matrix, shift = _index_map(labels.grid, grid)
    out = np.zeros(grid.shape, labels.voxels.dtype)
    steps = _whole_steps(matrix, shift, grid.shape)
    if steps is not None:
        _copy_turned(labels.voxels, out, *steps)
        return LabelMap(out, grid, labels.table)
    codes = np.ascontiguousarray(labels.voxels, dtype=np.int16)
    points = _points(matrix)
    pull = kernels.pull_labels if kernels.HAS_NUMBA else kernels.pull_labels_numpy

    def work(planes: slice) -> None:
        part = np.empty((planes.stop - planes.start, *grid.shape[1:]), np.int16)
        pull(codes, matrix, shift, points, planes.start, part)
        out[planes] = part

    _in_slabs(work, grid.shape)
    return LabelMap(out, grid, labels.table)


def regrid_membership(membership: Membership, grid: Grid) -> Membership:
    """Membership on another grid: as `regrid`, with the labels' weights interpolated.

    Outside the source: code 0, certain.

    Returns
    -------
    Membership
        On ``grid``, with as many labels a voxel as the input.
    """
    matrix, shift = _index_map(membership.grid, grid)
    keep = len(membership.codes)
    out_codes = np.zeros((keep, *grid.shape), np.int16)
    out_weights = np.zeros((keep, *grid.shape), np.uint8)
    steps = _whole_steps(matrix, shift, grid.shape)
    if steps is not None:
        out_weights[0] = 255
        for rank in range(keep):
            _copy_turned(membership.codes[rank], out_codes[rank], *steps)
            _copy_turned(membership.weights[rank], out_weights[rank], *steps)
        return Membership(out_codes, out_weights, grid, membership.table)
    codes = np.ascontiguousarray(membership.codes, dtype=np.int16)
    weights = np.ascontiguousarray(membership.weights, dtype=np.uint8)
    points = _points(matrix)
    pull = kernels.pull_membership if kernels.HAS_NUMBA else kernels.pull_membership_numpy

    def work(planes: slice) -> None:
        shape = (keep, planes.stop - planes.start, *grid.shape[1:])
        some_codes, some_weights = np.empty(shape, np.int16), np.empty(shape, np.uint8)
        pull(codes, weights, matrix, shift, points, planes.start, some_codes, some_weights)
        out_codes[:, planes], out_weights[:, planes] = some_codes, some_weights

    _in_slabs(work, grid.shape)
    return Membership(out_codes, out_weights, grid, membership.table)


def _index_map(source: Grid, target: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Matrix (3, 3) and shift (3,) from target index to source index."""
    affine = np.linalg.inv(source.affine) @ target.affine
    return np.ascontiguousarray(affine[:3, :3]), np.ascontiguousarray(affine[:3, 3])


def _whole_steps(
    matrix: np.ndarray, shift: np.ndarray, shape: tuple[int, int, int]
) -> tuple[list[int], list[int], list[int]] | None:
    """For each target axis its source axis, sign and first source index; None if not whole."""
    turn = np.rint(matrix)
    if not (np.abs(turn).sum(0) == 1).all() or not (np.abs(turn).sum(1) == 1).all():
        return None
    reach = np.abs(matrix - turn) @ (np.array(shape) - 1) + np.abs(shift - np.rint(shift))
    if reach.max() > WHOLE_VOXEL_TOLERANCE:
        return None
    axes = np.abs(turn).argmax(0).tolist()
    signs = [int(turn[axis, to]) for to, axis in enumerate(axes)]
    return axes, signs, [int(np.rint(shift)[axis]) for axis in axes]


def _copy_turned(source, out, axes, signs, first) -> None:
    """Copy what lies inside, along turned axes."""
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


def _points(matrix: np.ndarray) -> np.ndarray:
    """Where to look within a target voxel: its centre, or a lattice if it is coarser. (n, 3)."""
    steps = np.linalg.norm(matrix, axis=0)
    counts = [1 if step <= 1 + 1e-3 else int(np.ceil(step - 1e-3)) for step in steps]
    lattice = np.meshgrid(*[(np.arange(n) + 0.5) / n - 0.5 for n in counts], indexing="ij")
    return np.stack([axis.ravel() for axis in lattice], axis=1)


def _in_slabs(work: Callable[[slice], None], shape: tuple[int, int, int]) -> None:
    """Do ``work`` for all planes, some at once."""
    with ThreadPoolExecutor(_threads()) as pool:
        list(pool.map(work, _slabs(shape)))


def _slabs(shape: tuple[int, int, int]) -> Iterator[slice]:
    voxels = SLAB_VOXELS if kernels.HAS_NUMBA else SLAB_VOXELS_NUMPY
    planes = max(1, voxels // (shape[1] * shape[2]))
    for start in range(0, shape[0], planes):
        yield slice(start, min(start + planes, shape[0]))


def _threads() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
