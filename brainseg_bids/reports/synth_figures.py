# SPDX-License-Identifier: Apache-2.0
"""Pictures of synthetic pairs: many at a glance, and beside a real head."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from brainseg_bids.anatomy.fill import without_fill
from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.intensity import rescale
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.reports.canvas import (
    FAINT,
    HEADER_PX,
    INK,
    Canvas,
    SliceRow,
    legend_of,
    legend_px,
    same_size,
    shorten,
    six_cuts,
    write_legend,
)
from brainseg_bids.reports.comparison import (
    compare,
    draw_methods,
    method_colors,
    write_methods,
)
from brainseg_bids.reports.densities import CLASSES, IntensityComparison, class_labels
from brainseg_bids.reports.plots import panels
from brainseg_bids.reports.slices import (
    MARGIN_PX,
    SIX_PLANES,
    WIDTH_PX,
    paint_cut,
    view_mm,
)

_WINDOW = (0.0, 1.0)
_CAPTION_PX, _ROW_GAP_PX = 28, 10
_PLOT_PX, _PLOT_PITCH_PX = 170, 232
_MOST_VALUES = 200_000  # of a class that a histogram is made of


def draw_pairs(
    path: Path,
    pairs: Sequence[tuple[np.ndarray, np.ndarray, str]],
    table: LabelTable,
    *,
    voxel_size_mm: float | tuple[float, float, float] = 1.0,
) -> Path:
    """Draw synthetic pairs, one row each: three planes, the image and then with its labels.

    Parameters
    ----------
    path : Path
        PNG file, written whole or not at all.
    pairs : sequence of ((X, Y, Z) float, (X, Y, Z) int, str)
        Image (0 is drawn black and 1 white), codes, caption. Axes run towards R, A, S.
    table : LabelTable
        That the codes belong to.
    voxel_size_mm : float or tuple of 3 float

    Raises
    ------
    ValueError
        If there is no pair, or image and labels of one differ in shape.
    UnknownLabelError
        If a pair has a code that the table does not know.
    """
    if not pairs:
        raise ValueError(f"{path}: there are no pairs to draw")
    sizes = np.broadcast_to(np.asarray(voxel_size_mm, dtype=float), 3)
    maps = [_placed(image, codes, caption, table, sizes) for image, codes, caption in pairs]
    boxes_mm = same_size([_whole_mm(labels) for labels in maps])
    slice_row = SliceRow.fit(boxes_mm[0][:, 1] - boxes_mm[0][:, 0], SIX_PLANES)
    pitch = _CAPTION_PX + slice_row.tall + _ROW_GAP_PX
    legend = legend_of(maps)
    bottom = HEADER_PX + len(pairs) * pitch
    canvas = Canvas(WIDTH_PX, bottom + legend_px(legend) + 20)
    _write_pairs_header(canvas, len(pairs), sizes, slice_row.px_per_mm)
    for number, ((image, _, caption), labels) in enumerate(zip(pairs, maps, strict=True)):
        top = HEADER_PX + number * pitch + _CAPTION_PX
        at_mm = [_at(boxes_mm[number][plane.axis], plane.axis) for plane in slice_row.planes]
        cuts = slice_row.cuts(np.asarray(image, dtype=np.float32), labels, at_mm, boxes_mm[number])
        tiles = [
            paint_cut(cut, labels, _WINDOW, overlay=bool(column % 2))
            for column, cut in enumerate(cuts)
        ]
        canvas.image(slice_row.pixels([tiles]), top)
        slice_row.write_row(canvas, top, str(number + 1))
        canvas.text(MARGIN_PX, top - 13, shorten(caption, 170), color=INK)
    write_legend(canvas, legend, bottom + 10)
    return canvas.save(path)


def draw_real_and_synthetic(
    path: Path,
    real: tuple[np.ndarray, LabelMap],
    synthetic: Sequence[tuple[str, np.ndarray, LabelMap]],
    *,
    title: str = "Real and synthetic",
) -> Path:
    """Draw a real head above synthetic ones in the same planes, and their histograms.

    Each image is shown as the network gets it: from its 0.5th to its 99.5th percentile.

    Parameters
    ----------
    path : Path
        PNG file, written whole or not at all.
    real : ((X, Y, Z) float, LabelMap)
        Image on the map's grid.
    synthetic : sequence of (str, (X, Y, Z) float, LabelMap)
        Method (``fitted``, ``agnostic``, ``synthseg``, ...), image, labels; one row each. Rows
        of one method are counted together in the histograms.
    title : str

    Raises
    ------
    ValueError
        If an image and its labels differ in shape.
    """
    heads = [("real", *real), *synthetic]
    for name, image, labels in heads:
        if image.shape != labels.voxels.shape:
            raise ValueError(f"{name}: image {image.shape}, labels {labels.voxels.shape}")
    shown = [(name, _as_network(image), labels) for name, image, labels in heads]
    comparisons = _histograms(shown)
    boxes_mm = same_size([view_mm(labels) for _, _, labels in shown])
    slice_row = SliceRow.fit(boxes_mm[0][:, 1] - boxes_mm[0][:, 0], SIX_PLANES, tallest_px=360)
    plots_top = HEADER_PX + 26 + len(shown) * slice_row.tall + 20
    rows = -(-len(comparisons) // 4)
    canvas = Canvas(WIDTH_PX, plots_top + (56 + rows * _PLOT_PITCH_PX if rows else 0))
    canvas.text(MARGIN_PX, 22, title, size_px=19, weight="bold")
    canvas.text(
        MARGIN_PX, 50,
        "left of the picture is the person's left   ·   each image from its 0.5th to its 99.5th "
        "percentile, as the network gets it",
        color=FAINT,
    )  # fmt: skip
    _draw_heads(canvas, slice_row, shown, boxes_mm)
    if comparisons:
        _draw_plots(canvas, plots_top, comparisons)
    return canvas.save(path)


def _as_network(image: np.ndarray) -> np.ndarray:
    cleaned, _ = without_fill(np.nan_to_num(np.asarray(image, dtype=np.float32)))
    return rescale(cleaned)


# -- pairs --------------------------------------------------------------------------------


def _placed(image, codes, caption: str, table: LabelTable, sizes: np.ndarray) -> LabelMap:
    codes = np.asarray(codes)
    if np.shape(image) != codes.shape:
        raise ValueError(f"{caption}: image {np.shape(image)} and labels {codes.shape} differ")
    affine = np.diag([*sizes, 1.0])
    affine[:3, 3] = -sizes * (np.array(codes.shape) - 1) / 2
    return LabelMap(codes, Grid(codes.shape, affine), table)


def _whole_mm(labels: LabelMap) -> np.ndarray:
    half = np.array(labels.grid.extent_mm) / 2
    return np.stack([-half, half], axis=1)


def _at(ends_mm: np.ndarray, axis: int) -> float:
    """Where a crop is cut: beside the midline, where there is more to see, else in the middle."""
    return float(ends_mm[0] + (0.42, 0.5, 0.5)[axis] * (ends_mm[1] - ends_mm[0]))


def _write_pairs_header(canvas: Canvas, n: int, sizes: np.ndarray, px_per_mm: float) -> None:
    pairs = f"{n} synthetic pair{'s' if n != 1 else ''}: image, and image with its labels"
    canvas.text(MARGIN_PX, 22, pairs, size_px=19, weight="bold")
    size = " × ".join(f"{mm:.2f}" for mm in sizes)
    canvas.text(
        MARGIN_PX, 50,
        f"voxels of {size} mm   ·   near the middle of the crop   ·   black to white: 0 to 1",
        color=FAINT,
    )  # fmt: skip
    canvas.scale_bar(px_per_mm)


# -- real and synthetic -------------------------------------------------------------------


def _draw_heads(
    canvas: Canvas, slice_row: SliceRow, shown, boxes_mm: Sequence[np.ndarray]
) -> None:
    top = HEADER_PX + 26
    rows = []
    for (_, image, labels), box_mm in zip(shown, boxes_mm, strict=True):
        cuts = slice_row.cuts(image, labels, six_cuts(labels, box_mm), box_mm)
        rows.append([paint_cut(cut, labels, _WINDOW, overlay=False) for cut in cuts])
    canvas.image(slice_row.pixels(rows), top)
    slice_row.write_columns(canvas, top - 12)
    for row, (name, _, _) in enumerate(shown):
        slice_row.write_row(canvas, top + row * slice_row.tall, name)


def _histograms(shown: Sequence[tuple[str, np.ndarray, LabelMap]]) -> list[IntensityComparison]:
    """Intensities of each class, of the real head and by method."""
    by_method: dict[str, dict[str, list[np.ndarray]]] = {}
    for number, (name, image, labels) in enumerate(shown):
        # A method may be called real, too.
        own = by_method.setdefault(name if number else "", {})
        place = np.zeros(int(labels.table.codes[-1]) + 1, dtype=np.uint8)
        for at, tissue in enumerate(CLASSES, start=1):
            place[[label.index for label in class_labels(labels.table, tissue)]] = at
        places = place[labels.voxels]
        for at, tissue in enumerate(CLASSES, start=1):
            values = image[places == at]
            if values.size:
                step = -(-values.size // _MOST_VALUES)
                own.setdefault(tissue.name, []).append(values[::step])
    joined = {
        method: {name: np.concatenate(values) for name, values in own.items()}
        for method, own in by_method.items()
    }
    return compare(joined.pop(""), joined)


def _draw_plots(canvas: Canvas, top: int, comparisons: Sequence[IntensityComparison]) -> None:
    colors = method_colors(comparisons)
    canvas.text(
        MARGIN_PX, top + 6, "Intensities: real filled, synthetic as lines", size_px=17,
        weight="bold",
    )  # fmt: skip
    canvas.text(MARGIN_PX + 400, top + 6, "numbers: energy distance to the real head", color=FAINT)
    write_methods(canvas, top + 6, colors)
    plots = panels(canvas, top + 54, len(comparisons), pitch_px=_PLOT_PITCH_PX, plot_px=_PLOT_PX)
    for axes, comparison in zip(plots, comparisons, strict=True):
        draw_methods(axes, comparison, colors)
