# SPDX-License-Identifier: Apache-2.0
"""Label tables that a model can learn from label maps of ``fullhead``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources

from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.documents import InputError

SOURCE = "fullhead"
"""Label table of label maps for training."""


@dataclass(frozen=True)
class MapFacts:
    """Digest and codes of a label map.

    Parameters
    ----------
    digest : str
        `brainseg_bids.images.voxel_hash` of the map.
    codes : frozenset of int
        Codes of ``fullhead`` that are in the map.
    """

    digest: str
    codes: frozenset[int]


def find_target(name: str) -> LabelTable:
    """Label table of a model, by name.

    Raises
    ------
    InputError
        If there is no crosswalk from ``fullhead`` to it; the message lists the known tables.

    Examples
    --------
    >>> len(find_target("brainseg"))
    43
    """
    folder = resources.files("brainseg_bids") / "data" / "crosswalks"
    found = (re.fullmatch(rf"{SOURCE}_to_(.+)\.tsv", path.name) for path in folder.iterdir())
    known = sorted(match[1] for match in found if match)
    if name not in known:
        raise InputError(f"target_table = {name!r}: labels are {', '.join(known)}.")
    return LabelTable.packaged(name)


def absent_labels(facts: Iterable[MapFacts], target: LabelTable) -> tuple[str, ...]:
    """Names of the labels of ``target`` that no label map has.

    >>> absent_labels([MapFacts("", frozenset({0, 2, 3, 4}))], LabelTable.packaged("brainseg"))[:2]
    ('Left-Inf-Lat-Vent', 'Left-Cerebellum-White-Matter')
    """
    crosswalk = Crosswalk.packaged(SOURCE, target.name)
    there = {crosswalk.pairs[code] for one in facts for code in one.codes}
    return tuple(label.name for label in target if label.index and label.index not in there)
