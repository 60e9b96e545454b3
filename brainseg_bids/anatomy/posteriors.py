# SPDX-License-Identifier: Apache-2.0
"""``TopPosteriors``: the k most probable labels of each voxel, and their probabilities."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable

CERTAIN = 255
FINE = 257  # 65535 / 255: running weights are finer than kept ones, so that rounding ties none


@dataclass(frozen=True, eq=False)
class TopPosteriors:
    """The k most probable labels of each voxel, and their probabilities.

    44 float32 volumes of 256³ voxels take 2.9 GiB, the four most probable labels 0.2 GiB.
    Probabilities are not rescaled after the others have been left out.

    Parameters
    ----------
    codes : (k, X, Y, Z) int16
        In order of descending probability; code 0 where fewer than k labels are possible.
    weights : (k, X, Y, Z) uint8
        Probability times 255. That of the first label is never 0.
    grid : Grid
    table : LabelTable

    Raises
    ------
    ValueError
        If shapes or data types are wrong, or do not fit the grid.

    Examples
    --------
    >>> from brainseg_bids.anatomy.labels import Label
    >>> table = LabelTable([Label(0, "Background"), Label(2, "WM"), Label(3, "GM")])
    >>> row = Grid((3, 1, 1), np.eye(4))
    >>> soft = TopPosteriors.from_posteriors(
    ...     [(2, np.array([[[1]], [[0.4]], [[0]]])), (3, np.array([[[0]], [[0.6]], [[0]]]))],
    ...     row, table, k=2)
    >>> soft.codes[..., 0, 0].tolist(), soft.weights[..., 0, 0].tolist()
    ([[2, 3, 0], [0, 2, 0]], [[255, 153, 255], [0, 102, 0]])
    >>> soft.hard().voxels.ravel().tolist()
    [2, 3, 0]
    """

    codes: np.ndarray
    weights: np.ndarray
    grid: Grid
    table: LabelTable

    def __post_init__(self) -> None:
        shape = (len(self.codes), *self.grid.shape)
        if not len(self.codes) or self.codes.shape != shape or self.weights.shape != shape:
            raise ValueError(
                f"codes {self.codes.shape} and weights {self.weights.shape} do not fit k labels "
                f"on the grid {self.grid.shape}"
            )
        if self.codes.dtype != np.int16 or self.weights.dtype != np.uint8:
            raise ValueError(
                f"codes are int16 and weights uint8, got {self.codes.dtype}, {self.weights.dtype}"
            )

    @property
    def k(self) -> int:
        """Number of labels kept for each voxel."""
        return len(self.codes)

    @classmethod
    def from_posteriors(
        cls,
        posteriors: Iterable[tuple[int, np.ndarray]],
        grid: Grid,
        table: LabelTable,
        *,
        k: int = 4,
    ) -> TopPosteriors:
        """Top-k posteriors from the posterior volumes of all labels, read one at a time.

        Of equal probabilities the lower code comes first. Voxels in which all are zero get code 0
        with probability 1.

        Parameters
        ----------
        posteriors : iterable of (code, (X, Y, Z) float in 0..1 or uint8 in 0..255)
            Each code once.
        grid : Grid
        table : LabelTable
        k : int

        Raises
        ------
        ValueError
            If a volume has another shape or values outside 0 to 1, a code occurs twice, or k is
            below 1.
        UnknownLabelError
            If a code is not in the table.
        """
        if k < 1:
            raise ValueError(f"at least one label is kept for each voxel, got k={k}")
        n_voxels = int(np.prod(grid.shape))
        codes = np.zeros((k, n_voxels), dtype=np.int16)
        values = np.zeros((k, n_voxels), dtype=np.uint16)
        seen: set[int] = set()
        for code, posterior in posteriors:
            index = table[int(code)].index
            if index in seen:
                raise ValueError(f"posterior of {index} {table[index].name} occurs twice")
            seen.add(index)
            _insert(codes, values, index, _fine(posterior, grid, table[index].name))
        weights = np.zeros((k, n_voxels), dtype=np.uint8)
        for rank, row in enumerate(values):
            weights[rank] = (row.astype(np.uint32) + FINE // 2) // FINE
        codes[1:][weights[1:] == 0] = 0
        # Posteriors may end before the field of view does (SAMSEG's end with its atlas box).
        nobody = weights[0] == 0
        codes[0, nobody], weights[0, nobody] = 0, CERTAIN
        shape = (k, *grid.shape)
        return cls(codes.reshape(shape), weights.reshape(shape), grid, table)

    @classmethod
    def certain(cls, labels: LabelMap, *, k: int = 1) -> TopPosteriors:
        """Top-k posteriors in which the label of each voxel has probability 1."""
        codes = np.zeros((k, *labels.grid.shape), dtype=np.int16)
        weights = np.zeros(codes.shape, dtype=np.uint8)
        codes[0], weights[0] = labels.voxels, CERTAIN
        return cls(codes, weights, labels.grid, labels.table)

    def hard(self) -> LabelMap:
        """The most probable label of each voxel."""
        return LabelMap(self.codes[0].copy(), self.grid, self.table)

    def translate(self, crosswalk: Crosswalk) -> TopPosteriors:
        """Top-k posteriors in the target's codes; probabilities of merged codes are added.

        The most probable label may change. For instance, putamen 0.3, small vessel 0.3 and caudate
        0.4 become putamen 0.6 if small vessel is translated into putamen.

        Raises
        ------
        UnknownLabelError
            If a code has no translation; the message lists these codes.
        """
        # An empty rank repeats the first code, so that its padding needs no translation.
        asked = np.where(self.weights > 0, self.codes, self.codes[:1])
        codes = crosswalk.codes(asked, what="posteriors")
        weights = self.weights.copy()
        changed = np.zeros(self.grid.shape, dtype=bool)
        for low in range(1, self.k):
            for high in range(low):
                same = (codes[high] == codes[low]) & (weights[low] > 0) & (weights[high] > 0)
                total = weights[high][same].astype(np.uint16) + weights[low][same]
                weights[high][same] = np.minimum(total, CERTAIN)
                weights[low][same] = 0
                changed |= same
        codes[1:][weights[1:] == 0] = 0
        order = np.argsort(-weights[:, changed].astype(np.int16), axis=0, kind="stable")
        for array in (codes, weights):
            array[:, changed] = np.take_along_axis(array[:, changed], order, axis=0)
        return TopPosteriors(codes, weights, self.grid, crosswalk.target)


def _fine(posterior: np.ndarray, grid: Grid, name: str) -> np.ndarray:
    """Posterior as uint16 where 65535 is certain, (n voxels,)."""
    posterior = np.asarray(posterior)
    if posterior.shape != grid.shape:
        raise ValueError(f"posterior of {name}: {posterior.shape} does not fit {grid.shape}")
    if posterior.dtype == np.uint8:
        return posterior.ravel().astype(np.uint16) * FINE
    low, high = float(posterior.min()), float(posterior.max())
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # written so that NaN is refused too
        raise ValueError(f"posterior of {name}: {low:g} to {high:g} is not within 0 to 1")
    scaled = posterior.astype(np.float32).ravel()
    scaled *= CERTAIN * FINE
    scaled += 0.5
    return np.clip(scaled, 0, CERTAIN * FINE, out=scaled).astype(np.uint16)


def _insert(codes: np.ndarray, values: np.ndarray, code: int, new: np.ndarray) -> None:
    """Put one volume into the running ranks, in place; only voxels where it ranks are touched."""
    at = np.flatnonzero((new > 0) & (new >= values[-1]))
    value, code_here = new[at], np.full(len(at), code, dtype=np.int16)
    for rank in range(len(codes)):
        held, held_code = values[rank, at], codes[rank, at]
        wins = (value > held) | ((value == held) & (value > 0) & (code_here < held_code))
        values[rank, at], codes[rank, at] = (
            np.where(wins, value, held),
            np.where(wins, code_here, held_code),
        )
        value, code_here = np.where(wins, held, value), np.where(wins, held_code, code_here)
