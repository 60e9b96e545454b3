# SPDX-License-Identifier: Apache-2.0
"""Cuts through an image and its labels in world millimetres, coloured and laid out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from brainseg_bids.anatomy.grid import Grid, triple
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.reports.groups import BRAIN, CSF, group_of_mapping, shown_labels

OPACITY = 0.5
"""Share of the label's colour in a filled pixel; the rest is the image beneath."""
WIDTH_PX = 1600
MARGIN_PX = 44
"""Left of the tiles, for the names of the planes."""
BACKGROUND = (11, 13, 16)

STEPS = ((0.46, 0.73), (0.34, 0.72), (0.18, 0.58))
"""Six cuts from one end of the brain to the other, along each axis: near the midline and beside
it; behind and in front; through the orbits and the ventricles."""

_MARGIN_MM, _SMALLEST_VIEW_MM = 6.0, 100.0
_HEADROOM = 0.08  # keeps white matter in a T1w picture short of white
WHITE_MATTER, NEAR_PX = 2, 6  # code of BIDS; the cortex and as much again
# Pixels lie this far off voxel borders, so that a border belongs to the same voxel
# whichever way the file's axes run.
_NUDGE_MM = 1.7e-4


@dataclass(frozen=True)
class Plane:
    """One of the three views: world axis cut, and the axes drawn to the right and upwards."""

    name: str
    axis: int
    right: int
    up: int
    ends: tuple[str, str]


PLANES = (
    Plane("Sagittal", 0, 1, 2, ("P", "A")),
    Plane("Coronal", 1, 0, 2, ("L", "R")),
    Plane("Axial", 2, 0, 1, ("L", "R")),
)
SIX_PLANES = tuple(plane for plane in PLANES for _ in range(2))
"""Plane of each cut of `STEPS`."""


# -- where to cut -------------------------------------------------------------------------


def view_mm(labels: LabelMap) -> np.ndarray:
    """World box to show, (3, 2) mm: what is labelled and a margin, within the image."""
    whole = _corners_mm(labels.grid)
    whole = np.stack([whole.min(axis=1), whole.max(axis=1)], axis=1)
    ends = _ends_mm(labels, [label.index for label in shown_labels(labels.table)])
    if ends is None:
        return whole
    half_voxel = np.abs(labels.grid.affine[:3, :3]).sum(axis=1) / 2
    low, high = ends.min(axis=1) - half_voxel, ends.max(axis=1) + half_voxel
    # A failed segmentation may be a few voxels; the head around it tells why.
    short = np.maximum(0, _SMALLEST_VIEW_MM - (high - low)) / 2
    low, high = low - short - _MARGIN_MM, high + short + _MARGIN_MM
    return np.stack([np.maximum(low, whole[:, 0]), np.minimum(high, whole[:, 1])], axis=1)


def cut_positions(
    labels: LabelMap, steps: Sequence[Sequence[float]], box_mm: np.ndarray
) -> list[list[float]]:
    """World coordinates of the cuts along R, A, S.

    ``steps`` are those of each axis in 0..1, from one end of the brain to the other.
    """
    shown = shown_labels(labels.table)
    brain = [label.index for label in shown if label.is_brain]
    ends = _ends_mm(labels, brain)
    if ends is None:
        ends = _ends_mm(labels, [label.index for label in shown])
    if ends is None:
        low, high = box_mm[:, 0], box_mm[:, 1]
    else:
        # Percentiles: a stray voxel far away must not move the cuts out of the brain.
        low, high = np.percentile(ends, 1, axis=1), np.percentile(ends, 99, axis=1)
    return [
        [round(float(low[axis] + step * (high[axis] - low[axis])), 1) for step in steps[axis]]
        for axis in range(3)
    ]


