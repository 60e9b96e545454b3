# SPDX-License-Identifier: Apache-2.0
"""Label maps on another grid, by one-hot interpolation and arg-max near label boundaries.

`regrid` is for any grid, `upsample` for finer grids, with a better kernel, and
`upsample_posteriors` for top-k posteriors. No label is added, and none is shifted.
"""

from __future__ import annotations

import logging
from copy import copy

import numpy as np

from brainseg_bids.anatomy import upsample_band as band
from brainseg_bids.anatomy import upsample_kernels as kernels
from brainseg_bids.anatomy.grid import Grid, triple
from brainseg_bids.anatomy.index_maps import copy_turned, index_map, parallel_axes, whole_steps
from brainseg_bids.anatomy.interpolation import (
    Profile,
    cubic_profile,
    kernel_profile,
    linear_profile,
)
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.posteriors import TopPosteriors
from brainseg_bids.anatomy.upsample_axis import Axis, is_sure
from brainseg_bids.anatomy.upsample_engine import Engine, Lookup, Processor, Progress
from brainseg_bids.machine import host_memory_gib

log = logging.getLogger("brainseg")

KERNELS = ("fitted", "linear", "lossless")
"""``fitted``: five taps with negative lobes, fitted to maps that were downsampled and upsampled
again; best overlap, smoothest boundaries. ``linear``: trilinear one-hot interpolation.
``lossless``: Lanczos kernel, and every source voxel keeps the majority of its volume, so that
downsampling restores the source."""
ORDERS = ("cubic", "linear")
WORKING_BYTES = 32 * 2**20
"""Buffers of all threads together, besides source and target."""
REPAIRS = 6
"""Largest number of rounds in which voxels that a lossless map would lose in downsampling are
restored."""
REPAIRABLE = 200_000
"""Number of lost voxels above which restoring them would take minutes."""

THIN_FACTOR = 1.6
"""Upsampling factor below which keeping thin voxels reduces accuracy, since they have too few
target voxels."""


