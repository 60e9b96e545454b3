# SPDX-License-Identifier: Apache-2.0
"""The picture of a segmentation over its image.

No pyplot: figures made in several threads or workers share nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.reports.canvas import (
    HEADER_PX,
    Canvas,
    SliceRow,
    legend_of,
    legend_px,
    write_header,
    write_legend,
)
from brainseg_bids.reports.slices import (
    MARGIN_PX,
    PLANES,
    WIDTH_PX,
    cut_positions,
    grey_window,
    paint_cut,
    view_mm,
)

STYLES = {"image": {}, "labels": {"overlay": True}, "outlines": {"lines": True}}
"""Rows of each plane, and how they are painted."""

_TILES_HEIGHT_PX, _TOP_PX = 2700, 26


@dataclass(frozen=True)
class PlaneRows:
    """Cuts along one axis, each in all styles.

    Parameters
    ----------
    slices : SliceRow
    at_mm : sequence of float
        World coordinate of each column's cut.
    rows : dict of str to sequence of (height, width, 3) uint8
        Tiles by style.
    box_mm : (3, 2) float
        What every tile shows: first and last world coordinate along R, A, S.
    window : (float, float)
        Image intensities shown as black and as white.
    """

    slices: SliceRow
    at_mm: Sequence[float]
    rows: dict[str, list[np.ndarray]]
    box_mm: np.ndarray
    window: tuple[float, float]


def draw_segmentation(image: np.ndarray, labels: LabelMap, path: Path, *, n_cuts: int = 7) -> Path:
    """Draw sagittal, coronal and axial cuts of an image, plain, with its labels filled in, and
    with their outlines.

    Cuts are world planes: an oblique image is cut along the scanner's axes, and copies of an
    image whose axes are permuted or flipped give the same picture. All tiles have one scale.
    The left of the picture is the person's left (neurological convention), and says so.

    Parameters
    ----------
    image : (X, Y, Z) float
        On the grid of ``labels``. Shown from the 1st percentile of the labelled head to the
        99.5th of brain and CSF.
    labels : LabelMap
        Drawn in its table's colours; code 0 and air are left out.
    path : Path
        PNG file, written whole or not at all.
    n_cuts : int
        Per plane, spread over the brain, or over what is labelled if no brain is.

    Raises
    ------
    ValueError
        If image and labels differ in shape, or ``n_cuts`` is not positive.
    """
    planes = cut_planes(image, labels, n_cuts=n_cuts)
    legend = legend_of([labels])
    tops = [HEADER_PX + _TOP_PX]
    for plane in planes:
        tops.append(tops[-1] + plane.slices.tall * len(STYLES) + _TOP_PX)
    bottom = tops[-1] - _TOP_PX
    canvas = Canvas(WIDTH_PX, bottom + (legend_px(legend) + 20 if legend else 12))
    for plane, top in zip(planes, tops, strict=False):
        plane.slices.write(canvas, top, plane.rows, plane.at_mm)
    px_per_mm = planes[0].slices.px_per_mm
    write_header(canvas, labels.grid, planes[0].window, px_per_mm, empty=not legend)
    write_legend(canvas, legend, bottom + 10)
    return canvas.save(path)


def cut_planes(image: np.ndarray, labels: LabelMap, *, n_cuts: int = 7) -> list[PlaneRows]:
    """Cut and colour: one `PlaneRows` for each of `PLANES`, all at one scale.

    Parameters and errors are those of `draw_segmentation`.
    """
    if image.shape != labels.voxels.shape:
        raise ValueError(f"image {image.shape} and labels {labels.voxels.shape} differ in shape")
    if n_cuts < 1:
        raise ValueError(f"n_cuts is {n_cuts}, at least 1 is needed")
    box_mm = view_mm(labels)
    steps = (np.arange(n_cuts) + 0.7) / (n_cuts + 0.4)
    positions = cut_positions(labels, [steps] * 3, box_mm)
    size_mm, scale = box_mm[:, 1] - box_mm[:, 0], _scale(box_mm, n_cuts)
    rows = [SliceRow.fit(size_mm, [plane] * n_cuts, px_per_mm=scale) for plane in PLANES]
    cuts = [
        row.cuts(image, labels, positions[plane.axis], box_mm)
        for row, plane in zip(rows, PLANES, strict=True)
    ]
    window = grey_window((cut for own in cuts for cut in own), labels)
    return [
        PlaneRows(
            row,
            positions[plane.axis],
            {
                name: [paint_cut(cut, labels, window, **style) for cut in own]
                for name, style in STYLES.items()
            },
            box_mm,
            window,
        )
        for row, plane, own in zip(rows, PLANES, cuts, strict=True)
    ]


def _scale(box_mm: np.ndarray, n_cuts: int) -> float:
    """Pixels per mm that fill the picture's width, unless it would become too tall."""
    size_mm = box_mm[:, 1] - box_mm[:, 0]
    widest_mm = max(size_mm[plane.right] for plane in PLANES)
    tall_mm = len(STYLES) * sum(size_mm[plane.up] for plane in PLANES)
    wide_px = (WIDTH_PX - MARGIN_PX) / n_cuts - 4
    return float(min(wide_px / widest_mm, _TILES_HEIGHT_PX / tall_mm))
