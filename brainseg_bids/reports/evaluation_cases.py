# SPDX-License-Identifier: Apache-2.0
"""The picture of one case: both outlines, where they differ, and how far surfaces are apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from scipy import ndimage

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.evaluation.offsets import surface_offsets_mm
from brainseg_bids.evaluation.structures import Pair, choose_structures
from brainseg_bids.reports.canvas import (
    FAINT,
    RED,
    Canvas,
    SliceRow,
    legend_of,
    legend_px,
    present_labels,
    shorten,
    write_legend,
)
from brainseg_bids.reports.plots import axes_on, color_bar
from brainseg_bids.reports.slices import (
    MARGIN_PX,
    PLANES,
    WIDTH_PX,
    Cut,
    box_voxels,
    grey_window,
    paint_cut,
    view_mm,
)

MARKS = {
    "missed": ("in the reference only", (0.16, 0.71, 0.96)),
    "extra": ("in the prediction only", (0.95, 0.24, 0.20)),
    "swapped": ("another structure", (1.0, 0.76, 0.03)),
    "not judged": ("left out", (0.30, 0.32, 0.36)),
}
"""What the row of differences marks: words and colour."""
LARGEST_MM = 10.0
"""Beyond it distances have the colour of the bar's end."""

_HEAD_PX, _KEY_PX, _TALLEST_PX = 92, 172, 400
_COLORS = "coolwarm"  # no dark ends: they would be lost on a dark canvas
_DIM, _DIMMER = 0.7, 0.4  # so that outlines, and colours, stand out from the image
_LABELLED_GREY = 0.2  # where there is no image
_MARK_OPACITY = 0.85


@dataclass(frozen=True, eq=False)
class _Case:
    """What is drawn, cut to the part that is seen.

    Parameters
    ----------
    image : (X, Y, Z) float
        Zeros if there is none.
    reference, prediction : LabelMap
        One table and grid; 0 where nothing is judged.
    left_out : (X, Y, Z) bool
    box_mm : (3, 2) float
    at_mm : tuple of float
        Where each of `PLANES` cuts.
    has_image : bool
    focus : str
    """

    image: np.ndarray
    reference: LabelMap
    prediction: LabelMap
    left_out: np.ndarray
    box_mm: np.ndarray
    at_mm: tuple[float, ...]
    has_image: bool
    focus: str


def draw_case(
    path: Path,
    image: np.ndarray | None,
    reference: LabelMap,
    prediction: LabelMap,
    *,
    title: str,
    distances: bool = True,
    within: np.ndarray | None = None,
    focus: str = "",
) -> Path:
    """Draw one case in three planes, each through the cut on which most voxels differ.

    Rows from above: the reference's outlines over the image, the prediction's, where the two
    differ, and each structure's surface in the prediction, in the colour of its distance to that
    structure's surface in the reference: positive where the prediction reaches beyond it. Where
    two structures touch, both surfaces are drawn, with opposite signs. Surfaces are the voxels
    that lack one of six neighbours of their structure (as in MONAI), and distances are to the
    nearest of them anywhere, not on the cut alone.

    Parameters
    ----------
    path : Path
        PNG file, written whole or not at all.
    image : (X, Y, Z) float or None
        On the grid of the maps; without it labels are filled.
    reference, prediction : LabelMap
        On one grid. Labels that the reference's table does not have count as background.
    title : str
    distances : bool
        Whether to draw the row of distances.
    within : (X, Y, Z) bool, optional
        Voxels that count, as in `brainseg_bids.evaluation.agreement.compare`.
    focus : str
        Label of the reference's table: cuts go where most voxels of it differ.

    Raises
    ------
    ValueError
        If grids or shapes differ, or the tables contradict each other.
    UnknownLabelError
        If the reference's table has no label ``focus``.
    """
    case = _prepare(image, reference, prediction, within, focus)
    size_mm = case.box_mm[:, 1] - case.box_mm[:, 0]
    slice_row = SliceRow.fit(size_mm, PLANES, width_px=WIDTH_PX - _KEY_PX, tallest_px=_TALLEST_PX)
    cuts, rows = _paint(case, slice_row)
    largest = 0.0
    if distances:
        rows["distance"], largest = _paint_distances(case, slice_row, cuts)
    return _compose(path, case, slice_row, rows, largest, title)


