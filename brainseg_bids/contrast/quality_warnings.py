# SPDX-License-Identifier: Apache-2.0
"""Quality warnings about an image, its label map and its noise, as sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from brainseg_bids.anatomy.cohort import structures
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.anatomy.plausibility import volume_words
from brainseg_bids.contrast.alignment import RATIO_RANGES
from brainseg_bids.contrast.interior import FEWEST_VOXELS
from brainseg_bids.contrast.measured import MASKED_SHARE, LabelStatistics, NoiseLaw
from brainseg_bids.units import listed

INTEGER_LIMITS = (32767.0, 65535.0)

SPIKE_SHARE = 1e-3
"""Fraction of voxels with the highest value above which an image counts as clipped."""

FEW_VALUES = 32

EMPTY_SHARE = 0.3


def of_image(image: np.ndarray) -> Iterator[str]:
    """Warnings about the intensities of an image.

    Parameters
    ----------
    image : (X, Y, Z) float

    Examples
    --------
    >>> print(*of_image(np.linspace(-0.1, 1, 1100).reshape(11, 10, 10)))
    9.1 % of the voxels are negative.
    """
    finite = np.isfinite(image)
    lost = image.size - int(np.count_nonzero(finite))
    if lost:
        yield f"{lost} voxels are NaN or infinite; they are left out."
        image = image[finite]
    negative = np.count_nonzero(image < 0) / image.size
    if negative:
        share = f"{100 * negative:.1f} %" if negative >= 5e-4 else "Fewer than 0.1 %"
        yield f"{share} of the voxels are negative."
    low, high = float(image.min()), float(image.max())
    some = image.reshape(-1)[:: max(1, image.size // 500_000)]
    values = np.unique(some)
    top = np.count_nonzero(image == high) / image.size
    whole = bool((values == np.rint(values)).all())
    if whole and high in INTEGER_LIMITS and top > 1e-5:
        yield (
            f"The highest value is {high:g}, the maximum of an integer type: brighter voxels may "
            "have been clipped."
        )
    elif top > SPIKE_SHARE and len(values) > 2:
        share = f"{100 * top:.1f} %"
        yield f"{share} of the voxels have the highest value, {high:g}: the image was clipped."
    if whole and low <= -32767:
        yield f"The lowest value is {low:g}: integers have overflowed."
    if len(values) < FEW_VALUES:
        yield f"There are only {len(values)} different values."


def of_stripped(labels: LabelMap, stated: bool | None, *, seen: bool) -> Iterator[str]:
    """Warnings about a skull-stripped image: labels left out, and wrong metadata.

    Parameters
    ----------
    labels : LabelMap
        All labels, including those outside of the brain.
    stated : bool or None
        ``SkullStripped`` of the metadata.
    seen : bool
        Whether the intensities show that the image is skull-stripped.
    """
    left_out = [
        f"{labels.table[code].name} ({volume_words(mm3 / 1000)})"
        for code, mm3 in sorted(labels.volumes_mm3().items(), key=lambda item: -item[1])
        if code and mm3 and not labels.table[code].is_brain
    ]
    what = f": {listed(left_out)} left out" if left_out else ""
    yield f"The image is skull-stripped, so the brain alone is measured{what}."
    if seen and stated is False:
        yield "SkullStripped in its metadata is false, and the image shows no head. Correct it."
    elif stated and not seen:
        yield "SkullStripped in its metadata is true, but there is image around the brain."


def of_labels(
    table: LabelTable,
    described: Mapping[str, LabelStatistics],
    image: np.ndarray,
    indices: np.ndarray,
    *,
    brain_alone: bool = False,
) -> Iterator[str]:
    """Warnings about the label map and its position on the image.

    Parameters
    ----------
    table : LabelTable
    described : dict of str to LabelStatistics
        Labels of the label map.
    image, indices : (X, Y, Z)
        Image and class indices, cropped to the head; class index 0 is air.
    brain_alone : bool
        Whether only labels of the brain are expected.
    """
    present = {table[name].index for name in described if name in table}
    present = {code for code in present if described[table[code].name].voxels > 0}
    try:
        lacking = [
            s.name
            for s in structures(table)
            if s.core
            and not present & set(s.codes)
            and (table[s.codes[0]].is_brain or not brain_alone)
        ]
    except ValueError:  # a table of the user's own: nobody knows what a head has to have
        lacking = []
    if lacking:
        yield f"The label map lacks {len(lacking)} core labels: {listed(lacking)}."
    few = [n for n, s in described.items() if n in table and table[n].index != 0]
    few = [n for n in few if described[n].interior_voxels < FEWEST_VOXELS]
    if few:
        yield f"Fewer than {FEWEST_VOXELS} voxels are away from borders: {listed(few)}."
    inside = image[indices > 0]
    inside = inside[:: max(1, len(inside) // 500_000)]
    lowest = float(np.nanmin(image))
    empty = float(np.mean(inside == lowest))
    if empty > EMPTY_SHARE:
        yield (
            f"{100 * empty:.0f} % of the labelled voxels are empty in the image ({lowest:g}): "
            "the label map lies partly outside it, or the image was stripped or cropped."
        )


def of_noise(
    noise: NoiseLaw, in_tissue: float, *, ratio: bool, masked_share: float
) -> Iterator[str]:
    """Warnings about the noise of an image.

    Parameters
    ----------
    noise : NoiseLaw
    in_tissue : float
        Standard deviation of the noise within tissue, in units of the image.
    ratio : bool
        Whether the image is a ratio, as MP2RAGE's UNI.
    masked_share : float
        Fraction of the background that is constant.
    """
    if ratio:
        if (noise.low, noise.high) not in RATIO_RANGES:
            yield (
                f"Its values, {noise.low:g} to {noise.high:g}, are an unusual range of a ratio, "
                "and were taken for UNI of -0.5 to +0.5. Convert it to 0 to 4095 or -0.5 to 0.5."
            )
        return
    if noise.voxels == 0:
        why = "is constant" if masked_share > MASKED_SHARE else "cannot be used"
        yield f"The background {why}: noise was measured within tissue."
    elif in_tissue > 0 and not 1 / 3 < noise.sigma / in_tissue < 3:
        yield (
            f"Noise in the background ({noise.sigma:.3g}) and within tissue ({in_tissue:.3g}) "
            "differ: the image was filtered, or coils were combined."
        )