def _ends_mm(labels: LabelMap, codes: list[int]) -> np.ndarray | None:
    """World positions of the lowest and highest wanted voxel of each column, (3, n), or None.

    Extremes along any direction are among them, for oblique grids too.
    """
    wanted = np.zeros(max(int(labels.table.codes[-1]), 0) + 1, dtype=bool)
    wanted[codes] = True
    mask = np.empty_like(labels.voxels, dtype=bool)
    # Slab by slab: indexing with the whole array would first widen it to 8 bytes a voxel.
    for out, slab in zip(slabs(mask), slabs(labels.voxels), strict=True):
        out[...] = wanted[slab]
    grid, mask = labels.grid.to_ras(), labels.grid.array_to_ras(mask)
    i, j = np.nonzero(mask.any(axis=2))
    if not i.size:
        return None
    lowest = mask.argmax(axis=2)[i, j]
    highest = mask.shape[2] - 1 - mask[:, :, ::-1].argmax(axis=2)[i, j]
    voxels = np.concatenate([[i, j, lowest], [i, j, highest]], axis=1)
    return grid.affine[:3, :3] @ voxels + grid.affine[:3, 3:]


def slabs(array: np.ndarray) -> np.ndarray:
    """View whose first axis is the one that is slowest in memory."""
    return np.moveaxis(array, int(np.argmax(np.abs(array.strides))), 0)


def _corners_mm(grid: Grid) -> np.ndarray:
    corners = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in grid.shape])).reshape(3, -1)
    return grid.affine[:3, :3] @ corners + grid.affine[:3, 3:]


def box_voxels(grid: Grid, box_mm: np.ndarray, margin_vox: int = 0) -> tuple[slice, slice, slice]:
    """Voxels that a world box touches, and some more on each side."""
    corners = np.array(np.meshgrid(*box_mm)).reshape(3, -1)
    inverse = np.linalg.inv(grid.affine)
    at = inverse[:3, :3] @ corners + inverse[:3, 3:] + 0.5
    first = np.maximum(np.floor(at.min(axis=1)).astype(int) - margin_vox, 0)
    last = np.minimum(np.ceil(at.max(axis=1)).astype(int) + margin_vox, grid.shape)
    return triple(slice(int(a), int(b)) for a, b in zip(first, last, strict=True))


# -- one cut ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cut:
    """Sampled plane, all (height, width).

    ``grey`` is interpolated; ``nearest`` and ``codes`` are of one voxel each.
    """

    grey: np.ndarray
    nearest: np.ndarray
    codes: np.ndarray
    inside: np.ndarray


def take_cut(
    image: np.ndarray,
    labels: LabelMap,
    plane: Plane,
    at_mm: float,
    box_mm: np.ndarray,
    px_per_mm: float,
) -> Cut:
    """Sample a world plane: intensities between voxels, labels never."""
    at = _at_voxels(labels.grid, plane, at_mm, box_mm, px_per_mm)
    voxel, inside = _nearest(at, labels.grid)
    grey = ndimage.map_coordinates(image, at, order=1, mode="nearest", output=np.float32)
    return Cut(grey, image[voxel], np.where(inside, labels.voxels[voxel], 0), inside)


def take_codes(
    labels: LabelMap, plane: Plane, at_mm: float, box_mm: np.ndarray, px_per_mm: float
) -> np.ndarray:
    """Codes on a world plane, (height, width); 0 outside."""
    at = _at_voxels(labels.grid, plane, at_mm, box_mm, px_per_mm)
    voxel, inside = _nearest(at, labels.grid)
    return np.where(inside, labels.voxels[voxel], 0)


def _nearest(at: np.ndarray, grid: Grid) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Indices of the voxels that positions (3, h, w) are in, and whether they are in any."""
    last = np.array(grid.shape)[:, None, None] - 1
    inside = ((at >= -0.5) & (at <= last + 0.5)).all(axis=0)
    return tuple(np.clip(np.floor(at + 0.5).astype(np.intp), 0, last)), inside


def _at_voxels(
    grid: Grid, plane: Plane, at_mm: float, box_mm: np.ndarray, px_per_mm: float
) -> np.ndarray:
    """Voxel coordinates of a world plane's pixels, (3, height, width)."""
    width, height = tile_size(plane, box_mm, px_per_mm)
    to_voxel = np.linalg.inv(grid.affine)
    world = np.full(3, _NUDGE_MM)
    world[plane.axis] += at_mm
    world[plane.right] += box_mm[plane.right, 0]
    world[plane.up] += box_mm[plane.up, 1]
    start = to_voxel[:3, :3] @ world + to_voxel[:3, 3]
    right = (np.arange(width) + 0.5) / px_per_mm
    down = (np.arange(height) + 0.5) / px_per_mm
    return (
        start[:, None, None]
        + to_voxel[:3, plane.right, None, None] * right
        - to_voxel[:3, plane.up, None, None] * down[:, None]
    )


