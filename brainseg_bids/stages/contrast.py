# SPDX-License-Identifier: Apache-2.0
"""Stage ``contrast``: measure how the labels of an image look."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from brainseg_bids.bids.description import raw_path, raw_uri
from brainseg_bids.bids.names import (
    ContrastNames,
    HeadNames,
    OutputNames,
    Scan,
    sidecar,
)
from brainseg_bids.bids.reused_transforms import PIPELINES
from brainseg_bids.documents import InputError, read_object
from brainseg_bids.options import OptionGroup, option
from brainseg_bids.stages.base import ExecutionOptions, Folders, Message, ParticipantStage, Run
from brainseg_bids.stages.jobs import (
    REUSE,
    Job,
    PlanErrors,
    SubjectPlan,
    decided,
    fingerprint,
    is_unchanged,
    provenance_of,
    why_run,
)

if TYPE_CHECKING:
    from niworkflows.engine.workflows import LiterateWorkflow as Workflow

    from brainseg_bids.anatomy.grid import Grid
    from brainseg_bids.anatomy.labels import LabelTable
    from brainseg_bids.bids.inputs import Subject
    from brainseg_bids.bids.sidecars import Metadata
    from brainseg_bids.options import Settings
    from brainseg_bids.reports.page import Section

log = logging.getLogger("brainseg")

OWN = {"fullhead": "fullhead", "brainseg": "model"}
"""Labels that this app makes, in the order they are preferred in, and whose codes they have."""

BYTES_PER_VOXEL = 60
"""Memory that measuring takes, and what reading and drawing need beside it."""

PRIVATE = re.compile(
    "Patient|UID|Physician|Operator|Accession|Birth|Date|Institution|Station|StudyID|Serial"
    "|AcquisitionTime|ContentTime"
)
"""Keys of metadata that say who or where somebody was: they are not copied."""

COLUMNS = {
    "index": {"Description": "Code in seg-fullhead_dseg.tsv."},
    "name": {"Description": "Structure."},
    "n_voxels": {"Description": "Number of voxels with this label."},
    "n_interior": {"Description": "Number of voxels that the estimate rests on."},
    "location": {"Description": "Robust mean, smooth field removed, in units of the image."},
    "scale": {"Description": "Robust standard deviation, likewise."},
    "median": {"Description": "Median of all voxels of the label, as they are."},
    "mad": {"Description": "1.4826 times the median absolute deviation, likewise."},
    "components": {"Description": "Number of Gaussians that describe the label."},
    "grain_mm": {"Description": "Distance at which the correlation has halved.", "Units": "mm"},
    "fit": {"Description": "Largest difference of cumulative histograms, data against Gaussians."},
    "source": {"Description": "Measured, or the label that it was imputed from."},
}
"""Columns of the table of statistics, as BIDS wants them described."""


METHODS = """\
The contrast of each image was measured label by label: robust location and scale away from the
labels' borders and free of a smooth field that was estimated jointly with them, mixtures of
Gaussians where one did not do, spatial correlation within labels, the law and strength of the
noise from the background, and the effective resolution.
"""


@dataclass(frozen=True, kw_only=True)
class ContrastOptions(OptionGroup):
    """Contrast statistics and priors."""

    title: ClassVar[str] = "contrast (--stages contrast; group: priors)"

    labels: str = option(
        "--labels",
        default="",
        stages=("contrast",),
        metavar="NAME",
        help="measure with these labels: fullhead (of stage headlabels), brainseg (of segment) or "
        "a NAME given with -d; default: the first there is of -d, fullhead, brainseg",
    )
    contrast_by: tuple[str, ...] = option(
        "--contrast-by",
        default=("Suffix", "MagneticFieldStrength", "Sequence", "VoxelSizeMm"),
        stages=("priors",),
        metavar="KEY",
        help="images are of one contrast if these agree: Suffix, VoxelSizeMm, Sequence, a key of "
        "the images' JSON, or an entity such as acq; default: Suffix MagneticFieldStrength "
        "Sequence VoxelSizeMm",
    )


@dataclass(frozen=True)
class ContrastJob(Job):
    """One image to measure. ``outputs``: fields of `ContrastNames`.

    Parameters
    ----------
    labels : Path
        Label map to measure with.
    tool : str
        Whose codes it has.
    contrast : dict
        What BIDS metadata say the image's contrast is.
    mem_gb : float
    notes : tuple of str
        Metadata that could not be read or used.
    """

    labels: Path
    tool: str
    contrast: dict
    mem_gb: float
    notes: tuple[str, ...] = ()

    stage: ClassVar[str] = "contrast"
    verb: ClassVar[str] = "to be measured"
    shown: ClassVar[tuple[str, ...]] = ("statistics", "figure")

    @property
    def title(self) -> str:
        """How messages call it."""
        return f"{self.scan.title} contrast"

    @property
    def stated_stripped(self) -> bool | None:
        """``SkullStripped`` of the image's metadata; None where they do not say."""
        said = self.contrast.get("Metadata", {}).get("SkullStripped")
        return said if isinstance(said, bool) else None


