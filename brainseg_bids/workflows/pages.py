# SPDX-License-Identifier: Apache-2.0
"""Pages from what lies in the derivative, so that they can be made again at any time."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from brainseg_bids import __version__
from brainseg_bids.anatomy.cohort import Cohort
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.bids.description import write_tsv
from brainseg_bids.bids.names import folder, sidecar
from brainseg_bids.bids.templates import transform_name
from brainseg_bids.contrast.measured import ContrastStatistics
from brainseg_bids.documents import read_json
from brainseg_bids.reports.contrast import ContrastReport
from brainseg_bids.reports.group import write_group_page
from brainseg_bids.reports.head import HeadReport, ToolRun
from brainseg_bids.reports.page import ScanReport, write_page
from brainseg_bids.volumes import InputError
from brainseg_bids.workflows import methods
from brainseg_bids.workflows.contrast_plan import ContrastPlan
from brainseg_bids.workflows.found import noted_failures, with_found
from brainseg_bids.workflows.headlabels_plan import GIVEN, HeadPlan, ToolPlan
from brainseg_bids.workflows.plan import ScanPlan, SubjectPlan, read_object
from brainseg_bids.workflows.segment_plan import SegmentPlan
from brainseg_bids.workflows.spaces_plan import SpacePlan
from brainseg_bids.workflows.upsample_plan import UpsamplePlan

SHOWN = (
    "Tool", "ToolVersion", "Command", "Seconds", "PeakMemoryGiB", "Threads", "Mode", "Device"
)  # fmt: skip
"""Facts of a tool's run that its page tells, as they stand in the JSON beside its labels."""

TRIES, READS, PAUSE_S = 10, 4, 0.5
"""How often a page is written at most if other jobs leave more each time, how often results are
read that cannot be read, and how long is waited then: another job may be replacing them."""

NO_ASYMMETRY = (
    "Not compared: the network saw this image once, not mirrored as well, and one pass makes one "
    "side of a symmetric structure up to a sixth larger than the other. Segment without "
    "--no-test-time-flips to compare the sides."
)
"""Whatever the side of the larger structure, it changes when the image is mirrored: it is the
network's, not the head's."""

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
    page, shown = None, None
    for attempt in range(TRIES):
        try:
            (complete,) = with_found([plan], bids_dir=bids_dir, output_dir=output_dir)
            told = _failed(complete, failures, output_dir)
            done = [scan.main for scan in complete.scans if scan.has_results]
            now = [(path, path.stat().st_mtime_ns) for path in done], told
            if now == shown:
                break
            if not complete.scans and not told:
                return None
            page = write_subject_page(
                complete,
                output_dir=output_dir,
                bids_dir=bids_dir,
                errors=[f"{title}: {why}" for title, why in told.items()],
                settings=settings,
                cohort=cohort,
            )
            shown = now
        except (OSError, ValueError, KeyError):
            if attempt >= READS - 1:
                raise
            time.sleep(PAUSE_S)
    return page


def _failed(plan: SubjectPlan, failures: Mapping[str, str], output_dir: Path) -> dict[str, str]:
    """What this run could not do for a participant, and what others could not."""
    own = {scan.title for scan in plan.scans} | set(plan.faults)
    told = {title: why for title, why in failures.items() if title in own}
    done = {scan.title for scan in plan.scans if scan.has_results}
    noted = noted_failures(plan.label, output_dir=output_dir)
    return told | {t: why for t, why in noted.items() if t not in told and t not in done}


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
    heads = [scan for scan in done if isinstance(scan, HeadPlan)]
    return write_page(
        output_dir / f"sub-{plan.label}.html",
        subject=plan.label,
        scans=[
            scan_report(scan, output_dir=output_dir, bids_dir=bids_dir)
            for scan in done
            if isinstance(scan, SegmentPlan)
        ]
        + [
            space_report(scan, output_dir=output_dir, bids_dir=bids_dir)
            for scan in done
            if isinstance(scan, SpacePlan)
        ]
        + [
            finer_report(scan, output_dir=output_dir)
            for scan in done
            if isinstance(scan, UpsamplePlan)
        ],
        heads=[
            head_report(scan, output_dir=output_dir, bids_dir=bids_dir, cohort=cohort)
            for scan in heads
        ],
        contrasts=[
            contrast_report(scan, output_dir=output_dir, bids_dir=bids_dir)
            for scan in done
            if isinstance(scan, ContrastPlan)
        ],
        settings=settings,
        errors=list(errors),
        methods=methods.of_results(done),
        version=__version__,
    )


