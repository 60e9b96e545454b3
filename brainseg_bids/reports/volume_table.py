# SPDX-License-Identifier: Apache-2.0
"""Rows of a volume table: read, grouped, named, ordered and paired for the eye.

A row has ``index``, ``name``, ``hemisphere``, ``color`` and ``volume_mm3``; the background may be
among them and is left out. An optional ``mapping`` (code of the BIDS standard label table) groups
structures of tables that are not packaged. Rows may have ``percent_of_intracranial``; those of a
segmentation have ``soft_volume_mm3``, ``confidence`` and ``low_confidence`` as well.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.documents import InputError
from brainseg_bids.reports.groups import GROUPS, group_of_row, plain_name


def read_volumes(path: Path, output_dir: Path, segmentation: str) -> list[dict]:
    """Rows of a volume table with the colours of the label table ``seg-SEGMENTATION``.

    The row of the inside of the skull is left out; see `read_intracranial`.

    Raises
    ------
    InputError
        If it is no volume table.
    """
    table = LabelTable.read(output_dir / f"seg-{segmentation}_dseg.tsv", name=segmentation)
    rows = [row for row in _lines(path) if row.get("index") != "n/a"]
    try:
        for row in rows:
            label = table[int(row["index"])]
            row["index"], row["volume_mm3"] = int(row["index"]), float(row["volume_mm3"])
            row["color"], row["mapping"] = label.color, label.mapping
            for column in OPTIONAL & row.keys():
                row[column] = _number(row[column])
    except (KeyError, TypeError, ValueError) as error:
        raise _no_table(path, error) from error
    if not rows:
        raise _no_table(path, "it has no rows")
    return rows


def read_intracranial(path: Path) -> dict | None:
    """Row of the inside of the skull, None if the table has none (of an earlier version).

    ``volume_mm3`` and ``soft_volume_mm3`` are numbers, or None if ``note`` says why not.

    Raises
    ------
    InputError
        If that row is damaged.
    """
    row = next((row for row in _lines(path) if row.get("index") == "n/a"), None)
    if row is None:
        return None
    try:
        return {
            "volume_mm3": _number(row["volume_mm3"]),
            "soft_volume_mm3": _number(row.get("soft_volume_mm3", "n/a")),
            "note": "" if row["note"] == "n/a" else str(row["note"]),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise _no_table(path, error) from error


def _no_table(path: Path, why: object) -> InputError:
    return InputError(
        f"{path}: this is not a volumes table of this derivative ({why}). Remove it and run again."
    )


def _lines(path: Path) -> list[dict]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def _number(cell: str) -> float | None:
    return None if cell == "n/a" else float(cell)


OPTIONAL = {"percent_of_intracranial", "soft_volume_mm3", "confidence"}
"""Columns of numbers that a table may lack."""
_COLOR = re.compile(r"#[0-9a-fA-F]{6}")


def anatomical(rows: Sequence[dict]) -> list[dict]:
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


def totals_mm3(rows: Sequence[dict]) -> dict[str, float]:
    """Volume of each group that has rows."""
    volumes: dict[str, list[float]] = {}
    for row in anatomical(rows):
        volumes.setdefault(row["group"], []).append(row["volume_mm3"])
    return {name: math.fsum(found) for name, found in volumes.items()}


def low_confidence(rows: Sequence[dict]) -> str:
    """How many structures are flagged; empty if the table does not say.

    >>> low_confidence([{"low_confidence": flag} for flag in ("yes", "no", "n/a")])
    '1 of 2 structures'
    """
    flags = [row.get("low_confidence") for row in rows]
    known = flags.count("yes") + flags.count("no")
    return f"{flags.count('yes') or 'none'} of {known} structures" if known else ""


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


def asymmetries(rows: Sequence[dict]) -> list[Asymmetry]:
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
