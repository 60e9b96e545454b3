# SPDX-License-Identifier: Apache-2.0
"""Stage ``spaces``: bring images and labels to standard spaces (``--output-spaces``)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from brainseg_bids.bids.description import raw_path
from brainseg_bids.bids.names import OutputNames, Scan, folder, sidecar
from brainseg_bids.bids.reused_transforms import PIPELINES, find_reused
from brainseg_bids.bids.templates import SpaceNames, Template, fetch_command, transform_name
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
from brainseg_bids.stages.jobs import REUSE, PlanErrors, SubjectPlan, is_unchanged, present
from brainseg_bids.stages.space_jobs import (
    DRIVING,
    KIND,
    SPACE_CHANGES,
    SpaceJob,
    key,
    methods_text,
    plan_spaces,
    space_metadata,
)

if TYPE_CHECKING:
    from nipype.pipeline.engine import Node
    from niworkflows.engine.workflows import LiterateWorkflow as Workflow

    from brainseg_bids.options import Settings
    from brainseg_bids.reports.page import Section

log = logging.getLogger("brainseg")

REGISTER_GIB = 3.0
"""Set aside for a registration: 0.9 were measured for a template at 2 mm, 1.9 for one at 1 mm."""
RESAMPLED = ("labels", "tissue", "mask", "image", "figure")
"""What is made for each resolution."""
RESAMPLE_GIB = 1.5
"""Set aside for resampling through a transform."""


def _init_ds_wf(job: SpaceJob, names: Iterable[str], name: str) -> Workflow:
    """Save some of a job's outputs, with the metadata of the step that they come from."""
    from brainseg_bids.stages.saving import init_ds_scan_wf

    outputs = {output: str(job.outputs[output]) for output in names}
    return init_ds_scan_wf(outputs, space_metadata(job), name=name)


