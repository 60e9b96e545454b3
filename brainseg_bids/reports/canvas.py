# SPDX-License-Identifier: Apache-2.0
"""A dark canvas to put tiles, words and a legend on.

No pyplot: figures made in several threads or workers share nothing.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import Label, count_codes
from brainseg_bids.files import whole_or_nothing
from brainseg_bids.reports.groups import GROUPS, group_of_mapping, plain_name, shown_labels
from brainseg_bids.reports.slices import (
    BACKGROUND,
    MARGIN_PX,
    STEPS,
    WIDTH_PX,
    Cut,
    Plane,
    cut_positions,
    slabs,
    take_codes,
    take_cut,
    tile_size,
)

DPI = 100
INK, FAINT, LINE, RED, BLUE = "#e8eaed", "#9aa0a6", "#5f6368", "#f28b82", "#8ab4f8"
PAGE = tuple(value / 255 for value in BACKGROUND)
FONT = {"family": "DejaVu Sans", "parse_math": False}
HEADER_PX = 74
"""Height of the lines above the tiles."""
LEGEND_ROW_PX = 22

ROWS_KEY = "brainseg-rows"
"""Under which the blocks of rows of a picture stand in its file."""

_LEGEND_COLUMNS = 6
_LARGEST_BYTES = 2_000_000


class RowBlock(NamedTuple):
    """Rows of one height that show the same cuts: a page can show one of them at a time.

    Parameters
    ----------
    top, tall : int
        Where the first one begins, and the height of each, pixels.
    names : tuple of str
    """

    top: int
    tall: int
    names: tuple[str, ...]


class Canvas:
    """A dark page addressed in pixels from its upper left corner.

    Attributes
    ----------
    blocks : list of RowBlock
        Kept in the file.
    """

    def __init__(self, width: int, height: int) -> None:
        self.height = height
        size = (width / DPI, height / DPI)
        self.figure = Figure(figsize=size, dpi=DPI, facecolor=PAGE)
        self.canvas = FigureCanvasAgg(self.figure)
        self.blocks: list[RowBlock] = []

    def image(self, pixels: np.ndarray, top: int) -> None:
        self.figure.figimage(pixels, 0, self.height - top - pixels.shape[0], origin="upper")

    def text(self, x: float, y: float, text: str, *, size_px: float = 14, **options) -> None:
        options = FONT | {"color": INK, "ha": "left", "va": "center"} | options
        width = self.figure.get_figwidth() * DPI
        self.figure.text(
            x / width, 1 - y / self.height, text, fontsize=size_px * 72 / DPI, **options
        )

    def box(self, x: float, y: float, width: float, height: float, color) -> None:
        page = self.figure.get_figwidth() * DPI
        self.figure.add_artist(
            Rectangle(
                (x / page, 1 - (y + height) / self.height),
                width / page,
                height / self.height,
                transform=self.figure.transFigure,
                facecolor=color,
                edgecolor=LINE,
                linewidth=0.6,
            )
        )

    def line(self, x: float, y: float, length: float) -> None:
        page = self.figure.get_figwidth() * DPI
        level = 1 - y / self.height
        self.figure.add_artist(
            Line2D(
                [x / page, (x + length) / page],
                [level, level],
                color=INK,
                linewidth=2.5,
                transform=self.figure.transFigure,
                solid_capstyle="butt",
            )
        )

    def title(self, title: str, note: str = "") -> None:
        """What the picture shows, and what to know of it."""
        self.text(MARGIN_PX, 20, title, size_px=19, weight="bold")
        self.text(MARGIN_PX, 44, note, color=FAINT)

    def scale_bar(self, px_per_mm: float, *, y: float = 48, widest_px: float = 260) -> None:
        """A bar of known length in the upper right corner."""
        length_mm = next((n for n in (50, 20, 10, 5) if n * px_per_mm < widest_px), 1)
        length_px = length_mm * px_per_mm
        right = WIDTH_PX - 20
        self.line(right - length_px, y, length_px)
        self.text(right - length_px / 2, y - 18, f"{length_mm} mm", ha="center")

    def save(self, path: Path) -> Path:
        """Write it as PNG, whole or not at all."""
        path = Path(path)
        with whole_or_nothing(path) as temporary:
            write_png(self.pixels(), temporary, self.blocks)
        return path

    def png(self) -> bytes:
        """It as PNG, to be embedded in a page."""
        return png_bytes(self.pixels(), self.blocks)

    def pixels(self) -> np.ndarray:
        """(height, width, 3) uint8."""
        self.canvas.draw()
        return np.asarray(self.canvas.buffer_rgba())[..., :3]


def shorten(text: str, most: int) -> str:
    """Words on one line, at most so many characters.

    >>> shorten("a  long\\nname", 8)
    'a long …'
    """
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


def write_header(
    canvas: Canvas, grid: Grid, window: tuple[float, float], px_per_mm: float, *, empty: bool
) -> None:
    """Convention, grid, grey scale and a bar of known length, in the first `HEADER_PX`."""
    shape = " × ".join(str(n) for n in grid.shape)
    size = " × ".join(f"{size:.2f}" for size in grid.voxel_size_mm)
    convention = "Left of the picture is the person's left (neurological convention)"
    canvas.text(MARGIN_PX, 22, convention, size_px=19, weight="bold")
    notes = [
        f"{shape} voxels of {size} mm",
        f"cuts at world coordinates in mm (RAS+){_tilt_note(grid)}",
        f"black to white: {window[0]:.3g} to {window[1]:.3g}",
    ]
    canvas.text(MARGIN_PX, 50, "   ·   ".join(notes), color=FAINT)
    if empty:
        canvas.text(MARGIN_PX, 70, "Nothing is labelled in this image.", color=RED, weight="bold")
    canvas.scale_bar(px_per_mm)


def write_ends(canvas: Canvas, plane: Plane, left: int, top: int, width: int) -> None:
    """Letters of the directions in the upper corners of a tile."""
    low, high = plane.ends
    halo = withStroke(linewidth=3, foreground="black")
    mark = {"size_px": 13, "weight": "bold", "color": "#ffd54f", "path_effects": [halo]}
    canvas.text(left + 4, top + 11, low, **mark)
    canvas.text(left + width - 4, top + 11, high, ha="right", **mark)


def _tilt_note(grid: Grid) -> str:
    """Words for a grid that is turned against the world axes by more than a degree."""
    cosines = np.abs(grid.affine[:3, :3] / np.array(grid.voxel_size_mm))
    angle = np.degrees(np.arccos(np.clip(cosines.max(axis=0).min(), -1, 1)))
    return f"; voxel axes are tilted by {angle:.0f}°" if angle > 1 else ""


def signed(at_mm: float) -> str:
    """Whole millimetres with a sign, and none for zero."""
    return f"{round(at_mm):+d}".replace("-", "−") if round(at_mm) else "0"


# -- legend -------------------------------------------------------------------------------


def present_labels(labels: LabelMap) -> list[Label]:
    """Labels that a map has and a picture shows."""
    present = count_codes(slabs(labels.voxels))
    return [label for label in shown_labels(labels.table) if label.index in present]


def legend_of(maps: Iterable[LabelMap]) -> dict[str, list[tuple[str, list[Label]]]]:
    """For each group, its structures in any of the maps; left and right share a line."""
    present = {label.index: label for labels in maps for label in present_labels(labels)}
    groups: dict[str, dict[str, list[Label]]] = {}
    for label in (present[code] for code in sorted(present)):
        group = groups.setdefault(group_of_mapping(label.mapping), {})
        name = plain_name(label.name) if label.hemisphere != "none" else label.name
        group.setdefault(name.replace("-", " ").replace("_", " "), []).append(label)
    return {
        group: [
            (name, sorted(sides, key=lambda label: label.hemisphere))
            for name, sides in groups[group].items()
        ]
        for group in GROUPS
        if group in groups
    }


def legend_px(legend: dict) -> int:
    """Height of a legend."""
    return (_legend_rows(legend) + 2) * LEGEND_ROW_PX


def _legend_rows(legend: dict) -> int:
    """Fewest rows with which all groups fit beside each other."""
    rows = 1
    while sum(-(-len(entries) // rows) for entries in legend.values()) > max(
        _LEGEND_COLUMNS, len(legend)
    ):
        rows += 1
    return rows


def write_legend(canvas: Canvas, legend: dict, top: float) -> None:
    """Groups beside each other, each structure with the colours of its sides."""
    rows = _legend_rows(legend)
    pitch = (WIDTH_PX - MARGIN_PX) / max(_LEGEND_COLUMNS, len(legend))
    column = 0
    for group, entries in legend.items():
        canvas.text(MARGIN_PX + column * pitch, top + 8, group, weight="bold", size_px=16)
        sides = any(label.hemisphere != "none" for _, found in entries for label in found)
        if sides:
            canvas.text(MARGIN_PX + column * pitch + 64, top + 8, "(left | right)", color=FAINT)
        for number, (name, found) in enumerate(entries):
            x = MARGIN_PX + (column + number // rows) * pitch
            y = top + (number % rows + 1.6) * LEGEND_ROW_PX
            for label in found:
                shift = 20 if label.hemisphere == "right" else 0
                width = 38 if label.hemisphere == "none" else 18
                canvas.box(x + shift, y - 7, width, 14, label.rgb)
            canvas.text(x + 46, y, shorten(name, 26))
        column += -(-len(entries) // rows)


def write_png(pixels: np.ndarray, path: Path, blocks: Sequence[RowBlock] = ()) -> None:
    """Write pixels (h, w, 3) uint8."""
    path.write_bytes(png_bytes(pixels, blocks))


def png_bytes(pixels: np.ndarray, blocks: Sequence[RowBlock] = ()) -> bytes:
    """Pixels (h, w, 3) uint8 as PNG, with fewer levels of grey if it would be very large."""
    png = _encoded(pixels, blocks)
    page = (pixels == BACKGROUND).all(axis=2, keepdims=True)
    for step in (8, 16):
        if len(png) <= _LARGEST_BYTES:
            break
        # Noise does not compress. 32 or 16 levels of grey are more than anyone tells apart in it.
        coarse = np.minimum((pixels.astype(np.uint16) + step // 2) // step * step, 255)
        png = _encoded(np.where(page, pixels, coarse.astype(np.uint8)), blocks)
    return png


def _encoded(pixels: np.ndarray, blocks: Sequence[RowBlock]) -> bytes:
    file, about = io.BytesIO(), PngInfo()
    if blocks:
        about.add_text(ROWS_KEY, json.dumps(blocks))
    Image.fromarray(pixels).save(file, format="PNG", pnginfo=about)
    return file.getvalue()


def row_blocks(png: bytes) -> tuple[tuple[int, int], list[RowBlock]]:
    """Width and height of a picture, and its blocks of rows; none if it was drawn without.

    Blocks are given only if all have the same rows, at least two.
    """
    with Image.open(io.BytesIO(png)) as image:
        found = [
            RowBlock(int(top), int(tall), tuple(map(str, names)))
            for top, tall, names in json.loads(image.text.get(ROWS_KEY, "[]"))
        ]
        size = image.size
    same = len({block.names for block in found}) == 1 and len(found[0].names) > 1
    return size, found if same else []


# -- slices beside each other -----------------------------------------------------------

GAP_PX = 6


@dataclass(frozen=True)
class SliceRow:
    """Where cuts stand beside each other, all at one scale.

    Parameters
    ----------
    planes : tuple of Plane
        Of each column.
    lefts, widths, heights : tuple of int
        Pixels, of each column.
    px_per_mm : float
    tall : int
        Height of a row with the gap beneath it, pixels.
    """

    planes: tuple[Plane, ...]
    lefts: tuple[int, ...]
    widths: tuple[int, ...]
    heights: tuple[int, ...]
    px_per_mm: float
    tall: int

    @classmethod
    def fit(
        cls,
        size_mm: np.ndarray,
        planes: Sequence[Plane],
        *,
        width_px: int = WIDTH_PX,
        tallest_px: int = 420,
        px_per_mm: float | None = None,
    ) -> SliceRow:
        """Columns that fill a width, unless they would become taller than ``tallest_px``.

        Parameters
        ----------
        size_mm : (3,) float
            Of the box that every column shows, along R, A, S.
        planes : sequence of Plane
            One for each column.
        px_per_mm : float, optional
            A scale that is given.
        """
        size_mm = np.asarray(size_mm, dtype=float)
        wide_mm = sum(size_mm[plane.right] for plane in planes)
        tall_mm = max(size_mm[plane.up] for plane in planes)
        free_px = width_px - MARGIN_PX - GAP_PX * len(planes)
        px_per_mm = px_per_mm or float(min(free_px / wide_mm, tallest_px / tall_mm))
        box_mm = np.stack([np.zeros(3), size_mm], axis=1)
        sizes = [tile_size(plane, box_mm, px_per_mm) for plane in planes]
        # What the columns leave free goes between them.
        gap = (width_px - MARGIN_PX - sum(width for width, _ in sizes)) / len(planes)
        lefts = MARGIN_PX + np.cumsum([0, *(width + gap for width, _ in sizes[:-1])])
        return cls(
            planes=tuple(planes),
            lefts=tuple(int(left) for left in lefts),
            widths=tuple(width for width, _ in sizes),
            heights=tuple(height for _, height in sizes),
            px_per_mm=px_per_mm,
            tall=max(height for _, height in sizes) + GAP_PX,
        )

    def cuts(
        self, image: np.ndarray, labels: LabelMap, at_mm: Sequence[float], box_mm: np.ndarray
    ) -> list[Cut]:
        """One cut per column, at ``at_mm`` across its plane."""
        return [
            take_cut(image, labels, plane, at, box_mm, self.px_per_mm)
            for plane, at in zip(self.planes, at_mm, strict=True)
        ]

    def codes(
        self, labels: LabelMap, at_mm: Sequence[float], box_mm: np.ndarray
    ) -> list[np.ndarray]:
        """Codes of one cut per column."""
        return [
            take_codes(labels, plane, at, box_mm, self.px_per_mm)
            for plane, at in zip(self.planes, at_mm, strict=True)
        ]

    def pixels(self, rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
        """Tiles (h, w, 3) uint8 of each row and column, put together: (n * tall, WIDTH_PX, 3)."""
        canvas = np.full((self.tall * len(rows), WIDTH_PX, 3), BACKGROUND, dtype=np.uint8)
        for row, tiles in enumerate(rows):
            for column, tile in enumerate(tiles):
                top = row * self.tall + self._shift(column)
                # Boxes of one size may differ by a pixel: they are rounded.
                height, width = self.heights[column], self.widths[column]
                shown = tile[:height, :width]
                left = self.lefts[column]
                canvas[top : top + shown.shape[0], left : left + shown.shape[1]] = shown
        return canvas

    def write(
        self,
        canvas: Canvas,
        top: int,
        rows: Mapping[str, Sequence[np.ndarray]],
        at_mm: Sequence[float] | None = None,
    ) -> None:
        """Put rows of tiles on a canvas, with the rows' names and those of the planes above."""
        canvas.image(self.pixels(list(rows.values())), top)
        canvas.blocks.append(RowBlock(top, self.tall, tuple(rows)))
        self.write_columns(canvas, top - 12, at_mm)
        for number, name in enumerate(rows):
            self.write_row(canvas, top + number * self.tall, name)

    def write_row(self, canvas: Canvas, top: int, name: str) -> None:
        """Letters of the directions on each tile, and what the row shows beside it."""
        for column, plane in enumerate(self.planes):
            where = top + self._shift(column)
            write_ends(canvas, plane, self.lefts[column], where, self.widths[column])
        middle = top + (self.tall - GAP_PX) / 2
        canvas.text(
            20, middle, shorten(name, 30), rotation=90, ha="center", size_px=16, weight="bold"
        )

    def write_columns(
        self, canvas: Canvas, y: float, at_mm: Sequence[float] | None = None
    ) -> None:
        """Name of each column's plane, and where it cuts if that is one place."""
        for column, plane in enumerate(self.planes):
            at = "" if at_mm is None else f", {'xyz'[plane.axis]} = {signed(at_mm[column])} mm"
            middle = self.lefts[column] + self.widths[column] / 2
            canvas.text(middle, y, f"{plane.name}{at}", ha="center", size_px=14)

    def _shift(self, column: int) -> int:
        return (self.tall - GAP_PX - self.heights[column]) // 2


def six_cuts(labels: LabelMap, box_mm: np.ndarray) -> list[float]:
    """Where each column of `STEPS` cuts the brain, mm."""
    return [at for along in cut_positions(labels, STEPS, box_mm) for at in along]


def same_size(boxes_mm: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Boxes about the same centres, all as large as the largest along each axis.

    Parameters
    ----------
    boxes_mm : sequence of (3, 2) float
        First and last world coordinate along R, A, S.
    """
    half = np.max([box[:, 1] - box[:, 0] for box in boxes_mm], axis=0) / 2
    centres = [box.mean(axis=1) for box in boxes_mm]
    return [np.stack([centre - half, centre + half], axis=1) for centre in centres]
