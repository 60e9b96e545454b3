# SPDX-License-Identifier: Apache-2.0
"""Adapters: how a rater's files are found and what their codes mean, as data.

A rater is any source of label maps: people, this package, another program. An ``Adapter`` says
how to read one: a TOML file of ``data/references`` or of the user's. `references` finds the files.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path, PurePosixPath

from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.bids.names import BEFORE_SPACE, Scan
from brainseg_bids.documents import read_toml
from brainseg_bids.volumes import InputError, check_present

Targets = tuple[int, ...]
"""What a code means, in codes of ``fullhead``: one; several: the nearest of them; none: void."""

HIPPOCAMPUS = ("left out", "cortex")
"""How predicted hippocampus and amygdala are taken where a reference knows cortex only."""

LARGEST_CODE = 32767
"""What `LabelTable` and a label map of two bytes hold."""

KEYS = {
    "": (
        "citation", "licence", "sides", "subjects", "evaluable", "unlabelled",
        "hippocampus_amygdala", "notes", "patterns", "labels", "strata", "version", "misspelt",
    ),
    "patterns": ("labels", "image", "mask", "ignore"),
    "labels": ("table", "crosswalk", "codes"),
    "version": ("file", "at_least", "why"),
}  # fmt: skip
"""Keys of an adapter's TOML, by section; those of ``strata`` and ``misspelt`` are free."""


@dataclass(frozen=True)
class Version:
    """What a dataset's list of changes has to say.

    Parameters
    ----------
    file : str
        Below the dataset's root.
    at_least : str
        Such as ``1.1.0``.
    why : str
        What is wrong with earlier ones.
    """

    file: str
    at_least: str
    why: str


@dataclass(frozen=True)
class Adapter:
    """How one rater's files are found and read.

    Parameters
    ----------
    name : str
    citation, licence : str
        Empty if nobody said.
    patterns : mapping of str to tuple of str
        For ``labels``, ``image`` and ``mask``: paths below the root, best first, with
        ``{subject}``, ``{session}``, other BIDS entities by their keys (``{run}``), or ``{id}``
        for a whole name such as ``sub-01_ses-A``; ``ignore`` has shell patterns. None at all: a
        BIDS derivative.
    labels : mapping of int to tuple of int, or None
        Code to what it means, see `Targets`; None: the derivative's ``dseg.tsv`` says it.
    sides : bool
        Whether left and right are told apart; if not, the codes are those of the left.
    tool : str
        External tool whose files are found by that tool's own rules.
    evaluable : tuple of str, or None
        Labels of ``fullhead`` that others are judged on; None: all that the rater has.
    unlabelled : tuple of str
        Tissue that the rater left at 0 though others may rightly label it.
    hippocampus_amygdala : {"left out", "cortex"}
    subjects : tuple of str
        Who should be there; empty: whoever is.
    strata : mapping of str to str
        Subject to the name of its stratum.
    version : Version or None
    misspelt : mapping of str to str
        Keys of sidecars, and what they should be.
    notes : tuple of str
        For the page, one line each.
    """

    name: str
    citation: str = ""
    licence: str = ""
    patterns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    labels: Mapping[int, Targets] | None = None
    sides: bool = True
    tool: str = ""
    evaluable: tuple[str, ...] | None = None
    unlabelled: tuple[str, ...] = ()
    hippocampus_amygdala: str = HIPPOCAMPUS[0]
    subjects: tuple[str, ...] = ()
    strata: Mapping[str, str] = field(default_factory=dict)
    version: Version | None = None
    misspelt: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class NamedStructure:
    """Labels that are judged as one.

    Parameters
    ----------
    name : str
    members : tuple of str
        Names of ``fullhead``.
    group : str
        ``tissue``, ``subcortical``, ``head`` and so on.
    reason : str
    """

    name: str
    members: tuple[str, ...]
    group: str
    reason: str


# ---- structures and adapters: read from tables


def _data(name: str) -> Path:
    return Path(str(resources.files("brainseg_bids") / "data" / "references" / name))


@cache
def fullhead() -> LabelTable:
    """The table that all labels are brought to."""
    return LabelTable.packaged("fullhead")


