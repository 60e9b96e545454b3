# SPDX-License-Identifier: Apache-2.0
"""Pictures: a segmentation over its image, volumes over participants.

No pyplot: figures made in several threads or workers share nothing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.reports.canvas import (
    BLUE,
    DPI,
    FAINT,
    FONT,
    HEADER_PX,
    INK,
    LEGEND_ROW_PX,
    LINE,
    PAGE,
    RED,
    Canvas,
    legend_groups,
    legend_rows,
    present_labels,
    signed,
    write_ends,
    write_header,
    write_legend,
    write_png,
)
from brainseg_bids.reports.slices import PLANES, WIDTH_PX, Montage, arrange
from brainseg_bids.volumes import whole_or_nothing


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

    Returns
    -------
    Path
        ``path``.

    Raises
    ------
    ValueError
        If image and labels differ in shape, or ``n_cuts`` is not positive.
    """
    return _annotate(arrange(image, labels, n_cuts=n_cuts), labels).save(path)


def draw_volumes(
    percents: dict[str, dict[str, float]], outliers: dict[str, set[str]], path: Path
) -> Path:
    """Draw how far each participant's volumes lie from the median, one line per structure.

    Parameters
    ----------
    percents : dict of str to dict of str to float
        For each structure, participant to per cent above (or below) the structure's median.
    outliers : dict of str to set of str
        For each structure, the participants to mark. They are named, and so are the lowest and
        the highest.
    path : Path
        PNG file, written whole or not at all.
    """
    height = 70 + 26 * len(percents)
    figure = Figure(figsize=(12, height / DPI), dpi=DPI, facecolor=PAGE)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.2, 50 / height, 0.77, 1 - 65 / height), facecolor=PAGE)
    values = [value for found in percents.values() for value in found.values()]
    # Beyond +-100 % the dot is an arrow at the edge: one failure must not flatten the rest.
    limit = float(np.clip(np.max(np.abs(values), initial=0) * 1.15, 10, 100))
    for line, (structure, found) in enumerate(percents.items()):
        axes.axhline(line, color=LINE, alpha=0.4, linewidth=1, zorder=0)
        far = outliers.get(structure, set())
        named = far | {min(found, key=found.get), max(found, key=found.get)} if found else far
        for who, value in found.items():
            marker = "o" if abs(value) < limit else "<" if value < 0 else ">"
            at = float(np.clip(value, -limit * 0.99, limit * 0.99))
            color = RED if who in far else BLUE
            axes.plot(at, line, marker, color=color, markersize=5, alpha=0.85, markeredgewidth=0)
            if who in named:
                # Away from the crowd in the middle, unless there is no room.
                right = (at > 0) == (abs(at) < 0.8 * limit)
                axes.annotate(
                    who,
                    (at, line),
                    xytext=(7 if right else -7, 0),
                    fontsize=8,
                    textcoords="offset points",
                    color=INK if who in far else FAINT,
                    va="center",
                    ha="left" if right else "right",
                    **FONT,
                )
    axes.axvline(0, color=FAINT, linewidth=1, zorder=0)
    axes.set(xlim=(-limit, limit), ylim=(len(percents) - 0.4, -0.6))
    axes.set_yticks(range(len(percents)), list(percents), **FONT)
    axes.set_xlabel("difference from the median (%)", color=INK, **FONT)
    axes.tick_params(colors=INK, labelsize=9)
    for spine in axes.spines.values():
        spine.set_color(LINE)
    figure.canvas.draw()
    path = Path(path)
    with whole_or_nothing(path) as temporary:
        write_png(np.asarray(figure.canvas.buffer_rgba())[..., :3], temporary)
    return path


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
