# SPDX-License-Identifier: Apache-2.0
"""``Cohort``: missing labels and outlying volumes in the label maps of many heads.

Label maps of many heads need not have the same labels: only some heads have a lesion or a cavum.
``data/labels/presence.tsv`` lists the structures that every head has. Heads that lack one of
them, and outliers, are reported; no head is excluded.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from brainseg_bids.anatomy.labels import LabelTable

OUTLIER_Z = 3.5
"""Modified z-score beyond which a volume is an outlier (Iglewicz and Hoaglin 1993, *How to Detect
and Handle Outliers*)."""
FEWEST = 5
"""Number of heads with a label below which no outliers are reported."""

KINDS = ("core", "optional", "background")


def robust_z(values: np.ndarray) -> np.ndarray:
    """Modified z-score of each value, (n,) float (Iglewicz and Hoaglin 1993).

    ``0.6745 (x - median) / MAD``. If more than half of the values are equal, the MAD is zero and
    the mean absolute deviation is used instead: ``(x - median) / (1.2533 meanAD)``.

    >>> robust_z(np.array([1.0, 2, 3, 4, 100])).round(2).tolist()
    [-1.35, -0.67, 0.0, 0.67, 65.43]
    """
    values = np.asarray(values, dtype=float)
    apart = values - np.median(values)
    scale = np.median(np.abs(apart)) / 0.6745
    if scale == 0:
        scale = 1.2533 * np.abs(apart).mean()
    return apart / scale if scale > 0 else np.zeros_like(values)


@dataclass(frozen=True)
class Structure:
    """A structure that a head has or may lack, with the codes that stand for it.

    Parameters
    ----------
    name : str
        Name of the label, or of the group of labels: some tools label bone as 165, others as 515
        and 516.
    codes : tuple of int
        The structure is present if any of these codes is.
    core : bool
        Whether every head has it.
    reason : str
        Why it may be absent, or which code stands for it instead.
    """

    name: str
    codes: tuple[int, ...]
    core: bool
    reason: str


@dataclass(frozen=True)
class Presence:
    """The subjects that have a structure, and those that lack it.

    Parameters
    ----------
    structure : Structure
    has, lacks : tuple of str
        Subjects, in the order of the cohort.
    by_code : dict of int to int
        Number of subjects that have each of the structure's codes.
    """

    structure: Structure
    has: tuple[str, ...]
    lacks: tuple[str, ...]
    by_code: dict[int, int]


@dataclass(frozen=True)
class Outlier:
    """A volume that is far from those of the other heads.

    Parameters
    ----------
    subject, name : str
        Name is that of the label.
    code : int
    volume_mm3, median_mm3 : float
    z : float
        See `robust_z`.
    """

    subject: str
    name: str
    code: int
    volume_mm3: float
    median_mm3: float
    z: float


@dataclass(frozen=True)
class Cohort:
    """Label volumes of many heads, with missing structures and outliers; see `of`.

    Parameters
    ----------
    table : LabelTable
    volumes_mm3 : dict of str to dict of int to float
        Volume by subject and code, without labels that are absent.
    presence : tuple of Presence
        One for each structure of ``table``, ordered by lowest code.
    outliers : tuple of Outlier
        Most extreme first.
    z : dict of str to dict of int to float
        Modified z-score by subject and code, among the heads that have the label. Labels that
        fewer than `FEWEST` heads have are left out.
    unusable : dict of str to tuple of str
        By subject, messages about volumes that could not be used.
    """

    table: LabelTable
    volumes_mm3: dict[str, dict[int, float]]
    presence: tuple[Presence, ...]
    outliers: tuple[Outlier, ...]
    z: dict[str, dict[int, float]]
    unusable: dict[str, tuple[str, ...]]

    @classmethod
    def of(
        cls, volumes_mm3: Mapping[str, Mapping[Any, Any]], table: LabelTable | None = None
    ) -> Cohort:
        """Cohort with missing structures and outliers, from the volumes of each head.

        Parameters
        ----------
        volumes_mm3 : dict of str to dict of int to float
            Volume by subject (or image) and code, as from `LabelMap.volumes_mm3`; zero is absent.
            What is no code or no volume goes to ``unusable``.
        table : LabelTable, optional
            Table of the codes; default: ``fullhead``.

        Raises
        ------
        ValueError
            If ``presence.tsv`` has no line for a label of ``table``.

        Examples
        --------
        >>> table = LabelTable.packaged("fullhead").subset([0, 16, 72, 165, 515])
        >>> heads = {"sub-01": {16: 2e4, 165: 6e5}, "sub-02": {16: 2e4, 515: 5e5, 72: 9.0},
        ...     "sub-03": {515: 5e5}}
        >>> cohort = Cohort.of(heads, table)
        >>> for line in cohort.presence:
        ...     print(line.structure.name, line.structure.core, line.lacks, line.by_code)
        Brain-Stem True ('sub-03',) {16: 2}
        5th-Ventricle False ('sub-01', 'sub-03') {72: 1}
        Bone True () {165: 1, 515: 2}
        >>> cohort.missing
        {'sub-03': ('Brain-Stem',)}
        """
        table = table or LabelTable.packaged("fullhead")
        known: dict[str, dict[int, float]] = {}
        unusable: dict[str, tuple[str, ...]] = {}
        for subject, volumes in volumes_mm3.items():
            known[subject], odd = _usable(volumes, table)
            if odd:
                unusable[subject] = odd
        z, outliers = _compare(known, table)
        presence = tuple(_presence(structure, known) for structure in structures(table))
        return cls(table, known, presence, outliers, z, unusable)

    @classmethod
    def from_rows(
        cls, rows: Mapping[str, Iterable[Mapping[str, Any]]], table: LabelTable | None = None
    ) -> Cohort:
        """Cohort from the rows of volume tables with columns ``index`` and ``volume_mm3``.

        >>> rows = {"sub-01": [{"index": "16", "volume_mm3": "21000.0"}]}
        >>> Cohort.from_rows(rows).volumes_mm3
        {'sub-01': {16: 21000.0}}
        """
        volumes_mm3 = {
            subject: {row.get("index"): row.get("volume_mm3") for row in lines}
            for subject, lines in rows.items()
        }
        return cls.of(volumes_mm3, table)

    @property
    def subjects(self) -> tuple[str, ...]:
        """All subjects, in the given order."""
        return tuple(self.volumes_mm3)

    @property
    def missing(self) -> dict[str, tuple[str, ...]]:
        """Core structures that each subject lacks, for subjects that lack any."""
        lacking: dict[str, list[str]] = {}
        for line in self.presence:
            for subject in line.lacks if line.structure.core else ():
                lacking.setdefault(subject, []).append(line.structure.name)
        return {who: tuple(lacking[who]) for who in self.subjects if who in lacking}


def structures(table: LabelTable) -> tuple[Structure, ...]:
    """Structures that a head with labels of ``table`` has or may lack, ordered by lowest code.

    Raises
    ------
    ValueError
        If ``presence.tsv`` has no line for a label of ``table``.

    Examples
    --------
    >>> [s.name for s in structures(LabelTable.packaged("fullhead")) if 515 in s.codes]
    ['Bone']
    """
    rows = _rows()
    unknown = [label for label in table if label.index not in rows]
    if unknown:
        raise ValueError(
            f"label table {table.name}: data/labels/presence.tsv does not say whether a head may "
            f"lack {unknown[0].index} {unknown[0].name}; add a line"
        )
    found: dict[str, list[int]] = {}
    for label in table:
        if rows[label.index]["kind"] != "background":
            found.setdefault(rows[label.index]["group"] or label.name, []).append(label.index)
    return tuple(
        Structure(
            name,
            tuple(codes),
            rows[codes[0]]["kind"] == "core",
            "; ".join(dict.fromkeys(rows[code]["reason"] for code in codes)),
        )
        for name, codes in found.items()
    )


@cache
def _rows() -> dict[int, dict[str, str]]:
    """Lines of ``presence.tsv`` by code; the group is empty where there is none."""
    path = resources.files("brainseg_bids") / "data" / "labels" / "presence.tsv"
    rows: dict[int, dict[str, str]] = {}
    kinds: dict[str, str] = {}
    with path.open(encoding="utf-8") as file:
        for number, row in enumerate(csv.DictReader(file, delimiter="\t"), start=2):
            row["group"] = "" if row["group"] == "n/a" else row["group"]
            kind = kinds.setdefault(row["group"], row["kind"]) if row["group"] else row["kind"]
            if row["kind"] not in KINDS or kind != row["kind"] or int(row["code"]) in rows:
                raise ValueError(
                    f"{path}, line {number}: a code has one line, and a group one kind of {KINDS}"
                )
            rows[int(row["code"])] = row
    return rows


def _usable(
    volumes: Mapping[Any, Any], table: LabelTable
) -> tuple[dict[int, float], tuple[str, ...]]:
    """Volumes above zero of known labels, and words about what was none."""
    found: dict[int, float] = {}
    odd = []
    for key, value in volumes.items():
        try:
            code, volume = int(key), float(value)
        except (TypeError, ValueError, OverflowError):
            odd.append(f"label {key!r} has the volume {value!r}")
            continue
        if not math.isfinite(volume) or volume < 0:
            odd.append(f"label {code} has a volume of {volume:g} mm³")
        elif code not in table:
            odd.append(f"code {code} ({volume:g} mm³) is not in label table {table.name}")
        elif volume > 0:
            found[code] = volume
    return found, tuple(odd)


def _presence(structure: Structure, volumes: dict[str, dict[int, float]]) -> Presence:
    sides: tuple[list[str], list[str]] = ([], [])
    for who, found in volumes.items():
        sides[found.keys().isdisjoint(structure.codes)].append(who)
    by_code = {code: sum(code in found for found in volumes.values()) for code in structure.codes}
    return Presence(structure, tuple(sides[0]), tuple(sides[1]), by_code)


def _compare(
    volumes: dict[str, dict[int, float]], table: LabelTable
) -> tuple[dict[str, dict[int, float]], tuple[Outlier, ...]]:
    """Robust z of every label that enough heads have, and the outliers among them."""
    all_z: dict[str, dict[int, float]] = {who: {} for who in volumes}
    outliers = []
    for structure in structures(table):
        for code in structure.codes:
            who = [subject for subject, found in volumes.items() if code in found]
            if len(who) < FEWEST:
                continue
            sizes = np.array([volumes[subject][code] for subject in who])
            median = float(np.median(sizes))
            for subject, size, z in zip(
                who, sizes.tolist(), robust_z(sizes).tolist(), strict=True
            ):
                all_z[subject][code] = z
                if abs(z) > OUTLIER_Z:
                    outliers.append(Outlier(subject, table[code].name, code, size, median, z))
    return all_z, tuple(sorted(outliers, key=lambda found: -abs(found.z)))
