# SPDX-License-Identifier: Apache-2.0
"""Results that lie in the derivative, whichever run has left them: a page shows them all."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from brainseg_bids.bids.description import raw_path, write_json
from brainseg_bids.bids.names import HeadNames, OutputNames, Scan, ToolNames
from brainseg_bids.bids.templates import Template
from brainseg_bids.interfaces.tools import find_tool, tool_names
from brainseg_bids.workflows.contrast_plan import ContrastPlan, found_contrast
from brainseg_bids.workflows.headlabels_plan import GIVEN, HeadPlan, ToolPlan
from brainseg_bids.workflows.plan import (
    CHANGES,
    REUSE,
    ScanPlan,
    SubjectPlan,
    fingerprint,
    read_object,
    why_run,
)
from brainseg_bids.workflows.segment_plan import VIEWS, SegmentPlan
from brainseg_bids.workflows.spaces_plan import SpacePlan, found_space
from brainseg_bids.workflows.upsample_plan import finer_plan

MEASURED = "_desc-contrast_morph.json"
SEGMENTED, MERGED, FINER = "_seg-brainseg_dseg.json", "_seg-fullhead_dseg.json", "_res-"


def with_found(
    plans: Iterable[SubjectPlan], *, bids_dir: Path, output_dir: Path
) -> list[SubjectPlan]:
    """Plans, and for the same participants what other stages and runs have left.

    Results count if their input is still as it was when they were made.
    """
    complete = []
    for plan in plans:
        own = {scan.main for scan in plan.scans}
        # What could not be taken this time is not shown as if it could.
        barred = {title.removesuffix(" head labels") for title in plan.faults}
        found = [
            scan
            for scan in _find(plan.label, bids_dir, output_dir)
            if scan.main not in own and scan.scan.title not in barred
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


def _find(label: str, bids_dir: Path, output_dir: Path) -> list[ScanPlan]:
    found: list[ScanPlan | None] = []
    for path in sorted(output_dir.glob(f"sub-{label}/**/anat/*_dseg.json")):
        said = read_object(path)
        if "Registration" in said:
            found.append(_in_space(path, said, bids_dir, output_dir))
        elif path.name.endswith(SEGMENTED):
            found.append(_segmented(said, bids_dir, output_dir))
        elif path.name.endswith(MERGED):
            found.append(_merged(said, bids_dir, output_dir))
        elif FINER in path.name and "_seg-fullhead_" in path.name:
            found.append(finer_plan(path, said, output_dir))
    for path in sorted(output_dir.glob(f"sub-{label}/**/anat/*{MEASURED}")):
        found.append(_measured(path, bids_dir, output_dir))
    return [plan for plan in found if plan is not None]


def _there(names: OutputNames | HeadNames | ToolNames, output_dir: Path) -> dict[str, Path]:
    paths = {name: output_dir / path for name, path in vars(names).items()}
    return {name: path for name, path in paths.items() if path.is_file()}


def _unchanged(said: dict, scan: Scan, outputs: dict[str, Path]) -> bool:
    """Whether the input is what these results were made from, and all that is shown is there."""
    try:
        now = fingerprint(scan.path, known=said)
    except OSError:
        return False
    shown = {name: outputs.get(name, scan.path / "missing") for name in ("labels", "volumes")}
    as_said = {key: said[key] for key in CHANGES if key in said}
    return not why_run(shown, as_said | {"InputSHA256": now["InputSHA256"]})


def _segmented(said: dict, bids_dir: Path, output_dir: Path) -> SegmentPlan | None:
    path = raw_path(said.get("Input", ""), bids_dir)
    if path is None:
        return None
    scan = Scan.from_path(path)
    outputs = _there(OutputNames.of(scan), output_dir)
    if not _unchanged(said, scan, outputs) or "figure" not in outputs:
        return None
    views = {key: said[key] for key in VIEWS if key in said}
    return SegmentPlan(scan, REUSE, "found", outputs, {"Input": said["Input"], **views})


def _in_space(path: Path, said: dict, bids_dir: Path, output_dir: Path) -> SpacePlan | None:
    image = raw_path(said.get("Input", ""), bids_dir)
    if image is None or "_seg-brainseg_" not in path.name:
        return None
    entities = Scan.from_path(path).entities
    # Of the template only its names are needed for a page.
    template = Template(entities.get("space", ""), "", entities.get("res", ""), Path())
    try:
        if fingerprint(image, known=said)["InputSHA256"] != said.get("InputSHA256"):
            return None
    except OSError:
        return None
    labels = path.with_name(path.name.replace(".json", ".nii.gz"))
    return found_space(labels, said, Scan.from_path(image), template, output_dir)


def _measured(path: Path, bids_dir: Path, output_dir: Path) -> ContrastPlan | None:
    said = read_object(path)
    image = raw_path(said.get("Input", ""), bids_dir)
    if image is None:
        return None
    try:
        now = fingerprint(image, known=said)
    except OSError:
        return None
    if now["InputSHA256"] != said.get("InputSHA256"):
        return None
    return found_contrast(path, said, Scan.from_path(image), output_dir)


def _merged(said: dict, bids_dir: Path, output_dir: Path) -> HeadPlan | None:
    path = raw_path(said.get("Input", ""), bids_dir)
    if path is None:
        return None
    scan = Scan.from_path(path)
    outputs = _there(HeadNames.of(scan), output_dir)
    if not _unchanged(said, scan, outputs) or not {"figure", "merge"} <= set(outputs):
        return None
    tools = {}
    for role in ("head", "brain"):
        name = said.get(f"{role.capitalize()}Tool")
        if name not in tool_names():
            continue
        source = said.get(f"{role.capitalize()}Source")
        own = _there(ToolNames.of(scan, name), output_dir)
        if source:
            tools[role] = ToolPlan(find_tool(name), GIVEN, source, {"labels": Path(source)}, {})
        elif "labels" in own:
            tools[role] = ToolPlan(find_tool(name), REUSE, "found", own, {})
    return HeadPlan(scan, REUSE, "found", outputs, {"Input": said["Input"]}, tools)
