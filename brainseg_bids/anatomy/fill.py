# SPDX-License-Identifier: Apache-2.0
"""Voxels without image data: fill values, NaN and infinity.

Padding, masks and distortion correction leave voxels at one constant value. If it is zero,
nothing has to be done. Other values (-32768, -1024, the maximum of the data type, the grey
middle of a masked UNI image) would distort quantiles and the outline of the head.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np
from scipy import ndimage

from brainseg_bids.anatomy.intensity import AIR_SHARE, HIGH, LOW, IntensityRange

FEWEST_SHARE = 0.001
"""Smallest fraction of voxels that is searched for fill values. The head may fill a fifth of its
image only, so fewer voxels are less than the 0.5 % that normalisation clips at either end."""

APART = AIR_SHARE
"""Smallest distance of a fill value from other values, relative to their range. At a larger
distance air would count as head. At a smaller one intensities are shifted less, and it may be the
background of an image whose zero was shifted."""

FAR = 3.0
"""As `APART`, for values that may be the zero around a masked image. Relative to the range it lies
0.0 to 0.3 below in skull-stripped T1w images, and about 1 below if CSF has half of the intensity
of white matter. At 3 the whole brain is within a quarter of the scale."""

SURROUNDING_SHARE = 0.5
"""Fraction of the voxels on the six faces of an image with one value from which this is the
background. A head touches one or two faces, and leaves more than half of their voxels to the
background."""

FEWEST_VALUES = 16
"""An image with fewer values is a drawing, without a distribution that a fill value could be apart
from."""

MOST_FILLS = 4
"""Largest number of fill values that are searched for."""

MOST_SAMPLED = 300_000


@dataclass(frozen=True)
class Fill:
    """A value that marks voxels without image data.

    Parameters
    ----------
    value : float
    share : float
        Fraction of all voxels that have it.
    """

    value: float
    share: float

    def __str__(self) -> str:
        return (
            f"{100 * self.share:.2g} % of voxels hold the fill value {self.value:g}; they count "
            "as background, and the other voxels alone set the scale of intensities. If they are "
            "image, give the image without that value."
        )


def without_fill(image: np.ndarray) -> tuple[np.ndarray, list[Fill]]:
    """Image with its fill values replaced by the background level, and the fill values found.

    Parameters
    ----------
    image : (X, Y, Z) float

    Returns
    -------
    image : (X, Y, Z) float
        The same array if there are no fill values.
    fills : list of Fill

    Examples
    --------
    >>> head = np.random.default_rng(0).gamma(2, 50, (20, 20, 20)).astype(np.float32)
    >>> head[:2] = -1024
    >>> cleaned, fills = without_fill(head)
    >>> [(fill.value, fill.share) for fill in fills], bool(cleaned.min() >= 0)
    ([(-1024.0, 0.1)], True)
    """
    fills: list[Fill] = []
    if _is_turned(image):
        cleaned, fills = without_fill(image.T)
        return cleaned.T if fills else image, fills
    gone = np.zeros(image.shape, dtype=bool)
    while len(fills) < MOST_FILLS and (found := _next_fill(image, gone)):
        value, where, same = found
        fills.append(Fill(value, same / image.size))
        gone |= where
    planes = _padding_planes(image, gone)
    fills += [Fill(value, int(where.sum()) / image.size) for value, where in planes.items()]
    if not fills:
        return image, []
    cleaned = image.copy()
    cleaned[gone] = background_level(image, gone)
    if planes:
        padding = np.logical_or.reduce(list(planes.values()))
        cleaned[padding] = _range(_sampled(image[~(gone | padding)])).low
    return cleaned, fills


def background_level(image: np.ndarray, gone: np.ndarray) -> float:
    """Intensity of air, from the voxels outside of ``gone``, (X, Y, Z) bool.

    Zero, as in magnitude images. If the image has negative values, or all values are far from
    zero, the low end of their range instead.
    """
    left = ~(gone | _rim(gone, gone)) if _is_in_blocks(gone) else ~gone
    window = _range(_sampled(image[left]))
    return 0.0 if window.low >= 0 and window.level(0.0) > -FAR else window.low


def _next_fill(image: np.ndarray, gone: np.ndarray) -> tuple[float, np.ndarray, int] | None:
    """A fill value, the voxels that are to go with it, and how many hold it."""
    on_faces = np.concatenate([image[face][~gone[face]] for face in _faces()])
    if not on_faces.size:
        return None
    values, counts = np.unique(on_faces, return_counts=True)
    # A fill touches the border; it is the lowest value there, the highest, or a frequent one. The
    # two ends come first: as long as they are not gone, air lies in the middle.
    likely = dict.fromkeys([0, len(values) - 1, *np.argsort(counts)[:-3:-1].tolist()])
    for number in likely:
        value = float(values[number])
        surrounds = counts[number] >= SURROUNDING_SHARE * on_faces.size
        if not _may_be_fill(image, value, surrounds):
            continue
        same = image == values[number]
        where = _where_to_fill(image, value, same, gone, surrounds)
        if where is not None:
            return value, where, int(np.count_nonzero(same))
    return None


def _padding_planes(image: np.ndarray, gone: np.ndarray) -> dict[float, np.ndarray]:
    """Whole outer planes that hold one value, by that value, if it is not that of the background.

    No tissue and no saturation fills a plane of an image from edge to edge with one value. So
    these are padding also where the value occurs in the head, or lies near its range.
    """
    planes: dict[float, np.ndarray] = {}
    for axis in range(3):
        for step in (1, -1):  # from either end
            along, taken = (np.moveaxis(a, axis, 0)[::step] for a in (image, gone))
            value = float(along[0].flat[0])
            if n := _leading(along, taken, value):
                mask = planes.setdefault(value, np.zeros_like(gone))
                np.moveaxis(mask, axis, 0)[::step][:n] |= ~taken[:n]
    if not planes:
        return {}
    rest = _sampled(image[~(gone | np.logical_or.reduce(list(planes.values())))])
    window = _range(rest)
    if window.high <= window.low or len(np.unique(rest)) < FEWEST_VALUES:
        return {}
    odd = {v: where for v, where in planes.items() if abs(window.level(v)) > APART}
    # Where integers wrapped round, the air seems to lie in the middle, too.
    return {} if odd and wrapped_share(np.where(gone, 0, image)) else odd


def _leading(planes: np.ndarray, gone: np.ndarray, value: float) -> int:
    """Planes from the first on that hold one value, but for what is gone."""
    n = 0
    while n < len(planes) and not gone[n].all() and ((planes[n] == value) | gone[n]).all():
        n += 1
    return n


def _may_be_fill(image: np.ndarray, value: float, surrounds: bool) -> bool:
    """A quick look at some voxels: enough of them, and neither near zero nor in between."""
    some = _sampled(image.reshape(-1), rows_of=image.shape[-1])
    others = some[some != value]
    if len(some) - len(others) < FEWEST_SHARE / 2 * len(some):
        return False
    level = _range(others).level(value)
    return value < 0 or (abs(level) > APART and (surrounds or not 0 < level < 1))


def _where_to_fill(
    image: np.ndarray, value: float, same: np.ndarray, gone: np.ndarray, surrounds: bool
) -> np.ndarray | None:
    """Voxels that hold a fill value or were mixed with it; None if it is an intensity."""
    if np.count_nonzero(same) < FEWEST_SHARE * image.size:
        return None
    # Interpolation mixes what lies beside a block with its value. What is scattered through noise
    # is beside everything.
    rim = _rim(same, gone) if _is_in_blocks(same) else np.zeros_like(same)
    rest = _sampled(image[~(same | gone | rim)])
    window = _range(rest)
    if window.high <= window.low or len(np.unique(rest)) < FEWEST_VALUES:
        return None
    level = window.level(value)
    if level > APART and surrounds:
        # Zero seems to lie in the middle, too, where bright voxels became negative.
        return None if wrapped_share(np.where(gone, 0, image)) else same
    # Below zero is no magnitude. Elsewhere zero may have been moved, as in standard scores.
    is_magnitude = window.level(0.0) < APART and not _is_standardised(image)
    zero = min(window.low, 0.0)
    if is_magnitude and zero - value > APART * window.span:
        return same | (rim & (image < zero))
    if level < -FAR:
        return same | (rim & (image < (value + window.low) / 2))
    if level > 1 + APART:
        return _above(image, value, same, gone)
    return None


def _is_standardised(image: np.ndarray) -> bool:
    """Whether the mean was taken off, so that a negative value may be what was zero."""
    some = _sampled(image.reshape(-1), rows_of=image.shape[-1]).astype(np.float64)
    return abs(some.mean()) < 0.01 * some.std()


def _above(
    image: np.ndarray, value: float, same: np.ndarray, gone: np.ndarray
) -> np.ndarray | None:
    """Voxels of a value above all others, if there is a gap below it.

    Without a gap it is saturation: receivers and conversions cut off the bright end of a
    distribution, whose other voxels come up to the value. A plane of the border all of whose
    voxels are saturated is none either: what lies beside it is mixed by interpolation.
    """
    whole_face = any(same[face].all() for face in _faces())
    rim = _rim(same, gone) if whole_face else np.zeros_like(same)
    kept = ~(same | gone | rim)
    top = float(np.max(image, where=kept, initial=-np.inf))
    window = _range(_sampled(image[kept]))
    if window.level(value) - window.level(top) <= APART:
        return None
    return same | (rim & (image > top))


def _rim(same: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """Voxels that share a face with a mask and are not taken away."""
    grown = same.copy()
    for axis in range(3):
        along, mask = np.moveaxis(grown, axis, 0), np.moveaxis(same, axis, 0)
        along[1:] |= mask[:-1]
        along[:-1] |= mask[1:]
    return grown & ~same & ~gone


def _is_in_blocks(same: np.ndarray) -> bool:
    """Whether most neighbours of a mask's voxels are in it, too; a plane's are."""
    within = across = 0
    for axis in range(3):
        mask = np.moveaxis(same, axis, 0)
        within += int(np.count_nonzero(mask[1:] & mask[:-1]))
        across += int(np.count_nonzero(mask[1:] != mask[:-1]))
    return within >= across


def _is_turned(image: np.ndarray) -> bool:
    """Whether memory is in the order of files: masks in another order cost 100 times as much."""
    return image.flags.f_contiguous and not image.flags.c_contiguous


def _faces() -> list[tuple[Any, ...]]:
    """Index of each of the six faces of a volume."""
    return [
        tuple(end if axis == a else slice(None) for a in range(3))
        for axis in range(3)
        for end in (0, -1)
    ]


def _sampled(values: np.ndarray, *, rows_of: int = 1) -> np.ndarray:
    """Evenly spread values; no column of the rows is preferred."""
    step = max(1, len(values) // MOST_SAMPLED)
    while gcd(step, rows_of) > 1:
        step += 1
    return values[::step]


def _range(values: np.ndarray) -> IntensityRange:
    if not values.size:
        return IntensityRange(0.0, 0.0)
    return IntensityRange(*np.quantile(values.astype(np.float64), [LOW, HIGH]).tolist())


# -- integers that wrapped round ------------------------------------------------------------


TYPICAL = 2 / 3
"""Fraction of negative voxels, and of the steps to them, that must look like overflow. In real
heads with simulated overflow of 0.1 to 30 % of the voxels it was 0.78 to 1.00; in the noise of a
UNI image it is 0.5."""

MOST_WRAPPED = 0.25
"""Largest fraction of voxels with overflow. A larger fraction is not the bright end of a head, but
air of an image whose zero was shifted."""


def wrapped_share(image: np.ndarray) -> float:
    """Fraction of voxels with integer overflow; 0 if the image shows no sign of it.

    A bright voxel that exceeds the data type wraps around to a large negative value. Then most
    negative voxels are far below zero, and intensities change by more than half of their range
    between such a voxel and its neighbours. If negative values are normal (UNI images, z-scores,
    ringing), most of them are close to zero and intensities change gradually.

    Parameters
    ----------
    image : (X, Y, Z) float
        Image without fill values.
    """
    low, high = float(image.min()), float(image.max())
    if low >= 0 or high < -low / 2:
        return 0.0
    negative = image < 0
    voxels = int(np.count_nonzero(negative))
    few = 1e-5 * image.size < voxels < MOST_WRAPPED * image.size
    if not few or np.count_nonzero(image < low / 2) < TYPICAL * voxels:
        return 0.0
    steps = []
    for axis in range(3):
        along, sign = np.moveaxis(image, axis, 0), np.moveaxis(negative, axis, 0)
        crossing = sign[1:] != sign[:-1]
        steps.append(np.abs(along[1:][crossing] - along[:-1][crossing]))
    jumps = np.concatenate(steps) > (high - low) / 2
    return voxels / image.size if jumps.size and jumps.mean() > TYPICAL else 0.0


# -- voxels that are no numbers -------------------------------------------------------------


def with_finite_background(image: np.ndarray) -> np.ndarray:
    """Image whose NaN and infinite voxels outside the head are set to the background level.

    Such voxels are outside the head if they are connected to the border of the image through
    others of their kind, or lie within air. A whole plane of them with head on both sides is not.

    Parameters
    ----------
    image : (X, Y, Z) float

    Returns
    -------
    (X, Y, Z) float
        The same array if all voxels are finite.

    Raises
    ------
    ValueError
        If there are such voxels inside the head; the message gives their number.

    Examples
    --------
    >>> head = np.random.default_rng(0).gamma(2, 50, (9, 9, 9))
    >>> head[0] = np.nan
    >>> bool(np.isfinite(with_finite_background(head)).all())
    True
    >>> head[4, 4, 4] = np.inf
    >>> with_finite_background(head)
    Traceback (most recent call last):
    ValueError: 1 voxels inside the head are NaN or infinite
    """
    if _is_turned(image):
        return with_finite_background(image.T).T
    bad = ~np.isfinite(image)
    n_bad = int(np.count_nonzero(bad))
    if not n_bad:
        return image
    if n_bad == image.size:
        raise ValueError(f"all {n_bad} voxels are NaN or infinite")
    finite = np.where(bad, 0, image)
    window = _range(_sampled(image[~bad]))
    bright = ~bad & (finite > window.low + APART * window.span)
    inside = _within_tissue(bad, bright) | _between_planes(bad, bright)
    if inside.any():
        raise ValueError(f"{np.count_nonzero(inside)} voxels inside the head are NaN or infinite")
    finite[bad] = background_level(finite, bad)
    return finite


def _within_tissue(bad: np.ndarray, bright: np.ndarray) -> np.ndarray:
    """Connected parts of a mask, most of whose neighbours are bright; none at the border."""
    parts, n = ndimage.label(bad)
    counts = np.zeros((2, n + 1))
    for axis in range(3):
        part, is_bad, is_bright = (np.moveaxis(a, axis, 0) for a in (parts, bad, bright))
        for here, there in ((slice(1, None), slice(None, -1)), (slice(None, -1), slice(1, None))):
            at_rim = is_bad[here] & ~is_bad[there]
            owners = part[here][at_rim]
            counts[0] += np.bincount(owners, minlength=n + 1)
            counts[1] += np.bincount(owners, is_bright[there][at_rim], minlength=n + 1)
    chosen = counts[1] > counts[0] / 2
    for face in _faces():
        chosen[np.unique(parts[face])] = False
    chosen[0] = False
    return chosen[parts]


def _between_planes(bad: np.ndarray, bright: np.ndarray) -> np.ndarray:
    """Voxels of whole planes of a mask that have bright planes on both sides: slices lost."""
    lost = np.zeros_like(bad)
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        with_head = np.flatnonzero(bright.any(axis=others))
        empty = np.flatnonzero(bad.all(axis=others))
        if with_head.size:
            between = empty[(empty > with_head[0]) & (empty < with_head[-1])]
            np.moveaxis(lost, axis, 0)[between] = True
    return lost
