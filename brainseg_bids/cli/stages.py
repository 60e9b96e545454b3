# SPDX-License-Identifier: Apache-2.0
"""What the chosen stages find and decide, before anything runs."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.bids.inputs import (
    STRUCTURAL,
    Subject,
    dataset_notes,
    find_participants,
    find_subjects,
)
from brainseg_bids.bids.templates import Template, fetch_command
from brainseg_bids.exit_codes import NO_PROGRAM
from brainseg_bids.nets.bundle import (
    DEFAULT_MODELS,
    BundleError,
    ModelBundle,
    find_bundle,
    packaged_models,
)
from brainseg_bids.settings import Settings
from brainseg_bids.volumes import InputError
from brainseg_bids.workflows.plan import SubjectPlan, describe_plans, joined
from brainseg_bids.workflows.resources import Footprint, memory_gib
from brainseg_bids.workflows.segment_plan import Model, plan_segment

log = logging.getLogger("brainseg")


class Refused(Exception):
    """Nothing can be done for anyone; the message is one line, the exit code says what kind."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def read_model(name: str) -> tuple[Model, LabelTable]:
    """What plans need of a model.

    Raises
    ------
    BundleError
        If there is none, it is damaged, or its labels are not those of this app.
    """
    bundle = ModelBundle.read(find_bundle(name))
    codes = {label.index for label in bundle.table}
    unknown = sorted(codes - set(Crosswalk.packaged("brainseg", "tissue").pairs))
    if unknown:
        raise BundleError(
            f"{bundle.path}: label codes {', '.join(map(str, unknown))} have no tissue in table "
            "brainseg. Use a model that was trained for it."
        )
    _check_network(bundle)
    return _model_of(bundle), bundle.table


