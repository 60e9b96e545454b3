# SPDX-License-Identifier: Apache-2.0
"""Pages from what lies in the derivative, so that they can be made again at any time."""

from __future__ import annotations

import contextlib
import functools
import re
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from brainseg_bids import __version__
from brainseg_bids.anatomy.cohort import Cohort
from brainseg_bids.bids.description import write_json
from brainseg_bids.files import sha256
from brainseg_bids.reports import page
from brainseg_bids.stages import PARTICIPANT, methods
from brainseg_bids.stages.base import Folders
from brainseg_bids.stages.jobs import FAILED, Job, SubjectPlan, noted_failures, read_object

TRIES, READS, PAUSE_S = 10, 4, 0.5
"""How often a page is written at most if other jobs leave more each time, how often results are
read that cannot be read, and how long is waited then: another job may be replacing them."""


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
    own = {scan.title for scan in plan.scans} | set(plan.errors)
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


# -- results that lie in the derivative, whichever run has left them ----------------------


def with_found(plans: Iterable[SubjectPlan], folders: Folders) -> list[SubjectPlan]:
    """Plans, and for the same participants what other stages and runs have left.

    Results count if their input is still as it was when they were made.
    """
    complete = []
    for plan in plans:
        own = {scan.main for scan in plan.scans}
        # What could not be taken this time is not shown as if it could.
        excluded = {title.removesuffix(" head labels") for title in plan.errors}
        found = [
            scan
            for scan in _find(plan.label, folders)
            if scan.main not in own and scan.scan.title not in excluded
        ]
        complete.append(SubjectPlan(plan.label, (*plan.scans, *found), plan.errors))
    return complete


def note_failures(
    plans: Iterable[SubjectPlan], failures: Mapping[str, str], *, output_dir: Path
) -> None:
    """Keep what failed for the pages that later runs and other jobs write; forget what went well.

    Two jobs may work on two sessions of one person, and either writes the page of both.
    """
    for plan in plans:
        for title in {scan.title for scan in plan.scans} | set(plan.errors):
            if title in failures:
                image = next((s.scan.path for s in plan.scans if s.title == title), None)
                image = image or failures[title].partition(": ")[0]
                write_json(
                    _note(output_dir, title),
                    {"Title": title, "Reason": failures[title], "Image": str(image)},
                )
        for scan in plan.scans:
            if scan.title not in failures and scan.has_results:
                with contextlib.suppress(OSError):
                    _note(output_dir, scan.title).unlink(missing_ok=True)


def _note(output_dir: Path, title: str) -> Path:
    return output_dir / FAILED / (re.sub(r"[^0-9A-Za-z+.-]+", "_", title).strip("_") + ".json")


OWN = ("bids::", "bids:brainseg:")
"""How JSON files name a file of this derivative."""
MADE_OF = ("LabelsOf", "LabelsSHA256")
"""Keys of the label map that results were made of; with neither it is their ``Input``."""


def of_other_labels(label: str, output_dir: Path) -> list[str]:
    """What was made from label maps of a participant that have been replaced since.

    Of whichever stage or flag: it is not made again unless that is asked for.
    """
    digest = functools.cache(sha256)
    homes = (output_dir, *(output_dir / "derivatives").glob("*/"))
    found = []
    for path in sorted(path for home in homes for path in home.glob(f"sub-{label}*/**/*.json")):
        if _is_of_other_labels(read_object(path), label, output_dir, digest):
            found.append(path.with_suffix("").relative_to(output_dir).as_posix())
    return found


def _is_of_other_labels(
    said: Mapping, label: str, output_dir: Path, digest: Callable[[Path], str]
) -> bool:
    """Whether a result was made from a label map of a participant that is another one by now."""
    of, was = MADE_OF if MADE_OF[0] in said else ("Input", "InputSHA256")
    uri = str(said.get(of))
    inside = next((uri.removeprefix(start) for start in OWN if uri.startswith(start)), "")
    labels = output_dir / inside
    own = inside.startswith(f"sub-{label}/") and labels.is_file()
    return own and digest(labels) != said.get(was)


def _find(label: str, folders: Folders) -> list[Job]:
    """Results of each stage; they count if image and labels are what they were made from."""
    digest = functools.cache(sha256)
    return [
        job
        for stage in PARTICIPANT.values()
        if stage.results
        for path in sorted(folders.output_dir.glob(f"sub-{label}/**/anat/{stage.results}"))
        if not _is_of_other_labels(said := read_object(path), label, folders.output_dir, digest)
        and (job := stage.read(path, said, folders))
    ]
