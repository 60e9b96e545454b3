# SPDX-License-Identifier: Apache-2.0
"""Stage ``spaces``: bring images and labels to standard spaces (``--output-spaces``)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from brainseg_bids import __version__
from brainseg_bids.bids.description import raw_path, raw_uri
from brainseg_bids.bids.names import OutputNames, Scan, folder, sidecar
from brainseg_bids.bids.templates import (
    SpaceNames,
    Template,
    fetch_command,
    transform_name,
)
from brainseg_bids.documents import InputError, read_object
from brainseg_bids.exit_codes import NO_PROGRAM
from brainseg_bids.stages.base import (
    ExecutionOptions,
    Folders,
    Message,
    ParticipantStage,
    Refused,
    Run,
)
from brainseg_bids.stages.exports import ExportOptions
from brainseg_bids.stages.jobs import (
    REUSE,
    RUN,
    Job,
    SubjectPlan,
    fingerprint,
    is_unchanged,
    present,
    unreadable,
    why_run,
)

if TYPE_CHECKING:
    from nipype.pipeline.engine import Node
    from niworkflows.engine.workflows import LiterateWorkflow as Workflow

    from brainseg_bids.bids.inputs import Subject
    from brainseg_bids.reports.page import Section
    from brainseg_bids.settings import Settings

log = logging.getLogger("brainseg")

KIND = "antsRegistrationSyNQuick[s]"
"""What ANTs calls the registration: rigid, affine, then symmetric normalisation."""
REGISTER_GIB = 3.0
"""Set aside for a registration: 0.9 were measured for an image of 256^3 and a template at 2 mm."""
DRIVING = ("T1w", "UNIT1")
"""Images that are registered: templates are T1-weighted."""
SPACE_CHANGES = {
    "TemplateSHA256": "the template has changed",
    "TemplateMaskSHA256": "the template's mask has changed",
    "Registration": "another registration made it",
    "Probabilities": "it was made from labels, or from probabilities, unlike now",
}
"""As `brainseg_bids.stages.jobs.CHANGES`, for results in standard spaces."""


@dataclass(frozen=True)
class SpaceJob(Job):
    """One image and its labels to bring to one standard space, at one or more resolutions.

    Parameters
    ----------
    templates : tuple of Template
        Of one space, finest first; the first one is what the image is registered to.
    labels, mask : Path
        Results of the segmentation.
    probseg : Path or None
        Probabilities, if they belong to the labels.
    """

    templates: tuple[Template, ...]
    labels: Path
    mask: Path
    probseg: Path | None = None

    stage: ClassVar[str] = "spaces"
    shown: ClassVar[tuple[str, ...]] = ("labels", "image")
    changes: ClassVar[Mapping[str, str]] = SPACE_CHANGES

    @property
    def name(self) -> str:
        """Its workflow's name, unique within a subject."""
        words = "_".join([super().name.removesuffix("_wf"), self.space, "wf"])
        return words.replace("+", "plus")

    @property
    def title(self) -> str:
        """How messages call it."""
        return f"{self.scan.title} in {self.space}"

    @property
    def space(self) -> str:
        """Label of ``space-``."""
        return self.templates[0].space


def key(name: str, number: int) -> str:
    """What an output is called in a plan with several resolutions.

    >>> key("labels", 0), key("labels", 1)
    ('labels', 'labels1')
    """
    return name if number == 0 else f"{name}{number}"


def plan_spaces(
    subject: Subject,
    *,
    bids_dir: Path,
    output_dir: Path,
    templates: Sequence[Template],
    excluded: Iterable[str] = (),
) -> SubjectPlan:
    """Decide for each T1-weighted image and space whether results are there already.

    Parameters
    ----------
    excluded : iterable of str
        Titles of images that could not be segmented; that has been told.
    """
    plans, faults = [], {}
    driving = [s for s in subject.scans if s.suffix in DRIVING and s.title not in set(excluded)]
    for scan in driving:
        for space, some in groupby(sorted(templates, key=_fineness), key=lambda t: t.space):
            title = f"{scan.title} in {space}"
            try:
                plans.append(_plan(scan, bids_dir, output_dir, tuple(some)))
            except InputError as error:
                faults[title] = str(error)
            except OSError as error:
                faults[title] = unreadable(scan.path, error)
    return SubjectPlan(subject.label, tuple(plans), faults)


def _fineness(template: Template) -> tuple:
    """Spaces together, finest resolution first."""
    from brainseg_bids.images import read_grid  # late: nibabel

    return template.space, read_grid(template.image).voxel_volume_mm3, template.resolution