def _compose(
    path: Path,
    case: _Case,
    slice_row: SliceRow,
    rows: dict[str, list[np.ndarray]],
    largest: float,
    title: str,
) -> Path:
    """Put rows of tiles on a canvas, with their words and keys."""
    legend = legend_of([case.reference, case.prediction])
    bottom = _HEAD_PX + len(rows) * slice_row.tall
    canvas = Canvas(WIDTH_PX, bottom + (legend_px(legend) + 16 if legend else 12))
    canvas.image(slice_row.pixels(list(rows.values())), _HEAD_PX)
    _write_header(canvas, case, slice_row, title)
    for number, name in enumerate(rows):
        top = _HEAD_PX + number * slice_row.tall
        slice_row.write_row(canvas, top, name)
        if name == "difference":
            _write_marks(canvas, top, slice_row.tall, left_out=case.left_out.any())
        elif name == "distance":
            _write_bar(canvas, top, slice_row.tall, largest)
    write_legend(canvas, legend, bottom + 8)
    return canvas.save(path)


# -- what is seen -------------------------------------------------------------------------


def _prepare(
    image: np.ndarray | None,
    reference: LabelMap,
    prediction: LabelMap,
    within: np.ndarray | None,
    focus: str,
) -> _Case:
    """Check, leave out what is not judged, choose the cuts, and crop."""
    Pair.of(reference, prediction, within)  # the same errors as when they are compared
    if image is not None and image.shape != reference.voxels.shape:
        raise ValueError(
            f"image {image.shape} and labels {reference.voxels.shape} differ in shape"
        )
    codes = [s.index for s in choose_structures(reference.table, prediction.table)]
    wanted = None if not focus else reference.table[focus].index
    table, grid = reference.table, reference.grid
    left_out = np.zeros(grid.shape, bool) if within is None else ~within.astype(bool, copy=False)
    truth, guess = (_known(one.voxels, codes, left_out) for one in (reference, prediction))
    seen = LabelMap(np.where(truth > 0, truth, guess), grid, table)
    box_mm = view_mm(seen)
    differs = truth != guess
    if wanted is not None:
        differs &= (truth == wanted) | (guess == wanted)
    at_mm = _busiest_mm(grid, differs if differs.any() else seen.voxels > 0, box_mm)
    part = box_voxels(grid, box_mm, margin_vox=1)
    start, shape = [s.start for s in part], [s.stop - s.start for s in part]
    smaller = grid.crop(tuple(start), tuple(shape))
    return _Case(
        np.zeros(shape, np.float32) if image is None else image[part],
        LabelMap(truth[part], smaller, table),
        LabelMap(guess[part], smaller, table),
        left_out[part],
        box_mm,
        at_mm,
        image is not None,
        focus,
    )


def _known(voxels: np.ndarray, codes: Sequence[int], left_out: np.ndarray) -> np.ndarray:
    """Codes of structures; 0 for all else, int16."""
    lookup = np.zeros(max(int(voxels.max(initial=0)), *codes, 0) + 1, np.int16)
    lookup[list(codes)] = codes
    known = lookup[voxels]
    known[left_out] = 0
    return known


def _busiest_mm(grid: Grid, voxels: np.ndarray, box_mm: np.ndarray) -> tuple[float, ...]:
    """World coordinate along R, A, S on which most of some voxels lie; the middle if none."""
    if not voxels.any():
        return tuple(box_mm.mean(axis=1).tolist())
    ras, turned = grid.to_ras(), grid.array_to_ras(voxels)
    world = ras.affine[:3, :3] @ np.array(np.nonzero(turned)) + ras.affine[:3, 3:]
    busiest_mm = []
    for along, size in zip(world, ras.voxel_size_mm, strict=True):
        slab = np.rint((along - along.min()) / size).astype(int)
        counts = np.bincount(slab)
        busiest_mm.append(float(along.min() + size * counts.argmax()))
    return tuple(busiest_mm)


