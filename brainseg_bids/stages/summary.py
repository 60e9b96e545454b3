# SPDX-License-Identifier: Apache-2.0
"""Stage ``summary``: one table and one page of the volumes of all images."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from brainseg_bids import __version__
from brainseg_bids.bids.names import image_title, sidecar
from brainseg_bids.console import working
from brainseg_bids.documents import InputError
from brainseg_bids.options import OptionGroup, option
from brainseg_bids.stages.base import GroupResult, GroupStage
from brainseg_bids.stages.jobs import image_of, noted_failures, read_object
from brainseg_bids.stages.origins import SHOWN, doubts
from brainseg_bids.units import listed, natural_order

if TYPE_CHECKING:
    from brainseg_bids.anatomy.cohort import Cohort
    from brainseg_bids.options import Settings

log = logging.getLogger("brainseg")

GROUP_PAGES = {"brainseg": "group.html", "fullhead": "group_fullhead.html"}
"""Page over participants, by the label of ``seg-``."""


@dataclass(frozen=True, kw_only=True)
class SummaryOptions(OptionGroup):
    """The table of all volumes."""

    title: ClassVar[str] = "summary (--stages summary)"
    belongs_to: ClassVar[tuple[str, ...]] = ("summary", "priors", "synth", "train")

    ratings: Path | None = option(
        "--ratings",
        metavar="FOLDER",
        help="folder with rating files that pages have saved: summary collects them, priors, "
        "synth and train leave out label maps that are rated as bad; default: sub-*/figures "
        "beside the label maps",
    )


class Summary(GroupStage):
    """Volumes of all images side by side, and what people say of them."""

    name = "summary"
    options = SummaryOptions

    def run(self, settings: Settings, run_dir: Path, began_s: float) -> GroupResult:
        from brainseg_bids.reports.ratings import (  # late: jinja2
            find_ratings,
            nameless,
            read_ratings,
        )

        to_review: dict[str, None] = {}
        wanted = (settings.participant_label, settings.session_label)
        found = find_ratings(settings.output_dir, settings.ratings)
        ratings, errors = read_ratings(found, settings.output_dir, *wanted)
        for error in errors:
            log.warning("%s This rating is left out.", error)
        if unknown := nameless(ratings):
            log.warning(
                "%s: no rater is named, beside other ratings of the same image: each counts as "
                "another person, and the worst rating counts. Remove what is outdated, or write "
                "Rater into the file",
                ", ".join(unknown),
            )
        if ratings:
            log.info("%d rating%s taken", len(ratings), "s" * (len(ratings) != 1))
        with working("stage summary"):
            for page, n_images, found in write_group(
                settings.output_dir,
                title=settings.bids_dir.name,
                participants=settings.participant_label,
                sessions=settings.session_label,
                bids_dir=settings.bids_dir,
                tables=not settings.reports_only,
                ratings=ratings,
            ):
                log.info("%d image%s compared: %s", n_images, "s" * (n_images != 1), page)
                to_review |= dict.fromkeys(found)
        return GroupResult(tuple(to_review))


def find_volumes(
    output_dir: Path,
    segmentation: str,
    participants: Iterable[str] = (),
    sessions: Iterable[str] = (),
) -> dict[str, list[dict]]:
    """Rows of every volumes table of a segmentation, by what the image's results are called."""
    from brainseg_bids.reports.volume_table import read_volumes  # late: pandas

    return {
        image: read_volumes(path, output_dir, segmentation)
        for image, path in _tables(output_dir, segmentation, participants, sessions).items()
    }


def find_intracranial(
    output_dir: Path,
    segmentation: str,
    participants: Iterable[str] = (),
    sessions: Iterable[str] = (),
) -> dict[str, dict]:
    """Row of the inside of the skull of every volumes table that has one; see `find_volumes`."""
    from brainseg_bids.reports.volume_table import read_intracranial  # late: pandas

    found = {
        image: read_intracranial(path)
        for image, path in _tables(output_dir, segmentation, participants, sessions).items()
    }
    return {image: row for image, row in found.items() if row}


