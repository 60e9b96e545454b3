# SPDX-License-Identifier: Apache-2.0
"""What is done over all participants: tables, priors, synthetic pairs, training, comparison."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from brainseg_bids.bids.description import write_description
from brainseg_bids.cli.execute import DONE, FAILED
from brainseg_bids.settings import Settings

log = logging.getLogger("brainseg")


def run_group(settings: Settings, run_dir: Path) -> int:
    """Run the chosen stages, in their order; the exit code.

    Raises
    ------
    InputError
        If what a stage needs is not there.
    """
    began_s = time.time()
    stages = {"summary": _summary, "priors": _priors, "synth": _synth}
    for name, stage in stages.items():
        if name in settings.stages:
            stage(settings)
    if "train" in settings.stages and (code := _train(settings, run_dir, began_s)):
        return code
    if "evaluate" in settings.stages and (failures := _evaluate(settings, run_dir)):
        for title, reason in failures.items():
            log.error("%s: failed: %s", title, reason)
        log.error("%d could not be compared; the others are complete", len(failures))
        return FAILED
    log.info("finished successfully!")
    return DONE


def _summary(settings: Settings) -> None:
    from brainseg_bids.workflows.pages import write_group  # late: matplotlib

    for page, n_images, n_to_look_at in write_group(
        settings.output_dir, title=settings.bids_dir.name, participants=settings.participant_label
    ):
        log.info("%d image%s compared: %s", n_images, "s" * (n_images != 1), page)
        if n_to_look_at:
            log.warning("%d to look at: %s", n_to_look_at, page)


def _priors(settings: Settings) -> None:
    from brainseg_bids.workflows.priors import make_priors, write_dials, write_page

    write_description(settings.bids_dir, settings.output_dir)
    made = make_priors(
        settings.output_dir,
        bids_dir=settings.bids_dir,
        keys=settings.contrast_by,
        participants=settings.participant_label,
        sessions=settings.session_label,
        suffixes=settings.contrasts,
    )
    for name, (prior, group) in made.items():
        log.info(
            "contrast %s: pooled over %d image(s) of %d subject(s)",
            name,
            len(group),
            prior.n_subjects,
        )
        for note in prior.warnings:
            log.warning("contrast %s: %s", name, note)
    write_dials(settings.output_dir, made)
    log.info("report: %s", write_page(settings.output_dir, settings.bids_dir.name))


def _train(settings: Settings, run_dir: Path, began_s: float) -> int:
    from brainseg_bids.cli.train_stage import train  # late: what it needs is

    write_description(settings.bids_dir, settings.output_dir)
    return train(settings, run_dir, began_s=began_s)


def _evaluate(settings: Settings, run_dir: Path) -> dict[str, str]:
    from brainseg_bids.cli.evaluate import evaluate  # late: nipype

    write_description(settings.bids_dir, settings.output_dir)
    return evaluate(settings, run_dir)


def _synth(settings: Settings) -> None:
    from brainseg_bids.cli.synthesise import synthesise  # late: torch

    write_description(settings.bids_dir, settings.output_dir)
    synthesise(settings)
