# SPDX-License-Identifier: Apache-2.0
"""What is written again for other programs, in datasets of their own below ``derivatives``.

``OUT/derivatives/freesurfer-labels``: MGZ and colour tables (``--freesurfer-export``).
``OUT/derivatives/smriprep-inputs``: mask, tissues and their probabilities under the names that
sMRIPrep and fMRIPrep look for (with ``--probseg``).
"""

from __future__ import annotations

import filecmp
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from brainseg_bids.bids.description import (
    BIDS_VERSION,
    json_text,
    made_by,
    write_once,
)
from brainseg_bids.bids.names import OutputNames, Scan, folder, sidecar, stem
from brainseg_bids.documents import read_object
from brainseg_bids.options import OptionGroup, option
from brainseg_bids.stages.base import ExecutionOptions, Message, ParticipantStage, Run
from brainseg_bids.stages.jobs import Job, PlanErrors, SubjectPlan, decided, provenance_of, why_run

if TYPE_CHECKING:
    from nipype.pipeline.engine import Node
    from niworkflows.engine.workflows import LiterateWorkflow as Workflow

    from brainseg_bids.bids.inputs import Subject
    from brainseg_bids.options import Settings

log = logging.getLogger("brainseg")

FREESURFER = Path("derivatives", "freesurfer-labels")
SMRIPREP = Path("derivatives", "smriprep-inputs")

README = """\
# Labels by brainseg-bids for FreeSurfer's programs

This is not output of recon-all: do not give it to programs that look for one.

- `SUBJECT/mri/aseg.mgz`: labels that FreeSurfer has, in its codes
- `SUBJECT/mri/head.mgz`: all labels; codes from 500 on mean something else in FreeSurfer's table,
  so use this one: `freeview -v head.mgz:colormap=lut:lut=head_LUT.txt`
- `SUBJECT/mri/*_LUT.txt`: colours of both

All lie on the grid of the image that was segmented, which `aseg.json` names.
"""


@dataclass(frozen=True, kw_only=True)
class ExportOptions(OptionGroup):
    """Results in the forms that other programs want."""

    title: ClassVar[str] = "beside other programs (--stages segment)"
    belongs_to: ClassVar[tuple[str, ...]] = ("segment",)

    output_spaces: tuple[str, ...] = option(
        "--output-spaces",
        default=(),
        metavar="SPACE",
        help="also bring labels to these TemplateFlow templates, e.g. "
        "MNI152NLin2009cAsym:res-1; the template has to be in TEMPLATEFLOW_HOME",
    )
    freesurfer_export: bool = option(
        "--freesurfer-export",
        default=False,
        help="also write labels as FreeSurfer reads them: mri/aseg.mgz and a colour table",
    )


@dataclass(frozen=True)
class FreeSurferJob(Job):
    """One segmentation to write in FreeSurfer's format. ``labels``: the segmentation."""

    labels: Path

    stage: ClassVar[str] = "freesurfer"
    shown: ClassVar[tuple[str, ...]] = ("aseg", "head")

    @property
    def name(self) -> str:
        """Its workflow's name, unique within a subject."""
        return "freesurfer_" + self.main.parents[1].name.replace("+", "plus").replace("-", "_")

    @property
    def title(self) -> str:
        """How messages call it."""
        return f"{self.scan.title} for FreeSurfer"


@dataclass(frozen=True)
class PrecomputedJob(Job):
    """One segmentation for sMRIPrep.

    Parameters
    ----------
    labels, probseg : Path
        What the segmentation left.
    transforms : dict of str to Path
        To standard spaces and back, by the name they have among ``outputs``.
    outdated : tuple of Path
        Transforms of an earlier image, which go.
    """

    labels: Path
    probseg: Path
    transforms: dict[str, Path]
    outdated: tuple[Path, ...] = ()

    stage: ClassVar[str] = "precomputed"
    shown: ClassVar[tuple[str, ...]] = ("mask", "tissue")

    @property
    def name(self) -> str:
        """Its workflow's name, unique within a subject."""
        return "precomputed_" + stem(self.scan).replace("+", "plus").replace("-", "_")

    @property
    def title(self) -> str:
        """How messages call it."""
        return f"{self.scan.title} for sMRIPrep"