@cache
def named_structures() -> dict[str, NamedStructure]:
    """Structures of ``data/references/structures.tsv``, by name, in the table's order.

    >>> named_structures()["Cerebral-GM"].members
    ('Left-Cerebral-Cortex', 'Right-Cerebral-Cortex')
    """
    table = fullhead()
    found = {}
    with _data("structures.tsv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            members = tuple(table[name].name for name in row["members"].split())
            found[row["name"]] = NamedStructure(row["name"], members, row["group"], row["reason"])
    return found


def packaged_adapters() -> tuple[str, ...]:
    """Names of the adapters that come with the package.

    >>> packaged_adapters()
    ('freesurfer_aseg', 'meshnet', 'oasis_manual', 'ultracortex', 'ultracortex_freesurfer')
    """
    return tuple(sorted(path.stem for path in _data("").glob("*.toml")))


def read_adapter(name_or_path: str | Path) -> Adapter:
    """Adapter that comes with the package, or one of the user's.

    Parameters
    ----------
    name_or_path : str or path
        Such as ``ultracortex``; what ends in ``.toml`` is a file.

    Raises
    ------
    InputError
        If there is none, or the file cannot be used: unknown keys, labels, or tables.

    Examples
    --------
    >>> adapter = read_adapter("ultracortex")
    >>> adapter.labels[3], adapter.strata["37"], adapter.evaluable[:2]
    ((3,), 'MPRAGE', ('Left-Cerebral-Cortex', 'Right-Cerebral-Cortex'))
    """
    given = Path(name_or_path)
    if given.suffix == ".toml":
        path = given
    elif str(name_or_path) in packaged_adapters():
        path = _data(f"{name_or_path}.toml")
    else:
        raise InputError(
            f"{name_or_path}: there is no adapter of that name. Known: "
            f"{', '.join(packaged_adapters())}; or give a file that ends in .toml."
        )
    _check_file(path)
    said = read_toml(path)
    _check_keys(said, path)
    return _adapter(said, path)


def plain_adapter(name: str) -> Adapter:
    """Adapter of a BIDS derivative whose ``dseg.tsv`` explains its codes.

    Parameters
    ----------
    name : str
        Of the rater; where an image has several segmentations, the label of ``seg-`` to take.
    """
    return Adapter(name)


def _check_keys(said: dict, path: Path) -> None:
    """Refuse sections and keys that are not in `KEYS`."""
    for section, known in KEYS.items():
        given = said.get(section, {}) if section else said
        if not isinstance(given, dict):
            raise InputError(f"{path}: {section!r} is a section: write [{section}].")
        where = f" in [{section}]" if section else ""
        for key in given:
            if key not in known:
                raise InputError(f"{path}: unknown key {key!r}{where}. Known: {', '.join(known)}.")
    for section in ("strata", "misspelt"):
        if not isinstance(said.get(section, {}), dict):
            raise InputError(f"{path}: {section!r} is a section: write [{section}].")


def _adapter(said: dict, path: Path) -> Adapter:
    for key in ("patterns", "labels"):
        if key not in said:
            raise InputError(f"{path}: [{key}] is missing.")
    patterns = {
        key: _texts(value, f"patterns.{key}", path) for key, value in said["patterns"].items()
    }
    if not patterns.get("labels"):
        raise InputError(f"{path}: [patterns] has no labels.")
    for pattern in (p for key in ("labels", "image", "mask") for p in patterns.get(key, ())):
        _check_pattern(pattern, path)
    return Adapter(
        name=path.stem,
        citation=_text(said, "citation", path),
        licence=_text(said, "licence", path),
        patterns=patterns,
        labels=_read_labels(said["labels"], path),
        sides=_sides(said, path),
        evaluable=_names(said["evaluable"], path) if "evaluable" in said else None,
        unlabelled=_names(said.get("unlabelled", []), path),
        hippocampus_amygdala=_hippocampus(said, path),
        subjects=_texts(said.get("subjects", []), "subjects", path),
        strata=_strata(said.get("strata", {}), path),
        version=_version(said["version"], path) if "version" in said else None,
        misspelt={
            wrong: _text(said["misspelt"], wrong, path) for wrong in said.get("misspelt", {})
        },
        notes=_texts(said.get("notes", []), "notes", path),
    )


def _text(said: dict, key: str, path: Path) -> str:
    if not isinstance(said.get(key, ""), str):
        raise InputError(f"{path}: {key} is a text: write it in quotes.")
    return said.get(key, "")


def _texts(value: object, key: str, path: Path) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise InputError(f"{path}: {key} is a list of texts: write them in quotes.")
    return tuple(value)


def _sides(said: dict, path: Path) -> bool:
    if not isinstance(said.get("sides", True), bool):
        raise InputError(f"{path}: sides is true or false.")
    return said.get("sides", True)


def _hippocampus(said: dict, path: Path) -> str:
    chosen = said.get("hippocampus_amygdala", HIPPOCAMPUS[0])
    if chosen not in HIPPOCAMPUS:
        raise InputError(
            f"{path}: hippocampus_amygdala is {chosen!r}. Known: {', '.join(HIPPOCAMPUS)}."
        )
    if "hippocampus_amygdala" in said and not said.get("unlabelled"):
        raise InputError(
            f"{path}: hippocampus_amygdala has no effect without unlabelled. List there what the "
            "raters left at 0, or remove hippocampus_amygdala."
        )
    return chosen


def _strata(said: dict, path: Path) -> dict[str, str]:
    """Stratum of each subject; ``all`` is what tables call everybody together."""
    found: dict[str, str] = {}
    for stratum, subjects in said.items():
        if stratum.strip().lower() in ("", "all"):
            raise InputError(
                f"{path}: a stratum is called {stratum!r}, as everybody together is in tables. "
                "Rename it."
            )
        for subject in _texts(subjects, f"strata.{stratum}", path):
            if found.setdefault(subject, stratum) != stratum:
                raise InputError(
                    f"{path}: subject {subject!r} is in two strata, {found[subject]} and "
                    f"{stratum}. Remove it from one."
                )
    return found


def _version(said: dict, path: Path) -> Version:
    if set(said) != set(KEYS["version"]):
        raise InputError(f"{path}: [version] needs {', '.join(KEYS['version'])}.")
    texts = {key: _text(said, key, path) for key in KEYS["version"]}
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9}){2}", texts["at_least"]):
        raise InputError(
            f"{path}: version.at_least is {texts['at_least']!r}. Write three numbers in quotes, "
            "such as '1.1.0'."
        )
    return Version(**texts)