def _tables(
    output_dir: Path,
    segmentation: str,
    participants: Iterable[str],
    sessions: Iterable[str],
) -> dict[str, Path]:
    """Volumes tables of a segmentation, by what the image's results are called."""
    wanted, wanted_sessions = set(participants), set(sessions)
    pattern = f"sub-*/**/*_seg-{segmentation}_desc-volumes_morph.tsv"
    found = {}
    for path in sorted(output_dir.glob(pattern), key=natural_order):
        image = path.name.split("_seg-")[0]
        entities = _entities(image)
        if (not wanted or entities["sub"] in wanted) and (
            not wanted_sessions or entities.get("ses") in wanted_sessions
        ):
            found[image] = path
    return found


def _entities(image: str) -> dict[str, str]:
    """Entities in what an image or its results are called."""
    return dict(part.split("-", 1) for part in re.split("[ _]", image) if "-" in part)


def _titles(output_dir: Path, segmentation: str, *wanted: Iterable[str]) -> dict[str, str]:
    """How messages call the images, by what their results are called."""
    return {
        image: image_title(path.with_name(f"{image}_seg-{segmentation}_dseg.nii.gz"))
        for image, path in _tables(output_dir, segmentation, *wanted).items()
    }


def _renamed(found: Mapping[str, Any], titles: Mapping[str, str]) -> dict[str, Any]:
    return {titles[image]: value for image, value in found.items()}


def find_to_review(
    output_dir: Path, segmentation: str, images: Iterable[str]
) -> dict[str, list[str]]:
    """What cannot be right about the images' results, for those where there is something.

    Images are called as by `find_volumes`.
    """
    found = {}
    for image in images:
        name = f"{image}_seg-{segmentation}_dseg.json"
        subject = image.split("_")[0]
        for path in output_dir.glob(f"{subject}/**/{name}"):
            if said := read_object(path).get("ToLookAt"):
                found[image] = list(map(str, said))
    return found


def read_cohort(output_dir: Path) -> Cohort:
    """All maps of heads in the derivative, side by side."""
    from brainseg_bids.anatomy.cohort import Cohort  # late: numpy

    return Cohort.from_rows(find_volumes(output_dir, "fullhead"))


def write_group(
    output_dir: Path,
    *,
    title: str,
    participants: Iterable[str] = (),
    sessions: Iterable[str] = (),
    bids_dir: Path | None = None,
    tables: bool = True,
    ratings: Sequence[Mapping[str, str]] = (),
) -> list[tuple[Path, int, dict[str, list[str]]]]:
    """Write one table and one page of the volumes of all images in the derivative.

    There is one for segmentations and one for maps of heads, whichever are there; the latter
    says which structures are missing where, and which volumes are far from the others'. Without
    ``tables`` pages alone are written. ``ratings`` are rows of
    `brainseg_bids.reports.ratings.read_ratings`. With ``bids_dir``, images that have changed or
    gone since are named, and who is in no line of the tables.

    Returns
    -------
    list of (Path, int, dict of str to list of str)
        Each page, how many images it compares, and what cannot be right about which of them.

    Raises
    ------
    InputError
        If there are no volumes.
    """
    wanted = (tuple(participants), tuple(sessions))
    pages = []
    for segmentation, name in GROUP_PAGES.items():
        if not (titles := _titles(output_dir, segmentation, *wanted)):
            _warn_of_earlier(output_dir / name, segmentation)
            continue
        doubted = _doubts(output_dir, bids_dir, segmentation, titles, wanted)
        for doubt in doubted:
            log.warning("%s: %s", output_dir / name, doubt)
        rated = [row for row in ratings if row["seg"] == segmentation]
        pages.append(
            _write_page(
                output_dir,
                segmentation,
                titles,
                wanted,
                rated,
                doubted,
                title=title,
                tables=tables,
            )
        )
    if not pages:
        asked = " of those that are asked for" if any(wanted) else ""
        raise InputError(
            f"{output_dir}: no volumes{asked} are in it. Run the participant level into it first."
        )
    return pages


