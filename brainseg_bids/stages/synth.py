# SPDX-License-Identifier: Apache-2.0
"""Stage ``synth``: synthetic image-label pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from brainseg_bids.documents import Number
from brainseg_bids.options import OptionGroup, option, positive, share, whole


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
        help="contrast dial from 0, any contrast, to 1 (default), the measured one",
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
        help="other pairs for another number; default: 1",
    )
