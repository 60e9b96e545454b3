# SPDX-License-Identifier: Apache-2.0
"""The index of a dataset's files, and one kept on disk that cannot be out of date."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path
from uuid import uuid4

from brainseg_bids.documents import read_json

log = logging.getLogger("brainseg")

FORMAT = 1
"""Of what is kept; another one is made again."""

DATATYPES = (
    "anat", "beh", "dwi", "eeg", "fmap", "func", "ieeg", "meg", "micr", "motion", "mrs", "nirs",
    "perf", "pet",
)  # fmt: skip
"""Folders of BIDS 1.10 below a participant or session."""

BESIDE_PARTICIPANTS = ("code", "sourcedata", "derivatives", "models", "stimuli", "phenotype")


def open_index(
    bids_dir: Path,
    labels: Iterable[str],
    *,
    datatypes: Collection[str] | None = ("anat",),
    database_dir: Path | None = None,
):
    """Index of the file names of some participants.

    An index depends on names alone: contents and JSON files are never read. What is kept in
    ``database_dir`` lies in a folder that is named after everything that it depends on: root,
    participants, folders left out, the version of pybids, and **every name** below these
    participants' folders. So an index of another state is not found rather than trusted, and
    jobs that share the folder do not wait for or spoil one another's. Listing the names takes
    0.3 s for 12,000 files where the index takes 5 s.

    Parameters
    ----------
    bids_dir : Path
    labels : iterable of str
        Participants whose folders are read, without ``sub-``.
    datatypes : collection of str or None
        Folders such as ``anat`` to read; None: all.
    database_dir : Path, optional
        Keep the index there. A folder that cannot be written is told and does not stop the run.

    Returns
    -------
    bids.BIDSLayout

    Raises
    ------
    InputError
        If the dataset's description is no JSON object.
    """
    labels = sorted(set(labels))
    ignored = _ignored(bids_dir, labels, datatypes)
    if database_dir is None:
        return _make(bids_dir, ignored)
    scope, state = _fingerprint(bids_dir, labels, ignored)
    kept = database_dir / f"brainseg-{scope[:12]}-{state[:24]}"
    layout = _read(bids_dir, kept) if kept.is_dir() else None
    if layout is None:
        layout = _make(bids_dir, ignored)
        try:
            _keep(layout, kept)
        except OSError as error:
            log.warning("--bids-database-dir %s: cannot be written (%s)", database_dir, error)
    return layout


def _ignored(
    bids_dir: Path, labels: list[str], datatypes: Collection[str] | None
) -> list[re.Pattern]:
    """Patterns of paths below the root, with a slash first, that are not indexed."""
    beside = "|".join(BESIDE_PARTICIPANTS)
    patterns = [rf"^/(?:{beside})(?:/|$)", r"^/(?!sub-)[^/]+/", r"/\."]
    there = {path.name.removeprefix("sub-") for path in bids_dir.glob("sub-*")}
    if there - set(labels):  # a long list of names is slow to match
        only = "|".join(re.escape(label) for label in labels)
        patterns.append(rf"^/sub-(?!(?:{only})(?:/|$))[^/]*(?:/|$)")
    if datatypes is not None:
        others = "|".join(name for name in DATATYPES if name not in datatypes)
        patterns.append(rf"^/sub-[^/]+/(?:ses-[^/]+/)?(?:{others})(?:/|$)")
    return [re.compile(pattern) for pattern in patterns]


def _make(bids_dir: Path, ignored: list[re.Pattern]):
    from bids.layout import BIDSLayout, BIDSLayoutIndexer  # late: takes a second to import

    indexer = BIDSLayoutIndexer(validate=False, index_metadata=False, ignore=ignored)
    try:
        return BIDSLayout(bids_dir, validate=False, indexer=indexer)
    except (AttributeError, RecursionError, TypeError, ValueError):
        # pybids reads this file, whatever it is asked for, and stops at what it does not expect.
        read_json(bids_dir / "dataset_description.json")
        raise


def _read(bids_dir: Path, kept: Path):
    """The index kept there; None if it is damaged, or was just removed by another job."""
    from bids.layout import BIDSLayout
    from sqlalchemy.exc import SQLAlchemyError

    try:
        layout = BIDSLayout(bids_dir, validate=False, database_path=kept, reset_database=False)
        layout.get(
            suffix="T1w", return_type="filename"
        )  # pybids makes an empty one of half a file
    except (OSError, ValueError, KeyError, SQLAlchemyError) as error:
        log.warning("%s: this index is damaged and is made again (%s)", kept, type(error).__name__)
        shutil.rmtree(kept, ignore_errors=True)
        return None
    return layout


def _keep(layout, kept: Path) -> None:
    """Write the index under its name, whole or not at all; older states of the same go."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    temporary = kept.with_name(f".{kept.name}.{uuid4().hex}")
    try:
        layout.save(temporary, replace_connection=False)
        try:
            temporary.rename(kept)
        except OSError:
            if not kept.is_dir():  # another job was first: its index is the same
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    scope = kept.name.rpartition("-")[0]
    for old in kept.parent.glob(f"{scope}-*"):
        if old != kept:
            shutil.rmtree(old, ignore_errors=True)


def _fingerprint(bids_dir: Path, labels: list[str], ignored: list[re.Pattern]) -> tuple[str, str]:
    """Hashes of what is indexed, and of that together with all names there now."""
    import bids

    what = [FORMAT, bids.__version__, str(bids_dir.absolute()), str(bids_dir.resolve())]
    what += [labels, [pattern.pattern for pattern in ignored]]
    scope = hashlib.sha256(json.dumps(what).encode())
    state = scope.copy()
    for label in labels:
        for name in _names(bids_dir / f"sub-{label}"):
            state.update(name + b"\0")
    return scope.hexdigest(), state.hexdigest()


def _names(folder: Path, inside: bytes = b"") -> list[bytes]:
    """Every name below a folder, folders with a slash; links to folders are followed."""
    names = []
    try:
        entries = sorted(os.scandir(os.fsencode(folder)), key=lambda entry: entry.name)
    except OSError:  # unreadable, or a link to itself
        return [inside + b"?"]
    for entry in entries:
        own = inside + entry.name
        if entry.is_dir() and own.count(b"/") < 8:  # a link may lead back up
            names += [own + b"/", *_names(Path(os.fsdecode(entry.path)), own + b"/")]
        else:
            names.append(own)
    return names
