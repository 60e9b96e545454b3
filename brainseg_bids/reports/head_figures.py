# SPDX-License-Identifier: Apache-2.0
"""The picture of a merge: the result over the image, beneath it each tool's map and the changes.

Columns are cuts, rows are label maps, so that the eye compares up and down.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import BRAIN_MAPPINGS
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
from brainseg_bids.reports.slices import (
    BACKGROUND,
    MARGIN_PX,
    PLANES,
    WIDTH_PX,
    Cut,
    Plane,
    cut_positions,
    grey_window,
    paint_cut,
    take_cut,
    tile_size,
    view_mm,
)

MARKS = {
    1: ("tools differ: tissue or side", (0.95, 0.24, 0.20)),
    2: ("tools differ: structure only", (1.0, 0.76, 0.03)),
    3: ("air that no tool had labelled", (0.16, 0.71, 0.96)),
    4: ("tissue that no tool had labelled", (0.40, 0.85, 0.35)),
    5: ("air that a tool had labelled", (0.72, 0.28, 0.86)),
}
"""What the last row marks: words and colour. Nothing is drawn for air in the rows above."""

_STEPS = ((0.46, 0.73), (0.34, 0.72), (0.18, 0.58))
"""Cuts from one end of the brain to the other: near the midline and beside it; behind and in
front; through the orbits and the ventricles."""
_GAP_PX, _ROW_GAP_PX, _TOP_PX = 6, 8, 26
_AIR = "Air-Internal"
_MARK_OPACITY = 0.85


@dataclass(frozen=True)
class _Column:
    """One cut through everything: the merged map first, then each tool's."""

    plane: Plane
    at_mm: float
    cuts: tuple[Cut, ...]


def draw_merge(
    image: np.ndarray, merged: LabelMap, sources: list[tuple[str, LabelMap]], path: Path
) -> Path:
    """Draw six cuts of a head: the image, the merged labels, each tool's, and what changed.

    Parameters
    ----------
    image : (X, Y, Z) float
        On the grid of ``merged``.
    merged : LabelMap
    sources : list of (str, LabelMap)
        Each tool's name and map, in the merged map's codes and on its grid; the head tool
        first. With two, the last row marks where they differ, once aliases are folded by the
        crosswalk ``fullhead_to_brainseg``.
    path : Path
        PNG file, written whole or not at all.

    Returns
    -------
    Path
        ``path``.

    Raises
    ------
    ValueError
        If image and maps differ in shape.
    UnknownLabelError
        If a tool's map has a code that the merged map's table does not know.
    """
    for name, shape in [("image", image.shape), *((n, s.voxels.shape) for n, s in sources)]:
        if shape != merged.voxels.shape:
            raise ValueError(f"{name} {shape} and merged labels {merged.voxels.shape} differ")
    for name, labels in sources:
        merged.table.check(labels.voxels, what=name)
    maps = [merged, *(labels for _, labels in sources)]
    box_mm = view_mm(merged)
    px_per_mm = _scale(box_mm)
    columns = _cut_all(image, maps, box_mm, px_per_mm)
    window = grey_window((column.cuts[0] for column in columns), merged)
    names = ["image", "merged", *(name for name, _ in sources), *(["changes"] if sources else [])]
    present = list({x.index: x for labels in maps for x in present_labels(labels)}.values())
    legend = legend_groups(sorted(present, key=lambda label: label.index))
    n_rows = legend_rows(legend)
    tall = max(tile_size(plane, box_mm, px_per_mm)[1] for plane in PLANES) + _ROW_GAP_PX
    bottom = HEADER_PX + _TOP_PX + tall * len(names)
    marks_px = LEGEND_ROW_PX + 14 if sources else 0
    canvas = Canvas(WIDTH_PX, bottom + marks_px + (n_rows + 2) * LEGEND_ROW_PX + 20)
    pixels = _fill(columns, maps, window, tall, len(names))
    canvas.image(pixels, HEADER_PX + _TOP_PX)
    write_header(canvas, merged.grid, window, px_per_mm, empty=not present_labels(merged))
    _write_marks(canvas, columns, names, tall)
    if sources:
        _write_mark_legend(canvas, bottom + 6, len(sources))
    write_legend(canvas, legend, n_rows, bottom + marks_px + 10)
    return canvas.save(path)


def changes(merged: np.ndarray, sources: list[np.ndarray], labels: LabelMap) -> np.ndarray:
    """What the merge decided or added, as keys of `MARKS`; 0 is nothing of the kind.

    Parameters
    ----------
    merged : (...) int
        Codes of the table of ``labels``.
    sources : list of (...) int
        The tools' codes at the same places, the head tool's first.
    labels : LabelMap
        Whose table the codes are of.

    Returns
    -------
    (...) uint8
    """
    look = _Lookup(labels)
    marks = np.zeros(np.shape(merged), dtype=np.uint8)
    if len(sources) == 2:
        head, brain = (look.folded[codes] for codes in sources)
        # A brain tool says nothing outside the brain: only what either calls brain counts, and
        # the CSF around it where the brain tool has it.
        judged = look.is_brain[head] | look.is_inner[brain]
        sides = look.side[head] * look.side[brain] < 0
        other = (look.mapping[head] != look.mapping[brain]) | sides
        marks[judged & (head != brain)] = 2
        marks[judged & other] = 1
    if sources:
        untold = np.all([look.is_background[codes] for codes in sources], axis=0)
        no_air = np.all([~look.is_air[codes] for codes in sources], axis=0)
        marks[look.is_air[merged]] = 5
        marks[look.is_air[merged] & no_air] = 3
        marks[untold & ~look.is_background[merged] & ~look.is_air[merged]] = 4
    return marks


