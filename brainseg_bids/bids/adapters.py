# SPDX-License-Identifier: Apache-2.0
"""Adapters: how a rater's files are found and what their codes mean, as data.

A rater is any source of label maps: people, this package, another program. An ``Adapter`` says
how to read one: a TOML file of ``data/references`` or of the user's. `references` finds the files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from brainseg_bids.bids.label_codes import (
    check_file,
    crosswalk_labels,
    read_targets,
    reference_data,
    targets_of,
)
from brainseg_bids.bids.names import BEFORE_SPACE
from brainseg_bids.documents import Flag, InputError, Items, Kind, Object, Text, check, read_toml
from brainseg_bids.evaluation.protocols import HIPPOCAMPUS, Scope
from brainseg_bids.evaluation.ratings import Targets, fullhead, named_structures

TEXTS = Items(Text(), or_one=True)
SECTION = Object()
KINDS: dict[str, dict[str, Kind]] = {
    "": {
        "citation": Text(), "licence": Text(), "sides": Flag(), "subjects": TEXTS,
        "evaluable": TEXTS, "unlabelled": TEXTS, "hippocampus_amygdala": Text(HIPPOCAMPUS),
        "notes": TEXTS, "patterns": SECTION, "labels": SECTION, "strata": Object(TEXTS),
        "version": SECTION, "misspelt": Object(Text()),
    },
    "patterns": {"labels": TEXTS, "image": TEXTS, "mask": TEXTS, "ignore": TEXTS},
    "labels": {"table": Text(), "crosswalk": Text(), "codes": SECTION},
    "version": {"file": Text(), "at_least": Text(), "why": Text()},
}  # fmt: skip
"""What the keys of an adapter's TOML must be, by section; of ``strata`` and ``misspelt`` the keys
are free."""


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


@dataclass(frozen=True, kw_only=True)
class Adapter(Scope):
    """How one rater's files are found and read, and what it can be a reference for.

    Parameters
    ----------
    name, evaluable, unlabelled, hippocampus_amygdala
        As of `evaluation.protocols.Scope`.
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

    citation: str = ""
    licence: str = ""
    patterns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    labels: Mapping[int, Targets] | None = None
    sides: bool = True
    tool: str = ""
    subjects: tuple[str, ...] = ()
    strata: Mapping[str, str] = field(default_factory=dict)
    version: Version | None = None
    misspelt: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def packaged_adapters() -> tuple[str, ...]:
    """Names of the adapters that come with the package.

    >>> packaged_adapters()
    ('freesurfer_aseg', 'meshnet', 'oasis_manual', 'ultracortex', 'ultracortex_freesurfer')
    """
    return tuple(sorted(path.stem for path in reference_data("").glob("*.toml")))


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
        path = reference_data(f"{name_or_path}.toml")
    else:
        raise InputError(
            f"{name_or_path}: there is no adapter of that name. Known: "
            f"{', '.join(packaged_adapters())}; or give a file that ends in .toml."
        )
    check_file(path)
    return _adapter(read_toml(path), path)


def _adapter(values: dict, path: Path) -> Adapter:
    """The adapter that a TOML file describes."""
    _check(values, path)
    patterns = {key: _tuple(value) for key, value in values["patterns"].items()}
    for key in ("labels", "image", "mask"):
        for pattern in patterns.get(key, ()):
            _check_pattern(pattern, path)
    as_they_are = ("citation", "licence", "sides", "misspelt", "hippocampus_amygdala")
    return Adapter(
        name=path.stem,
        patterns=patterns,
        labels=_read_labels(values["labels"], path),
        evaluable=_names(values["evaluable"], path) if "evaluable" in values else None,
        unlabelled=_names(values.get("unlabelled", ()), path),
        subjects=_tuple(values.get("subjects", ())),
        strata=_strata(values.get("strata", {}), path),
        version=_version(values["version"], path) if "version" in values else None,
        notes=_tuple(values.get("notes", ())),
        **{key: values[key] for key in as_they_are if key in values},
    )