def _check_network(bundle: ModelBundle) -> None:
    """Raise `BundleError` if a model of the user's cannot work, before any image is read."""
    if bundle.path in packaged_models().values() or not bundle.net:
        return
    program = [sys.executable, "-m", "brainseg_bids.cli.check_model", str(bundle.path)]
    done = subprocess.run(program, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise BundleError((done.stderr.strip().splitlines() or ["the model cannot be read"])[-1])


def models_of(settings: Settings) -> tuple[tuple[Model, ...], LabelTable]:
    """The models that images are shared out among, and the labels of all of them.

    ``--model`` names the only one. So does an ensemble without it: its first member is the first
    of the packaged models, whatever an image's voxels.

    Raises
    ------
    BundleError
        As `read_model`.
    """
    names = (settings.model,) if settings.model else DEFAULT_MODELS
    if settings.ensemble:
        names = names[:1]
    (first, table), *others = map(read_model, names)
    return (first, *(model for model, _ in others)), table


def read_ensemble(settings: Settings, model: Model) -> tuple[Model, ...]:
    """Further models that are averaged with the first one.

    Raises
    ------
    BundleError
        If one cannot be read, is named twice, or has other labels.
    """
    if not settings.ensemble:
        return ()
    from brainseg_bids.cli.predict import read_models  # late: nibabel

    _, *others = read_models([model.path, *settings.ensemble])
    for bundle in others:
        _check_network(bundle)
    return tuple(map(_model_of, others))


def _model_of(bundle: ModelBundle) -> Model:
    names = tuple(label.name for label in bundle.table)
    return Model(
        bundle.path,
        bundle.name,
        bundle.digest,
        bundle.contrasts,
        names,
        bundle.voxel_size_mm,
        Footprint.of(bundle),
        calibrated=bool(bundle.confidence),
    )


PASSES = (
    ("segment", "headlabels"),
    ("upsample", "contrast", "spaces", "freesurfer"),
    ("precomputed",),
)
"""Stages that read the dataset are planned and run together; those that read what these leave
come after them."""


def chosen_stages(settings: Settings) -> tuple[str, ...]:
    """Stages the user has chosen, and steps that other flags ask for after ``segment``."""
    chosen = settings.stages
    if "segment" not in chosen:
        return chosen
    steps = {
        "spaces": bool(settings.output_spaces),
        "freesurfer": settings.freesurfer_export,
        "precomputed": settings.probseg,
    }
    return (*chosen, *(step for step, wanted in steps.items() if wanted))


def read_templates(settings: Settings) -> tuple[Template, ...]:
    """Templates of ``--output-spaces``, and whether images can be registered to them.

    Raises
    ------
    InputError
        If a template is not there.
    Refused
        If antspyx is not installed.
    """
    if not settings.output_spaces or "segment" not in settings.stages:
        return ()
    from brainseg_bids.interfaces.register import REGISTER, missing_reason  # late: nipype
    from brainseg_bids.workflows.spaces_plan import read_spaces

    templates = read_spaces(settings.output_spaces)
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
    return templates


def passes(stages: Sequence[str]) -> list[tuple[str, ...]]:
    """The chosen stages in the order they are run in.

    >>> passes(["upsample", "headlabels"])
    [('headlabels',), ('upsample',)]
    """
    chosen = [tuple(stage for stage in known if stage in stages) for known in PASSES]
    return [stages for stages in chosen if stages]


def plan_stages(
    settings: Settings,
    stages: Sequence[str],
    models: Sequence[Model],
    program: Sequence[str] | None = None,
    *,
    failed: Collection[str] = (),
    templates: Sequence[Template] = (),
) -> list[SubjectPlan]:
    """Plans of the stages of one pass, one per participant; what is odd is logged.

    ``failed`` are the titles of what an earlier pass could not do, ``templates`` those of the
    standard spaces.

    Raises
    ------
    InputError
        If there is nothing for anyone.
    Refused
        If a program or a licence is missing.
    """
    if set(stages) <= set(PASSES[0]):
        plans = _plan_from_dataset(settings, stages, models, program)
    else:
        plans = _plan_from_results(settings, stages, failed, templates)
    for line in describe_plans(plans):
        log.info("%s", line)
    return plans


def _plan_from_dataset(
    settings: Settings,
    stages: Sequence[str],
    models: Sequence[Model],
    program: Sequence[str] | None,
) -> list[SubjectPlan]:
    if not settings.skip_bids_validation:
        for note in dataset_notes(settings.bids_dir):
            log.warning("%s", note)
    labels = find_participants(settings.bids_dir, settings.participant_label)
    plans: list[SubjectPlan] = []
    if "segment" in stages:
        plans += _plan_segment(settings, labels, models)
    if "headlabels" in stages:
        plans += _plan_headlabels(settings, labels, models, program)
    plans = joined(plans)
    if not any(plan.scans or plan.faults for plan in plans):
        usual = "structural" if "segment" in stages else "T1w"
        wanted = ", ".join(settings.contrasts) or usual
        raise InputError(
            f"{settings.bids_dir}: no {wanted} image was found for {len(plans)} participant(s). "
            "Check --contrasts, --session-label and --bids-filter-file."
        )
    for plan in plans:
        if not plan.scans and not plan.faults:
            log.warning("sub-%s: no image was found, skipped", plan.label)
    return plans


def _plan_from_results(
    settings: Settings,
    stages: Sequence[str],
    failed: Collection[str],
    templates: Sequence[Template],
) -> list[SubjectPlan]:
    """Plans of stages that work on what others have left; one of them may have nothing to do."""
    plan_of = {
        "upsample": lambda: _plan_upsample(settings),
        "contrast": lambda: _plan_contrast(settings, failed),
        "spaces": lambda: _plan_spaces(settings, failed, templates),
        "freesurfer": lambda: _plan_freesurfer(settings, failed),
        "precomputed": lambda: _plan_precomputed(settings, failed),
    }
    plans: list[SubjectPlan] = []
    empty = None
    for stage in stages:
        try:
            plans += plan_of[stage]()
        except InputError as error:
            empty = error
            log.warning("%s", error)
    if empty and not plans:
        raise empty
    return joined(plans)


def _plan_contrast(settings: Settings, failed: Collection[str]) -> list[SubjectPlan]:
    from brainseg_bids.interfaces.tools import tool_names  # late: nipype
    from brainseg_bids.workflows.contrast_plan import LabelChoice, plan_contrast

    given = {name: Path(path) for name, path in settings.derivatives.items()}
    strange = sorted(set(given) - set(tool_names()))
    if strange:
        raise InputError(
            f"-d {strange[0]}=...: no tool is called {strange[0]!r}, so its codes are not known. "
            "Give label maps in codes of this app as -d fullhead=FOLDER."
        )
    choice = LabelChoice(settings.labels, given)
    choice.check()
    labels = find_participants(settings.bids_dir, settings.participant_label)
    # An image that could not be segmented, or whose head could not be labelled, has been told.
    barred = frozenset(title.removesuffix(" head labels") for title in failed)
    plans = [
        plan_contrast(
            subject,
            bids_dir=settings.bids_dir,
            output_dir=settings.output_dir,
            choice=choice,
            barred=barred,
        )
        for subject in _find(settings, labels, STRUCTURAL)
    ]
    # Files higher up belong to many images.
    for note in dict.fromkeys(n for plan in plans for scan in plan.scans for n in scan.notes):
        log.warning("%s", note)
    if not any(plan.scans or plan.faults for plan in plans) and not barred:
        raise InputError(
            f"{settings.bids_dir}: no image was found to measure. Check --contrasts, "
            "--session-label and --bids-filter-file."
        )
    return plans


def _segmented(settings: Settings) -> list[Subject]:
    """What stage ``segment`` was to segment; nothing if it was only described."""
    if settings.boilerplate_only:
        return []
    labels = find_participants(settings.bids_dir, settings.participant_label)
    return _find(settings, labels, STRUCTURAL)


def _plan_spaces(
    settings: Settings, failed: Collection[str], templates: Sequence[Template]
) -> list[SubjectPlan]:
    from brainseg_bids.workflows.spaces_plan import DRIVING, plan_spaces

    plans = []
    for subject in _segmented(settings):
        for scan in subject.scans:
            if scan.suffix not in DRIVING:
                log.info(
                    "%s: not brought to a standard space; only %s are registered",
                    scan.title,
                    " and ".join(DRIVING),
                )
        plans.append(
            plan_spaces(
                subject,
                bids_dir=settings.bids_dir,
                output_dir=settings.output_dir,
                templates=templates,
                barred=failed,
            )
        )
    return plans


def _plan_freesurfer(settings: Settings, failed: Collection[str]) -> list[SubjectPlan]:
    from brainseg_bids.workflows.exports_plan import plan_freesurfer, write_homes

    if not settings.reports_only:
        write_homes(["freesurfer"], settings.output_dir)
    where = {"bids_dir": settings.bids_dir, "output_dir": settings.output_dir}
    return [plan_freesurfer(subject, **where, barred=failed) for subject in _segmented(settings)]


def _plan_precomputed(settings: Settings, failed: Collection[str]) -> list[SubjectPlan]:
    from brainseg_bids.workflows.exports_plan import plan_precomputed, write_homes

    if not settings.reports_only:
        write_homes(["precomputed"], settings.output_dir)
    where = {"bids_dir": settings.bids_dir, "output_dir": settings.output_dir}
    plans = []
    for subject in _segmented(settings):
        plan, notes = plan_precomputed(subject, **where, barred=failed)
        for note in notes:
            log.info("%s", note)
        plans.append(plan)
    return plans


def _plan_upsample(settings: Settings) -> list[SubjectPlan]:
    from brainseg_bids.workflows.upsample_plan import (
        DEFAULT_TARGET_MM,
        Target,
        find_maps,
        plan_upsample,
    )

    maps = find_maps(
        settings.output_dir, settings.participant_label, sessions=settings.session_label
    )
    if not maps:
        raise InputError(
            f"{settings.output_dir}: no label maps of heads are in it. Run --stages headlabels "
            "first, or together with upsample."
        )
    target = Target(
        voxel_size_mm=settings.target_voxel_size_mm or DEFAULT_TARGET_MM,
        kernel=settings.upsample_kernel,
        smoothing_mm=settings.smoothing_mm,
        keep_thin=settings.keep_thin,
    )
    return [
        plan_upsample(
            label,
            scans,
            output_dir=settings.output_dir,
            target=target,
            memory_gb=settings.memory_gb or memory_gib(),
        )
        for label, scans in maps.items()
    ]


def _find(settings: Settings, labels: list[str], usual: Sequence[str]) -> list[Subject]:
    return find_subjects(
        settings.bids_dir,
        labels,
        sessions=settings.session_label,
        contrasts=settings.contrasts,
        usual=usual,
        filters=settings.bids_filters,
        database_dir=settings.bids_database_dir,
    )


def _plan_segment(
    settings: Settings, labels: list[str], models: Sequence[Model]
) -> list[SubjectPlan]:
    ensemble = read_ensemble(settings, models[0])
    plans = [
        plan_segment(
            subject,
            bids_dir=settings.bids_dir,
            output_dir=settings.output_dir,
            models=models,
            probseg=settings.probseg,
            ensemble=ensemble,
            flips=settings.test_time_flips,
        )
        for subject in _find(settings, labels, STRUCTURAL)
    ]
    for plan in plans:
        for scan in plan.to_run:
            model = scan.model
            if model.contrasts and scan.scan.suffix not in model.contrasts:
                log.warning(
                    "%s: model %s was made for %s; look at the result with care",
                    scan.title,
                    model.name,
                    ", ".join(model.contrasts),
                )
    _say_uncalibrated(plans, alone=settings.test_time_flips and not ensemble)
    return plans


def _say_uncalibrated(plans: Sequence[SubjectPlan], *, alone: bool) -> None:
    """Say once of each model that its confidence is not calibrated, and so flags nothing."""
    for model in {
        scan.model.digest: scan.model for plan in plans for scan in plan.to_run
    }.values():
        if not (alone and model.calibrated):
            why = "without flips or in an ensemble" if model.calibrated else "of this model"
            log.info(
                "model %s: the confidence of structures %s is not calibrated; none is flagged",
                model.name,
                why,
            )


def _plan_headlabels(
    settings: Settings,
    labels: list[str],
    models: Sequence[Model],
    program: Sequence[str] | None,
) -> list[SubjectPlan]:
    from brainseg_bids.interfaces.tools.base import ToolError  # late: nipype
    from brainseg_bids.workflows.headlabels_plan import (
        ToolChoice,
        describe_tools,
        plan_headlabels,
    )

    commands = {n: tuple(command) for n, command in settings.tools.items() if n != "ants"}
    if program:
        commands["model"] = tuple(program)
    choice = ToolChoice(
        head=settings.head_tool,
        brain=settings.brain_tool,
        models=models,
        flips=settings.test_time_flips,
        commands=commands,
        derivatives={
            name: Path(path)
            for name, path in settings.derivatives.items()
            # Others may be the labels that contrast is measured with.
            if "contrast" not in settings.stages
            or name in (settings.head_tool, settings.brain_tool)
        },
        memory_gb=settings.memory_gb or memory_gib(),
        will_run=not (settings.reports_only or settings.boilerplate_only),
    )
    choice.check()
    try:
        plans = [
            plan_headlabels(
                subject,
                bids_dir=settings.bids_dir,
                output_dir=settings.output_dir,
                choice=choice,
            )
            for subject in _find(settings, labels, ("T1w",))
        ]
    except ToolError as error:  # a program or a licence is missing: for everyone
        raise Refused(str(error), error.exit_code) from error
    for line in describe_tools(plans):
        log.info("%s", line)
    return plans


def tables_of(settings: Settings, model_table: LabelTable) -> dict[str, LabelTable]:
    """Label tables that the derivative's root has to hold, by the label of ``seg-``."""
    tables = {}
    if "segment" in settings.stages:
        tables |= {"brainseg": model_table, "tissue": LabelTable.packaged("tissue")}
    if "upsample" in settings.stages:
        tables["fullhead"] = LabelTable.packaged("fullhead")
    if "contrast" in settings.stages:  # statistics are in its names
        tables["fullhead"] = LabelTable.packaged("fullhead")
    if "headlabels" in settings.stages:
        from brainseg_bids.interfaces.tools import find_tool  # late: nipype

        tables["fullhead"] = LabelTable.packaged("fullhead")
        for name in (settings.head_tool, settings.brain_tool):
            if find_tool(name).program:
                tables[name] = find_tool(name).crosswalk().source_table()
    return tables
