# SPDX-License-Identifier: Apache-2.0
"""How far the surfaces of two label maps are from each other, all structures in one pass.

Two definitions, which give different numbers and must not be mixed:

``surface``
    That of DeepMind's surface-distance (Nikolov et al., arXiv 1809.04430): the surface passes
    through the corners of voxels, each corner stands for an area, and means, percentiles and
    shares are of area. The default.
``voxel``
    That of MONAI: a surface is the voxels that lack one of six neighbours, and each counts as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from brainseg_bids.anatomy import upsample_kernels as kernels
from brainseg_bids.evaluation import surface_kernels as loops
from brainseg_bids.evaluation.overlap import Box, Tally
from brainseg_bids.evaluation.structures import Pair, Structure
from brainseg_bids.evaluation.surfels import BITS, surfel_areas_mm2

DEFINITIONS = ("surface", "voxel")
SLACK_MM = 1e-5
"""What a distance may exceed a tolerance by: voxel sizes in headers are single precision."""
LOOKS = 925
"""Places that are searched around a site: those within six voxels, if voxels are cubes."""
NEAR_LOOKS = 33
"""Of these, places so near that counting them would cost more than looking."""
LOOKS_PER_VOXEL = 10
"""Far looks that cost about as much as the distance transform of one voxel of a box."""
ADVANCE = 0.1
"""Share of these that may be spent at once; the rest as the box is gone through."""
COMPARISONS_PER_VOXEL = 10
"""The same for comparisons of a queued site with one site of the other map."""
QUEUE = 50_000
COLUMNS = 32
MAPS = ("reference", "prediction")


@dataclass(frozen=True, eq=False)
class Directed:
    """Distances from the surface of one map to that of the other.

    Parameters
    ----------
    distance_mm : (n,) float
        Ascending.
    weight : (n,) float
        Area in mm2, or number of edge voxels.
    """

    distance_mm: np.ndarray
    weight: np.ndarray

    @property
    def total(self) -> float:
        """Area or number of the whole surface."""
        return float(self.weight.sum())

    @property
    def sum(self) -> float:
        """Distances times weights."""
        return float(self.distance_mm @ self.weight)

    @property
    def mean_mm(self) -> float:
        """Mean distance."""
        return self.sum / self.total

    def within(self, tolerance_mm: float) -> float:
        """Area or number that is at most so far away."""
        return float(self.weight[self.distance_mm <= tolerance_mm + SLACK_MM].sum())

    def area_percentile_mm(self, percent: float) -> float:
        """Smallest distance within which at least so much of the area lies."""
        share = np.cumsum(self.weight)
        # A part in 10^12: sums of areas are rounded, and 19 of 20 equal ones are 95 %.
        at = np.searchsorted(share, share[-1] * percent / 100 * (1 - 1e-12))
        return float(self.distance_mm[min(at, len(share) - 1)])

    def count_percentile_mm(self, percent: float) -> float:
        """Percentile of single distances, linear between neighbours in rank."""
        last = np.cumsum(self.weight)
        rank = (last[-1] - 1) * percent / 100
        low, high = np.searchsorted(last, [np.floor(rank), np.ceil(rank)], side="right")
        one, other = self.distance_mm[[low, high]]
        return float(one + (other - one) * (rank - np.floor(rank)))


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """Distances of one structure's surfaces, both ways.

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
        """Mean distance over both surfaces together: average symmetric surface distance."""
        both = self.from_reference, self.from_prediction
        return sum(one.sum for one in both) / sum(one.total for one in both)

    def hausdorff_mm(self, percent: float = 100) -> float:
        """The larger of the two directed percentiles."""
        if self.definition == "surface":
            return max(
                one.area_percentile_mm(percent)
                for one in (self.from_reference, self.from_prediction)
            )
        return max(
            one.count_percentile_mm(percent) for one in (self.from_reference, self.from_prediction)
        )

    def nsd(self, tolerance_mm: float) -> float:
        """Share of both surfaces that is near the other: normalised surface Dice."""
        both = self.from_reference, self.from_prediction
        return sum(one.within(tolerance_mm) for one in both) / sum(one.total for one in both)