# -- outlines and differences -------------------------------------------------------------


def _paint(case: _Case, slice_row: SliceRow) -> tuple[list[Cut], dict[str, list[np.ndarray]]]:
    """Cuts of image and reference, and the tiles of the first three rows."""
    cuts = slice_row.cuts(case.image, case.reference, case.at_mm, case.box_mm)
    others = slice_row.cuts(case.image, case.prediction, case.at_mm, case.box_mm)
    out = slice_row.cuts(case.left_out.astype(np.uint8), case.reference, case.at_mm, case.box_mm)
    window = grey_window(cuts, case.reference) if case.has_image else (0.0, 1.0)
    rows = {
        "reference": [_paint_outlines(cut, case, window) for cut in cuts],
        "prediction": [_paint_outlines(cut, case, window) for cut in others],
        "difference": [
            _paint_differences(cut, other.codes, mask.nearest > 0, case, window)
            for cut, other, mask in zip(cuts, others, out, strict=True)
        ],
    }
    return cuts, rows


def outlines(codes: np.ndarray) -> np.ndarray:
    """Pixels of a structure that touch another one or background, (height, width) bool.

    >>> outlines(np.pad(np.ones((3, 3), int), 1)).astype(int)[1:-1, 1:-1]
    array([[1, 1, 1],
           [1, 0, 1],
           [1, 1, 1]])
    """
    low = ndimage.minimum_filter(codes, size=3, mode="nearest")
    high = ndimage.maximum_filter(codes, size=3, mode="nearest")
    return (codes > 0) & (low != high)


def _paint_outlines(cut: Cut, case: _Case, window: tuple[float, float]) -> np.ndarray:
    """Image and the outlines of one map; filled too where there is no image."""
    tile = paint_cut(cut, case.reference, window, overlay=not case.has_image) * _DIM
    colors = case.reference.table.lookup(lambda label: label.rgb, float)
    line = outlines(cut.codes)
    tile[line] = 255 * colors[cut.codes[line]]
    return np.rint(tile).astype(np.uint8)


def _paint_differences(
    cut: Cut, guess: np.ndarray, left_out: np.ndarray, case: _Case, window: tuple[float, float]
) -> np.ndarray:
    """Dim image and what is missed, extra or swapped."""
    tile = _dim(cut, guess, case, window)
    truth = cut.codes
    where = {
        "not judged": left_out & cut.inside,
        "missed": (truth > 0) & (guess == 0),
        "extra": (truth == 0) & (guess > 0),
        "swapped": (truth > 0) & (guess > 0) & (truth != guess),
    }
    for mark, here in where.items():
        color = 255 * np.array(MARKS[mark][1])
        tile[here] = (1 - _MARK_OPACITY) * tile[here] + _MARK_OPACITY * color
    return np.rint(tile).astype(np.uint8)


def _dim(cut: Cut, guess: np.ndarray, case: _Case, window: tuple[float, float]) -> np.ndarray:
    """Image to draw colours on, (height, width, 3) float; without one, what is labelled."""
    if case.has_image:
        return _DIMMER * paint_cut(cut, case.reference, window, overlay=False)
    labelled = (cut.codes > 0) | (guess > 0)
    return np.repeat(255 * _LABELLED_GREY * labelled[..., None], 3, axis=2)


# -- distances ----------------------------------------------------------------------------


def _paint_distances(
    case: _Case, slice_row: SliceRow, cuts: Sequence[Cut]
) -> tuple[list[np.ndarray], float]:
    """Tiles of the last row, and the distance at the ends of the colours."""
    near = _near_cuts(case.prediction.grid, case.at_mm)
    offsets = surface_offsets_mm(case.prediction, case.reference, near)
    on_cuts = [
        cut.nearest for cut in slice_row.cuts(offsets, case.prediction, case.at_mm, case.box_mm)
    ]
    seen = np.concatenate([np.abs(one[np.isfinite(one)]) for one in on_cuts])
    usual = float(np.percentile(seen, 95)) if seen.size else 0.0
    largest = float(np.clip(usual, 2 * max(case.reference.grid.voxel_size_mm), LARGEST_MM))
    window = grey_window(cuts, case.reference) if case.has_image else (0.0, 1.0)
    tiles = []
    for cut, offset in zip(cuts, on_cuts, strict=True):
        tile = _dim(cut, np.zeros_like(cut.codes), case, window)
        here = np.isfinite(offset) & cut.inside
        colors = colormaps[_COLORS](0.5 + np.clip(offset[here] / (2 * largest), -0.5, 0.5))
        tile[here] = 255 * colors[:, :3]
        tiles.append(np.rint(tile).astype(np.uint8))
    return tiles, largest


