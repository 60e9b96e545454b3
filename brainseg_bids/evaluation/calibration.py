# SPDX-License-Identifier: Apache-2.0
"""Calibration of posteriors: of voxels with probability 0.8, 80 % should be correct."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from brainseg_bids.anatomy.labelmap import LabelMap

BINS = 15
SLAB_VOXELS = 2**21
"""Voxels that are processed at a time, which limits temporary arrays."""


@dataclass(frozen=True, eq=False)
class Reliability:
    """Reliability diagram: mean probability and accuracy in each bin of probability.

    Parameters
    ----------
    edges : (n + 1,) float
        From 0 to 1 in equal steps. A bin includes its upper edge, the first one 0 as well.
    voxels : (n,) int64
        Number of voxels in each bin.
    confidence : (n,) float
        Mean posterior of the voxels of each bin; NaN if there are none.
    accuracy : (n,) float
        Fraction of these voxels that have the label; NaN if there are none.
    """

    edges: np.ndarray
    voxels: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def ece(self) -> float:
        """Expected calibration error: mean difference of confidence and accuracy over voxels.

        NaN without voxels (Naeini, Cooper and Hauskrecht, AAAI 2015; Guo et al., ICML 2017).
        """
        used = self.voxels > 0
        if not used.any():
            return float("nan")
        gaps = np.abs(self.accuracy[used] - self.confidence[used])
        return float(gaps @ self.voxels[used] / self.voxels.sum())


@dataclass(frozen=True, eq=False)
class Calibration:
    """Reliability of posteriors.

    Parameters
    ----------
    winners : Reliability
        Reliability of the most probable label of each voxel, for the usual expected calibration
        error.
    labels : dict of int to Reliability
        Reliability of each label's posterior, by code. The many voxels far away from a small label
        have the correct probability 0, and make its calibration error small. Restrict the voxels
        to the surroundings of the label, or use the bins instead of the error.
    """

    winners: Reliability
    labels: dict[int, Reliability]


class _Bins:
    """Running sums of a `Reliability`."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.voxels = np.zeros(n, np.int64)
        self.sums = np.zeros((2, n))

    def add(self, posterior: np.ndarray, right: np.ndarray) -> None:
        """Add voxels: (n,) float in 0..1 and (n,) bool."""
        # Rounded at 1e-6: a posterior of 0.2 is in the bin up to 0.2, single precision or not.
        rank = np.ceil(np.round(posterior.astype(np.float64) * self.n, 6)).astype(np.int64) - 1
        rank = np.clip(rank, 0, self.n - 1)
        self.voxels += np.bincount(rank, minlength=self.n)
        self.sums[0] += np.bincount(rank, weights=posterior, minlength=self.n)
        self.sums[1] += np.bincount(rank, weights=right, minlength=self.n)

    def result(self) -> Reliability:
        """Means."""
        means = np.divide(
            self.sums, self.voxels, out=np.full(self.sums.shape, np.nan), where=self.voxels > 0
        )
        return Reliability(np.linspace(0, 1, self.n + 1), self.voxels, *means)


def calibrate(
    posteriors: Iterable[tuple[int, np.ndarray]],
    reference: LabelMap,
    *,
    within: np.ndarray | None = None,
    n_bins: int = BINS,
) -> Calibration:
    """Calibration of posteriors, from a comparison with a reference label map.

    Parameters
    ----------
    posteriors : iterable of (code, (X, Y, Z) float in 0..1 or uint8 in 0..255)
        Each code once, including the background if it has a posterior. With a generator, only one
        volume is in memory at a time.
    reference : LabelMap
    within : (X, Y, Z) bool, optional
        Voxels that count; default: all.
    n_bins : int

    Returns
    -------
    Calibration

    Raises
    ------
    ValueError
        If there are no posteriors, a volume has another shape or values outside 0 to 1, a code
        occurs twice, or ``n_bins`` is below 1.
    UnknownLabelError
        If a code is not in the reference's table.

    Notes
    -----
    In addition to one volume, 6 bytes are needed for each voxel that counts. Of equal
    probabilities the first label is taken.

    Examples
    --------
    >>> from brainseg_bids.anatomy.grid import Grid
    >>> from brainseg_bids.anatomy.labels import Label, LabelTable
    >>> table = LabelTable([Label(0, "Background"), Label(7, "Cube")])
    >>> truth = LabelMap(np.array([[[7, 7, 7, 0]]]), Grid((1, 1, 4), np.eye(4)), table)
    >>> sure = np.full((1, 1, 4), 0.9)
    >>> found = calibrate([(7, sure), (0, 1 - sure)], truth)
    >>> round(found.winners.ece, 3), round(found.labels[0].ece, 3)
    (0.15, 0.15)
    """
    if n_bins < 1:
        raise ValueError(f"there is at least one bin, got {n_bins}")
    if within is not None and within.shape != reference.grid.shape:
        raise ValueError(f"mask {within.shape} does not fit the grid {reference.grid.shape}")
    return _calibrate(posteriors, reference, _Counted.of(reference, within), n_bins)


