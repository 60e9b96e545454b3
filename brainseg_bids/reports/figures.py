# SPDX-License-Identifier: Apache-2.0
"""Pictures: a segmentation over its image, volumes over participants.

No pyplot: figures made in several threads or workers share nothing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import Label
from brainseg_bids.reports.groups import GROUPS, group_of_mapping, plain_name, shown_labels
from brainseg_bids.reports.montage import (
    BACKGROUND,
    MARGIN_PX,
    PLANES,
    WIDTH_PX,
    Montage,
    arrange,
    slabs,
)
from brainseg_bids.volumes import whole_or_nothing

HEADER_PX = 74
"""Height of the lines above the montage."""

_LEGEND_ROW_PX, _LEGEND_COLUMNS = 22, 6
_DPI = 100
_LARGEST_BYTES = 2_000_000
_INK, _FAINT, _LINE, _RED, _BLUE = "#e8eaed", "#9aa0a6", "#5f6368", "#f28b82", "#8ab4f8"
_PAGE = tuple(value / 255 for value in BACKGROUND)
_FONT = {"family": "DejaVu Sans", "parse_math": False}


def draw_segmentation(image: np.ndarray, labels: LabelMap, path: Path, *, n_cuts: int = 7) -> Path:
    """Draw sagittal, coronal and axial cuts of an image, plain and with its labels filled in.

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
    montage = arrange(image, labels, n_cuts=n_cuts)
    path = Path(path)
    with whole_or_nothing(path) as temporary:
        _write_png(_annotate(montage, labels), temporary)
    return path


def draw_volumes(
    percents: dict[str, dict[str, float]], outliers: dict[str, set[str]], path: Path
) -> Path:
    """Draw how far each participant's volumes lie from the median, one line per structure.

    Parameters
    ----------
    percents : dict of str to dict of str to float
        For each structure, participant to per cent above (or below) the structure's median.
    outliers : dict of str to set of str
        For each structure, the participants to name.
    path : Path
        PNG file, written whole or not at all.
    """
    height = 70 + 26 * len(percents)
    figure = Figure(figsize=(12, height / _DPI), dpi=_DPI, facecolor=_PAGE)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.2, 50 / height, 0.77, 1 - 65 / height), facecolor=_PAGE)
    values = [value for found in percents.values() for value in found.values()]
    # Beyond +-100 % the dot is an arrow at the edge: one failure must not flatten the rest.
    limit = float(np.clip(np.max(np.abs(values), initial=0) * 1.15, 10, 100))
    for line, (structure, found) in enumerate(percents.items()):
        axes.axhline(line, color=_LINE, alpha=0.4, linewidth=1, zorder=0)
        named = outliers.get(structure, set())
        for who, value in found.items():
            marker = "o" if abs(value) < limit else "<" if value < 0 else ">"
            at = float(np.clip(value, -limit * 0.99, limit * 0.99))
            color = _RED if who in named else _BLUE
            axes.plot(at, line, marker, color=color, markersize=5, alpha=0.85, markeredgewidth=0)
            if who in named:
                # Away from the crowd in the middle, unless there is no room.
                right = (at > 0) == (abs(at) < 0.85 * limit)
                axes.annotate(
                    who,
                    (at, line),
                    xytext=(7 if right else -7, 0),
                    fontsize=8,
                    textcoords="offset points",
                    color=_INK,
                    va="center",
                    ha="left" if right else "right",
                    **_FONT,
                )
    axes.axvline(0, color=_FAINT, linewidth=1, zorder=0)
    axes.set(xlim=(-limit, limit), ylim=(len(percents) - 0.4, -0.6))
    axes.set_yticks(range(len(percents)), list(percents), **_FONT)
    axes.set_xlabel("difference from the median (%)", color=_INK, **_FONT)
    axes.tick_params(colors=_INK, labelsize=9)
    for spine in axes.spines.values():
        spine.set_color(_LINE)
    figure.canvas.draw()
    path = Path(path)
    with whole_or_nothing(path) as temporary:
        _write_png(np.asarray(figure.canvas.buffer_rgba())[..., :3], temporary)
    return path


