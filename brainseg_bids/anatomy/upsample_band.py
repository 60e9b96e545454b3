# SPDX-License-Identifier: Apache-2.0
"""Upsampling of labels if the axes are parallel: only voxels near a boundary are interpolated.

Each source voxel owns the target voxels whose centres lie in it. If all labels around it are
equal, they get this label. Otherwise every label around it gets a score in each of them,

    score(label) = sum of wx * wy * wz over the source voxels that have the label,

and the label with the highest score is taken. No one-hot volume is needed: sixteen columns of
voxels along the last axis are processed at a time, with the labels that occur there. Weights are
whole numbers, so that sums are exact.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from brainseg_bids.anatomy.upsample_axis import Sides
from brainseg_bids.anatomy.upsample_kernels import jit

WIDTH = 16
"""Columns that are processed at a time: one AVX-512 register of 32-bit numbers, so that loops are
unrolled."""
MAX_REACH = 7
"""Largest radius of a kernel in source voxels: more leaves no target voxel of sixteen columns."""
FREE, THIN, ALL = 0, 1, 2
"""Source voxels that keep the majority of their target voxels: none, thin ones, all."""


class Work(NamedTuple):
    """Buffers of one thread, reused for every sixteen columns.

    Lanes are the target indices of the first two axes that belong to one source row; ``g`` stands
    for a lane and a target index of the last axis.
    """

    across: np.ndarray
    columns: np.ndarray
    tile: np.ndarray
    mixed: np.ndarray
    seen: np.ndarray
    found: np.ndarray
    along: np.ndarray
    score: np.ndarray
    best: np.ndarray
    rest: np.ndarray
    mine: np.ndarray
    label: np.ndarray
    odd: np.ndarray
    codes: np.ndarray
    margins: np.ndarray


@jit
def _box_range(plane: np.ndarray, offset: int, width: int, low: np.ndarray, high: np.ndarray,
               row_low: np.ndarray, row_high: np.ndarray) -> None:  # fmt: skip
    """Smallest and largest code in the square around each voxel of a plane."""
    n_y, n_z = low.shape
    for y in range(plane.shape[0]):
        a, b = row_low[y], row_high[y]
        row = plane[y, offset : offset + n_z]
        for z in range(n_z):
            a[z] = row[z]
            b[z] = row[z]
        for t in range(1, width):
            row = plane[y, offset + t : offset + t + n_z]
            for z in range(n_z):
                a[z] = min(a[z], row[z])
                b[z] = max(b[z], row[z])
    for y in range(n_y):
        a, b = low[y], high[y]
        c, d = row_low[y + offset], row_high[y + offset]
        for z in range(n_z):
            a[z] = c[z]
            b[z] = d[z]
        for t in range(1, width):
            c, d = row_low[y + offset + t], row_high[y + offset + t]
            for z in range(n_z):
                a[z] = min(a[z], c[z])
                b[z] = max(b[z], d[z])


@jit
def _see(padded: np.ndarray, s: int, y: int, z: int, taps: int, work: Work) -> tuple[int, int]:
    """Copy sixteen columns: rows with several labels to ``tile``; labels to ``found``."""
    tile, mixed, seen, found = work.tile, work.mixed, work.seen, work.found
    reach = taps // 2
    own = padded[s + reach, y + reach, z + reach]
    found[0] = own
    seen[own] = 1
    n_found, n_mixed = 1, 0
    for a in range(taps):
        for b in range(taps):
            differs = np.int16(0)
            row = padded[s + a, y + b, z : z + WIDTH]
            for t in range(WIDTH):
                code = row[t]
                tile[n_mixed, t] = code
                differs |= code ^ own
            if differs == 0:
                continue
            mixed[n_mixed] = a * taps + b
            for t in range(WIDTH):
                code = tile[n_mixed, t]
                if seen[code] == 0:
                    seen[code] = 1
                    found[n_found] = code
                    n_found += 1
            n_mixed += 1
    for n in range(n_found):
        seen[found[n]] = 0
    return n_found, n_mixed


@jit
def _columns(tile: np.ndarray, mixed: np.ndarray, n_mixed: int, code: int, across: np.ndarray,
             n_fours: int, columns: np.ndarray) -> None:  # fmt: skip
    """Sum of wx * wy over the voxels with a label in each column, for four lanes at a time."""
    for p in range(n_fours):
        for q in range(4):
            for z in range(WIDTH):
                columns[p, q, z] = 0
    for r in range(n_mixed):
        for p in range(n_fours):
            w = across[mixed[r], p]
            w0, w1, w2, w3 = w[0], w[1], w[2], w[3]
            for z in range(WIDTH):
                here = tile[r, z] == code
                columns[p, 0, z] += w0 if here else np.int32(0)
                columns[p, 1, z] += w1 if here else np.int32(0)
                columns[p, 2, z] += w2 if here else np.int32(0)
                columns[p, 3, z] += w3 if here else np.int32(0)


@jit
def _scores(along: np.ndarray, columns: np.ndarray, lane: int, score: np.ndarray) -> None:
    """Weighted sum along the last axis: the score of one label for one lane."""
    c = columns[lane // 4, lane % 4]
    if along.shape[0] == 3:
        for z in range(WIDTH):
            score[z] = np.int32(
                along[0, z] * c[z] + along[1, z] * c[z + 1] + along[2, z] * c[z + 2]
            )
    elif along.shape[0] == 5:
        for z in range(WIDTH):
            score[z] = np.int32(
                along[0, z] * c[z]
                + along[1, z] * c[z + 1]
                + along[2, z] * c[z + 2]
                + along[3, z] * c[z + 3]
                + along[4, z] * c[z + 4]
            )
    else:
        for z in range(WIDTH):
            score[z] = 0
        for t in range(along.shape[0]):
            for z in range(WIDTH):
                score[z] += along[t, z] * c[z + t]


@jit
def _challenge(g: int, score: np.ndarray, code: int, best: np.ndarray, label: np.ndarray,
               rest: np.ndarray, odd: np.ndarray) -> None:  # fmt: skip
    """Keep the better label; of equals the lowest code where ``odd`` is 0, else the highest."""
    for z in range(WIDTH):
        new, old, named = score[z], best[g, z], label[g, z]
        higher = (code > named) == (odd[g, z] != 0)
        better = (new > old) | ((new == old) & higher)
        rest[g, z] = rest[g, z] - new
        best[g, z] = max(new, old)
        label[g, z] = code if better else named


@jit
def _is_thin(padded: np.ndarray, x: int, y: int, z: int) -> bool:
    """Whether no 2x2x2 block of one label holds the voxel."""
    own = padded[x, y, z]
    for block in range(8):
        whole = True
        for corner in range(8):
            dx = (corner >> 2) - (block >> 2)
            dy = ((corner >> 1) & 1) - ((block >> 1) & 1)
            dz = (corner & 1) - (block & 1)
            if padded[x + dx, y + dy, z + dz] != own:
                whole = False
                break
        if whole:
            return False
    return True


@jit
def _hold(own: int, codes: np.ndarray, margins: np.ndarray, n: int) -> None:
    """Give an owner the nearest misses until no label has as many of its target voxels."""
    while True:
        n_own, n_other = 0, 0
        for a in range(n):
            same = 0
            for b in range(n):
                same += codes[a] == codes[b]
            if codes[a] == own:
                n_own = same
            else:
                n_other = max(n_other, same)
        if n_own > n_other:
            return
        nearest = -1
        for a in range(n):
            if codes[a] != own and (nearest < 0 or margins[a] < margins[nearest]):
                nearest = a
        codes[nearest] = own


@jit
def _keep(owned: np.ndarray, own: int, n_lanes: int, work: Work, at: int) -> None:
    """Let a source voxel keep the majority of what it owns, (owned x, y, z)."""
    codes, margins, best, mine = work.codes, work.margins, work.best, work.mine
    n = 0
    for i in range(owned.shape[0]):
        for j in range(owned.shape[1]):
            for k in range(owned.shape[2]):
                g = k * n_lanes + i * owned.shape[1] + j
                codes[n] = owned[i, j, k]
                margins[n] = best[g, at] - mine[g, at]
                n += 1
    _hold(own, codes, margins, n)
    n = 0
    for i in range(owned.shape[0]):
        for j in range(owned.shape[1]):
            for k in range(owned.shape[2]):
                owned[i, j, k] = codes[n]
                n += 1


@jit
def _flag_row(low: np.ndarray, high: np.ndarray, y: int, flag: np.ndarray) -> None:
    """Mark voxels of a row that have several labels around them."""
    for z in range(len(flag)):
        a, b = low[0, y, z], high[0, y, z]
        for t in range(1, low.shape[0]):
            a, b = min(a, low[t, y, z]), max(b, high[t, y, z])
        flag[z] = a != b


@jit
def _cross(wx: np.ndarray, wy: np.ndarray, across: np.ndarray) -> None:
    """Products of the weights of the first two axes, a lane for each pair of target indices."""
    taps, gy = wx.shape[1], wy.shape[0]
    for i in range(wx.shape[0]):
        for j in range(gy):
            lane = i * gy + j
            for a in range(taps):
                for b in range(taps):
                    across[a * taps + b, lane // 4, lane % 4] = wx[i, a] * wy[j, b]


@jit
def _start(n: int, total: int, best: np.ndarray, rest: np.ndarray, label: np.ndarray) -> None:
    """No label yet, and all of the score left."""
    for g in range(n):
        for t in range(WIDTH):
            best[g, t] = -2147483647
            rest[g, t] = total
            label[g, t] = 32767


@jit
def _duel(along: np.ndarray, columns: np.ndarray, n_lanes: int, total: int, found: np.ndarray,
          odd: np.ndarray, score: np.ndarray, best: np.ndarray,
          label: np.ndarray) -> None:  # fmt: skip
    """Two labels share the score: one of them needs to be summed."""
    own, other = np.int32(found[0]), np.int32(found[1])
    for g in range(n_lanes * len(along)):
        _scores(along[g // n_lanes], columns, g % n_lanes, score)
        for t in range(WIDTH):
            lead = 2 * score[t] - total
            wins = (lead > 0) | ((lead == 0) & ((other > own) == (odd[g, t] != 0)))
            label[g, t] = other if wins else own
            best[g, t] = score[t] if wins else total - score[t]


@jit
def _own_of_two(
    own_row: np.ndarray, n: int, label: np.ndarray, best: np.ndarray, mine: np.ndarray, total: int
) -> None:
    """Score of each voxel's own label, of two."""
    for g in range(n):
        for t in range(len(own_row)):
            mine[g, t] = best[g, t] if label[g, t] == own_row[t] else total - best[g, t]


