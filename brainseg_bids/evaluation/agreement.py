# SPDX-License-Identifier: Apache-2.0
"""Dice and volumes of every label, from one table of voxel counts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from brainseg_bids.anatomy.labelmap import LabelMap

PLANES = 16
"""Planes counted at once: the joint codes of a whole volume would need 8 bytes a voxel."""


@dataclass(frozen=True)
class Agreement:
    """One label in two label maps.

    Parameters
    ----------
    index, name : int, str
        Code and name in the maps' table.
    dice : float
        ``2 |A and B| / (|A| + |B|)``; NaN where the label is in neither map, so that an average
        has to say what it does about it; 0 where it is in one of them only.
    reference_mm3, predicted_mm3 : float
    """

    index: int
    name: str
    dice: float
    reference_mm3: float
    predicted_mm3: float

    @property
    def volume_error(self) -> float:
        """(predicted - reference) / reference; NaN where the reference has none of it."""
        if self.reference_mm3 == 0:
            return float("nan")
        return (self.predicted_mm3 - self.reference_mm3) / self.reference_mm3


def confusion(reference: np.ndarray, predicted: np.ndarray, n_labels: int) -> np.ndarray:
    """Voxels for each pair of ranks.

    Parameters
    ----------
    reference, predicted : (X, ...) int
        Ranks, 0..n_labels - 1.

    Returns
    -------
    (n_labels, n_labels) int64
        Row: rank in the reference; column: rank in the prediction.

    Examples
    --------
    >>> confusion(np.array([0, 1, 1]), np.array([0, 1, 0]), 2)
    array([[1, 0],
           [1, 1]])
    """
    if reference.shape != predicted.shape:
        raise ValueError(f"shapes {reference.shape} and {predicted.shape} differ")
    counts = np.zeros(n_labels * n_labels, dtype=np.int64)
    for start in range(0, len(reference), PLANES):
        rows = reference[start : start + PLANES].astype(np.int32)
        joint = rows * n_labels + predicted[start : start + PLANES]
        counts += np.bincount(joint.ravel(), minlength=len(counts))
    return counts.reshape(n_labels, n_labels)


def dice_from(counts: np.ndarray) -> np.ndarray:
    """Dice of every label of a `confusion` table, (n_labels,); NaN where it is in neither map."""
    total = counts.sum(0) + counts.sum(1)
    return np.divide(
        2.0 * np.diag(counts), total, out=np.full(len(counts), np.nan), where=total > 0
    )


def compare(
    reference: LabelMap, predicted: LabelMap, *, within: np.ndarray | None = None
) -> list[Agreement]:
    """Agreement of each label of the table, background too, in order of code.

    Parameters
    ----------
    within : (X, Y, Z) bool, optional
        Voxels that count; by default all.

    Raises
    ------
    ValueError
        If the maps differ in table or grid (0.001 mm): resample probabilities first.

    Examples
    --------
    >>> from brainseg_bids.anatomy.grid import Grid
    >>> from brainseg_bids.anatomy.labels import Label, LabelTable
    >>> table = LabelTable([Label(0, "Background"), Label(7, "Cube")])
    >>> truth, guess = np.zeros((2, 4, 4, 4), int); truth[:2] = 7; guess[1:3] = 7
    >>> grid = Grid((4, 4, 4), np.diag([2, 1, 1, 1]))
    >>> compare(LabelMap(truth, grid, table), LabelMap(guess, grid, table))[1]
    Agreement(index=7, name='Cube', dice=0.5, reference_mm3=64.0, predicted_mm3=64.0)
    """
    if reference.table != predicted.table:
        raise ValueError(f"tables {reference.table.name} and {predicted.table.name} differ")
    if not reference.grid.is_close(predicted.grid):
        raise ValueError("the label maps are on different grids")
    ranks = reference.table.positions()
    first, second = ranks[reference.voxels], ranks[predicted.voxels]
    if within is not None:
        first, second = first[within], second[within]
    counts = confusion(first, second, len(reference.table))
    volume = reference.grid.voxel_volume_mm3
    return [
        Agreement(
            label.index, label.name, float(dice), float(row * volume), float(column * volume)
        )
        for label, dice, row, column in zip(
            reference.table, dice_from(counts), counts.sum(1), counts.sum(0), strict=True
        )
    ]


def mean_dice(agreements: Iterable[Agreement], codes: Iterable[int]) -> float:
    """Mean over the given codes; labels that are in neither map are left out.

    Raises
    ------
    ValueError
        If none of the codes is in either map.
    """
    wanted = set(codes)
    values = [a.dice for a in agreements if a.index in wanted and not np.isnan(a.dice)]
    if not values:
        raise ValueError("none of the labels is in either map, so there is no mean Dice")
    return float(np.mean(values))
