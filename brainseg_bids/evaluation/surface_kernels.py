# SPDX-License-Identifier: Apache-2.0
"""Compiled functions for surface distances of up to 62 structures at a time.

A *site* is a point of a surface: a corner of voxels or an edge voxel. A site may belong to several
structures, so each has a set of structures, stored as the bits of a 64-bit integer. One search
finds the neighbours for all of them.
"""

from __future__ import annotations

import numpy as np

from brainseg_bids.anatomy.upsample_kernels import jit

MOST = 62
"""Largest number of structures in a set: the bits of an integer without its sign."""
FAR = np.int16(32767)
"""Distance in a row without any site."""
PATIENCE = 4
"""Positions searched for each voxel of a line before the whole line is computed."""
DE_BRUIJN = np.int64(0x03F79D71B4CB0A89)
ORDER = np.zeros(64, np.int64)
for _bit in range(64):
    ORDER[((0x03F79D71B4CB0A89 << _bit) >> 58) & 63] = _bit


@jit
def lowest(bits: int) -> int:
    """Index of the lowest bit that is set (Leiserson, Prokop and Randall, 1998)."""
    return ORDER[(((bits & -bits) * DE_BRUIJN) >> 58) & 63]


@jit
def fill_sets(codes: np.ndarray, lookup: np.ndarray, sets: np.ndarray) -> None:
    """Write the set of structures of each voxel of a plane.

    Parameters
    ----------
    codes : (y, z) int
    lookup : (codes,) int64
        Set of structures of each code.
    sets : (y + 2, z + 2) int64
        Changed in place, except for its margin.
    """
    for y in range(codes.shape[0]):
        row, out = codes[y], sets[y + 1]
        for z in range(codes.shape[1]):
            out[z + 1] = lookup[row[z]]


@jit
def corner_sites(before: np.ndarray, here: np.ndarray, sites: np.ndarray) -> None:
    """Write the sites of a plane of corners: structures with some but not all of the eight voxels.

    Parameters
    ----------
    before, here : (y + 2, z + 2) int64
        Sets of the planes of voxels on both sides.
    sites : (y + 1, z + 1) int64
        Changed in place.
    """
    for y in range(sites.shape[0]):
        a, b, c, d = before[y], before[y + 1], here[y], here[y + 1]
        row = sites[y]
        for z in range(sites.shape[1]):
            some = a[z] | a[z + 1] | b[z] | b[z + 1] | c[z] | c[z + 1] | d[z] | d[z + 1]
            every = a[z] & a[z + 1] & b[z] & b[z + 1] & c[z] & c[z + 1] & d[z] & d[z + 1]
            row[z] = some & ~every


@jit
def edge_sites(before: np.ndarray, here: np.ndarray, after: np.ndarray, sites: np.ndarray) -> None:
    """Write the sites of a plane of voxels: structures that one of six neighbours does not have.

    Parameters
    ----------
    before, here, after : (y + 2, z + 2) int64
        Sets of three successive planes of voxels.
    sites : (y, z) int64
        Changed in place.
    """
    for y in range(sites.shape[0]):
        a, b, c = before[y + 1], here[y + 1], after[y + 1]
        up, down, row = here[y], here[y + 2], sites[y]
        for z in range(sites.shape[1]):
            every = a[z + 1] & c[z + 1] & up[z + 1] & down[z + 1] & b[z] & b[z + 2]
            row[z] = b[z + 1] & ~every


@jit
def _look_around(before: np.ndarray, here: np.ndarray, y: int, z: int, around: np.ndarray) -> None:
    """Note the sets of the eight voxels around a corner, in the order of `surfels.BITS`."""
    around[0], around[1] = here[y + 1, z + 1], here[y + 1, z]
    around[2], around[3] = here[y, z + 1], here[y, z]
    around[4], around[5] = before[y + 1, z + 1], before[y + 1, z]
    around[6], around[7] = before[y, z + 1], before[y, z]