def _near_cuts(grid: Grid, at_mm: Sequence[float]) -> np.ndarray:
    """Voxels that one of three world planes may pass through, (X, Y, Z) bool."""
    near = np.zeros(grid.shape, bool)
    reach_mm = np.abs(grid.affine[:3, :3]).sum(axis=1)
    steps = np.ogrid[tuple(slice(0, n) for n in grid.shape)]
    for plane, at in zip(PLANES, at_mm, strict=True):
        row = grid.affine[plane.axis]
        along = sum(np.float32(row[k]) * steps[k].astype(np.float32) for k in range(3))
        near |= np.abs(along + np.float32(row[3] - at)) <= reach_mm[plane.axis]
    return near


# -- words --------------------------------------------------------------------------------


def _write_header(canvas: Canvas, case: _Case, slice_row: SliceRow, title: str) -> None:
    """Title, what is to be known of the picture, and a bar of known length."""
    size = " × ".join(f"{size:.2f}" for size in case.reference.grid.voxel_size_mm)
    differs = int((case.reference.voxels != case.prediction.voxels).sum())
    volume_ml = differs * case.reference.grid.voxel_volume_mm3 / 1000
    notes = [
        "Left of the picture is the person's left (neurological convention)",
        f"voxels of {size} mm",
        f"labels differ in {volume_ml:,.2f} ml; cuts where {case.focus or 'they'} "
        f"differ{'s' * bool(case.focus)} most"
        if differs
        else "labels do not differ",
    ]
    canvas.title(shorten(title, 110), "   ·   ".join(notes))
    lone = _lone_structures(case)
    if lone:
        canvas.text(MARGIN_PX, 63, shorten(lone, 170), color=RED)
    slice_row.write_columns(canvas, _HEAD_PX - 12, case.at_mm)
    canvas.scale_bar(slice_row.px_per_mm, y=40, widest_px=160)


def _lone_structures(case: _Case) -> str:
    """Words about structures that one map alone has."""
    truth, guess = (
        {label.name for label in present_labels(one)} for one in (case.reference, case.prediction)
    )
    lone = {"only in the reference": truth - guess, "only in the prediction": guess - truth}
    return "; ".join(f"{words}: {', '.join(sorted(n))}" for words, n in lone.items() if n)


def _write_marks(canvas: Canvas, top: int, tall: int, *, left_out: bool) -> None:
    """What the colours of the differences mean, beside their row."""
    left = WIDTH_PX - _KEY_PX + 8
    shown = {name: mark for name, mark in MARKS.items() if name != "not judged" or left_out}
    y = top + tall / 2 - 22 * len(shown)
    for name, (words, color) in shown.items():
        canvas.box(left, y - 7, 18, 14, color)
        canvas.text(left + 26, y, name)
        canvas.text(left + 26, y + 17, words, color=FAINT, size_px=12)
        y += 44


def _write_bar(canvas: Canvas, top: int, tall: int, largest: float) -> None:
    """Bar of the distances' colours beside their row, in mm."""
    left, height = WIDTH_PX - _KEY_PX + 16, min(tall - 90, 300)
    middle = top + tall / 2
    axes = axes_on(canvas, left, middle - height / 2, 18, height)
    color_bar(axes, _COLORS, largest, lambda mm: f"{mm:+.1f}".replace("-", "−") if mm else "0 mm")
    canvas.text(left - 6, middle - height / 2 - 16, "outside reference", color=FAINT, size_px=13)
    canvas.text(left - 6, middle + height / 2 + 16, "inside reference", color=FAINT, size_px=13)
