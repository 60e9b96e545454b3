# SPDX-License-Identifier: Apache-2.0
"""Priors as SynthSeg makes them, to compare with ours.

Billot et al. 2023, Medical Image Analysis 86, and the released code's ``estimate_priors``: each
image is clipped to its 2nd..98th percentile and taken to 0..255; of each class the median and
1.4826 times the median absolute deviation; over images the mean and the standard deviation (of
the population) of both. Zeros count in the background only. A class that an image lacks counts
as zero there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from brainseg_bids.contrast.weighted import weighted_median

MedianMad = tuple[float, float]


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


def synthseg_prior(
    statistics: Mapping[str, Mapping[str, MedianMad]],
    *,
    classes: Mapping[str, Sequence[str]] = SYNTHSEG_CLASSES,
    voxels: Mapping[str, Mapping[str, int]] | None = None,
    absent_as_zero: bool = True,
) -> SynthsegPrior:
    """Pool medians and deviations of images as SynthSeg does.

    Parameters
    ----------
    statistics : mapping of image to mapping of name to (median, deviation)
        After its scaling to 0..255. A name is a class's (its voxels were taken together, as
        SynthSeg does) or a label's: then the class has the median over its labels.
    classes : mapping of class to names of labels
    voxels : mapping of image to mapping of label to int, optional
        Weights of that median; equal if not given.
    absent_as_zero : bool
        As SynthSeg does. False: an image that lacks a class leaves it alone.

    Raises
    ------
    ValueError
        If there is no image, or a name is neither a class nor one of a class's labels.

    Examples
    --------
    >>> made = synthseg_prior({"a": {"skin": (100.0, 10.0)}, "b": {"skin": (120.0, 14.0)}},
    ...     classes={"skin": ("Skin",)})
    >>> made.means.ravel().tolist(), made.stds.ravel().tolist()
    ([110.0, 10.0], [12.0, 2.0])
    """
    if not statistics:
        raise ValueError("there are no images to make a prior of. Give at least one.")
    known = set(classes).union(*classes.values())
    for image, found in statistics.items():
        if odd := sorted(set(found) - known):
            raise ValueError(f"{image}: {odd[0]} belongs to no class. Add it to one, or drop it.")
    weights = voxels or {}
    values = np.array(
        [
            [
                _of_class(name, labels, found, weights.get(image, {}))
                for name, labels in classes.items()
            ]
            for image, found in sorted(statistics.items())
        ]
    )
    has = np.isfinite(values[..., 0])
    if absent_as_zero:
        values = np.nan_to_num(values)
        counted = np.ones_like(has)
    else:
        counted = has
    number = np.maximum(counted.sum(axis=0), 1)[:, None]
    values = np.where(counted[..., None], values, 0.0)
    mean = values.sum(axis=0) / number
    squared = np.where(counted[..., None], (values - mean) ** 2, 0.0).sum(axis=0) / number
    both = np.stack([mean, np.sqrt(squared)])
    return SynthsegPrior(tuple(classes), both[..., 0], both[..., 1], has.sum(axis=0))


def _of_class(
    name: str,
    labels: Sequence[str],
    found: Mapping[str, MedianMad],
    voxels: Mapping[str, int],
) -> tuple[float, float]:
    """Median and deviation of a class in one image; NaN where it is not."""
    if name in found:
        return tuple(found[name])
    there = [label for label in labels if label in found]
    if not there:
        return (np.nan, np.nan)
    weights = np.array([float(voxels.get(label, 1)) for label in there])
    return tuple(weighted_median(np.array([found[label] for label in there]), weights))