def plan_freesurfer(
    subject: Subject, *, bids_dir: Path, output_dir: Path, excluded: Iterable[str] = ()
) -> SubjectPlan:
    """Decide for each segmented image whether FreeSurfer's files are there already.

    Parameters
    ----------
    excluded : iterable of str
        Titles of images that could not be segmented; that has been told.
    """
    plans, errors = [], PlanErrors()
    for scan in _segmented(subject, output_dir, excluded):
        labels = output_dir / OutputNames.of(scan).labels
        home = output_dir / FREESURFER / stem(scan) / "mri"
        outputs = {
            "aseg": home / "aseg.mgz",
            "aseg_colours": home / "aseg_LUT.txt",
            "head": home / "head.mgz",
            "head_colours": home / "head_LUT.txt",
        }
        with errors.of(f"{scan.title} for FreeSurfer", scan.path):
            facts = _facts(scan, labels, outputs["aseg"], bids_dir, output_dir)
            reason = why_run({name: outputs[name] for name in ("aseg", "head")}, facts)
            if not all(path.is_file() for path in outputs.values()):
                reason = reason or "a colour table is missing"
            plans.append(FreeSurferJob(scan, *decided(reason), outputs, facts, labels))
    return SubjectPlan(subject.label, tuple(plans), errors)


def plan_precomputed(
    subject: Subject, *, bids_dir: Path, output_dir: Path, excluded: Iterable[str] = ()
) -> tuple[SubjectPlan, list[Message]]:
    """Decide for each T1w image with probabilities; also lines on those that are left out.

    sMRIPrep takes one file of each kind for a person, or for a session of one. Where there are
    several T1w images it would make one image of them first, on whose grid these are not.
    """
    from brainseg_bids.files import sha256

    plans, errors, notes = [], PlanErrors(), []
    scans = [scan for scan in _segmented(subject, output_dir, excluded) if scan.suffix == "T1w"]
    for scan in scans:
        others = [s for s in subject.scans if s.suffix == "T1w" and s.session == scan.session]
        outputs = precomputed_outputs(scan, output_dir)
        if len(others) > 1:
            notes.append(_note_several(scan, len(others), outputs["mask"]))
            continue
        names = OutputNames.of(scan)
        labels, probseg = output_dir / names.labels, output_dir / names.probseg
        if not probseg.is_file():
            continue
        with errors.of(f"{scan.title} for sMRIPrep", scan.path):
            facts = _facts(scan, labels, outputs["mask"], bids_dir, output_dir)
            facts["ProbabilitiesSHA256"] = sha256(probseg)
            transforms = _transforms(scan, output_dir, facts["InputSHA256"])
            home = outputs["mask"].parent
            copies = {name: home / path.name for name, path in transforms.items()}
            outdated = set(_find_transforms(scan, home)) - set(copies.values())
            reason = why_run(outputs, facts) or _why_copy(transforms, copies)
            if outdated:
                reason = reason or f"{min(outdated).name} is of another image"
            given = (labels, probseg, transforms, tuple(sorted(outdated)))
            plans.append(PrecomputedJob(scan, *decided(reason), outputs | copies, facts, *given))
    return SubjectPlan(subject.label, tuple(plans), errors), notes


def _note_several(scan: Scan, n_images: int, mask: Path) -> Message:
    """A line of the log; a warning if what was written for one image alone is still there."""
    words = (
        f"{scan.title}: not written for sMRIPrep, which would average the {n_images} T1w images "
        "of this person or session"
    )
    if not mask.is_file():
        return Message(logging.INFO, words)
    remedy = f"{mask} and what lies beside it are of one image alone. Remove them"
    return Message(logging.WARNING, f"{words}; {remedy}")


