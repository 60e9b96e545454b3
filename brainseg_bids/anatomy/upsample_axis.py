# SPDX-License-Identifier: Apache-2.0
"""Interpolation weights along one axis of a finer grid, and where labels cannot change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True, eq=False)
class Axis:
    """One axis of a finer grid.

    Parameters
    ----------
    first : (n_source + 1,) int64
        The centres of target voxels ``first[s]`` to ``first[s + 1] - 1`` lie in source voxel
        ``s``, which is called their owner.
    weights : (n_target, 2 * reach + 1) int32
        Fixed-point weights of the source voxels around the owner; each row sums to ``one``.
    midway : (n_target,) uint8
        1 if the index is odd and the centre lies midway between two source voxels.
    one : int
        Fixed-point value of weight 1.
    """

    first: np.ndarray
    weights: np.ndarray
    midway: np.ndarray
    one: int

    @property
    def reach(self) -> int:
        """Number of source voxels with a weight, on each side of the owner."""
        return self.weights.shape[1] // 2

    def by_owner(self, pad: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """The same weights, ordered by owner.

        Returns
        -------
        weights : (m, 2 * reach + 1, n_source + pad) int32
            m is the largest number of target voxels with one owner. Entries without a target voxel
            are 0.
        midway : (m, n_source + pad) uint8
        """
        owned = np.diff(self.first)
        most = max(1, int(owned.max()))
        weights = np.zeros((most, self.weights.shape[1], len(owned) + pad), np.int32)
        midway = np.zeros((most, len(owned) + pad), np.uint8)
        for nth in range(most):
            owners = np.flatnonzero(owned > nth)
            weights[nth][:, owners] = self.weights[self.first[owners] + nth].T
            midway[nth, owners] = self.midway[self.first[owners] + nth]
        return weights, midway


class Side(NamedTuple):
    """The arrays of one `Axis`, in the form that compiled functions need.

    Parameters
    ----------
    first : (n_source + 1,) int64
    weights, midway
        Fields of `Axis`, or results of `Axis.by_owner` for the last axis.
    """

    first: np.ndarray
    weights: np.ndarray
    midway: np.ndarray


Sides = tuple[Side, Side, Side]


def sure_radius(axes: tuple[Axis, Axis, Axis]) -> int:
    """Radius in source voxels such that a voxel with one label within it keeps its label.

    Let I be the sum of the weights within the radius, and N and P the sums of the absolute
    negative and positive weights outside. The voxel's own label scores at least ``I - N``, any
    other at most ``P``, so ``N + P < I`` is sufficient. Since ``N + P <= W - I``, where W is the
    sum of all absolute weights, ``W < 2 I`` is sufficient too; W and I are products over the axes.
    """
    reach = axes[0].reach
    for radius in range(1, reach):
        inner = slice(reach - radius, reach + radius + 1)
        if is_sure([(axis.weights[:, inner], axis.weights) for axis in axes]):
            return radius
    return max(1, reach)


def is_sure(parts: list[tuple[np.ndarray, np.ndarray]]) -> bool:
    """Whether the inner weights exceed the sum of all others at every position, see `sure_radius`.

    Parameters
    ----------
    parts : list of ((n, m), (n, k)) arrays
        Inner weights and all weights of each axis, with one row per position.
    """
    ratio = 1.0
    for inner, whole in parts:
        if inner.sum(1).min() <= 0:
            return False
        ratio *= (np.abs(whole).sum(1) / inner.sum(1)).max()
    return bool(ratio < 2)
