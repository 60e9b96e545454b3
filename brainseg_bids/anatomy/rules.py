# SPDX-License-Identifier: Apache-2.0
"""``MergeRules``: the rules of the merge, read from tables with a reason in each line."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from brainseg_bids.anatomy.labels import Label, LabelTable

LOCATIONS = ("outside_hull", "unseen", "below", "inside_hull", "enclosed")
"""Where a voxel lies as seen from the brain tool's brain; each voxel has one location.

``unseen``: outside of the brain tool's own grid, and without a label of it. ``enclosed``: in a
cavity of the brain. ``inside_hull``: in a sulcus or fissure. ``below``: lower than its lowest
voxel. ``outside_hull``: anywhere else.
"""
WHERE = {
    "anywhere": frozenset(LOCATIONS),
    "inside_hull": frozenset({"inside_hull", "enclosed"}),
    "outside_hull": frozenset({"outside_hull", "below"}),
    "unseen": frozenset({"unseen"}),
    "enclosed": frozenset({"enclosed"}),
    "below": frozenset({"below"}),
}
"""Locations that each value of the column ``where`` stands for."""

TAKES = ("brain", "head")


class RuleError(ValueError):
    """A rule table with an error; the message names file, line and error."""


@dataclass(frozen=True)
class Precedence:
    """One line of ``precedence.tsv``: the first line that fits a voxel decides its code.

    Parameters
    ----------
    rule : str
    where : str
        Location, a key of `WHERE`.
    brain, head : frozenset of int
        Codes of the brain source and of the head source to which the line applies.
    take : str or int
        ``"brain"`` or ``"head"`` (the source's own code), or a code.
    reason : str
    """

    rule: str
    where: str
    brain: frozenset[int]
    head: frozenset[int]
    take: str | int
    reason: str


@dataclass(frozen=True)
class Resolution:
    """One line of ``resolve.tsv``: undecided codes, replaced by the nearest of the candidates."""

    rule: str
    codes: frozenset[int]
    candidates: frozenset[int]
    reason: str


@dataclass(frozen=True)
class IslandRule:
    """One line of ``islands.tsv``: connected components that are too small to be kept.

    A component is replaced if it is smaller than ``smallest_mm3``, or than ``smallest_share`` of
    the largest component of its label. The largest component is always kept.
    """

    rule: str
    codes: frozenset[int]
    smallest_mm3: float
    smallest_share: float
    reason: str


@dataclass(frozen=True)
class FillRule:
    """One line of ``completion.tsv``: the code for tissue or air that no tool labelled."""

    kind: str
    take: int
    if_present: frozenset[int]
    reason: str


@dataclass(frozen=True, eq=False)
class MergeRules:
    """All tables of the merge, with groups of labels expanded to codes.

    Parameters
    ----------
    table : LabelTable
    groups : dict of str to frozenset of int
        Codes of each group of labels, by its name.
    precedence, resolve, islands, completion : tuple
        Lines of each table in the order of its file.

    Examples
    --------
    >>> rules = MergeRules.packaged()
    >>> sorted(rules.groups["vessel"])
    [502, 514]
    >>> rules.precedence[-1].take
    'head'
    """

    table: LabelTable
    groups: dict[str, frozenset[int]]
    precedence: tuple[Precedence, ...]
    resolve: tuple[Resolution, ...]
    islands: tuple[IslandRule, ...]
    completion: tuple[FillRule, ...]

    @classmethod
    @cache
    def packaged(cls) -> MergeRules:
        """Rules of the package, for the label table ``fullhead``."""
        with resources.as_file(resources.files("brainseg_bids") / "data" / "merge") as folder:
            return cls.read(folder, LabelTable.packaged("fullhead"))

    @classmethod
    def read(cls, folder: str | Path, table: LabelTable) -> MergeRules:
        """Rules from the five tables of a folder.

        Labels are listed as words separated by spaces: the name of a label, a pattern
        (``*-Thalamus``), a group from an earlier line, ``is_brain`` or ``hemisphere=left``. A word
        with ``!`` in front removes labels.

        Raises
        ------
        RuleError
            If a column is missing, a word matches no label, a location or number is invalid, or a
            pair of codes has no rule.
        """
        folder = Path(folder)
        groups: dict[str, frozenset[int]] = {}
        for at, row in _rows(folder / "groups.tsv", ("group", "members", "reason")):
            groups[row["group"]] = codes_of(row["members"], table, groups, at=at)
        rules = cls(
            table,
            groups,
            tuple(_precedence(folder / "precedence.tsv", table, groups)),
            tuple(_resolve(folder / "resolve.tsv", table, groups)),
            tuple(_islands(folder / "islands.tsv", table, groups)),
            tuple(_completion(folder / "completion.tsv", table, groups)),
        )
        rules._check_total(folder / "precedence.tsv")
        return rules

    def fill_code(self, kind: str, present: set[int]) -> int:
        """Code for unlabelled ``"tissue"`` or ``"air"`` in a map with the codes ``present``.

        >>> MergeRules.packaged().fill_code("tissue", {0, 2, 258})
        258
        """
        return next(
            line.take
            for line in self.completion
            if line.kind == kind and (not line.if_present or line.if_present & present)
        )

    def _check_total(self, path: Path) -> None:
        codes = set(self.table.codes.tolist())
        for location in LOCATIONS:
            left = {(b, h) for b in codes for h in codes}
            for line in self.precedence:
                if location in WHERE[line.where]:
                    left -= {(b, h) for b in line.brain for h in line.head}
            if left:
                brain, head = sorted(left)[0]
                raise RuleError(
                    f"{path}: no line decides {location}, brain {brain} {self.table[brain].name}, "
                    f"head {head} {self.table[head].name}. End the table with a line for all."
                )


def codes_of(
    words: str, table: LabelTable, groups: dict[str, frozenset[int]], *, at: str = "rules"
) -> frozenset[int]:
    """Codes of a list of words, in the syntax of `MergeRules.read`.

    Parameters
    ----------
    words : str
    table : LabelTable
    groups : dict of str to frozenset of int
    at : str
        File and line in the message of an error.

    Raises
    ------
    RuleError
        If a word matches no label or group, or no label is left.

    Examples
    --------
    >>> table = LabelTable.packaged("fullhead")
    >>> sorted(codes_of("*-Thalamus !hemisphere=right Vein", table, {}))
    [10, 514]
    """
    found: set[int] = set()
    for word in words.split():
        name = word.removeprefix("!")
        codes = groups.get(name) or {label.index for label in table if _fits(label, name)}
        if not codes:
            raise RuleError(f"{at}: {name!r} is not a group and fits no label of {table.name}")
        found = found - codes if word.startswith("!") else found | codes
    if not found:
        raise RuleError(f"{at}: {words!r} names no label")
    return frozenset(found)


def _fits(label: Label, word: str) -> bool:
    if word == "is_brain":
        return label.is_brain
    if word.startswith("hemisphere="):
        return label.hemisphere == word.removeprefix("hemisphere=")
    return fnmatchcase(label.name, word)


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of a table, each with ``file, line n`` for messages."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file, delimiter="\t")
        missing = [column for column in columns if column not in (rows.fieldnames or ())]
        if missing:
            raise RuleError(f"{path}: column {missing[0]!r} is missing in this rule table")
        for number, row in enumerate(rows, start=2):
            if any(row[column] in (None, "") for column in columns):
                raise RuleError(f"{path}, line {number}: a column is empty")
            yield f"{path}, line {number}", row


def _precedence(path: Path, table: LabelTable, groups: dict[str, Any]) -> Iterator[Precedence]:
    for at, row in _rows(path, ("rule", "where", "brain", "head", "take", "reason")):
        if row["where"] not in WHERE:
            raise RuleError(f"{at}: where {row['where']!r} is not one of {', '.join(WHERE)}")
        take = row["take"]
        yield Precedence(
            row["rule"],
            row["where"],
            codes_of(row["brain"], table, groups, at=at),
            codes_of(row["head"], table, groups, at=at),
            take if take in TAKES else _one_code(take, table, at),
            row["reason"],
        )


def _resolve(path: Path, table: LabelTable, groups: dict[str, Any]) -> Iterator[Resolution]:
    lines = list(_rows(path, ("labels", "candidates", "reason")))
    all_codes = frozenset().union(
        *(codes_of(row["labels"], table, groups, at=at) for at, row in lines)
    )
    for at, row in lines:
        yield Resolution(
            f"resolve {row['labels']}",
            codes_of(row["labels"], table, groups, at=at),
            # What is itself undecided is no answer.
            codes_of(row["candidates"], table, groups, at=at) - all_codes,
            row["reason"],
        )


def _islands(path: Path, table: LabelTable, groups: dict[str, Any]) -> Iterator[IslandRule]:
    taken: frozenset[int] = frozenset()
    for at, row in _rows(path, ("labels", "smallest_mm3", "smallest_share", "reason")):
        codes = codes_of(row["labels"], table, groups, at=at) - taken
        taken |= codes
        try:
            limits = float(row["smallest_mm3"]), float(row["smallest_share"])
        except ValueError as error:
            raise RuleError(f"{at}: {error}") from error
        if limits[0] < 0 or not 0 <= limits[1] <= 1:
            raise RuleError(f"{at}: sizes are 0 mm3 or more, shares 0 to 1")
        yield IslandRule(f"islands {row['labels']}", codes, *limits, row["reason"])


def _completion(path: Path, table: LabelTable, groups: dict[str, Any]) -> Iterator[FillRule]:
    kinds = {}
    for at, row in _rows(path, ("kind", "take", "if_present", "reason")):
        everywhere = row["if_present"] == "*"
        present = frozenset() if everywhere else codes_of(row["if_present"], table, groups, at=at)
        kinds[row["kind"]] = everywhere
        yield FillRule(row["kind"], _one_code(row["take"], table, at), present, row["reason"])
    for kind in ("tissue", "air"):
        if not kinds.get(kind):
            raise RuleError(f"{path}: the last line of kind {kind!r} must hold for '*'")


def _one_code(word: str, table: LabelTable, at: str) -> int:
    codes = codes_of(word, table, {}, at=at)
    if len(codes) != 1:
        raise RuleError(f"{at}: {word!r} is not one label")
    return next(iter(codes))
