# SPDX-License-Identifier: Apache-2.0
"""What stages that write a volumes table say of it: columns, and why there is no volume."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from brainseg_bids.stages.base import Message

NO_VOLUME = "NoIntracranialVolume"
"""In what `interfaces.labels.Volumes` leaves: why there is no volume; empty if there is one."""

VOLUMES_COLUMNS = {
    "name": {"Description": "Structure."},
    "hemisphere": {
        "Description": "Side of the structure.",
        "Levels": {"left": "left", "right": "right", "none": "midline or both sides"},
    },
    "n_voxels": {"Description": "Number of voxels with this label."},
    "volume_mm3": {
        "Description": "Volume: number of voxels times the volume of one.",
        "Units": "mm^3",
    },
}
"""Columns of a volumes table, as BIDS wants them described; ``index`` depends on the table."""

HEAD_COLUMNS = VOLUMES_COLUMNS | {
    "name": {
        "Description": "Structure. Intracranial: all that lies inside of the inner skull, that is "
        "brain, ventricles, fluid, vessels and what they enclose, down to where the spinal cord "
        "begins."
    },
    "percent_of_intracranial": {
        "Description": "The structure's part inside of the skull in percent of the intracranial "
        "volume; n/a if that is not known, and for structures outside of it (skin, bone, the "
        "spinal cord, ...).",
        "Units": "percent",
    },
    "note": {"Description": "Why there is no intracranial volume; n/a if there is one."},
}
"""The same of a head."""

SEGMENTATION_COLUMNS = {
    "soft_volume_mm3": {
        "Description": "Sum of the structure's probability over all voxels times the volume of "
        "one, so that a voxel on a border counts by its share. Of Intracranial the sum over its "
        "labels, less their voxels outside of the skull.",
        "Units": "mm^3",
    },
    "confidence": {
        "Description": "Expected Dice of the structure, 0 to 1, from the model's probabilities; "
        "n/a without voxels. Calibrated on images of known truth if confidence_threshold is given."
    },
    "confidence_threshold": {
        "Description": "Confidence below which a structure is flagged: 0.7, or more where images "
        "of known truth that the model was not trained on have more; n/a if the model has no "
        "calibration, or was not used as it was calibrated."
    },
    "low_confidence": {
        "Description": "Whether confidence lies below the threshold.",
        "Levels": {"yes": "look at it before using the volume", "no": "as usual"},
    },
}
"""Columns that a volumes table of a segmentation has beyond `HEAD_COLUMNS`."""


def no_intracranial_volume(title: str, facts: Mapping) -> list[Message]:
    """A line of the log if there is no intracranial volume; a warning unless that is expected."""
    from brainseg_bids.anatomy.intracranial import STRIPPED  # late: numpy

    if not (why := facts[NO_VOLUME]):
        return []
    level = logging.INFO if why == STRIPPED else logging.WARNING
    return [Message(level, f"{title}: no intracranial volume, n/a in the table: {why}")]