class _Lookup:
    """Properties of codes as arrays over them."""

    def __init__(self, labels: LabelMap) -> None:
        table = labels.table
        n = int(table.codes[-1]) + 1
        fold = Crosswalk.packaged("fullhead", "brainseg")
        self.folded = np.arange(n)
        self.mapping, self.side = np.zeros(n, np.int16), np.zeros(n, np.int8)
        self.is_brain, self.is_inner, self.is_air, self.is_background = np.zeros((4, n), bool)
        for label in table:
            code = label.index
            alias = fold.pairs.get(code, code) if label.mapping else code
            self.folded[code] = alias if alias in table else code
            self.mapping[code] = label.mapping
            self.side[code] = {"left": -1, "right": 1, "none": 0}[label.hemisphere]
            self.is_brain[code] = label.is_brain
            self.is_inner[code] = label.mapping in BRAIN_MAPPINGS
            self.is_air[code] = label.name == _AIR
            self.is_background[code] = not code or (not label.mapping and label.name != _AIR)


# -- pixels -------------------------------------------------------------------------------


def _scale(box_mm: np.ndarray) -> float:
    """Pixels per mm with which all columns fill the width."""
    size_mm = box_mm[:, 1] - box_mm[:, 0]
    n = [len(steps) for steps in _STEPS]
    wide_mm = sum(size_mm[plane.right] * n[plane.axis] for plane in PLANES)
    return float((WIDTH_PX - MARGIN_PX - _GAP_PX * sum(n)) / wide_mm)


def _cut_all(
    image: np.ndarray, maps: list[LabelMap], box_mm: np.ndarray, px_per_mm: float
) -> list[_Column]:
    positions = cut_positions(maps[0], _STEPS, box_mm)
    return [
        _Column(
            plane,
            at_mm,
            tuple(take_cut(image, labels, plane, at_mm, box_mm, px_per_mm) for labels in maps),
        )
        for plane in PLANES
        for at_mm in positions[plane.axis]
    ]


def _fill(
    columns: list[_Column],
    maps: list[LabelMap],
    window: tuple[float, float],
    tall: int,
    n_rows: int,
) -> np.ndarray:
    """(tall * n_rows, WIDTH_PX, 3) uint8."""
    pixels = np.full((tall * n_rows, WIDTH_PX, 3), BACKGROUND, dtype=np.uint8)
    for column, left in zip(columns, _lefts(columns), strict=True):
        tiles = [paint_cut(column.cuts[0], maps[0], window, overlay=False)]
        for cut, labels in zip(column.cuts, maps, strict=True):
            tiles.append(paint_cut(cut, labels, window, overlay=True))
        if len(tiles) < n_rows:
            tiles.append(_paint_changes(column, maps[0], tiles[0]))
        height, width = tiles[0].shape[:2]
        for row, tile in enumerate(tiles):
            top = row * tall + (tall - _ROW_GAP_PX - height) // 2
            pixels[top : top + height, left : left + width] = tile
    return pixels


def _paint_changes(column: _Column, merged: LabelMap, grey: np.ndarray) -> np.ndarray:
    codes = [cut.codes for cut in column.cuts]
    marks = changes(codes[0], codes[1:], merged)
    colors = grey * 0.6
    for mark, (_, rgb) in MARKS.items():
        here = marks == mark
        colors[here] = (1 - _MARK_OPACITY) * colors[here] + _MARK_OPACITY * 255 * np.array(rgb)
    return np.rint(colors).astype(np.uint8)


def _lefts(columns: list[_Column]) -> list[int]:
    """Left edge of each column."""
    widths = [column.cuts[0].codes.shape[1] + _GAP_PX for column in columns]
    return (MARGIN_PX + np.concatenate([[0], np.cumsum(widths)[:-1]])).astype(int).tolist()


# -- words --------------------------------------------------------------------------------


def _write_marks(canvas: Canvas, columns: list[_Column], names: list[str], tall: int) -> None:
    top = HEADER_PX + _TOP_PX
    for column, left in zip(columns, _lefts(columns), strict=True):
        height, width = column.cuts[0].codes.shape
        at = f"{column.plane.name}, {'xyz'[column.plane.axis]} = {signed(column.at_mm)} mm"
        canvas.text(left + width / 2, top - 12, at, ha="center", size_px=14)
        for row in range(len(names)):
            tile_top = top + row * tall + (tall - _ROW_GAP_PX - height) // 2
            write_ends(canvas, column.plane, left, tile_top, width)
    for row, name in enumerate(names):
        middle = top + row * tall + (tall - _ROW_GAP_PX) / 2
        shown = name if len(name) <= 24 else name[:23] + "…"
        canvas.text(20, middle, shown, rotation=90, ha="center", size_px=16, weight="bold")


def _write_mark_legend(canvas: Canvas, top: float, n_sources: int) -> None:
    marks = [MARKS[key] for key in MARKS if n_sources == 2 or key > 2]
    pitch = (WIDTH_PX - MARGIN_PX) / len(MARKS)
    for number, (words, rgb) in enumerate(marks):
        x = MARGIN_PX + number * pitch
        canvas.box(x, top + 2, 38, 14, rgb)
        canvas.text(x + 46, top + 9, words)
