# SPDX-License-Identifier: Apache-2.0
"""Tissues for SimNIBS (``--simnibs-export``): what its ``meshmesh`` makes a head mesh of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from brainseg_bids.bids.names import HeadNames, OutputNames, Scan, output_file
from brainseg_bids.options import OptionGroup, option
from brainseg_bids.stages.base import ExecutionOptions, ParticipantStage, Run
from brainseg_bids.stages.jobs import Job, PlanErrors, SubjectPlan, decided, provenance_of, why_run

if TYPE_CHECKING:
    from niworkflows.engine.workflows import LiterateWorkflow as Workflow

    from brainseg_bids.anatomy.labels import LabelTable
    from brainseg_bids.bids.inputs import Subject
    from brainseg_bids.options import Settings

MAPS = {"fullhead": HeadNames, "brainseg": OutputNames}
"""Whose labels are written as tissues, best first: merged maps of heads, segmentations."""
FROM = {"headlabels": "fullhead", "segment": "brainseg"}


@dataclass(frozen=True, kw_only=True)
class SimnibsOptions(OptionGroup):
    """For head meshes."""

    title: ClassVar[str] = "head meshes (--stages segment or headlabels)"
    belongs_to: ClassVar[tuple[str, ...]] = ("segment", "headlabels")

    simnibs_export: bool = option(
        "--simnibs-export",
        default=False,
        help="also write the head's tissues in SimNIBS' codes, for its meshmesh; from merged head "
        "labels where --stages headlabels makes some, else from the segmentation",
    )


@dataclass(frozen=True)
class SimnibsJob(Job):
    """One label map to write as tissues. ``segmentation``: its label of ``seg-``."""

    labels: Path
    segmentation: str

    stage: ClassVar[str] = "simnibs"
    shown: ClassVar[tuple[str, ...]] = ("tissues",)

    @property
    def title(self) -> str:
        """How messages call it."""
        return f"{self.scan.title} for SimNIBS"


def plan_simnibs(
    subject: Subject,
    segmentations: Iterable[str],
    *,
    bids_dir: Path,
    output_dir: Path,
    excluded: Iterable[str] = (),
) -> SubjectPlan:
    """Decide for each labelled image whether its tissues are there already.

    Parameters
    ----------
    segmentations : iterable of str
        Keys of `MAPS`: what this run makes.
    excluded : iterable of str
        Titles of what could not be done; that has been told.
    """
    plans, errors, failed = [], PlanErrors(), set(excluded)
    wanted = [name for name in MAPS if name in set(segmentations)]
    for scan in subject.scans:
        made = [
            (name, path)
            for name in wanted
            if f"{scan.title}{' head labels' * (name == 'fullhead')}" not in failed
            and (path := output_dir / MAPS[name].of(scan).labels).is_file()
        ]
        with errors.of(f"{scan.title} for SimNIBS", scan.path):
            plans += [_plan_map(scan, *one, bids_dir, output_dir) for one in made[:1]]
    return SubjectPlan(subject.label, tuple(plans), errors)


def _plan_map(
    scan: Scan, segmentation: str, labels: Path, bids_dir: Path, output_dir: Path
) -> SimnibsJob:
    tissues = output_dir / output_file(scan, "dseg.nii.gz", seg="simnibs")
    uri = f"bids::{labels.relative_to(output_dir).as_posix()}"
    facts = provenance_of(scan, labels, uri, tissues, bids_dir)
    reason = why_run({"tissues": tissues}, facts)
    return SimnibsJob(scan, *decided(reason), {"tissues": tissues}, facts, labels, segmentation)


def simnibs_metadata(job: SimnibsJob) -> dict[str, dict]:
    """JSON beside the tissues."""
    own, raw = job.provenance["LabelsOf"], job.provenance["Input"]
    said = {
        "Description": "Tissues of the head in SimNIBS' codes, for its meshmesh. Codes are "
        "explained in seg-simnibs_dseg.tsv.",
        "Manual": False,
        "Sources": [own],
        "SpatialReference": raw,
    }
    return {"tissues": said | job.provenance}


class SimnibsExport(ParticipantStage):
    """Labels of heads as tissues that SimNIBS can mesh (``--simnibs-export``)."""

    name = "simnibs"
    options = SimnibsOptions
    has_name = False
    after = ("segment", "headlabels")

    def is_chosen(self, settings: Settings) -> bool:
        return settings.simnibs_export and bool(set(FROM) & set(settings.stages))

    def plan(self, run: Run) -> list[SubjectPlan]:
        settings = run.settings
        where = {"bids_dir": settings.bids_dir, "output_dir": settings.output_dir}
        segmentations = [name for stage, name in FROM.items() if stage in settings.stages]
        return [
            plan_simnibs(subject, segmentations, **where, excluded=run.failed)
            for subject in run.segmented()
        ]

    def workflow(self, job: SimnibsJob, execution: ExecutionOptions) -> Workflow:
        from nipype.pipeline import engine as pe
        from niworkflows.engine.workflows import LiterateWorkflow as Workflow

        from brainseg_bids.interfaces.simnibs_export import SimnibsExport
        from brainseg_bids.stages.saving import init_ds_scan_wf

        table = execution.output_dir / f"seg-{job.segmentation}_dseg.tsv"
        export = pe.Node(
            SimnibsExport(labels=str(job.labels), table=str(table)), "export", mem_gb=0.5
        )
        paths = {name: str(path) for name, path in job.outputs.items()}
        ds_export_wf = init_ds_scan_wf(
            paths, simnibs_metadata(job), with_result=(), name="ds_export_wf"
        )
        workflow = Workflow(name=job.name)
        workflow.connect([(export, ds_export_wf, [("tissues", "inputnode.tissues")])])
        return workflow

    def tables(self, run: Run) -> dict[str, LabelTable]:
        from brainseg_bids.anatomy.labels import LabelTable

        return {"simnibs": LabelTable.packaged("simnibs")}
