# SPDX-License-Identifier: Apache-2.0
"""Stage ``synth``: synthetic image-label pairs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from brainseg_bids.bids.description import write_description
from brainseg_bids.console import working
from brainseg_bids.documents import InputError, Number
from brainseg_bids.options import OptionGroup, option, positive, share, whole
from brainseg_bids.stages.base import GroupResult, GroupStage
from brainseg_bids.stages.priors import write_priors_page

if TYPE_CHECKING:
    from brainseg_bids.options import Settings


@dataclass(frozen=True, kw_only=True)
class SynthOptions(OptionGroup):
    """Synthetic pairs."""

    title: ClassVar[str] = "synthetic pairs (group: --stages synth)"
    belongs_to: ClassVar[tuple[str, ...]] = ("synth", "train")

    prior: str = option(
        "--prior",
        default="",
        metavar="NAME",
        help="contrast to draw from, as stage priors has named it; default: each there is",
    )
    kappa: float = option(
        "--kappa",
        default=1.0,
        parse=share,
        fits=Number(0, 1),
        metavar="K",
        help="prior weight from 0, any contrast, to 1 (default), the measured one",
    )
    pairs: int = option(
        "--pairs",
        default=0,
        parse=positive,
        stages=("synth",),
        metavar="N",
        help="also write N image-label pairs as a BIDS derivative; default: previews only",
    )
    seed: int = option(
        "--seed",
        default=1,
        parse=whole,
        metavar="S",
        help="random seed of the pairs; default: 1",
    )


class Synth(GroupStage):
    """Previews of pairs drawn from contrast priors, beside real images; pairs for export."""

    name = "synth"
    options = SynthOptions
    after = ("priors",)

    def run(self, settings: Settings, run_dir: Path, began_s: float) -> GroupResult:
        with working("stage synth"):
            if not settings.reports_only:
                _make_pairs(settings)
            if not settings.reports_only or "priors" not in settings.stages:  # it is the same page
                write_priors_page(settings)
        return GroupResult()


def _make_pairs(settings: Settings) -> None:
    from brainseg_bids.stages.pairs import synthesise  # late: torch

    write_description(settings.bids_dir, settings.output_dir)
    try:
        synthesise(settings)
    except InputError:
        if "priors" in settings.stages:
            write_priors_page(settings)
        raise
