# SPDX-License-Identifier: Apache-2.0
"""``Crosswalk``: checked translation of the codes of one label table into those of another."""

from __future__ import annotations

import csv
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np

from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable, UnknownLabelError, count_codes, listed_codes


class Crosswalk:
    """Translation of codes, with a reason for each line.

    Parameters
    ----------
    pairs : dict of int to int
        Source code to target code.
    target : LabelTable
        Table with every target code.
    reasons : dict of int to str, optional
        Reason for the translation of each source code.
    names : dict of int to str, optional
        Name of each source code in the source's own table.
    among : dict of int to frozenset of int, optional
        All target codes that an ambiguous source code may stand for, including the one in
        ``pairs``.
    name : str
        Name of the crosswalk in messages.

    Raises
    ------
    UnknownLabelError
        If a target code is not in ``target``.
    ValueError
        If ``among`` lacks the target code of ``pairs``, or two source codes with the same target
        differ in ``among``.

    Examples
    --------
    >>> from brainseg_bids.anatomy.labels import Label
    >>> to_demo = Crosswalk({0: 0, 25: 2}, LabelTable([Label(0, "Background"), Label(2, "WM")]),
    ...     name="demo")
    >>> to_demo.codes(np.array([25, 0, 25]))
    array([2, 0, 2], dtype=int16)
    >>> to_demo.codes(np.array([25, 99]))
    Traceback (most recent call last):
    brainseg_bids.anatomy.labels.UnknownLabelError: label map: crosswalk demo has no ...
    """

    def __init__(
        self,
        pairs: dict[int, int],
        target: LabelTable,
        *,
        reasons: dict[int, str] | None = None,
        names: dict[int, str] | None = None,
        among: dict[int, frozenset[int]] | None = None,
        name: str = "crosswalk",
    ) -> None:
        self.name = name
        self.pairs = {int(source): target[int(code)].index for source, code in pairs.items()}
        self.among = dict(among or {})
        for source, code in self.pairs.items():
            same = [self.among.get(other) for other, to in self.pairs.items() if to == code]
            codes = {target[one].index for one in self.among.get(source, {code})}
            if code not in codes or any(one != same[0] for one in same):
                raise ValueError(
                    f"{name}: source code {source} may stand for codes that its target {code} "
                    "is not among, or another source code has that target and stands for others"
                )
        self.target = target
        self.reasons = dict(reasons or {})
        self.names = dict(names or {})

    @classmethod
    def read(cls, path: str | Path, target: LabelTable, *, name: str | None = None) -> Crosswalk:
        """Read a TSV with columns ``source``, ``target`` and ``reason``.

        Two columns are optional: ``name``, the name in the source's own table; and ``among``, all
        target codes that an ambiguous source code may stand for, or ``n/a``.

        Raises
        ------
        ValueError
            If a column is missing or a source code is listed twice.
        """
        path = Path(path)
        pairs: dict[int, int] = {}
        reasons: dict[int, str] = {}
        names: dict[int, str] = {}
        among: dict[int, frozenset[int]] = {}
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file, delimiter="\t")
            missing = {"source", "target", "reason"} - set(rows.fieldnames or ())
            if missing:
                raise ValueError(
                    f"{path}: column {sorted(missing)[0]!r} is missing in this crosswalk"
                )
            for number, row in enumerate(rows, start=2):
                source = int(row["source"])
                if source in pairs:
                    raise ValueError(f"{path}, line {number}: source code {source} occurs twice")
                pairs[source], reasons[source] = int(row["target"]), row["reason"]
                if row.get("name"):
                    names[source] = row["name"]
                if row.get("among", "n/a") != "n/a":
                    among[source] = frozenset(map(int, row["among"].split()))
        return cls(
            pairs, target, reasons=reasons, names=names, among=among, name=name or path.stem
        )

    @classmethod
    def packaged(cls, source: str, target: str) -> Crosswalk:
        """Crosswalk of the package, e.g. ``("fullhead", "brainseg")``.

        Raises
        ------
        ValueError
            If the package has no such crosswalk.
        """
        name = f"{source}_to_{target}"
        path = resources.files("brainseg_bids") / "data" / "crosswalks" / f"{name}.tsv"
        if not path.is_file():
            raise ValueError(f"no crosswalk from {source!r} to {target!r}")
        with resources.as_file(path) as file:
            return cls.read(file, LabelTable.packaged(target), name=name)

    @property
    def coarse(self) -> dict[int, frozenset[int]]:
        """Target codes that are ambiguous, each with all codes that it may stand for."""
        return {self.pairs[source]: codes for source, codes in self.among.items()}

    def source_table(self) -> LabelTable:
        """Label table of the source: every code that a map of the source may have.

        Names are those of the source if the crosswalk has them; colour, side and tissue are those
        of the target. Two labels are counterparts if their names and their targets are.

        Examples
        --------
        >>> table = Crosswalk.packaged("fastsurfer", "fullhead").source_table()
        >>> table[1005].name, table[1005].hemisphere, table[1005].mirror
        ('ctx-lh-cuneus', 'left', 2005)
        """
        names = {code: self._name_of(code) for code in self.pairs}
        code_of = {name: code for code, name in names.items()}
        partners = {}
        for code, name in names.items():
            partner = code_of.get(_other_side(name), code)
            mirrored = self.pairs[partner] == self.target[self.pairs[code]].mirror
            partners[code] = partner if mirrored else code
        return LabelTable(
            [
                replace(
                    self.target[self.pairs[code]],
                    index=code,
                    name=name,
                    hemisphere=self._hemisphere_of(code),
                    mirror=partners[code] if partners[partners[code]] == code else code,
                )
                for code, name in names.items()
            ],
            name=self.name.partition("_to_")[0],
        )

    def _hemisphere_of(self, code: int) -> str:
        """Side of a source code; none if it may be of either."""
        sides = {self.target[one].hemisphere for one in self.among.get(code, {self.pairs[code]})}
        return sides.pop() if len(sides) == 1 else "none"

    def _name_of(self, code: int) -> str:
        target = self.target[self.pairs[code]]
        plain = target.name if target.index == code else f"{target.name}-{code}"
        return self.names.get(code, plain)

    def codes(self, codes: np.ndarray, *, what: str = "label map") -> np.ndarray:
        """Array of the same shape in the target's codes, int16.

        Raises
        ------
        UnknownLabelError
            If a code has no translation; the message lists these codes with their voxel counts.
        """
        present = count_codes(codes)
        unknown = {code: n for code, n in present.items() if code not in self.pairs}
        if unknown:
            raise UnknownLabelError(
                f"{what}: crosswalk {self.name} has no translation for codes "
                f"{listed_codes(unknown)}"
            )
        if not present:
            return np.zeros(np.shape(codes), dtype=np.int16)
        low = min(present)
        lookup = np.zeros(max(present) - low + 1, dtype=np.int16)
        for code in present:
            lookup[code - low] = self.pairs[code]
        return lookup[np.asarray(codes) - low]

    def translate(self, labels: LabelMap, *, what: str = "label map") -> LabelMap:
        """Label map in the target's codes.

        Raises
        ------
        UnknownLabelError
            If a code has no translation.
        """
        return LabelMap(self.codes(labels.voxels, what=what), labels.grid, self.target)


def _other_side(name: str) -> str:
    """Name of the counterpart; a name without a side comes back as it is.

    >>> _other_side("Left-Thalamus"), _other_side("ctx-rh-cuneus"), _other_side("CSF")
    ('Right-Thalamus', 'ctx-lh-cuneus', 'CSF')
    """
    for one, other in (("Left-", "Right-"), ("-lh-", "-rh-")):
        if one in name:
            return name.replace(one, other)
        if other in name:
            return name.replace(other, one)
    return name