def space_outputs(scan: Scan, templates: Sequence[Template], output_dir: Path) -> dict[str, Path]:
    """Where results go: per template those of `SpaceNames`, and transforms both ways."""
    outputs = {
        key(name, number): output_dir / path
        for number, template in enumerate(templates)
        for name, path in vars(SpaceNames.of(scan, template)).items()
    }
    home = output_dir / folder(scan)
    return outputs | {
        "forward": home / transform_name(scan, templates[0]),
        "backward": home / transform_name(scan, templates[0], back=True),
    }


def _plan(
    scan: Scan, bids_dir: Path, output_dir: Path, templates: tuple[Template, ...]
) -> SpaceJob:
    from brainseg_bids.files import sha256

    names = OutputNames.of(scan)
    labels, mask, probseg = (
        output_dir / path for path in (names.labels, names.mask, names.probseg)
    )
    missing = next((path for path in (labels, mask) if not path.is_file()), None)
    if missing:
        raise InputError(f"{missing}: is missing, so nothing can be brought to a standard space.")
    soft = probseg.is_file() and _belongs(probseg, labels)
    outputs = space_outputs(scan, templates, output_dir)
    provenance = {
        "BrainsegVersion": __version__,
        "Input": raw_uri(scan.path, bids_dir),
        **fingerprint(scan.path, known=read_object(sidecar(outputs["labels"]))),
        "LabelsOf": f"bids::{names.labels.as_posix()}",
        "LabelsSHA256": sha256(labels),
        "Probabilities": soft,
        **({"ProbabilitiesSHA256": sha256(probseg)} if soft else {}),
        "TemplateSHA256": sha256(templates[0].image),
        **({"TemplateMaskSHA256": sha256(templates[0].mask)} if templates[0].mask else {}),
        "Registration": KIND,
    }
    told = {name: path for name, path in outputs.items() if not name.startswith("figure")}
    reason = why_run(told, provenance, SPACE_CHANGES)
    reason = reason or _why_other_grid(outputs, templates)
    figures = [path for name, path in outputs.items() if name.startswith("figure")]
    if not reason and not all(path.is_file() for path in figures):
        reason = "its picture is missing"
    return SpaceJob(
        scan,
        RUN if reason else REUSE,
        reason or "results are there already",
        outputs,
        provenance,
        templates,
        labels,
        mask,
        probseg if soft else None,
    )


def _why_other_grid(outputs: dict[str, Path], templates: Sequence[Template]) -> str:
    """Why results do not lie on the grids of these very templates, or nothing."""
    from brainseg_bids.files import sha256

    for number, template in enumerate(templates):
        path = outputs[key("labels", number)]
        if read_object(sidecar(path)).get("GridSHA256") != sha256(template.image):
            return f"the template has changed ({path.name})"
    return ""


def _belongs(probseg: Path, labels: Path) -> bool:
    """Whether probabilities were made with these labels: by what is said beside both."""
    ours, theirs = read_object(sidecar(probseg)), read_object(sidecar(labels))
    keys = ("InputSHA256", "ModelDigest", "BrainsegVersion", "Ensemble", "TestTimeFlips")
    return bool(ours) and all(ours.get(name) == theirs.get(name) for name in keys)


def space_metadata(plan: SpaceJob) -> dict[str, dict]:
    """JSON of each output, less what only the run can tell."""
    from brainseg_bids.files import sha256

    raw, own = plan.provenance["Input"], plan.provenance["LabelsOf"]
    how = (
        "Probabilities of the labels were interpolated linearly and each voxel got the most "
        "probable label."
        if plan.probseg
        else "Each label's 0/1 map was interpolated linearly and each voxel got the label with "
        "the largest share."
    )
    what = {}
    for number, template in enumerate(plan.templates):
        here = f"bids::{SpaceNames.of(plan.scan, template).labels.as_posix()}"
        grid = f"The grid of template {template.name} at its resolution {template.resolution}."
        common = {"Resolution": grid} if template.resolution else {}
        common["GridSHA256"] = sha256(template.image)
        what |= {
            key("labels", number): {
                "Description": f"Head and brain labels in a standard space. {how} Codes are "
                "explained in seg-brainseg_dseg.tsv.",
                "Manual": False,
                "Sources": [own, raw],
                **common,
            },
            key("tissue", number): {
                "Description": "Labels merged to BIDS' standard tissues.",
                "Manual": False,
                "Sources": [here],
                **common,
            },
            key("mask", number): {
                "Description": "Brain with its ventricles, without the fluid around.",
                "Type": "Brain",
                "Sources": [here],
                **common,
            },
            key("image", number): {
                "Description": "The image in a standard space, to check the registration by.",
                "SkullStripped": False,
                "Sources": [raw],
                **common,
            },
        }
    to = f"from {plan.scan.suffix} to {plan.space}"
    back = f"from {plan.space} to {plan.scan.suffix}"
    for name, ends in (("forward", to), ("backward", back)):
        what[name] = {
            "Description": f"Composite ITK transform that brings images {ends}.",
            "Sources": [raw],
        }
    return {name: said | plan.provenance for name, said in what.items()}


