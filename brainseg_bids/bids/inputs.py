# SPDX-License-Identifier: Apache-2.0
"""Find participants and their structural images in a BIDS dataset."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from brainseg_bids.bids.ignore import BidsIgnore
from brainseg_bids.bids.index import open_index
from brainseg_bids.bids.names import OutputNames, Scan
from brainseg_bids.documents import Text, read_json
from brainseg_bids.pointers import fetch_all, why_unfetched
from brainseg_bids.volumes import InputError, check_present

log = logging.getLogger("brainseg")

STRUCTURAL = ("T1w", "T2w", "PDw", "T2starw", "FLAIR", "UNIT1", "FLASH", "PD")
"""Suffixes taken unless the user says otherwise: whole-head pictures of anatomy. Slabs (angio,
inplaneT1), quantitative maps (T1map) and raw parts (MP2RAGE, MPM, MEGRE) have to be asked for."""

PARTS_OF_AN_IMAGE = ("inv", "flip", "mt")
"""An image with one of these is one exposure of several, such as MP2RAGE's first inversion."""

ENTITIES = {  # pybids' name: BIDS' key
    "session": "ses",
    "task": "task",
    "acquisition": "acq",
    "ceagent": "ce",
    "reconstruction": "rec",
    "direction": "dir",
    "run": "run",
    "echo": "echo",
    "flip": "flip",
    "inv": "inv",
    "mt": "mt",
    "part": "part",
    "chunk": "chunk",
    "datatype": "",
    "extension": "",
}

ELSEWHERE = frozenset(
    {name.lower() for name in STRUCTURAL}
    | {
        "asl",
        "bold",
        "dwi",
        "fmap",
        "magref",
        "mask",
        "pet",
        "roi",
        "sbref",
        "t1map",
        "xfm",
    }
)
"""Queries in filter files made for other apps, or for images not asked for now: no concern."""


@dataclass(frozen=True)
class Subject:
    """What BIDS offered for one person.

    Parameters
    ----------
    label : str
        Without ``sub-``.
    scans : tuple of Scan
        Images that can be taken, sorted by name.
    faults : dict of str to str
        For images that cannot: how messages call them, and the one line that says why.
    """

    label: str
    scans: tuple[Scan, ...]
    faults: dict[str, str]


def find_participants(bids_dir: Path, wanted: Iterable[str] = ()) -> list[str]:
    """Labels of the dataset's ``sub-*`` folders, or the wanted ones.

    Raises
    ------
    InputError
        If there is no participant, or a wanted one is not there.
    """
    ignore = BidsIgnore.read(bids_dir)
    there = sorted(
        path.name.removeprefix("sub-")
        for path in bids_dir.glob("sub-*")
        if path.is_dir() and not ignore.matches(path.name, folder=True)
    )
    if not there:
        raise InputError(f"{bids_dir}: no folder sub-* is in it. Give the root of a BIDS dataset.")
    labels = list(dict.fromkeys(wanted)) or there
    unknown = [label for label in labels if label not in there]
    if unknown:
        ignored = any((bids_dir / f"sub-{label}").is_dir() for label in unknown)
        why = f" (left out by {bids_dir}/.bidsignore)" if ignored else ""
        shown = ", ".join(there[:10]) + (f" and {len(there) - 10} more" if len(there) > 10 else "")
        raise InputError(
            f"{bids_dir}: no participant {', '.join(unknown)}{why}. "
            f"--participant-label knows {shown}."
        )
    return labels


def dataset_notes(bids_dir: Path) -> list[str]:
    """What is wrong with ``dataset_description.json``, one line each; nothing stops the run."""
    path = bids_dir / "dataset_description.json"
    unfetched = why_unfetched(path)
    if unfetched:
        return [unfetched]
    if not path.is_file():
        return [
            f"{path}: there is none, so this is not a valid BIDS dataset; going on all the same."
        ]
    try:
        description = read_json(path)
    except InputError as error:
        return [str(error)]
    wrong = {
        key: Text().fault(description[key]) if key in description else "is missing"
        for key in ("Name", "BIDSVersion")
    }
    return [f"{path}: {key} {why}; going on all the same." for key, why in wrong.items() if why]


