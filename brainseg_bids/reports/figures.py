# SPDX-License-Identifier: Apache-2.0
"""Pictures of a segmentation over its image, in world millimetres."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL import Image
from scipy import ndimage

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import Label
from brainseg_bids.reports.groups import (
    BRAIN,
    CSF,
    GROUPS,
    group_of_mapping,
    plain_name,
    shown_labels,
)
from brainseg_bids.volumes import whole_or_nothing

OPACITY = 0.5
"""Share of the label's colour in a filled pixel; the rest is the image beneath."""

_WIDTH_PX, _TILES_HEIGHT_PX = 1600, 1800
_MARGIN_PX, _GAP_PX, _PAIR_HEAD_PX, _PLANE_GAP_PX = 44, 4, 22, 14
_HEADER_PX, _LEGEND_ROW_PX, _LEGEND_COLUMNS = 74, 22, 6
_DPI = 100
_MARGIN_MM, _SMALLEST_VIEW_MM = 6.0, 100.0
_BACKGROUND, _INK, _FAINT = "#0b0d10", "#e8eaed", "#9aa0a6"
_HEADROOM = 0.08  # keeps white matter in a T1w picture short of white
# Pixels lie this far off voxel borders, so that a border belongs to the same voxel
# whichever way the file's axes run.
_NUDGE_MM = 1.7e-4


@dataclass(frozen=True)
class Plane:
    """One of the three views: world axis cut, and the axes drawn to the right and upwards."""

    name: str
    axis: int
    right: int
    up: int
    ends: tuple[str, str]
    order: str


PLANES = (
    Plane("Sagittal", 0, 1, 2, ("P", "A"), "left to right"),
    Plane("Coronal", 1, 0, 2, ("L", "R"), "back to front"),
    Plane("Axial", 2, 0, 1, ("L", "R"), "bottom to top"),
)


@dataclass(frozen=True)
class Tile:
    """Where one cut lies in the picture.

    Parameters
    ----------
    plane : Plane
    at_mm : float
        World coordinate of the cut along ``plane.axis``.
    overlay : bool
        Whether labels are drawn over the image.
    left, top, width, height : int
        Pixels, from the upper left corner.
    """

    plane: Plane
    at_mm: float
    overlay: bool
    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class Montage:
    """All cuts of a picture, before anything is written on it.

    Parameters
    ----------
    pixels : (height, width, 3) uint8
    tiles : tuple of Tile
    box_mm : (3, 2) float
        What every tile shows: first and last world coordinate along R, A, S.
    px_per_mm : float
        One scale for all tiles and both directions.
    window : tuple of 2 float
        Image intensities shown as black and as white.
    """

    pixels: np.ndarray
    tiles: tuple[Tile, ...]
    box_mm: np.ndarray
    px_per_mm: float
    window: tuple[float, float]

    def pixel(self, tile: Tile, world_mm: tuple[float, float, float]) -> tuple[int, int]:
        """Row and column at which ``tile`` shows a world position."""
        plane = tile.plane
        column = (world_mm[plane.right] - self.box_mm[plane.right, 0]) * self.px_per_mm
        row = (self.box_mm[plane.up, 1] - world_mm[plane.up]) * self.px_per_mm
        return tile.top + int(row), tile.left + int(column)


def draw_segmentation(
    image: np.ndarray, labels: LabelMap, path: Path, *, n_cuts: int = 7
) -> Path:
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