@jit
def _weight(around: np.ndarray, bit: int, areas: np.ndarray) -> float:
    """Area of the surface of one structure at a corner, or 1 without areas."""
    if len(areas) == 0:
        return 1.0
    code = 0
    for n in range(8):
        code |= ((around[n] >> bit) & 1) << n
    return areas[code]


@jit
def _record(
    bits: int,
    around: np.ndarray,
    areas: np.ndarray,
    step: int,
    weights: np.ndarray,
    counts: np.ndarray,
) -> None:
    """Add a site to what its structures have at a distance."""
    while bits:
        bit = lowest(bits)
        weights[bit, step] += _weight(around, bit, areas)
        counts[bit] += 1
        bits &= bits - 1


@jit
def _give_up(
    bits: int, probes: int, state: np.ndarray, spent: np.ndarray, limits: np.ndarray
) -> None:
    """Note what a long search cost; structures beyond their limit are searched no more."""
    while bits:
        bit = lowest(bits)
        spent[bit] += probes
        if spent[bit] > limits[bit]:
            state[0] &= ~(np.int64(1) << bit)
        bits &= bits - 1


@jit
def _put_off(
    bits: int,
    around: np.ndarray,
    areas: np.ndarray,
    x: int,
    y: int,
    z: int,
    state: np.ndarray,
    sites: np.ndarray,
    weights: np.ndarray,
) -> None:
    """Queue a site that nothing was found for; what does not fit is searched no more."""
    while bits:
        bit = lowest(bits)
        n = state[1]
        if n < len(sites):
            sites[n, 0], sites[n, 1], sites[n, 2], sites[n, 3] = x, y, z, bit
            weights[n] = _weight(around, bit, areas)
            state[1] = n + 1
        else:
            state[0] &= ~(np.int64(1) << bit)
        bits &= bits - 1


@jit
def probe_plane(own: np.ndarray, other: np.ndarray, places: np.ndarray, steps: np.ndarray,
                near: int, margin: np.ndarray, before: np.ndarray, here: np.ndarray,
                areas: np.ndarray, x: int, weights: np.ndarray, counts: np.ndarray,
                state: np.ndarray, spent: np.ndarray, limits: np.ndarray, queue: np.ndarray,
                queue_weights: np.ndarray) -> None:  # fmt: skip
    """Find the nearest site of the same structure in the other map, for each site of a plane.

    Parameters
    ----------
    own : (Y, Z) int64
        Sites of the plane, with a margin.
    other : (planes * Y * Z,) int64
        Sites of the other map in the planes around, with the same margin.
    places : (n,) int64
        Positions in ``other`` to be searched, relative to the index in the plane, nearest first.
    steps : (n,) int64
        Index of the distance of each position, ascending.
    near : int
        Number of first positions that are not counted in ``spent``.
    margin : (2,) int64
    before, here : (y, z) int64
        Sets of the planes of voxels on both sides of the corners.
    areas : (256,) float, or (0,)
        Area for each pattern of eight voxels; empty if each site has weight 1.
    x : int
        Index of the plane.
    weights, counts : (62, distances) float, (62,) int64
        Changed in place: sum of areas at each distance, and number of sites with a neighbour.
    state : (2,) int64
        Set of structures that are still searched, and length of the queue.
    spent, limits : (62,) int64
        Number of positions searched beyond ``near`` for each structure, and its limit.
    queue, queue_weights : (m, 4) int32, (m,) float
        Position and structure of the sites without a neighbour, and their areas.
    """
    around = np.zeros(8, np.int64)
    for y in range(own.shape[0] - 2 * margin[0]):
        for z in range(own.shape[1] - 2 * margin[1]):
            left = own[y + margin[0], z + margin[1]] & state[0]
            if left == 0:
                continue
            at = (y + margin[0]) * own.shape[1] + z + margin[1]
            if len(areas):
                _look_around(before, here, y, z, around)
            k, searched = 0, left
            while left and k < len(places):
                if k == near:
                    searched = left
                hit = left & other[places[k] + at]
                if hit:
                    _record(hit, around, areas, steps[k], weights, counts)
                    left ^= hit
                k += 1
            if left == 0 and k <= near:
                continue
            _give_up(searched, k - near, state, spent, limits)
            _put_off(left & state[0], around, areas, x, y, z, state, queue, queue_weights)


