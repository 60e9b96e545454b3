# SPDX-License-Identifier: Apache-2.0
"""Results that lie in the derivative, whichever run has left them: a page shows them all."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from brainseg_bids.bids.description import write_json
from brainseg_bids.stages import PARTICIPANT
from brainseg_bids.stages.base import Folders
from brainseg_bids.stages.jobs import Job, SubjectPlan, read_object


def with_found(plans: Iterable[SubjectPlan], folders: Folders) -> list[SubjectPlan]:
    """Plans, and for the same participants what other stages and runs have left.

    Results count if their input is still as it was when they were made.
    """
    complete = []
    for plan in plans:
        own = {scan.main for scan in plan.scans}
        # What could not be taken this time is not shown as if it could.
        excluded = {title.removesuffix(" head labels") for title in plan.faults}
        found = [
            scan
            for scan in _find(plan.label, folders)
            if scan.main not in own and scan.scan.title not in excluded
        ]
        complete.append(SubjectPlan(plan.label, (*plan.scans, *found), plan.faults))
    return complete


FAILED = Path("logs", "failed")
"""Folder in the derivative with a file for each image that the last run to try it could not do."""


def note_failures(
    plans: Iterable[SubjectPlan], failures: Mapping[str, str], *, output_dir: Path
) -> None:
    """Keep what failed for the pages that later runs and other jobs write; forget what went well.

    Two jobs may work on two sessions of one person, and either writes the page of both.
    """
    for plan in plans:
        for title in {scan.title for scan in plan.scans} | set(plan.faults):
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


def noted_failures(label: str, *, output_dir: Path) -> dict[str, str]:
    """What other runs could not do for a participant, by title, if the image is still there."""
    noted = {}
    for path in sorted((output_dir / FAILED).glob(f"sub-{label}_*.json")):
        said = read_object(path)
        image = said.get("Image", "")
        if said.get("Title") and (not os.path.isabs(image) or os.path.lexists(image)):
            noted[said["Title"]] = said.get("Reason", "")
    return noted


def _note(output_dir: Path, title: str) -> Path:
    return output_dir / FAILED / (re.sub(r"[^0-9A-Za-z+.-]+", "_", title).strip("_") + ".json")


def _find(label: str, folders: Folders) -> list[Job]:
    """Results of each stage; they count if their input is still what they were made from."""
    return [
        job
        for stage in PARTICIPANT.values()
        if stage.results
        for path in sorted(folders.output_dir.glob(f"sub-{label}/**/anat/{stage.results}"))
        if (job := stage.read(path, read_object(path), folders))
    ]