def scan_report(plan: SegmentPlan, *, output_dir: Path, bids_dir: Path) -> ScanReport:
    """What a page says about one image, read from the files that the run left."""
    facts = read_json(sidecar(plan.outputs["labels"]))
    shown = {
        "Model": facts.get("ModelName"),
        "Model digest": str(facts.get("ModelDigest", ""))[:12],
        "Time": _format(facts.get("SegmentationSeconds"), "{:.0f} s"),
        "Peak memory": _format(facts.get("PeakMemoryGiB"), "{:.1f} GiB"),
        "Device": facts.get("Device"),
        "Threads": _format(facts.get("Threads"), "{}"),
        "Voxel size": _format(facts.get("InputVoxelSizeMm"), "{} mm"),
        "Model's voxel size": _format(facts.get("ModelVoxelSizeMm"), "{} mm"),
        "Made by": f"brainseg-bids {facts.get('BrainsegVersion')}",
    }
    return ScanReport(
        title=plan.scan.title,
        source=plan.scan.path.relative_to(bids_dir).as_posix(),
        figure=plan.outputs["figure"],
        volumes=read_volumes(plan.outputs["volumes"], output_dir, "brainseg"),
        facts={key: value for key, value in shown.items() if value},
        warnings=[*facts.get("ToLookAt", []), *facts.get("Warnings", [])],
        outputs=_written(plan, output_dir),
        no_asymmetry=no_asymmetry(plan.outputs["labels"]),
    )


def no_asymmetry(*by_network: Path) -> str:
    """Why sides are not compared, if any of these label maps was made without flips."""
    said = [read_object(sidecar(labels)) for labels in by_network]
    lopsided = any("ModelDigest" in one and not one.get("TestTimeFlips") for one in said)
    return NO_ASYMMETRY if lopsided else ""


def head_report(
    plan: HeadPlan, *, output_dir: Path, bids_dir: Path, cohort: Cohort | None
) -> HeadReport:
    """What a page says about one map of the head, read from the files that the run left."""
    merge = read_json(sidecar(plan.outputs["merge"]))
    image = plan.outputs["volumes"].name.split("_seg-")[0]
    return HeadReport(
        title=plan.scan.title,
        source=plan.scan.path.relative_to(bids_dir).as_posix(),
        figures={"merged labels, each tool's, and what changed": plan.outputs["figure"]},
        tools=[_tool_run(role, tool) for role, tool in plan.tools.items()],
        merge=merge["Merge"],
        volumes=read_volumes(plan.outputs["volumes"], output_dir, "fullhead"),
        z=cohort.z.get(image) if cohort else None,
        missing=cohort.missing.get(image, ()) if cohort else (),
        facts={"Made by": f"brainseg-bids {merge.get('BrainsegVersion')}"},
        warnings=merge.get("Warnings", []),
        outputs=_written(plan, output_dir),
        no_asymmetry=no_asymmetry(*(tool.outputs["labels"] for tool in plan.tools.values())),
    )


def finer_report(plan: UpsamplePlan, *, output_dir: Path) -> ScanReport:
    """What a page says about a label map at finer voxels."""
    said = read_json(sidecar(plan.outputs["labels"]))
    proof = said["Certificate"]
    changed = [row for row in proof["labels"] if row["index"] and row["volume_change"] is not None]
    widest = max(changed, key=lambda row: abs(row["volume_change"]), default=None)
    facts = {
        "Method": said.get("Method"),
        "Holes filled": _format(said.get("HolesFilledVoxels"), "{:,} voxels"),
        "Islands removed": _format(said.get("IslandsRemovedVoxels"), "{:,} voxels"),
        "Time": _format(said.get("Seconds"), "{:.0f} s"),
        "Dice when taken back": _format(proof["round_trip_mean_dice"], "{:.4f}"),
        "Voxels equal when taken back": _format(proof["round_trip_equal_voxels"], "{:.2%}"),
        "Largest change of a volume": widest
        and f"{widest['volume_change']:+.1%} ({widest['name']})",
        "Made by": f"brainseg-bids {said.get('BrainsegVersion')}",
    }
    return ScanReport(
        title=plan.title,
        source=plan.scan.path.relative_to(output_dir).as_posix(),
        figure=plan.outputs["figure"],
        volumes=read_volumes(plan.outputs["volumes"], output_dir, "fullhead"),
        facts={key: value for key, value in facts.items() if value},
        warnings=said.get("ToLookAt", []),
        outputs=_written(plan, output_dir),
        what="Label map",
        noun="label map",
        done="made finer",
        caption="Above the label map, below the same at finer voxels.",
        no_asymmetry=no_asymmetry(*_maps_of_the_model(plan.scan.path)),
    )


