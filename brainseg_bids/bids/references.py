# SPDX-License-Identifier: Apache-2.0
"""References: the label maps of raters, found below a folder and paired by their images.

`find_cases` finds the maps of an adapter below a folder; `match_cases` pairs those of two raters.
"""

from __future__ import annotations

import fnmatch
import glob
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from brainseg_bids.bids.adapters import Adapter, plain_adapter, read_adapter
from brainseg_bids.bids.inputs import STRUCTURAL
from brainseg_bids.bids.names import Scan, sidecar, stem
from brainseg_bids.bids.sidecars import Metadata, read_sidecar
from brainseg_bids.volumes import InputError, check_present

__all__ = [
    "Adapter",
    "Case",
    "Matching",
    "find_cases",
    "key_of",
    "match_cases",
    "partners",
    "plain_adapter",
    "read_adapter",
    "scan_of",
]

OWN_MAPS = ("brainseg", "fullhead")
"""Labels of ``seg-`` of this app's maps of whole heads. A derivative of this app has others beside
them (``tissue``, one for each tool): the first of these that is there is meant."""

OWN_SPACE = frozenset({"T1w", "orig"})
RAW = frozenset({*STRUCTURAL, "MP2RAGE", "MPM", "MEGRE", "inplaneT1", "angio"})
"""Suffixes that ``space-`` may name; a label that is none of them is a template's."""

PLACEHOLDERS = {"id": r"[^/]+?", "session": r"[0-9A-Za-z+]+", "subject": r"[0-9A-Za-z+]+"}
NUMBERED = frozenset({"sub", "ses", "run"})
"""Entities whose labels are the same with and without leading zeros."""


@dataclass(frozen=True)
class Case:
    """One image's label map by one rater.

    Parameters
    ----------
    key : str
        Entities, and the suffix unless it is T1w: ``sub-3_ses-1``, ``sub-01_acq-a_T2w``.
    subject : str
        Label without ``sub-``.
    stratum : str
        Empty if there is none.
    image : Path or None
    labels : Path
    mask : Path or None
        The brain, by whoever made the dataset.
    """

    key: str
    subject: str
    stratum: str
    image: Path | None
    labels: Path
    mask: Path | None = None


@dataclass(frozen=True)
class Matching:
    """Which cases of two raters are of the same image.

    Parameters
    ----------
    pairs : mapping of str to str
        Key of the reference's case to that of the rater's.
    missing, extra : tuple of str
        Keys of the reference and of the rater that are without a partner.
    notes : tuple of str
    """

    pairs: Mapping[str, str]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    notes: tuple[str, ...]


def key_of(scan: Scan) -> str:
    """What a scan is called across raters, whether it is an image or made from one.

    >>> key_of(Scan.from_path("sub-01_ses-A_T1w.nii.gz"))
    'sub-01_ses-A'
    >>> key_of(Scan.from_path("sub-01_acq-a_T2w.nii.gz"))
    'sub-01_acq-a_T2w'
    >>> key_of(Scan.from_path("sub-01_acq-a_space-T2w_seg-brainseg_dseg.nii.gz"))
    'sub-01_acq-a_T2w'
    """
    space = scan.entities.get("space")
    suffix = scan.suffix if scan.suffix in RAW or scan.suffix.endswith(("w", "map")) else "T1w"
    if space is not None and space not in OWN_SPACE:
        suffix = space
    plain = {k: v for k, v in scan.entities.items() if k not in ("space", "seg", "desc", "res")}
    named = stem(replace(scan, entities=plain, suffix="T1w"))
    return named if suffix == "T1w" else f"{named}_{suffix}"


def scan_of(case: Case) -> Scan:
    """The image of a case as a scan, by the entities of its key.

    >>> scan_of(Case("sub-3_ses-1", "3", "", None, Path("x.nii"))).title
    'sub-3 ses-1 T1w'
    """
    entities, suffix = _parse(case.key)
    path = case.image or Path(case.key + ("_T1w" if suffix == "T1w" else "") + ".nii.gz")
    return Scan(path, entities, suffix)