def _check(values: dict, path: Path) -> None:
    """Refuse keys that are not in `KINDS`, and values that are not of their kind."""
    for section, kinds in KINDS.items():
        given = values.get(section, {}) if section else values
        where = f"{path}, [{section}]" if section else str(path)
        for key in given:
            if key not in kinds:
                raise InputError(f"{where}: unknown key {key!r}. Known: {', '.join(kinds)}.")
        check(given, kinds, where)
    for key in ("patterns", "labels"):
        if key not in values:
            raise InputError(f"{path}: [{key}] is missing.")
    if not values["patterns"].get("labels"):
        raise InputError(f"{path}: [patterns] has no labels.")
    if "hippocampus_amygdala" in values and not values.get("unlabelled"):
        raise InputError(
            f"{path}: hippocampus_amygdala has no effect without unlabelled. List there what the "
            "raters left at 0, or remove hippocampus_amygdala."
        )


def _tuple(value: str | list[str]) -> tuple[str, ...]:
    """A single text or a list of them."""
    return (value,) if isinstance(value, str) else tuple(value)


def _strata(strata: dict, path: Path) -> dict[str, str]:
    """Stratum of each subject; ``all`` is what tables call everybody together."""
    stratum_of: dict[str, str] = {}
    for stratum, subjects in strata.items():
        if stratum.strip().lower() in ("", "all"):
            raise InputError(
                f"{path}: a stratum is called {stratum!r}, as everybody together is in tables. "
                "Rename it."
            )
        for subject in _tuple(subjects):
            if stratum_of.setdefault(subject, stratum) != stratum:
                raise InputError(
                    f"{path}: subject {subject!r} is in two strata, {stratum_of[subject]} and "
                    f"{stratum}. Remove it from one."
                )
    return stratum_of


def _version(values: dict[str, str], path: Path) -> Version:
    if set(values) != set(KINDS["version"]):
        raise InputError(f"{path}: [version] needs {', '.join(KINDS['version'])}.")
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9}){2}", values["at_least"]):
        raise InputError(
            f"{path}: version.at_least is {values['at_least']!r}. Write three numbers in quotes, "
            "such as '1.1.0'."
        )
    return Version(**values)


def _check_pattern(pattern: str, path: Path) -> None:
    known = ("id", "subject", "session", *BEFORE_SPACE[2:])
    if re.search(r"[{}]", re.sub(r"\{[^{}]*\}", "", pattern)):
        raise InputError(
            f"{path}: pattern {pattern!r} has a brace without its partner. Write {{subject}}."
        )
    if not pattern or PurePosixPath(pattern).is_absolute() or ".." in Path(pattern).parts:
        raise InputError(
            f"{path}: pattern {pattern!r} is not a path below the dataset's folder. Write it "
            "relative to that folder, without '..'."
        )
    for name in re.findall(r"\{([^}]*)\}", pattern):
        if name not in known:
            raise InputError(
                f"{path}: pattern {pattern!r} has {{{name}}}. Known: {', '.join(known)}."
            )


def _names(names: str | list[str], path: Path) -> tuple[str, ...]:
    """Labels of ``fullhead``; a structure's name stands for its members."""
    table, structures = fullhead(), named_structures()
    members: list[str] = []
    unknown = []
    for name in _tuple(names):
        if name in structures:
            members += structures[name].members
        elif name in table:
            members.append(name)
        else:
            unknown.append(name)
    if unknown:
        raise InputError(
            f"{path}: {', '.join(unknown)}: neither a label of table fullhead nor a structure of "
            "structures.tsv. Correct the name."
        )
    return tuple(dict.fromkeys(members))


def _read_labels(section: dict, path: Path) -> dict[int, Targets]:
    """Meaning of codes from exactly one of a table, a packaged crosswalk, or inline codes."""
    if len(section) != 1:
        raise InputError(
            f"{path}: [labels] needs exactly one of {', '.join(KINDS['labels'])}, it has "
            f"{', '.join(section) or 'none'}."
        )
    if "crosswalk" in section:
        try:
            return crosswalk_labels(section["crosswalk"])
        except ValueError as error:
            raise InputError(f"{path}: [labels]: {error}.") from error
    if "table" in section:
        return read_targets(path.parent / section["table"])
    return targets_of(((str(k), str(v)) for k, v in section["codes"].items()), path)