@dataclass(frozen=True)
class LabelChoice:
    """Which labels to measure with.

    Parameters
    ----------
    wanted : str
        ``fullhead`` or ``brainseg`` (this app's own), the name of a folder in ``derivatives``,
        or nothing: the first of ``derivatives``, else this app's.
    derivatives : mapping of str to Path
        The user's label maps, by the tool whose codes they have.
    """

    wanted: str
    derivatives: Mapping[str, Path]

    @property
    def names(self) -> tuple[str, ...]:
        """Where to look, best first."""
        return (self.wanted,) if self.wanted else (*self.derivatives, *OWN)

    def check(self) -> None:
        """Raise `InputError` if there can be no such labels."""
        known = (*self.derivatives, *OWN)
        if self.wanted and self.wanted not in known:
            raise InputError(
                f"--labels {self.wanted}: nothing is known by this name. Give one of "
                f"{', '.join(OWN)}, or a folder with -d {self.wanted}=FOLDER."
            )


def plan_contrast(
    subject: Subject,
    *,
    bids_dir: Path,
    output_dir: Path,
    choice: LabelChoice,
    excluded: frozenset[str] = frozenset(),
) -> SubjectPlan:
    """Decide for each image what it is measured with, and whether that is done already.

    Images whose labels could not be made (``excluded``: their titles) are passed over.
    """
    plans, errors = [], PlanErrors(subject.errors)
    for scan in subject.scans:
        title = f"{scan.title} contrast"
        with errors.of(title, scan.path):
            found = find_labels(scan, bids_dir, output_dir, choice)
            if found is not None:
                plans.append(_plan_scan(scan, bids_dir, output_dir, *found))
            elif scan.title not in excluded:
                folders = (choice.derivatives.get(n, output_dir) for n in choice.names)
                looked = " or ".join(dict.fromkeys(map(str, folders)))
                errors[title] = (
                    f"{scan.path}: there is no label map of it in {looked}. Run --stages "
                    "segment contrast, or give label maps with -d fullhead=FOLDER."
                )
    return SubjectPlan(subject.label, tuple(plans), errors)


def find_labels(
    scan: Scan, bids_dir: Path, output_dir: Path, choice: LabelChoice
) -> tuple[str, str, Path, str] | None:
    """Name of the labels, whose codes they have, the map, and its BIDS URI; None: there is none.

    A map of this app's that was made from another state of the image is not taken.
    """
    # Late: Nipype.
    from brainseg_bids.interfaces.existing import check_origin, find_existing  # late: nibabel
    from brainseg_bids.interfaces.tools import find_tool

    for name in choice.names:
        if name in choice.derivatives:
            tool, root = find_tool(name), choice.derivatives[name]
            path = find_existing(tool, root, scan)
            if path is not None:
                said = fingerprint(scan.path, known={})
                check_origin(path, tool, scan, said["InputSHA256"])
                return name, name, path, f"bids:{name}:{path.relative_to(root).as_posix()}"
            continue
        names = HeadNames if name == "fullhead" else OutputNames
        path = output_dir / names.of(scan).labels
        said = read_object(sidecar(path))
        if path.is_file() and said.get("Input") == raw_uri(scan.path, bids_dir):
            now = fingerprint(scan.path, known=said)
            if said.get("InputSHA256") == now["InputSHA256"]:
                uri = f"bids::{path.relative_to(output_dir).as_posix()}"
                return name, OWN[name], path, uri
    return None