def regrid(labels: LabelMap, grid: Grid) -> LabelMap:
    """Label map on another grid with the same world space.

    If the grids differ by permuted or flipped axes and shifts by whole voxels only, voxels are
    copied. Otherwise a voxel gets the label with the largest trilinear weight or, along axes on
    which the target is coarser, the label that fills most of it. Voxels outside of the source get
    code 0.

    Parameters
    ----------
    labels : LabelMap
        Any affine: oblique, flipped, anisotropic, sheared.
    grid : Grid
        Any.

    Returns
    -------
    LabelMap
        On ``grid``, with the same table and integer type.

    Notes
    -----
    Of labels with equal weights the lowest code is taken. At positions midway between two source
    voxels, target voxels with an odd index take the highest code instead: no label grows at the
    cost of another.

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
    matrix, shift = index_map(labels.grid, grid)
    steps = whole_steps(matrix, shift, grid.shape)
    if steps is not None:
        out = np.zeros(grid.shape, labels.voxels.dtype)
        copy_turned(labels.voxels, out, *steps)
        return LabelMap(out, grid, labels.table)
    found = upsample(labels, grid, kernel="linear")
    voxels = found.voxels.astype(labels.voxels.dtype, copy=False)
    return LabelMap(voxels, grid, labels.table)


def upsample(
    labels: LabelMap,
    grid: Grid | float | tuple[float, float, float],
    *,
    kernel: str = "fitted",
    smoothing_mm: float = 0.0,
    keep_thin: bool | None = None,
    progress: Progress | None = None,
    engine: Engine | None = None,
) -> LabelMap:
    """Label map on a finer grid.

    Along axes on which the target is coarser, a voxel gets the label that fills most of it.

    Parameters
    ----------
    labels : LabelMap
    grid : Grid, or voxel size in mm
        A voxel size stands for the same field of view and axes.
    kernel : {"fitted", "linear", "lossless"}
        See `KERNELS`.
    smoothing_mm : float
        Standard deviation of Gaussian smoothing of the masks of labels; removes thin structures.
    keep_thin : bool, optional
        Whether source voxels that belong to no 2x2x2 block of their label keep the majority of
        their volume. Default: True for ``fitted`` without smoothing, if the axes are the same and
        the voxel size becomes at least 1.6 times smaller along each.
    progress : callable, optional
        Called with the number of parts done and of all parts. The first call in an environment
        compiles for about a minute.
    engine : Engine, optional
        Default: `Processor` with all cores. For GPUs, see `inference.upsample_device`.

    Returns
    -------
    LabelMap
        int16, with the same table.

    Raises
    ------
    ValueError
        If the kernel does not exist, the smoothing is negative or too wide, or ``lossless`` or
        ``keep_thin`` is given for a coarser grid or one with other axes.
    MemoryError
        If the target needs more memory than is free. The message gives the amount.
    """
    _check_options(kernel, smoothing_mm)
    if not isinstance(grid, Grid):
        grid = labels.grid.with_voxel_size(grid)
    check_memory(grid, labels.grid)
    engine = engine or Processor()
    out = np.zeros(grid.shape, np.int16)
    _interpolate(labels, grid, kernel, smoothing_mm, keep_thin, engine, out, progress)
    result = _of_same_table(out, grid, labels)
    if kernel == "lossless" and not _whole_factors(labels.grid, grid):
        _repair(labels, result)
    return result


def _interpolate(
    labels: LabelMap,
    grid: Grid,
    kernel: str,
    smoothing_mm: float,
    keep_thin: bool | None,
    engine: Engine,
    out: np.ndarray,
    progress: Progress | None,
) -> None:
    """Fill ``out`` with the labels on the grid: along the axes if they are the same."""
    matrix, _ = index_map(labels.grid, grid)
    turn = parallel_axes(matrix, grid.shape)
    step = float(np.abs(matrix).max())
    if keep_thin is None:
        may_keep = turn is not None and step <= 1 / THIN_FACTOR
        keep_thin = kernel == "fitted" and smoothing_mm == 0 and may_keep
    hold = band.ALL if kernel == "lossless" else band.THIN if keep_thin else band.FREE
    if hold and (turn is None or step > 1 + 1e-3):
        raise ValueError(
            "voxels can keep their own volume only on a finer grid with the source's axes: "
            "use kernel 'fitted' without keep_thin, or upsample first and turn afterwards"
        )
    if turn is not None and step < 2 * band.MAX_REACH:
        source, axes = _along_axes(labels, grid, turn, kernel, smoothing_mm)
        engine.fill(source, axes, hold, out, progress)
    else:
        engine.resample(_at_any_angle(labels, grid, kernel, smoothing_mm), out, progress)


def _check_options(kernel: str, smoothing_mm: float) -> None:
    if kernel not in KERNELS:
        raise ValueError(f"no upsampling kernel {kernel!r}; known: {', '.join(KERNELS)}")
    if not (np.isfinite(smoothing_mm) and smoothing_mm >= 0):
        raise ValueError(f"smoothing of {smoothing_mm} mm is not a length")


def regrid_posteriors(posteriors: TopPosteriors, grid: Grid) -> TopPosteriors:
    """Top-k posteriors on another grid: as `regrid`, with interpolated probabilities.

    Voxels outside of the source get code 0 with probability 1.

    Returns
    -------
    TopPosteriors
        On ``grid``, with the same number of labels for each voxel.
    """
    matrix, shift = index_map(posteriors.grid, grid)
    keep = len(posteriors.codes)
    out_codes = np.zeros((keep, *grid.shape), np.int16)
    out_weights = np.zeros((keep, *grid.shape), np.uint8)
    steps = whole_steps(matrix, shift, grid.shape)
    if steps is not None:
        out_weights[0] = kernels.CERTAIN
        for rank in range(keep):
            copy_turned(posteriors.codes[rank], out_codes[rank], *steps)
            copy_turned(posteriors.weights[rank], out_weights[rank], *steps)
    else:
        tables = np.stack([kernels.weight_table(linear_profile, 1)] * 3)
        lookup = _lookup(posteriors.codes, posteriors.weights, tables, matrix, shift)
        Processor().resample_weights(lookup, out_codes, out_weights)
    return TopPosteriors(out_codes, out_weights, grid, posteriors.table)


def upsample_posteriors(
    posteriors: TopPosteriors,
    grid: Grid | float | tuple[float, float, float],
    *,
    order: str = "cubic",
    progress: Progress | None = None,
    engine: Engine | None = None,
) -> LabelMap:
    """Label map on a finer grid from top-k posteriors: more accurate than from labels alone.

    Parameters
    ----------
    posteriors : TopPosteriors
    grid : Grid, or voxel size in mm
    order : {"cubic", "linear"}
        Interpolation of the probabilities. Cubic convolution (Keys 1981) has negative lobes,
        which undo part of the averaging over a voxel.
    progress, engine
        As for `upsample`.

    Returns
    -------
    LabelMap
        int16, with the same table; code 0 outside of the source.

    Raises
    ------
    ValueError
        If the order does not exist.
    MemoryError
        If the target needs more memory than is free.
    """
    if order not in ORDERS:
        raise ValueError(f"no interpolation order {order!r}; known: {', '.join(ORDERS)}")
    if not isinstance(grid, Grid):
        grid = posteriors.grid.with_voxel_size(grid)
    check_memory(grid, posteriors.grid)
    matrix, shift = index_map(posteriors.grid, grid)
    profile, reach = (cubic_profile, 2) if order == "cubic" else (linear_profile, 1)
    if np.linalg.norm(matrix, axis=0).max() > 1 + 1e-3:
        profile, reach = linear_profile, 1  # a coarser voxel is looked at in many points instead
    out = np.zeros(grid.shape, np.int16)
    tables = np.stack([kernels.weight_table(profile, reach)] * 3)
    lookup = _lookup(posteriors.codes, posteriors.weights, tables, matrix, shift)
    (engine or Processor()).resample(lookup, out, progress)
    return LabelMap(out, grid, posteriors.table)


def needed_gib(grid: Grid, source: Grid | None = None) -> float:
    """Predicted peak memory of upsampling to ``grid`` in GiB, including the result.

    Examples
    --------
    >>> round(needed_gib(Grid((512, 512, 512), np.eye(4)), Grid((256, 256, 256), np.eye(4))), 2)
    0.32
    """
    voxels = 2 * np.prod(grid.shape, dtype=float)
    if source is not None:
        voxels += 2 * np.prod([n + 14 for n in source.shape], dtype=float)
    return float((voxels + WORKING_BYTES) / 2**30)


def check_memory(grid: Grid, source: Grid | None = None) -> None:
    """Raise an error if upsampling to ``grid`` needs more memory than is free.

    Raises
    ------
    MemoryError
        If `needed_gib` is more than is free.

    Examples
    --------
    >>> check_memory(Grid((10**5, 10**5, 10**5), np.eye(4)))
    Traceback (most recent call last):
    MemoryError: a label map of 100000 x 100000 x 100000 voxels needs ...
    """
    needed, free = needed_gib(grid, source), host_memory_gib()[1]
    if needed > free:
        shape = " x ".join(str(n) for n in grid.shape)
        raise MemoryError(
            f"a label map of {shape} voxels needs {needed:.1f} GiB of memory, {free:.1f} GiB are "
            "free: choose larger voxels or crop"
        )


# Grids with the source's axes ------------------------------------------------------------------


def _along_axes(
    labels: LabelMap,
    grid: Grid,
    turn: tuple[list[int], list[int]],
    kernel: str,
    smoothing_mm: float,
) -> tuple[np.ndarray, tuple[Axis, Axis, Axis]]:
    """The source on the target's axes, and those axes."""
    order, signs = turn
    matrix, shift = index_map(labels.grid, grid)
    source = labels.voxels.transpose(order)[tuple(slice(None, None, sign) for sign in signs)]
    sizes = [labels.grid.voxel_size_mm[axis] for axis in order]
    one = 1024 if kernel == "linear" else 512
    plans = []
    for to, (axis, sign) in enumerate(zip(order, signs, strict=True)):
        step, start = abs(matrix[axis, to]), shift[axis]
        if sign < 0:
            start = labels.grid.shape[axis] - 1 - start
        plans.append((step, start, *kernel_profile(kernel, step, smoothing_mm / sizes[to])))
    reach = max(plan[3] for plan in plans)
    axes = triple(
        _axis(n, n_out, step, start, profile, reach, one)
        for n, n_out, (step, start, profile, _) in zip(
            source.shape, grid.shape, plans, strict=True
        )
    )
    return source, axes


