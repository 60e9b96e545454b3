# SPDX-License-Identifier: Apache-2.0
"""In how many pieces a structure comes, and how many holes go through it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from brainseg_bids.anatomy.topology import components, euler_numbers
from brainseg_bids.evaluation.overlap import Tally
from brainseg_bids.evaluation.structures import Pair, Structure


@dataclass(frozen=True)
class Topology:
    """Shape of one structure in one map, as far as rubber sheets go.

    Parameters
    ----------
    components : int
        26-connected pieces; 0 if it is absent.
    euler : int
        Pieces + cavities - tunnels, voxels joined at corners too.
    """

    components: int
    euler: int


def topology(
    pair: Pair, tally: Tally, structures: Sequence[Structure], which: str
) -> list[Topology]:
    """Components and Euler number of each structure in one map of a pair.

    Parameters
    ----------
    pair, tally, structures
        As of `surface_search.Batch`.
    which : {"reference", "prediction"}

    Notes
    -----
    The same numbers as in the report on upsampling, `anatomy.upsampling_report`; for groups, of
    their union.
    """
    lookups = [
        pair.lookup(dict.fromkeys(structure.codes, 1), 0, np.uint8) for structure in structures
    ]
    result = []
    for structure, lookup in zip(structures, lookups, strict=True):
        inside = lookup[pair.part(which, tally.box([structure]))]
        euler = euler_numbers(inside).get(1, 0) if inside.size else 0
        result.append(Topology(components(inside.view(bool)), euler))
    return result
