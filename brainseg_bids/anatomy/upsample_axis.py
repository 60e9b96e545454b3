# SPDX-License-Identifier: Apache-2.0
"""One axis of a finer grid: who owns which target voxel, and how far a label is sure."""

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
        Source voxel ``s`` owns target voxels ``first[s]`` to ``first[s + 1] - 1``.
    weights : (n_target, 2 * reach + 1) int32
        Of the source voxels around the owner; each row sums to ``one``.
    midway : (n_target,) uint8
        1 where the index is odd and the centre lies midway between two source voxels.
    one : int
        Weight 1.
    """

    first: np.ndarray
    weights: np.ndarray
    midway: np.ndarray
    one: int

    @property
    def reach(self) -> int:
        """Source voxels to each side of the owner."""
        return self.weights.shape[1] // 2

    def by_owner(self, pad: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Weights (most owned, taps, n_source + pad) and `midway` in the same order, (.., ..)."""
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
    """One axis of the target, as the loops take it.

    Parameters
    ----------
    first : (n_source + 1,) int64
    weights, midway
        Fields of `Axis`; of the last axis those of `Axis.by_owner`.
    """

    first: np.ndarray
    weights: np.ndarray
    midway: np.ndarray


Sides = tuple[Side, Side, Side]


def sure_radius(axes: tuple[Axis, Axis, Axis]) -> int:
    """Smallest radius such that a voxel with one label within it is sure to keep its label.

    The own label has at least ``I - N``, any other at most ``P``, where I is the sum of the
    weights in the box and N and P are those of the negative and positive ones outside. ``N + P``
    is what all absolute weights W exceed those in the box by, at most ``W - I``; so ``W < 2 I``
    is enough, and both are products over the axes.
    """
    reach = axes[0].reach
    for radius in range(1, reach):
        inner = slice(reach - radius, reach + radius + 1)
        if is_sure([(axis.weights[:, inner], axis.weights) for axis in axes]):
            return radius
    return max(1, reach)


def is_sure(parts: list[tuple[np.ndarray, np.ndarray]]) -> bool:
    """Whether inner weights outweigh the rest; (inner, all) of each axis, a row for each place."""
    ratio = 1.0
    for inner, whole in parts:
        if inner.sum(1).min() <= 0:
            return False
        ratio *= (np.abs(whole).sum(1) / inner.sum(1)).max()
    return bool(ratio < 2)