def _init_register_node(job: SpaceJob, execution: ExecutionOptions) -> Node:
    """The registration, to the finest of the job's templates."""
    from nipype.pipeline import engine as pe

    from brainseg_bids.interfaces.register import REGISTER, Register

    target = job.templates[0]
    register = pe.Node(
        Register(
            program=execution.register or REGISTER,
            fixed=str(target.image),
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


def init_resample_wf(job: SpaceJob, execution: ExecutionOptions, number: int) -> Workflow:
    """Labels and image on one template's grid, and what is derived from them there.

    Inputs
    ------
    image, labels
        As they lie in dataset and derivative.
    transforms
        What points of the template go through to come to the image.

    Outputs
    -------
    labels, tissue, mask, image, figure, report
    """
    from nipype import IdentityInterface
    from nipype.pipeline import engine as pe
    from niworkflows.engine.workflows import LiterateWorkflow as Workflow

    from brainseg_bids.interfaces.labels import BrainMask, Tissue
    from brainseg_bids.interfaces.register import Resample
    from brainseg_bids.interfaces.reportlets import DrawLabels

    workflow = Workflow(name=f"resample{number}_wf")
    table, template = str(execution.tables["brainseg"]), job.templates[number]
    given = ["image", "labels", "transforms"]
    made = ["labels", "image", "report"]
    inputnode = pe.Node(IdentityInterface(fields=given), name="inputnode")
    outputnode = pe.Node(
        IdentityInterface(fields=[*made, "tissue", "mask", "figure"]), name="outputnode"
    )
    resample = pe.Node(
        Resample(table=table, grid=str(template.image)), name="resample", mem_gb=RESAMPLE_GIB
    )
    if template.mask:
        resample.inputs.brain = str(template.mask)
    if job.probseg:
        resample.inputs.probseg = str(job.probseg)
    figure = pe.Node(DrawLabels(table=table, image=str(template.image)), name="figure", mem_gb=1.0)
    workflow.connect([
        (inputnode, resample, [(name, name) for name in given]),
        (resample, outputnode, [(name, name) for name in made]),
    ])  # fmt: skip
    derived = (
        pe.Node(Tissue(table=table), name="tissue", mem_gb=0.5),
        pe.Node(BrainMask(table=table), name="mask", mem_gb=0.5),
        figure,
    )
    for derive in derived:
        workflow.connect([
            (resample, derive, [("labels", "labels")]),
            (derive, outputnode, [("out_file", derive.name)]),
        ])  # fmt: skip
    return workflow


def _pipelines(settings: Settings) -> dict[str, Path]:
    """Derivatives that transforms are taken from."""
    given = settings.derivatives.items()
    return {name: Path(path) for name, path in given if name in PIPELINES}


def _check_reused(run: Run) -> None:
    """Tell before anything runs which transforms cannot be taken over: their images fail later.

    Raises
    ------
    InputError
        If that is so for every image: the derivative belongs to another dataset.
    """
    given = _pipelines(run.settings)
    errors, images = PlanErrors(), set()
    for subject in run.segmented() if given else ():
        for scan in subject.scans:
            for template in run.templates if scan.suffix in DRIVING else ():
                title = f"{scan.title} in {template.space}"
                images.add(title)
                with errors.of(title, scan.path):
                    find_reused(given, scan, template)
    if errors and len(errors) == len(images):
        raise InputError(next(iter(errors.values())))
    for title, why in errors.items():
        log.warning("%s will fail, the others go on: %s", title, why)


def _note_registrations(plan: SubjectPlan, settings: Settings) -> None:
    """Say where no transform was found, and which old ones do not belong to the new results."""
    given = _pipelines(settings)
    for job in plan.to_run:
        if given and not job.reused:
            flags = ", ".join(f"-d {name}" for name in given)
            log.warning("%s: %s has no transform for it: it is registered", job.title, flags)
        if job.reused and job.reused.through_average:
            log.warning(
                "%s: several images were averaged, so of %s only the field of view was compared, "
                "not the voxels. Look at the figure",
                job.reused.paths[-1],
                job.scan.path.name,
            )
        home = settings.output_dir / folder(job.scan)
        own = home / transform_name(job.scan, job.templates[0])
        if job.reused and own.is_file():
            log.warning(
                "%s: an earlier run's own registration; results now come through %s. Remove it",
                own,
                job.reused.uri,
            )


class StandardSpaces(ParticipantStage):
    """Labels in the spaces of templates (``--output-spaces``)."""

    name = "spaces"
    options = ExportOptions
    has_name = False
    after = ("segment",)
    results = "*_seg-brainseg*_dseg.json"
    result_files: ClassVar[Mapping[str, str]] = {
        "register": "report.json",
        "resample": "report.json",
    }

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
        if will_run:
            _check_reused(run)
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
            plan = plan_spaces(
                subject,
                **where,
                templates=run.templates,
                derivatives=_pipelines(settings),
                excluded=run.failed,
            )
            _note_registrations(plan, settings)
            plans.append(plan)
        return plans

    def workflow(self, job: SpaceJob, execution: ExecutionOptions) -> Workflow:
        """Register once (or take a transform over), resample once per resolution, save."""
        from nipype import IdentityInterface
        from nipype.pipeline import engine as pe
        from niworkflows.engine.workflows import LiterateWorkflow as Workflow

        workflow = Workflow(name=job.name)
        workflow.__desc__ = methods_text(
            job.templates[0].name,
            probabilities=job.probseg is not None,
            registration=job.provenance["Registration"],
        )
        fields = ["image", "labels", "mask", *(["transforms"] if job.reused else [])]
        inputnode = pe.Node(IdentityInterface(fields=fields), name="inputnode")
        inputnode.inputs.image = str(job.scan.path)
        inputnode.inputs.labels = str(job.labels)
        inputnode.inputs.mask = str(job.mask)
        through = (inputnode, "transforms")
        if job.reused:
            inputnode.inputs.transforms = [str(path) for path in job.reused.paths]
        else:
            register = _init_register_node(job, execution)
            through = (register, "forward")
            ds_transforms_wf = _init_ds_wf(job, ("forward", "backward"), "ds_transforms_wf")
            workflow.connect([
                (inputnode, register, [("image", "moving")]),
                (register, ds_transforms_wf, [
                    ("forward", "inputnode.forward"),
                    ("backward", "inputnode.backward"),
                    ("report", "inputnode.result"),
                ]),
            ])  # fmt: skip
            if job.templates[0].mask:
                workflow.connect(inputnode, "mask", register, "moving_mask")
        for number in range(len(job.templates)):
            resample_wf = init_resample_wf(job, execution, number)
            names = {name: key(name, number) for name in RESAMPLED}
            ds_space_wf = _init_ds_wf(job, names.values(), f"ds_space{number}_wf")
            workflow.connect([
                (inputnode, resample_wf, [
                    ("image", "inputnode.image"),
                    ("labels", "inputnode.labels"),
                ]),
                (through[0], resample_wf, [(through[1], "inputnode.transforms")]),
                (resample_wf, ds_space_wf, [
                    ("outputnode.report", "inputnode.result"),
                    *((f"outputnode.{one}", f"inputnode.{own}") for one, own in names.items()),
                ]),
            ])  # fmt: skip
        return workflow

    def messages(self, title: str, result: Mapping) -> list[Message]:
        if "Seconds" not in result:  # of the resampling
            return []
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
            said = read_object(sidecar(job.main))
            text = methods_text(
                job.templates[0].name,
                probabilities=bool(said.get("Probabilities")),
                registration=said["Registration"],
            )
            texts.append(text)
        return texts
