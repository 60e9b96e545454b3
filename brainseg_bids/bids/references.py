# SPDX-License-Identifier: Apache-2.0
"""The label maps of a rater, found below a folder."""

from __future__ import annotations

import fnmatch
import glob
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from brainseg_bids.bids.adapters import Adapter
from brainseg_bids.bids.matching import OWN_SPACE, RAW, key_of, parse_key, without_zeros
from brainseg_bids.bids.names import Scan, sidecar
from brainseg_bids.bids.sidecars import Metadata, read_sidecar
from brainseg_bids.documents import InputError
from brainseg_bids.images import check_present
from brainseg_bids.units import natural_order

OWN_MAPS = ("brainseg", "fullhead")
"""Labels of ``seg-`` of this app's maps of whole heads. A derivative of this app has others beside
them (``tissue``, one for each tool): the first of these that is there is meant."""

PLACEHOLDERS = {"id": r"[^/]+?", "session": r"[0-9A-Za-z+]+", "subject": r"[0-9A-Za-z+]+"}


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


def scan_of(case: Case) -> Scan:
    """The image of a case as a scan, by the entities of its key.

    >>> scan_of(Case("sub-3_ses-1", "3", "", None, Path("x.nii"))).title
    'sub-3 ses-1 T1w'
    """
    entities, suffix = parse_key(case.key)
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
    maps = search(adapter, root, notes)
    if not maps:
        looked = " or ".join(adapter.patterns.get("labels", ("sub-*/**/*_dseg.nii.gz",)))
        raise InputError(
            f"{root}: no labels of {adapter.name} are in it. Expected: {looked}. Give the folder "
            "that they are relative to."
        )
    cases = {}
    for key, (labels, entities) in sorted(maps.items(), key=lambda item: natural_order(item[0])):
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
    notes += _about_subjects(adapter, maps, root)
    notes += _about_version(adapter, root)
    notes += _about_sidecars(adapter, cases.values())
    return cases, notes


def _stratum(adapter: Adapter, subject: str) -> str:
    """Stratum of a subject, whether or not somebody has padded its label."""
    by_number = {without_zeros(label): stratum for label, stratum in adapter.strata.items()}
    return adapter.strata.get(subject, by_number.get(without_zeros(subject), ""))


Maps = dict[str, tuple[Path, dict[str, str]]]


def _by_patterns(adapter: Adapter, root: Path, notes: list[str]) -> Maps:
    maps: Maps = {}
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
            if key not in maps:
                maps[key] = _one_of(candidates, key, root, adapter, notes)
    return maps


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


def _entities(placeholders: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """Entities and suffix from what the placeholders of a pattern stand for."""
    labels = dict(placeholders)
    entities, suffix = parse_key(labels.pop("id")) if "id" in labels else ({}, "T1w")
    long = {"subject": "sub", "session": "ses"}
    entities |= {long.get(key, key): label for key, label in labels.items()}
    entities.setdefault("sub", "all")
    return entities, suffix


def _plain(adapter: Adapter, root: Path, notes: list[str]) -> Maps:
    """Segmentations of a BIDS derivative, one an image."""
    by_key: dict[str, dict[str, list[tuple[Path, dict[str, str]]]]] = {}
    elsewhere = []
    for name in sorted(glob.glob("sub-*/**/*_dseg.nii*", root_dir=root, recursive=True)):
        scan = Scan.from_path(root / name)
        entities = scan.entities
        if {"res", "label"} & entities.keys() or entities.get("desc", "").startswith("top"):
            continue
        space = entities.get("space", "orig")
        if space not in OWN_SPACE | RAW and not space.endswith(("w", "map")):
            elsewhere.append(f"{root / name}: lies in the space {space}; it is not read.")
            continue
        which = entities.get("seg") or entities.get("desc", "")
        by_key.setdefault(key_of(scan), {}).setdefault(which, []).append((root / name, entities))
    which = _chosen(by_key, adapter, root)
    maps = {}
    for key, segmentations in by_key.items():
        if which in segmentations:
            maps[key] = _one_of(segmentations[which], key, root, adapter, notes)
    notes += elsewhere
    return maps


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
    placeholders = _placeholders_of(adapter, labels.relative_to(root).as_posix(), entities)
    for pattern in patterns:
        filled = pattern
        for name, label in placeholders.items():
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
        notes.append(
            f"{labels}: its image is not here ({patterns[0]} in {root}). "
            "Stage evaluate uses the segmented image instead, if that is in the dataset."
        )
    return None


def _placeholders_of(adapter: Adapter, name: str, entities: Mapping[str, str]) -> dict[str, str]:
    """What the placeholders stand for in the name of a label map."""
    labels = {"subject": entities["sub"], "session": entities.get("ses", ""), **entities}
    for pattern in adapter.patterns.get("labels", ()):
        hit = _expression(pattern).fullmatch(name)
        if hit:
            return labels | hit.groupdict()
    return labels


def _twins(path: Path) -> tuple[Path, ...]:
    """A NIfTI file, and the same file compressed or not."""
    if path.name.endswith(".nii.gz"):
        return path, path.with_suffix("")
    return (path, Path(f"{path}.gz")) if path.suffix == ".nii" else (path,)


def _about_subjects(adapter: Adapter, maps: Maps, root: Path) -> list[str]:
    expected = {without_zeros(label): label for label in adapter.subjects}
    if not expected:
        return []
    there = {without_zeros(entities["sub"]) for _, entities in maps.values()}
    notes = []
    missing = [f"sub-{label}" for number, label in expected.items() if number not in there]
    if missing:
        notes.append(f"{root}: no labels of {', '.join(missing)}, which {adapter.name} lists.")
    more = sorted((f"sub-{n}" for n in there - expected.keys()), key=natural_order)
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
        newest = ".".join(map(str, max(versions)))
        return [f"{path}: this is version {newest}. {reason}"]
    return []


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _about_sidecars(adapter: Adapter, cases: Iterable[Case]) -> list[str]:
    counts = dict.fromkeys(adapter.misspelt, 0)
    notes: list[str] = []
    for case in cases:
        path = sidecar(case.image) if case.image and counts else None
        metadata = read_sidecar(path) if path and path.exists() else Metadata()
        notes += metadata.warnings
        for wrong in counts:
            counts[wrong] += wrong in metadata.values
    return notes + [
        f"{n} sidecar{'s' if n > 1 else ''} of images of {adapter.name} say {wrong}; taken as "
        f"{adapter.misspelt[wrong]}."
        for wrong, n in counts.items()
        if n
    ]
