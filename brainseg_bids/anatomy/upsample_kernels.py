# SPDX-License-Identifier: Apache-2.0
"""Inner loops of `upsample`: with numba where it is there, with numpy alone elsewhere.

Positions are rounded to 1/4096 of a source voxel and every weight is a whole number, so sums are
exact: the result depends neither on the order of axes nor on threads, and the two versions agree
to the last voxel.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np

BITS = 12
ONE = 1 << BITS
"""Weight 1 of one axis, and a step of one source voxel."""
HALF = ONE // 2

try:
    if os.environ.get("BRAINSEG_NO_NUMBA"):
        raise ImportError("numba is switched off")
    import numba

    HAS_NUMBA = True
except ImportError:
    HAS_NUMBA = False


def jit(function: Callable) -> Callable:
    """Compile with numba, without the GIL, cached on disk where there is a place for it."""
    if not HAS_NUMBA:
        return function
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # no folder that can be written to, as in a read-only container
        return numba.njit(nogil=True)(function)


@jit
def _locate(matrix, shift, i, j, k, sizes, low, frac):
    """Fill the lower corner and the fractions of a target position; whether it is inside."""
    inside = True
    for a in range(3):
        place = matrix[a, 0] * i + matrix[a, 1] * j + matrix[a, 2] * k + shift[a]
        x = np.int64(np.rint(ONE * place))
        inside = inside and -HALF <= x <= sizes[a] * ONE - HALF
        low[a] = x >> BITS
        frac[a] = x & (ONE - 1)
    return inside


@jit
def _corner(low, frac, sizes, number):
    """Index, clamped to the volume, and weight of one of the eight corners."""
    d0, d1, d2 = number >> 2, (number >> 1) & 1, number & 1
    weight = (
        (frac[0] if d0 else ONE - frac[0])
        * (frac[1] if d1 else ONE - frac[1])
        * (frac[2] if d2 else ONE - frac[2])
    )
    x0 = min(max(low[0] + d0, 0), sizes[0] - 1)
    x1 = min(max(low[1] + d1, 0), sizes[1] - 1)
    x2 = min(max(low[2] + d2, 0), sizes[2] - 1)
    return x0, x1, x2, weight


@jit
def _add(found, scores, n_found, code, weight):
    """Add to a code's score; the number of codes seen so far."""
    for n in range(n_found):
        if found[n] == code:
            scores[n] += weight
            return n_found
    found[n_found] = code
    scores[n_found] = weight
    return n_found + 1


@jit
def _best(found, scores, n_found, even):
    """Rank of the largest score; of equals the lowest code at even voxels, else the highest."""
    best = 0
    for n in range(1, n_found):
        if scores[n] > scores[best] or (
            scores[n] == scores[best] and (found[n] < found[best]) == even
        ):
            best = n
    return best


@jit
def pull_labels(codes, matrix, shift, points, start, out):
    """Label with the largest linear weight, for the planes from ``start`` on.

    Parameters
    ----------
    codes : (X, Y, Z) int16
    matrix, shift : (3, 3), (3,) float
        Target index to source index.
    points : (n, 3) float
        Where in a target voxel the source is looked at, in target voxels around its centre.
    start : int
        Target index of the first plane of ``out``.
    out : (planes, Y', Z') int16
        Filled in.
    """
    sizes = np.array(codes.shape)
    low, frac = np.zeros(3, np.int64), np.zeros(3, np.int64)
    found = np.zeros(8 * len(points) + 1, np.int16)
    scores = np.zeros(8 * len(points) + 1, np.int64)
    for i in range(start, start + out.shape[0]):
        for j in range(out.shape[1]):
            for k in range(out.shape[2]):
                n_found = 0
                for p in range(len(points)):
                    u, v, w = i + points[p, 0], j + points[p, 1], k + points[p, 2]
                    if not _locate(matrix, shift, u, v, w, sizes, low, frac):
                        n_found = _add(found, scores, n_found, np.int16(0), ONE**3)
                        continue
                    for number in range(8):
                        x0, x1, x2, weight = _corner(low, frac, sizes, number)
                        if weight:
                            n_found = _add(found, scores, n_found, codes[x0, x1, x2], weight)
                best = _best(found, scores, n_found, (i + j + k) % 2 == 0) if n_found > 1 else 0
                out[i - start, j, k] = found[best]


@jit
def pull_membership(codes, weights, matrix, shift, points, start, out_codes, out_weights):
    """As `pull_labels`, for several labels a voxel with their weights.

    Parameters
    ----------
    codes, weights : (k, X, Y, Z) int16, uint8
    out_codes, out_weights : (k, planes, Y', Z') int16, uint8
        Filled in, descending weight.
    """
    keep, sizes = len(codes), np.array(codes.shape[1:])
    low, frac = np.zeros(3, np.int64), np.zeros(3, np.int64)
    found = np.zeros(8 * keep * len(points) + 1, np.int16)
    scores = np.zeros(8 * keep * len(points) + 1, np.int64)
    unit = ONE**3 * len(points)
    for i in range(start, start + out_codes.shape[1]):
        for j in range(out_codes.shape[2]):
            for k in range(out_codes.shape[3]):
                n_found = 0
                for p in range(len(points)):
                    u, v, w = i + points[p, 0], j + points[p, 1], k + points[p, 2]
                    if not _locate(matrix, shift, u, v, w, sizes, low, frac):
                        n_found = _add(found, scores, n_found, np.int16(0), 255 * ONE**3)
                        continue
                    for number in range(8):
                        x0, x1, x2, weight = _corner(low, frac, sizes, number)
                        for rank in range(keep):
                            part = weight * weights[rank, x0, x1, x2]
                            if part:
                                n_found = _add(
                                    found, scores, n_found, codes[rank, x0, x1, x2], part
                                )
                even = (i + j + k) % 2 == 0
                for rank in range(keep):
                    best = _best(found, scores, n_found, even) if n_found else 0
                    part = (2 * scores[best] + unit) // (2 * unit) if n_found else 0
                    named = n_found > 0 and (part > 0 or (rank == 0 and scores[best] > 0))
                    out_codes[rank, i - start, j, k] = found[best] if named else 0
                    out_weights[rank, i - start, j, k] = part
                    scores[best] = 0


