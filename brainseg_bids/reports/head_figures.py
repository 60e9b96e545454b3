# SPDX-License-Identifier: Apache-2.0
"""The picture of a merge: the result over the image, beneath it each tool's map and the changes.

Columns are cuts, rows are label maps, so that the eye compares up and down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import BRAIN_MAPPINGS
from brainseg_bids.reports.canvas import (
    HEADER_PX,
    LEGEND_ROW_PX,
    Canvas,
    SliceRow,
    legend_of,
    legend_px,
    present_labels,
    six_cuts,
    write_header,
    write_legend,
)
from brainseg_bids.reports.slices import (
    MARGIN_PX,
    SIX_PLANES,
    WIDTH_PX,
    Cut,
    grey_window,
    paint_cut,
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

_AIR = "Air-Internal"
_MARK_OPACITY, _DIMMED = 0.85, 0.6
_TOP_PX = 26  # above the tiles: names of the planes


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
    box_mm = view_mm(merged)
    slices = SliceRow.fit(box_mm[:, 1] - box_mm[:, 0], SIX_PLANES)
    at_mm = six_cuts(merged, box_mm)
    cuts = slices.cuts(image, merged, at_mm, box_mm)
    window = grey_window(cuts, merged)
    codes = {name: slices.codes(labels, at_mm, box_mm) for name, labels in sources}
    rows = _paint(cuts, codes, merged, window)
    legend = legend_of([merged, *(labels for _, labels in sources)])
    top = HEADER_PX + _TOP_PX
    bottom = top + slices.tall * len(rows)
    marks_px = LEGEND_ROW_PX + 14 if sources else 0
    canvas = Canvas(WIDTH_PX, bottom + marks_px + legend_px(legend) + 20)
    slices.write(canvas, top, rows, at_mm)
    empty = not present_labels(merged)
    write_header(canvas, merged.grid, window, slices.px_per_mm, empty=empty)
    if sources:
        _write_mark_legend(canvas, bottom + 6, len(sources))
    write_legend(canvas, legend, bottom + marks_px + 10)
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


# -- rows ---------------------------------------------------------------------------------


def _paint(
    cuts: Sequence[Cut],
    codes: Mapping[str, Sequence[np.ndarray]],
    merged: LabelMap,
    window: tuple[float, float],
) -> dict[str, list[np.ndarray]]:
    """Tiles by what their row shows: the image, the merged map, each tool's, what changed."""

    def painted(cuts: Sequence[Cut], *, overlay: bool = True) -> list[np.ndarray]:
        return [paint_cut(cut, merged, window, overlay=overlay) for cut in cuts]

    rows = {"image": painted(cuts, overlay=False), "merged": painted(cuts)}
    for name, own in codes.items():
        rows[name] = painted([replace(c, codes=o) for c, o in zip(cuts, own, strict=True)])
    if codes:
        rows["changes"] = [
            _paint_changes(cut.codes, of_tools, merged, grey)
            for cut, of_tools, grey in zip(
                cuts, zip(*codes.values(), strict=True), rows["image"], strict=True
            )
        ]
    return rows


def _paint_changes(
    merged: np.ndarray, sources: Sequence[np.ndarray], labels: LabelMap, grey: np.ndarray
) -> np.ndarray:
    marks = changes(merged, list(sources), labels)
    colors = grey * _DIMMED
    for mark, (_, rgb) in MARKS.items():
        here = marks == mark
        colors[here] = (1 - _MARK_OPACITY) * colors[here] + _MARK_OPACITY * 255 * np.array(rgb)
    return np.rint(colors).astype(np.uint8)


def _write_mark_legend(canvas: Canvas, top: float, n_sources: int) -> None:
    marks = [MARKS[key] for key in MARKS if n_sources == 2 or key > 2]
    pitch = (WIDTH_PX - MARGIN_PX) / len(MARKS)
    for number, (words, rgb) in enumerate(marks):
        x = MARGIN_PX + number * pitch
        canvas.box(x, top + 2, 38, 14, rgb)
        canvas.text(x + 46, top + 9, words)
