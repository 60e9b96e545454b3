# SPDX-License-Identifier: Apache-2.0
"""Label maps on another grid: no label is invented, none moves.

`regrid` for any grid, `upsample` for a finer one with the best kernel, `upsample_membership` from
kept posteriors. All are one-hot interpolation and arg-max, done only where labels meet.
"""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import count
from pathlib import Path
from typing import Protocol

import numpy as np

from brainseg_bids.anatomy import upsample_band as band
from brainseg_bids.anatomy import upsample_kernels as kernels
from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.membership import Membership

log = logging.getLogger("brainseg")

KERNELS = ("fitted", "linear", "lossless")
ORDERS = ("cubic", "linear")
SLAB_VOXELS = 1 << 20
"""Target voxels in work at once and by each thread, on turned grids."""
BAND_PLANES = 8
"""Source planes in work at once and by each thread, on parallel grids."""
WORKING_BYTES = 32 * 2**20
"""Of all threads together, beside source and target."""
WHOLE_VOXEL_TOLERANCE = 0.02
"""Voxels; below, the linear arg-max is the nearest voxel's label anyway (0.98³ > 1/2)."""
PARALLEL_TOLERANCE = 0.01
"""Voxels by which the far corner may miss for two grids to count as parallel."""
REPAIRS = 6
"""Rounds of putting back voxels that a lossless map loses on the way down again."""
REPAIRABLE = 200_000
"""Voxels lost beyond which putting back would take minutes."""

THIN_FACTOR = 1.6
"""Below, thin voxels own so few target voxels that keeping most of them costs accuracy."""
CUBIC = -1.1
"""Keys' parameter. A partial volume is a mean over its voxel; lobes that are deeper than Catmull
and Rom's (-0.5) take that mean back in part (`benchmarks.upsampling`, GOUHFI 0.7 mm)."""

Profile = Callable[[np.ndarray], np.ndarray]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Lookup:
    """What is interpolated, and where: what `upsample_kernels.pull` needs for any target voxel.

    Parameters
    ----------
    codes : (k, X, Y, Z) int16
    weights : (k, X, Y, Z) uint8, or None if every label is certain
    tables : (3, 4096, taps) int64
        Of `upsample_kernels.weight_table`.
    matrix, shift : (3, 3), (3,) float
        Target index to source index.
    points : (n, 3) float
        Where in a target voxel the source is looked at.
    sure : bool
        Whether eight voxels around a place that agree settle its label.
    """

    codes: np.ndarray
    weights: np.ndarray | None
    tables: np.ndarray
    matrix: np.ndarray
    shift: np.ndarray
    points: np.ndarray
    sure: bool


class Engine(Protocol):
    """What does the sums. All engines give the same labels, to the last voxel."""

    def fill(
        self,
        source: np.ndarray,
        axes: tuple[band.Axis, band.Axis, band.Axis],
        hold: int,
        out: np.ndarray,
        progress: Progress | None,
    ) -> None:
        """Fill ``out``, (X', Y', Z') int16 zeros, from ``source``, a view on the same axes."""

    def pull(self, lookup: Lookup, out: np.ndarray, progress: Progress | None) -> None:
        """Fill ``out``, (X', Y', Z') int16, with the most probable label of each voxel."""


@dataclass(frozen=True)
class Processor:
    """The engine for processors, with numba.

    Parameters
    ----------
    threads : int, optional
        By default one for each core.
    """

    threads: int | None = None

    def fill(self, source, axes, hold, out, progress) -> None:
        """As `Engine.fill`."""
        _fill(source, axes, hold, out, progress, self.threads)

    def pull(self, lookup, out, progress) -> None:
        """As `Engine.pull`."""
        _pull(lookup, (out[None], None), progress, self.threads)


