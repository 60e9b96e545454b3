# SPDX-License-Identifier: Apache-2.0
"""Parcels of the cortex that a tool of ``headlabels`` gave, as a derivative of their own."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from brainseg_bids.anatomy.labels import UnknownLabelError
from brainseg_bids.bids.description import raw_path, write_label_tables
from brainseg_bids.bids.names import ParcelNames, Scan, ToolNames, sidecar
from brainseg_bids.documents import InputError, read_object
from brainseg_bids.stages.base import ExecutionOptions, Folders, ParticipantStage, Run
from brainseg_bids.stages.jobs import (
    REUSE,
    Job,
    PlanErrors,
    SubjectPlan,
    decided,
    is_current,
    present,
    provenance_of,
    why_run,
)
from brainseg_bids.stages.volumes import VOLUMES_COLUMNS

if TYPE_CHECKING:
    from niworkflows.engine.workflows import LiterateWorkflow as Workflow

    from brainseg_bids.bids.inputs import Subject
    from brainseg_bids.interfaces.tools.base import Tool
    from brainseg_bids.options import Settings
    from brainseg_bids.reports.page import Section

log = logging.getLogger("brainseg")

CHANGES = {"ParcelsSHA256": "the tool's map of parcels has changed"}
"""Of a tool that writes parcels to a file of their own; as `brainseg_bids.stages.jobs.CHANGES`."""


@dataclass(frozen=True)
class ParcelJob(Job):
    """One tool's parcels of one image. ``source``: the tool's map, in its own codes and grid."""

    tool: str
    source: Path

    stage: ClassVar[str] = "parcellation"
    changes: ClassVar[Mapping[str, str]] = CHANGES

    @property
    def title(self) -> str:
        """How messages call it."""
        return _title(self.scan, self.tool)


def _title(scan: Scan, tool: str) -> str:
    return f"{scan.title} parcels of {tool}"


def table_name(tool: str) -> str:
    """What stands between ``seg-`` and ``_dseg`` of a tool's parcels.

    >>> table_name("fastsurfer")
    'fastsurfer_desc-parcellation'
    """
    return f"{tool}_desc-parcellation"


def plan_parcels(
    subject: Subject,
    tools: Iterable[Tool],
    *,
    bids_dir: Path,
    output_dir: Path,
    derivatives: Mapping[str, Path],
    excluded: Iterable[str] = (),
) -> SubjectPlan:
    """Decide for each image and tool whether its parcels are there already.

    Parameters
    ----------
    tools : iterable of Tool
        Those that can give parcels.
    derivatives : mapping of str to Path
        Folders with results of tools, by name: what is found there is taken, as by ``headlabels``.
    excluded : iterable of str
        Titles of what could not be done; that has been told.
    """
    plans, errors, failed = [], PlanErrors(), set(excluded)
    for scan in subject.scans:
        for tool in tools:
            if f"{scan.title} head labels" in failed:
                continue
            with errors.of(_title(scan, tool.name), scan.path):
                source, uri = _source(tool, scan, output_dir, derivatives)
                job = source and _plan_map(scan, tool, source, uri, bids_dir, output_dir)
                plans += [job] if job else []
    return SubjectPlan(subject.label, tuple(plans), errors)


def _source(
    tool: Tool, scan: Scan, output_dir: Path, derivatives: Mapping[str, Path]
) -> tuple[Path | None, str]:
    """A tool's map and its URI: what the user gives, else what ``headlabels`` has left."""
    from brainseg_bids.interfaces.existing import find_existing  # late: nipype

    root = derivatives.get(tool.name)
    if root and (given := find_existing(tool, root, scan)):
        return given, f"bids:{tool.name}:{given.relative_to(root).as_posix()}"
    own = ToolNames.of(scan, tool.name).labels
    there = (output_dir / own).is_file()
    return (output_dir / own if there else None), f"bids::{own.as_posix()}"