def surface_distances(
    pair: Pair, tally: Tally, structures: Sequence[Structure], definition: str = "surface"
) -> list[SurfaceDistances | None]:
    """Distances between the surfaces of each structure in two maps.

    Parameters
    ----------
    pair : Pair
    tally : Tally
        Of this pair.
    structures : sequence of Structure
    definition : {"surface", "voxel"}

    Returns
    -------
    list of SurfaceDistances or None
        None for structures that one of the maps has not.

    Raises
    ------
    ValueError
        If there is no such definition.

    Notes
    -----
    Around each site the places nearest in mm are looked at until a site of the same structure in
    the other map is found. The few sites without one are compared with all sites of the other
    map. Where there are many of them, the structure gets an exact distance transform in its box:
    a bad pair shows after a tenth of its time. What lies outside the maps, or does not
    count, is outside of every structure. Sheared voxels (gantry tilt) are searched in true mm;
    instead of the transform, they get a search tree. Turned grids are not sheared. Without numba
    every structure gets the transform; the results are the same.
    """
    if definition not in DEFINITIONS:
        raise ValueError(f"no surface definition {definition!r}; known: {', '.join(DEFINITIONS)}")
    found: list[SurfaceDistances | None] = [None] * len(structures)
    there = [n for n, s in enumerate(structures) if tally.overlap(s).status == "both"]
    for start in range(0, len(there), loops.MOST):
        some = there[start : start + loops.MOST]
        batch = _Batch(pair, tally, [structures[n] for n in some], definition)
        for n, distances in zip(some, batch.measure(), strict=True):
            found[n] = distances
    return found


class _Batch:
    """As many structures as fit into one set.

    Parameters
    ----------
    pair, tally, structures, definition
        As for `surface_distances`.
    """

    def __init__(self, pair, tally, structures, definition) -> None:
        self.pair, self.tally = pair, tally
        self.structures, self.definition = structures, definition
        self.boxes = [tally.box([structure]) for structure in structures]
        self.box = tally.box(structures)
        self.weights = _site_weights(pair, definition)

    def measure(self) -> list[SurfaceDistances]:
        """Distances of every structure."""
        if not kernels.HAS_NUMBA:
            return [
                SurfaceDistances(*self._in_box(n, (True, True)), self.definition)
                for n in range(len(self.structures))
            ]
        search = _Search(self)
        search.run()
        found = []
        for n in range(len(self.structures)):
            # A structure that was given up one way is measured anew that way.
            anew = tuple(search.gave_up(direction, n) for direction in range(2))
            boxed = self._in_box(n, anew) if any(anew) else (None, None)
            ways = [boxed[d] if anew[d] else search.directed(d, n) for d in range(2)]
            found.append(SurfaceDistances(*ways, self.definition))
        return found

    def _in_box(self, n: int, wanted: tuple[bool, bool]) -> list[Directed | None]:
        """Distances of one structure by exact distance transforms, the ways that are wanted."""
        codes = [self._site_codes(which, n) for which in MAPS]
        return [
            _transformed(codes[d], codes[1 - d], self.pair, self.weights) if wanted[d] else None
            for d in range(2)
        ]

    def _site_codes(self, which: str, n: int) -> np.ndarray:
        """Codes of the places in a structure's box; sites are neither 0 nor 255."""
        box = self.boxes[n]
        lookup = self.pair.lookup(dict.fromkeys(self.structures[n].codes, 1), 0, np.uint8)
        inside = np.zeros([s.stop - s.start + 2 for s in box], np.uint8)
        for part in self.pair.blocks(box):
            plane = part[0].start - box[0].start + 1
            rows = slice(plane, plane + part[0].stop - part[0].start)
            inside[rows, 1:-1, 1:-1] = lookup[self.pair.part(which, part)]
        return site_codes(inside, self.definition)


def _site_weights(pair: Pair, definition: str) -> np.ndarray:
    """Weight for each code of a site, (256,)."""
    if definition == "surface":
        size = np.diag(pair.voxel_size_mm)
        return surfel_areas_mm2(pair.axes_mm if pair.is_sheared else size)
    return np.ones(256)