def arrange(image: np.ndarray, labels: LabelMap, *, n_cuts: int = 7) -> Montage:
    """Cut, colour and lay out; see `draw_segmentation` for parameters and errors."""
    if image.shape != labels.voxels.shape:
        raise ValueError(f"image {image.shape} and labels {labels.voxels.shape} differ in shape")
    if n_cuts < 1:
        raise ValueError(f"n_cuts is {n_cuts}, at least 1 is needed")
    box_mm = _view(labels)
    positions = _positions(labels, n_cuts, box_mm)
    px_per_mm = _scale(box_mm, n_cuts)
    cuts = {
        (plane.name, at_mm): _cut(image, labels, plane, at_mm, box_mm, px_per_mm)
        for plane in PLANES
        for at_mm in positions[plane.axis]
    }
    window = _window(cuts.values(), labels)
    tiles = _lay_out(positions, box_mm, px_per_mm, n_cuts)
    height = max(tile.top + tile.height for tile in tiles)
    pixels = np.full((height, _WIDTH_PX, 3), _rgb(_BACKGROUND), dtype=np.uint8)
    for tile in tiles:
        cut = cuts[tile.plane.name, tile.at_mm]
        pixels[tile.top : tile.top + tile.height, tile.left : tile.left + tile.width] = _paint(
            cut, labels, window, overlay=tile.overlay
        )
    return Montage(pixels, tiles, box_mm, px_per_mm, window)


# -- where to cut -------------------------------------------------------------------------


def _view(labels: LabelMap) -> np.ndarray:
    """World box to show, (3, 2) mm: what is labelled and a margin, within the image."""
    whole = _corners_mm(labels.grid)
    whole = np.stack([whole.min(axis=1), whole.max(axis=1)], axis=1)
    ends = _ends_mm(labels, [label.index for label in shown_labels(labels.table)])
    if ends is None:
        return whole
    half_voxel = np.abs(labels.grid.affine[:3, :3]).sum(axis=1) / 2
    low, high = ends.min(axis=1) - half_voxel, ends.max(axis=1) + half_voxel
    # A failed segmentation may be a few voxels; the head around it tells why.
    short = np.maximum(0, _SMALLEST_VIEW_MM - (high - low)) / 2
    low, high = low - short - _MARGIN_MM, high + short + _MARGIN_MM
    return np.stack([np.maximum(low, whole[:, 0]), np.minimum(high, whole[:, 1])], axis=1)


def _positions(labels: LabelMap, n_cuts: int, box_mm: np.ndarray) -> list[list[float]]:
    """World coordinates of the cuts along R, A, S."""
    shown = shown_labels(labels.table)
    brain = [label.index for label in shown if label.is_brain]
    ends = _ends_mm(labels, brain)
    if ends is None:
        ends = _ends_mm(labels, [label.index for label in shown])
    if ends is None:
        low, high = box_mm[:, 0], box_mm[:, 1]
    else:
        # Percentiles: a stray voxel far away must not move the cuts out of the brain.
        low, high = np.percentile(ends, 1, axis=1), np.percentile(ends, 99, axis=1)
    steps = (np.arange(n_cuts) + 0.7) / (n_cuts + 0.4)
    return [
        [round(float(at), 1) for at in low[axis] + steps * (high[axis] - low[axis])]
        for axis in range(3)
    ]


def _ends_mm(labels: LabelMap, codes: list[int]) -> np.ndarray | None:
    """World positions of the lowest and highest wanted voxel of each column, (3, n), or None.

    Extremes along any direction are among them, for oblique grids too.
    """
    wanted = np.zeros(max(int(labels.table.codes[-1]), 0) + 1, dtype=bool)
    wanted[codes] = True
    mask = np.empty_like(labels.voxels, dtype=bool)
    # Slab by slab: indexing with the whole array would first widen it to 8 bytes a voxel.
    slabs = int(np.argmax(np.abs(labels.voxels.strides)))
    for out, slab in zip(
        np.moveaxis(mask, slabs, 0), np.moveaxis(labels.voxels, slabs, 0), strict=True
    ):
        out[...] = wanted[slab]
    grid, mask = labels.grid.to_ras(), labels.grid.array_to_ras(mask)
    i, j = np.nonzero(mask.any(axis=2))
    if not i.size:
        return None
    lowest = mask.argmax(axis=2)[i, j]
    highest = mask.shape[2] - 1 - mask[:, :, ::-1].argmax(axis=2)[i, j]
    voxels = np.concatenate([[i, j, lowest], [i, j, highest]], axis=1)
    return grid.affine[:3, :3] @ voxels + grid.affine[:3, 3:]


def _corners_mm(grid: Grid) -> np.ndarray:
    corners = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in grid.shape])).reshape(3, -1)
    return grid.affine[:3, :3] @ corners + grid.affine[:3, 3:]


