# SPDX-License-Identifier: Apache-2.0
"""Rows of a volume table, grouped, named, ordered and paired for the eye."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
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


_COLOR = re.compile(r"#[0-9a-fA-F]{6}")


def anatomical(rows: list[dict]) -> list[dict]:
    """Rows without background, sorted by group; left and right of a structure are neighbours."""
    cleaned = [
        {
            **row,
            "index": int(row["index"]),
            "volume_mm3": float(row["volume_mm3"]),
            "hemisphere": str(row.get("hemisphere") or "none"),
            "color": row["color"] if _COLOR.fullmatch(str(row.get("color"))) else "#808080",
            "group": group_of_row(row),
        }
        for row in rows
        if int(row["index"]) != 0
    ]
    first: dict[tuple[str, str], int] = {}
    for row in cleaned:
        key = (row["group"], plain_name(str(row["name"])))
        first[key] = min(row["index"], first.get(key, row["index"]))
    return sorted(
        cleaned,
        key=lambda row: (
            GROUPS.index(row["group"]),
            first[row["group"], plain_name(str(row["name"]))],
            row["hemisphere"],
            row["index"],
        ),
    )


def grouped(rows: list[dict]) -> list[dict]:
    """Rows from `anatomical` by group: ``name``, ``rows`` and ``total_mm3`` of each."""
    groups = []
    for name in GROUPS:
        members = [row for row in rows if row["group"] == name]
        if members:
            total = math.fsum(row["volume_mm3"] for row in members)
            groups.append({"name": name, "rows": members, "total_mm3": total})
    return groups


@dataclass(frozen=True)
class Asymmetry:
    """One structure on both sides.

    Parameters
    ----------
    name : str
        Without the side.
    group : str
    left_mm3, right_mm3 : float or None
        None where the table has no row for that side.
    percent : float or None
        ``100 (L - R) / ((L + R) / 2)``: positive where the left is larger, ±200 where one side
        is empty; None where a side is missing or both are empty.
    """

    name: str
    group: str
    left_mm3: float | None
    right_mm3: float | None
    percent: float | None


def asymmetries(rows: list[dict]) -> list[Asymmetry]:
    """Pair left and right rows that share a name but for the side, in anatomical order.

    >>> rows = [{"index": 10, "name": "Left-Thalamus", "hemisphere": "left", "volume_mm3": 110},
    ...     {"index": 49, "name": "Right-Thalamus", "hemisphere": "right", "volume_mm3": 90}]
    >>> asymmetries(rows)
    [Asymmetry(name='Thalamus', group='Brain', left_mm3=110.0, right_mm3=90.0, percent=20.0)]
    """
    pairs: dict[tuple[str, str], dict[str, float]] = {}
    for row in anatomical(rows):
        if row["hemisphere"] in ("left", "right"):
            pair = pairs.setdefault((plain_name(str(row["name"])), group_of_row(row)), {})
            pair[row["hemisphere"]] = float(row["volume_mm3"])
    found = []
    for (name, group), pair in pairs.items():
        left, right = pair.get("left"), pair.get("right")
        percent = None
        if left is not None and right is not None and left + right > 0:
            percent = 100 * (left - right) / ((left + right) / 2)
        found.append(Asymmetry(name, group, left, right, percent))
    return found


def widest_percent(pairs: list[Asymmetry]) -> float:
    """One bar scale for all pairs; 20 % at least, so that small differences look small."""
    return max([20.0, *(abs(pair.percent) for pair in pairs if pair.percent is not None)])