def site_codes(inside: np.ndarray, definition: str) -> np.ndarray:
    """Codes of places: of the eight voxels around a corner, or 1 for an edge voxel.

    Parameters
    ----------
    inside : (x + 2, y + 2, z + 2) uint8
        1 inside, with a margin of zeros.
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
    if kernels.HAS_NUMBA:
        fill = loops.corner_codes if definition == "surface" else loops.edge_codes
        fill(inside, codes)
    elif definition == "surface":
        for step, bit in np.ndenumerate(BITS):
            part = inside[tuple(slice(s, s + n) for s, n in zip(step, codes.shape, strict=True))]
            codes |= part * np.uint8(bit)
    else:
        kept = ndimage.binary_erosion(inside)
        codes[...] = (inside & ~kept)[1:-1, 1:-1, 1:-1]
    return codes


def _transformed(own, other, pair: Pair, weights: np.ndarray) -> Directed:
    """Distances from the sites of one box of codes to those of another, exactly."""
    size = pair.voxel_size_mm
    if pair.is_sheared:
        places = [np.argwhere((c > 0) & (c < 255)) for c in (own, other)]
        tree = cKDTree(places[1] @ pair.axes_mm.T)
        distance = tree.query(places[0] @ pair.axes_mm.T)[0]
        codes = own[tuple(places[0].T)]
    elif kernels.HAS_NUMBA:
        distance, codes = _box_distances(own, other, size)
    else:
        sites = (own > 0) & (own < 255)
        away = ndimage.distance_transform_edt((other == 0) | (other == 255), sampling=size)
        distance, codes = away[sites], own[sites]
    return _sorted_sites(distance, codes, weights)


def _sorted(distance: np.ndarray, weight: np.ndarray) -> Directed:
    order = np.argsort(distance)
    return Directed(distance[order], weight[order])


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


def _box_distances(own, other, size) -> tuple[np.ndarray, np.ndarray]:
    """Distance in mm and code of each own site."""
    steps = np.empty(other.shape, np.int16)
    loops.row_distances(other, steps)
    n_sites = own.size - np.count_nonzero(own == 0) - np.count_nonzero(own == 255)
    distances, codes = np.empty(n_sites), np.empty(n_sites, np.uint8)
    height = np.empty((own.shape[1], COLUMNS, own.shape[0]))
    n_found = 0
    for start in range(0, own.shape[2], COLUMNS):
        stop = min(start + COLUMNS, own.shape[2])
        n_found = loops.box_distances(
            own, steps, size, start, stop, height, distances, codes, n_found
        )
    return np.sqrt(distances, out=distances), codes


@dataclass(frozen=True, eq=False)
class Neighbourhood:
    """Places around a site, nearest first.

    Parameters
    ----------
    offsets : (n, 3) int64
    steps : (n,) int64
        Rank of the distance.
    distance_mm : (m,) float
        For each rank.
    """

    offsets: np.ndarray
    steps: np.ndarray
    distance_mm: np.ndarray

    @classmethod
    def of(cls, metric_mm2: np.ndarray, n: int = LOOKS) -> Neighbourhood:
        """All places in a ball that holds about ``n``.

        Examples
        --------
        >>> near = Neighbourhood.of(np.diag([4.0, 1.0, 1.0]), 15)
        >>> near.offsets[:5].tolist(), near.distance_mm.round(3).tolist()
        ([[0, 0, 0], [0, -1, 0], [0, 0, -1], [0, 0, 1], [0, 1, 0]], [0.0, 1.0, 1.414, 2.0])
        """
        volume = np.sqrt(np.linalg.det(metric_mm2))
        radius = max((3 * n * volume / (4 * np.pi)) ** (1 / 3), np.sqrt(metric_mm2.max())) + 1e-6
        reach = np.floor(radius * np.sqrt(np.diag(np.linalg.inv(metric_mm2)))).astype(int)
        offsets = np.stack(
            np.meshgrid(*[np.arange(-r, r + 1) for r in reach], indexing="ij"), -1
        ).reshape(-1, 3)
        squared = np.einsum("ni,ij,nj->n", offsets, metric_mm2, offsets)
        inside = squared <= radius**2
        order = np.argsort(squared[inside], kind="stable")
        offsets, squared = offsets[inside][order], squared[inside][order]
        new = np.diff(squared, prepend=0) > 1e-9 * radius**2
        return cls(offsets, np.cumsum(new), np.sqrt(squared[np.r_[0, np.flatnonzero(new)]]))

    @property
    def reach(self) -> np.ndarray:
        """Largest offset along each axis, (3,)."""
        return self.offsets.max(0)


class _Sites:
    """Sites of one map, as many planes of them as a search reaches.

    Parameters
    ----------
    batch : _Batch
    which : {"reference", "prediction"}
    reach : (3,) int
        Planes to each side, and margins of zeros in the plane.
    box : tuple of 3 slice
        Around all structures that matter.
    """

    def __init__(self, batch: _Batch, which: str, reach: np.ndarray, box: Box) -> None:
        self.batch, self.which, self.reach, self.box = batch, which, reach, box
        self.corners = batch.definition == "surface"
        bits: dict[int, int] = {}
        for n, structure in enumerate(batch.structures):
            for code in structure.codes:
                bits[code] = bits.get(code, 0) | 1 << n
        self.lookup = batch.pair.lookup(bits, 0, np.int64)
        self.shape = tuple(s.stop - s.start + self.corners for s in box)
        inner = [s.stop - s.start + 2 for s in box[1:]]
        margins = [n + 2 * r for n, r in zip(self.shape[1:], reach[1:], strict=True)]
        self.sites = np.zeros((2 * reach[0] + 1, *margins), np.int64)
        self.sets = np.zeros((2 * reach[0] + 3, *inner), np.int64)
        self.n_sets = -1

    def plane(self, x: int) -> np.ndarray:
        """Sites of a plane, with margins; it must have been loaded."""
        return self.sites[x % len(self.sites)]

    def set_plane(self, x: int) -> np.ndarray:
        """Sets of a plane of voxels, with a margin of one."""
        return self.sets[x % len(self.sets)]

    def load(self, x: int) -> None:
        """Work out plane ``x``; planes come in order, and those beyond the map are empty."""
        plane = self.plane(x)
        if x >= self.shape[0]:
            plane[:] = 0
            return
        for voxels in range(self.n_sets, x + 1 + (not self.corners)):
            self._load_sets(voxels)
        self.n_sets = x + 1 + (not self.corners)
        inner = plane[
            self.reach[1] : self.reach[1] + self.shape[1],
            self.reach[2] : self.reach[2] + self.shape[2],
        ]
        if self.corners:
            loops.corner_sites(self.set_plane(x - 1), self.set_plane(x), inner)
        else:
            around = [self.set_plane(x + step) for step in (-1, 0, 1)]
            loops.edge_sites(*around, inner)

    def _load_sets(self, x: int) -> None:
        planes, y, z = self.box
        at = planes.start + x
        if planes.start <= at < planes.stop:
            codes = self.batch.pair.part(self.which, (slice(at, at + 1), y, z))
            loops.fill_sets(codes[0], self.lookup, self.set_plane(x))
        else:
            self.set_plane(x)[:] = 0


class _Search:
    """Searching around all sites of both maps, a plane at a time."""

    def __init__(self, batch: _Batch) -> None:
        self.batch = batch
        self.metric = batch.pair.metric_mm2
        self.around = Neighbourhood.of(self.metric)
        n_all, n_steps = loops.MOST, len(self.around.distance_mm)
        self.weights = np.zeros((2, n_all, n_steps))
        self.counts = np.zeros((2, n_all), np.int64)
        everything = (1 << len(batch.structures)) - 1
        self.state = np.array([[everything, 0]] * 2, np.int64)
        self.spent = np.zeros((2, n_all), np.int64)
        self.volumes = np.zeros(n_all, np.int64)
        self.starts, self.lengths = np.zeros(n_all), np.ones(n_all)
        for n, box in enumerate(batch.boxes):
            self.starts[n] = box[0].start - batch.box[0].start
            self.lengths[n] = box[0].stop - box[0].start
            self.volumes[n] = np.prod([s.stop - s.start for s in box])
        # On sheared voxels what would come instead is slower than any search.
        self.limits = self.volumes * LOOKS_PER_VOXEL * (1000 if batch.pair.is_sheared else 1)
        self.queue = np.zeros((2, QUEUE, 4), np.int32)
        self.queue_weights = np.zeros((2, QUEUE))
        self.best = [np.zeros(0), np.zeros(0)]

    def gave_up(self, direction: int, n: int) -> bool:
        """Whether the search for a structure was broken off."""
        return not (int(self.state[direction, 0]) >> n) & 1

    def directed(self, direction: int, n: int) -> Directed:
        """What was found for a structure that was not given up."""
        late = self.queue[direction, :, 3] == n
        weights = self.weights[direction, n]
        seen = weights > 0
        return _sorted(
            np.concatenate([self.around.distance_mm[seen], np.sqrt(self.best[direction][late])]),
            np.concatenate([weights[seen], self.queue_weights[direction][late]]),
        )

    def run(self) -> None:
        """Search around every site, then settle the queue."""
        box = self.batch.box
        maps = [_Sites(self.batch, which, self.around.reach, box) for which in MAPS]
        reach = int(self.around.reach[0])
        margin = self.around.reach[1:].astype(np.int64)
        size = maps[0].plane(0).size
        _, down, along = self.around.offsets.T
        in_plane = down * maps[0].plane(0).shape[1] + along
        areas = self.batch.weights if self.batch.definition == "surface" else np.zeros(0)
        for x in range(-reach, maps[0].shape[0]):
            limits = self._limits(x)
            for one in maps:
                one.load(x + reach)
            if x < 0:
                continue
            slots = (x + self.around.offsets[:, 0]) % len(maps[0].sites)
            for direction in range(2):
                own, other = maps[direction], maps[1 - direction]
                loops.probe_plane(
                    own.plane(x), other.sites.ravel(), slots * size + in_plane, self.around.steps,
                    NEAR_LOOKS, margin, own.set_plane(x - 1), own.set_plane(x),
                    areas, x, self.weights[direction], self.counts[direction],
                    self.state[direction], self.spent[direction], limits,
                    self.queue[direction], self.queue_weights[direction],
                )  # fmt: skip
        self._settle()

    def _limits(self, x: int) -> np.ndarray:
        """Far looks that each structure may have taken up to a plane: a bad pair shows early."""
        done = (x + 1 - self.starts) / self.lengths
        return (self.limits * np.clip(ADVANCE + done, 0, 1)).astype(np.int64)

    def _settle(self) -> None:
        """Compare queued sites with all sites of the other map."""
        firsts, wanted = [], []
        for direction in range(2):
            n_queue = int(self.state[direction, 1])
            waiting = np.bincount(self.queue[direction, :n_queue, 3], minlength=loops.MOST)
            many = waiting * self.counts[1 - direction] > self.volumes * COMPARISONS_PER_VOXEL
            for n in np.flatnonzero(many):
                self.state[direction, 0] &= ~(1 << int(n))
            kept = np.array([not self.gave_up(direction, n) for n in range(loops.MOST)])
            chosen = np.flatnonzero(kept[self.queue[direction, :n_queue, 3]])
            chosen = chosen[np.argsort(self.queue[direction, chosen, 3], kind="stable")]
            self._reorder(direction, chosen)
            waiting = np.where(kept, waiting, 0)
            firsts.append(np.r_[0, np.cumsum(waiting)])
            wanted.append(sum(1 << int(n) for n in np.flatnonzero(waiting)))
        if any(wanted):
            self._compare(firsts, wanted)

    def _reorder(self, direction: int, chosen: np.ndarray) -> None:
        """Keep the chosen ones of the queue, in this order."""
        n = len(chosen)
        self.queue[direction, :n] = self.queue[direction, chosen]
        self.queue[direction, n:, 3] = -1
        self.queue_weights[direction, :n] = self.queue_weights[direction, chosen]
        self.best[direction] = np.full(QUEUE, np.inf)

    def _compare(self, firsts: list[np.ndarray], wanted: list[int]) -> None:
        """Go once more through the boxes of structures that have any in the queue."""
        margin = np.zeros(2, np.int64)
        for direction, bits in enumerate(wanted):
            if not bits:
                continue
            chosen = [s for n, s in enumerate(self.batch.structures) if (bits >> n) & 1]
            box = self.batch.tally.box(chosen)
            start = [s.start - b.start for s, b in zip(box, self.batch.box, strict=True)]
            queue = self.queue[direction] - np.array([*start, 0], np.int32)
            other = _Sites(self.batch, MAPS[1 - direction], np.zeros(3, np.int64), box)
            for x in range(other.shape[0]):
                other.load(x)
                loops.nearest_in_plane(
                    other.plane(x), margin, x, bits, firsts[direction],
                    queue, self.metric, self.best[direction],
                )  # fmt: skip