# -- one cut ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cut:
    """Sampled plane, all (height, width): intensities, codes, whether inside the image."""

    grey: np.ndarray
    codes: np.ndarray
    inside: np.ndarray


def _cut(image, labels: LabelMap, plane: Plane, at_mm, box_mm, px_per_mm) -> _Cut:
    width, height = _tile_size(plane, box_mm, px_per_mm)
    to_voxel = np.linalg.inv(labels.grid.affine)
    world = np.full(3, _NUDGE_MM)
    world[plane.axis] += at_mm
    world[plane.right] += box_mm[plane.right, 0]
    world[plane.up] += box_mm[plane.up, 1]
    start = to_voxel[:3, :3] @ world + to_voxel[:3, 3]
    right = (np.arange(width) + 0.5) / px_per_mm
    down = (np.arange(height) + 0.5) / px_per_mm
    at = (
        start[:, None, None]
        + to_voxel[:3, plane.right, None, None] * right
        - to_voxel[:3, plane.up, None, None] * down[:, None]
    )
    last = np.array(image.shape)[:, None, None] - 1
    inside = ((at >= -0.5) & (at <= last + 0.5)).all(axis=0)
    grey = ndimage.map_coordinates(image, at, order=1, mode="nearest", output=np.float32)
    nearest = np.clip(np.floor(at + 0.5).astype(np.intp), 0, last)
    codes = np.where(inside, labels.voxels[tuple(nearest)], 0)
    return _Cut(grey, codes, inside)


def _window(cuts, labels: LabelMap) -> tuple[float, float]:
    """Intensities of black and white: robust, and not set by fat or vessels outside the brain."""
    cuts = list(cuts)
    grey = np.concatenate([cut.grey[cut.inside] for cut in cuts])
    codes = np.concatenate([cut.codes[cut.inside] for cut in cuts])
    finite = np.isfinite(grey)
    grey, codes = grey[finite], codes[finite]
    if not grey.size:
        return 0.0, 1.0
    shown = shown_labels(labels.table)
    head = grey[np.isin(codes, [label.index for label in shown])]
    inner = [label.index for label in shown if group_of_mapping(label.mapping) in (BRAIN, CSF)]
    brain = grey[np.isin(codes, inner)]
    low = np.percentile(head if head.size > 500 else grey, 1)
    high = np.percentile(next((v for v in (brain, head) if v.size > 500), grey), 99.5)
    if high <= low:
        low, high = float(grey.min()), float(grey.max())
    high += _HEADROOM * (high - low)
    return float(low), float(high if high > low else low + 1)


def _paint(cut: _Cut, labels: LabelMap, window, *, overlay: bool) -> np.ndarray:
    """Colours of one tile, (height, width, 3) uint8."""
    low, high = window
    grey = np.nan_to_num(np.clip((cut.grey - low) / (high - low), 0, 1)) * cut.inside
    colors = np.repeat(grey[..., None], 3, axis=2)
    if overlay:
        largest = int(labels.table.codes[-1])
        palette, filled = np.zeros((largest + 1, 3), np.float32), np.zeros(largest + 1, bool)
        for label in shown_labels(labels.table):
            palette[label.index], filled[label.index] = label.rgb, True
        here = filled[cut.codes]
        colors[here] = (1 - OPACITY) * colors[here] + OPACITY * palette[cut.codes[here]]
    return np.rint(colors * 255).astype(np.uint8)


# -- layout -------------------------------------------------------------------------------


def _tile_size(plane: Plane, box_mm: np.ndarray, px_per_mm: float) -> tuple[int, int]:
    """Width and height in pixels."""
    size_mm = box_mm[:, 1] - box_mm[:, 0]
    return tuple(max(1, round(float(size_mm[a]) * px_per_mm)) for a in (plane.right, plane.up))


