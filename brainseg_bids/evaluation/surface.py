# SPDX-License-Identifier: Apache-2.0
"""Distances between the surfaces of two label maps, for all structures in one pass.

There are two definitions of surfaces, whose values are not comparable:

``surface``
    The default, as in DeepMind's surface-distance (Nikolov et al., arXiv 1809.04430). The surface
    passes through corners of voxels. Each corner is weighted by an area in means, percentiles and
    fractions.
``voxel``
    As in MONAI. The surface is the voxels of which one of the six neighbours is outside of the
    structure. All have the same weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from brainseg_bids.evaluation import surface_kernels as loops
from brainseg_bids.evaluation.overlap import Tally
from brainseg_bids.evaluation.structures import Pair, Structure
from brainseg_bids.evaluation.surface_search import MAPS, Batch, Search

DEFINITIONS = ("surface", "voxel")
SLACK_MM = 1e-5
"""Tolerance of distances, since voxel sizes in headers have single precision."""
COLUMNS = 32
"""Columns of a box that are transformed at a time."""


@dataclass(frozen=True, eq=False)
class Directed:
    """Distances from the surface of one map to that of the other.

    Parameters
    ----------
    distance_mm : (n,) float
        Ascending.
    weight : (n,) float
        Area in mm², or number of surface voxels.
    """

    distance_mm: np.ndarray
    weight: np.ndarray

    @property
    def total(self) -> float:
        """Area in mm² or number of voxels of the whole surface."""
        return float(self.weight.sum())

    @property
    def sum(self) -> float:
        """Sum of distances times weights."""
        return float(self.distance_mm @ self.weight)

    @property
    def mean_mm(self) -> float:
        """Weighted mean distance in mm."""
        return self.sum / self.total

    def within(self, tolerance_mm: float) -> float:
        """Area or number of voxels at a distance of at most ``tolerance_mm``."""
        return float(self.weight[self.distance_mm <= tolerance_mm + SLACK_MM].sum())

    def area_percentile_mm(self, percent: float) -> float:
        """Percentile of the distance, weighted by area."""
        share = np.cumsum(self.weight)
        # A part in 10^12: sums of areas are rounded, and 19 of 20 equal ones are 95 %.
        at = np.searchsorted(share, share[-1] * percent / 100 * (1 - 1e-12))
        return float(self.distance_mm[min(at, len(share) - 1)])

    def count_percentile_mm(self, percent: float) -> float:
        """Percentile of the distances of single voxels, with linear interpolation."""
        last = np.cumsum(self.weight)
        rank = (last[-1] - 1) * percent / 100
        low, high = np.searchsorted(last, [np.floor(rank), np.ceil(rank)], side="right")
        one, other = self.distance_mm[[low, high]]
        return float(one + (other - one) * (rank - np.floor(rank)))


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """Distances between the two surfaces of a structure, in both directions.

    Parameters
    ----------
    from_reference, from_prediction : Directed
    definition : {"surface", "voxel"}

    Examples
    --------
    >>> here = Directed(np.array([0.0, 1.0]), np.array([3.0, 1.0]))
    >>> there = Directed(np.array([0.0, 2.0]), np.array([3.0, 1.0]))
    >>> both = SurfaceDistances(here, there, "surface")
    >>> both.assd_mm, both.hausdorff_mm(95), both.nsd(1)
    (0.375, 2.0, 0.875)
    """

    from_reference: Directed
    from_prediction: Directed
    definition: str

    @property
    def assd_mm(self) -> float:
        """Average symmetric surface distance: mean distance over both surfaces."""
        both = self.from_reference, self.from_prediction
        return sum(one.sum for one in both) / sum(one.total for one in both)

    def hausdorff_mm(self, percent: float = 100) -> float:
        """Hausdorff distance: the larger of the two directed percentiles."""
        both = self.from_reference, self.from_prediction
        if self.definition == "surface":
            return max(one.area_percentile_mm(percent) for one in both)
        return max(one.count_percentile_mm(percent) for one in both)

    def nsd(self, tolerance_mm: float) -> float:
        """Normalised surface Dice: fraction of both surfaces within the tolerance of the other."""
        both = self.from_reference, self.from_prediction
        return sum(one.within(tolerance_mm) for one in both) / sum(one.total for one in both)


def surface_distances(
    pair: Pair, tally: Tally, structures: Sequence[Structure], definition: str = "surface"
) -> list[SurfaceDistances | None]:
    """Distances between the surfaces of each structure in two maps.

    Parameters
    ----------
    pair, tally, definition
        As for `surface_search.Batch`.
    structures : sequence of Structure
        Any number of structures, which may be absent from one or both maps.

    Returns
    -------
    list of SurfaceDistances or None
        None for structures that are absent from one of the maps.

    Raises
    ------
    ValueError
        If the definition does not exist.

    Notes
    -----
    Around each surface point, positions are searched in order of distance until a point of the
    same structure in the other map is found. Points without a near neighbour are compared with all
    points of the other map. If there are many of them, an exact distance transform in the bounding
    box is used instead. Voxels outside of the maps, and voxels that do not count, are outside of
    every structure. On sheared grids (gantry tilt), distances are exact as well, and a k-d tree
    replaces the distance transform.
    """
    if definition not in DEFINITIONS:
        raise ValueError(f"no surface definition {definition!r}; known: {', '.join(DEFINITIONS)}")
    result: list[SurfaceDistances | None] = [None] * len(structures)
    there = [n for n, s in enumerate(structures) if tally.overlap(s).status == "both"]
    for start in range(0, len(there), loops.MOST):
        some = there[start : start + loops.MOST]
        batch = Batch(pair, tally, [structures[n] for n in some], definition)
        for n, distances in zip(some, _measure(batch), strict=True):
            result[n] = distances
    return result


def _measure(batch: Batch) -> list[SurfaceDistances]:
    """Distances of every structure."""
    search = Search(batch)
    search.run()
    result = []
    for n in range(len(batch.structures)):
        # A structure that was given up one way is measured anew that way.
        anew = [search.gave_up(way, n) for way in range(2)]
        codes = [_site_codes_of(batch, which, n) for which in MAPS] if any(anew) else []
        forth, back = (
            _transformed(codes[way], codes[1 - way], batch.pair, batch.weights)
            if anew[way]
            else Directed(*search.result(way, n))
            for way in range(2)
        )
        result.append(SurfaceDistances(forth, back, batch.definition))
    return result


def _site_codes_of(batch: Batch, which: str, n: int) -> np.ndarray:
    """Codes of the places in a structure's box; sites are neither 0 nor 255."""
    box = batch.boxes[n]
    lookup = batch.pair.lookup(dict.fromkeys(batch.structures[n].codes, 1), 0, np.uint8)
    inside = np.zeros([s.stop - s.start + 2 for s in box], np.uint8)
    for part in batch.pair.blocks(box):
        plane = part[0].start - box[0].start + 1
        rows = slice(plane, plane + part[0].stop - part[0].start)
        inside[rows, 1:-1, 1:-1] = lookup[batch.pair.part(which, part)]
    return site_codes(inside, batch.definition)