def _calibrate(
    posteriors: Iterable[tuple[int, np.ndarray]],
    reference: LabelMap,
    counted: _Counted,
    n_bins: int,
) -> Calibration:
    """`calibrate` over the voxels that count."""
    best, winner = np.full(counted.total, -1, np.float32), np.zeros(counted.total, np.int16)
    labels: dict[int, Reliability] = {}
    for code, posterior in posteriors:
        label = reference.table[int(code)]
        if label.index in labels:
            raise ValueError(f"posterior of {label.index} {label.name} occurs twice")
        if posterior.shape != reference.grid.shape:
            raise ValueError(
                f"posterior of {label.name} has shape {posterior.shape}, the reference "
                f"{reference.grid.shape}"
            )
        bins = _Bins(n_bins)
        for part, values, truth in counted.slabs(posterior):
            values = _probabilities(values, label.name)
            bins.add(values, truth == label.index)
            ahead = values > best[part]
            best[part][ahead], winner[part][ahead] = values[ahead], label.index
        labels[label.index] = bins.result()
    if not labels:
        raise ValueError("there are no posteriors to compare with the reference")
    bins = _Bins(n_bins)
    for part, _, truth in counted.slabs():
        bins.add(best[part], winner[part] == truth)
    return Calibration(bins.result(), labels)


def _probabilities(values: np.ndarray, name: str) -> np.ndarray:
    """As float in 0..1."""
    if values.dtype == np.uint8:
        return values / np.float32(255)
    # Written so that NaN is refused as well.
    if not ((values >= -1e-6) & (values <= 1 + 1e-6)).all():
        raise ValueError(f"posterior of {name} is not within 0..1")
    return values


@dataclass(frozen=True, eq=False)
class _Counted:
    """Voxels that count, some planes at a time, in the order in which the reference lies.

    Parameters
    ----------
    truth : (X, Y, Z) int
    within : (X, Y, Z) bool or None
    order : tuple of int
        Axes, slowest in memory first; ``truth`` and ``within`` are turned already.
    total : int
        How many.
    """

    truth: np.ndarray
    within: np.ndarray | None
    order: tuple[int, ...]
    total: int

    @classmethod
    def of(cls, reference: LabelMap, within: np.ndarray | None) -> _Counted:
        voxels = reference.voxels
        order = tuple(sorted(range(3), key=lambda axis: -abs(voxels.strides[axis])))
        if within is None:
            return cls(voxels.transpose(order), None, order, voxels.size)
        within = within.astype(bool, copy=False)
        n = int(np.count_nonzero(within))
        return cls(voxels.transpose(order), within.transpose(order), order, n)

    def slabs(self, volume: np.ndarray | None = None) -> Iterator[Any]:
        """Where voxels are among those that count, their values in a volume, their labels."""
        n_planes, n_start = max(1, SLAB_VOXELS // self.truth[0].size), 0
        turned = self.truth if volume is None else volume.transpose(self.order)
        for start in range(0, len(self.truth), n_planes):
            planes = slice(start, start + n_planes)
            kept = slice(None) if self.within is None else self.within[planes].ravel()
            truth = self.truth[planes].ravel()[kept]
            yield slice(n_start, n_start + len(truth)), turned[planes].ravel()[kept], truth
            n_start += len(truth)