def _plan_map(
    scan: Scan, tool: Tool, source: Path, uri: str, bids_dir: Path, output_dir: Path
) -> ParcelJob | None:
    from brainseg_bids.files import sha256

    names = vars(ParcelNames.of(scan, tool.name))
    outputs = {name: output_dir / path for name, path in names.items()}
    facts = provenance_of(scan, source, uri, outputs["labels"], bids_dir)
    facts["Tool"] = tool.name
    if second := tool.interface.second_map(source):
        facts["ParcelsSHA256"] = sha256(second)
    reason = why_run(outputs, facts, CHANGES)
    if reason and not _has_parcels(tool, source):
        _say_none(_title(scan, tool.name), source, uri, outputs["labels"])
        return None
    return ParcelJob(scan, *decided(reason), outputs, facts, tool.name, source)


def _has_parcels(tool: Tool, source: Path) -> bool:
    from brainseg_bids.interfaces.parcellation import has_parcels  # late: nipype
    from brainseg_bids.interfaces.tools._failures import ToolError

    try:
        return has_parcels(tool, source)
    except UnknownLabelError as error:
        raise InputError(
            f"{error}. Is this the output of {tool.name}? Another version may have other codes."
        ) from error
    except ToolError as error:
        raise InputError(str(error)) from error


def _say_none(title: str, source: Path, uri: str, earlier: Path) -> None:
    """A line of the log; a warning if parcels of an earlier map are left."""
    if earlier.is_file():
        log.warning(
            "%s: %s has no parcels of the cortex, but those of an earlier map are still there. "
            "Remove %s if they are no longer right.", title, source, earlier,
        )  # fmt: skip
    else:  # it may be meant to have none
        level = logging.DEBUG if uri.startswith("bids::") else logging.INFO
        log.log(level, "%s: %s has no parcels of the cortex", title, source)


def parcel_metadata(job: ParcelJob, *, output_dir: Path) -> dict[str, dict]:
    """JSON of each output."""
    raw = job.provenance["Input"]
    own = f"bids::{job.outputs['labels'].relative_to(output_dir).as_posix()}"
    table = f"seg-{table_name(job.tool)}_dseg.tsv"
    what = {
        "labels": {
            "Description": f"Parcels of the cortex by {job.tool}, on the image's own grid, in "
            f"FreeSurfer's codes. Codes are explained in {table}.",
            "Manual": False,
            "Sources": [raw, job.provenance["LabelsOf"]],
            "SpatialReference": raw,
        },
        "volumes": {
            "Description": "Volume of each parcel: voxels times the volume of a voxel.",
            "Sources": [own],
            "index": {"Description": f"Code in {table}."},
            **VOLUMES_COLUMNS,
        },
    }
    return {name: said | job.provenance for name, said in what.items()}


