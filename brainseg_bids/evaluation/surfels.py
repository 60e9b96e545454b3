# SPDX-License-Identifier: Apache-2.0
"""Area of the surface between eight voxels, for each pattern of voxels inside and outside.

Marching cubes (Lorensen and Cline, Computer Graphics 21, 1987), with the surface halfway between
voxel centres, has 14 patterns up to rotation, reflection and exchange of inside and outside. The
areas are those of DeepMind's surface-distance (Nikolov et al., arXiv 1809.04430), which
triangulates some patterns differently.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations, product

import numpy as np

BITS = np.array([[[128, 64], [32, 16]], [[8, 4], [2, 1]]])
"""Value that each of 2 x 2 x 2 voxels adds to the code of a pattern."""
WHOLE = 255
"""Code of the pattern with all voxels inside."""

CASES = {  # voxels that are inside: area vectors of the facets, in 1/8 of a voxel's faces
    (0b00000001): [(1, 1, 1)],
    (0b00000011): [(2, 2, 0)] * 2,
    (0b00000110): [(1, -1, 1), (-1, -1, 1)],
    (0b00000111): [(4, 0, 0), (2, 2, 2), (1, 1, 1)],
    (0b00001111): [(4, 0, 0)] * 2,
    (0b00010110): [(-1, -1, 1), (1, -1, 1), (1, -1, -1)],
    (0b00010111): [(1, 1, 1), (2, 2, 2)] * 2,
    (0b00011000): [(-1, 1, 1), (1, -1, -1)],
    (0b00011001): [(0, 2, 2), (0, 2, 2), (-1, 1, 1)],
    (0b00011011): [(1, 1, 1), (3, 3, 3), (0, -2, 2), (-2, 0, 2)],
    (0b00011110): [(-4, 0, 0), (1, 1, 1), (2, 2, 2), (1, 1, 1)],
    (0b00111100): [(2, -2, 0)] * 4,
    (0b01101001): [(-1, 1, 1), (1, -1, 1), (-1, -1, 1), (1, 1, 1)],
}


def surfel_areas_mm2(axes_mm: np.ndarray) -> np.ndarray:
    """Area in mm² for each pattern of eight voxels.

    Parameters
    ----------
    axes_mm : (3, 3) float
        One column for each axis: the world vector of a step of one voxel. It may be sheared: area
        vectors are transformed by the cofactor matrix of ``axes_mm``.

    Returns
    -------
    (256,) float
        0 if none or all of the eight voxels are inside.

    Examples
    --------
    >>> areas = surfel_areas_mm2(np.diag([1.0, 2.0, 3.0]))
    >>> float(areas[15]), float(areas[0])  # a flat face across the first axis
    (6.0, 0.0)
    """
    cofactors = np.linalg.det(axes_mm) * np.linalg.inv(axes_mm).T
    areas = np.zeros(WHOLE + 1)
    for code, facets in CASES.items():
        for turned, vectors in _turned((code & BITS) > 0, np.array(facets) / 8):
            area = np.linalg.norm(vectors @ cofactors.T, axis=1).sum()
            inside = int(BITS[turned].sum())
            # The first way to reach a code counts; on sheared voxels others may differ a little.
            for reached in (inside, WHOLE - inside):
                areas[reached] = areas[reached] or area
    return areas


def _turned(inside: np.ndarray, vectors: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A neighbourhood and its area vectors in all 48 orientations."""
    for order, flips in product(permutations(range(3)), product((1, -1), repeat=3)):
        turned = inside.transpose(order)[tuple(slice(None, None, sign) for sign in flips)]
        yield turned, vectors[:, order] * flips
