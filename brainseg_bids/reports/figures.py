# SPDX-License-Identifier: Apache-2.0
"""Pictures: a segmentation over its image, volumes over participants.

No pyplot: figures made in several threads or workers share nothing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.reports.canvas import (
    HEADER_PX,
    LEGEND_ROW_PX,
    Canvas,
    legend_groups,
    legend_rows,
    present_labels,
    signed,
    write_ends,
    write_header,
    write_legend,
)
from brainseg_bids.reports.slices import PLANES, WIDTH_PX, Montage, arrange


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
    return _annotate(arrange(image, labels, n_cuts=n_cuts), labels).save(path)


# -- words on the picture -----------------------------------------------------------------


def _annotate(montage: Montage, labels: LabelMap) -> Canvas:
    present = present_labels(labels)
    legend = legend_groups(present)
    rows = legend_rows(legend)
    bottom = HEADER_PX + montage.pixels.shape[0]
    height = bottom + ((rows + 2) * LEGEND_ROW_PX + 20 if legend else 12)
    canvas = Canvas(WIDTH_PX, height)
    canvas.image(montage.pixels, HEADER_PX)
    write_header(canvas, labels.grid, montage.window, montage.px_per_mm, empty=not present)
    _write_tile_marks(canvas, montage)
    write_legend(canvas, legend, rows, bottom + 10)
    return canvas


def _write_tile_marks(canvas: Canvas, montage: Montage) -> None:
    for tile in montage.tiles:
        top = HEADER_PX + tile.top
        write_ends(canvas, tile.plane, tile.left, top, tile.width)
        if tile.style == "plain":
            at = f"{'xyz'[tile.plane.axis]} = {signed(tile.at_mm)} mm"
            canvas.text(tile.left + tile.width / 2, top - 11, at, ha="center", size_px=14)
    for plane in PLANES:
        row = [tile for tile in montage.tiles if tile.plane is plane]
        top, bottom = min(tile.top for tile in row), max(tile.top + tile.height for tile in row)
        words = f"{plane.name}, {plane.order}" if bottom - top > 180 else plane.name
        canvas.text(
            20,
            HEADER_PX + (top + bottom) / 2,
            words,
            rotation=90,
            ha="center",
            size_px=16,
            weight="bold",
        )
