# SPDX-License-Identifier: Apache-2.0
"""Checks of images before they are pooled into one prior: same kind, meaningful zero, outliers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from brainseg_bids.anatomy.labels import Label, LabelTable
from brainseg_bids.contrast import joint
from brainseg_bids.contrast.alignment import FEWEST
from brainseg_bids.contrast.measured import (
    ContrastStatistics,
)

NEGATIVE_FRAC = 0.01
"""Location below zero, relative to the head's 99.5th percentile, from which zero does not stand
for the absence of signal. Noise and interpolation shift dark labels slightly below zero."""


UNLIKE_VOXELS = 1.5
"""Ratio of voxel sizes along an axis from which images are unlike."""


def check_statistics(
    statistics: Mapping[str, ContrastStatistics], table: LabelTable, subjects: Mapping[str, str]
) -> None:
    """Raise an error if images cannot be pooled.

    Raises
    ------
    ValueError
        If there are no images, or an image has another label table, no subject, or no measured
        label.
    """
    if not statistics:
        raise ValueError("there are no images to pool. Run --stages contrast first.")
    for image in sorted(statistics):
        found = statistics[image]
        odd = [name for name in found.labels if name not in table]
        if found.table != table.name or odd:
            raise ValueError(
                f"{image}: statistics for another label table ({found.table}"
                f"{f', with {odd[0]}' if odd else ''}), not {table.name}. "
                "Run --stages contrast again with labels of that table."
            )
        if image not in subjects:
            raise ValueError(f"{image}: its subject is not given. Name it.")
        if not any(label.source == "measured" for label in found.labels.values()):
            raise ValueError(f"{image}: no label was measured in it. Check its label map.")


def of_one_kind(
    statistics: dict[str, ContrastStatistics], name: str
) -> tuple[dict[str, ContrastStatistics], list[str]]:
    """Images of the more frequent kind, ratio or magnitude, and a warning for each other image.

    Raises
    ------
    ValueError
        If there are as many ratio images as magnitude images.
    """
    ratio = [image for image, found in statistics.items() if is_ratio_image(found)]
    if 2 * len(ratio) == len(statistics):
        raise ValueError(
            f"contrast {name}: {len(ratio)} images are ratios (MP2RAGE UNI) and as many are not, "
            f"such as {ratio[0]}. Pool them as two contrasts."
        )
    is_ratio = 2 * len(ratio) > len(statistics)
    chosen = {
        image: found for image, found in statistics.items() if is_ratio_image(found) == is_ratio
    }
    kind = "a ratio (MP2RAGE UNI)" if is_ratio else "a magnitude image"
    left = sorted(set(statistics) - set(chosen))
    return chosen, [
        f"{image} was left out: it is not {kind} as most images of {name} are. "
        "Check its metadata, or give it a contrast of its own."
        for image in left
    ]


def with_a_zero(
    chosen: dict[str, ContrastStatistics], table: LabelTable
) -> tuple[dict[str, ContrastStatistics], list[str]]:
    """Images without negative brain labels, and a warning for each other image.

    A negative magnitude means that zero does not stand for the absence of signal.

    Raises
    ------
    ValueError
        If no image is left.
    """
    below = {image: lowest for image, found in chosen.items() if (lowest := _below(found, table))}
    if not below:
        return chosen, []
    remedy = "Give the image as it was before normalisation."
    if len(below) == len(chosen):
        image, label = next(iter(below.items()))
        raise ValueError(
            f"{image}: {label} is below zero on average, as after subtraction of a mean"
            f"{' (also in all other images)' if len(chosen) > 1 else ''}. {remedy}"
        )
    left = [
        f"{image} was left out: {label} is below zero on average, as after subtraction of a mean. "
        f"{remedy}"
        for image, label in below.items()
    ]
    return {image: found for image, found in chosen.items() if image not in below}, left


def _below(image: ContrastStatistics, table: LabelTable) -> str:
    """Darkest label of the brain if that is below zero, of a magnitude image."""
    if is_ratio_image(image):
        return ""
    least = -NEGATIVE_FRAC * max(image.head_high, 0.0)
    # The location is without neighbours' share, by which a dark label may fall below zero.
    brightness = {
        name: label.median
        for name, label in image.labels.items()
        if table[name].is_brain
        and label.source == "measured"
        and max(label.location, label.median) < least
    }
    return min(brightness, key=lambda name: brightness[name], default="")


def is_ratio_image(image: ContrastStatistics) -> bool:
    """Whether an image is a ratio of two inversion images, as MP2RAGE's UNI."""
    return image.noise.kind == "ratio"


def mixed_voxels(chosen: Mapping[str, ContrastStatistics]) -> list[str]:
    """A warning if voxels of images differ by more than `UNLIKE_VOXELS` along an axis.

    Medians along each axis are then of no image: of slices along x and slices along z they are
    thick along both.
    """
    sizes = np.array([found.voxel_size_mm for found in chosen.values()])
    smallest, largest = sizes.min(axis=0), sizes.max(axis=0)
    axis = int(np.argmax(largest / smallest))
    if largest[axis] <= UNLIKE_VOXELS * smallest[axis]:
        return []
    names = list(chosen)
    ends = (names[int(pick(sizes[:, axis]))] for pick in (np.argmin, np.argmax))
    shown = " and ".join(
        f"{' x '.join(f'{mm:.2g}' for mm in chosen[name].voxel_size_mm)} mm ({name})"
        for name in ends
    )
    return [
        f"Images of unlike voxels are pooled, such as {shown}, along axes in the order of RAS: "
        "voxels and resolution of the prior are medians of each axis. Separate the images with "
        "--contrast-by, for instance by acq."
    ]


def few_labels(images: Iterable[str], labels: Sequence[Label], location: np.ndarray) -> list[str]:
    """Warnings about images in which fewer than `FEWEST` brain labels were measured.

    Parameters
    ----------
    images : iterable of n str
    labels : sequence of p Label
    location : (n, p) float
        NaN if not measured.
    """
    brain = [label.is_brain for label in labels]
    counts = np.isfinite(location[:, brain]).sum(axis=1)
    return [
        f"{image}: only {count} labels of the brain were measured, so its gain is uncertain. "
        "Check its label map."
        for image, count in zip(images, counts, strict=True)
        if count < FEWEST and len(counts) > 1
    ]


def outliers(images: list[str], law: joint.Joint) -> list[str]:
    """Warnings about images whose locations are outliers, if there are at least three images."""
    if len(images) < 3:
        return []
    return [
        f"{image}: the intensities of its labels are {far:.1f} times as far from those of the "
        f"other images as expected, so its weight is {(joint.FAR / far) ** 2:.2f}. Check its "
        "segmentation."
        for image, far in zip(images, law.outlyingness, strict=True)
        if far > joint.OUTLYING
    ]
