# SPDX-License-Identifier: Apache-2.0
"""Volumes, Dice and IoU of every structure, from one confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from brainseg_bids.anatomy.grid import triple
from brainseg_bids.anatomy.upsample_kernels import jit
from brainseg_bids.evaluation.structures import Pair, Structure

PLANES = 16
"""Planes that are counted at a time: the joint codes of a whole volume would need 8 bytes per
voxel."""
STATUSES = ("both", "reference only", "prediction only", "neither")
Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Overlap:
    """Voxel counts of one structure in two maps.

    Parameters
    ----------
    reference_vox, predicted_vox, common_vox : int
        Number of voxels in the reference, in the prediction and in both.
    voxel_mm3 : float
        Volume of a voxel.
    """

    reference_vox: int
    predicted_vox: int
    common_vox: int
    voxel_mm3: float

    @property
    def status(self) -> str:
        """Which maps have the structure: one of `STATUSES`."""
        return STATUSES[(not self.reference_vox) * 2 + (not self.predicted_vox)]

    @property
    def dice(self) -> float:
        """``2 |A and B| / (|A| + |B|)``: 0 if it is in one map only, NaN if in neither."""
        total = self.reference_vox + self.predicted_vox
        return 2 * self.common_vox / total if total else float("nan")

    @property
    def iou(self) -> float:
        """``|A and B| / |A or B|``: 0 if it is in one map only, NaN if in neither."""
        union = self.reference_vox + self.predicted_vox - self.common_vox
        return self.common_vox / union if union else float("nan")

    @property
    def reference_mm3(self) -> float:
        """Volume in the reference in mm³."""
        return self.reference_vox * self.voxel_mm3

    @property
    def predicted_mm3(self) -> float:
        """Volume in the prediction in mm³."""
        return self.predicted_vox * self.voxel_mm3


@dataclass(frozen=True, eq=False)
class Tally:
    """Confusion matrix of two maps, and the bounding box of each code.

    Parameters
    ----------
    codes : (n,) int
    counts : (n, n) int64
        Number of voxels by code in the reference (rows) and in the prediction (columns).
    low, high : (2, n, 3) int64
        First voxel of each code, and last voxel plus one, in the reference and in the prediction.
    voxel_mm3 : float
        Volume of a voxel.
    """

    codes: np.ndarray
    counts: np.ndarray
    low: np.ndarray
    high: np.ndarray
    voxel_mm3: float

    def overlap(self, structure: Structure) -> Overlap:
        """Voxel counts of a structure."""
        indices = np.flatnonzero(np.isin(self.codes, structure.codes))
        return Overlap(
            int(self.counts[indices].sum()),
            int(self.counts[:, indices].sum()),
            int(self.counts[np.ix_(indices, indices)].sum()),
            self.voxel_mm3,
        )

    def box(self, structures: Sequence[Structure]) -> Box:
        """Bounding box of structures in both maps; of size zero if they are in neither."""
        wanted = sorted({code for structure in structures for code in structure.codes})
        indices = np.flatnonzero(np.isin(self.codes, wanted))
        low, high = self.low[:, indices].reshape(-1, 3), self.high[:, indices].reshape(-1, 3)
        there = high[:, 0] > 0
        if not there.any():
            return (slice(0, 0),) * 3
        first, last = low[there].min(0), high[there].max(0)
        return triple(slice(int(a), int(b)) for a, b in zip(first, last, strict=True))


def confusion(reference: np.ndarray, predicted: np.ndarray, n_labels: int) -> np.ndarray:
    """Confusion matrix of two arrays of class indices.

    Parameters
    ----------
    reference, predicted : int arrays of the same shape
        Class indices below ``n_labels``.

    Returns
    -------
    (n_labels, n_labels) int64
        Number of voxels by class index in the reference (rows) and in the prediction (columns).

    Raises
    ------
    ValueError
        If the shapes differ.

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
    """Dice of every label of a `confusion` matrix, (n_labels,); NaN if it is in neither map."""
    total = counts.sum(0) + counts.sum(1)
    return np.divide(
        2.0 * np.diag(counts), total, out=np.full(len(counts), np.nan), where=total > 0
    )


def tally(pair: Pair) -> Tally:
    """Confusion matrix and bounding boxes of a pair of maps, computed in one pass."""
    n = len(pair.codes)
    indices = pair.lookup({int(code): index for index, code in enumerate(pair.codes)}, n, np.int64)
    counts = np.zeros((n + 1, n + 1), np.int64)  # the last one is of voxels that do not count
    low = np.full((2, n + 1, 3), np.iinfo(np.int64).max)
    high = np.zeros((2, n + 1, 3), np.int64)
    for box in pair.blocks():
        first, second = (pair.part(which, box) for which in ("reference", "prediction"))
        _tally(first, second, box[0].start, indices, counts, low, high)
    return Tally(pair.codes, counts[:n, :n], low[:, :n], high[:, :n], pair.voxel_mm3)


@jit
def _grow(low: np.ndarray, high: np.ndarray, x: int, y: int, start: int, stop: int) -> None:
    """Let a box hold a run of voxels along the last axis."""
    low[0], high[0] = min(low[0], x), max(high[0], x + 1)
    low[1], high[1] = min(low[1], y), max(high[1], y + 1)
    low[2], high[2] = min(low[2], start), max(high[2], stop)


@jit
def _tally(
    first: np.ndarray,
    second: np.ndarray,
    plane: int,
    indices: np.ndarray,
    counts: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
) -> None:
    """Add some planes, the first of which is number ``plane``."""
    n_x, n_y, n_z = first.shape
    for x in range(n_x):
        for y in range(n_y):
            a, b = first[x, y], second[x, y]
            differs = np.int16(0)
            for z in range(n_z):  # most rows of a head are air: this loop takes 32 voxels at once
                differs |= (a[z] ^ a[0]) | (b[z] ^ b[0])
            z = 0 if differs else n_z
            if z:
                counts[indices[a[0]], indices[b[0]]] += n_z
                _grow(low[0, indices[a[0]]], high[0, indices[a[0]]], x + plane, y, 0, n_z)
                _grow(low[1, indices[b[0]]], high[1, indices[b[0]]], x + plane, y, 0, n_z)
            while z < n_z:  # a run of equal pairs at a time: most of a head is runs
                one, other, start = a[z], b[z], z
                z += 1
                while z < n_z and a[z] == one and b[z] == other:
                    z += 1
                counts[indices[one], indices[other]] += z - start
                _grow(low[0, indices[one]], high[0, indices[one]], x + plane, y, start, z)
                _grow(low[1, indices[other]], high[1, indices[other]], x + plane, y, start, z)
