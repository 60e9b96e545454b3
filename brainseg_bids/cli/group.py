# SPDX-License-Identifier: Apache-2.0
"""What is done over all participants: tables, priors, synthetic pairs, training, comparison."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from pathlib import Path

from brainseg_bids.bids.description import write_description
from brainseg_bids.exit_codes import DONE, FAILED
from brainseg_bids.settings import Settings
from brainseg_bids.stages import GROUP
from brainseg_bids.stages.base import GroupResult, GroupStage
from brainseg_bids.stages.evaluate import Evaluate
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
    to_review: list[str] = []
    for stage in GROUP.values():
        if not stage.is_chosen(settings):
            continue
        if settings.plan_only and not settings.reports_only and stage.name != "train":
            log.info("stage %s is left out (--plan-only)", stage.name)
            continue
        result = stage.run(settings, run_dir, began_s)
        to_review += result.to_review
        for title, reason in result.failures.items():
            log.error("%s: failed: %s", title, reason)
        if result.failures:
            log.error("%d could not be done; the others are complete", len(result.failures))
            return FAILED
        if result.exit_code:
            return result.exit_code
    if settings.plan_only and not settings.reports_only:
        return DONE
    say_finished(to_review)
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


class Train(GroupStage):
    """A network trained on synthetic pairs."""

    name = "train"
    after = ("priors", "synth")

    def run(self, settings: Settings, run_dir: Path, began_s: float) -> GroupResult:
        from brainseg_bids.cli.train_stage import models_to_look_at, train  # late: torch

        if settings.reports_only:
            code = _write_training_pages(settings)
        else:
            write_description(settings.bids_dir, settings.output_dir)
            code = train(settings, run_dir, began_s=began_s)
        if code:
            return GroupResult(exit_code=code)
        return GroupResult(tuple(models_to_look_at(settings.output_dir, began_s)))


GROUP = GROUP | {stage.name: stage for stage in (Train(), Evaluate())}