def _axis(
    n_source: int, n_target: int, step: float, start: float, profile: Profile, reach: int, one: int
) -> Axis:
    """Who owns which target voxel of an axis, and the weights around the owner."""
    places = np.round(start + step * np.arange(n_target), 6)
    owner = np.clip(np.rint(places), 0, n_source - 1).astype(np.int64)
    inside = (places >= -0.5) & (places <= n_source - 0.5)
    key = np.where(inside, owner, np.where(places < 0, -1, n_source))
    offsets = np.arange(-reach, reach + 1)
    within = np.clip(places, -0.5, n_source - 0.5)  # what is outside is never looked at
    values = profile(np.abs((within - owner)[:, None] - offsets))
    values = values / values.sum(1, keepdims=True)
    weights = np.rint(values * one).astype(np.int32)
    # The largest weight takes the rounding, so that each row sums to one.
    weights[np.arange(n_target), values.argmax(1)] += one - weights.sum(1, dtype=np.int32)
    midway = places - np.floor(places) == 0.5
    return Axis(
        np.searchsorted(key, np.arange(n_source + 1)).astype(np.int64),
        weights,
        (midway & (np.arange(n_target) % 2 == 1)).astype(np.uint8),
        one,
    )


def _of_same_table(voxels: np.ndarray, grid: Grid, labels: LabelMap) -> LabelMap:
    """Label map whose codes all come from ``labels`` or are 0.

    They are not checked again: for 512³ voxels that takes a quarter of the time of it all.
    """
    if 0 not in labels.table:
        return LabelMap(voxels, grid, labels.table)
    result = copy(labels)
    object.__setattr__(result, "voxels", voxels)
    object.__setattr__(result, "grid", grid)
    return result


