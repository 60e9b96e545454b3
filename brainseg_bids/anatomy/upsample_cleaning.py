# SPDX-License-Identifier: Apache-2.0
"""The merge's promises, kept on a finer grid: no hole inside the head, no piece that is too small.

Interpolation makes both anew: between two voxels of a thin wall another label may have the most
weight. What is wrong takes the label of the source voxel that it lies in, which is right by the
merge; what is still wrong then, the label around it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from brainseg_bids.anatomy.cavities import Hollows
from brainseg_bids.anatomy.cleaning import remove_islands, small_pieces
from brainseg_bids.anatomy.completion import fill_enclosed
from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import count_codes
from brainseg_bids.anatomy.rules import MergeRules


@dataclass(frozen=True)
class Cleaned:
    """What `clean_upsampled` did, in voxels of the finer map.

    Parameters
    ----------
    holes, islands : int
        Voxels without a label that the head encloses, and voxels of pieces that are too small.
    enclosed_after : int
        Voxels without a label that the head still encloses.
    """

    holes: int = 0
    islands: int = 0
    enclosed_after: int = 0


def clean_upsampled(
    source: LabelMap, finer: LabelMap, rules: MergeRules | None = None
) -> tuple[LabelMap, Cleaned]:
    """Finer map without enclosed holes and without pieces that the merge would have removed.

    Parameters
    ----------
    source : LabelMap
        What was upsampled.
    finer : LabelMap
        Over the same box or a part of it.
    rules : MergeRules, optional
        The packaged ones if not given. A map with codes that they do not know is left as it is.

    Returns
    -------
    LabelMap, Cleaned
        int16. A label keeps its largest piece, so none is lost.

    Examples
    --------
    >>> from brainseg_bids.anatomy.labels import LabelTable
    >>> table = LabelTable.packaged("fullhead")
    >>> whole = LabelMap(np.full((5, 5, 5), 515), Grid((5, 5, 5), np.eye(4)), table)
    >>> voxels = np.full((10, 10, 10), 515); voxels[4, 4, 4] = 0
    >>> finer = LabelMap(voxels, whole.grid.with_voxel_size(0.5), table)
    >>> cleaned, done = clean_upsampled(whole, finer)
    >>> int(cleaned.voxels[4, 4, 4]), done.holes, done.enclosed_after
    (515, 1, 0)
    """
    rules = rules or MergeRules.packaged()
    if any(code not in rules.table for code in count_codes(finer.voxels)):
        return finer, Cleaned()
    grid, ras = finer.grid, finer.grid.to_ras()
    voxels = np.array(grid.array_to_ras(finer.voxels), dtype=np.int16, order="C")
    holes = Hollows.of(voxels).at_enclosed()
    _as_in_source(voxels, holes, ras, source)
    islands = small_pieces(voxels, rules.islands, rules.table, ras)[0]
    _as_in_source(voxels, islands, ras, source)
    remove_islands(voxels, rules.islands, rules.table, ras)
    fill_enclosed(voxels, ras, rules)
    after = Hollows.of(voxels).enclosed_voxels
    cleaned = np.ascontiguousarray(grid.array_from_ras(voxels))
    return (
        LabelMap(cleaned, grid, finer.table),
        Cleaned(len(holes), len(islands), after),
    )


def _as_in_source(voxels: np.ndarray, at: np.ndarray, grid: Grid, source: LabelMap) -> None:
    """Give voxels at flat indices the label of the source voxel that they lie in, in place."""
    place = np.stack(np.unravel_index(at, voxels.shape))
    to_source = np.linalg.inv(source.grid.affine) @ grid.affine
    there = np.rint(to_source[:3, :3] @ place + to_source[:3, 3:]).astype(np.int64)
    shape = np.array(source.grid.shape)[:, None]
    inside = ((there >= 0) & (there < shape)).all(axis=0)
    voxels.reshape(-1)[at[inside]] = source.voxels[tuple(there[:, inside])]