@jit
def nearest_in_plane(
    sites: np.ndarray,
    margin: np.ndarray,
    x: int,
    wanted: int,
    first: np.ndarray,
    queue: np.ndarray,
    metric: np.ndarray,
    best: np.ndarray,
) -> None:
    """Update the distance of queued sites by comparing them with each site of a plane.

    Parameters
    ----------
    sites : (Y, Z) int64
        Sites of the plane, with a margin.
    margin : (2,) int64
    x : int
        Index of the plane.
    wanted : int64
        Set of structures in the queue.
    first : (63,) int64
        Index of the first site of each structure in ``queue``, which is sorted by structure.
    metric : (3, 3) float
        Metric tensor in mm², see `structures.Pair.metric_mm2`.
    best : (m,) float
        Smallest squared distance in mm², changed in place.
    """
    for y in range(sites.shape[0] - 2 * margin[0]):
        for z in range(sites.shape[1] - 2 * margin[1]):
            bits = sites[y + margin[0], z + margin[1]] & wanted
            while bits:
                bit = lowest(bits)
                bits &= bits - 1
                for n in range(first[bit], first[bit + 1]):
                    a, b, c = queue[n, 0] - x, queue[n, 1] - y, queue[n, 2] - z
                    best[n] = min(
                        best[n],
                        a * a * metric[0, 0] + b * b * metric[1, 1] + c * c * metric[2, 2]
                        + 2 * (a * b * metric[0, 1] + a * c * metric[0, 2] + b * c * metric[1, 2]),
                    )  # fmt: skip


@jit
def corner_codes(inside: np.ndarray, codes: np.ndarray) -> None:
    """Write the pattern of the eight voxels around each corner; ``inside`` has a margin of one."""
    for x in range(codes.shape[0]):
        for y in range(codes.shape[1]):
            a, b = inside[x, y], inside[x, y + 1]
            c, d = inside[x + 1, y], inside[x + 1, y + 1]
            row = codes[x, y]
            for z in range(codes.shape[2]):
                row[z] = (
                    (a[z] << 7) | (a[z + 1] << 6) | (b[z] << 5) | (b[z + 1] << 4)
                    | (c[z] << 3) | (c[z + 1] << 2) | (d[z] << 1) | d[z + 1]
                )  # fmt: skip


@jit
def edge_codes(inside: np.ndarray, codes: np.ndarray) -> None:
    """Write 1 for voxels inside of which one of the six neighbours is outside, 0 elsewhere."""
    for x in range(codes.shape[0]):
        for y in range(codes.shape[1]):
            a, b, c = inside[x, y + 1], inside[x + 1, y + 1], inside[x + 2, y + 1]
            up, down, row = inside[x + 1, y], inside[x + 1, y + 2], codes[x, y]
            for z in range(codes.shape[2]):
                every = a[z + 1] & c[z + 1] & up[z + 1] & down[z + 1] & b[z] & b[z + 2]
                row[z] = b[z + 1] & (1 ^ every)


@jit
def row_distances(codes: np.ndarray, steps: np.ndarray) -> None:
    """Write the distance in voxels along the last axis to the nearest site, or `FAR` if none."""
    for x in range(codes.shape[0]):
        for y in range(codes.shape[1]):
            row, out = codes[x, y], steps[x, y]
            since = FAR
            for z in range(codes.shape[2]):
                since = np.int16(0) if 0 < row[z] < 255 else np.int16(min(since + 1, FAR))
                out[z] = since
            since = FAR
            for z in range(codes.shape[2] - 1, -1, -1):
                since = np.int16(0) if 0 < row[z] < 255 else np.int16(min(since + 1, FAR))
                out[z] = min(out[z], since)


