# SPDX-License-Identifier: Apache-2.0
"""Cleaning of a label map: undecided codes, components on the wrong side, islands.

Arrays have RAS+ axis order (`Grid.to_ras`), so that the result does not depend on the axis order
of the file. Votes are whole numbers, so that a mirrored head gives a mirrored result.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import cc3d
import numpy as np
from scipy import ndimage

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labels import LabelTable, count_each
from brainseg_bids.anatomy.rules import IslandRule, Resolution

OFFSETS = np.array([o for o in product((-1, 0, 1), repeat=3) if any(o)])
OPEN = -1  # a voxel that waits for its label
SIDE_MARGIN_MM = 3.0
"""A component of a left or right label is on the wrong side if all of it is further than this
beyond the mid-sagittal plane."""
SMALLEST_PAIR_MM3 = 50.0
"""Paired labels with less on either side say nothing about the mid-sagittal plane."""


def code_lookup(codes: frozenset[int] | set[int], table: LabelTable) -> np.ndarray:
    """Lookup table that is True at each of ``codes``, (largest code + 1,) bool."""
    lookup = np.zeros(int(table.codes[-1]) + 1, dtype=bool)
    lookup[list(codes)] = True
    return lookup


def fill_nearest(
    voxels: np.ndarray, at: np.ndarray, allowed: np.ndarray, grid: Grid, table: LabelTable
) -> int:
    """Fill voxels with the allowed label that grows into them first, in place.

    Labels grow into the given voxels one layer at a time. Where several arrive in the same layer,
    the 26 neighbours vote, each weighted by its inverse distance. Of labels with equal votes the
    lower code wins; a right label is ranked by the code of its left counterpart, and after it.
    Voxels that no allowed label can grow into, since other labels lie between, take the nearest
    allowed label by Euclidean distance.

    Parameters
    ----------
    voxels : (X, Y, Z) int16, C order
        Changed in place.
    at : (n,) int
        Flat indices of the voxels to be filled, ascending.
    allowed : (codes,) bool
        By code: labels that may grow.
    grid : Grid
        Grid of ``voxels``, for distances.
    table : LabelTable
        For the order of ties.

    Returns
    -------
    int
        Number of voxels that keep their code because the map has no allowed label at all.

    Examples
    --------
    >>> row = np.array([[[7, 7, 0, 0, 0, 8]]], dtype=np.int16)
    >>> allowed = np.arange(531) > 0
    >>> table = LabelTable.packaged("fullhead")
    >>> fill_nearest(row, np.array([2, 3, 4]), allowed, Grid((1, 1, 6), np.eye(4)), table)
    0
    >>> row
    array([[[7, 7, 7, 7, 8, 8]]], dtype=int16)
    """
    before = voxels.ravel()[at].copy()
    lookup = np.append(allowed, False)  # index -1 is OPEN
    flat = voxels.reshape(-1)
    flat[at] = OPEN
    weights = np.rint(1000 / np.linalg.norm(OFFSETS * np.array(grid.voxel_size_mm), axis=1))
    order = _tie_order(table)
    left = np.asarray(at)
    while len(left):
        neighbours = _neighbours(flat, left, voxels.shape)
        labels = np.where(lookup[neighbours], neighbours, OPEN)
        reached = (labels != OPEN).any(axis=0)
        if not reached.any():
            break
        flat[left[reached]] = _vote(labels[:, reached], weights.astype(np.int64), order)
        left = left[~reached]
    if not len(left):
        return 0
    flat[left] = before[np.searchsorted(at, left)]
    return _fill_straight(voxels, left, allowed, grid)


def _neighbours(flat: np.ndarray, at: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Codes of the 26 neighbours, (26, n); `OPEN` beyond the border, nothing wraps around."""
    position = np.stack(np.unravel_index(at, shape))
    strides = np.array([shape[1] * shape[2], shape[2], 1])
    found = np.full((len(OFFSETS), len(at)), OPEN, dtype=flat.dtype)
    for row, offset in zip(found, OFFSETS, strict=True):
        there = position + offset[:, None]
        inside = ((there >= 0) & (there < np.array(shape)[:, None])).all(axis=0)
        row[inside] = flat[at[inside] + int(offset @ strides)]
    return found