def regrid(labels: LabelMap, grid: Grid) -> LabelMap:
    """Label map on another grid, by the affines in world space.

    Where the grids differ by axis turns and whole voxels only, voxels are copied. Elsewhere a
    voxel gets the label with the largest trilinear weight; where the target is coarser, the label
    that fills most of it. Outside the source: code 0.

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
    Of labels with equal weight the lowest code wins, in odd target voxels midway between source
    voxels the highest: no label grows at the cost of another.

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
    steps = _whole_steps(matrix, shift, grid.shape)
    if steps is not None:
        out = np.zeros(grid.shape, labels.voxels.dtype)
        _copy_turned(labels.voxels, out, *steps)
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
    threads: int | None = None,
    engine: Engine | None = None,
) -> LabelMap:
    """Label map on a finer grid, as true to the anatomy as hard labels allow.

    Along axes that become coarser, a voxel's label is the one that fills most of it.

    Parameters
    ----------
    labels : LabelMap
    grid : Grid, or voxel size in mm
        A size means the same box and axes.
    kernel : {"fitted", "linear", "lossless"}
        ``fitted``: five-tap kernel with negative lobes, fitted on maps that were taken down and
        up again; best overlap, smoothest. ``linear``: trilinear one-hot. ``lossless``: Lanczos,
        and every source voxel keeps the majority of its own volume, so that going down again
        gives the source back.
    smoothing_mm : float
        Standard deviation of a Gaussian over the labels' masks; eats thin structures.
    keep_thin : bool, optional
        Voxels that are in no 2x2x2 block of their label keep the majority of their own volume.
        By default so for ``fitted`` without smoothing, where the axes are the same and each
        becomes at least 1.6 times finer.
    progress : callable, optional
        Called with parts done and parts in all. The first call of all compiles for a minute.
    threads : int, optional
        By default one for each core.
    engine : Engine, optional
        By default `Processor`, with ``threads``; on a GPU, that of `inference.upsample_device`.

    Returns
    -------
    LabelMap
        int16, same table.

    Raises
    ------
    ValueError
        If there is no such kernel, smoothing is negative or too wide, or ``lossless`` or
        ``keep_thin`` is asked for on a coarser grid or one with other axes.
    MemoryError
        If the target needs more memory than is free; says how much, before anything is done.

    Examples
    --------
    >>> from brainseg_bids.anatomy.labels import Label, LabelTable
    >>> table = LabelTable([Label(0, "Background"), Label(7, "Cube")])
    >>> voxels = np.zeros((4, 4, 4), np.int16); voxels[1:3, 1:3, 1:3] = 7
    >>> cube = LabelMap(voxels, Grid((4, 4, 4), np.eye(4)), table)
    >>> finer = upsample(cube, 0.5, kernel="lossless")
    >>> finer.grid.shape, bool((regrid(finer, cube.grid).voxels == cube.voxels).all())
    ((8, 8, 8), True)
    """
    if kernel not in KERNELS:
        raise ValueError(f"no upsampling kernel {kernel!r}; known: {', '.join(KERNELS)}")
    if not (np.isfinite(smoothing_mm) and smoothing_mm >= 0):
        raise ValueError(f"smoothing of {smoothing_mm} mm is not a length")
    if not isinstance(grid, Grid):
        grid = labels.grid.with_voxel_size(grid)
    check_memory(grid, labels.grid)
    matrix, _ = _index_map(labels.grid, grid)
    turn = _parallel(matrix, grid.shape)
    can_hold = turn is not None and np.abs(matrix).max() <= 1 + 1e-3
    if keep_thin is None:
        finer = np.abs(matrix).max() <= 1 / THIN_FACTOR
        keep_thin = kernel == "fitted" and smoothing_mm == 0 and can_hold and bool(finer)
    hold = band.ALL if kernel == "lossless" else band.THIN if keep_thin else band.FREE
    if hold and not can_hold:
        raise ValueError(
            "voxels can keep their own volume only on a finer grid with the source's axes: "
            "use kernel 'fitted' without keep_thin, or upsample first and turn afterwards"
        )
    out, engine = np.zeros(grid.shape, np.int16), engine or Processor(threads)
    if turn is not None and np.abs(matrix).max() < 2 * band.MAX_REACH:
        source, axes = _along_axes(labels, grid, turn, kernel, smoothing_mm)
        engine.fill(source, axes, hold, out, progress)
    else:
        engine.pull(_at_any_angle(labels, grid, kernel, smoothing_mm), out, progress)
    result = _of_same_table(out, grid, labels)
    if kernel == "lossless" and not _whole_factors(labels.grid, grid):
        _repair(labels, result)
    return result


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
        out_weights[0] = kernels.CERTAIN
        for rank in range(keep):
            _copy_turned(membership.codes[rank], out_codes[rank], *steps)
            _copy_turned(membership.weights[rank], out_weights[rank], *steps)
    else:
        tables = np.stack([kernels.weight_table(_linear, 1)] * 3)
        lookup = _lookup(membership.codes, membership.weights, tables, matrix, shift)
        _pull(lookup, (out_codes, out_weights), None, None)
    return Membership(out_codes, out_weights, grid, membership.table)


def upsample_membership(
    membership: Membership,
    grid: Grid | float | tuple[float, float, float],
    *,
    order: str = "cubic",
    progress: Progress | None = None,
    threads: int | None = None,
    engine: Engine | None = None,
) -> LabelMap:
    """Label map on a finer grid from kept partial volumes: far closer to the truth than labels.

    Parameters
    ----------
    membership : Membership
    grid : Grid, or voxel size in mm
    order : {"cubic", "linear"}
        Of the interpolation of the weights; cubic is Keys' with lobes that undo part of the
        averaging over a voxel.
    progress, threads, engine
        As for `upsample`.

    Returns
    -------
    LabelMap
        int16, same table. Outside the source: code 0.

    Raises
    ------
    ValueError
        If there is no such order.
    MemoryError
        As `upsample`.
    """
    if order not in ORDERS:
        raise ValueError(f"no interpolation order {order!r}; known: {', '.join(ORDERS)}")
    if not isinstance(grid, Grid):
        grid = membership.grid.with_voxel_size(grid)
    check_memory(grid, membership.grid)
    matrix, shift = _index_map(membership.grid, grid)
    profile, reach = (_cubic, 2) if order == "cubic" else (_linear, 1)
    if np.linalg.norm(matrix, axis=0).max() > 1 + 1e-3:
        profile, reach = _linear, 1  # a coarser voxel is looked at in many points instead
    out = np.zeros(grid.shape, np.int16)
    tables = np.stack([kernels.weight_table(profile, reach)] * 3)
    lookup = _lookup(membership.codes, membership.weights, tables, matrix, shift)
    (engine or Processor(threads)).pull(lookup, out, progress)
    return LabelMap(out, grid, membership.table)


def needed_gib(grid: Grid, source: Grid | None = None) -> float:
    """Memory that upsampling to ``grid`` takes at its peak, the result included.

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
    """Raise `MemoryError` if `needed_gib` is more than is free; where that is unknown, do nothing.

    Examples
    --------
    >>> check_memory(Grid((10**5, 10**5, 10**5), np.eye(4)))
    Traceback (most recent call last):
    MemoryError: a label map of 100000 x 100000 x 100000 voxels needs ...
    """
    needed, free = needed_gib(grid, source), _free_gib()
    if free is not None and needed > free:
        shape = " x ".join(str(n) for n in grid.shape)
        raise MemoryError(
            f"a label map of {shape} voxels needs {needed:.1f} GiB of memory, {free:.1f} GiB are "
            "free: choose larger voxels or crop"
        )