class Parcellation(ParticipantStage):
    """Parcels of the cortex from tools of ``headlabels`` that give some."""

    name = "parcellation"
    has_name = False
    after = ("headlabels",)
    results = "*_desc-parcellation_dseg.json"

    def is_chosen(self, settings: Settings) -> bool:
        return "headlabels" in settings.stages

    def plan(self, run: Run) -> list[SubjectPlan]:
        from brainseg_bids.interfaces.parcellation import parcel_table  # late: nipype

        settings, tools = run.settings, _tools(run)
        if settings.boilerplate_only or not tools:
            return []
        where = {"bids_dir": settings.bids_dir, "output_dir": settings.output_dir}
        given = {name: Path(path) for name, path in settings.derivatives.items()}
        plans = [
            plan_parcels(subject, tools, **where, derivatives=given, excluded=run.failed)
            for subject in run.subjects(("T1w",))
        ]
        if not settings.reports_only:  # of tools with parcels alone, so not by `tables`
            write_label_tables(
                settings.output_dir,
                {
                    table_name(tool.name): parcel_table(tool)
                    for tool in tools
                    if any(job.tool == tool.name for plan in plans for job in plan.scans)
                },
            )
        return plans

    def workflow(self, job: ParcelJob, execution: ExecutionOptions) -> Workflow:
        from nipype import IdentityInterface
        from nipype.pipeline import engine as pe
        from niworkflows.engine.workflows import LiterateWorkflow as Workflow

        from brainseg_bids.interfaces.labels import Volumes
        from brainseg_bids.interfaces.parcellation import Parcellation
        from brainseg_bids.interfaces.reportlets import DrawLabels
        from brainseg_bids.stages.saving import init_ds_scan_wf

        workflow = Workflow(name=job.name)
        workflow.__desc__ = methods_text(job.tool)
        inputnode = pe.Node(IdentityInterface(fields=["image", "labels"]), name="inputnode")
        inputnode.inputs.trait_set(image=str(job.scan.path), labels=str(job.source))
        table = str(execution.output_dir / f"seg-{table_name(job.tool)}_dseg.tsv")
        parcels = pe.Node(Parcellation(tool=job.tool), name="parcels", mem_gb=1.0)
        volumes = pe.Node(Volumes(table=table, inside=False), name="volumes", mem_gb=0.5)
        figure = pe.Node(DrawLabels(table=table), name="figure", mem_gb=1.5)
        ds_parcels_wf = init_ds_scan_wf(
            {output: str(path) for output, path in job.outputs.items()},
            parcel_metadata(job, output_dir=execution.output_dir),
            with_result=(),
            name="ds_parcels_wf",
        )
        workflow.connect([
            (inputnode, parcels, [("image", "image"), ("labels", "labels")]),
            (inputnode, figure, [("image", "image")]),
            (parcels, volumes, [("labels", "labels")]),
            (parcels, figure, [("labels", "labels")]),
            (parcels, ds_parcels_wf, [("labels", "inputnode.labels")]),
            (volumes, ds_parcels_wf, [("out_file", "inputnode.volumes")]),
            (figure, ds_parcels_wf, [("out_file", "inputnode.figure")]),
        ])  # fmt: skip
        return workflow

    def read(self, path: Path, metadata: Mapping, folders: Folders) -> ParcelJob | None:
        image = raw_path(metadata.get("Input", ""), folders.bids_dir)
        if image is None or "Tool" not in metadata:
            return None
        scan, tool = Scan.from_path(image), metadata["Tool"]
        outputs = present(ParcelNames.of(scan, tool), folders.output_dir)
        if "figure" not in outputs or not is_current(image, metadata, outputs):
            return None
        kept = ("Input", "LabelsOf", *CHANGES)
        facts = {"LabelsOf": ""} | {key: metadata[key] for key in kept if key in metadata}
        return ParcelJob(scan, REUSE, "found", outputs, facts, tool, path)

    def section(self, job: ParcelJob, folders: Folders) -> Section:
        from brainseg_bids.reports import tables
        from brainseg_bids.reports.image_section import image_section, made_by, written
        from brainseg_bids.reports.volume_table import read_volumes, totals_mm3

        volumes = read_volumes(job.outputs["volumes"], folders.output_dir, table_name(job.tool))
        section = image_section(
            title=job.title,
            source=job.scan.path.relative_to(folders.bids_dir).as_posix(),
            figure=job.outputs["figure"],
            volumes=volumes,
            run={
                "Tool": job.tool,
                "Labels": job.provenance["LabelsOf"],
                **made_by(read_object(sidecar(job.main))),
            },
            outputs=written(job.outputs, folders.output_dir),
            what="Image whose cortex is parcelled",
            counted=("image", "parcelled"),
        )
        overview = {  # the parcels are no brain, and no model has made them
            "File": section.overview["File"],
            "Tool": job.tool,
            "Parcels (ml)": tables.ml(sum(totals_mm3(volumes).values())),
        }
        return replace(section, kind="parcels", overview=overview, numbers=("Parcels (ml)",))

    def methods(self, jobs: Iterable[ParcelJob]) -> list[str]:
        return [methods_text(tool) for tool in dict.fromkeys(job.tool for job in jobs)]


def methods_text(tool: str) -> str:
    """Where parcels come from."""
    from brainseg_bids.interfaces.tools import find_tool  # late: nipype

    return f"""\
Parcels of the cortex are those of {find_tool(tool).about}, brought to the grid of the image by its
affine, label by label with linear interpolation.
"""


def _tools(run: Run) -> list[Tool]:
    """Tools in use that can give parcels."""
    from brainseg_bids.interfaces.parcellation import parcel_codes  # late: nipype
    from brainseg_bids.interfaces.tools import find_tool

    used = dict.fromkeys((run.settings.head_tool, run.settings.brain_tool))
    return [tool for name in used if parcel_codes(tool := find_tool(name))]
