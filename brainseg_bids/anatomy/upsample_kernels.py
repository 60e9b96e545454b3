# SPDX-License-Identifier: Apache-2.0
"""Compiled interpolation of labels at arbitrary positions, for grids rotated to each other.

Positions are rounded to 1/4096 of a source voxel and weights are whole numbers, so that sums are
exact. The result depends neither on the order of axes nor on the number of threads, and is
identical to that of the engine for GPUs (`inference.upsample_device`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

BITS = 12
ONE = 1 << BITS
"""Fixed-point value of weight 1 along an axis, and of a step of one source voxel."""
HALF = ONE // 2
CERTAIN = 255


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Function compiled with numba, without the GIL, and cached on disk if that is possible."""
    try:
        compiled = numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # no folder that can be written to, as in a read-only container
        return numba.njit(nogil=True)(function)
    if cache := getattr(compiled, "_cache", None):
        cache.load_overload = _if_possible(cache.load_overload)
        cache.save_overload = _if_possible(cache.save_overload)
    return compiled


def _if_possible(use_cache: Callable[..., Any]) -> Callable[..., Any]:
    """As ``use_cache``, but a disk that is full or gone only leaves the function uncached."""

    def use_or_not(*arguments: Any) -> Any:
        try:
            return use_cache(*arguments)
        except OSError:
            return None

    return use_or_not


def is_compiled(function: Callable[..., Any]) -> bool:
    """Whether a function of `jit` is compiled, or was read from the cache, in this process."""
    return bool(getattr(function, "signatures", True))


def weight_table(profile: Callable[[np.ndarray], np.ndarray], reach: int) -> np.ndarray:
    """Fixed-point weights of the source voxels around a position, for 4096 fractions of a voxel.

    Parameters
    ----------
    profile : function of distance in source voxels
    reach : int
        Number of source voxels on each side of the position.

    Returns
    -------
    (4096, 2 * reach) int64
        Each row sums to 4096.

    Examples
    --------
    >>> weight_table(lambda distance: np.maximum(0, 1 - abs(distance)), 1)[1024].tolist()
    [3072, 1024]
    """
    fractions = np.arange(ONE) / ONE
    values = profile(np.abs(fractions[:, None] - np.arange(1 - reach, reach + 1)))
    values = values / values.sum(1, keepdims=True)
    weights = np.rint(values * ONE).astype(np.int64)
    weights[np.arange(ONE), values.argmax(1)] += ONE - weights.sum(1)
    return weights


@jit
def _locate(matrix: np.ndarray, shift: np.ndarray, i: float, j: float, k: float, sizes: np.ndarray,
            low: np.ndarray, frac: np.ndarray) -> bool:  # fmt: skip
    """Fill the voxel below a target position and the fractions; whether it is inside."""
    inside = True
    for a in range(3):
        place = matrix[a, 0] * i + matrix[a, 1] * j + matrix[a, 2] * k + shift[a]
        x = np.int64(np.rint(ONE * place))
        inside = inside and -HALF <= x <= sizes[a] * ONE - HALF
        low[a] = x >> BITS
        frac[a] = x & (ONE - 1)
    return inside


@jit
def _clamp(x: int, size: int) -> int:
    return min(max(x, 0), size - 1)


@jit
def _add(found: np.ndarray, scores: np.ndarray, n_found: int, code: int, weight: int) -> int:
    """Add to a code's score; the number of codes seen so far."""
    for n in range(n_found):
        if found[n] == code:
            scores[n] += weight
            return n_found
    found[n_found] = code
    scores[n_found] = weight
    return n_found + 1


@jit
def _best(found: np.ndarray, scores: np.ndarray, n_found: int, even: bool) -> int:
    """Which score is the largest; of equals the lowest code at even voxels, else the highest."""
    best = 0
    for n in range(1, n_found):
        if scores[n] > scores[best] or (
            scores[n] == scores[best] and (found[n] < found[best]) == even
        ):
            best = n
    return best


@jit
def _agreed(
    codes: np.ndarray, weights: np.ndarray, soft: bool, low: np.ndarray, sizes: np.ndarray
) -> bool:
    """Whether the eight voxels around a place have one label for certain."""
    first = np.int16(0)
    for number in range(8):
        x = _clamp(low[0] + (number >> 2), sizes[0])
        y = _clamp(low[1] + ((number >> 1) & 1), sizes[1])
        z = _clamp(low[2] + (number & 1), sizes[2])
        code = codes[0, x, y, z]
        if number == 0:
            first = code
        if code != first or (soft and weights[0, x, y, z] != CERTAIN):
            return False
    return True


