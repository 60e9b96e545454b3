# SPDX-License-Identifier: Apache-2.0
"""A label map beside its finer version."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.reports.slices import BACKGROUND
from brainseg_bids.volumes import whole_or_nothing

WINDOW_MM = 70.0
"""Edge of the cut-out: borders are to be seen voxel by voxel."""
PLANES = (("Sagittal", 0, ("P", "A")), ("Coronal", 1, ("L", "R")), ("Axial", 2, ("L", "R")))
"""Name, RAS axis that is cut across, and what lies at the left and right of the picture."""

_PAGE = tuple(value / 255 for value in BACKGROUND)
_INK = "#e8eaed"


def draw_finer(source: LabelMap, finer: LabelMap, path: Path) -> Path:
    """Draw a cut-out around the brain's middle in three planes, above the source, below finer.

    Parameters
    ----------
    source, finer : LabelMap
        Over the same box, same table. Voxels are drawn as they are, in the table's colours.
    path : Path
        PNG file, written whole or not at all.

    Returns
    -------
    Path
        ``path``.
    """
    middle_mm = _middle_mm(source)
    figure = Figure(figsize=(12, 8.6), dpi=100, facecolor=_PAGE)
    FigureCanvasAgg(figure)
    for row, labels in enumerate((source, finer)):
        for column, (name, axis, ends) in enumerate(PLANES):
            axes = figure.add_subplot(2, 3, 3 * row + column + 1)
            _draw(axes, labels, axis, middle_mm)
            size = " x ".join(f"{mm:.3g}" for mm in labels.grid.voxel_size_mm)
            axes.set_title(f"{name}, {size} mm", color=_INK, fontsize=11)
            for x, end in zip((0.02, 0.98), ends, strict=True):
                axes.text(
                    x, 0.97, end, color="#ffd54f", transform=axes.transAxes, va="top",
                    ha="left" if x < 0.5 else "right", fontweight="bold",
                )  # fmt: skip
    figure.tight_layout()
    with whole_or_nothing(path) as temporary:
        figure.savefig(temporary, format="png", facecolor=_PAGE)
    return path


def _middle_mm(labels: LabelMap) -> np.ndarray:
    """Centroid of the brain, or of all labels where there is none, in voxel-aligned RAS mm."""
    ras, turned = labels.grid.to_ras(), labels.grid.array_to_ras(labels.voxels)
    brain = np.isin(turned, [label.index for label in labels.table if label.is_brain])
    inside = brain if brain.any() else turned != 0
    if not inside.any():
        return np.array(ras.extent_mm) / 2
    middle = [
        np.average(np.arange(n), weights=inside.sum(axis=tuple({0, 1, 2} - {axis})))
        for axis, n in enumerate(turned.shape)
    ]
    return (np.array(middle) + 0.5) * ras.voxel_size_mm


def _draw(axes, labels: LabelMap, axis: int, middle_mm: np.ndarray) -> None:
    """One plane through ``middle_mm`` (from the box's corner, along RAS axes)."""
    ras, turned = labels.grid.to_ras(), labels.grid.array_to_ras(labels.voxels)
    at = min(int(middle_mm[axis] / ras.voxel_size_mm[axis]), turned.shape[axis] - 1)
    across, up = (other for other in range(3) if other != axis)
    colours = np.zeros((int(labels.table.codes[-1]) + 1, 3))
    for label in labels.table:
        colours[label.index] = label.rgb if label.index else _PAGE
    cut = colours[np.take(turned, at, axis=axis)]
    extent = (0, ras.extent_mm[across], 0, ras.extent_mm[up])
    axes.imshow(cut.transpose(1, 0, 2), origin="lower", extent=extent, interpolation="nearest")
    half = WINDOW_MM / 2
    axes.set_xlim(middle_mm[across] - half, middle_mm[across] + half)
    axes.set_ylim(middle_mm[up] - half, middle_mm[up] + half)
    axes.set_axis_off()
