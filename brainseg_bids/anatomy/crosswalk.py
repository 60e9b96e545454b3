# SPDX-License-Identifier: Apache-2.0
"""``Crosswalk``: one table's codes in terms of another's, total and checked."""

from __future__ import annotations

import csv
from importlib import resources
from pathlib import Path

import numpy as np

from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable, UnknownLabelError, count_codes


class Crosswalk:
    """Translation of codes, with a reason for each line.

    Parameters
    ----------
    pairs : dict of int to int
        Source code to target code.
    target : LabelTable
        Table that every target code must be in.
    reasons : dict of int to str, optional
        Why, per source code.
    name : str
        Named in messages.

    Raises
    ------
    UnknownLabelError
        If a target code is not in ``target``.

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
        name: str = "crosswalk",
    ) -> None:
        self.name = name
        self.pairs = {int(source): target[int(code)].index for source, code in pairs.items()}
        self.target = target
        self.reasons = dict(reasons or {})

    @classmethod
    def read(cls, path: str | Path, target: LabelTable, *, name: str | None = None) -> Crosswalk:
        """Read a TSV with columns ``source``, ``target`` and ``reason``.

        Raises
        ------
        ValueError
            If a column is missing or a source code is there twice.
        """
        path = Path(path)
        pairs: dict[int, int] = {}
        reasons: dict[int, str] = {}
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
                    raise ValueError(f"{path}, line {number}: source code {source} is there twice")
                pairs[source], reasons[source] = int(row["target"]), row["reason"]
        return cls(pairs, target, reasons=reasons, name=name or path.stem)

    @classmethod
    def packaged(cls, source: str, target: str) -> Crosswalk:
        """Crosswalk that comes with the package, e.g. ``("fullhead", "brainseg")``."""
        name = f"{source}_to_{target}"
        path = resources.files("brainseg_bids") / "data" / "crosswalks" / f"{name}.tsv"
        if not path.is_file():
            raise ValueError(f"no crosswalk from {source!r} to {target!r}")
        with resources.as_file(path) as file:
            return cls.read(file, LabelTable.packaged(target), name=name)

    def codes(self, codes: np.ndarray, *, what: str = "label map") -> np.ndarray:
        """Translate an array of codes; shape is kept, type is int16.

        Raises
        ------
        UnknownLabelError
            Naming each code without a translation, and how many voxels have it.
        """
        present = count_codes(codes)
        unknown = {code: n for code, n in present.items() if code not in self.pairs}
        if unknown:
            listed = ", ".join(
                f"{c} ({n} voxel{'s' if n != 1 else ''})" for c, n in unknown.items()
            )
            raise UnknownLabelError(
                f"{what}: crosswalk {self.name} has no translation for codes {listed}"
            )
        if not present:
            return np.zeros(np.shape(codes), dtype=np.int16)
        low = min(present)
        lookup = np.zeros(max(present) - low + 1, dtype=np.int16)
        for code in present:
            lookup[code - low] = self.pairs[code]
        return lookup[np.asarray(codes) - low]

    def translate(self, labels: LabelMap, *, what: str = "label map") -> LabelMap:
        """The same label map in the target's codes."""
        return LabelMap(self.codes(labels.voxels, what=what), labels.grid, self.target)