def _tie_order(table: LabelTable) -> np.ndarray:
    """Lookup from code to its order in ties: mirror labels side by side, so that no side is
    favoured against a third label."""
    order = np.full(int(table.codes[-1]) + 2, np.iinfo(np.int32).max, dtype=np.int32)
    for label in table:
        order[label.index] = 2 * min(label.index, label.mirror) + (label.index > label.mirror)
    return order


def _vote(labels: np.ndarray, weights: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Label with most votes among (26, n) neighbours; a tie goes to the first by ``order``."""
    score = np.zeros(labels.shape, dtype=np.int64)
    for row, weight in zip(labels, weights, strict=True):
        score += weight * (labels == row)
    score[labels == OPEN] = -1
    first = np.where(score == score.max(axis=0), order[labels], order[OPEN]).argmin(axis=0)
    return labels[first, np.arange(labels.shape[1])]


def _fill_straight(voxels: np.ndarray, at: np.ndarray, allowed: np.ndarray, grid: Grid) -> int:
    """Nearest allowed label by distance, searched in a box that grows until it holds one."""
    found = allowed[voxels]
    found.reshape(-1)[at] = False
    if not found.any():
        return len(at)
    shape = np.array(voxels.shape)
    position = np.stack(np.unravel_index(at, voxels.shape), axis=1)
    low, high = position.min(axis=0), position.max(axis=0) + 1
    margin = 4
    while True:
        start, stop = np.maximum(low - margin, 0), np.minimum(high + margin, shape)
        box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        whole = (start == 0).all() and (stop == shape).all()
        if found[box].any():
            distance, nearest = ndimage.distance_transform_edt(
                ~found[box], sampling=grid.voxel_size_mm, return_indices=True
            )
            here = tuple((position - start).T)
            # A nearer one may lie outside the box if it is further away than the margin.
            if whole or distance[here].max() <= margin * min(grid.voxel_size_mm):
                voxels.reshape(-1)[at] = voxels[box][tuple(nearest[(slice(None), *here)])]
                return 0
        margin *= 2


def resolve(
    voxels: np.ndarray, line: Resolution, table: LabelTable, grid: Grid
) -> tuple[int, int]:
    """Replace the undecided codes of one rule by the nearest candidate, in place.

    Returns
    -------
    changed, left : int
        Number of voxels replaced, and of voxels that stay because the map has no candidate.
    """
    at = np.flatnonzero(code_lookup(line.codes, table)[voxels])
    left = (
        fill_nearest(voxels, at, code_lookup(line.candidates, table), grid, table)
        if len(at)
        else 0
    )
    return len(at) - left, left


@dataclass(frozen=True)
class SagittalPlane:
    """Mid-sagittal plane, estimated from left and right labels.

    Parameters
    ----------
    normal : (3,) float
        Unit vector from left to right, in world coordinates.
    offset_mm : float
        ``normal @ point`` for every point of the plane.
    """

    normal: np.ndarray
    offset_mm: float

    @property
    def tilt_deg(self) -> float:
        """Angle between the plane's normal and world right; above 90, sides are swapped."""
        return float(np.degrees(np.arccos(np.clip(self.normal[0], -1, 1))))

    def right_of_mm(self, points_mm: np.ndarray) -> np.ndarray:
        """Signed distance of (n, 3) world points from the plane, positive on the labels' right."""
        return points_mm @ self.normal - self.offset_mm


def fit_sagittal_plane(voxels: np.ndarray, table: LabelTable, grid: Grid) -> SagittalPlane | None:
    """Mid-sagittal plane from the centroids of paired labels, or None with fewer than three pairs.

    Pairs with less than `SMALLEST_PAIR_MM3` on either side are left out. The normal is the mean
    vector from left to right centroid, weighted by the square root of the smaller volume. The
    offset is the median of the midpoints with the same weights.
    """
    sided = {label.index for label in table if label.hemisphere != "none"}
    at = np.flatnonzero(code_lookup(sided, table)[voxels]) if sided else np.zeros(0, int)
    counts, centres = _centres(at, voxels.reshape(-1)[at], voxels.shape, int(table.codes[-1]) + 1)
    apart, middles, weights = [], [], []
    for label in table:
        pair = (label.index, label.mirror)
        if label.hemisphere != "left":
            continue
        volume = min(counts[code] for code in pair) * grid.voxel_volume_mm3
        if volume < SMALLEST_PAIR_MM3 or table[label.mirror].hemisphere != "right":
            continue
        left, right = (to_world(grid, centres[code][None])[0] for code in pair)
        apart.append((right - left) * np.sqrt(volume))
        middles.append((right + left) / 2)
        weights.append(np.sqrt(volume))
    if len(apart) < 3:
        return None
    normal = np.sum(apart, axis=0)
    length = float(np.linalg.norm(normal))
    if length == 0:
        return None
    normal = normal / length
    along = np.array(middles) @ normal
    order = np.argsort(along)
    share = np.cumsum(np.array(weights)[order]) / np.sum(weights)
    return SagittalPlane(normal, float(along[order][np.searchsorted(share, 0.5)]))


def _centres(
    at: np.ndarray, number: np.ndarray, shape: tuple[int, ...], n: int
) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (n,) and mean voxel index (n, 3) of each number among the flat indices ``at``."""
    counts = np.bincount(number, minlength=n)
    position = np.unravel_index(at, shape)
    sums = [np.bincount(number, weights=axis, minlength=n) for axis in position]
    return counts, np.stack(sums, axis=1) / np.maximum(counts, 1)[:, None]


def to_world(grid: Grid, position: np.ndarray) -> np.ndarray:
    """World coordinates in mm, (n, 3), of voxel indices (n, 3)."""
    return position @ grid.affine[:3, :3].T + grid.affine[:3, 3]


@dataclass(frozen=True, eq=False)
class Components:
    """26-connected components of all labels.

    Parameters
    ----------
    numbers : (X, Y, Z) uint32
        Component of each voxel, from 1 to n; 0 where the code is 0.
    codes, sizes : (n + 1,) int
        Code and number of voxels of each component.
    """

    numbers: np.ndarray
    codes: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, voxels: np.ndarray) -> Components:
        """Components of a label map, (X, Y, Z) int."""
        numbers, n = cc3d.connected_components(
            voxels.astype(np.uint16, copy=False), connectivity=26, return_N=True
        )
        codes = np.zeros(n + 1, dtype=np.int64)
        for plane, its_codes in zip(numbers, voxels, strict=True):
            codes[plane.ravel()] = its_codes.ravel()
        return cls(numbers, codes, count_each(numbers, n))

    def largest(self) -> np.ndarray:
        """Number of voxels in the largest component of each code, (largest code + 1,) int."""
        sizes = np.zeros(int(self.codes.max()) + 1, dtype=np.int64)
        np.maximum.at(sizes, self.codes[1:], self.sizes[1:])
        return sizes

    def voxels_of(self, wanted: np.ndarray) -> np.ndarray:
        """Flat indices of the voxels in the components ``wanted``, (n + 1,) bool."""
        return voxels_in(self.numbers, wanted)


def voxels_in(numbers: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Flat indices, ascending, of the voxels in the components ``wanted``, (n + 1,) bool."""
    if not wanted.any():
        return np.zeros(0, dtype=np.int64)
    size = numbers[0].size
    # Plane by plane: indexing widens a whole volume to 8 bytes a voxel.
    found = [np.flatnonzero(wanted[plane]) + x * size for x, plane in enumerate(numbers)]
    return np.concatenate(found)


def correct_sides(
    voxels: np.ndarray, plane: SagittalPlane, table: LabelTable, grid: Grid
) -> tuple[int, list[str]]:
    """Relabel components of left or right labels that lie wholly on the other side, in place.

    Only components are relabelled of which every voxel is more than `SIDE_MARGIN_MM` beyond
    the plane, and never the largest of a label. A component takes the label of the other side if
    it touches it, otherwise the label around it.

    Returns
    -------
    changed : int
        Number of voxels relabelled.
    wrong : list of str
        Names of labels whose largest component is on the wrong side; these are not changed.
    """
    components = Components.of(voxels)
    sides = {"left": -1, "right": 1, "none": 0}
    side = table.lookup(lambda label: sides[label.hemisphere], np.int8)[components.codes]
    main = components.sizes == components.largest()[components.codes]
    at = components.voxels_of((side != 0) & ~main)
    changed = 0
    if len(at):
        number = components.numbers.reshape(-1)[at]
        deepest = _deepest_mm(at, number, side, plane, voxels.shape, grid)
        wrong = deepest < -SIDE_MARGIN_MM
        at, number = at[wrong[number]], number[wrong[number]]
        changed = _change_sides(voxels, at, number, components, table, grid)
    distance = _main_distances_mm(components, main & (side != 0), side, plane, grid)
    wrong_codes = components.codes[distance < -SIDE_MARGIN_MM]
    return changed, [table[code].name for code in wrong_codes.tolist()]


def _deepest_mm(
    at: np.ndarray,
    number: np.ndarray,
    side: np.ndarray,
    plane: SagittalPlane,
    shape: tuple[int, ...],
    grid: Grid,
) -> np.ndarray:
    """Largest distance of each component into its own side, mm; inf for those not asked for."""
    position = np.stack(np.unravel_index(at, shape), axis=1)
    distance = plane.right_of_mm(to_world(grid, position)) * side[number]
    deepest = np.full(len(side), np.inf)
    deepest[np.unique(number)] = -np.inf
    np.maximum.at(deepest, number, distance)
    return deepest


def _change_sides(
    voxels: np.ndarray,
    at: np.ndarray,
    number: np.ndarray,
    components: Components,
    table: LabelTable,
    grid: Grid,
) -> int:
    """Voxels ``at``, of the components ``number``, become their mirror labels, in place."""
    if not len(at):
        return 0
    flat = voxels.reshape(-1)
    wanted = table.lookup(lambda label: label.mirror, np.int64)[components.codes]
    touches = (_neighbours(flat, at, voxels.shape) == wanted[number]).any(axis=0)
    meets = np.zeros(len(components.codes), dtype=bool)
    meets[number[touches]] = True
    turned = meets[number]
    flat[at[turned]] = wanted[number[turned]]
    rest = at[~turned]
    if len(rest):
        allowed = code_lookup(set(table.codes.tolist()), table)
        fill_nearest(voxels, rest, allowed, grid, table)
    return len(at)


def _main_distances_mm(
    components: Components, main: np.ndarray, side: np.ndarray, plane: SagittalPlane, grid: Grid
) -> np.ndarray:
    """How far the centre of each ``main`` component lies in its own side, mm; inf for others."""
    wanted = np.flatnonzero(main)
    at = components.voxels_of(main)
    number = components.numbers.reshape(-1)[at]
    _, centres = _centres(at, number, components.numbers.shape, len(main))
    distance = np.full(len(main), np.inf)
    distance[wanted] = plane.right_of_mm(to_world(grid, centres[wanted])) * side[wanted]
    return distance


def remove_islands(
    voxels: np.ndarray, rules: tuple[IslandRule, ...], table: LabelTable, grid: Grid
) -> list[int]:
    """Replace components that are too small for a rule by the label around them, in place.

    The surroundings may have code 0: specks of skin in air become air.

    Returns
    -------
    list of int
        Number of voxels that each rule replaced.
    """
    at, by_rule = small_components(voxels, rules, table, grid)
    if len(at):
        fill_nearest(voxels, at, code_lookup(set(table.codes.tolist()), table), grid, table)
    return by_rule


def small_components(
    voxels: np.ndarray, rules: tuple[IslandRule, ...], table: LabelTable, grid: Grid
) -> tuple[np.ndarray, list[int]]:
    """Flat indices of voxels in components too small for a rule, and their number by rule."""
    components = Components.of(voxels)
    largest = components.largest()
    gone = np.zeros(len(components.codes), dtype=bool)
    by_rule = []
    for rule in rules:
        asked = code_lookup(rule.codes, table)[components.codes]
        limit = np.maximum(
            rule.smallest_mm3 / grid.voxel_volume_mm3,
            rule.smallest_share * largest[components.codes],
        )
        small = asked & (components.sizes < limit) & (components.sizes < largest[components.codes])
        small[0] = False
        by_rule.append(int(components.sizes[small].sum()))
        gone |= small
    return components.voxels_of(gone), by_rule