def _scale(box_mm: np.ndarray, n_cuts: int) -> float:
    """Pixels per mm that fill the picture's width, unless it would become too tall."""
    size_mm = box_mm[:, 1] - box_mm[:, 0]
    widest_mm = max(size_mm[plane.right] for plane in PLANES)
    tall_mm = 2 * sum(size_mm[plane.up] for plane in PLANES)
    wide_px = (_WIDTH_PX - _MARGIN_PX - _GAP_PX * n_cuts) / n_cuts
    return float(min(wide_px / widest_mm, _TILES_HEIGHT_PX / tall_mm))


def _lay_out(positions, box_mm, px_per_mm, n_cuts) -> tuple[Tile, ...]:
    tiles, top = [], 0
    pitch = (_WIDTH_PX - _MARGIN_PX) / n_cuts
    for plane in PLANES:
        width, height = _tile_size(plane, box_mm, px_per_mm)
        top += _PAIR_HEAD_PX
        for overlay in (False, True):
            for column, at_mm in enumerate(positions[plane.axis]):
                left = round(_MARGIN_PX + pitch * (column + 0.5) - width / 2)
                tiles.append(Tile(plane, at_mm, overlay, left, top, width, height))
            top += height + _GAP_PX
        top += _PLANE_GAP_PX
    return tuple(tiles)


# -- words on the picture -----------------------------------------------------------------


class _Sheet:
    """A dark page addressed in pixels from its upper left corner.

    Uses no pyplot: figures made in several threads or workers share nothing.
    """

    def __init__(self, width: int, height: int) -> None:
        self.height = height
        self.figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor=_BACKGROUND)
        self.canvas = FigureCanvasAgg(self.figure)

    def image(self, pixels: np.ndarray, top: int) -> None:
        self.figure.figimage(pixels, 0, self.height - top - pixels.shape[0], origin="upper")

    def text(self, x: float, y: float, text: str, *, size_px: float = 14, **options) -> None:
        options = {"color": _INK, "ha": "left", "va": "center", "family": "DejaVu Sans"} | options
        width = self.figure.get_figwidth() * _DPI
        self.figure.text(
            x / width, 1 - y / self.height, text, fontsize=size_px * 72 / _DPI,
            parse_math=False, **options,
        )

    def box(self, x: float, y: float, width: float, height: float, color) -> None:
        page = self.figure.get_figwidth() * _DPI
        self.figure.add_artist(
            Rectangle(
                (x / page, 1 - (y + height) / self.height), width / page, height / self.height,
                transform=self.figure.transFigure, facecolor=color, edgecolor="#5f6368",
                linewidth=0.6,
            )
        )

    def line(self, x: float, y: float, length: float) -> None:
        page = self.figure.get_figwidth() * _DPI
        level = 1 - y / self.height
        self.figure.add_artist(
            Line2D([x / page, (x + length) / page], [level, level], color=_INK, linewidth=2.5,
                   transform=self.figure.transFigure, solid_capstyle="butt")
        )

    def pixels(self) -> np.ndarray:
        """(height, width, 3) uint8."""
        self.canvas.draw()
        return np.asarray(self.canvas.buffer_rgba())[..., :3]


def _annotate(montage: Montage, labels: LabelMap) -> np.ndarray:
    legend = _legend_groups(labels)
    rows = _legend_rows(legend)
    bottom = _HEADER_PX + montage.pixels.shape[0]
    height = bottom + ((rows + 2) * _LEGEND_ROW_PX + 20 if legend else 12)
    sheet = _Sheet(_WIDTH_PX, height)
    sheet.image(montage.pixels, _HEADER_PX)
    _write_header(sheet, montage, labels)
    _write_tile_marks(sheet, montage)
    _write_legend(sheet, legend, rows, bottom + 10)
    return sheet.pixels()