def site_codes(inside: np.ndarray, definition: str) -> np.ndarray:
    """Code of each position: pattern of the eight voxels around a corner, or 1 for an edge voxel.

    Parameters
    ----------
    inside : (x + 2, y + 2, z + 2) uint8
        1 inside of the structure, with a margin of zeros.
    definition : {"surface", "voxel"}

    Returns
    -------
    (x + 1, y + 1, z + 1) or (x, y, z) uint8

    Examples
    --------
    >>> voxel = np.zeros((3, 3, 3), np.uint8); voxel[1, 1, 1] = 1
    >>> site_codes(voxel, "surface").ravel().tolist()
    [1, 2, 4, 8, 16, 32, 64, 128]
    """
    less = 1 if definition == "surface" else 2
    codes = np.zeros([n - less for n in inside.shape], np.uint8)
    fill = loops.corner_codes if definition == "surface" else loops.edge_codes
    fill(inside, codes)
    return codes


def _transformed(own: np.ndarray, other: np.ndarray, pair: Pair, weights: np.ndarray) -> Directed:
    """Distances from the sites of one box of codes to those of another, exactly."""
    if pair.is_sheared:
        places = [np.argwhere((c > 0) & (c < 255)) for c in (own, other)]
        tree = cKDTree(places[1] @ pair.axes_mm.T)
        distance = tree.query(places[0] @ pair.axes_mm.T)[0]
        codes = own[tuple(places[0].T)]
    else:
        distance, codes = _box_distances(own, other, pair.voxel_size_mm)
    return _sorted_sites(distance, codes, weights)


def _sorted_sites(distance: np.ndarray, codes: np.ndarray, weights: np.ndarray) -> Directed:
    """Distances in order, with the weights of their codes."""
    # Positive floats sort like whole numbers. Codes ride in the last 8 of 52 bits, for a part in
    # 10^13 of a distance: sorting numbers is many times faster than sorting their places.
    keys = distance.astype(np.float64).view(np.int64) & ~0xFF
    keys |= codes
    keys.sort()
    weights = weights[keys & 0xFF]
    keys &= ~0xFF
    # Equal distances are kept as one: of a million sites, some hundreds are left.
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    return Directed(keys[first].view(np.float64), np.add.reduceat(weights, first))


def _box_distances(
    own: np.ndarray, other: np.ndarray, size: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Distance in mm and code of each own site."""
    steps = np.empty(other.shape, np.int16)
    loops.row_distances(other, steps)
    n_sites = own.size - np.count_nonzero(own == 0) - np.count_nonzero(own == 255)
    distances, codes = np.empty(n_sites), np.empty(n_sites, np.uint8)
    height = np.empty((own.shape[1], COLUMNS, own.shape[0]))
    n_filled = 0
    for start in range(0, own.shape[2], COLUMNS):
        stop = min(start + COLUMNS, own.shape[2])
        n_filled = loops.box_distances(
            own, steps, size, start, stop, height, distances, codes, n_filled
        )
    return np.sqrt(distances, out=distances), codes