def _free_gib() -> float | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    free = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
    return free[0] / 2**20 if free else None


# Grids with the source's axes ------------------------------------------------------------------


def _along_axes(labels, grid, turn, kernel, smoothing_mm):
    """The source on the target's axes, and those axes."""
    order, signs = turn
    matrix, shift = _index_map(labels.grid, grid)
    source = labels.voxels.transpose(order)[tuple(slice(None, None, sign) for sign in signs)]
    sizes = [labels.grid.voxel_size_mm[axis] for axis in order]
    one = 1024 if kernel == "linear" else 512
    plans = []
    for to, (axis, sign) in enumerate(zip(order, signs, strict=True)):
        step, start = abs(matrix[axis, to]), shift[axis]
        if sign < 0:
            start = labels.grid.shape[axis] - 1 - start
        plans.append((step, start, *_profile(kernel, step, smoothing_mm / sizes[to])))
    reach = max(plan[3] for plan in plans)
    axes = tuple(
        _axis(n, n_out, step, start, profile, reach, one)
        for n, n_out, (step, start, profile, _) in zip(
            source.shape, grid.shape, plans, strict=True
        )
    )
    return source, axes


def _axis(
    n_source: int, n_target: int, step: float, start: float, profile: Profile, reach: int, one: int
) -> band.Axis:
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
    return band.Axis(
        np.searchsorted(key, np.arange(n_source + 1)).astype(np.int64),
        weights,
        (midway & (np.arange(n_target) % 2 == 1)).astype(np.uint8),
        one,
    )


