# SPDX-License-Identifier: Apache-2.0
"""Results that lie in the derivative, whichever run has left them: a page shows them all."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from brainseg_bids.bids.description import raw_path
from brainseg_bids.bids.names import HeadNames, OutputNames, Scan, ToolNames
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
from brainseg_bids.workflows.segment_plan import SegmentPlan
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


def _find(label: str, bids_dir: Path, output_dir: Path) -> list[ScanPlan]:
    found: list[ScanPlan | None] = []
    for path in sorted(output_dir.glob(f"sub-{label}/**/anat/*_dseg.json")):
        said = read_object(path)
        if path.name.endswith(SEGMENTED):
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
    return SegmentPlan(scan, REUSE, "found", outputs, {"Input": said["Input"]})


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
