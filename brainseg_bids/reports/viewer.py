# SPDX-License-Identifier: Apache-2.0
"""A viewer of an image and its labels to turn and click: one HTML file that opens anywhere.

It draws on 2D canvases (no WebGL, which remote desktops often lack) and holds the image itself:
8 bits a voxel, cut to the head, deflated. Nothing is fetched.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup

from brainseg_bids import __version__
from brainseg_bids.anatomy.grid import Grid, triple
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.reports.groups import shown_labels
from brainseg_bids.reports.page import render_page
from brainseg_bids.reports.slices import Cut, box_voxels, grey_window, view_mm

LARGEST_VOXELS = 20_000_000
"""Of what a viewer holds; heads with more are thinned."""
LARGEST_BYTES = 14_000_000
"""Of the image in the file; one with more noise gets fewer levels of grey."""
SAMPLE = 3
"""Every so many voxels along each axis are enough to find intensities and the brain's middle."""


@dataclass(frozen=True)
class View:
    """What a viewer holds, on axes towards R, A, S.

    Parameters
    ----------
    grey : (X, Y, Z) uint8
    codes : (X, Y, Z) int
    grid : Grid
    window : (int, int)
        Values of ``grey`` that are shown as black and as white at first.
    scale : (float, float)
        Intensities of the image that 0 and 255 stand for.
    factors : tuple of 3 int
        How many voxels of the image are one here, along R, A, S.
    """

    grey: np.ndarray
    codes: np.ndarray
    grid: Grid
    window: tuple[int, int]
    scale: tuple[float, float]
    factors: tuple[int, int, int]


def make_view(image: np.ndarray, labels: LabelMap, *, largest: int = LARGEST_VOXELS) -> View:
    """Turn towards R, A, S, cut to the head, thin if there are too many voxels, make 8 bits.

    Parameters
    ----------
    image : (X, Y, Z) float
        On the grid of ``labels``.
    labels : LabelMap
    largest : int
        Voxels at most.

    Raises
    ------
    ValueError
        If image and labels differ in shape.
    """
    if image.shape != labels.voxels.shape:
        raise ValueError(f"image {image.shape} and labels {labels.voxels.shape} differ in shape")
    grid = labels.grid.to_ras()
    box = box_voxels(grid, view_mm(labels))
    grey, codes = (labels.grid.array_to_ras(one)[box] for one in (image, labels.voxels))
    grid = grid.crop(triple(side.start for side in box), triple(grey.shape))
    factors = downsampling_factors(grid, largest)
    window, scale = _intensities(grey, codes, labels)
    grey = np.nan_to_num((_means(grey, factors) - scale[0]) * (255 / (scale[1] - scale[0])))
    codes = _middles(codes, factors)
    shown = [round(255 * (value - scale[0]) / (scale[1] - scale[0])) for value in window]
    return View(
        np.rint(np.clip(grey, 0, 255)).astype(np.uint8),
        codes,
        _thinned(grid, factors, codes.shape),
        (shown[0], shown[1]),
        scale,
        factors,
    )