def _fill(source, axes, hold, out, progress, threads) -> None:
    """Fill ``out`` from ``source`` (a view on the target's axes), some planes at once."""
    x, y, z = axes
    edges = [(x.reach, x.reach), (x.reach, x.reach), (x.reach, x.reach + band.WIDTH)]
    # Codes fit int16; padding a narrower copy keeps the peak low.
    padded = np.pad(source.astype(np.int16, copy=False), edges, mode="edge")
    padded = np.ascontiguousarray(padded)
    radius = band.sure_radius(axes)
    along, odd = z.by_owner(band.WIDTH)

    def work(start: int) -> None:
        stop = min(start + BAND_PLANES, source.shape[0])
        band.fill_planes(
            padded, x.one, radius, hold, x.first, y.first, z.first, x.weights, y.weights, along,
            x.midway, y.midway, odd, start, stop, out,
        )  # fmt: skip

    if not band.fill_planes.signatures:
        log.info("compiling the loops of the upsampler; they are kept for the next time")
    _spread(work, list(range(0, source.shape[0], BAND_PLANES)), progress, threads)


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
    matrix, shift = _index_map(source, target)
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
    matrix, shift = _index_map(result.grid, labels.grid)
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


def _at_any_angle(labels, grid, kernel, smoothing_mm) -> Lookup:
    matrix, shift = _index_map(labels.grid, grid)
    steps = np.linalg.norm(matrix, axis=0)
    factor = 1 / float(np.prod(steps)) ** (1 / 3)
    coarser = steps.max() > 1 + 1e-3
    tables = []
    for size_mm in labels.grid.voxel_size_mm:
        name = "linear" if coarser else kernel
        profile, _ = _profile(name, min(1.0, 1 / factor), smoothing_mm / size_mm)
        tables.append(kernels.weight_table(profile, band.MAX_REACH))
    # All tables are as long as the longest needs.
    taps = np.flatnonzero(np.any(tables, axis=(0, 1)))
    used = max(band.MAX_REACH - taps[0], taps[-1] + 1 - band.MAX_REACH)
    cut = slice(band.MAX_REACH - used, band.MAX_REACH + used)
    tables = np.ascontiguousarray(np.stack(tables)[:, :, cut])
    codes = labels.voxels.astype(np.int16, copy=False)[None]
    return _lookup(codes, None, tables, matrix, shift)


def _lookup(codes, weights, tables, matrix, shift) -> Lookup:
    points = _points(matrix)
    # The winner of one point is sure then, not its lead; for two taps there is nothing around.
    sure = tables.shape[2] == 2 or (len(points) == 1 and _is_sure(tables))
    codes = np.ascontiguousarray(codes)
    weights = None if weights is None else np.ascontiguousarray(weights)
    return Lookup(codes, weights, tables, matrix, shift, points, sure)


def _pull(lookup: Lookup, out, progress, threads) -> None:
    """Fill ``out``: codes, and weights or None."""
    soft = lookup.weights is not None
    weights = lookup.weights if soft else np.zeros((1, 1, 1, 1), np.uint8)

    def work(planes: slice) -> None:
        shape = (len(out[0]), planes.stop - planes.start, *out[0].shape[2:])
        some_codes, some_weights = np.empty(shape, np.int16), np.empty(shape, np.uint8)
        kernels.pull(
            lookup.codes, weights, soft, lookup.tables, lookup.sure, lookup.matrix, lookup.shift,
            lookup.points, planes.start, some_codes, some_weights,
        )  # fmt: skip
        out[0][:, planes] = some_codes
        if out[1] is not None:
            out[1][:, planes] = some_weights

    _spread(work, list(_slabs(out[0].shape[1:])), progress, threads)


def _is_sure(tables: np.ndarray) -> bool:
    """Whether eight voxels that agree settle a place, whatever is around them."""
    middle = tables.shape[2] // 2
    return band.is_sure([(table[:, middle - 1 : middle + 1], table) for table in tables])


def _points(matrix: np.ndarray) -> np.ndarray:
    """Where to look within a target voxel: its centre, or a lattice if it is coarser. (n, 3)."""
    steps = np.linalg.norm(matrix, axis=0)
    counts = [1 if step <= 1 + 1e-3 else int(np.ceil(step - 1e-3)) for step in steps]
    lattice = np.meshgrid(*[(np.arange(n) + 0.5) / n - 0.5 for n in counts], indexing="ij")
    return np.stack([axis.ravel() for axis in lattice], axis=1)


# Kernels ---------------------------------------------------------------------------------------