def find_cases(adapter: Adapter, root: str | Path) -> tuple[dict[str, Case], list[str]]:
    """Label maps of a rater below a folder.

    Parameters
    ----------
    adapter : Adapter
        Not one of a tool, whose files are found image by image.
    root : path

    Returns
    -------
    cases : dict of str to Case
        By key. Maps whose content is not here are left out.
    notes : list of str
        One line for everything that a reader should know: what is missing, not fetched, double.

    Raises
    ------
    InputError
        If there is no such folder, nothing in it fits, or the choice is not clear.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: there is no such folder. Give the folder of {adapter.name}.")
    notes: list[str] = []
    search = _by_patterns if adapter.patterns else _plain
    found = search(adapter, root, notes)
    if not found:
        looked = " or ".join(adapter.patterns.get("labels", ("sub-*/**/*_dseg.nii.gz",)))
        raise InputError(
            f"{root}: no labels of {adapter.name} are in it. Expected: {looked}. Give the folder "
            "that they are relative to."
        )
    cases = {}
    for key, (labels, entities) in sorted(found.items(), key=lambda item: _order(item[0])):
        try:
            check_present(labels)
        except InputError as error:
            notes.append(str(error))
            continue
        cases[key] = Case(
            key,
            entities["sub"],
            _stratum(adapter, entities["sub"]),
            _beside(adapter, "image", root, labels, entities, notes),
            labels,
            _beside(adapter, "mask", root, labels, entities, []),  # a brain mask is a bonus
        )
    notes += _about_subjects(adapter, found, root)
    notes += _about_version(adapter, root)
    notes += _about_sidecars(adapter, cases.values())
    return cases, notes


def _order(key: str) -> list:
    """Sorts sub-3 before sub-20."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", key)]


def _stratum(adapter: Adapter, subject: str) -> str:
    """Stratum of a subject, whether or not somebody has padded its label."""
    by_number = {_number(label): stratum for label, stratum in adapter.strata.items()}
    return adapter.strata.get(subject, by_number.get(_number(subject), ""))


def _number(label: str) -> str:
    """Label without leading zeros, if it is a number.

    >>> _number("003"), _number("0"), _number("A03")
    ('3', '0', 'A03')
    """
    return str(int(label)) if label.isdigit() else label


Found = dict[str, tuple[Path, dict[str, str]]]


def _by_patterns(adapter: Adapter, root: Path, notes: list[str]) -> Found:
    found: Found = {}
    for pattern in adapter.patterns["labels"]:
        expression = _expression(pattern)
        here: dict[str, list[tuple[Path, dict[str, str]]]] = {}
        for name in sorted(_names_like(pattern, root)):
            hit = expression.fullmatch(name)
            ignored = any(fnmatch.fnmatch(name, p) for p in adapter.patterns.get("ignore", ()))
            if hit and not ignored:
                entities, suffix = _entities(hit.groupdict())
                key = key_of(Scan(root / name, entities, suffix))
                here.setdefault(key, []).append((root / name, entities))
        for key, candidates in here.items():
            if key not in found:
                found[key] = _one_of(candidates, key, root, adapter, notes)
    return found


def _one_of(
    candidates: list[tuple[Path, dict[str, str]]],
    key: str,
    root: Path,
    adapter: Adapter,
    notes: list[str],
) -> tuple[Path, dict[str, str]]:
    """The only candidate; of a file and its compressed twin the first."""
    first, *others = candidates
    for other, _ in others:
        if _bare_name(other) != _bare_name(first[0]):
            raise InputError(
                f"{first[0]} and {other}: both may be {adapter.name}'s labels of {key}. Leave one "
                f"in {root}."
            )
        notes.append(f"{first[0]}: {other.name} is there too; it is not read.")
    return first


def _bare_name(path: Path) -> str:
    return path.as_posix().removesuffix(".gz")


