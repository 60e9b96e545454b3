# SPDX-License-Identifier: Apache-2.0
"""What the chosen stages of the participant level decide, before anything runs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from brainseg_bids.bids.description import write_description, write_label_tables
from brainseg_bids.bids.inputs import dataset_notes
from brainseg_bids.documents import InputError
from brainseg_bids.settings import Settings
from brainseg_bids.stages import PARTICIPANT
from brainseg_bids.stages.base import ParticipantStage, Run
from brainseg_bids.stages.jobs import SubjectPlan, describe_plans, joined

log = logging.getLogger("brainseg")


def chosen_stages(settings: Settings) -> list[ParticipantStage]:
    """Stages that the settings ask for, by ``--stages`` or by another flag."""
    return [stage for stage in PARTICIPANT.values() if stage.is_chosen(settings)]


def plan_stages(run: Run, stages: Sequence[ParticipantStage]) -> list[SubjectPlan]:
    """Plans of stages that run together, one per participant; what is odd is logged.

    Raises
    ------
    InputError
        If there is nothing for anyone.
    Refused
        If a program or a licence is missing.
    """
    from_dataset = not any(stage.after for stage in stages)
    plans = _plan_from_dataset(run, stages) if from_dataset else _plan_from_results(run, stages)
    for line in describe_plans(plans):
        log.info("%s", line)
    return plans


def _plan_from_dataset(run: Run, stages: Sequence[ParticipantStage]) -> list[SubjectPlan]:
    settings = run.settings
    if not settings.skip_bids_validation:
        for note in dataset_notes(settings.bids_dir):
            log.warning("%s", note)
    run.participants  # noqa: B018 - raises if one was asked for that is not there
    plans = joined(plan for stage in stages for plan in stage.plan(run))
    if not any(plan.scans or plan.errors for plan in plans):
        usual = "structural" if any(stage.name == "segment" for stage in stages) else "T1w"
        wanted = ", ".join(settings.contrasts) or usual
        raise InputError(
            f"{settings.bids_dir}: no {wanted} image was found for {len(plans)} participant(s). "
            "A name is like sub-01/anat/sub-01_T1w.nii.gz. "
            "Check names, --contrasts, --session-label and --bids-filter-file."
        )
    for plan in plans:
        if not plan.scans and not plan.errors:
            log.warning("sub-%s: no image was found, skipped", plan.label)
    return plans


def _plan_from_results(run: Run, stages: Sequence[ParticipantStage]) -> list[SubjectPlan]:
    """Plans of stages that work on what others have left; one of them may have nothing to do."""
    plans: list[SubjectPlan] = []
    empty: list[InputError] = []
    for stage in stages:
        try:
            plans += stage.plan(run)
        except InputError as error:
            empty.append(error)
        else:
            if run.settings.boilerplate_only and not any(plan.scans for plan in plans):
                log.warning("stage %s: its sentences come with its first results", stage.name)
    if empty and not plans:
        raise empty[-1]
    for error in empty:
        log.warning("%s", error)
    return joined(plans)


def write_root(run: Run, stages: Sequence[ParticipantStage]) -> dict[str, Path]:
    """Write what the derivative's root has to hold; the label tables among it by name."""
    settings = run.settings
    links = {name: Path(path) for name, path in settings.derivatives.items()}
    write_description(settings.bids_dir, settings.output_dir, links=links)
    tables = {}
    for stage in stages:
        tables |= stage.tables(run)
    return write_label_tables(settings.output_dir, tables)