def precomputed_outputs(scan: Scan, output_dir: Path) -> dict[str, Path]:
    """Where sMRIPrep's inputs go; only person and session are in the names it looks for.

    >>> precomputed_outputs(Scan.from_path("sub-01_acq-x_T1w.nii.gz"), Path())["gm"].as_posix()
    'derivatives/smriprep-inputs/sub-01/anat/sub-01_acq-x_label-GM_probseg.nii.gz'
    """
    base = output_dir / SMRIPREP / folder(scan) / stem(scan)
    ends = {
        "mask": "desc-brain_mask",
        "tissue": "dseg",
        "gm": "label-GM_probseg",
        "wm": "label-WM_probseg",
        "csf": "label-CSF_probseg",
    }
    return {name: base.with_name(f"{base.name}_{end}.nii.gz") for name, end in ends.items()}


def _transforms(scan: Scan, output_dir: Path, input_sha256: str) -> dict[str, Path]:
    """Transforms between the image as it is now and standard spaces that are in the derivative."""
    found = [
        path
        for path in _find_transforms(scan, output_dir / folder(scan))
        if read_object(sidecar(path)).get("InputSHA256") == input_sha256
    ]
    return {f"transform{number}": path for number, path in enumerate(found)}


def _find_transforms(scan: Scan, home: Path) -> list[Path]:
    """Transforms from and to the space of an image."""
    own = stem(scan)
    both = (f"{own}_from-T1w_to-*_mode-image_xfm.h5", f"{own}_from-*_to-T1w_mode-image_xfm.h5")
    return sorted(path for pattern in both for path in home.glob(pattern))


def _why_copy(transforms: dict[str, Path], copies: dict[str, Path]) -> str:
    """Why transforms have to be copied, if they have to."""
    for name, path in transforms.items():
        if not copies[name].is_file():
            return f"{copies[name].name} is missing"
        if not filecmp.cmp(path, copies[name], shallow=False):
            return f"{copies[name].name} has changed"
    return ""


def _segmented(subject: Subject, output_dir: Path, excluded: Iterable[str]) -> list[Scan]:
    """Images whose labels are there."""
    excluded = set(excluded)
    return [
        scan
        for scan in subject.scans
        if scan.title not in excluded and (output_dir / OutputNames.of(scan).labels).is_file()
    ]


def _facts(scan: Scan, labels: Path, main: Path, bids_dir: Path, output_dir: Path) -> dict:
    uri = f"bids:brainseg:{labels.relative_to(output_dir).as_posix()}"
    return provenance_of(scan, labels, uri, main, bids_dir)


def export_metadata(plan: FreeSurferJob | PrecomputedJob) -> dict[str, dict]:
    """JSON of each output; colour tables have none."""
    own = plan.provenance["LabelsOf"]
    if isinstance(plan, FreeSurferJob):
        what = {
            "aseg": {"Description": "Labels that FreeSurfer has, in its codes."},
            "head": {"Description": "All labels; codes are explained in head_LUT.txt."},
        }
    else:
        dseg = "Tissues: 1 grey matter, 2 white matter, 3 cerebrospinal fluid."
        what = {
            "mask": {"Description": "Brain with its ventricles.", "Type": "Brain"},
            "tissue": {"Description": dseg, "Manual": False, "SpatialReference": own},
        }
        what |= {
            name: {"Description": f"Probability of {name.upper()} within the brain mask."}
            for name in ("gm", "wm", "csf")
        }
    # The raw dataset is not linked from here: its URI is text.
    return {name: facts | {"Sources": [own]} | plan.provenance for name, facts in what.items()}


def _write_home(home: Path, name: str, *, ignored: str, readme: str) -> None:
    """Files that the root of a dataset has to hold; ``ignored`` has no name in BIDS."""
    content = {
        "Name": name,
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [made_by()],
        "DatasetLinks": {"brainseg": "../.."},
    }
    write_once(home / ".bidsignore", f"{ignored}\n")
    write_once(home / "dataset_description.json", json_text(content))
    write_once(home / "README.md", readme)


