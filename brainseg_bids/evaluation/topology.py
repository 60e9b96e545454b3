# SPDX-License-Identifier: Apache-2.0
"""Topology of structures: connected components and Euler numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from brainseg_bids.anatomy.topology import components, euler_numbers
from brainseg_bids.evaluation.overlap import Tally
from brainseg_bids.evaluation.structures import Pair, Structure


@dataclass(frozen=True)
class Topology:
    """Topology of one structure in one map.

    Parameters
    ----------
    components : int
        Number of 26-connected components; 0 if the structure is absent.
    euler : int
        Euler number with 26-connectivity: components + cavities - tunnels.
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
        As for `surface_search.Batch`.
    which : {"reference", "prediction"}

    Notes
    -----
    Values are defined as in the upsampling quality report, `anatomy.upsampling_report`. For groups
    they are those of the union of labels.
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
