# SPDX-License-Identifier: Apache-2.0
"""Label maps on another grid: no label is invented, none moves."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from brainseg_bids.anatomy import upsample_band as band
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


def upsample(
    labels: LabelMap,
    grid: Grid | float | tuple[float, float, float],
    *,
    kernel: str = "fitted",
    smoothing_mm: float = 0.0,
    keep_thin: bool = False,
    progress: Callable[[int, int], None] | None = None,
    threads: int | None = None,
) -> LabelMap:
    """X."""
    if not isinstance(grid, Grid):
        grid = labels.grid.with_voxel_size(grid)
    matrix, shift = _index_map(labels.grid, grid)
    turned = _parallel(matrix)
    order, signs = turned
    source = labels.voxels.transpose(order)[tuple(slice(None, None, sign) for sign in signs)]
    steps = [abs(matrix[axis, to]) for to, axis in enumerate(order)]
    starts = [
        shift[axis] if sign > 0 else labels.grid.shape[axis] - 1 - shift[axis]
        for axis, sign in zip(order, signs, strict=True)
    ]
    profile, reach = PROFILES[kernel]
    axes = tuple(
        _axis(n, n_out, step, start, profile, reach, ONE[kernel])
        for n, n_out, step, start in zip(source.shape, grid.shape, steps, starts, strict=True)
    )
    out = np.zeros(grid.shape, np.int16)
    _fill(source, axes, band.ALL if kernel == "lossless" else band.THIN if keep_thin else band.FREE, out, progress, threads)
    return LabelMap(out, grid, labels.table)


ONE = {"linear": 1024, "fitted": 512, "lossless": 512}


def _linear(distance):
    return np.maximum(0, 1 - np.abs(distance))


def _fit(distance, knots=(1, .55, .2, -.1, -.1)):
    return np.interp(np.abs(distance), np.arange(6) / 2, [*knots, 0])


def _lanczos3(distance):
    return np.where(np.abs(distance) < 3, np.sinc(distance) * np.sinc(distance / 3), 0)


PROFILES = {"linear": (_linear, 1), "fitted": (_fit, 2), "lossless": (_lanczos3, 3)}


def _parallel(matrix):
    """Order and signs of the source's axes along the target's; None if they are not parallel."""
    turn = np.abs(matrix) > 1e-4 * np.abs(matrix).max()
    if not (turn.sum(0) == 1).all() or not (turn.sum(1) == 1).all():
        return None
    order = turn.argmax(0).tolist()
    return order, [1 if matrix[axis, to] > 0 else -1 for to, axis in enumerate(order)]


def _axis(n_source, n_target, step, start, profile, reach, one) -> band.Axis:
    places = start + step * np.arange(n_target)
    owner = np.clip(np.rint(places), 0, n_source - 1).astype(np.int64)
    inside = (places >= -0.5 - 1e-6) & (places <= n_source - 0.5 + 1e-6)
    key = np.where(inside, owner, np.where(places < 0, -1, n_source))
    offsets = np.arange(-reach, reach + 1)
    values = profile(places[:, None] - owner[:, None] - offsets)
    values = values / values.sum(1, keepdims=True)
    weights = np.rint(values * one).astype(np.int32)
    weights[np.arange(n_target), values.argmax(1)] += one - weights.sum(1, dtype=np.int32)
    midway = np.abs(places - np.floor(places) - 0.5) < 1e-6
    return band.Axis(
        np.searchsorted(key, np.arange(n_source + 1)).astype(np.int64),
        weights,
        (midway & (np.arange(n_target) % 2 == 1)).astype(np.uint8),
        one,
    )


def _fill(source, axes, hold, out, progress, threads) -> None:
    """Fill ``out`` from ``source``, some planes at once."""
    reach = axes[0].reach
    edges = [(reach, reach), (reach, reach), (reach, reach + band.WIDTH)]
    padded = np.ascontiguousarray(np.pad(source, edges, mode="edge"), dtype=np.int16)
    radius = band.sure_radius(axes)
    wz, odd_z = axes[2].by_owner(band.WIDTH)
    x, y, z = axes
    planes = 8
    starts = range(0, source.shape[0], planes)
    done = iter(range(1, len(starts) + 1))

    def work(start: int) -> None:
        stop = min(start + planes, source.shape[0])
        if kernels.HAS_NUMBA:
            band.fill_planes(
                padded, x.one, radius, hold, x.first, y.first, z.first, x.weights, y.weights, wz,
                x.midway, y.midway, odd_z, start, stop, out,
            )  # fmt: skip
        else:
            band.fill_planes_numpy(padded, axes, radius, hold, start, stop, out)
        if progress:
            progress(next(done), len(starts))

    with ThreadPoolExecutor(threads or _threads()) as pool:
        list(pool.map(work, starts))


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
