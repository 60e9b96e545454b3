# SPDX-License-Identifier: Apache-2.0
"""What the chosen stages find and decide, before anything runs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
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
from brainseg_bids.nets.bundle import BundleError, ModelBundle, find_bundle
from brainseg_bids.settings import Settings
from brainseg_bids.workflows.plan import SubjectPlan, describe_plans, joined
from brainseg_bids.workflows.resources import memory_gb
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
    names = tuple(label.name for label in bundle.table)
    return Model(bundle.path, bundle.name, bundle.digest, bundle.contrasts, names), bundle.table


def plan_stages(
    settings: Settings, model: Model, program: Sequence[str] | None = None
) -> list[SubjectPlan]:
    """Plans of all chosen stages, one per participant; what is odd is logged."""
    if not settings.skip_bids_validation:
        for note in dataset_notes(settings.bids_dir):
            log.warning("%s", note)
    labels = find_participants(settings.bids_dir, settings.participant_label)
    plans: list[SubjectPlan] = []
    if "segment" in settings.stages:
        plans += _plan_segment(settings, labels, model)
    if "headlabels" in settings.stages:
        plans += _plan_headlabels(settings, labels, model, program)
    plans = joined(plans)
    for plan in plans:
        if not plan.scans and not plan.faults:
            log.warning("sub-%s: no image was found, skipped", plan.label)
    for line in describe_plans(plans):
        log.info("%s", line)
    return plans


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


def _plan_segment(settings: Settings, labels: list[str], model: Model) -> list[SubjectPlan]:
    plans = [
        plan_segment(
            subject,
            bids_dir=settings.bids_dir,
            output_dir=settings.output_dir,
            model=model,
            probseg=settings.probseg,
        )
        for subject in _find(settings, labels, STRUCTURAL)
    ]
    for plan in plans:
        for scan in plan.to_run:
            if model.contrasts and scan.scan.suffix not in model.contrasts:
                log.warning(
                    "%s: model %s was made for %s; look at the result with care",
                    scan.title,
                    model.name,
                    ", ".join(model.contrasts),
                )
    return plans


def _plan_headlabels(
    settings: Settings, labels: list[str], model: Model, program: Sequence[str] | None
) -> list[SubjectPlan]:
    from brainseg_bids.interfaces.tools.base import ToolError  # late: nipype
    from brainseg_bids.workflows.headlabels_plan import (
        ToolChoice,
        describe_tools,
        plan_headlabels,
    )

    commands = {name: tuple(command) for name, command in settings.tools.items()}
    if program:
        commands["model"] = tuple(program)
    choice = ToolChoice(
        head=settings.head_tool,
        brain=settings.brain_tool,
        model=model,
        commands=commands,
        derivatives={name: Path(path) for name, path in settings.derivatives.items()},
        memory_gb=settings.memory_gb or memory_gb(),
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
    if "headlabels" in settings.stages:
        from brainseg_bids.interfaces.tools import find_tool  # late: nipype

        tables["fullhead"] = LabelTable.packaged("fullhead")
        for name in (settings.head_tool, settings.brain_tool):
            if find_tool(name).program:
                tables[name] = find_tool(name).crosswalk().source_table()
    return tables