@jit
def _gather(codes: np.ndarray, weights: np.ndarray, soft: bool, tables: np.ndarray,
            low: np.ndarray, frac: np.ndarray, sizes: np.ndarray, found: np.ndarray,
            scores: np.ndarray, n_found: int) -> int:  # fmt: skip
    """Add the weights of all voxels around a place to the scores of their labels."""
    taps = tables.shape[2]
    below = taps // 2 - 1
    for a in range(taps):
        wa = tables[0, frac[0], a]
        x = _clamp(low[0] + a - below, sizes[0])
        for b in range(taps if wa else 0):
            wb = wa * tables[1, frac[1], b]
            y = _clamp(low[1] + b - below, sizes[1])
            for c in range(taps if wb else 0):
                weight = wb * tables[2, frac[2], c]
                z = _clamp(low[2] + c - below, sizes[2])
                if weight == 0:
                    continue
                if not soft:
                    n_found = _add(found, scores, n_found, codes[0, x, y, z], weight)
                    continue
                for nth in range(len(codes)):
                    part = weight * weights[nth, x, y, z]
                    if part:
                        n_found = _add(found, scores, n_found, codes[nth, x, y, z], part)
    return n_found


@jit
def resample(codes: np.ndarray, weights: np.ndarray, soft: bool, tables: np.ndarray, sure: bool,
             matrix: np.ndarray, shift: np.ndarray, points: np.ndarray, start: int,
             out_codes: np.ndarray, out_weights: np.ndarray) -> None:  # fmt: skip
    """Compute the most probable labels of some planes of the target.

    Parameters
    ----------
    codes : (k, X, Y, Z) int16
    weights : (k, X, Y, Z) uint8, or (1, 1, 1, 1) if not ``soft``
        Probability times 255.
    soft : bool
        Whether there are probabilities. Otherwise ``k`` is 1 and all probabilities are 1.
    tables : (3, 4096, taps) int64
        `weight_table` of each source axis.
    sure : bool
        Whether a position takes the label of the eight source voxels around it if these agree.
    matrix, shift : (3, 3), (3,) float
        Map target indices to source indices.
    points : (n, 3) float
        Positions within a target voxel at which the source is interpolated, in target voxels
        relative to the centre.
    start : int
        Target index of the first plane.
    out_codes, out_weights : (m, planes, Y', Z') int16, uint8
        Changed in place: the m most probable labels in descending order.
    """
    sizes = np.array(codes.shape[1:])
    low, frac = np.zeros(3, np.int64), np.zeros(3, np.int64)
    room = len(codes) * tables.shape[2] ** 3 * len(points) + 1
    found, scores = np.zeros(room, np.int16), np.zeros(room, np.int64)
    unit = ONE**3 * len(points)
    certain = np.int64(CERTAIN if soft else 1) * ONE**3
    scale = 1 if soft else CERTAIN
    for i in range(start, start + out_codes.shape[1]):
        for j in range(out_codes.shape[2]):
            for k in range(out_codes.shape[3]):
                n_found = 0
                for p in range(len(points)):
                    u, v, w = i + points[p, 0], j + points[p, 1], k + points[p, 2]
                    if not _locate(matrix, shift, u, v, w, sizes, low, frac):
                        n_found = _add(found, scores, n_found, np.int16(0), certain)
                    elif sure and _agreed(codes, weights, soft, low, sizes):
                        x, y, z = low
                        code = codes[
                            0, _clamp(x, sizes[0]), _clamp(y, sizes[1]), _clamp(z, sizes[2])
                        ]
                        n_found = _add(found, scores, n_found, code, certain)
                    else:
                        n_found = _gather(
                            codes, weights, soft, tables, low, frac, sizes, found, scores, n_found
                        )
                even = (i + j + k) % 2 == 0
                for nth in range(len(out_codes)):
                    best = _best(found, scores, n_found, even) if n_found else 0
                    score = max(0, scores[best]) * scale if n_found else 0
                    part = min(CERTAIN, (2 * score + unit) // (2 * unit))
                    named = n_found > 0 and (part > 0 or (nth == 0 and score > 0))
                    out_codes[nth, i - start, j, k] = found[best] if named else 0
                    out_weights[nth, i - start, j, k] = part
                    scores[best] = 0
