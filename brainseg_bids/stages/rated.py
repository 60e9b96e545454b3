# SPDX-License-Identifier: Apache-2.0
"""Label maps that people have rated as bad: nothing is learned from them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from brainseg_bids.bids.names import Scan, head_name, image_title
from brainseg_bids.documents import InputError
from brainseg_bids.units import listed

log = logging.getLogger("brainseg")

BAD = "bad"
NAMED = 3
"""Label maps that a line names at most."""
REMEDY = "If that is wrong, rate it again on its page, or remove the rating file"


class HasPath(Protocol):
    """What is of a label map's file."""

    @property
    def path(self) -> Path: ...


Of = TypeVar("Of", bound=HasPath)


def without_bad(maps: Sequence[Of], ratings: Path | None) -> list[Of]:
    """Those of some label maps that nobody has rated as bad; a warning names the others.

    Parameters
    ----------
    maps : sequence
        With a ``path`` each.
    ratings : Path or None
        Folder with rating files (``--ratings``); None: beside the figures of the participants.

    Raises
    ------
    InputError
        If none are left, or there is no such folder.
    """
    bad = rated_bad((one.path for one in maps), ratings)
    if bad:
        log.warning(
            "%s: rated as bad, and left out. %s",
            listed([str(path) for path in bad], NAMED),
            REMEDY,
        )
    kept = [one for one in maps if one.path not in bad]
    if maps and not kept:
        raise InputError(
            f"{maps[0].path}: this and every other label map is rated as bad, so none is left. "
            f"{REMEDY}."
        )
    return kept


def rated_bad(maps: Iterable[Path], ratings: Path | None) -> list[Path]:
    """Those of some label maps that people have rated as bad, as the maps are now.

    A map at another voxel size that was made from one that is bad is bad as well. Rating files
    that cannot be used are named in warnings. Parameters as of `without_bad`.
    """
    from brainseg_bids.reports.ratings import find_ratings, latest, read_ratings  # late: jinja2

    by_root: dict[Path, list[Path]] = {}
    for path in maps:
        if root := _root(path):
            by_root.setdefault(root, []).append(path)
    found, faults = [], []
    for root, own in by_root.items():
        rows, errors = read_ratings(find_ratings(root, ratings), root)
        faults.append(set(errors))
        for seg in {row["seg"] for row in rows}:
            rated = latest([row for row in rows if row["seg"] == seg])
            bad = {image for image, rating in rated.items() if rating == BAD}
            found += [path for path in own if _seg(path) == seg and bad & _titles(path)]
    # A file in a folder of the user's is of one of several derivatives.
    join = set.intersection if ratings else set.union
    for error in sorted(join(*faults)) if faults else ():
        log.warning("%s This rating is left out.", error)
    return found


def _root(labels: Path) -> Path | None:
    """Root of the derivative that a label map lies in."""
    home = f"sub-{Scan.from_path(labels).entities.get('sub')}"
    return next((folder.parent for folder in labels.parents if folder.name == home), None)


def _seg(labels: Path) -> str:
    return Scan.from_path(labels).entities.get("seg", "")


def _titles(labels: Path) -> set[str]:
    """What ratings call the image of a label map, and of the map at the image's own voxel size."""
    return {image_title(labels), image_title(labels.with_name(f"{head_name(labels)}.nii.gz"))}
