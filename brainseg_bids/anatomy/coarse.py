# SPDX-License-Identifier: Apache-2.0
"""Ambiguous labels of one map, for instance without a side, resolved by a map of the same head."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from brainseg_bids.anatomy.cleaning import code_lookup, fill_nearest
from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable


def refine(
    voxels: np.ndarray,
    coarse: Mapping[int, frozenset[int]],
    guide: np.ndarray,
    grid: Grid,
    table: LabelTable,
) -> tuple[int, dict[int, int]]:
    """Replace ambiguous labels by one of their candidates, using a second map as guide, in place.

    If the guide has a candidate at the voxel, the voxel takes it. Otherwise it takes the candidate
    that grows into it first, see `fill_nearest`. If the guide has none of the candidates (a small
    nucleus that it does not label), the nearest left or right label determines the side.

    Parameters
    ----------
    voxels : (X, Y, Z) int16, C order
        Changed in place; axes towards R, A, S.
    coarse : mapping of int to frozenset of int
        Ambiguous code in ``voxels`` to the candidate codes.
    guide : (X, Y, Z) int16
        Map of the same head.
    grid : Grid
    table : LabelTable
        Of all codes.

    Returns
    -------
    changed : int
        Number of voxels with a new code.
    left : dict of int to int
        Number of voxels that could not be decided and keep their code, by this code.

    Examples
    --------
    >>> table, grid = LabelTable.packaged("fullhead"), Grid((1, 1, 5), np.eye(4))
    >>> guide = np.array([[[3, 0, 0, 42, 42]]], dtype=np.int16)
    >>> row = np.array([[[3, 3, 3, 3, 0]]], dtype=np.int16)
    >>> refine(row, {3: frozenset({3, 42})}, guide, grid, table)
    (2, {})
    >>> row
    array([[[ 3,  3, 42, 42,  0]]], dtype=int16)
    """
    before, changed, left = voxels.copy(), 0, {}
    sided = frozenset(label.index for label in table if label.hemisphere != "none")
    for code, candidates in coarse.items():
        at = np.flatnonzero(before == code)
        if not at.size:
            continue
        allowed = code_lookup(candidates, table)
        by_side = not allowed[guide].any()
        found, undecided = _nearest(at, code_lookup(sided, table) if by_side else allowed,
                                    guide, grid, table)  # fmt: skip
        if undecided:
            left[code] = undecided
            continue
        if by_side:
            found = _on_the_same_side(found, candidates, table)
        voxels.reshape(-1)[at] = found
        changed += int(np.count_nonzero(found != code))
    return changed, left


def refined(labels: LabelMap, coarse: Mapping[int, frozenset[int]], guide: LabelMap) -> LabelMap:
    """Label map whose ambiguous labels are resolved by a guide on the same grid, see `refine`."""
    grid = labels.grid
    voxels, other = (
        np.array(grid.array_to_ras(one.voxels), dtype=np.int16, order="C")
        for one in (labels, guide)
    )
    refine(voxels, coarse, other, grid.to_ras(), labels.table)
    back = np.ascontiguousarray(grid.array_from_ras(voxels))
    return LabelMap(back, grid, labels.table)


def _nearest(
    at: np.ndarray, allowed: np.ndarray, guide: np.ndarray, grid: Grid, table: LabelTable
) -> tuple[np.ndarray, int]:
    """The guide's nearest allowed label of each voxel, and how many have none."""
    grown = guide.copy()
    open_at = at[~allowed[guide.reshape(-1)[at]]]
    undecided = fill_nearest(grown, open_at, allowed, grid, table) if open_at.size else 0
    return grown.reshape(-1)[at], undecided


def _on_the_same_side(
    labels: np.ndarray, candidates: frozenset[int], table: LabelTable
) -> np.ndarray:
    """For each label the candidate of its hemisphere."""
    by_side = {table[code].hemisphere: code for code in sorted(candidates, reverse=True)}
    usual = min(candidates)
    lookup = table.lookup(lambda label: by_side.get(label.hemisphere, usual), labels.dtype)
    return lookup[labels]