def _linear(distance: np.ndarray) -> np.ndarray:
    return np.maximum(0, 1 - distance)


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Cubic convolution over four points (Keys 1981)."""
    a = CUBIC
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance < 1, near, np.where(distance < 2, far, 0))


def _lanczos(distance: np.ndarray) -> np.ndarray:
    """Lanczos window of three lobes (Duchon 1979)."""
    return np.where(distance < 3, np.sinc(distance) * np.sinc(distance / 3), 0)


@cache
def fitted_kernels() -> tuple[np.ndarray, np.ndarray]:
    """Factors, (n,), and weights at 0, 0.5, ..., 2.5 source voxels, (n, 6), of the package."""
    source = resources.files("brainseg_bids") / "data" / "upsampling_kernels.tsv"
    with source.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    columns = ("w0", "w0.5", "w1", "w1.5", "w2", "w2.5")
    weights = np.array([[float(row[name]) for name in columns] for row in rows])
    return np.array([float(row["factor"]) for row in rows]), weights


def _fitted(factor: float) -> Profile:
    """Fitted kernel of the nearest factors, in between by interpolation."""
    factors, weights = fitted_kernels()
    knots = [np.interp(factor, factors, column) for column in weights.T]
    return lambda distance: np.interp(distance, np.arange(len(knots)) / 2, knots)


def _profile(kernel: str, step: float, sigma: float) -> tuple[Profile, int]:
    """Weight as a function of distance in source voxels, and how many voxels it reaches.

    Parameters
    ----------
    kernel : str
        One of `KERNELS`.
    step : float
        Target voxel in source voxels; above 1, the overlap with the target voxel is taken.
    sigma : float
        Of a Gaussian on top, in source voxels.
    """
    if step > 1 + 1e-3:
        support = step / 2 + 0.5
        profile = lambda distance: np.clip(support - distance, 0, min(1, step))  # noqa: E731
    elif kernel == "linear":
        support, profile = 1.0, _linear
    elif kernel == "fitted":
        support, profile = 2.5, _fitted(1 / step)
    else:
        support, profile = 3.0, _lanczos
    if sigma > 0:
        profile, support = _smoothed(profile, sigma), support + 2.5 * sigma
    reach = int(np.ceil(support - 0.5 - 1e-6))
    if reach > band.MAX_REACH:
        raise ValueError(
            f"smoothing reaches {reach} source voxels, at most {band.MAX_REACH} can be used: "
            "smooth less"
        )
    return profile, reach


def _smoothed(profile: Profile, sigma: float) -> Profile:
    """Convolved with a Gaussian that is cut at 2.5 standard deviations."""
    offsets = np.linspace(-2.5, 2.5, 101) * sigma
    weights = np.exp(-((offsets / sigma) ** 2) / 2)
    weights /= weights.sum()

    def smooth(distance: np.ndarray) -> np.ndarray:
        parts = zip(weights, offsets, strict=True)
        return sum(w * profile(np.abs(distance - offset)) for w, offset in parts)

    return smooth


# Geometry and threads --------------------------------------------------------------------------


def _index_map(source: Grid, target: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Matrix (3, 3) and shift (3,) from target index to source index."""
    affine = np.linalg.inv(source.affine) @ target.affine
    return np.ascontiguousarray(affine[:3, :3]), np.ascontiguousarray(affine[:3, 3])


def _parallel(
    matrix: np.ndarray, shape: tuple[int, int, int]
) -> tuple[list[int], list[int]] | None:
    """For each target axis its source axis and sign; None if axes are not parallel."""
    order = np.abs(matrix).argmax(0)
    if sorted(order) != [0, 1, 2]:
        return None
    rest = matrix.copy()
    rest[order, np.arange(3)] = 0
    if (np.abs(rest) @ np.array(shape)).max() > PARALLEL_TOLERANCE:
        return None
    return order.tolist(), [1 if matrix[axis, to] > 0 else -1 for to, axis in enumerate(order)]


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


def _spread(work, parts: list, progress: Progress | None, threads: int | None) -> None:
    """Do ``work`` for all parts, some at once."""
    done = count(1)

    def one(part) -> None:
        work(part)
        if progress:
            progress(next(done), len(parts))

    if progress:
        progress(0, len(parts))
    with ThreadPoolExecutor(threads or _cores()) as pool:
        for _ in pool.map(one, parts):
            pass


def _slabs(shape: tuple[int, int, int]) -> Iterator[slice]:
    planes = max(1, SLAB_VOXELS // (shape[1] * shape[2]))
    for start in range(0, shape[0], planes):
        yield slice(start, min(start + planes, shape[0]))


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
