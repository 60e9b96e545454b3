# SPDX-License-Identifier: Apache-2.0
"""Interior of labels: voxels away from borders, without partial volume."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from brainseg_bids.anatomy.grid import triple
from brainseg_bids.anatomy.labels import count_each

DEPTH_MM = 2.3
"""Largest depth that is distinguished; at 1 mm this sphere contains a voxel's 26 neighbours and
some more."""

ENOUGH_VOXELS = (300, 4000)
ENOUGH_SHARE = 0.04
"""Fraction of a label's voxels that the interior must keep, within the limits of
`ENOUGH_VOXELS`."""

FEWEST_VOXELS = 30


@dataclass(frozen=True)
class Interior:
    """Interior voxels of all labels.

    Parameters
    ----------
    flat : (n,) int32 or int64
        Flat indices in C order, ordered by label, then ascending.
    starts : (labels + 1,) int
        Voxels of class index r are ``flat[starts[r]:starts[r + 1]]``.
    weights : (n,) float32
        Weight of each voxel between 0 and 1, from its depth below the border.
    """

    flat: np.ndarray
    starts: np.ndarray
    weights: np.ndarray

    def of(self, index: int) -> slice:
        """Slice of `flat` and `weights` with the voxels of one class index."""
        return slice(int(self.starts[index]), int(self.starts[index + 1]))

    def counts(self) -> np.ndarray:
        """Number of interior voxels of each label, (labels,) int."""
        return np.diff(self.starts)

    def indices(self) -> np.ndarray:
        """Class index of each voxel, (n,) int."""
        return np.repeat(np.arange(len(self.starts) - 1), self.counts())


def steps_around(
    voxel_size_mm: tuple[float, float, float], reach_mm: float
) -> dict[float, list[tuple[int, int, int]]]:
    """Offsets to neighbouring voxels within ``reach_mm``, by their length in mm, ascending.

    Of two opposite offsets only one is listed. The 6-neighbourhood is always included, and the
    26-neighbourhood if voxels are larger than 1.3 mm.

    >>> {d: len(steps) for d, steps in steps_around((1.0, 1.0, 1.0), 2.0).items()}
    {1.0: 3, 1.414: 6, 1.732: 4, 2.0: 3}
    """
    size = np.asarray(voxel_size_mm, dtype=float)
    reach_mm = max(reach_mm, 1.75 * float(size.prod() ** (1 / 3)))
    most = [max(1, int(reach_mm / s)) for s in size]
    steps: dict[float, list[tuple[int, int, int]]] = {}
    for step in product(*(range(-m, m + 1) for m in most)):
        length = float(np.linalg.norm(size * step))
        nearest = sum(map(abs, step)) == 1
        if step > (0, 0, 0) and (nearest or length <= reach_mm * 1.001):
            steps.setdefault(round(length, 3), []).append(triple(step))
    return dict(sorted(steps.items()))


def border_depth(
    indices: np.ndarray, voxel_size_mm: tuple[float, float, float], *, reach_mm: float = DEPTH_MM
) -> tuple[np.ndarray, np.ndarray]:
    """Distance of each voxel to the nearest voxel of another label.

    The edge of the array does not count as a border.

    Parameters
    ----------
    indices : (X, Y, Z) uint8 or uint16
        Class indices.

    Returns
    -------
    level : (X, Y, Z) uint8
        Index into ``depth_mm``; 0 if a neighbour has another label.
    depth_mm : (levels,) float
        Radius around the voxel within which all voxels have its label.

    Examples
    --------
    >>> line = np.array([1, 1, 1, 1, 2, 2], dtype=np.uint8).reshape(-1, 1, 1)
    >>> level, depth_mm = border_depth(line, (1.0, 1.0, 1.0), reach_mm=2.0)
    >>> depth_mm[level].ravel().tolist()
    [2.0, 2.0, 1.732, 0.0, 0.0, 1.732]
    """
    steps = steps_around(voxel_size_mm, reach_mm)
    level = np.zeros(indices.shape, dtype=np.uint8)
    alive = np.ones(indices.shape, dtype=bool)
    for group in steps.values():
        for step in group:
            here = tuple(
                slice(max(0, -s), n - max(0, s)) for s, n in zip(step, indices.shape, strict=True)
            )
            there = tuple(
                slice(max(0, s), n - max(0, -s)) for s, n in zip(step, indices.shape, strict=True)
            )
            if any(s.stop <= s.start for s in (*here, *there)):
                continue
            same = indices[here] == indices[there]
            alive[here] &= same
            alive[there] &= same
        level += alive
    return level, np.array([0.0, *steps])


def find_interior(
    indices: np.ndarray,
    n_labels: int,
    voxel_size_mm: tuple[float, float, float],
    *,
    usable: np.ndarray | None = None,
    partners: np.ndarray | None = None,
) -> tuple[Interior, np.ndarray]:
    """Interior voxels of every label except class index 0.

    The minimum depth of each label is the largest one that keeps a share of `ENOUGH_SHARE` of its
    voxels, or else the largest one that keeps `FEWEST_VOXELS`. Voxels next to another label are
    never interior. Weights grow with the square of the depth.

    Parameters
    ----------
    indices : (X, Y, Z) uint8 or uint16
        Class indices below ``n_labels``; 0 is background.
    usable : (X, Y, Z) bool, optional
        Voxels with a finite intensity.
    partners : (labels,) int, optional
        Class index of each label's counterpart on the other side, its own if there is none.

    Returns
    -------
    interior : Interior
    level : (X, Y, Z) uint8
        See `border_depth`.
    """
    level, depth_mm = border_depth(indices, voxel_size_mm)
    n_levels = len(depth_mm)
    joint = indices.astype(np.uint16) * np.uint16(n_levels) + level
    table = count_each(joint, n_labels * n_levels - 1).reshape(n_labels, n_levels)
    as_deep = table[:, ::-1].cumsum(1)[:, ::-1]
    least = np.array([_least_level(row) for row in as_deep], dtype=np.uint8)
    if partners is not None:  # left and right are treated alike
        least = np.minimum(least, least[partners])
    least[0] = n_levels
    taken = level >= least[indices]
    if usable is not None:
        taken &= usable
    flat = np.flatnonzero(taken)
    if indices.size < 2**31:
        flat = flat.astype(np.int32)
    index = indices.ravel()[flat]
    order = np.argsort(index, kind="stable")
    flat, index = flat[order], index[order]
    starts = np.searchsorted(index, np.arange(n_labels + 1))
    trust = (depth_mm / depth_mm[-1]) ** 2
    return Interior(flat, starts, trust[level.ravel()[flat]].astype(np.float32)), level


def _least_level(as_deep: np.ndarray) -> int:
    """Level from which on a label's voxels are taken; beyond the last: none."""
    enough = min(max(ENOUGH_VOXELS[0], ENOUGH_SHARE * as_deep[0]), ENOUGH_VOXELS[1])
    for fewest in (enough, FEWEST_VOXELS):
        levels = np.flatnonzero(as_deep[1:] >= fewest)
        if len(levels):
            return int(levels[-1]) + 1
    return 1
