# SPDX-License-Identifier: Apache-2.0
"""What codes of a rater's label maps mean: tables, crosswalks and ``dseg.tsv`` files."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import resources
from pathlib import Path

from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.bids.names import Scan
from brainseg_bids.documents import InputError
from brainseg_bids.evaluation.ratings import LARGEST_CODE, Targets, fullhead
from brainseg_bids.images import check_present


def reference_data(name: str) -> Path:
    """A file of ``data/references``."""
    return Path(str(resources.files("brainseg_bids") / "data" / "references" / name))


def crosswalk_labels(tool: str) -> dict[int, Targets]:
    """Meaning of a tool's codes, from its crosswalk to ``fullhead``.

    >>> crosswalk_labels("freesurfer")[1005]
    (3,)
    """
    return {code: (target,) for code, target in Crosswalk.packaged(tool, "fullhead").pairs.items()}


def read_targets(path: str | Path) -> dict[int, Targets]:
    """Read a TSV with columns ``source``, ``target`` and ``reason``.

    A target is a code or name of table ``fullhead``, ``void`` (left out for everybody), or
    ``nearest A B`` (what the nearest voxel of A or B is).

    Raises
    ------
    InputError
        If a column is missing, a source is there twice, or a target is none of these.
    """
    path = Path(path)
    rows = _rows(path, ("source", "target", "reason"))
    return targets_of(((row["source"] or "", row["target"] or "") for row in rows), path)


@cache
def common_labels() -> dict[int, Targets]:
    """What every label of ``fullhead`` counts as when raters are compared.

    Raters divide the head differently: one has choroid plexus apart, another counts it as
    ventricle. All are brought to what nearly all have (``data/references/common.tsv``).

    >>> common_labels()[31], common_labels()[251], common_labels()[80]
    ((4,), (2, 41), ())
    """
    return read_targets(reference_data("common.tsv"))


def find_label_table(labels: str | Path) -> Path | None:
    """``dseg.tsv`` that applies to a segmentation of a BIDS derivative: the nearest to it.

    Files in the map's own folder and those above it up to the one that holds ``sub-*`` are
    looked at; what their names say must be in the map's name (BIDS' inheritance principle).
    """
    labels = Path(labels)
    own = Scan.from_path(labels)
    parts = labels.parent.parts
    first = next((n for n, part in enumerate(parts) if part.startswith("sub-")), len(parts))
    for depth in range(len(parts), first - 1, -1):
        folder = Path(*parts[:depth])
        fitting = []
        for path in sorted(folder.glob("*dseg.tsv")):
            table = Scan.from_path(path.with_suffix(""))
            if table.suffix == "dseg" and table.entities.items() <= own.entities.items():
                fitting.append((len(table.entities), path))
        if fitting:
            return max(fitting)[1]
    return None


def read_names(path: str | Path) -> tuple[dict[int, Targets], dict[int, str]]:
    """What codes mean, from the names in a ``dseg.tsv``.

    Names are those of ``fullhead``, of ``brainseg``, or of FreeSurfer.

    Returns
    -------
    labels : dict of int to tuple of int
    unknown : dict of int to str
        Names that are none of these, and those of codes above `LARGEST_CODE`. They matter only
        where their codes are used.

    Raises
    ------
    InputError
        If the file cannot be read, has not the columns ``index`` and ``name``, or an index twice.
    """
    path = Path(path)
    known = _codes_by_name()
    labels: dict[int, Targets] = {}
    unknown: dict[int, str] = {}
    for row in _rows(path, ("index", "name")):
        code, name = _whole(row["index"]), row["name"] or ""
        if code is None:
            raise InputError(f"{path}: index {row['index']!r} is not a whole number. Correct it.")
        if code in labels or code in unknown:
            raise InputError(f"{path}: index {code} is there twice. Remove one.")
        if name in known and code <= LARGEST_CODE:
            labels[code] = (known[name],)
        else:
            unknown[code] = name
    return labels, unknown


@cache
def _codes_by_name() -> dict[str, int]:
    codes = {label.name: label.index for label in fullhead()}
    for source in ("model", "freesurfer"):
        crosswalk = Crosswalk.packaged(source, "fullhead")
        for code, name in crosswalk.names.items():
            codes.setdefault(name, crosswalk.pairs[code])
    return codes


def check_file(path: Path) -> None:
    if path.is_dir():
        raise InputError(f"{path}: this is a folder. Give a file, or move the folder away.")
    check_present(path)


def _rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Lines of a TSV that has some columns at least; a byte order mark is skipped."""
    check_file(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, delimiter="\t")
            missing = set(columns) - set(rows.fieldnames or ())
            if missing:
                raise InputError(f"{path}: column {sorted(missing)[0]!r} is missing. Add it.")
            return list(rows)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{path}: cannot be read as a table ({error}). Save it as UTF-8 with tabs between "
            "the columns."
        ) from error


def _whole(text: str | None) -> int | None:
    """Whole number that a text is, if it is one.

    >>> _whole("017"), _whole("-1"), _whole("²"), _whole(None)
    (17, None, None, None)
    """
    return int(text) if text and re.fullmatch("[0-9]{1,18}", text) else None


def targets_of(rows: Iterable[tuple[str, str]], path: Path) -> dict[int, Targets]:
    """Meaning of each code, from pairs of texts; ``path`` is for messages."""
    meaning: dict[int, Targets] = {}
    for source, target in rows:
        code = _whole(source)
        if code is None or code > LARGEST_CODE:
            raise InputError(
                f"{path}: source code {source!r} is not a whole number from 0 to {LARGEST_CODE}. "
                "Correct it."
            )
        if code in meaning:
            raise InputError(f"{path}: source code {source} is there twice. Remove one.")
        meaning[code] = _target(target, path)
    return meaning


def _target(text: str, path: Path) -> Targets:
    table = fullhead()
    kind, *words = text.split() or [""]
    if kind == "void" and not words:
        return ()
    if kind != "nearest":
        kind, words = "", [text]
    numbers = [_whole(word) for word in words]
    codes = [w if n is None else n for w, n in zip(words, numbers, strict=True)]
    unknown = [str(code) for code in codes if code not in table]
    if unknown or (kind == "nearest" and len(codes) < 2):
        raise InputError(
            f"{path}: target {text!r} is not a code or name of table fullhead, nor void, nor "
            "nearest with two of them or more. Correct it."
        )
    return tuple(table[code].index for code in codes)
