# SPDX-License-Identifier: Apache-2.0
"""Engines of upsampling: their common interface, and the one for CPUs, with numba."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from typing import Protocol

import numpy as np

from brainseg_bids.anatomy import upsample_band as band
from brainseg_bids.anatomy import upsample_kernels as kernels
from brainseg_bids.anatomy.upsample_axis import Axis, Side, sure_radius
from brainseg_bids.machine import allowed_cores

log = logging.getLogger("brainseg")

SLAB_VOXELS = 1 << 20
"""Target voxels that each thread processes at a time, for rotated grids."""
BAND_PLANES = 8
"""Source planes that each thread processes at a time, for parallel grids."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Lookup:
    """Source and positions of an interpolation, for `upsample_kernels.resample`.

    Parameters
    ----------
    codes : (k, X, Y, Z) int16
    weights : (k, X, Y, Z) uint8, or None if every label is certain
    tables : (3, 4096, taps) int64
        From `upsample_kernels.weight_table`, for each source axis.
    matrix, shift : (3, 3), (3,) float
        Map target indices to source indices.
    points : (n, 3) float
        Positions within a target voxel at which the source is interpolated, in target voxels
        relative to the centre.
    sure : bool
        Whether a position takes the label of the eight source voxels around it without
        interpolation if they agree.
    """

    codes: np.ndarray
    weights: np.ndarray | None
    tables: np.ndarray
    matrix: np.ndarray
    shift: np.ndarray
    points: np.ndarray
    sure: bool


class Engine(Protocol):
    """Interface of an engine. All engines give identical labels."""

    def fill(
        self,
        source: np.ndarray,
        axes: tuple[Axis, Axis, Axis],
        hold: int,
        out: np.ndarray,
        progress: Progress | None,
    ) -> None:
        """Compute an upsampled map on parallel axes.

        Parameters
        ----------
        source : (X, Y, Z) int
            With the axis order of ``out``.
        axes : three of `Axis`
        hold : {0, 1, 2}
            See `upsample_band.fill_planes`.
        out : (X', Y', Z') int16
            Zeros, changed in place.
        progress : callable or None
            Called with the number of parts done and of all parts.
        """

    def resample(self, lookup: Lookup, out: np.ndarray, progress: Progress | None) -> None:
        """Write the most probable label of each voxel to ``out``, (X', Y', Z') int16."""


@dataclass(frozen=True)
class Processor:
    """Engine for CPUs, with numba.

    Parameters
    ----------
    threads : int, optional
        Default: one for each core.
    """

    threads: int | None = None

    def fill(
        self,
        source: np.ndarray,
        axes: tuple[Axis, Axis, Axis],
        hold: int,
        out: np.ndarray,
        progress: Progress | None,
    ) -> None:
        """Compute an upsampled map on parallel axes, see `Engine.fill`."""
        x, y, z = axes
        edges = [(x.reach, x.reach), (x.reach, x.reach), (x.reach, x.reach + band.WIDTH)]
        # Codes fit int16; padding a narrower copy keeps the peak low.
        padded = np.pad(source.astype(np.int16, copy=False), edges, mode="edge")
        padded = np.ascontiguousarray(padded)
        radius = sure_radius(axes)
        sides = (
            Side(x.first, x.weights, x.midway),
            Side(y.first, y.weights, y.midway),
            Side(z.first, *z.by_owner(band.WIDTH)),
        )

        def work(start: int) -> None:
            stop = min(start + BAND_PLANES, source.shape[0])
            band.fill_planes(padded, x.one, radius, hold, sides, start, stop, out)

        if not kernels.is_compiled(band.fill_planes):
            log.info("compiling the loops of the upsampler; they are kept for the next time")
        self._in_threads(work, range(0, source.shape[0], BAND_PLANES), progress)

    def resample(self, lookup: Lookup, out: np.ndarray, progress: Progress | None) -> None:
        """Write the most probable label of each voxel, see `Engine.resample`."""
        self.resample_weights(lookup, out[None], None, progress)

    def resample_weights(
        self,
        lookup: Lookup,
        codes: np.ndarray,
        weights: np.ndarray | None,
        progress: Progress | None = None,
    ) -> None:
        """Write the k most probable labels to ``codes`` and ``weights``, (k, X', Y', Z')."""
        soft = lookup.weights is not None
        given = lookup.weights if soft else np.zeros((1, 1, 1, 1), np.uint8)
        size = max(1, SLAB_VOXELS // (codes.shape[2] * codes.shape[3]))

        def work(start: int) -> None:
            planes = slice(start, min(start + size, codes.shape[1]))
            shape = (len(codes), planes.stop - start, *codes.shape[2:])
            some_codes, some_weights = np.empty(shape, np.int16), np.empty(shape, np.uint8)
            kernels.resample(
                lookup.codes, given, soft, lookup.tables, lookup.sure, lookup.matrix,
                lookup.shift, lookup.points, start, some_codes, some_weights,
            )  # fmt: skip
            codes[:, planes] = some_codes
            if weights is not None:
                weights[:, planes] = some_weights

        self._in_threads(work, range(0, codes.shape[1], size), progress)

    def _in_threads(
        self, work: Callable[[int], None], starts: range, progress: Progress | None
    ) -> None:
        done = count(1)

        def one(start: int) -> None:
            work(start)
            if progress:
                progress(next(done), len(starts))

        if progress:
            progress(0, len(starts))
        with ThreadPoolExecutor(self.threads or allowed_cores()) as pool:
            for _ in pool.map(one, starts):
                pass
