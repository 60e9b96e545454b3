# SPDX-License-Identifier: Apache-2.0
"""Topology of labels: connected components and Euler numbers."""

from __future__ import annotations

from typing import Final

import cc3d
import numpy as np

from brainseg_bids.anatomy.labels import count_codes
from brainseg_bids.anatomy.upsample_kernels import jit

CONNECTIVITY: Final = 26
"""Connectivity of the foreground: voxels that share a face, edge or corner. The background is then
6-connected."""


def components(mask: np.ndarray) -> int:
    """Number of 26-connected components of a mask, (X, Y, Z) bool.

    Examples
    --------
    >>> components(np.eye(3, dtype=bool)[..., None]), components(np.zeros((2, 2, 2), bool))
    (1, 0)
    """
    if not mask.any():
        return 0
    return int(cc3d.connected_components(mask, connectivity=CONNECTIVITY, return_N=True)[1])


def euler_numbers(codes: np.ndarray) -> dict[int, int]:
    """Euler number of each label with 26-connectivity: components + cavities - tunnels.

    Parameters
    ----------
    codes : (X, Y, Z) int
        Between 0 and 32767.

    Examples
    --------
    >>> ring = np.ones((3, 3, 1), int); ring[1, 1] = 0
    >>> euler_numbers(ring)
    {0: 1, 1: 0}
    """
    present = sorted(count_codes(codes))
    totals = np.zeros(max(present) + 1, np.int64)
    _euler(np.ascontiguousarray(codes, dtype=np.int16), totals)
    return {code: int(totals[code]) for code in present}


@jit
def _euler(codes: np.ndarray, totals: np.ndarray) -> None:
    """Add vertices - edges + faces - voxels of each label to ``totals``."""
    around = np.empty(8, np.int16)
    sizes = codes.shape
    for x in range(sizes[0] + 1):
        for y in range(sizes[1] + 1):
            for z in range(sizes[2] + 1):
                if 0 < x < sizes[0] and 0 < y < sizes[1] and 0 < z < sizes[2]:
                    first, whole = codes[x, y, z], True
                    for n in range(1, 8):
                        whole &= codes[x - (n >> 2), y - ((n >> 1) & 1), z - (n & 1)] == first
                    if whole:  # 1 vertex - 3 edges + 3 faces - 1 voxel
                        continue
                for n in range(8):
                    a, b, c = x - (n >> 2), y - ((n >> 1) & 1), z - (n & 1)
                    outside = a < 0 or b < 0 or c < 0
                    outside = outside or a >= sizes[0] or b >= sizes[1] or c >= sizes[2]
                    around[n] = -1 if outside else codes[a, b, c]
                # Cells whose lowest corner is this vertex: those that leave out some directions.
                for free in range(8):
                    sign = 1
                    for bit in range(3):
                        if (free >> bit) & 1:
                            sign = -sign
                    for n in range(8):
                        if n & free or around[n] < 0:
                            continue
                        new = True
                        for m in range(n):
                            new &= bool(m & free) or around[m] != around[n]
                        if new:
                            totals[around[n]] += sign
