# SPDX-License-Identifier: Apache-2.0
"""What people think of segmentations: a form on the page, and the files that it saves.

A browser saves a file where it saves downloads; ``brainseg ... group`` reads what was put into the
participants' ``figures`` folders, or into the folder that ``--ratings`` names.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from brainseg_bids import __version__
from brainseg_bids.bids.names import Scan, image_title
from brainseg_bids.documents import InputError, Items, Text, check, read_json
from brainseg_bids.files import sha256
from brainseg_bids.reports import page
from brainseg_bids.units import natural_order

RATINGS = {
    "good": "as good as it gets",
    "usable": "small faults",
    "bad": "not to be used",
}
ARTEFACTS = (
    "motion",
    "noise",
    "ghosting",
    "ringing",
    "wrap-around",
    "signal loss",
    "uneven intensity",
    "head cut off",
    "lesion",
    "structure missing",
    "structure too large",
    "structure too small",
    "sides swapped",
    "other",
)
"""Of the image, and faults of the labels."""

KINDS = {
    "Segmentation": Text(),
    "LabelsSHA256": Text(),
    "Rating": Text(tuple(RATINGS)),
    "Artefacts": Items(),
    "Comment": Text(),
    "Rater": Text(),
    "RatedOn": Text(),
    "BrainsegVersion": Text(),
}
"""Keys of a rating file, as `brainseg_bids.documents.check` takes them."""
NEEDED = ("Segmentation", "LabelsSHA256", "Rating")
PATTERN = "*_rating-*.json"
NOBODY = "n/a"
"""Rater of a file that names none."""


def rating_form(labels: Path, segmentation: str) -> Markup:
    """A form that saves a file; it needs the script ``rating.js``.

    Parameters
    ----------
    labels : Path
        The label map that is rated: its content is remembered.
    segmentation : str
        Where it lies, below the derivative's root.
    """
    about = {
        "name": segmentation.rpartition("/")[2].removesuffix("_dseg.nii.gz"),
        "metadata": {
            "Segmentation": segmentation,
            "LabelsSHA256": sha256(labels),
            "BrainsegVersion": __version__,
        },
    }
    return page.macro("rating")(json.dumps(about), RATINGS, ARTEFACTS)


def find_ratings(output_dir: Path, folder: Path | None = None) -> list[Path]:
    """Rating files in a folder, or beside the figures of all participants.

    Raises
    ------
    InputError
        If there is no such folder.
    """
    if folder is None:
        return sorted(output_dir.glob(f"sub-*/figures/{PATTERN}"))
    if not folder.is_dir():
        raise InputError(f"--ratings {folder}: there is no such folder. Check its name.")
    return sorted(folder.glob(PATTERN))


def read_ratings(
    paths: Sequence[Path],
    output_dir: Path,
    participants: Collection[str] = (),
    sessions: Collection[str] = (),
) -> tuple[list[dict], list[str]]:
    """Rows of the table of ratings, and one line for each file that cannot be used.

    Parameters
    ----------
    paths : sequence of Path
    output_dir : Path
        The derivative whose segmentations were rated.
    participants : collection of str
        Labels of those who are wanted; empty: all.
    sessions : collection of str
        The same of sessions.
    """
    rows, errors = [], []
    known = {
        labels.relative_to(output_dir).as_posix(): labels
        for labels in output_dir.glob("sub-*/**/*_seg-*_dseg.nii.gz")
    }
    for path in paths:
        try:
            row = read_rating(path, known)
        except InputError as error:
            errors.append(str(error))
            continue
        asked = (("participant_id", "sub-", participants), ("session_id", "ses-", sessions))
        if all(not some or row[key].removeprefix(start) in some for key, start, some in asked):
            rows.append(row)
    rows.sort(key=lambda row: (natural_order(row["image"]), row["rated_on"]))
    return rows, errors


def read_rating(path: Path, known: Mapping[str, Path]) -> dict:
    """One row of the table of ratings.

    Parameters
    ----------
    path : Path
    known : mapping of str to Path
        Label maps that can be rated, by their place below the derivative's root.

    Raises
    ------
    InputError
        If the file cannot be read, lacks something, or rates what is not in the derivative.
    """
    said = read_json(path)
    for key in NEEDED:
        if key not in said:
            raise InputError(f"{path}: {key} is missing. Save the rating again from the page.")
    check(said, KINDS, str(path), remedy="Save the rating again from the page.")
    labels = known.get(said["Segmentation"])
    if labels is None:
        raise InputError(
            f"{path}: {said['Segmentation']} is not a segmentation of this output folder. "
            "Move the file to the results that it is about."
        )
    entities = Scan.from_path(labels).entities
    return {
        "participant_id": f"sub-{entities['sub']}",
        "session_id": f"ses-{entities['ses']}" if "ses" in entities else "n/a",
        "image": image_title(labels),
        "seg": entities["seg"],
        "rating": said["Rating"],
        "artefacts": "; ".join(map(_line, said.get("Artefacts", ()))),
        "comment": _line(said.get("Comment", "")),
        "rater": _line(said.get("Rater", "")) or NOBODY,
        "rated_on": _line(said.get("RatedOn", "")),
        "is_current": "yes" if sha256(labels) == said["LabelsSHA256"] else "no",
        "file": path.name,
    }


def _line(text: str) -> str:
    """Words on one line: cells of a table hold no tabs or line breaks."""
    return " ".join(text.split())


def latest(rows: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Rating of each image: of its raters' last current ones, the worst.

    Whoever gives no name may be anyone: each file without one counts as a rater of its own.

    >>> row = {"image": "sub-01", "is_current": "yes", "file": "1"}
    >>> latest([row | {"rater": who, "rating": what} for who, what in
    ...     (("a", "bad"), ("a", "good"), ("b", "usable"))])
    {'sub-01': 'usable'}
    """
    last = {
        (row["image"], *_person(row)): row["rating"] for row in rows if row["is_current"] == "yes"
    }
    found: dict[str, str] = {}
    for (image, *_), rating in last.items():
        found[image] = max(found.get(image, "good"), rating, key=list(RATINGS).index)
    return found


def _person(row: Mapping[str, str]) -> tuple[str, str]:
    """Name of a rater, or the file of one who gave none."""
    return (row["rater"], row["file"] if row["rater"] == NOBODY else "")


def nameless(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Current files without a rater, of images that have several ratings."""
    current = [row for row in rows if row["is_current"] == "yes"]
    images = [row["image"] for row in current]
    return [
        row["file"] for row in current if row["rater"] == NOBODY and images.count(row["image"]) > 1
    ]