def _write_page(
    output_dir: Path,
    segmentation: str,
    titles: Mapping[str, str],
    wanted: tuple[Sequence[str], Sequence[str]],
    ratings: Sequence[Mapping[str, str]],
    doubted: Sequence[str],
    *,
    title: str,
    tables: bool,
) -> tuple[Path, int, dict[str, list[str]]]:
    """One page and its tables; see `write_group`."""
    from brainseg_bids.anatomy.cohort import Cohort  # late: numpy
    from brainseg_bids.stages.summary_page import write_group_page

    volumes = _renamed(find_volumes(output_dir, segmentation, *wanted), titles)
    to_review = _renamed(find_to_review(output_dir, segmentation, titles), titles)
    inside = _renamed(find_intracranial(output_dir, segmentation, *wanted), titles)
    cohort = Cohort.from_rows(volumes) if segmentation == "fullhead" else None
    if tables:
        stem = f"{output_dir}/group_seg-{segmentation}_desc"
        _write_tables(stem, volumes, inside, to_review, ratings, cohort)
    page = write_group_page(
        output_dir / GROUP_PAGES[segmentation],
        title=title,
        volumes=volumes,
        intracranial=inside,
        version=__version__,
        cohort=cohort,
        to_review=to_review,
        ratings=ratings,
        doubts=doubted,
    )
    return page, len(volumes), to_review


def _warn_of_earlier(page: Path, segmentation: str) -> None:
    """Name a page that is there although nobody has what it would show."""
    if page.is_file():
        log.warning(
            "%s: this page and its tables (group_seg-%s_*) are of an earlier run; nobody who is "
            "asked for has such volumes now. Remove them",
            page,
            segmentation,
        )


def _doubts(
    output_dir: Path,
    bids_dir: Path | None,
    segmentation: str,
    titles: Mapping[str, str],
    wanted: tuple[Sequence[str], Sequence[str]],
) -> list[str]:
    """What is to be known of the tables as a whole: how results were made, and who lacks any."""
    files = _renamed(_tables(output_dir, segmentation, *wanted), titles)
    absent = _absent(output_dir, bids_dir, segmentation, files, *wanted)
    return [*doubts(files, bids_dir), *absent]


FAILED_TITLE = {"brainseg": "{}", "fullhead": "{} head labels"}
"""What failures call the step that labels an image, by the label of ``seg-``."""


def _absent(
    output_dir: Path,
    bids_dir: Path | None,
    segmentation: str,
    shown: Iterable[str],
    participants: Sequence[str],
    sessions: Sequence[str],
) -> Iterator[str]:
    """Sentences about images and participants that are asked for and in no line of the tables."""
    from brainseg_bids.bids.inputs import find_participants

    shown = set(shown)
    noted = noted_failures("*", output_dir=output_dir)
    failed = []
    for title in noted:
        image, entities = image_of(title), _entities(title)
        asked = not participants or entities["sub"] in participants
        asked &= not sessions or entities.get("ses") in sessions
        if asked and image not in shown and title == FAILED_TITLE[segmentation].format(image):
            failed.append(image)
    if failed:
        yield (
            f"{listed(failed, SHOWN)} could not be done in the last run and are not in these "
            f"numbers. brainseg status {output_dir} says why."
        )
    labels: list[str] = []
    with contextlib.suppress(InputError, OSError):
        labels = find_participants(bids_dir, participants) if bids_dir else []
    seen = {_entities(image)["sub"] for image in shown.union(failed)}
    folders = [f"ses-{session}/anat" for session in sessions] or ["anat", "ses-*/anat"]
    gone = [
        f"sub-{label}"
        for label in labels
        if label not in seen
        and any(any((bids_dir / f"sub-{label}").glob(folder)) for folder in folders)
    ]
    if gone:
        yield (
            f"{len(gone)} of {len(labels)} participants are not in these numbers, for they have "
            f"no results: {listed(gone, SHOWN)}."
        )