def _maps_of_the_model(merged: Path) -> list[Path]:
    """The network's label map that a merged one was made of, if it was."""
    said = read_object(sidecar(merged))
    if "model" not in (said.get("HeadTool"), said.get("BrainTool")):
        return []
    return [merged.with_name(merged.name.replace("_seg-fullhead_", "_seg-model_"))]


def space_report(plan: SpacePlan, *, output_dir: Path, bids_dir: Path) -> ScanReport:
    """What a page says about an image in a standard space."""
    template = plan.templates[0]
    transform = output_dir / folder(plan.scan) / transform_name(plan.scan, template)
    said = read_object(sidecar(transform))
    facts = {
        "Template": template.space,
        "Resolution": template.resolution,
        "Registration": said.get("Registration"),
        "Driven by": said.get("DrivenBy"),
        "Time": _format(said.get("Seconds"), "{:.0f} s"),
        "Peak memory": _format(said.get("PeakMemoryGiB"), "{:.1f} GiB"),
        "Made by": f"brainseg-bids {read_object(sidecar(plan.main)).get('BrainsegVersion')}",
    }
    return ScanReport(
        title=plan.title,
        source=plan.scan.path.relative_to(bids_dir).as_posix(),
        figure=plan.outputs["figure"],
        volumes=[],
        facts={key: value for key, value in facts.items() if value},
        outputs=_written(plan, output_dir),
        what="Registered image",
        done="in a standard space",
        caption="Each cut of the template: alone, with the image's labels, with their outlines.",
    )


def contrast_report(plan: ContrastPlan, *, output_dir: Path, bids_dir: Path) -> ContrastReport:
    """What a page says about the contrast of an image."""
    said = read_json(sidecar(plan.outputs["statistics"]))
    return ContrastReport(
        title=plan.scan.title,
        labels=said.get("LabelsOf", ""),
        source=plan.scan.path.relative_to(bids_dir).as_posix(),
        figure=plan.outputs["figure"],
        statistics=ContrastStatistics.from_json(json.dumps(said["Statistics"])),
        facts={
            "Skull-stripped": "yes: the brain alone was measured"
            * bool(said.get("SkullStripped")),
            "Time": _format(said.get("Seconds"), "{:.0f} s"),
            "Made by": f"brainseg-bids {said.get('BrainsegVersion')}",
        },
        warnings=[*said.get("Warnings", []), *said.get("MetadataWarnings", [])],
        outputs=_written(plan, output_dir),
    )


def _tool_run(role: str, plan: ToolPlan) -> ToolRun:
    if plan.action == GIVEN:
        return ToolRun(plan.tool.name, role=role, reused_from=str(plan.outputs["labels"]))
    facts = read_object(sidecar(plan.outputs["labels"]))
    return ToolRun.from_facts({key: facts[key] for key in SHOWN if key in facts}, role=role)


def _written(plan: ScanPlan, output_dir: Path) -> list[str]:
    return [
        path.relative_to(output_dir).as_posix() for path in plan.outputs.values() if path.is_file()
    ]


def _format(value, pattern: str) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        value = " × ".join(f"{size:g}" for size in value)
    return pattern.format(value)


def read_volumes(path: Path, output_dir: Path, segmentation: str) -> list[dict]:
    """Rows of a volumes table with the colours of the label table ``seg-SEGMENTATION``."""
    table = LabelTable.read(output_dir / f"seg-{segmentation}_dseg.tsv", name=segmentation)
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    try:
        for row in rows:
            label = table[int(row["index"])]
            row["index"], row["volume_mm3"] = int(row["index"]), float(row["volume_mm3"])
            row["color"], row["mapping"] = label.color, label.mapping
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: is no volumes table of this derivative ({error}). Remove it and run again."
        ) from error
    return rows


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
        page = write_group_page(
            output_dir / name,
            title=title,
            volumes=volumes,
            version=__version__,
            cohort=cohort,
            to_look_at=to_look_at,
        )
        pages.append((page, len(volumes), to_look_at))
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
