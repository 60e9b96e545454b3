# SPDX-License-Identifier: Apache-2.0
"""Search for the nearest surface point in the other map, for each surface point of a map.

A *site* is a corner of voxels or an edge voxel, see `surface_kernels`. Positions around each site
are searched in order of distance. Sites without a near neighbour are compared with all sites of
the other map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from brainseg_bids.evaluation import surface_kernels as loops
from brainseg_bids.evaluation.overlap import Box, Tally
from brainseg_bids.evaluation.structures import Pair, Structure
from brainseg_bids.evaluation.surfels import surfel_areas_mm2

PROBES = 925
"""Number of positions that are searched around a site: those within six voxels for cubic
voxels."""
NEAR_PROBES = 33
"""Number of first positions that are not counted, since counting would cost more than
searching."""
PROBES_PER_VOXEL = 10
"""Number of searched positions that cost about as much as the distance transform of one voxel."""
ADVANCE = 0.1
"""Fraction of the limit that may be used at once; the rest becomes available during the search."""
COMPARISONS_PER_VOXEL = 10
"""As `PROBES_PER_VOXEL`, for comparisons of a queued site with a site of the other map."""
QUEUE = 50_000
MAPS = ("reference", "prediction")


@dataclass(frozen=True, eq=False)
class Neighbourhood:
    """Positions around a site in order of distance.

    Parameters
    ----------
    offsets : (n, 3) int64
        In voxels, nearest first.
    steps : (n,) int64
        Index of each offset's distance in ``distance_mm``.
    distance_mm : (m,) float
        Different distances, ascending.
    """

    offsets: np.ndarray
    steps: np.ndarray
    distance_mm: np.ndarray

    @classmethod
    def of(cls, metric_mm2: np.ndarray, n: int = PROBES) -> Neighbourhood:
        """All positions in a ball that contains about ``n`` of them.

        Parameters
        ----------
        metric_mm2 : (3, 3) float
            See `structures.Pair.metric_mm2`.
        n : int

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
        """Largest offset along each axis, (3,) int."""
        return self.offsets.max(0)


class Batch:
    """Structures that are searched together: at most as many as bits in a set.

    Parameters
    ----------
    pair : Pair
    tally : Tally
        Tally of this pair.
    structures : sequence of Structure
        At most `surface_kernels.MOST`, each in both maps.
    definition : {"surface", "voxel"}
    """

    def __init__(
        self, pair: Pair, tally: Tally, structures: Sequence[Structure], definition: str
    ) -> None:
        self.pair, self.tally = pair, tally
        self.structures, self.definition = structures, definition
        self.boxes = [tally.box([structure]) for structure in structures]
        self.box = tally.box(structures)
        self.weights = _site_weights(pair, definition)


def _site_weights(pair: Pair, definition: str) -> np.ndarray:
    """Weight for each code of a site, (256,)."""
    if definition == "voxel":
        return np.ones(256)
    return surfel_areas_mm2(pair.axes_mm if pair.is_sheared else np.diag(pair.voxel_size_mm))


class _Sites:
    """Sites of one map, as many planes of them as a search reaches.

    Parameters
    ----------
    batch : Batch
    which : {"reference", "prediction"}
    reach : (3,) int
        Planes to each side, and margins of zeros in the plane.
    box : tuple of 3 slice
        Around all structures that matter.
    """

    def __init__(self, batch: Batch, which: str, reach: np.ndarray, box: Box) -> None:
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


class Search:
    """Search around all sites of both maps, one plane at a time.

    In all methods, ``direction`` 0 is from the reference to the prediction, 1 the reverse, and
    ``n`` is the index of a structure in the batch.
    """

    def __init__(self, batch: Batch) -> None:
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
        self.limits = self.volumes * PROBES_PER_VOXEL * (1000 if batch.pair.is_sheared else 1)
        self.queue = np.zeros((2, QUEUE, 4), np.int32)
        self.queue_weights = np.zeros((2, QUEUE))
        self.best = [np.zeros(0), np.zeros(0)]

    def gave_up(self, direction: int, n: int) -> bool:
        """Whether the search for a structure was stopped because it exceeded its limit."""
        return not (int(self.state[direction, 0]) >> n) & 1

    def result(self, direction: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Distances in mm, ascending, and their weights, unless the search `gave_up`."""
        late = self.queue[direction, :, 3] == n
        weights = self.weights[direction, n]
        seen = weights > 0
        distance = np.concatenate(
            [self.around.distance_mm[seen], np.sqrt(self.best[direction][late])]
        )
        weight = np.concatenate([weights[seen], self.queue_weights[direction][late]])
        order = np.argsort(distance)
        return distance[order], weight[order]

    def run(self) -> None:
        """Search around every site, then compare queued sites with all sites of the other map."""
        box = self.batch.box
        maps = [_Sites(self.batch, which, self.around.reach, box) for which in MAPS]
        reach = int(self.around.reach[0])
        margin = self.around.reach[1:].astype(np.int64)
        size = maps[0].plane(0).size
        _, down, along = self.around.offsets.T
        in_plane = down * maps[0].plane(0).shape[1] + along
        n_near = min(NEAR_PROBES, len(in_plane))
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
                    n_near, margin, own.set_plane(x - 1), own.set_plane(x),
                    areas, x, self.weights[direction], self.counts[direction],
                    self.state[direction], self.spent[direction], limits,
                    self.queue[direction], self.queue_weights[direction],
                )  # fmt: skip
        self._settle()

    def _limits(self, x: int) -> np.ndarray:
        """Far probes that each structure may have taken up to a plane: a bad pair shows early."""
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