SOFT = "softvolumes"
WIDE = {
    "volumes": ("volume_mm3", "Volume of each structure in mm^3"),
    SOFT: (
        "soft_volume_mm3",
        "Sum of the probability of each structure times the volume of a voxel, in mm^3",
    ),
    "shares": (
        "percent_of_intracranial",
        "Part of each structure inside of the skull in percent of the intracranial volume",
    ),
}
"""Tables with a line per image and a column per structure: column of the participants' tables."""
OF_CONFIDENCE = {
    "confidence": ("confidence", "Expected Dice of each structure, 0 to 1"),
    "lowconfidence": (
        "low_confidence",
        "Whether the confidence of each structure lies below the model's threshold: yes or no",
    ),
}
"""The same of the confidence, which has no intracranial volume beside it."""


def _write_tables(
    stem: str,
    volumes: Mapping[str, list[dict]],
    inside: Mapping[str, dict],
    to_review: Mapping[str, list[str]],
    ratings: Sequence[Mapping[str, str]],
    cohort: Cohort | None,
) -> None:
    """Ratings, presence of structures, and a wide table of each measure, with its JSON."""
    from brainseg_bids.bids.description import write_json
    from brainseg_bids.reports.tables import write_tsv  # late: pandas

    write_tsv(Path(f"{stem}-ratings_morph.tsv"), ratings)
    if cohort:
        _write_presence(Path(f"{stem}-presence_morph.tsv"), cohort)
    for desc, (column, what) in (WIDE | OF_CONFIDENCE).items():
        every = (row for rows in volumes.values() for row in rows)
        found = {row["name"] for row in every if row.get(column) not in (None, "n/a")}
        path = Path(f"{stem}-{desc}_morph.tsv")
        if not found:
            path.unlink(missing_ok=True)
            sidecar(path).unlink(missing_ok=True)
            continue
        write_tsv(
            path,
            [
                _about(image, to_review)
                | ({} if desc in OF_CONFIDENCE else _intracranial(inside.get(image), desc))
                | {row["name"]: row.get(column) for row in rows if row["name"] in found}
                for image, rows in volumes.items()
            ],
        )
        columns = WIDE_COLUMNS | ({} if desc in OF_CONFIDENCE else _inside_columns(desc))
        write_json(sidecar(path), {"Description": f"{what}, a line per image.", **columns})


WIDE_COLUMNS = {
    "image": {"Description": "The image, called as in messages and on pages."},
    "to_look_at": {"Description": "What cannot be right about the result; n/a if nothing."},
}


def _inside_columns(desc: str) -> dict[str, dict]:
    """Columns of the inside of the skull in a table of `WIDE`, described."""
    what = "Volume of all that lies inside of the inner skull."
    if desc == SOFT:
        what = (
            "Sum of the probabilities of all that lies inside of the inner skull, times the "
            "volume of a voxel."
        )
    return {
        "intracranial_mm3": {"Description": what, "Units": "mm^3"},
        "intracranial_note": {"Description": "Why there is none; n/a if there is."},
    }


def _about(image: str, to_review: Mapping[str, list[str]]) -> dict[str, object]:
    entities = _entities(image)
    return {
        "participant_id": f"sub-{entities['sub']}",
        "session_id": f"ses-{entities['ses']}" if "ses" in entities else "n/a",
        "image": image,
        "to_look_at": "; ".join(to_review.get(image, ())) or "n/a",
    }


def _intracranial(row: Mapping | None, desc: str) -> dict[str, object]:
    if row is None:
        return {"intracranial_mm3": None, "intracranial_note": "made by an earlier version"}
    volume_mm3 = row["soft_volume_mm3" if desc == SOFT else "volume_mm3"]
    return {"intracranial_mm3": volume_mm3, "intracranial_note": row["note"]}


def _write_presence(path: Path, cohort: Cohort) -> None:
    """Which structures how many heads have, and who lacks them."""
    from brainseg_bids.reports.tables import write_tsv  # late: pandas

    rows = [
        {
            "structure": line.structure.name,
            "codes": " ".join(map(str, line.structure.codes)),
            "kind": "core" if line.structure.core else "optional",
            "n_has": len(line.has),
            "n_lacks": len(line.lacks),
            "lacks": "; ".join(line.lacks),
            "reason": line.structure.reason,
        }
        for line in cohort.presence
    ]
    write_tsv(path, rows)