def _whole_factors(source: Grid, target: Grid) -> bool:
    """Whether each target voxel lies in one source voxel, or outside."""
    matrix, shift = index_map(source, target)
    order = np.abs(matrix).argmax(0)
    steps, starts = np.abs(matrix[order, np.arange(3)]), shift[order]
    factors = 1 / steps
    # Borders of target voxels, in target voxels from a border of the source.
    borders = (starts + 0.5) * factors - 0.5
    drift = np.abs(factors - np.rint(factors)) * np.array(target.shape) * steps
    return bool((drift < 1e-3).all() and (np.abs(borders - np.rint(borders)) < 1e-3).all())


def _repair(labels: LabelMap, result: LabelMap) -> None:
    """Give back, in place, the volume of voxels that are lost on the way down again.

    Where the factor is no whole number, a target voxel belongs to several source voxels, so that
    keeping the majority of the owned ones is not always enough. What one voxel gets, another may
    lose: rounds go on until none is lost, and the best one counts.
    """
    matrix, shift = index_map(result.grid, labels.grid)
    half = np.abs(matrix).sum(1) / 2
    best, fewest = None, labels.voxels.size + 1
    for _ in range(REPAIRS):
        lost = np.argwhere(regrid(result, labels.grid).voxels != labels.voxels)
        if len(lost) < fewest:
            best, fewest = result.voxels.copy() if len(lost) else None, len(lost)
        if not len(lost) or len(lost) > REPAIRABLE:
            break
        for index in lost:
            code = labels.voxels[tuple(index)]
            _give_back(result.voxels, code, matrix @ index + shift, half)
    if best is not None:
        result.voxels[...] = best
        n = labels.voxels.size
        log.warning("%d of %d voxels do not come back from the finer map", fewest, n)