def _check_pattern(pattern: str, path: Path) -> None:
    known = ("id", "subject", "session", *BEFORE_SPACE[2:])
    if re.search(r"[{}]", re.sub(r"\{[^{}]*\}", "", pattern)):
        raise InputError(
            f"{path}: pattern {pattern!r} has a brace without its partner. Write {{subject}}."
        )
    if not pattern or PurePosixPath(pattern).is_absolute() or ".." in Path(pattern).parts:
        raise InputError(
            f"{path}: pattern {pattern!r} is no path below the dataset's folder. Write it "
            "relative to that folder, without '..'."
        )
    for name in re.findall(r"\{([^}]*)\}", pattern):
        if name not in known:
            raise InputError(
                f"{path}: pattern {pattern!r} has {{{name}}}. Known: {', '.join(known)}."
            )


def _names(names: object, path: Path) -> tuple[str, ...]:
    """Labels of ``fullhead``; a structure's name stands for its members."""
    table, structures = fullhead(), named_structures()
    found: list[str] = []
    unknown = []
    for name in _texts(names, "evaluable and unlabelled", path):
        if name in structures:
            found += structures[name].members
        elif name in table:
            found.append(name)
        else:
            unknown.append(name)
    if unknown:
        raise InputError(
            f"{path}: {', '.join(unknown)}: neither a label of table fullhead nor a structure of "
            "structures.tsv. Correct the name."
        )
    return tuple(dict.fromkeys(found))


# ---- what codes mean


def _read_labels(said: dict, path: Path) -> dict[int, Targets]:
    """Meaning of codes from exactly one of a table, a packaged crosswalk, or inline codes."""
    if len(said) != 1:
        raise InputError(
            f"{path}: [labels] needs exactly one of {', '.join(KEYS['labels'])}, it has "
            f"{', '.join(said) or 'none'}."
        )
    if "crosswalk" in said:
        try:
            return crosswalk_labels(str(said["crosswalk"]))
        except ValueError as error:
            raise InputError(f"{path}: [labels]: {error}.") from error
    if "table" in said:
        return read_targets(path.parent / str(said["table"]))
    if not isinstance(said["codes"], dict):
        raise InputError(f"{path}: [labels] codes is a table: write [labels.codes].")
    return _targets([(str(k), str(v)) for k, v in said["codes"].items()], path)


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
    return _targets([(row["source"] or "", row["target"] or "") for row in rows], path)


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise InputError(f"{path}: this is a folder. Give a file, or move the folder away.")
    check_present(path)


def _rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Lines of a TSV that has some columns at least; a byte order mark is skipped."""
    _check_file(path)
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


def _targets(rows: list[tuple[str, str]], path: Path) -> dict[int, Targets]:
    found: dict[int, Targets] = {}
    for source, target in rows:
        code = _whole(source)
        if code is None or code > LARGEST_CODE:
            raise InputError(
                f"{path}: source code {source!r} is no whole number from 0 to {LARGEST_CODE}. "
                "Correct it."
            )
        if code in found:
            raise InputError(f"{path}: source code {source} is there twice. Remove one.")
        found[code] = _target(target, path)
    return found


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
            f"{path}: target {text!r} is no code or name of table fullhead, nor void, nor "
            "nearest with two of them or more. Correct it."
        )
    return tuple(table[code].index for code in codes)


@cache
def common_labels() -> dict[int, Targets]:
    """What every label of ``fullhead`` counts as when raters are compared.

    Raters divide the head differently: one has choroid plexus apart, another counts it as
    ventricle. All are brought to what nearly all have (``data/references/common.tsv``).

    >>> common_labels()[31], common_labels()[251], common_labels()[80]
    ((4,), (2, 41), ())
    """
    return read_targets(_data("common.tsv"))


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
            said = Scan.from_path(path.with_suffix(""))
            if said.suffix == "dseg" and said.entities.items() <= own.entities.items():
                fitting.append((len(said.entities), path))
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
            raise InputError(f"{path}: index {row['index']!r} is no whole number. Correct it.")
        if code in labels or code in unknown:
            raise InputError(f"{path}: index {code} is there twice. Remove one.")
        if name in known and code <= LARGEST_CODE:
            labels[code] = (known[name],)
        else:
            unknown[code] = name
    return labels, unknown


@cache
def _codes_by_name() -> dict[str, int]:
    found = {label.name: label.index for label in fullhead()}
    for source in ("model", "freesurfer"):
        crosswalk = Crosswalk.packaged(source, "fullhead")
        for code, name in crosswalk.names.items():
            found.setdefault(name, crosswalk.pairs[code])
    return found
