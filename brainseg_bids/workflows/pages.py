# SPDX-License-Identifier: Apache-2.0
"""Pages from what lies in the derivative, so that they can be made again at any time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from brainseg_bids import __version__
from brainseg_bids.anatomy.cohort import Cohort
from brainseg_bids.reports import page
from brainseg_bids.reports.sections.summary import write_group_page
from brainseg_bids.reports.tables import write_tsv
from brainseg_bids.reports.volume_table import read_volumes
from brainseg_bids.stages import PARTICIPANT
from brainseg_bids.stages.base import Folders
from brainseg_bids.stages.jobs import SubjectPlan, read_object
from brainseg_bids.volumes import InputError
from brainseg_bids.workflows import methods
from brainseg_bids.workflows.found import noted_failures, with_found

TRIES, READS, PAUSE_S = 10, 4, 0.5
"""How often a page is written at most if other jobs leave more each time, how often results are
read that cannot be read, and how long is waited then: another job may be replacing them."""

GROUP_PAGES = {"brainseg": "group.html", "fullhead": "group_fullhead.html"}
"""Page over participants, by the label of ``seg-``."""


def update_subject_page(
    plan: SubjectPlan,
    *,
    output_dir: Path,
    bids_dir: Path,
    failures: Mapping[str, str],
    settings: str,
    cohort: Cohort | None = None,
) -> Path | None:
    """Write ``sub-LABEL.html`` from all that any run has left; None if there is nothing to tell.

    Another job may be at work on another session of the same person. So the page is written
    again if there is more when it is written than there was before: whichever job writes last
    has seen the results of all, without waiting for any.

    Raises
    ------
    OSError, ValueError, KeyError
        If results cannot be read, after some tries: they may be just being replaced.
    """
    written, shown = None, None
    for attempt in range(TRIES):
        try:
            (complete,) = with_found([plan], Folders(bids_dir, output_dir))
            errors = _failed(complete, failures, output_dir)
            done = [scan.main for scan in complete.scans if scan.has_results]
            now = [(path, path.stat().st_mtime_ns) for path in done], errors
            if now == shown:
                break
            if not complete.scans and not errors:
                return None
            written = write_subject_page(
                complete,
                output_dir=output_dir,
                bids_dir=bids_dir,
                errors=[f"{title}: {why}" for title, why in errors.items()],
                settings=settings,
                cohort=cohort,
            )
            shown = now
        except (OSError, ValueError, KeyError):
            if attempt >= READS - 1:
                raise
            time.sleep(PAUSE_S)
    return written


def _failed(plan: SubjectPlan, failures: Mapping[str, str], output_dir: Path) -> dict[str, str]:
    """What this run could not do for a participant, and what others could not."""
    own = {scan.title for scan in plan.scans} | set(plan.faults)
    errors = {title: why for title, why in failures.items() if title in own}
    done = {scan.title for scan in plan.scans if scan.has_results}
    noted = noted_failures(plan.label, output_dir=output_dir)
    return errors | {t: why for t, why in noted.items() if t not in errors and t not in done}


def write_subject_page(
    plan: SubjectPlan,
    *,
    output_dir: Path,
    bids_dir: Path,
    errors: Iterable[str],
    settings: str,
    cohort: Cohort | None = None,
) -> Path:
    """Write ``sub-LABEL.html``: every image whose results are there, and what went wrong.

    Maps of heads are compared with a cohort if one is given.
    """
    done = [scan for scan in plan.scans if scan.has_results]
    folders = Folders(bids_dir, output_dir, cohort)
    return page.write_subject_page(
        output_dir / f"sub-{plan.label}.html",
        subject=plan.label,
        sections=[
            section
            for stage in PARTICIPANT.values()
            for job in done
            if job.stage == stage.name and (section := stage.section(job, folders))
        ],
        settings=settings,
        errors=list(errors),
        methods=methods.of_results(done),
        version=__version__,
    )


def find_volumes(
    output_dir: Path, segmentation: str, participants: Iterable[str] = ()
) -> dict[str, list[dict]]:
    """Rows of every volumes table of a segmentation, by what the image's results are called."""
    wanted = set(participants)
    pattern = f"sub-*/**/*_seg-{segmentation}_desc-volumes_morph.tsv"
    return {
        path.name.split("_seg-")[0]: read_volumes(path, output_dir, segmentation)
        for path in sorted(output_dir.glob(pattern))
        if not wanted or path.name.split("_")[0].removeprefix("sub-") in wanted
    }


def find_to_look_at(
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


def read_cohort(output_dir: Path, participants: Iterable[str] = ()) -> Cohort:
    """All maps of heads in the derivative, side by side."""
    return Cohort.from_rows(find_volumes(output_dir, "fullhead", participants))


def write_group(
    output_dir: Path, *, title: str, participants: Iterable[str] = (), tables: bool = True
) -> list[tuple[Path, int, dict[str, list[str]]]]:
    """Write one table and one page of the volumes of all images in the derivative.

    There is one for segmentations and one for maps of heads, whichever are there; the latter
    says which structures are missing where, and which volumes are far from the others'. Without
    ``tables`` pages alone are written.

    Returns
    -------
    list of (Path, int, dict of str to list of str)
        Each page, how many images it compares, and what cannot be right about which of them.

    Raises
    ------
    InputError
        If there are no volumes.
    """
    participants = tuple(participants)
    pages = []
    for segmentation, name in GROUP_PAGES.items():
        volumes = find_volumes(output_dir, segmentation, participants)
        if not volumes:
            continue
        to_look_at = find_to_look_at(output_dir, segmentation, volumes)
        cohort = Cohort.from_rows(volumes) if segmentation == "fullhead" else None
        stem = f"group_seg-{segmentation}_desc"
        if tables:
            _write_table(output_dir / f"{stem}-volumes_morph.tsv", volumes, to_look_at)
        if tables and cohort:
            _write_presence(output_dir / f"{stem}-presence_morph.tsv", cohort)
        written = write_group_page(
            output_dir / name,
            title=title,
            volumes=volumes,
            version=__version__,
            cohort=cohort,
            to_look_at=to_look_at,
        )
        pages.append((written, len(volumes), to_look_at))
    if not pages:
        raise InputError(
            f"{output_dir}: no volumes are in it. Run the participant level into it first."
        )
    return pages


def _write_table(
    path: Path, volumes: dict[str, list[dict]], to_look_at: Mapping[str, list[str]]
) -> None:
    rows = []
    for image, volumes_of in volumes.items():
        entities = dict(part.split("-", 1) for part in image.split("_"))
        session = f"ses-{entities['ses']}" if "ses" in entities else "n/a"
        about = {"participant_id": f"sub-{entities['sub']}", "session_id": session, "image": image}
        about["to_look_at"] = "; ".join(to_look_at.get(image, ())) or "n/a"
        rows.append(about | {row["name"]: row["volume_mm3"] for row in volumes_of})
    write_tsv(path, rows)


def _write_presence(path: Path, cohort: Cohort) -> None:
    """Which structures how many heads have, and who lacks them."""
    rows = [
        {
            "structure": line.structure.name,
            "codes": " ".join(map(str, line.structure.codes)),
            "kind": "core" if line.structure.core else "optional",
            "n_has": len(line.has),
            "n_lacks": len(line.lacks),
            "lacks": " ".join(line.lacks),
            "reason": line.structure.reason,
        }
        for line in cohort.presence
    ]
    write_tsv(path, rows)
