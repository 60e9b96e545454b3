# SPDX-License-Identifier: Apache-2.0
"""Pages from what lies in the derivative, so that they can be made again at any time."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path

from brainseg_bids import __version__
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.bids.description import write_text
from brainseg_bids.bids.names import sidecar
from brainseg_bids.reports.group import write_group_page
from brainseg_bids.reports.page import ScanReport, write_page
from brainseg_bids.volumes import InputError
from brainseg_bids.workflows.plan import ScanPlan, SubjectPlan

GROUP_TABLE = "group_seg-brainseg_desc-volumes_morph.tsv"


def write_subject_page(
    plan: SubjectPlan,
    *,
    output_dir: Path,
    bids_dir: Path,
    errors: Iterable[str],
    settings: str,
    methods: str,
) -> Path:
    """Write ``sub-LABEL.html``: every image whose results are there, and what went wrong."""
    scans = [
        scan_report(scan, output_dir=output_dir, bids_dir=bids_dir)
        for scan in plan.scans
        if scan.has_results
    ]
    return write_page(
        output_dir / f"sub-{plan.label}.html",
        subject=plan.label,
        scans=scans,
        settings=settings,
        errors=list(errors),
        methods=methods,
        version=__version__,
    )


def scan_report(plan: ScanPlan, *, output_dir: Path, bids_dir: Path) -> ScanReport:
    """What a page says about one image, read from the files that the run left."""
    facts = json.loads(sidecar(plan.outputs["labels"]).read_text(encoding="utf-8"))
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
        volumes=read_volumes(plan.outputs["volumes"], output_dir),
        facts={key: value for key, value in shown.items() if value},
        warnings=facts.get("Warnings", []),
        outputs=[
            path.relative_to(output_dir).as_posix()
            for path in plan.outputs.values()
            if path.is_file()
        ],
    )


def _format(value, pattern: str) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        value = " × ".join(f"{size:g}" for size in value)
    return pattern.format(value)


def read_volumes(path: Path, output_dir: Path) -> list[dict]:
    """Rows of a volumes table with the colours of the label table."""
    table = LabelTable.read(output_dir / "seg-brainseg_dseg.tsv", name="brainseg")
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


def write_group(
    output_dir: Path, *, title: str, participants: Iterable[str] = ()
) -> tuple[Path, int]:
    """Write one table and one page of the volumes of all images in the derivative.

    Returns
    -------
    page : Path
    n_images : int

    Raises
    ------
    InputError
        If there are no volumes.
    """
    wanted = set(participants)
    tables = {
        path.name.split("_seg-brainseg")[0]: path
        for path in sorted(output_dir.glob("sub-*/**/*_seg-brainseg_desc-volumes_morph.tsv"))
        if not wanted or path.name.split("_")[0].removeprefix("sub-") in wanted
    }
    if not tables:
        raise InputError(
            f"{output_dir}: no volumes are in it. Run the participant level into it first."
        )
    volumes = {name: read_volumes(path, output_dir) for name, path in tables.items()}
    names = list(dict.fromkeys(row["name"] for rows in volumes.values() for row in rows))
    lines = ["\t".join(["participant_id", "session_id", "image", *names])]
    for image, rows in volumes.items():
        entities = dict(part.split("-", 1) for part in image.split("_"))
        by_name = {row["name"]: f"{row['volume_mm3']:g}" for row in rows}
        session = f"ses-{entities['ses']}" if "ses" in entities else "n/a"
        values = [by_name.get(name, "n/a") for name in names]
        lines.append("\t".join([f"sub-{entities['sub']}", session, image, *values]))
    write_text(output_dir / GROUP_TABLE, "\n".join(lines) + "\n")
    page = write_group_page(
        output_dir / "group.html", title=title, volumes=volumes, version=__version__
    )
    return page, len(volumes)