def _near_labels(cut: Cut) -> np.ndarray:
    """Pixels of a cut that are labelled or some pixels beside: white matter beneath the cortex."""
    return ndimage.binary_dilation(cut.codes > 0, iterations=NEAR_PX)


def grey_window(cuts: Iterable[Cut], labels: LabelMap) -> tuple[float, float]:
    """Intensities of black and white: robust, and not set by fat or vessels outside the brain."""
    cuts = list(cuts)
    # Not interpolated: brain pixels at a border would hold some of the bright fat beside it.
    grey = np.concatenate([cut.nearest[cut.inside] for cut in cuts])
    codes = np.concatenate([cut.codes[cut.inside] for cut in cuts])
    finite = np.isfinite(grey)
    grey, codes = grey[finite], codes[finite]
    if not grey.size:
        return 0.0, 1.0
    shown = shown_labels(labels.table)
    head = grey[np.isin(codes, [label.index for label in shown])]
    inner = [label.index for label in shown if group_of_mapping(label.mapping) in (BRAIN, CSF)]
    brain = grey[np.isin(codes, inner)]
    if not any(label.mapping == WHITE_MATTER for label in shown):  # parcels of the cortex, say
        near = np.concatenate([_near_labels(cut)[cut.inside] for cut in cuts])[finite]
        brain = grey[near]
    low = np.percentile(head if head.size > 500 else grey, 1)
    high = np.percentile(next((v for v in (brain, head) if v.size > 500), grey), 99.5)
    if high <= low:  # no contrast inside: let black be the background
        low = np.percentile(grey, 1)
    if high <= low:
        low, high = float(grey.min()), float(grey.max())
    high += _HEADROOM * (high - low)
    return float(low), float(high if high > low else low + 1)


def paint_cut(
    cut: Cut,
    labels: LabelMap,
    window: tuple[float, float],
    *,
    overlay: bool = False,
    lines: bool = False,
) -> np.ndarray:
    """Colours of one tile, (height, width, 3) uint8: labels filled in, or their borders alone."""
    low, high = window
    grey = np.nan_to_num(np.clip((cut.grey - low) / (high - low), 0, 1)) * cut.inside
    colors = np.repeat(grey[..., None], 3, axis=2)
    if overlay or lines:
        palette = labels.table.lookup(lambda label: label.rgb, np.float32)
        filled = [label.index for label in shown_labels(labels.table)]
        shown = np.where(np.isin(cut.codes, filled), cut.codes, 0)
        here = borders(shown) if lines else shown > 0
        opacity = 1.0 if lines else OPACITY
        colors[here] = (1 - opacity) * colors[here] + opacity * palette[shown[here]]
    return np.rint(colors * 255).astype(np.uint8)


def borders(codes: np.ndarray) -> np.ndarray:
    """Pixels of a label next to a smaller code, or to nothing: one line between two labels.

    >>> borders(np.pad(np.ones((3, 3), int), 1)).astype(int)[1:-1, 1:-1]
    array([[1, 1, 1],
           [1, 0, 1],
           [1, 1, 1]])
    >>> borders(np.array([[1, 1, 2, 2]])).astype(int)
    array([[0, 0, 1, 0]])
    """
    cross = ndimage.generate_binary_structure(2, 1)
    return codes > ndimage.minimum_filter(codes, footprint=cross, mode="nearest")


# -- layout -------------------------------------------------------------------------------


def tile_size(plane: Plane, box_mm: np.ndarray, px_per_mm: float) -> tuple[int, int]:
    """Width and height in pixels."""
    size_mm = box_mm[:, 1] - box_mm[:, 0]
    return tuple(max(1, round(float(size_mm[a]) * px_per_mm)) for a in (plane.right, plane.up))
