# SPDX-License-Identifier: Apache-2.0
"""Find participants and their structural images in a BIDS dataset."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from brainseg_bids.bids.filters import Filter, log_ignored, make_filters
from brainseg_bids.bids.ignore import BidsIgnore
from brainseg_bids.bids.index import open_index
from brainseg_bids.bids.names import STRUCTURAL, OutputNames, Scan, bare, clean_label, is_label
from brainseg_bids.documents import Text, read_json
from brainseg_bids.pointers import fetch_all, why_unfetched
from brainseg_bids.volumes import InputError, check_present

log = logging.getLogger("brainseg")

PARTS_OF_AN_IMAGE = ("inv", "flip", "mt")
"""An image with one of these is one exposure of several, such as MP2RAGE's first inversion."""


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
        Content of a filter file; see `brainseg_bids.bids.filters`.
    database_dir : Path, optional
        Keep the index there; see `brainseg_bids.bids.index`.

    Raises
    ------
    InputError
        If a filter cannot be used, or leaves no image at all.
    """
    labels, sessions = list(labels), list(sessions)
    asked = list(contrasts)
    suffixes = asked or list(usual)
    by_suffix = make_filters(filters or {}, suffixes)
    log_ignored(filters or {}, suffixes)
    refused = {label: fault for label in labels if (fault := label_fault(bids_dir, label))}
    paths: dict[str, set[Path]] = {label: set() for label in labels if label not in refused}
    layout = open_index(
        bids_dir, paths, datatypes=_datatypes(by_suffix.values()), database_dir=database_dir
    )
    ignore, ignored, missed = BidsIgnore.read(bids_dir), [], []
    for suffix, own in by_suffix.items():
        left_out: list[Scan] = []
        n_found = 0
        for scan in _offered(layout, suffix, own, bids_dir.absolute(), sessions):
            inside = scan.path.relative_to(bids_dir.absolute())
            owner = inside.parts[0].removeprefix("sub-")
            if owner not in paths or not (asked or _is_picture(scan, own)):
                continue
            # A suffix of the user's own can only be in a valid dataset if it is ignored.
            if suffix in STRUCTURAL and ignore.matches(inside):
                ignored.append(scan.path.name)
            elif own.passes(scan):
                paths[owner].add(scan.path)
                n_found += 1
            else:
                left_out.append(scan)
        if left_out and not n_found:
            missed.append(f"--bids-filter-file: no {suffix} image fits: {own.missed(left_out)}.")
    if ignored:
        log.info(
            "%s/.bidsignore: %d images that it names are left out, e.g. %s",
            bids_dir, len(ignored), min(ignored),
        )  # fmt: skip
    if missed and not any(paths.values()):
        raise InputError(" ".join([*missed, "Correct it."]))
    for note in missed:
        log.warning("%s", note)
    subjects = [
        Subject(label, (), {f"sub-{label}": refused[label]})
        if label in refused
        else _subject(label, sorted(paths[label]), bids_dir.absolute())
        for label in labels
    ]
    if sum(len(subject.faults) for subject in subjects) > 1:
        for command in fetch_all(sorted(set().union(*paths.values()))):
            log.warning("to fetch all images that are not here: %s", command)
    return subjects


def _offered(
    layout, suffix: str, own: Filter, root: Path, sessions: Sequence[str]
) -> Iterator[Scan]:
    """Images of everyone with a suffix, in the wanted sessions.

    One question for everyone: one for each of 1000 participants takes four minutes.
    """
    given = {"extension": list(own.extensions)}
    if own.datatypes is not None:
        given["datatype"] = list(own.datatypes)
    for found in layout.get(suffix=suffix, return_type="filename", **given):
        scan = Scan.from_path(found)
        # Where the two differ, it is told, whichever of them was asked for.
        said = {scan.session, _session_folder(scan.path.relative_to(root))}
        if not sessions or said & set(sessions):
            yield scan


def _datatypes(filters: Iterable[Filter]) -> list[str] | None:
    """Folders that filters look in; None if one of them looks everywhere."""
    every = [one.datatypes for one in filters]
    return None if None in every else sorted({name for names in every for name in names})


def _is_picture(scan: Scan, own: Filter) -> bool:
    """Whether it is a whole image's magnitude; a filter that names a part has its way."""
    parts = [key for key in PARTS_OF_AN_IMAGE if key in scan.entities and key not in own.entities]
    phase = scan.entities.get("part", "mag") != "mag" and "part" not in own.entities
    return not parts and not phase


def label_fault(bids_dir: Path, label: str) -> str:
    """Why a participant's folder cannot be taken, or nothing."""
    if is_label(label):
        return ""
    clean = clean_label(label)
    return (
        f"{bids_dir / f'sub-{label}'}: {label!r} is no BIDS label, which has letters and digits "
        f"only. Rename the folder and its files{f', e.g. to sub-{clean}' if clean else ''}."
    )


def name_fault(scan: Scan, label: str, inside: Path) -> str:
    """Why a name cannot be taken, or nothing: no BIDS name, or one that its folder contradicts."""
    path = scan.path
    *pairs, _ = bare(path).split("_")
    for pair in pairs:
        key, dash, value = pair.partition("-")
        if not dash or not is_label(value):
            return (
                f"{path}: {pair!r} is no BIDS entity: a key, a hyphen, and a label of letters and "
                "digits. Rename it."
            )
        if scan.entities[key] != value:
            return f"{path}: its name has {key}- twice. Rename it."
    says = {"sub": label, "ses": _session_folder(inside)}
    for key, folder in says.items():
        own = scan.entities.get(key)
        if folder is not None and own != folder:
            said = f"{key}-{own}" if own else f"no {key}-"
            return f"{path}: the name says {said}, the folder {key}-{folder}. Rename one of them."
    return ""


def _session_folder(inside: Path) -> str | None:
    """Label of the session's folder that a path below the root goes through."""
    names = [part for part in inside.parts[1:-1] if part.startswith("ses-")]
    return names[0].removeprefix("ses-") if names else None


def _subject(label: str, paths: list[Path], bids_dir: Path) -> Subject:
    """Check what can be told from names and sizes; the rest shows when an image is read."""
    scans, faults = [], {}
    owners: dict[Path, Scan] = {}
    for path in paths:
        scan = Scan.from_path(path)
        title = scan.title
        if fault := name_fault(scan, label, path.relative_to(bids_dir)):
            faults[title] = fault
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
