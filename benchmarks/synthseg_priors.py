# SPDX-License-Identifier: Apache-2.0
"""Priors as SynthSeg makes them, to compare with ours.

Billot et al. 2023, Medical Image Analysis 86, and the released code's ``estimate_priors``: each
image is clipped to its 2nd..98th percentile and taken to 0..255; of each class the median and
1.4826 times the median absolute deviation; over images the mean and the standard deviation (of
the population) of both. Zeros count in the background only. An image that lacks a class leaves
it alone (in SynthSeg it counts as zero).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.contrast.robust import median_mad
from brainseg_bids.contrast.weighted import weighted_median

PERCENTILES = (2.0, 98.0)
"""Of an image, which become 0 and 255."""


def _sides(*names: str) -> tuple[str, ...]:
    return tuple(f"{side}-{name}" for name in names for side in ("Left", "Right"))


SYNTHSEG_CLASSES: dict[str, tuple[str, ...]] = {
    "background": ("Unknown",),
    "csf": (
        *("3rd-Ventricle", "4th-Ventricle", "CSF", "5th-Ventricle"),
        *_sides("Lateral-Ventricle", "Inf-Lat-Vent"),
    ),
    "white matter": (*_sides("Cerebral-White-Matter"), "Optic-Chiasm"),
    "grey matter": _sides(
        "Cerebral-Cortex", "Caudate", "Hippocampus", "Amygdala", "Accumbens-area"
    ),
    "cerebellar white matter": _sides("Cerebellum-White-Matter"),
    "cerebellar cortex": _sides("Cerebellum-Cortex"),
    "thalamus": _sides("Thalamus"),
    "putamen": _sides("Putamen"),
    "pallidum": _sides("Pallidum"),
    "ventral dc": _sides("VentralDC"),
    "lesion": _sides("Lesion"),
    "vessel": _sides("vessel"),
    "choroid plexus": _sides("choroid-plexus-lateral-ventricle", "choroid-plexus-inf-lat-vent"),
    "brain stem": ("Brain-Stem",),
    "artery": ("Artery",),
    "eyes": ("Eyes",),
    "other tissue": ("Other-Tissues",),
    "muscle": ("Rectus-Muscles",),
    "mucosa": ("Mucosa",),
    "skin": ("Skin",),
    "spinal cord": ("Spinal-Cord",),
    "vein": ("Vein",),
    "cortical bone": ("Bone-Cortical",),
    "cancellous bone": ("Bone-Cancellous",),
    "optic nerve": ("Optic-Nerve",),
}
"""The 25 classes of its contrast-specific models, names of ``fullhead``."""


@dataclass(frozen=True, eq=False)
class SynthsegPrior:
    """What SynthSeg's generator takes as ``prior_means`` and ``prior_stds``.

    Parameters
    ----------
    classes : tuple of n str
    means : (2, n) float
        Mean and standard deviation over images of the median within one image, 0..255.
    stds : (2, n) float
        The same of 1.4826 times the median absolute deviation.
    images : (n,) int
        That have the class.
    """

    classes: tuple[str, ...]
    means: np.ndarray
    stds: np.ndarray
    images: np.ndarray


def synthseg_statistics(image: np.ndarray, labels: LabelMap) -> dict[str, tuple[float, float]]:
    """Median and 1.4826 MAD of the voxels of each label, image at 0..255; (0, 0) if all are 0."""
    low, high = np.nanpercentile(image, PERCENTILES)
    scaled = np.clip(image, low, high)
    scaled = (scaled - low) / (high - low) * 255 if high > low else np.zeros_like(scaled)
    found = {}
    for code in np.unique(labels.voxels).tolist():
        values = scaled[labels.voxels == code]
        values = values[np.isfinite(values)]
        values = values[values > 0] if code else values
        found[labels.table[code].name] = median_mad(values) if len(values) else (0.0, 0.0)
    return found


def synthseg_prior(statistics: Mapping[str, Mapping[str, tuple[float, float]]]) -> SynthsegPrior:
    """Pool medians and deviations of images as SynthSeg does.

    Parameters
    ----------
    statistics : mapping of image to mapping of label to (median, deviation)
        Of `synthseg_statistics`. A class has the median over its labels.

    Examples
    --------
    >>> made = synthseg_prior({"a": {"Skin": (100.0, 10.0)}, "b": {"Skin": (120.0, 14.0)}})
    >>> skin = made.classes.index("skin")
    >>> made.means[:, skin].tolist(), made.stds[:, skin].tolist(), int(made.images[skin])
    ([110.0, 10.0], [12.0, 2.0], 2)
    """
    values = np.array(
        [
            [_of_class(labels, found) for labels in SYNTHSEG_CLASSES.values()]
            for _, found in sorted(statistics.items())
        ]
    )
    has = np.isfinite(values[..., 0])
    number = np.maximum(has.sum(axis=0), 1)[:, None]
    values = np.where(has[..., None], values, 0.0)
    mean = values.sum(axis=0) / number
    squared = np.where(has[..., None], (values - mean) ** 2, 0.0).sum(axis=0) / number
    both = np.stack([mean, np.sqrt(squared)])
    return SynthsegPrior(tuple(SYNTHSEG_CLASSES), both[..., 0], both[..., 1], has.sum(axis=0))


def _of_class(
    labels: tuple[str, ...], found: Mapping[str, tuple[float, float]]
) -> tuple[float, float]:
    """Median and deviation of a class in one image; NaN where it is not."""
    there = [found[label] for label in labels if label in found]
    if not there:
        return (np.nan, np.nan)
    return tuple(weighted_median(np.array(there), np.ones(len(there))))
