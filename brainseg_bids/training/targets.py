# SPDX-License-Identifier: Apache-2.0
"""What is learned from label maps: the table of their codes, and tables that these lead to."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources

from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.documents import InputError

SOURCE = "fullhead"
"""Table whose codes label maps have."""


@dataclass(frozen=True)
class MapFacts:
    """What was learned by reading a label map.

    Parameters
    ----------
    digest : str
        `brainseg_bids.images.voxel_hash`.
    codes : frozenset of int
        Of ``fullhead``, those that voxels have.
    """

    digest: str
    codes: frozenset[int]


def find_target(name: str) -> LabelTable:
    """Table of the labels that a model is to learn.

    Raises
    ------
    InputError
        If there is no way from ``fullhead`` to it; the message lists the known ones.

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
    """Labels that are to be learned but that no map has.

    >>> absent_labels([MapFacts("", frozenset({0, 2, 3, 4}))], LabelTable.packaged("brainseg"))[:2]
    ('Left-Inf-Lat-Vent', 'Left-Cerebellum-White-Matter')
    """
    crosswalk = Crosswalk.packaged(SOURCE, target.name)
    there = {crosswalk.pairs[code] for one in facts for code in one.codes}
    return tuple(label.name for label in target if label.index and label.index not in there)