def _plan_scan(
    scan: Scan, bids_dir: Path, output_dir: Path, name: str, tool: str, labels: Path, uri: str
) -> ContrastJob:
    from brainseg_bids.bids.sidecars import read_metadata
    from brainseg_bids.images import read_grid

    names = ContrastNames.of(scan, name)
    outputs = {"statistics": output_dir / names.statistics, "figure": output_dir / names.figure}
    known = read_object(sidecar(outputs["statistics"]))
    provenance = provenance_of(scan, labels, uri, outputs["statistics"], bids_dir)
    metadata = read_metadata(scan.path, bids_dir)
    contrast = contrast_of(scan, metadata)
    reason = why_run(outputs, provenance) or _why_damaged(known)
    if not reason and known.get("Contrast") != contrast:
        reason = "its metadata have changed"
    return ContrastJob(
        scan,
        *decided(reason),
        outputs,
        provenance,
        labels,
        tool,
        contrast,
        _needed_gib(read_grid(scan.path)),
        metadata.warnings,
    )


def _needed_gib(grid: Grid) -> float:
    """Memory of measuring an image on a grid."""
    return 0.5 + BYTES_PER_VOXEL * math.prod(grid.shape) / 2**30


def _why_damaged(said: dict) -> str:
    """Why statistics cannot be read, or nothing."""
    from brainseg_bids.contrast.measured import ContrastStatistics  # late: numpy

    try:
        ContrastStatistics.from_json(json.dumps(said.get("Statistics")))
    except ValueError:
        return "its statistics are damaged"
    return ""


def contrast_of(scan: Scan, metadata: Metadata) -> dict:
    """What says which contrast an image is of: suffix, name, voxel size, metadata.

    Voxel size is that of the voxel's volume, rounded to 0.1 mm.
    """
    from brainseg_bids.images import read_grid  # late: nibabel

    said = metadata.values
    sequence = next(
        (said[key] for key in ("PulseSequenceType", "ScanningSequence") if said.get(key)), None
    )
    size_mm = read_grid(scan.path).voxel_volume_mm3 ** (1 / 3)
    facts = {
        "Suffix": scan.suffix,
        "MagneticFieldStrength": said.get("MagneticFieldStrength"),
        "Sequence": "+".join(sequence) if isinstance(sequence, list) else sequence,
        "VoxelSizeMm": round(size_mm, 1),
    }
    return {key: value for key, value in facts.items() if value is not None} | {
        "Entities": {k: v for k, v in scan.entities.items() if k not in ("sub", "ses", "run")},
        "Metadata": {
            k: v
            for k, v in said.items()
            if isinstance(v, str | int | float) and k not in facts and not PRIVATE.search(k)
        },
    }


def contrast_metadata(plan: ContrastJob) -> dict[str, dict]:
    """JSON beside the statistics, less what only the run can tell."""
    said = {
        "Description": "How each label looks in the image. Below, under Statistics, also noise, "
        "smooth field, resolution and histograms.",
        "Sources": [plan.provenance["Input"], plan.provenance["LabelsOf"]],
        "Contrast": plan.contrast,
        "LabelsTool": plan.tool,
        "MetadataWarnings": list(plan.notes) or None,
    }
    return {"statistics": said | COLUMNS | plan.provenance}