def downsampling_factors(grid: Grid, largest: int) -> tuple[int, int, int]:
    """How many voxels become one along each axis; the finest axes are thinned first.

    >>> downsampling_factors(Grid((300, 300, 300), np.diag([0.5, 0.5, 0.5, 1])), 20_000_000)
    (2, 2, 2)
    >>> downsampling_factors(Grid((512, 512, 100), np.diag([0.5, 0.5, 2, 1])), 20_000_000)
    (2, 2, 1)
    """
    factors = [1, 1, 1]
    while math.prod(n // factor for n, factor in zip(grid.shape, factors, strict=True)) > largest:
        sizes_mm = [s * factor for s, factor in zip(grid.voxel_size_mm, factors, strict=True)]
        finest_mm = 1.1 * min(sizes_mm)
        factors = [f + (mm <= finest_mm) for f, mm in zip(factors, sizes_mm, strict=True)]
    return triple(factors)


def _intensities(
    grey: np.ndarray, codes: np.ndarray, labels: LabelMap
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Intensities of black and white, and of the ends of what is kept; of every third voxel."""
    step = tuple(slice(None, None, min(SAMPLE, n)) for n in grey.shape)
    part = grey[step]
    low, high = grey_window([Cut(part, part, codes[step], np.ones(part.shape, bool))], labels)
    finite = part[np.isfinite(part)]
    ends = np.percentile(finite, [0.1, 99.9]) if finite.size else (low, high)
    # Fat and vessels may be many times as bright as the brain: its shades must not be lost.
    first, last = max(ends[0], 2 * low - high), min(ends[1], 2 * high - low)
    return (low, high), (float(min(first, low)), float(max(last, high)))


def _means(array: np.ndarray, factors: tuple[int, int, int]) -> np.ndarray:
    """Means of blocks of voxels; those at the end that fill no block are left out."""
    if factors == (1, 1, 1):
        return array
    sizes = [n // f for n, f in zip(array.shape, factors, strict=True)]
    whole = array[tuple(slice(n * f) for n, f in zip(sizes, factors, strict=True))]
    blocks = [part for pair in zip(sizes, factors, strict=True) for part in pair]
    return whole.reshape(blocks).mean(axis=(1, 3, 5))


def _middles(array: np.ndarray, factors: tuple[int, int, int]) -> np.ndarray:
    """The voxel in the middle of each block: labels have no mean."""
    return array[
        tuple(slice(f // 2, n // f * f, f) for n, f in zip(array.shape, factors, strict=True))
    ]


def _thinned(grid: Grid, factors: tuple[int, int, int], shape: tuple[int, ...]) -> Grid:
    affine = grid.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ ((np.array(factors) - 1) / 2)
    affine[:3, :3] *= factors
    return Grid(triple(shape), affine)


def write_viewer(
    path: Path,
    image: np.ndarray,
    labels: LabelMap,
    *,
    title: str,
    source: str,
    page: str,
    rating: Markup | str = "",
) -> Path:
    """Write the viewer of an image and its labels as one HTML file, whole or not at all.

    Parameters
    ----------
    path : Path
    image, labels
        As of `make_view`.
    title : str
        What was segmented, in words.
    source : str
        The image, below the dataset's root.
    page : str
        The participant's page, from the viewer.
    rating : Markup
        Form, as `brainseg_bids.reports.ratings.rating_form` makes it.

    Raises
    ------
    ValueError
        If image and labels differ in shape.
    """
    view = make_view(image, labels)
    codes = np.unique(view.codes)
    index = np.zeros(int(codes[-1]) + 1, np.uint8 if codes.size <= 256 else "<u2")
    index[codes] = np.arange(codes.size)
    packed, n_levels = _packed_grey(view.grey)
    return render_page(
        path,
        "viewer.html.j2",
        scripts=("viewer.js", "rating.js"),
        title=title,
        name=f"{title}: brainseg viewer",
        version=__version__,
        facts=_json(_facts(view, codes, labels)),
        image=packed,
        labels=_packed(index[view.codes]),
        note=f"{_note(view)} {n_levels} levels of grey.",
        source=source,
        page=page,
        rating=rating,
    )


def _facts(view: View, codes: np.ndarray, labels: LabelMap) -> dict:
    """What the script has to know."""
    drawn = {label.index for label in shown_labels(labels.table)}
    found = [labels.table[int(code)] for code in codes]
    return {
        "shape": view.grid.shape,
        "voxelSizeMm": view.grid.voxel_size_mm,
        "affine": view.grid.affine[:3].round(6).tolist(),
        "start": _start(view, labels),
        "window": view.window,
        "scale": view.scale,
        "labels": [
            {
                "code": label.index,
                "name": label.name,
                "color": label.color if label.index in drawn else None,
            }
            for label in found
        ],
    }


def _start(view: View, labels: LabelMap) -> list[int]:
    """The middle voxel of the brain, or of what is shown."""
    part = view.codes[::SAMPLE, ::SAMPLE, ::SAMPLE]
    inside = np.nonzero(np.isin(part, [label.index for label in labels.table if label.is_brain]))
    if not inside[0].size:
        return [n // 2 for n in view.codes.shape]
    return [int(SAMPLE * np.median(axis)) for axis in inside]


def _note(view: View) -> str:
    """What the viewer shows otherwise than the files."""
    edges = " × ".join(f"{size:.3g}" for size in view.grid.voxel_size_mm)
    if view.factors == (1, 1, 1):
        return f"Voxels as in the file, {edges} mm."
    times = " × ".join(map(str, view.factors))
    return (
        f"Thinned for this page: {times} voxels of the file are one here, of {edges} mm, with "
        "their mean intensity and the label of the one in the middle; thin structures may have "
        "gaps that the file has not."
    )


def _packed_grey(grey: np.ndarray) -> tuple[Markup, int]:
    """An image, packed, and how many levels of grey it has left: noise does not compress."""
    for step in (1, 2, 4, 8):
        packed = _packed(grey // step * step + step // 2)
        if len(packed) <= LARGEST_BYTES:
            break
    return packed, 256 // step


def _packed(array: np.ndarray) -> Markup:
    """Voxels, the first axis fastest, deflated, as base64."""
    packed = zlib.compress(array.tobytes(order="F"), 6)
    return Markup(base64.b64encode(packed).decode("ascii"))


def _json(facts: dict) -> Markup:
    """JSON that cannot end the element it stands in, whatever a label is called."""
    return Markup(json.dumps(facts).replace("<", r"\u003c"))
