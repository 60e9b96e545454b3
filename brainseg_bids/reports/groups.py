# SPDX-License-Identifier: Apache-2.0
"""How structures are grouped and named for the eye."""

from __future__ import annotations

import re
from functools import cache

from brainseg_bids.anatomy.labels import BRAIN_MAPPINGS, Label, LabelTable

BRAIN, CSF, HEAD, OTHER = "Brain", "CSF", "Head", "Other"
GROUPS = (BRAIN, CSF, HEAD, OTHER)

_CSF_MAPPING = 3
_SIDE = re.compile(r"(?i)(?<![a-z])(left|right|lh|rh)(?![a-z])[-_ ]?")


def group_of_mapping(mapping: int) -> str:
    """Anatomical group of a code of the BIDS standard label table.

    >>> [group_of_mapping(code) for code in (8, 3, 4, 0)]
    ['Brain', 'CSF', 'Head', 'Other']
    """
    if mapping == _CSF_MAPPING:
        return CSF
    if mapping in BRAIN_MAPPINGS:
        return BRAIN
    return HEAD if mapping in (4, 5, 6) else OTHER


def shown_labels(table: LabelTable) -> list[Label]:
    """Labels that are drawn: all but code 0 and what the table maps to background.

    A table without any mapping (the column is optional in BIDS) shows all but code 0.
    """
    has_mapping = any(label.mapping for label in table)
    return [label for label in table if label.index and (label.mapping or not has_mapping)]


def plain_name(name: str) -> str:
    """Name without its side, and with spaces.

    >>> plain_name("Left-Cerebral-White-Matter"), plain_name("ctx-rh-insula")
    ('Cerebral White Matter', 'ctx insula')
    """
    return re.sub(r"[-_ ]+", " ", _SIDE.sub("", name)).strip() or name


def group_of_row(row: dict) -> str:
    """Group of a row of a volumes table: by its ``mapping``, else by a packaged table's name."""
    if row.get("mapping") not in (None, "", "n/a"):
        return group_of_mapping(int(row["mapping"]))
    return group_of_mapping(_packaged_mappings().get(str(row["name"]), 0))


@cache
def _packaged_mappings() -> dict[str, int]:
    tables = [LabelTable.packaged(name) for name in ("fullhead", "tissue", "brainseg")]
    return {label.name: label.mapping for table in tables for label in table}