def _names_like(pattern: str, root: Path) -> list[str]:
    """Files below the root that a pattern may mean, links without content among them."""
    shape = re.sub(r"\{[^}]*\}", "*", pattern)
    base = shape.removesuffix(".gz")
    endings = [base, f"{base}.gz"] if base.endswith(".nii") else [shape]
    return [name for ending in endings for name in glob.glob(ending, root_dir=root)]


def _expression(pattern: str) -> re.Pattern:
    """Regular expression of a pattern; ``.nii`` and ``.nii.gz`` mean each other."""
    parts, seen = [], set()
    for part in re.split(r"(\{[^}]*\}|\*)", pattern.removesuffix(".gz")):
        name = part[1:-1] if part.startswith("{") else ""
        if part == "*":
            parts.append("[^/]*")
        elif name in seen:
            parts.append(f"(?P={name})")
        elif name:
            seen.add(name)
            parts.append(f"(?P<{name}>{PLACEHOLDERS.get(name, '[0-9A-Za-z+]+')})")
        else:
            parts.append(re.escape(part))
    compressed = r"(\.gz)?" if pattern.removesuffix(".gz").endswith(".nii") else ""
    if pattern.endswith(".gz") and not compressed:
        compressed = re.escape(".gz")
    return re.compile("".join(parts) + compressed)


