# SPDX-License-Identifier: Apache-2.0
"""Skull-stripped images: the background around the brain is constant."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from brainseg_bids.anatomy.fill import without_fill
from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import BRAIN_MAPPINGS

CELL_MM = 2.5
"""Approximate distance of sampled voxels if voxels are smaller."""
BEYOND_MM = 8.0
"""Distance from the brain in which other tissue is allowed: brain masks are often too large, and
there are fluid and meninges."""
SIGNAL_SHARE = 0.01
"""Difference from the background, relative to the intensity range, above which a voxel is
signal."""
CONSTANT_SHARE = 0.1
"""Smallest fraction of voxels with the same value in a skull-stripped image."""
HEAD_SHARE = 0.15
"""Volume of signal beyond the brain, relative to the brain, below which an image is
skull-stripped. In whole heads, skin and fat alone are more than one half."""
LEAST_BRAIN_ML = 20.0
"""Smallest volume of brain for which this can be decided."""


def is_stripped(image: np.ndarray, brain: np.ndarray, grid: Grid) -> bool:
    """Whether the image is skull-stripped.

    It is if its background has one value, and almost no other voxel lies further than
    `BEYOND_MM` from the brain. Images with noise around the head, with a background set to zero,
    and defaced images are not skull-stripped.

    Parameters
    ----------
    image : (X, Y, Z) float
        Image of any contrast; fill values, NaN and infinity count as background.
    brain : (X, Y, Z) bool
        Brain with the fluid in and around it, see `brain_and_fluid`; its border may be wrong by
        some millimetres.
    grid : Grid
        Grid of both.

    Examples
    --------
    >>> away = np.linalg.norm(np.indices((60, 60, 60)) - 29.5, axis=0) * 4
    >>> grid = Grid((60, 60, 60), np.diag([4, 4, 4, 1]))
    >>> head = np.where(away < 100, 50.0, 0.0); brain = away < 70
    >>> is_stripped(head, brain, grid), is_stripped(np.where(brain, head, 0), brain, grid)
    (False, True)
    """
    if np.count_nonzero(brain) * grid.voxel_volume_mm3 < 1000 * LEAST_BRAIN_ML:
        return False
    steps = [max(1, int(CELL_MM // size)) for size in grid.voxel_size_mm]
    some = tuple(slice(None, None, step) for step in steps)
    # Padding by a fill value is neither image beyond the brain nor a part of its range.
    (image, _), brain = without_fill(image[some]), brain[some]
    background, span = background_of(image)
    if background is None:
        return False
    sampling_mm = [size * step for size, step in zip(grid.voxel_size_mm, steps, strict=True)]
    away_mm = ndimage.distance_transform_edt(~brain, sampling=sampling_mm)
    beyond = image[away_mm > BEYOND_MM]
    # What is not finite compares as False: it is background.
    signal = np.isfinite(beyond) & (np.abs(beyond - background) > SIGNAL_SHARE * span)
    return bool(np.count_nonzero(signal) < HEAD_SHARE * np.count_nonzero(brain))


def brain_and_fluid(labels: LabelMap) -> np.ndarray:
    """Mask of brain, ventricles and CSF around the brain, (X, Y, Z) bool."""
    return np.isin(
        labels.voxels, [lab.index for lab in labels.table if lab.mapping in BRAIN_MAPPINGS]
    )


def brain_alone(labels: LabelMap) -> LabelMap:
    """Label map with brain and ventricles only, for skull-stripped images.

    The fluid around the brain is left out as well, since the mask of the skull-stripping cuts it.
    """
    codes = [label.index for label in labels.table if label.is_brain]
    voxels = np.where(np.isin(labels.voxels, codes), labels.voxels, 0)
    return LabelMap(voxels.astype(labels.voxels.dtype), labels.grid, labels.table)


def background_of(image: np.ndarray) -> tuple[float | None, float]:
    """Constant value of the background, or None if it is not constant, and the range of the image.

    NaN and infinite voxels are background, with the lowest finite value.

    Examples
    --------
    >>> background, span = background_of(np.array([7.0, 7, 7, 9, 10]))
    >>> background, round(span)
    (7.0, 3)
    """
    some = image.reshape(-1)[:: max(1, image.size // 1_000_000)]
    finite = np.isfinite(some)
    lost, some = 1 - float(finite.mean()), some[finite]
    if not len(some):
        return None, 0.0
    low, high = np.quantile(some, [0.0, 0.999])
    span = float(high - low)
    if span <= 0:
        return None, 0.0
    if lost >= CONSTANT_SHARE:  # a background of NaN
        return float(low), span
    # Interpolation leaves a constant background constant but for rounding.
    steps = np.rint((np.clip(some, low, high) - low) * (1000 / span)).astype(np.int64)
    counts = np.bincount(steps)
    usual = int(counts.argmax())
    if counts[usual] < CONSTANT_SHARE * len(some):
        return None, span
    return float(np.median(some[steps == usual])), span
