# SPDX-License-Identifier: Apache-2.0
"""Stage ``priors``: contrast statistics of all images, pooled by contrast."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from brainseg_bids.bids.description import write_description
from brainseg_bids.console import working
from brainseg_bids.stages.base import GroupResult, GroupStage

if TYPE_CHECKING:
    from brainseg_bids.options import Settings

log = logging.getLogger("brainseg")


class Priors(GroupStage):
    """What images of one contrast look like, label by label."""

    name = "priors"
    heeds_contrasts = True

    def run(self, settings: Settings, run_dir: Path, began_s: float) -> GroupResult:
        with working("stage priors"):
            if not settings.reports_only:
                _pool(settings)
            # Stage synth writes the same page when it has more to show.
            if settings.reports_only or "synth" not in settings.stages:
                write_priors_page(settings)
        return GroupResult()


def _pool(settings: Settings) -> None:
    from brainseg_bids.stages.measured import warn_of_outdated  # late: numpy
    from brainseg_bids.stages.pooling import make_priors, read_priors, write_prior_spaces

    write_description(settings.bids_dir, settings.output_dir)
    made = make_priors(
        settings.output_dir,
        bids_dir=settings.bids_dir,
        keys=settings.contrast_by,
        participants=settings.participant_label,
        sessions=settings.session_label,
        suffixes=settings.contrasts,
        ratings=settings.ratings,
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
    write_prior_spaces(settings.output_dir, made)
    earlier = [p for name, (_, p) in read_priors(settings.output_dir).items() if name not in made]
    warn_of_outdated(
        earlier, settings.output_dir, bids_dir=settings.bids_dir, ratings=settings.ratings
    )


def write_priors_page(settings: Settings) -> None:
    """Write the page of all priors, and of the pairs that were made from them."""
    from brainseg_bids.stages.pooling import read_synthetic, write_page  # late: matplotlib

    previews, comparisons = read_synthetic(settings.output_dir)
    page = write_page(
        settings.output_dir,
        settings.bids_dir.name,
        previews=previews,
        comparisons=comparisons,
        bids_dir=settings.bids_dir,
        ratings=settings.ratings,
    )
    log.info("report: %s", page)