def _entities(said: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """Entities and suffix from what the placeholders of a pattern stand for."""
    said = dict(said)
    entities, suffix = _parse(said.pop("id")) if "id" in said else ({}, "T1w")
    long = {"subject": "sub", "session": "ses"}
    entities |= {long.get(key, key): label for key, label in said.items()}
    entities.setdefault("sub", "all")
    return entities, suffix


def _parse(name: str) -> tuple[dict[str, str], str]:
    """Entities and suffix of a key, or of a name in which only the subject may stand.

    >>> _parse("sub-3_ses-1_T2w"), _parse("bert_2")
    (({'sub': '3', 'ses': '1'}, 'T2w'), ({'sub': 'bert2'}, 'T1w'))
    """
    if not name.startswith("sub-"):
        return {"sub": re.sub(r"[^0-9A-Za-z+]", "", name)}, "T1w"
    scan = Scan.from_path(f"{name}_T1w" if "-" in name.rpartition("_")[2] else name)
    suffix = scan.entities.get("space", scan.suffix)
    suffix = scan.suffix if suffix in OWN_SPACE else suffix
    return {k: v for k, v in scan.entities.items() if k != "space"}, suffix


def _plain(adapter: Adapter, root: Path, notes: list[str]) -> Found:
    """Segmentations of a BIDS derivative, one an image."""
    by_key: dict[str, dict[str, list[tuple[Path, dict[str, str]]]]] = {}
    elsewhere = []
    for name in sorted(glob.glob("sub-*/**/*_dseg.nii*", root_dir=root, recursive=True)):
        scan = Scan.from_path(root / name)
        said = scan.entities
        if {"res", "label"} & said.keys() or said.get("desc", "").startswith("top"):
            continue
        space = said.get("space", "orig")
        if space not in OWN_SPACE | RAW and not space.endswith(("w", "map")):
            elsewhere.append(f"{root / name}: lies in the space {space}; it is not read.")
            continue
        which = said.get("seg") or said.get("desc", "")
        by_key.setdefault(key_of(scan), {}).setdefault(which, []).append((root / name, said))
    which = _chosen(by_key, adapter, root)
    found = {}
    for key, segmentations in by_key.items():
        if which in segmentations:
            found[key] = _one_of(segmentations[which], key, root, adapter, notes)
    notes += elsewhere
    return found


def _chosen(
    by_key: Mapping[str, Mapping[str, object]], adapter: Adapter, root: Path
) -> str | None:
    """Label of ``seg-`` to take: the rater's name, this app's own, or the only one there is.

    Two others may be two raters: that is refused.
    """
    labels = sorted({which for segmentations in by_key.values() for which in segmentations})
    for which in (adapter.name, *OWN_MAPS):
        if which in labels:
            return which
    if len(labels) > 1:
        shown = ", ".join(which or "(no seg-)" for which in labels)
        raise InputError(
            f"{root}: has several segmentations ({shown}), none of them {adapter.name}. Say which "
            f"as NAME of NAME=PATH, e.g. {next(filter(None, labels))}={root}."
        )
    return labels[0] if labels else None


def _beside(
    adapter: Adapter,
    what: str,
    root: Path,
    labels: Path,
    entities: Mapping[str, str],
    notes: list[str],
) -> Path | None:
    """Image or mask that goes with a label map, if its content is here."""
    patterns = adapter.patterns.get(what, ())
    said = _said_of(adapter, labels.relative_to(root).as_posix(), entities)
    for pattern in patterns:
        filled = pattern
        for name, label in said.items():
            filled = filled.replace(f"{{{name}}}", label)
        for candidate in _twins(root / filled):
            if not (candidate.exists() or candidate.is_symlink()):
                continue
            try:
                check_present(candidate)
            except InputError as error:
                notes.append(str(error))
                return None
            return candidate
    if patterns and what == "image":
        notes.append(f"{labels}: its image is not here ({patterns[0]} in {root}).")
    return None


def _said_of(adapter: Adapter, name: str, entities: Mapping[str, str]) -> dict[str, str]:
    """What the placeholders stand for in the name of a label map."""
    said = {"subject": entities["sub"], "session": entities.get("ses", ""), **entities}
    for pattern in adapter.patterns.get("labels", ()):
        hit = _expression(pattern).fullmatch(name)
        if hit:
            return said | hit.groupdict()
    return said


def _twins(path: Path) -> tuple[Path, ...]:
    """A NIfTI file, and the same file compressed or not."""
    if path.name.endswith(".nii.gz"):
        return path, path.with_suffix("")
    return (path, Path(f"{path}.gz")) if path.suffix == ".nii" else (path,)


def _about_subjects(adapter: Adapter, found: Found, root: Path) -> list[str]:
    expected = {_number(label): label for label in adapter.subjects}
    if not expected:
        return []
    there = {_number(entities["sub"]) for _, entities in found.values()}
    notes = []
    missing = [f"sub-{label}" for number, label in expected.items() if number not in there]
    if missing:
        notes.append(f"{root}: no labels of {', '.join(missing)}, which {adapter.name} lists.")
    more = sorted((f"sub-{n}" for n in there - expected.keys()), key=_order)
    if more:
        notes.append(
            f"{root}: labels of {', '.join(more)}, which {adapter.name} does not list; they are "
            "taken."
        )
    return notes


def _about_version(adapter: Adapter, root: Path) -> list[str]:
    wanted = adapter.version
    if wanted is None:
        return []
    path = root / wanted.file
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    versions = [_numbers(v) for v in re.findall(r"(?m)^\s*(\d+\.\d+\.\d+)", text)]
    reason = f"Version {wanted.at_least} or later is wanted: {wanted.why}."
    if not versions:
        return [f"{path}: does not say which version this is. {reason}"]
    if max(versions) < _numbers(wanted.at_least):
        said = ".".join(map(str, max(versions)))
        return [f"{path}: this is version {said}. {reason}"]
    return []


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _about_sidecars(adapter: Adapter, cases: Iterable[Case]) -> list[str]:
    counts = dict.fromkeys(adapter.misspelt, 0)
    notes: list[str] = []
    for case in cases:
        path = sidecar(case.image) if case.image and counts else None
        said = read_sidecar(path) if path and path.exists() else Metadata()
        notes += said.warnings
        for wrong in counts:
            counts[wrong] += wrong in said.values
    return notes + [
        f"{n} sidecar{'s' if n > 1 else ''} of images of {adapter.name} say {wrong}; taken as "
        f"{adapter.misspelt[wrong]}."
        for wrong, n in counts.items()
        if n
    ]


# ---- matching


def match_cases(reference: Iterable[str], rater: Iterable[str], *, name: str) -> Matching:
    """Pair the keys of two raters: same image, whether or not labels are padded with zeros.

    A rater's only case of a subject without a session is that of the reference's only session.

    Parameters
    ----------
    reference, rater : iterable of str
        Keys.
    name : str
        Of the rater, for messages.

    Raises
    ------
    InputError
        If labels that differ by zeros only could both be meant.

    Examples
    --------
    >>> found = match_cases(["sub-3_ses-1", "sub-9_ses-1"], ["sub-03_ses-1"], name="mine")
    >>> dict(found.pairs), found.missing
    ({'sub-3_ses-1': 'sub-03_ses-1'}, ('sub-9_ses-1',))
    """
    wanted, there = list(reference), list(rater)
    pairs = {key: key for key in wanted if key in there}
    notes = []
    for canonical in (_canonical, _without_session):
        left = _grouped([key for key in there if key not in pairs.values()], canonical)
        still = _grouped([key for key in wanted if key not in pairs], canonical)
        whole = _grouped(wanted, _without_session), _grouped(there, _without_session)
        for same, keys in still.items():
            mates = left.get(same, [])
            if canonical is _without_session and not _single(keys, mates, same, whole):
                continue
            if mates:
                pairs[keys[0]] = _only_mate(keys, mates, name)
                notes.append(f"{name}: {mates[0]} is taken as {keys[0]}.")
    used = set(pairs.values())
    return Matching(
        {key: pairs[key] for key in wanted if key in pairs},
        tuple(key for key in wanted if key not in pairs),
        tuple(key for key in there if key not in used),
        tuple(notes),
    )


def partners(reference: Collection[str], rater: Collection[str], *, name: str) -> frozenset[str]:
    """Keys of a rater that `match_cases` would pair, or that are ambiguous.

    Unlike there, nothing is an error: it is for images that nobody asked for.

    Examples
    --------
    >>> sorted(partners(["sub-3", "sub-4"], ["sub-03", "sub-4", "sub-5"], name="mine"))
    ['sub-03', 'sub-4']
    """
    wanted, there = (
        _grouped(dict.fromkeys(keys), _without_session) for keys in (reference, rater)
    )
    found: set[str] = set()
    for same in wanted.keys() & there.keys():
        try:
            found |= set(match_cases(wanted[same], there[same], name=name).pairs.values())
        except InputError:
            found |= set(there[same])
    return frozenset(found)


def _only_mate(keys: list[str], mates: list[str], name: str) -> str:
    """The rater's case of a reference's, if there is one of each only."""
    if len(mates) > 1:
        raise InputError(
            f"{name}: {' and '.join(mates)} may both be {keys[0]}. Rename or remove one of them."
        )
    if len(keys) > 1:
        raise InputError(
            f"{name}: {mates[0]} may be {' or '.join(keys)} of the reference. Rename it."
        )
    return mates[0]


def _grouped(keys: Iterable[str], canonical: Callable[[str], tuple]) -> dict[tuple, list[str]]:
    groups: dict[tuple, list[str]] = {}
    for key in keys:
        groups.setdefault(canonical(key), []).append(key)
    return groups


def _single(keys: list[str], mates: list[str], same: tuple, whole: tuple[dict, dict]) -> bool:
    """Whether one side lacks the session, and neither has another case that it could be."""
    alone = all(len(groups.get(same, ())) == 1 for groups in whole)
    return bool(mates) and alone and ("_ses-" in keys[0]) != ("_ses-" in mates[0])


def _canonical(key: str) -> tuple:
    """Entities without leading zeros, and suffix.

    >>> _canonical("sub-03_ses-1") == _canonical("sub-3_ses-01")
    True
    """
    entities, suffix = _parse(key)
    plain = {k: _number(v) if k in NUMBERED else v for k, v in entities.items()}
    return (*sorted(plain.items()), suffix)


def _without_session(key: str) -> tuple:
    return tuple(part for part in _canonical(key) if part[0] != "ses")