def gather(codes, weights, matrix, shift, points, start, shape):
    """What every target voxel of some planes sees: labels and their exact weights.

    Parameters
    ----------
    codes : (k, X, Y, Z) int16
    weights : (k, X, Y, Z) uint8 or None
        None means weight 1 for ``k = 1``.
    shape : (planes, Y', Z')

    Returns
    -------
    seen, parts : (n, planes * Y' * Z') int16, int64
    """
    sizes = np.array(codes.shape[1:])
    index = np.indices(shape).reshape(3, -1)
    index[0] += start
    full = ONE**3 if weights is None else 255 * ONE**3
    seen, parts = [], []
    for point in points:
        # The same order of additions as in the compiled loop, so that rounding is the same.
        u, v, w = (index[a] + point[a] for a in range(3))
        place = [m[0] * u + m[1] * v + m[2] * w + s for m, s in zip(matrix, shift, strict=True)]
        x = np.rint(ONE * np.stack(place)).astype(np.int64)
        inside = ((x >= -HALF) & (x <= sizes[:, None] * ONE - HALF)).all(0)
        low, frac = x >> BITS, x & (ONE - 1)
        for number in range(8):
            step = np.array([number >> 2, number >> 1 & 1, number & 1])[:, None]
            weight = np.where(step, frac, ONE - frac).prod(0)
            at = tuple(np.clip(low + step, 0, sizes[:, None] - 1))
            for rank in range(len(codes)):
                part = weight if weights is None else weight * weights[rank][at]
                seen.append(np.where(inside, codes[rank][at], 0).astype(np.int16))
                whole = full if number == 0 and rank == 0 else 0
                parts.append(np.where(inside, part, whole))
    return np.stack(seen), np.stack(parts)


def rank_labels(seen, parts, even, keep):
    """The ``keep`` labels with the largest sums, ties as in the compiled loop.

    Parameters
    ----------
    seen, parts : (n, voxels) int16, int64
    even : (voxels,) bool

    Returns
    -------
    codes, sums : (keep, voxels) int16, int64
        Descending; code 0 where the sum is 0.
    """
    codes = np.zeros((keep, seen.shape[1]), np.int16)
    sums = np.zeros((keep, seen.shape[1]), np.int64)
    for code in np.unique(seen[parts > 0]):
        score = np.where(seen == code, parts, 0).sum(0)
        for rank in reversed(range(keep)):
            # Codes come in ascending order: of equals, the later one wins at odd voxels only.
            ahead = (score > sums[rank]) | ((score == sums[rank]) & (score > 0) & ~even)
            if rank + 1 < keep:
                codes[rank + 1][ahead] = codes[rank][ahead]
                sums[rank + 1][ahead] = sums[rank][ahead]
            codes[rank][ahead], sums[rank][ahead] = code, score[ahead]
    return codes, sums


def pull_labels_numpy(codes, matrix, shift, points, start, out):
    """As `pull_labels`, with numpy alone: only voxels that see several labels are worked on."""
    where = (codes[None], None, matrix, shift, points, start, out.shape)
    seen, parts = gather(*where)
    counted = np.where(parts > 0, seen, seen[parts.argmax(0), np.arange(seen.shape[1])])
    mixed = (counted != counted[0]).any(0)
    result = counted[0]
    even = parity(start, out.shape)
    best, _ = rank_labels(seen[:, mixed], parts[:, mixed], even[mixed], 1)
    result[mixed] = best[0]
    out[...] = result.reshape(out.shape)


def pull_membership_numpy(codes, weights, matrix, shift, points, start, out_codes, out_weights):
    """As `pull_membership`, with numpy alone."""
    seen, parts = gather(codes, weights, matrix, shift, points, start, out_codes.shape[1:])
    even = parity(start, out_codes.shape[1:])
    best, sums = rank_labels(seen, parts, even, len(codes))
    unit = ONE**3 * len(points)
    rounded = (2 * sums + unit) // (2 * unit)
    best[1:][rounded[1:] == 0] = 0
    out_codes[...] = best.reshape(out_codes.shape)
    out_weights[...] = rounded.reshape(out_weights.shape)


def parity(start, shape):
    """Whether the sum of the target indices is even, (planes * Y' * Z',) bool."""
    index = np.indices(shape, sparse=True)
    return ((index[0] + index[1] + index[2] + start) % 2 == 0).ravel()