def _give_back(voxels: np.ndarray, code: int, middle: np.ndarray, half: np.ndarray) -> None:
    """Paint the target voxels that lie in one source voxel, most of them first, until it wins."""
    low = np.maximum(0, np.ceil(middle - half - 0.5 + 1e-6)).astype(int)
    high = np.minimum(np.floor(middle + half + 0.5 - 1e-6), np.array(voxels.shape) - 1).astype(int)
    box = tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))
    shares = [
        np.minimum(np.arange(a, b + 1) + 0.5, m + h) - np.maximum(np.arange(a, b + 1) - 0.5, m - h)
        for a, b, m, h in zip(low, high, middle, half, strict=True)
    ]
    share = np.einsum("a,b,c->abc", *shares).ravel()
    codes = voxels[box].ravel()
    for at in np.argsort(-share, kind="stable"):
        areas = {other: share[codes == other].sum() for other in np.unique(codes).tolist()}
        mine = areas.pop(int(code), 0.0)
        if mine > max(areas.values(), default=0.0) + 0.01 * share.sum():
            break
        codes[at] = code
    voxels[box] = codes.reshape(voxels[box].shape)


# Grids at any angle ----------------------------------------------------------------------------


def _at_any_angle(labels: LabelMap, grid: Grid, kernel: str, smoothing_mm: float) -> Lookup:
    """What is looked up for a grid whose axes are not the source's."""
    matrix, shift = index_map(labels.grid, grid)
    steps = np.linalg.norm(matrix, axis=0)
    factor = 1 / float(np.prod(steps)) ** (1 / 3)
    coarser = steps.max() > 1 + 1e-3
    longest = []
    for size_mm in labels.grid.voxel_size_mm:
        name = "linear" if coarser else kernel
        profile, _ = kernel_profile(name, min(1.0, 1 / factor), smoothing_mm / size_mm)
        longest.append(kernels.weight_table(profile, band.MAX_REACH))
    # All tables are as long as the longest needs.
    taps = np.flatnonzero(np.any(longest, axis=(0, 1)))
    used = max(band.MAX_REACH - taps[0], taps[-1] + 1 - band.MAX_REACH)
    cut = slice(band.MAX_REACH - used, band.MAX_REACH + used)
    tables = np.ascontiguousarray(np.stack(longest)[:, :, cut])
    codes = labels.voxels.astype(np.int16, copy=False)[None]
    return _lookup(codes, None, tables, matrix, shift)


def _lookup(
    codes: np.ndarray,
    weights: np.ndarray | None,
    tables: np.ndarray,
    matrix: np.ndarray,
    shift: np.ndarray,
) -> Lookup:
    """`Lookup` with the points that a target voxel of this size needs."""
    points = _points(matrix)
    # The winner of one point is sure then, not its lead; for two taps there is nothing around.
    sure = tables.shape[2] == 2 or (len(points) == 1 and _is_sure(tables))
    codes = np.ascontiguousarray(codes)
    weights = None if weights is None else np.ascontiguousarray(weights)
    return Lookup(codes, weights, tables, matrix, shift, points, sure)


def _is_sure(tables: np.ndarray) -> bool:
    """Whether eight voxels that agree settle a place, whatever is around them."""
    middle = tables.shape[2] // 2
    return is_sure([(table[:, middle - 1 : middle + 1], table) for table in tables])


def _points(matrix: np.ndarray) -> np.ndarray:
    """Where to look within a target voxel: its centre, or a lattice if it is coarser. (n, 3)."""
    steps = np.linalg.norm(matrix, axis=0)
    counts = [1 if step <= 1 + 1e-3 else int(np.ceil(step - 1e-3)) for step in steps]
    lattice = np.meshgrid(*[(np.arange(n) + 0.5) / n - 0.5 for n in counts], indexing="ij")
    return np.stack([axis.ravel() for axis in lattice], axis=1)
