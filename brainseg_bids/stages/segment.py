# SPDX-License-Identifier: Apache-2.0
"""Stage ``segment``: label images on their own grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from brainseg_bids.options import OptionGroup, option


@dataclass(frozen=True, kw_only=True)
class SegmentOptions(OptionGroup):
    """How images are segmented."""

    title: ClassVar[str] = "segmentation"

    model: str = option(
        "--model",
        default="",
        metavar="NAME|PATH",
        help="a packaged model or a model folder; default: of the packaged ones made for the "
        "image's contrast, the one nearest to its voxel size",
    )
    device: str = option(
        "--device",
        default="auto",
        choices=("auto", "cpu", "cuda", "mps"),
        help="where the network runs; auto (default) takes an accelerator if there is one",
    )
    probseg: bool = option(
        "--probseg",
        default=False,
        help="also write the probability of each label, and mask and tissues for sMRIPrep",
    )
    ensemble: tuple[str, ...] = option(
        "--ensemble",
        default=(),
        stages=("segment",),
        metavar="NAME|PATH",
        help="further models; the probabilities of all are averaged",
    )
    test_time_flips: bool = option(
        "--test-time-flips",
        default=True,
        stages=("segment", "headlabels"),
        help="also segment the mirrored image and average: the default, and more exact; without "
        "it half to two thirds of the time",
    )
