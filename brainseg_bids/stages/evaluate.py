# SPDX-License-Identifier: Apache-2.0
"""Stage ``evaluate``: compare label maps with manual ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from brainseg_bids.documents import Items, Number
from brainseg_bids.options import OptionGroup, above_zero, folder_by_name, option


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(OptionGroup):
    """Comparison with manual labels."""

    title: ClassVar[str] = "evaluation (group: --stages evaluate)"
    belongs_to: ClassVar[tuple[str, ...]] = ("evaluate",)

    references: dict = option(
        "--reference",
        default={},
        many=True,
        action="extend",
        parse=folder_by_name,
        stages=("evaluate", "train"),
        metavar="NAME=PATH",
        help="what to compare with: a packaged adapter (ultracortex, oasis_manual, "
        "freesurfer_aseg), FILE.toml of your own, or any other name for a BIDS derivative",
    )
    nsd_tolerances_mm: tuple[float, ...] = option(
        "--nsd-tolerance",
        default=(0.6, 1.0),
        parse=above_zero("millimetres", below=100),
        fits=Items(Number(0, 100, "mm", above=True)),
        metavar="MM",
        help="tolerances of the normalised surface distance; default: 0.6 1.0",
    )
    surfaces: str = option(
        "--surfaces",
        default="surface",
        choices=("surface", "voxel"),
        help="definition of surface distances: of surfels, as DeepMind's surface-distance "
        "(default), or of border voxels, as MONAI",
    )
    on_other_grid: str = option(
        "--on-other-grid",
        default="resample",
        choices=("resample", "refuse"),
        help="label maps on another grid than the reference's; default: resample",
    )
    protocol: str = option(
        "--protocol",
        default="label-restricted",
        choices=("label-restricted", "within-evaluable"),
        help="where a reference labels part of the brain only: judge its labels over all voxels "
        "(default), or leave out voxels that it leaves at 0 and somebody calls other brain tissue",
    )
    include_seen: bool = option(
        "--include-seen",
        default=False,
        help="also evaluate a model on what it was trained or fitted on, and mark it",
    )
