# SPDX-License-Identifier: Apache-2.0
"""What is done over all participants: tables, priors, synthetic pairs, training, comparison."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from pathlib import Path

from brainseg_bids.bids.description import write_description
from brainseg_bids.cli.console import working
from brainseg_bids.exit_codes import DONE, FAILED
from brainseg_bids.settings import Settings
from brainseg_bids.volumes import InputError

log = logging.getLogger("brainseg")


def run_group(settings: Settings, run_dir: Path) -> int:
    """Run the chosen stages, in their order; the exit code.

    Raises
    ------
    InputError
        If what a stage needs is not there.
    """
    began_s = time.time()
    if settings.plan_only and not settings.reports_only:
        for name in settings.stages:
            if name != "train":
                log.info("stage %s is left out (--plan-only)", name)
        return _train(settings, run_dir, began_s) if "train" in settings.stages else DONE
    to_look_at: list[str] = []
    if "summary" in settings.stages:
        to_look_at += _summary(settings)
    for name, stage in {"priors": _priors, "synth": _synth}.items():
        if name in settings.stages:
            stage(settings)
    if "train" in settings.stages:
        if settings.reports_only:
            code = _write_training_pages(settings)
        else:
            code = _train(settings, run_dir, began_s)
        if code:
            return code
        to_look_at += _models_to_look_at(settings, began_s)
    if "evaluate" in settings.stages and (failures := _evaluate(settings, run_dir)):
        for title, reason in failures.items():
            log.error("%s: failed: %s", title, reason)
        log.error("%d could not be compared; the others are complete", len(failures))
        return FAILED
    say_finished(to_look_at)
    return DONE


def say_finished(to_look_at: Collection[str], report: Path | None = None) -> None:
    """The last lines of a run in which nothing failed; the very last says what to look at.

    Parameters
    ----------
    to_look_at : collection of str
        What messages call the images and models whose results cannot be right.
    report : Path, optional
    """
    log.info("finished" if to_look_at else "finished successfully!")
    if report:
        log.info("report: %s", report)
    if to_look_at:
        log.warning("%d to look at: %s", len(to_look_at), ", ".join(to_look_at))


@working("stage summary")
def _summary(settings: Settings) -> list[str]:
    """Compare all images; those whose results cannot be right."""
    from brainseg_bids.workflows.pages import write_group  # late: matplotlib

    found: dict[str, None] = {}
    for page, n_images, to_look_at in write_group(
        settings.output_dir,
        title=settings.bids_dir.name,
        participants=settings.participant_label,
        tables=not settings.reports_only,
    ):
        log.info("%d image%s compared: %s", n_images, "s" * (n_images != 1), page)
        found |= dict.fromkeys(to_look_at)
    return list(found)


@working("stage priors")
def _priors(settings: Settings) -> None:
    from brainseg_bids.workflows.priors import make_priors, write_dials

    if settings.reports_only:
        _write_priors_page(settings)
        return
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
    if "synth" not in settings.stages:  # which writes the same page when it has more to show
        _write_priors_page(settings)


def _write_priors_page(settings: Settings) -> None:
    from brainseg_bids.workflows.priors import read_synthetic, write_page

    previews, comparisons = read_synthetic(settings.output_dir)
    page = write_page(
        settings.output_dir,
        settings.bids_dir.name,
        previews=previews,
        comparisons=comparisons,
    )
    log.info("report: %s", page)


def _write_training_pages(settings: Settings) -> int:
    """Write the pages of the trainings that are there, of one or of all."""
    from brainseg_bids.reports.training import write_training_page  # late: matplotlib

    pattern = f"model-{settings.model_name or '*'}"
    jobs = [
        path
        for path in sorted((settings.output_dir / "derivatives").glob(pattern))
        if (path / "training" / "job.json").is_file()
    ]
    if not jobs:
        raise InputError(
            f"{settings.output_dir / 'derivatives' / pattern}: no training is there whose page "
            "could be written. Run without --reports-only, or choose another --name."
        )
    code = DONE
    for job in jobs:
        name = job.name.removeprefix("model-")
        page = settings.output_dir / f"train_{name}.html"
        try:
            write_training_page(job, page, title=f"Training {name}")
            log.info("report: %s", page)
        except (OSError, ValueError, KeyError) as error:
            log.error("%s: the report could not be written (%s)", page, error)
            code = FAILED
    return code


def _train(settings: Settings, run_dir: Path, began_s: float) -> int:
    from brainseg_bids.cli.train_stage import train  # late: what it needs is

    write_description(settings.bids_dir, settings.output_dir)
    return train(settings, run_dir, began_s=began_s)


def _models_to_look_at(settings: Settings, began_s: float) -> list[str]:
    from brainseg_bids.cli.train_stage import models_to_look_at  # late: what it needs is

    return models_to_look_at(settings.output_dir, began_s)


@working("stage evaluate")
def _evaluate(settings: Settings, run_dir: Path) -> dict[str, str]:
    from brainseg_bids.cli.evaluate import evaluate  # late: nipype

    if not settings.reports_only:
        write_description(settings.bids_dir, settings.output_dir)
    return evaluate(settings, run_dir)


@working("stage synth")
def _synth(settings: Settings) -> None:
    from brainseg_bids.cli.synthesise import synthesise  # late: torch

    if settings.reports_only:
        if "priors" not in settings.stages:  # it is the same page
            _write_priors_page(settings)
        return
    write_description(settings.bids_dir, settings.output_dir)
    try:
        synthesise(settings)
    except InputError:
        if "priors" in settings.stages:
            _write_priors_page(settings)
        raise
    _write_priors_page(settings)