def _write_header(sheet: _Sheet, montage: Montage, labels: LabelMap) -> None:
    grid = labels.grid
    shape = " × ".join(str(n) for n in grid.shape)
    size = " × ".join(f"{size:.2f}" for size in grid.voxel_size_mm)
    sheet.text(_MARGIN_PX, 22, "Left of the picture is the person's left (neurological convention)",
               size_px=19, weight="bold")
    notes = [
        f"{shape} voxels of {size} mm",
        f"cuts at world coordinates in mm (RAS+){_tilt_note(grid)}",
        f"black to white: {montage.window[0]:.3g} to {montage.window[1]:.3g}",
    ]
    sheet.text(_MARGIN_PX, 50, "   ·   ".join(notes), color=_FAINT)
    if not _present(labels):
        sheet.text(_MARGIN_PX, 70, "Nothing is labelled in this image.", color="#f28b82",
                   weight="bold")
    length_mm = next((n for n in (50, 20, 10, 5) if n * montage.px_per_mm < 260), 1)
    length_px = length_mm * montage.px_per_mm
    right = _WIDTH_PX - 20
    sheet.line(right - length_px, 48, length_px)
    sheet.text(right - length_px / 2, 30, f"{length_mm} mm", ha="center")


def _tilt_note(grid: Grid) -> str:
    """Words for a grid that is turned against the world axes by more than a degree."""
    cosines = np.abs(grid.affine[:3, :3] / np.array(grid.voxel_size_mm))
    angle = np.degrees(np.arccos(np.clip(cosines.max(axis=0).min(), -1, 1)))
    return f"; voxel axes are tilted by {angle:.0f}°" if angle > 1 else ""


def _write_tile_marks(sheet: _Sheet, montage: Montage) -> None:
    for tile in montage.tiles:
        top = _HEADER_PX + tile.top
        low, high = tile.plane.ends
        mark = {"size_px": 13, "weight": "bold", "color": "#ffd54f"}
        sheet.text(tile.left + 4, top + 11, low, **mark)
        sheet.text(tile.left + tile.width - 4, top + 11, high, ha="right", **mark)
        if not tile.overlay:
            at = f"{'xyz'[tile.plane.axis]} = {_signed(tile.at_mm)} mm"
            sheet.text(tile.left + tile.width / 2, top - 11, at, ha="center", size_px=14)
    for plane in PLANES:
        row = [tile for tile in montage.tiles if tile.plane is plane]
        middle = (min(t.top for t in row) + max(t.top + t.height for t in row)) / 2
        sheet.text(20, _HEADER_PX + middle, f"{plane.name}, {plane.order}", rotation=90,
                   ha="center", size_px=16, weight="bold")


def _signed(at_mm: float) -> str:
    """Whole millimetres with a sign, and none for zero."""
    return f"{round(at_mm):+d}".replace("-", "−") if round(at_mm) else "0"


# -- legend -------------------------------------------------------------------------------


def _present(labels: LabelMap) -> list[Label]:
    counts = labels.volumes_mm3()
    return [label for label in shown_labels(labels.table) if counts[label.index]]


def _legend_groups(labels: LabelMap) -> dict[str, list[tuple[str, list[Label]]]]:
    """For each group, its structures; left and right share a line, left first."""
    groups: dict[str, dict[str, list[Label]]] = {}
    for label in _present(labels):
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
    pitch = (_WIDTH_PX - _MARGIN_PX) / max(_LEGEND_COLUMNS, len(legend))
    column = 0
    for group, entries in legend.items():
        sheet.text(_MARGIN_PX + column * pitch, top + 8, group, weight="bold", size_px=16)
        sides = any(label.hemisphere != "none" for _, found in entries for label in found)
        if sides:
            sheet.text(_MARGIN_PX + column * pitch + 64, top + 8, "(left | right)", color=_FAINT)
        for number, (name, found) in enumerate(entries):
            x = _MARGIN_PX + (column + number // rows) * pitch
            y = top + (number % rows + 1.6) * _LEGEND_ROW_PX
            for label in found:
                shift = 20 if label.hemisphere == "right" else 0
                width = 38 if label.hemisphere == "none" else 18
                sheet.box(x + shift, y - 7, width, 14, label.rgb)
            sheet.text(x + 46, y, name)
        column += -(-len(entries) // rows)


def _rgb(color: str) -> tuple[int, int, int]:
    return tuple(int(color[i : i + 2], 16) for i in (1, 3, 5))


def _write_png(pixels: np.ndarray, path: Path) -> None:
    Image.fromarray(pixels).save(path, format="PNG", optimize=True)