# -- words on the picture -----------------------------------------------------------------


class _Sheet:
    """A dark page addressed in pixels from its upper left corner."""

    def __init__(self, width: int, height: int) -> None:
        self.height = height
        size = (width / _DPI, height / _DPI)
        self.figure = Figure(figsize=size, dpi=_DPI, facecolor=_PAGE)
        self.canvas = FigureCanvasAgg(self.figure)

    def image(self, pixels: np.ndarray, top: int) -> None:
        self.figure.figimage(pixels, 0, self.height - top - pixels.shape[0], origin="upper")

    def text(self, x: float, y: float, text: str, *, size_px: float = 14, **options) -> None:
        options = _FONT | {"color": _INK, "ha": "left", "va": "center"} | options
        width = self.figure.get_figwidth() * _DPI
        self.figure.text(
            x / width, 1 - y / self.height, text, fontsize=size_px * 72 / _DPI, **options
        )

    def box(self, x: float, y: float, width: float, height: float, color) -> None:
        page = self.figure.get_figwidth() * _DPI
        self.figure.add_artist(
            Rectangle(
                (x / page, 1 - (y + height) / self.height),
                width / page,
                height / self.height,
                transform=self.figure.transFigure,
                facecolor=color,
                edgecolor=_LINE,
                linewidth=0.6,
            )
        )

    def line(self, x: float, y: float, length: float) -> None:
        page = self.figure.get_figwidth() * _DPI
        level = 1 - y / self.height
        self.figure.add_artist(
            Line2D(
                [x / page, (x + length) / page],
                [level, level],
                color=_INK,
                linewidth=2.5,
                transform=self.figure.transFigure,
                solid_capstyle="butt",
            )
        )

    def pixels(self) -> np.ndarray:
        """(height, width, 3) uint8."""
        self.canvas.draw()
        return np.asarray(self.canvas.buffer_rgba())[..., :3]


def _annotate(montage: Montage, labels: LabelMap) -> np.ndarray:
    present = _present(labels)
    legend = _legend_groups(present)
    rows = _legend_rows(legend)
    bottom = HEADER_PX + montage.pixels.shape[0]
    height = bottom + ((rows + 2) * _LEGEND_ROW_PX + 20 if legend else 12)
    sheet = _Sheet(WIDTH_PX, height)
    sheet.image(montage.pixels, HEADER_PX)
    _write_header(sheet, montage, labels.grid, empty=not present)
    _write_tile_marks(sheet, montage)
    _write_legend(sheet, legend, rows, bottom + 10)
    return sheet.pixels()


def _write_header(sheet: _Sheet, montage: Montage, grid: Grid, *, empty: bool) -> None:
    shape = " × ".join(str(n) for n in grid.shape)
    size = " × ".join(f"{size:.2f}" for size in grid.voxel_size_mm)
    convention = "Left of the picture is the person's left (neurological convention)"
    sheet.text(MARGIN_PX, 22, convention, size_px=19, weight="bold")
    notes = [
        f"{shape} voxels of {size} mm",
        f"cuts at world coordinates in mm (RAS+){_tilt_note(grid)}",
        f"black to white: {montage.window[0]:.3g} to {montage.window[1]:.3g}",
    ]
    sheet.text(MARGIN_PX, 50, "   ·   ".join(notes), color=_FAINT)
    if empty:
        sheet.text(MARGIN_PX, 70, "Nothing is labelled in this image.", color=_RED, weight="bold")
    length_mm = next((n for n in (50, 20, 10, 5) if n * montage.px_per_mm < 260), 1)
    length_px = length_mm * montage.px_per_mm
    right = WIDTH_PX - 20
    sheet.line(right - length_px, 48, length_px)
    sheet.text(right - length_px / 2, 30, f"{length_mm} mm", ha="center")


def _tilt_note(grid: Grid) -> str:
    """Words for a grid that is turned against the world axes by more than a degree."""
    cosines = np.abs(grid.affine[:3, :3] / np.array(grid.voxel_size_mm))
    angle = np.degrees(np.arccos(np.clip(cosines.max(axis=0).min(), -1, 1)))
    return f"; voxel axes are tilted by {angle:.0f}°" if angle > 1 else ""


