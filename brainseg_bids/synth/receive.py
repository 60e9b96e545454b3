# SPDX-License-Identifier: Apache-2.0
"""Receive field B1-: sensitivity of the receive coils."""

from __future__ import annotations

import math

from torch import Tensor

from brainseg_bids.synth.intensity import Layer
from brainseg_bids.synth.interpolate import smooth_field
from brainseg_bids.synth.recipe import Bias
from brainseg_bids.synth.view import Crop


def receive(bias: Bias, crop: Crop) -> Layer | None:
    """Layer that multiplies by exp of a smooth random field with SD ``bias.log_sd``, or None."""
    if bias.log_sd == 0:
        return None
    field = smooth_field(
        crop.shape,
        voxel_size_mm=crop.voxel_size_mm,
        node_spacing_mm=bias.node_spacing_mm,
        seed=bias.seed,
        device=crop.device,
        # Powers of two cost a third of powers of e.
        spread=bias.log_sd / math.log(2),
    )

    def multiply(painted: Tensor, indices: Tensor, start: int, stop: int) -> None:
        painted.mul_(field(start, stop).exp2_())

    return multiply
