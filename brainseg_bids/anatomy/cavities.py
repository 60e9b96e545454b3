# SPDX-License-Identifier: Apache-2.0
"""Cavities of a mask: connected pieces of nothing, and which of them have a way out of the box."""

from __future__ import annotations

from dataclasses import dataclass

import cc3d
import numpy as np

from brainseg_bids.anatomy.cleaning import (
    piece_sizes,
    voxels_in,
)


def fill_cavities(mask: np.ndarray) -> np.ndarray:
    """Mask with what it encloses (through faces of voxels), (X, Y, Z) bool.

    >>> ring = np.ones((3, 3, 3), bool); ring[1, 1, 1] = False
    >>> fill_cavities(ring).all()
    np.True_
    """
    numbers, n = cc3d.connected_components(~mask, connectivity=6, return_N=True)
    return mask | _touches_no_face(numbers, n)[numbers]


def _touches_no_face(numbers: np.ndarray, n: int) -> np.ndarray:
    inner = np.ones(n + 1, dtype=bool)
    for axis in range(3):
        for end in (0, -1):
            inner[np.take(numbers, end, axis)] = False
    inner[0] = False
    return inner


@dataclass(frozen=True, eq=False)
class Hollows:
    """Connected pieces of code 0 (through faces of voxels), and which have no way out of the box.

    Parameters
    ----------
    numbers : (X, Y, Z) uint32
        Piece of each voxel; 0 is labelled.
    sizes : (n + 1,) int
    enclosed : (n + 1,) bool
    """

    numbers: np.ndarray
    sizes: np.ndarray
    enclosed: np.ndarray

    @classmethod
    def of(cls, voxels: np.ndarray) -> Hollows:
        """Find them all."""
        numbers, n = cc3d.connected_components(voxels == 0, connectivity=6, return_N=True)
        return cls(numbers, piece_sizes(numbers, n), _touches_no_face(numbers, n))

    @property
    def enclosed_voxels(self) -> int:
        """Voxels of all enclosed pieces."""
        return int(self.sizes[self.enclosed].sum())

    def at_enclosed(self) -> np.ndarray:
        """Flat indices, ascending, of the voxels of all enclosed pieces."""
        return voxels_in(self.numbers, self.enclosed)
