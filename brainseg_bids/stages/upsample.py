# SPDX-License-Identifier: Apache-2.0
"""Stage ``upsample``: bring label maps of heads to finer voxels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from brainseg_bids.documents import Items
from brainseg_bids.options import VOXEL_SIZE, OptionGroup, above_zero, option, voxel_size_mm


@dataclass(frozen=True, kw_only=True)
class UpsampleOptions(OptionGroup):
    """Finer label maps."""

    title: ClassVar[str] = "finer label maps (--stages upsample)"
    belongs_to: ClassVar[tuple[str, ...]] = ("upsample",)

    target_voxel_size_mm: tuple[float, ...] = option(
        "--target-voxel-size",
        default=(),
        parse=voxel_size_mm,
        fits=Items(VOXEL_SIZE),
        stages=("upsample", "synth", "train"),
        metavar="MM",
        help="one number, or one per axis; default: 0.5, for synthetic pairs the contrast's own",
    )
    upsample_kernel: str = option(
        "--upsample-kernel",
        default="fitted",
        choices=("fitted", "linear", "lossless"),
        help="fitted (default): most faithful; lossless: taken back to its grid, the map is "
        "what it was. Where probabilities were kept, they are interpolated instead",
    )
    smoothing_mm: float = option(
        "--smoothing",
        default=0.0,
        parse=above_zero("millimetres", below=100),
        metavar="MM",
        help="also smooth borders by a Gaussian of this standard deviation",
    )
    keep_thin: bool = option(
        "--keep-thin", default=False, help="guard thin structures, e.g. the optic nerve"
    )
