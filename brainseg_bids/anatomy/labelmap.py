# SPDX-License-Identifier: Apache-2.0
"""``LabelMap``: voxels, grid and table that never part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labels import LabelTable, count_codes


@dataclass(frozen=True, eq=False)
class LabelMap:
    """Integer voxels with their place and their meaning.

    Parameters
    ----------
    voxels : (X, Y, Z) int
        Codes of ``table``.
    grid : Grid
    table : LabelTable

    Raises
    ------
    ValueError
        If shape and grid differ, or the voxels are not integers.
    UnknownLabelError
        If there is a code that the table does not know.

    Examples
    --------
    >>> from brainseg_bids.anatomy.labels import Label
    >>> table = LabelTable([Label(0, "Background"), Label(7, "Cube")])
    >>> voxels = np.zeros((3, 3, 3), int); voxels[1, 1, :2] = 7
    >>> LabelMap(voxels, Grid((3, 3, 3), np.diag([2, 2, 2, 1])), table).volumes_mm3()
    {0: 200.0, 7: 16.0}
    """

    voxels: np.ndarray
    grid: Grid
    table: LabelTable

    def __post_init__(self) -> None:
        if self.voxels.shape != self.grid.shape:
            raise ValueError(f"voxels {self.voxels.shape} do not fit the grid {self.grid.shape}")
        if not np.issubdtype(self.voxels.dtype, np.integer):
            raise ValueError(f"label voxels are integers, got {self.voxels.dtype}")
        self.table.check(self.voxels)

    def volumes_mm3(self) -> dict[int, float]:
        """Volume of each label of the table, zero where it is absent."""
        counts = count_codes(self.voxels)
        volume = self.grid.voxel_volume_mm3
        return {label.index: counts.get(label.index, 0) * volume for label in self.table}

    def brain_mask(self) -> np.ndarray:
        """Brain with its ventricles and what they enclose, without the CSF around. (X, Y, Z) bool.

        Enclosed cavities are filled; a sulcus that is open to the outside stays open.
        """
        brain = [label.index for label in self.table if label.is_brain]
        return ndimage.binary_fill_holes(np.isin(self.voxels, brain))

    def mirrored(self) -> LabelMap:
        """The same head seen in a mirror: first RAS axis flipped, left and right swapped.

        The grid stays; a head that is symmetric about the middle of its box is unchanged.
        """
        lookup = np.zeros(int(self.table.codes[-1]) + 1, dtype=self.voxels.dtype)
        for label in self.table:
            lookup[label.index] = label.mirror
        left_right = self.grid.orientation()[0][0]
        return LabelMap(np.flip(lookup[self.voxels], left_right), self.grid, self.table)
