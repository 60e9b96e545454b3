# SPDX-License-Identifier: Apache-2.0
"""Which files of a dataset are wanted, told from their paths alone."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import PurePosixPath

from brainseg_bids.exit_codes import UNUSABLE
from brainseg_bids.fetch.known import FetchError
from brainseg_bids.units import listed, natural_order

WHAT = ("images", "derivatives", "all")
SHOWN = 10
"""Participants that an error message lists."""

_OF_PARTICIPANT = re.compile(r"(?:^|[/_])sub-([0-9A-Za-z+]+)(?![0-9A-Za-z+])")


def participant_of(path: str) -> str:
    """Label of the person a file belongs to, or nothing.

    >>> participant_of("derivatives/masks/sub-3_ses-1_mask.nii"), participant_of("sub-30/x.tsv")
    ('3', '30')
    >>> participant_of("derivatives/masks/README")
    ''
    """
    found = _OF_PARTICIPANT.search(path)
    return found[1] if found else ""


def is_wanted(path: str, *, participants: Collection[str] = (), what: str = "images") -> bool:
    """Whether a file is to be fetched.

    Parameters
    ----------
    path : str
        From the dataset's root, with slashes.
    participants : collection of str
        Labels without ``sub-``; empty: all.
    what : {"images", "derivatives", "all"}
        ``images``: folders ``anat`` and what lies above them; ``derivatives``: folder
        ``derivatives``. Files in the root come along always: they say what the rest is.

    >>> is_wanted("sub-1/anat/sub-1_T1w.nii.gz", participants=["1"])
    True
    >>> is_wanted("sub-1/func/sub-1_task-rest_bold.nii.gz")
    False
    """
    folders = PurePosixPath(path).parts[:-1]
    if not is_safe(path) or (folders and folders[0].startswith(".")):
        return False
    if not folders:
        return not path.startswith((".git", ".datalad"))
    label = participant_of(path)
    if label and participants and label not in participants:
        return False
    if what == "all":
        return True
    if folders[0] == "derivatives":
        return what == "derivatives"
    if what == "derivatives" or not folders[0].startswith("sub-"):
        return False
    inside = [name for name in folders[1:] if not name.startswith("ses-")]
    return inside[:1] == ["anat"] or not inside


def is_safe(path: str) -> bool:
    """Whether a path from elsewhere stays in the folder it is put into.

    >>> [is_safe(path) for path in ("a/b", "../b", "/b", "a//b", "a/\\x00", "C:\\\\b", "")]
    [True, False, False, False, False, False, False]
    """
    parts = path.split("/")
    return not any(part in ("", ".", "..") for part in parts) and not re.search(
        r"[\x00-\x1f\\]", path
    )


def check_participants(wanted: Iterable[str], there: Iterable[str], dataset: str) -> None:
    """Refuse participants that a dataset does not have.

    Raises
    ------
    FetchError
        One line, with some of those it has.
    """
    there = sorted(set(there), key=natural_order)
    unknown = [label for label in wanted if label not in there]
    if not unknown:
        return
    shown = listed(there, SHOWN) or "none"
    raise FetchError(
        f"{dataset}: no participant {', '.join(unknown)}. It has {shown}.",
        exit_code=UNUSABLE,
    )


def gigabytes(count: float) -> str:
    """A number of bytes for people.

    >>> gigabytes(4_617_000_000), gigabytes(30_900_000), gigabytes(812)
    ('4.6 GB', '31 MB', '1 kB')
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}" if unit == "GB" else f"{count / size:.0f} {unit}"
    return f"{max(1, round(count / 1e3))} kB" if count else "0 kB"
