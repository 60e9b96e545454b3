# SPDX-License-Identifier: Apache-2.0
"""Cleaning of an upsampled map: no hole inside the head, no component that is too small.

The merge removes both, but interpolation can create them again, since another label may have the
largest weight between two voxels of a thin wall. Such voxels take the label of the source voxel
around them, and if this does not suffice, the label around them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from brainseg_bids.anatomy.cavities import Cavities
from brainseg_bids.anatomy.cleaning import remove_islands, small_components
from brainseg_bids.anatomy.completion import fill_enclosed
from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import count_codes
from brainseg_bids.anatomy.rules import MergeRules


@dataclass(frozen=True)
class Cleaned:
    """Changes made by `clean_upsampled`, in voxels of the finer map.

    Parameters
    ----------
    holes, islands : int
        Unlabelled voxels that the head encloses, and voxels of components that are too small.
    """

    holes: int = 0
    islands: int = 0


def clean_upsampled(
    source: LabelMap, finer: LabelMap, rules: MergeRules | None = None
) -> tuple[LabelMap, Cleaned]:
    """Finer map without enclosed holes and without components that the merge would remove.

    Parameters
    ----------
    source : LabelMap
        Map before upsampling.
    finer : LabelMap
        Map after upsampling, over the same field of view or a part of it.
    rules : MergeRules, optional
        Default: the rules of the package. A map with codes that are not in their table is
        returned unchanged.

    Returns
    -------
    LabelMap, Cleaned
        int16. Every label keeps its largest component, so no label is lost.

    Examples
    --------
    >>> from brainseg_bids.anatomy.labels import LabelTable
    >>> table = LabelTable.packaged("fullhead")
    >>> whole = LabelMap(np.full((5, 5, 5), 515), Grid((5, 5, 5), np.eye(4)), table)
    >>> voxels = np.full((10, 10, 10), 515); voxels[4, 4, 4] = 0
    >>> finer = LabelMap(voxels, whole.grid.with_voxel_size(0.5), table)
    >>> cleaned, done = clean_upsampled(whole, finer)
    >>> int(cleaned.voxels[4, 4, 4]), done.holes, done.islands
    (515, 1, 0)
    """
    rules = rules or MergeRules.packaged()
    if any(code not in rules.table for code in count_codes(finer.voxels)):
        return finer, Cleaned()
    grid, ras = finer.grid, finer.grid.to_ras()
    voxels = np.array(grid.array_to_ras(finer.voxels), dtype=np.int16, order="C")
    holes = Cavities.of(voxels).at_enclosed()
    _as_in_source(voxels, holes, ras, source)
    islands = small_components(voxels, rules.islands, rules.table, ras)[0]
    _as_in_source(voxels, islands, ras, source)
    remove_islands(voxels, rules.islands, rules.table, ras)
    fill_enclosed(voxels, ras, rules)
    cleaned = np.ascontiguousarray(grid.array_from_ras(voxels))
    return LabelMap(cleaned, grid, finer.table), Cleaned(len(holes), len(islands))


def _as_in_source(voxels: np.ndarray, at: np.ndarray, grid: Grid, source: LabelMap) -> None:
    """Give voxels at flat indices the label of the source voxel that they lie in, in place."""
    position = np.stack(np.unravel_index(at, voxels.shape))
    to_source = np.linalg.inv(source.grid.affine) @ grid.affine
    there = np.rint(to_source[:3, :3] @ position + to_source[:3, 3:]).astype(np.int64)
    shape = np.array(source.grid.shape)[:, None]
    inside = ((there >= 0) & (there < shape)).all(axis=0)
    voxels.reshape(-1)[at[inside]] = source.voxels[tuple(there[:, inside])]
