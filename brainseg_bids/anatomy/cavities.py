# SPDX-License-Identifier: Apache-2.0
"""Cavities: background components, and which of them the foreground encloses completely."""

from __future__ import annotations

from dataclasses import dataclass

import cc3d
import numpy as np

from brainseg_bids.anatomy.cleaning import voxels_in
from brainseg_bids.anatomy.labels import count_each


def fill_cavities(mask: np.ndarray) -> np.ndarray:
    """Mask with its enclosed cavities filled (6-connectivity), (X, Y, Z) bool.

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
class Cavities:
    """6-connected components of code 0, and which of them do not reach the border of the image.

    Parameters
    ----------
    numbers : (X, Y, Z) uint32
        Component of each voxel, from 1 to n; 0 where the voxel has a label.
    sizes : (n + 1,) int
        Voxels of each component.
    enclosed : (n + 1,) bool
        Whether a component does not reach the border of the image.
    """

    numbers: np.ndarray
    sizes: np.ndarray
    enclosed: np.ndarray

    @classmethod
    def of(cls, voxels: np.ndarray) -> Cavities:
        """Components of code 0 in a label map, (X, Y, Z) int."""
        numbers, n = cc3d.connected_components(voxels == 0, connectivity=6, return_N=True)
        return cls(numbers, count_each(numbers, n), _touches_no_face(numbers, n))

    @property
    def enclosed_voxels(self) -> int:
        """Number of voxels in all enclosed components."""
        return int(self.sizes[self.enclosed].sum())

    def at_enclosed(self) -> np.ndarray:
        """Flat indices, ascending, of the voxels in all enclosed components, (m,) int."""
        return voxels_in(self.numbers, self.enclosed)