def _write_tile_marks(sheet: _Sheet, montage: Montage) -> None:
    for tile in montage.tiles:
        top = HEADER_PX + tile.top
        low, high = tile.plane.ends
        halo = withStroke(linewidth=3, foreground="black")
        mark = {"size_px": 13, "weight": "bold", "color": "#ffd54f", "path_effects": [halo]}
        sheet.text(tile.left + 4, top + 11, low, **mark)
        sheet.text(tile.left + tile.width - 4, top + 11, high, ha="right", **mark)
        if not tile.overlay:
            at = f"{'xyz'[tile.plane.axis]} = {_signed(tile.at_mm)} mm"
            sheet.text(tile.left + tile.width / 2, top - 11, at, ha="center", size_px=14)
    for plane in PLANES:
        row = [tile for tile in montage.tiles if tile.plane is plane]
        top, bottom = min(tile.top for tile in row), max(tile.top + tile.height for tile in row)
        words = f"{plane.name}, {plane.order}" if bottom - top > 180 else plane.name
        sheet.text(
            20,
            HEADER_PX + (top + bottom) / 2,
            words,
            rotation=90,
            ha="center",
            size_px=16,
            weight="bold",
        )


def _signed(at_mm: float) -> str:
    """Whole millimetres with a sign, and none for zero."""
    return f"{round(at_mm):+d}".replace("-", "−") if round(at_mm) else "0"


# -- legend -------------------------------------------------------------------------------


def _present(labels: LabelMap) -> list[Label]:
    present = np.zeros(int(labels.table.codes[-1]) + 1, dtype=bool)
    for slab in slabs(labels.voxels):
        present[np.flatnonzero(np.bincount(slab.ravel()))] = True
    return [label for label in shown_labels(labels.table) if present[label.index]]


def _legend_groups(present: list[Label]) -> dict[str, list[tuple[str, list[Label]]]]:
    """For each group, its structures; left and right share a line, left first."""
    groups: dict[str, dict[str, list[Label]]] = {}
    for label in present:
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


def _legend_rows(legend: dict) -> int:
    """Fewest rows with which all groups fit beside each other."""
    rows = 1
    while sum(-(-len(entries) // rows) for entries in legend.values()) > max(
        _LEGEND_COLUMNS, len(legend)
    ):
        rows += 1
    return rows


def _write_legend(sheet: _Sheet, legend: dict, rows: int, top: float) -> None:
    pitch = (WIDTH_PX - MARGIN_PX) / max(_LEGEND_COLUMNS, len(legend))
    column = 0
    for group, entries in legend.items():
        sheet.text(MARGIN_PX + column * pitch, top + 8, group, weight="bold", size_px=16)
        sides = any(label.hemisphere != "none" for _, found in entries for label in found)
        if sides:
            sheet.text(MARGIN_PX + column * pitch + 64, top + 8, "(left | right)", color=_FAINT)
        for number, (name, found) in enumerate(entries):
            x = MARGIN_PX + (column + number // rows) * pitch
            y = top + (number % rows + 1.6) * _LEGEND_ROW_PX
            for label in found:
                shift = 20 if label.hemisphere == "right" else 0
                width = 38 if label.hemisphere == "none" else 18
                sheet.box(x + shift, y - 7, width, 14, label.rgb)
            sheet.text(x + 46, y, name if len(name) <= 26 else name[:25] + "…")
        column += -(-len(entries) // rows)


def _write_png(pixels: np.ndarray, path: Path) -> None:
    Image.fromarray(pixels).save(path, format="PNG")
    if path.stat().st_size > _LARGEST_BYTES:
        # Noise does not compress. 32 levels of grey are more than anyone tells apart in it.
        page = (pixels == BACKGROUND).all(axis=2, keepdims=True)
        coarse = np.minimum((pixels.astype(np.uint16) + 4) // 8 * 8, 255).astype(np.uint8)
        Image.fromarray(np.where(page, pixels, coarse)).save(path, format="PNG")
