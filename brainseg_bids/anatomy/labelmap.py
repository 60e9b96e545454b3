# SPDX-License-Identifier: Apache-2.0
"""``LabelMap``: the voxels of a label map together with their grid and label table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labels import LabelTable, count_codes


@dataclass(frozen=True, eq=False)
class LabelMap:
    """Label map: integer codes of voxels, with grid and label table.

    Parameters
    ----------
    voxels : (X, Y, Z) int
        Codes, all of them in ``table``.
    grid : Grid
    table : LabelTable

    Raises
    ------
    ValueError
        If shape and grid differ, or the voxels are not integers.
    UnknownLabelError
        If a code is not in the table.

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
        """Volume in mm³ of each code of the table; zero for labels that are absent."""
        counts = count_codes(self.voxels)
        volume = self.grid.voxel_volume_mm3
        return {label.index: counts.get(label.index, 0) * volume for label in self.table}

    def brain_mask(self) -> np.ndarray:
        """Mask of the brain and its ventricles, without the CSF around, (X, Y, Z) bool.

        Enclosed cavities are filled; sulci that are open to the outside stay open.
        """
        brain = [label.index for label in self.table if label.is_brain]
        return ndimage.binary_fill_holes(np.isin(self.voxels, brain))

    def mirrored(self) -> LabelMap:
        """Mirrored label map: flipped along the left-right axis, left and right labels swapped.

        The grid is unchanged. A head that is symmetric about the centre of its grid is unchanged.
        """
        lookup = self.table.lookup(lambda label: label.mirror, self.voxels.dtype)
        left_right = self.grid.orientation()[0][0]
        return LabelMap(np.flip(lookup[self.voxels], left_right), self.grid, self.table)