class Contrast(ParticipantStage):
    """How each label looks in an image: statistics, noise, bias field, resolution."""

    name = "contrast"
    options = ContrastOptions
    after = ("segment", "headlabels")
    results = "*_desc-contrast_morph.json"
    result_files: ClassVar[Mapping[str, str]] = {"measure": "facts.json"}

    def plan(self, run: Run) -> list[SubjectPlan]:
        from brainseg_bids.interfaces.tools import tool_names

        settings = run.settings
        given = {
            name: Path(path)
            for name, path in settings.derivatives.items()
            if name not in PIPELINES
        }
        strange = sorted(set(given) - set(tool_names()))
        if strange:
            raise InputError(
                f"-d {strange[0]}=...: no tool is called {strange[0]!r}, so its codes are not "
                "known. Give label maps in codes of this app as -d fullhead=FOLDER."
            )
        choice = LabelChoice(settings.labels, given)
        choice.check()
        # An image that could not be segmented, or whose head could not be labelled, is reported.
        excluded = frozenset(title.removesuffix(" head labels") for title in run.failed)
        where = {"bids_dir": settings.bids_dir, "output_dir": settings.output_dir}
        plans = [
            plan_contrast(subject, **where, choice=choice, excluded=excluded)
            for subject in run.segmented()
        ]
        # Files higher up belong to many images.
        for note in dict.fromkeys(n for plan in plans for scan in plan.scans for n in scan.notes):
            log.warning("%s", note)
        found = any(plan.scans or plan.errors for plan in plans)
        if not (found or excluded or settings.boilerplate_only):
            raise InputError(
                f"{settings.bids_dir}: no image was found to measure. Check --contrasts, "
                "--session-label and --bids-filter-file."
            )
        return plans

    def workflow(self, job: ContrastJob, execution: ExecutionOptions) -> Workflow:
        from nipype import IdentityInterface
        from nipype.pipeline import engine as pe
        from niworkflows.engine.workflows import LiterateWorkflow as Workflow

        from brainseg_bids.interfaces.contrast import DrawContrast, MeasureContrast
        from brainseg_bids.stages.saving import init_ds_scan_wf

        workflow = Workflow(name=job.name)
        workflow.__desc__ = METHODS
        inputnode = pe.Node(IdentityInterface(fields=["image", "labels"]), name="inputnode")
        inputnode.inputs.image = str(job.scan.path)
        inputnode.inputs.labels = str(job.labels)
        kind = "ratio" if job.scan.suffix == "UNIT1" else "auto"
        measure = pe.Node(
            MeasureContrast(tool=job.tool, kind=kind, stated_stripped=job.stated_stripped),
            name="measure",
            mem_gb=job.mem_gb,
        )
        figure = pe.Node(DrawContrast(tool=job.tool), name="figure", mem_gb=job.mem_gb)
        ds_contrast_wf = init_ds_scan_wf(
            {output: str(path) for output, path in job.outputs.items()},
            contrast_metadata(job),
            name="ds_contrast_wf",
        )
        both = [("image", "image"), ("labels", "labels")]
        workflow.connect([
            (inputnode, measure, both),
            (inputnode, figure, both),
            (measure, figure, [("facts", "facts")]),
            (measure, ds_contrast_wf, [
                ("statistics", "inputnode.statistics"), ("facts", "inputnode.result"),
            ]),
            (figure, ds_contrast_wf, [("out_file", "inputnode.figure")]),
        ])  # fmt: skip
        return workflow

    def tables(self, run: Run) -> dict[str, LabelTable]:
        from brainseg_bids.anatomy.labels import LabelTable

        return {"fullhead": LabelTable.packaged("fullhead")}  # statistics are in its names

    def messages(self, title: str, result: Mapping) -> list[Message]:
        return [Message(logging.INFO, f"{title}: measured in {result['Seconds']:.0f} s")]

    def memory_gib(self, settings: Settings, images: Sequence, at_once: int) -> list[float]:
        return [_needed_gib(grid) for _, grid in images]

    def read(self, path: Path, metadata: Mapping, folders: Folders) -> ContrastJob | None:
        image = raw_path(metadata.get("Input", ""), folders.bids_dir)
        if image is None or not is_unchanged(image, metadata):
            return None
        scan, statistics = Scan.from_path(image), path.with_suffix(".tsv")
        figures = folders.output_dir / f"sub-{scan.subject}" / "figures"
        outputs = {"statistics": statistics, "figure": figures / f"{statistics.stem}.png"}
        if not all(path.is_file() for path in outputs.values()) or _why_damaged(metadata):
            return None
        known = {"Input": metadata["Input"]}
        tool, contrast = str(metadata.get("LabelsTool")), dict(metadata.get("Contrast", {}))
        return ContrastJob(scan, REUSE, "found", outputs, known, path, tool, contrast, 0.0)

    def section(self, job: ContrastJob, folders: Folders) -> Section:
        from brainseg_bids.stages.contrast_section import section

        return section(job, bids_dir=folders.bids_dir, output_dir=folders.output_dir)

    def methods(self, jobs: Iterable[ContrastJob]) -> list[str]:
        return [METHODS for _ in jobs]
