# SPDX-License-Identifier: Apache-2.0
"""Stage ``contrast``: measure how the labels of an image look."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from brainseg_bids.options import OptionGroup, option


@dataclass(frozen=True, kw_only=True)
class ContrastOptions(OptionGroup):
    """Contrast statistics and priors."""

    title: ClassVar[str] = "contrast (--stages contrast; group: priors)"

    labels: str = option(
        "--labels",
        default="",
        stages=("contrast",),
        metavar="NAME",
        help="measure with these labels: fullhead (of stage headlabels), brainseg (of segment) or "
        "a NAME given with -d; default: the first there is of -d, fullhead, brainseg",
    )
    contrast_by: tuple[str, ...] = option(
        "--contrast-by",
        default=("Suffix", "MagneticFieldStrength", "Sequence", "VoxelSizeMm"),
        stages=("priors",),
        metavar="KEY",
        help="images are of one contrast if these agree: Suffix, VoxelSizeMm, Sequence, a key of "
        "the images' JSON, or an entity such as acq; default: Suffix MagneticFieldStrength "
        "Sequence VoxelSizeMm",
    )