def find_subjects(
    bids_dir: Path,
    labels: Iterable[str],
    *,
    sessions: Iterable[str] = (),
    contrasts: Iterable[str] = (),
    usual: Iterable[str] = STRUCTURAL,
    filters: Mapping[str, Mapping] | None = None,
    database_dir: Path | None = None,
) -> list[Subject]:
    """Find the images of some participants.

    Parameters
    ----------
    bids_dir : Path
    labels : iterable of str
        Participants, as `find_participants` gives them. Only their folders are read: 0.3 s for
        one, 5 s for 1000 with 12 files each.
    sessions : iterable of str
        Keep these sessions only. Images without a session are then left out.
    contrasts : iterable of str
        Suffixes that the user asks for; empty means the usual ones. One that is not among
        `STRUCTURAL` is taken even where ``.bidsignore`` names its images.
    usual : iterable of str
        Suffixes taken unless the user says otherwise, without parts of images and phase.
    filters : mapping
        Lower-case suffix to pybids entity to value; None: absent, ``"*"``: any.
    database_dir : Path, optional
        Keep the index there; see `brainseg_bids.bids.index`.

    Raises
    ------
    InputError
        If a filter names an image type or entity that there is not.
    """
    labels, sessions = list(labels), list(sessions)
    asked = list(contrasts)
    suffixes = asked or list(usual)
    queries = _queries(suffixes, filters or {})
    layout = open_index(bids_dir, labels, datatypes=_datatypes(queries), database_dir=database_dir)
    ignore, ignored = BidsIgnore.read(bids_dir), []
    paths: dict[str, set[Path]] = {label: set() for label in labels}
    for suffix, query in queries.items():
        given = {"datatype": "anat", "extension": [".nii", ".nii.gz"]} | query
        if sessions and "session" not in query:
            given["session"] = sessions
        # One question for everyone: one for each of 1000 participants takes four minutes.
        for found in layout.get(suffix=suffix, return_type="filename", **given):
            path = Path(found)
            inside = path.relative_to(bids_dir.absolute())
            owner = inside.parts[0].removeprefix("sub-")
            if owner not in paths or not (asked or _is_picture(path, query)):
                continue
            # A suffix of the user's own can only be in a valid dataset if it is ignored.
            if suffix in STRUCTURAL and ignore.matches(inside):
                ignored.append(path.name)
            else:
                paths[owner].add(path)
    if ignored:
        log.info(
            "%s/.bidsignore: %d images that it names are left out, e.g. %s",
            bids_dir, len(ignored), min(ignored),
        )  # fmt: skip
    subjects = [_subject(label, sorted(paths[label])) for label in labels]
    if sum(len(subject.faults) for subject in subjects) > 1:
        for command in fetch_all(sorted(set().union(*paths.values()))):
            log.warning("to fetch all images that are not here: %s", command)
    return subjects


def _datatypes(queries: Mapping[str, Mapping]) -> list[str] | None:
    """Folders that queries look in; None if one of them does not say."""
    wanted: list[str] = []
    for query in queries.values():
        said = query.get("datatype", "anat")
        said = [said] if isinstance(said, str) else said
        if not isinstance(said, list):
            return None
        wanted += said
    return wanted


def _is_picture(path: Path, query: Mapping) -> bool:
    entities = Scan.from_path(path).entities
    parts = [key for key in PARTS_OF_AN_IMAGE if key in entities and key not in query]
    phase = entities.get("part", "mag") != "mag" and "part" not in query
    return not parts and not phase


def _queries(suffixes: list[str], filters: Mapping[str, Mapping]) -> dict[str, dict]:
    from bids.layout import Query  # late: pybids takes a second to import

    special = {None: Query.NONE, "*": Query.ANY}
    by_key = {suffix.lower(): suffix for suffix in suffixes}
    queries: dict[str, dict] = {suffix: {} for suffix in suffixes}
    for key, values in filters.items():
        if key.lower() not in by_key:
            if key.lower() in ELSEWHERE:
                continue
            known = ", ".join(sorted(by_key))
            raise InputError(f"--bids-filter-file: unknown query {key!r}. Known here: {known}.")
        if not isinstance(values, Mapping):
            raise InputError(f"--bids-filter-file: {key}: give entities and values in braces.")
        for entity, value in values.items():
            if entity == "suffix":
                raise InputError("--bids-filter-file: choose suffixes with --contrasts.")
            if entity not in ENTITIES:
                known = ", ".join(sorted(ENTITIES))
                raise InputError(
                    f"--bids-filter-file: {key}: unknown entity {entity!r}. Known: {known}."
                )
            queries[by_key[key.lower()]][entity] = (
                special[value] if value is None or value == "*" else value
            )
    return queries


def _subject(label: str, paths: list[Path]) -> Subject:
    """Check what can be told from names and sizes; the rest shows when an image is read."""
    scans, faults = [], {}
    owners: dict[Path, Scan] = {}
    for path in paths:
        scan = Scan.from_path(path)
        title = scan.title
        if scan.entities.get("sub") != label:
            faults[title] = (
                f"{path}: the name says sub-{scan.entities.get('sub')}, the folder sub-{label}. "
                "Rename one of them."
            )
            continue
        output = OutputNames.of(scan).labels
        if output in owners:
            other = owners[output].path.name
            faults[f"{title} ({path.name})"] = (
                f"{path}: it and {other} would both become {output.name}. "
                "Keep one of them, or choose with --bids-filter-file."
            )
            continue
        owners[output] = scan
        try:
            unfetched = why_unfetched(path)
            if unfetched:
                faults[title] = unfetched
                continue
            check_present(path)
        except InputError as error:
            faults[title] = str(error)
            continue
        except OSError as error:
            faults[title] = f"{path}: cannot be read ({error.strerror}). Check its permissions."
            continue
        scans.append(scan)
    return Subject(label, tuple(scans), faults)