def _saved(
    job: FreeSurferJob | PrecomputedJob,
    export: Node,
    given: dict[str, str],
    copied: dict[str, str] | None = None,
    outdated: Iterable[Path] = (),
) -> Workflow:
    """What a node makes of ``given``, and files that are copied as they are, all saved."""
    from nipype import IdentityInterface
    from nipype.pipeline import engine as pe
    from niworkflows.engine.workflows import LiterateWorkflow as Workflow

    from brainseg_bids.stages.saving import init_ds_scan_wf

    workflow, copied = Workflow(name=job.name), copied or {}
    inputnode = pe.Node(IdentityInterface(fields=[*given, *copied]), name="inputnode")
    inputnode.inputs.trait_set(**given, **copied)
    ds_export_wf = init_ds_scan_wf(
        {output: str(path) for output, path in job.outputs.items()},
        export_metadata(job),
        with_result=(),
        outdated=[str(path) for path in outdated],
        name="ds_export_wf",
    )
    workflow.connect([
        (inputnode, export, [(name, name) for name in given]),
        (export, ds_export_wf, [
            (name, f"inputnode.{name}") for name in job.outputs if name not in copied
        ]),
    ])  # fmt: skip
    if copied:
        workflow.connect([
            (inputnode, ds_export_wf, [(name, f"inputnode.{name}") for name in copied]),
        ])  # fmt: skip
    return workflow


class FreeSurferExport(ParticipantStage):
    """Segmentations as MGZ with colour tables (``--freesurfer-export``)."""

    name = "freesurfer"
    options = ExportOptions
    has_name = False
    after = ("segment",)

    def is_chosen(self, settings: Settings) -> bool:
        return "segment" in settings.stages and settings.freesurfer_export

    def plan(self, run: Run) -> list[SubjectPlan]:
        settings = run.settings
        if not settings.reports_only:
            _write_home(
                settings.output_dir / FREESURFER,
                "Labels by brainseg-bids for FreeSurfer's programs",
                ignored="sub-*",
                readme=README,
            )
        where = {"bids_dir": settings.bids_dir, "output_dir": settings.output_dir}
        return [
            plan_freesurfer(subject, **where, excluded=run.failed) for subject in run.segmented()
        ]

    def workflow(self, job: FreeSurferJob, execution: ExecutionOptions) -> Workflow:
        from nipype.pipeline import engine as pe

        from brainseg_bids.interfaces.freesurfer_export import FreeSurferExport

        table = str(execution.tables["brainseg"])
        export = pe.Node(FreeSurferExport(table=table), "export", mem_gb=0.5)
        return _saved(job, export, {"labels": str(job.labels)})


class PrecomputedExport(ParticipantStage):
    """Segmentations under the names that sMRIPrep looks for (with ``--probseg``)."""

    name = "precomputed"
    options = ExportOptions
    has_name = False
    after = ("segment", "spaces")

    def is_chosen(self, settings: Settings) -> bool:
        return "segment" in settings.stages and settings.probseg

    def plan(self, run: Run) -> list[SubjectPlan]:
        settings = run.settings
        if not settings.reports_only:
            _write_home(
                settings.output_dir / SMRIPREP,
                "Brain masks and tissues by brainseg-bids for sMRIPrep and fMRIPrep",
                ignored="*_xfm.*",
                readme="Give this folder to fMRIPrep or sMRIPrep as a derivative (`-d`).\n",
            )
        where = {"bids_dir": settings.bids_dir, "output_dir": settings.output_dir}
        plans = []
        for subject in run.segmented():
            plan, notes = plan_precomputed(subject, **where, excluded=run.failed)
            for note in notes:
                log.log(note.level, "%s", note.text)
            plans.append(plan)
        return plans

    def workflow(self, job: PrecomputedJob, execution: ExecutionOptions) -> Workflow:
        from nipype.pipeline import engine as pe

        from brainseg_bids.interfaces.precomputed import Precomputed

        table = str(execution.tables["brainseg"])
        export = pe.Node(Precomputed(table=table), "export", mem_gb=1.5)
        given = {"labels": str(job.labels), "probseg": str(job.probseg)}
        copied = {name: str(path) for name, path in job.transforms.items()}
        return _saved(job, export, given, copied, job.outdated)
