# SPDX-License-Identifier: Apache-2.0
"""brainchop with its model of 104 classes: both sides, and the cortex in parcels.

Called as `brainchop`; its labels are counted in the order of FreeSurfer's aparc+aseg.
"""

from __future__ import annotations

from dataclasses import replace

from brainseg_bids.interfaces.tools import brainchop

MODELS = {1: "mindsnap", 0: "DKatlas"}


class Brainchop104(brainchop.Brainchop):
    """Run ``brainchop`` with the model of 104 classes."""

    name = "brainchop104"
    models = MODELS


TOOL = replace(
    brainchop.TOOL,
    name="brainchop104",
    existing=("{id}/brainchop104.nii.gz", "{id}_brainchop104.nii.gz"),
    interface=Brainchop104,
)
