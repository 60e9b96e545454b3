# SPDX-License-Identifier: Apache-2.0
"""What is done over all participants: tables, priors, synthetic pairs, training, comparison."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from itertools import chain
from pathlib import Path

from brainseg_bids.exit_codes import DONE, FAILED
from brainseg_bids.files import DAY_S, remove_unfinished
from brainseg_bids.settings import Settings
from brainseg_bids.stages import GROUP

log = logging.getLogger("brainseg")


def run_group(settings: Settings, run_dir: Path) -> int:
    """Run the chosen stages, in their order; the exit code.

    Raises
    ------
    InputError
        If what a stage needs is not there.
    """
    began_s = time.time()
    _warn_of_unheeded(settings)
    to_review: list[str] = []
    home = settings.output_dir
    folders = (home / name for name in ("evaluation", "priors"))
    left = chain(home.glob(".*"), *(folder.rglob(".*") for folder in folders))
    remove_unfinished(left, older_than_s=DAY_S)  # another run may be writing there
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
    log_finished(to_review)
    return DONE


def _warn_of_unheeded(settings: Settings) -> None:
    """Name choices of images that a stage does not follow."""
    chosen = [stage for stage in GROUP.values() if stage.is_chosen(settings)]
    if settings.bids_filters:
        log.warning(
            "--bids-filter-file has no effect at the group level, which takes all results that "
            "are there. Choose with --participant-label and --session-label, for stages priors "
            "and evaluate also with --contrasts."
        )
    deaf = [stage.name for stage in chosen if not stage.heeds_contrasts]
    if settings.contrasts and deaf:
        log.warning("--contrasts has no effect on stage %s", " and ".join(deaf))


def log_finished(to_review: Collection[str], report: Path | None = None) -> None:
    """The last lines of a run in which nothing failed; the very last says what to look at.

    Parameters
    ----------
    to_review : collection of str
        What messages call the images and models whose results cannot be right.
    report : Path, optional
    """
    log.info("finished" if to_review else "finished successfully!")
    if report:
        log.info("report: %s", report)
    if to_review:
        log.warning("%d to look at: %s", len(to_review), ", ".join(to_review))