def methods_text(template: str, *, probabilities: bool) -> str:
    """How results were brought to a template."""
    through = (
        "their probabilities" if probabilities else "each label's linearly interpolated share"
    )
    return f"""\
T1-weighted images were registered to template {template} with *ANTs*
(`{KIND}`) [@avants2011], by their brains where the template has a brain mask. Labels were
brought there once, through {through}; tissues and brain masks were derived from the result.
"""


def _init_register_node(job: SpaceJob, execution: ExecutionOptions) -> Node:
    """The registration, to the finest of the job's templates."""
    from nipype.pipeline import engine as pe

    from brainseg_bids.interfaces.register import REGISTER, Register

    target = job.templates[0]
    register = pe.Node(
        Register(
            program=execution.register or REGISTER,
            fixed=str(target.image),
            grids=[str(template.image) for template in job.templates],
            kind=KIND,
            threads=execution.threads,
        ),
        name="register",
        n_procs=execution.threads,
        mem_gb=REGISTER_GIB,
    )
    if target.mask:
        register.inputs.fixed_mask = str(target.mask)
    return register


def init_pull_wf(job: SpaceJob, execution: ExecutionOptions, number: int) -> Workflow:
    """Labels and image on one template's grid, and what is derived from them there.

    Inputs
    ------
    image, labels
        As they lie in dataset and derivative.
    places
        Of all grids.

    Outputs
    -------
    labels, tissue, mask, image, figure
    """
    from nipype import IdentityInterface
    from nipype.pipeline import engine as pe
    from niworkflows.engine.workflows import LiterateWorkflow as Workflow

    from brainseg_bids.interfaces.labels import BrainMask, Tissue
    from brainseg_bids.interfaces.register import Resample
    from brainseg_bids.interfaces.reportlets import DrawLabels

    workflow = Workflow(name=f"pull{number}_wf")
    table, template = str(execution.tables["brainseg"]), str(job.templates[number].image)
    inputnode = pe.Node(IdentityInterface(fields=["image", "labels", "places"]), name="inputnode")
    outputnode = pe.Node(
        IdentityInterface(fields=["labels", "tissue", "mask", "image", "figure"]),
        name="outputnode",
    )
    pull = pe.Node(Resample(table=table, grid=template, which=number), name="pull", mem_gb=1.0)
    if job.probseg:
        pull.inputs.probseg = str(job.probseg)
    figure = pe.Node(DrawLabels(table=table, image=template), name="figure", mem_gb=1.0)
    workflow.connect([
        (inputnode, pull, [("image", "image"), ("labels", "labels"), ("places", "places")]),
        (pull, outputnode, [("labels", "labels"), ("image", "image")]),
    ])  # fmt: skip
    derived = (
        pe.Node(Tissue(table=table), name="tissue", mem_gb=0.5),
        pe.Node(BrainMask(table=table), name="mask", mem_gb=0.5),
        figure,
    )
    for derive in derived:
        workflow.connect([
            (pull, derive, [("labels", "labels")]),
            (derive, outputnode, [("out_file", derive.name)]),
        ])  # fmt: skip
    return workflow