@jit
def _envelope(
    values: np.ndarray, size: float, out: np.ndarray, vertices: np.ndarray, bounds: np.ndarray
) -> None:
    """Least of ``values[m] + (size * (n - m)) ** 2`` for each n: lower envelope of parabolas.

    After Felzenszwalb and Huttenlocher, Theory of Computing 8, 2012. ``vertices`` and ``bounds``
    are working memory.
    """
    n, top = len(values), -1
    square = size * size
    for m in range(n):
        if values[m] == np.inf:
            continue
        start = -np.inf
        while top >= 0:
            k = vertices[top]
            rise = (values[m] - values[k]) / (square * (m - k))
            start = (rise + (m + k)) / 2
            if start > bounds[top]:
                break
            top -= 1
            start = -np.inf
        top += 1
        vertices[top], bounds[top] = m, start
    k = 0
    for m in range(n):
        if top < 0:
            out[m] = np.inf
            continue
        while k < top and bounds[k + 1] < m:
            k += 1
        out[m] = values[vertices[k]] + square * (m - vertices[k]) ** 2


@jit
def _nearest_in_line(line: np.ndarray, x: int, size: float) -> tuple[float, int]:
    """Least of ``line[m] + (size * (x - m)) ** 2``, and how many places were probed."""
    best, away = line[x], 1
    while away < len(line) and (away * size) ** 2 < best:
        further = (away * size) ** 2
        if x >= away:
            best = min(best, further + line[x - away])
        if x + away < len(line):
            best = min(best, further + line[x + away])
        away += 1
    return best, away


@jit
def _fill_height(
    steps: np.ndarray, size: np.ndarray, start: int, stop: int, height: np.ndarray
) -> None:
    """Squared distance in mm² to the nearest site within each plane x, for `box_distances`."""
    n_x, n_y, _ = steps.shape
    vertices, bounds, values = np.zeros(n_y, np.int64), np.zeros(n_y), np.zeros(n_y)
    for x in range(n_x):
        for z in range(start, stop):
            for y in range(n_y):
                step = steps[x, y, z]
                values[y] = np.inf if step == FAR else (step * size[2]) ** 2
            _envelope(values, size[1], height[:, z - start, x], vertices, bounds)


@jit
def box_distances(
    codes: np.ndarray,
    steps: np.ndarray,
    size: np.ndarray,
    start: int,
    stop: int,
    height: np.ndarray,
    distances: np.ndarray,
    codes_out: np.ndarray,
    n_filled: int,
) -> int:
    """Append the squared distances of sites to the nearest site of the other map.

    Parameters
    ----------
    codes : (x, y, z) uint8
        Codes of the sites; 0 and 255 are not sites.
    steps : (x, y, z) int16
        `row_distances` of the other map.
    size : (3,) float
        Voxel size in mm.
    start, stop : int
        Range of sites along the last axis.
    height : (y, stop - start, x) float
        Buffer.
    distances, codes_out : (m,) float, (m,) uint8
        Changed in place: squared distances in mm², and codes of the sites.
    n_filled : int
        Number of entries before.

    Returns
    -------
    int
        Number of entries after.
    """
    n_x, n_y, _ = codes.shape
    vertices, bounds, values = np.zeros(n_x, np.int64), np.zeros(n_x), np.zeros(n_x)
    _fill_height(steps, size, start, stop, height)
    for y in range(n_y):
        for z in range(start, stop):
            # A few sites near the other map are found sooner than the whole line is worked out.
            line, patience = height[y, z - start], PATIENCE * n_x
            for x in range(n_x):
                if not 0 < codes[x, y, z] < 255:
                    continue
                if patience > 0:
                    best, probes = _nearest_in_line(line, x, size[0])
                    patience -= probes
                    if patience <= 0:
                        _envelope(line, size[0], values, vertices, bounds)
                else:
                    best = values[x]
                distances[n_filled], codes_out[n_filled] = best, codes[x, y, z]
                n_filled += 1
    return n_filled
