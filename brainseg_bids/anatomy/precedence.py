# SPDX-License-Identifier: Apache-2.0
"""Precedence of two sources: location of each voxel, and the rule that decides it."""

from __future__ import annotations

from dataclasses import dataclass

import cc3d
import numpy as np
from scipy import ndimage

from brainseg_bids.anatomy.cavities import fill_cavities
from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labels import count_each
from brainseg_bids.anatomy.rules import LOCATIONS, WHERE, MergeRules

HULL_CLOSING_MM = 2.0
"""Radius of the closing of the brain's hull. Sulci of up to about twice this width are inside; the
wings of the sphenoid between frontal and temporal lobe are wider and remain outside."""


def occupied_box(*arrays: np.ndarray) -> tuple[slice, ...] | None:
    """Bounding box of the nonzero voxels with a margin of one voxel; None if all are 0."""
    box = []
    for axis, n in enumerate(arrays[0].shape):
        others = tuple(a for a in range(3) if a != axis)
        used = np.flatnonzero(np.any([array.any(axis=others) for array in arrays], axis=0))
        if not len(used):
            return None
        box.append(slice(max(int(used[0]) - 1, 0), min(int(used[-1]) + 2, n)))
    return tuple(box)


def locate(brain: np.ndarray, grid: Grid) -> np.ndarray:
    """Location of each voxel relative to the brain, as an index in `rules.LOCATIONS`.

    The hull is the largest component of the brain, closed over sulci and filled. ``unseen`` is
    not assigned here.

    Parameters
    ----------
    brain : (X, Y, Z) bool
        Brain of the brain tool, with at least one voxel.
    grid : Grid

    Returns
    -------
    (X, Y, Z) uint8
    """
    numbers, _ = cc3d.connected_components(brain, connectivity=26, return_N=True)
    body = numbers == 1 + np.argmax(np.bincount(numbers.ravel())[1:])
    found = np.full(brain.shape, LOCATIONS.index("outside_hull"), dtype=np.uint8)
    # Heights in the world, so that an oblique head has the same lowest voxel.
    height = sum(
        (grid.affine[2, axis] * np.arange(n, dtype=np.float32)).reshape(
            [-1 if a == axis else 1 for a in range(3)]
        )
        for axis, n in enumerate(grid.shape)
    )
    found[height < height[body].min() - 1e-3] = LOCATIONS.index("below")
    box = occupied_box(body)
    margin = [1 + int(np.ceil(HULL_CLOSING_MM / size)) for size in grid.voxel_size_mm]
    padded = np.pad(body[box], [(m, m) for m in margin])
    filled = fill_cavities(padded)
    hull = fill_cavities(_close_by_box(filled, HULL_CLOSING_MM, grid))
    inner = tuple(slice(m, -m) for m in margin)
    part = found[box]
    part[hull[inner]] = LOCATIONS.index("inside_hull")
    part[(filled & ~padded)[inner]] = LOCATIONS.index("enclosed")
    return found


def _close_by_box(mask: np.ndarray, reach_mm: float, grid: Grid) -> np.ndarray:
    """Closing with a box: three passes along the axes instead of a distance transform."""
    out = mask.view(np.uint8)
    for pick in (ndimage.maximum_filter1d, ndimage.minimum_filter1d):
        for axis, size in enumerate(grid.voxel_size_mm):
            reach = round(reach_mm / size)
            if reach:
                out = pick(out, 2 * reach + 1, axis=axis, mode="constant")
    return out.view(bool) | mask


@dataclass(frozen=True, eq=False)
class CompiledPrecedence:
    """The precedence table as lookup arrays.

    Parameters
    ----------
    indices : (largest code + 1,) int32
        Class index of each code.
    codes : (n,) int
        Code of each class index.
    line, result, origin : (locations, n, n) int
        Number of the deciding line, resulting code, and its origin (0 head, 1 brain, 2 neither),
        by location, class index of the brain source and class index of the head source.
    """

    indices: np.ndarray
    codes: np.ndarray
    line: np.ndarray
    result: np.ndarray
    origin: np.ndarray

    @classmethod
    def of(cls, rules: MergeRules) -> CompiledPrecedence:
        """Lookup arrays of a set of rules; the first line that fits decides."""
        codes, indices = rules.table.codes, rules.table.positions()
        shape = (len(LOCATIONS), len(codes), len(codes))
        line, result = np.zeros(shape, np.int16), np.zeros(shape, np.int16)
        origin = np.zeros(shape, np.uint8)
        sources: dict[str | int, np.ndarray] = {
            "head": codes[None, None, :],
            "brain": codes[None, :, None],
        }
        numbers: dict[str | int, int] = {"head": 0, "brain": 1}
        for number, rule in reversed(list(enumerate(rules.precedence))):
            block = np.ix_(
                np.flatnonzero([location in WHERE[rule.where] for location in LOCATIONS]),
                indices[sorted(rule.brain)],
                indices[sorted(rule.head)],
            )
            line[block] = number
            given = sources.get(rule.take, np.full((1, 1, 1), rule.take))
            result[block] = np.broadcast_to(given, shape)[block]
            origin[block] = numbers.get(rule.take, 2)
        return cls(indices, codes, line, result, origin)

    def index(self, location: np.ndarray, brain: np.ndarray, head: np.ndarray) -> np.ndarray:
        """Flat index into the lookup arrays for each voxel, in the smallest sufficient data type.

        Parameters
        ----------
        location, brain, head : (X, Y, Z) int
            Location from `locate`, code of the brain source and code of the head source.
        """
        small = np.promote_types(np.uint16, np.min_scalar_type(self.line.size - 1))
        n, indices = small.type(len(self.codes)), self.indices.astype(small)
        index = indices[brain]
        index += location * n
        index *= n
        index += indices[head]
        return index

    def counts(self, index: np.ndarray) -> np.ndarray:
        """Number of voxels by location and class indices, as `line`, (locations, n, n) int."""
        return count_each(index, self.line.size - 1).reshape(self.line.shape)

    def decided(self, counts: np.ndarray) -> np.ndarray:
        """Number of voxels that each line decided where the sources differ, (lines,) int."""
        differ = ~np.eye(len(self.codes), dtype=bool)
        n_lines = int(self.line.max()) + 1
        return np.bincount(
            self.line.ravel(), weights=(counts * differ).ravel(), minlength=n_lines
        ).astype(np.int64)