class StandardSpaces(ParticipantStage):
    """Labels in the spaces of templates (``--output-spaces``)."""

    name = "spaces"
    options = ExportOptions
    has_name = False
    after = ("segment",)
    results = "*_seg-brainseg_dseg.json"
    result_files: ClassVar[Mapping[str, str]] = {"register": "report.json"}

    def is_chosen(self, settings: Settings) -> bool:
        return "segment" in settings.stages and bool(settings.output_spaces)

    def check(self, run: Run) -> None:
        from brainseg_bids.interfaces.register import REGISTER, missing_reason  # late: nipype

        settings = run.settings
        templates = run.templates
        will_run = not (settings.reports_only or settings.boilerplate_only)
        reason = missing_reason(tuple(settings.tools.get("ants", REGISTER)))
        if reason and will_run:
            raise Refused(reason, NO_PROGRAM)
        for template in templates:
            if template.mask is None:
                log.warning(
                    "template %s has no brain mask beside it (%s): whole images are registered, "
                    "which is less exact",
                    template.name,
                    fetch_command(template.name, cohort=template.cohort, suffix="mask"),
                )

    def plan(self, run: Run) -> list[SubjectPlan]:
        settings = run.settings
        where = {"bids_dir": settings.bids_dir, "output_dir": settings.output_dir}
        plans = []
        for subject in run.segmented():
            for scan in subject.scans:
                if scan.suffix not in DRIVING:
                    log.info(
                        "%s: not brought to a standard space; only %s are registered",
                        scan.title,
                        " and ".join(DRIVING),
                    )
            plans.append(
                plan_spaces(subject, **where, templates=run.templates, excluded=run.failed)
            )
        return plans

    def workflow(self, job: SpaceJob, execution: ExecutionOptions) -> Workflow:
        """Register once, resample once per resolution, save."""
        from nipype import IdentityInterface
        from nipype.pipeline import engine as pe
        from niworkflows.engine.workflows import LiterateWorkflow as Workflow

        from brainseg_bids.stages.saving import init_ds_scan_wf

        workflow = Workflow(name=job.name)
        name, soft = job.templates[0].name, job.probseg is not None
        workflow.__desc__ = methods_text(name, probabilities=soft)
        fields = ["image", "labels", "mask"]
        inputnode = pe.Node(IdentityInterface(fields=fields), name="inputnode")
        inputnode.inputs.image = str(job.scan.path)
        inputnode.inputs.labels = str(job.labels)
        inputnode.inputs.mask = str(job.mask)
        register = _init_register_node(job, execution)
        ds_space_wf = init_ds_scan_wf(
            {output: str(path) for output, path in job.outputs.items()},
            space_metadata(job),
            with_result=("forward", "backward"),
            name="ds_space_wf",
        )
        workflow.connect([
            (inputnode, register, [("image", "moving")]),
            (register, ds_space_wf, [
                ("forward", "inputnode.forward"),
                ("backward", "inputnode.backward"),
                ("report", "inputnode.result"),
            ]),
        ])  # fmt: skip
        if job.templates[0].mask:
            workflow.connect(inputnode, "mask", register, "moving_mask")
        for number in range(len(job.templates)):
            pull_wf = init_pull_wf(job, execution, number)
            workflow.connect([
                (inputnode, pull_wf, [
                    ("image", "inputnode.image"),
                    ("labels", "inputnode.labels"),
                ]),
                (register, pull_wf, [("places", "inputnode.places")]),
                (pull_wf, ds_space_wf, [
                    (f"outputnode.{name}", f"inputnode.{key(name, number)}")
                    for name in ("labels", "tissue", "mask", "image", "figure")
                ]),
            ])  # fmt: skip
        return workflow

    def messages(self, title: str, result: Mapping) -> list[Message]:
        return [Message(logging.INFO, f"{title}: registered in {result['Seconds']:.0f} s")]

    def memory_gib(self, settings: Settings, images: Sequence, at_once: int) -> list[float]:
        return [REGISTER_GIB]

    def read(self, path: Path, metadata: Mapping, folders: Folders) -> SpaceJob | None:
        from brainseg_bids.files import sha256

        image = raw_path(metadata.get("Input", ""), folders.bids_dir)
        if image is None or "Registration" not in metadata or not is_unchanged(image, metadata):
            return None
        scan, entities = Scan.from_path(image), Scan.from_path(path).entities
        # Of the template only its names are needed for a page.
        template = Template(entities.get("space", ""), "", entities.get("res", ""), Path())
        outputs = present(SpaceNames.of(scan, template), folders.output_dir)
        whole = outputs.keys() == vars(SpaceNames.of(scan, template)).keys()
        if not whole or sidecar(outputs["labels"]) != path:
            return None
        names = OutputNames.of(scan)
        labels, mask = folders.output_dir / names.labels, folders.output_dir / names.mask
        if not labels.is_file() or sha256(labels) != metadata.get("LabelsSHA256"):
            return None
        kept = ("Input", "LabelsSHA256", *SPACE_CHANGES)
        known = {key: metadata[key] for key in kept if key in metadata}
        return SpaceJob(scan, REUSE, "found", outputs, known, (template,), labels, mask)

    def section(self, job: SpaceJob, folders: Folders) -> Section:
        from brainseg_bids.stages.spaces_section import section

        return section(job, bids_dir=folders.bids_dir, output_dir=folders.output_dir)

    def methods(self, jobs: Iterable[SpaceJob]) -> list[str]:
        texts = []
        for job in jobs:
            soft = bool(read_object(sidecar(job.main)).get("Probabilities"))
            texts.append(methods_text(job.templates[0].name, probabilities=soft))
        return texts
