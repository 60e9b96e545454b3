# SPDX-License-Identifier: Apache-2.0
"""A label map above the same at finer voxels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import ndimage

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.reports.canvas import Canvas, SliceRow
from brainseg_bids.reports.slices import BACKGROUND, PLANES, WIDTH_PX

WINDOW_MM = 70.0
"""Edge of the cut-out: borders are to be seen voxel by voxel."""
_TOP_PX = 34


def draw_upsampled(source: LabelMap, upsampled: LabelMap, path: Path) -> Path:
    """Draw a cut-out around the brain's middle in three planes, above the source.

    Parameters
    ----------
    source, upsampled : LabelMap
        Over the same box, same table. Voxels are drawn as they are, in the table's colours.
    path : Path
        PNG file, written whole or not at all.
    """
    middle_mm = _middle_mm(source)
    box_mm = np.stack([middle_mm - WINDOW_MM / 2, middle_mm + WINDOW_MM / 2], axis=1)
    slices = SliceRow.fit(box_mm[:, 1] - box_mm[:, 0], PLANES, tallest_px=WIDTH_PX)
    at_mm = [float(middle_mm[plane.axis]) for plane in PLANES]
    rows = {
        f"{name}, {_voxel_size(labels.grid)}": [
            _colors(labels)[codes] for codes in slices.codes(labels, at_mm, box_mm)
        ]
        for name, labels in (("source", source), ("upsampled", upsampled))
    }
    canvas = Canvas(WIDTH_PX, _TOP_PX + slices.tall * len(rows))
    slices.write(canvas, _TOP_PX, rows, at_mm)
    return canvas.save(path)


def _middle_mm(labels: LabelMap) -> np.ndarray:
    """Centroid of the brain, or of all labels where there is none, in world mm."""
    brain = np.isin(labels.voxels, [label.index for label in labels.table if label.is_brain])
    inside = brain if brain.any() else labels.voxels != 0
    middle = (np.array(labels.grid.shape) - 1) / 2
    if inside.any():
        middle = np.array(ndimage.center_of_mass(inside))
    return labels.grid.affine[:3, :3] @ middle + labels.grid.affine[:3, 3]


def _voxel_size(grid: Grid) -> str:
    return " × ".join(f"{mm:.3g}" for mm in grid.to_ras().voxel_size_mm) + " mm"


def _colors(labels: LabelMap) -> np.ndarray:
    """Colour of each code, (n, 3) uint8."""
    colors = labels.table.lookup(lambda label: np.rint(255 * np.array(label.rgb)), np.uint8)
    colors[0] = BACKGROUND
    return colors