@jit
def _own_score(
    own_row: np.ndarray, code: int, g: int, score: np.ndarray, mine: np.ndarray
) -> None:
    """Note the score where the label is the voxel's own."""
    for t in range(len(own_row)):
        if own_row[t] == code:
            mine[g, t] = score[t]


@jit
def _write(
    owned: np.ndarray, first_z: np.ndarray, z: int, end: int, most: int, label: np.ndarray
) -> None:
    """Labels of the sixteen columns to the target rows ``owned``, (owned x, y, Z')."""
    gy = owned.shape[1]
    n_lanes = owned.shape[0] * gy
    for k in range(most):
        for lane in range(n_lanes):
            row = owned[lane // gy, lane % gy]
            for t in range(end - z):
                if first_z[z + t] + k < first_z[z + t + 1]:
                    row[first_z[z + t] + k] = label[k * n_lanes + lane, t]


@jit
def _copy_rows(padded: np.ndarray, x: int, y: int, reach: int, first_z: np.ndarray,
               line: np.ndarray, owned: np.ndarray) -> None:  # fmt: skip
    """Every target voxel of a row gets its owner's label."""
    n_z = len(first_z) - 1
    for z in range(n_z):
        code = padded[x + reach, y + reach, z + reach]
        for k in range(first_z[z], first_z[z + 1]):
            line[k] = code
    low, high = first_z[0], first_z[n_z]
    for i in range(owned.shape[0]):
        for j in range(owned.shape[1]):
            owned[i, j, low:high] = line[low:high]


@jit
def _work(taps: int, most: int, lanes: int) -> Work:
    """Work space of one thread."""
    fours = (lanes + 3) // 4
    best = np.empty((most * lanes, WIDTH), np.int32)
    return Work(
        np.zeros((taps * taps, fours, 4), np.int32),
        np.zeros((fours, 4, 2 * WIDTH), np.int32),
        np.empty((taps * taps + 1, WIDTH), np.int16),
        np.empty(taps * taps + 1, np.int64),
        np.zeros(32768, np.uint8),
        np.empty(taps * taps * WIDTH + 1, np.int16),
        np.empty((most, taps, WIDTH), np.int32),
        np.empty(WIDTH, np.int32),
        best,
        np.empty_like(best),
        np.empty_like(best),
        np.empty_like(best),
        np.zeros((most * lanes, WIDTH), np.int32),
        np.empty(most * lanes, np.int16),
        np.empty(most * lanes, np.int32),
    )


@jit
def _set_along(wz: np.ndarray, z: int, along: np.ndarray) -> None:
    """Weights of the last axis, for the columns from ``z`` on."""
    for k in range(along.shape[0]):
        for a in range(along.shape[1]):
            for t in range(WIDTH):
                along[k, a, t] = wz[k, a, z + t]


@jit
def _set_odd(
    odd_x: np.ndarray, odd_y: np.ndarray, odd_z: np.ndarray, z: int, odd: np.ndarray
) -> None:
    """Whether the highest label wins a tie; odd_x and odd_y are of the owned target rows."""
    n_lanes = len(odd_x) * len(odd_y)
    for k in range(odd_z.shape[0]):
        for lane in range(n_lanes):
            turn = odd_x[lane // len(odd_y)] ^ odd_y[lane % len(odd_y)]
            for t in range(WIDTH):
                odd[k * n_lanes + lane, t] = turn ^ odd_z[k, z + t]


@jit
def _contest(work: Work, n_mixed: int, n_found: int, n_lanes: int, total: int, hold: int,
             own_row: np.ndarray) -> None:  # fmt: skip
    """The best label of each owned target voxel of sixteen columns, and its score."""
    n, n_fours = n_lanes * len(work.along), (n_lanes + 3) // 4
    tile, mixed, across, columns = work.tile, work.mixed, work.across, work.columns
    along, odd, score, best = work.along, work.odd, work.score, work.best
    rest, mine, label, found = work.rest, work.mine, work.label, work.found[:n_found]
    if n_found == 2:
        _columns(tile, mixed, n_mixed, found[1], across, n_fours, columns)
        _duel(along, columns, n_lanes, total, found, odd, score, best, label)
        if hold:
            _own_of_two(own_row, n, label, best, mine, total)
        return
    _start(n, total, best, rest, label)
    for code in found[1:]:
        _columns(tile, mixed, n_mixed, code, across, n_fours, columns)
        for g in range(n):
            _scores(along[g // n_lanes], columns, g % n_lanes, score)
            if hold:
                _own_score(own_row, code, g, score, mine)
            _challenge(g, score, np.int32(code), best, label, rest, odd)
    for g in range(n):
        for t in range(WIDTH):
            score[t] = rest[g, t]
        if hold:
            _own_score(own_row, found[0], g, score, mine)
        _challenge(g, score, np.int32(found[0]), best, label, rest, odd)


@jit
def _hold_columns(padded: np.ndarray, x: int, y: int, z: int, hold: int, flag: np.ndarray,
                  first_z: np.ndarray, owned: np.ndarray, own_row: np.ndarray,
                  work: Work) -> None:  # fmt: skip
    """Let source voxels of sixteen columns keep the majority of what they own."""
    reach = (padded.shape[2] - WIDTH - len(flag)) // 2
    n_lanes = owned.shape[0] * owned.shape[1]
    for t in range(len(own_row)):
        z0, z1 = first_z[z + t], first_z[z + t + 1]
        if flag[z + t] == 0 or z1 == z0:
            continue
        if hold == ALL or _is_thin(padded, x, y, z + t + reach):
            _keep(owned[:, :, z0:z1], own_row[t], n_lanes, work, t)


@jit
def _fill_row(padded: np.ndarray, x: int, y: int, one: int, hold: int, sides: Sides, ties: bool,
              flag: np.ndarray, work: Work, out: np.ndarray) -> None:  # fmt: skip
    """Target voxels owned by the flagged voxels of a source row."""
    along_x, along_y, along_z = sides
    x0, x1, y0, y1 = along_x.first[x], along_x.first[x + 1], along_y.first[y], along_y.first[y + 1]
    most, taps = along_z.weights.shape[:2]
    reach, n_z, owned, ready, z = taps // 2, len(flag), out[x0:x1, y0:y1], False, 0
    while z < n_z:
        if flag[z] == 0:
            z += 1
            continue
        if not ready:
            ready = True
            _cross(along_x.weights[x0:x1], along_y.weights[y0:y1], work.across)
        end = min(z + WIDTH - 2 * reach, n_z)
        own_row = padded[x + reach, y + reach, z + reach : end + reach]
        n_found, n_mixed = _see(padded, x, y, z, taps, work)
        _set_along(along_z.weights, z, work.along)
        if ties:
            odd_x, odd_y = along_x.midway[x0:x1], along_y.midway[y0:y1]
            _set_odd(odd_x, odd_y, along_z.midway, z, work.odd)
        _contest(work, n_mixed, n_found, (x1 - x0) * (y1 - y0), one**3, hold, own_row)
        _write(owned, along_z.first, z, end, most, work.label)
        if hold:
            at_x, at_y = x + reach, y + reach
            _hold_columns(padded, at_x, at_y, z, hold, flag, along_z.first, owned, own_row, work)
        z = end


@jit
def fill_planes(padded: np.ndarray, one: int, radius: int, hold: int, sides: Sides, start: int,
                stop: int, out: np.ndarray) -> None:  # fmt: skip
    """Compute the target voxels whose centres lie in the source planes ``start`` to ``stop - 1``.

    Parameters
    ----------
    padded : (X + 2 reach, Y + 2 reach, Z + 2 reach + 16) int16
        Source with its edges repeated.
    one : int
        Fixed-point value of weight 1, see `Axis`.
    radius : int
        From `sure_radius`.
    hold : {0, 1, 2}
        Source voxels that keep the majority of their target voxels: none, thin ones, all.
    sides : three of `Side`
    out : (X', Y', Z') int16
        Changed in place; other voxels keep their value.
    """
    along_x, along_y, along_z = sides
    first_x, first_y, first_z = along_x.first, along_y.first, along_z.first
    most, taps = along_z.weights.shape[:2]
    reach = taps // 2
    n_y, n_z = len(first_y) - 1, len(first_z) - 1
    width, offset = 2 * radius + 1, reach - radius
    low = np.empty((width, n_y, n_z), np.int16)
    high = np.empty((width, n_y, n_z), np.int16)
    row_low = np.empty((n_y + 2 * reach, n_z), np.int16)
    row_high = np.empty((n_y + 2 * reach, n_z), np.int16)
    flag, line = np.zeros(n_z, np.uint8), np.zeros(out.shape[2], np.int16)
    work = _work(taps, most, max(1, np.max(np.diff(first_x)) * np.max(np.diff(first_y))))
    ties = np.any(along_x.midway) or np.any(along_y.midway) or np.any(along_z.midway)
    for s in range(start - radius, stop + radius):
        at = (s + reach) % width
        _box_range(padded[s + reach], offset, width, low[at], high[at], row_low, row_high)
        x = s - radius
        if x < start or first_x[x + 1] == first_x[x]:
            continue
        for y in range(n_y):
            y0, y1 = first_y[y], first_y[y + 1]
            if y1 > y0:
                _copy_rows(
                    padded, x, y, reach, first_z, line, out[first_x[x] : first_x[x + 1], y0:y1]
                )
                _flag_row(low, high, y, flag)
                _fill_row(padded, x, y, one, hold, sides, ties, flag, work, out)
