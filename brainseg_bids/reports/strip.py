# SPDX-License-Identifier: Apache-2.0
"""Cuts side by side, one above the other: columns are cuts, rows are what is shown of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.reports.montage import (
    BACKGROUND,
    MARGIN_PX,
    PLANES,
    WIDTH_PX,
    Cut,
    Plane,
    take_cut,
    tile_size,
)
from brainseg_bids.reports.sheet import Sheet, signed, write_ends

GAP_PX = 6


@dataclass(frozen=True)
class Strip:
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
    ) -> Strip:
        """Columns that fill a width, unless they would become taller than ``tallest_px``.

        Parameters
        ----------
        size_mm : (3,) float
            Of the box that every column shows, along R, A, S.
        planes : sequence of Plane
            One for each column.
        """
        size_mm = np.asarray(size_mm, dtype=float)
        wide_mm = sum(size_mm[plane.right] for plane in planes)
        tall_mm = max(size_mm[plane.up] for plane in planes)
        free_px = width_px - MARGIN_PX - GAP_PX * len(planes)
        px_per_mm = float(min(free_px / wide_mm, tallest_px / tall_mm))
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

    def pixels(self, rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
        """Tiles (h, w, 3) uint8 of each row and column, put together: (n * tall, WIDTH_PX, 3)."""
        sheet = np.full((self.tall * len(rows), WIDTH_PX, 3), BACKGROUND, dtype=np.uint8)
        for row, tiles in enumerate(rows):
            for column, tile in enumerate(tiles):
                top = row * self.tall + self._shift(column)
                # Boxes of one size may differ by a pixel: they are rounded.
                height, width = self.heights[column], self.widths[column]
                shown = tile[:height, :width]
                left = self.lefts[column]
                sheet[top : top + shown.shape[0], left : left + shown.shape[1]] = shown
        return sheet

    def write_row(self, sheet: Sheet, top: int, name: str) -> None:
        """Letters of the directions on each tile, and what the row shows beside it."""
        for column, plane in enumerate(self.planes):
            where = top + self._shift(column)
            write_ends(sheet, plane, self.lefts[column], where, self.widths[column])
        shown = name if len(name) <= 30 else name[:29] + "…"
        middle = top + (self.tall - GAP_PX) / 2
        sheet.text(20, middle, shown, rotation=90, ha="center", size_px=16, weight="bold")

    def write_columns(self, sheet: Sheet, y: float, at_mm: Sequence[float] | None = None) -> None:
        """Name of each column's plane, and where it cuts if that is one place."""
        for column, plane in enumerate(self.planes):
            at = "" if at_mm is None else f", {'xyz'[plane.axis]} = {signed(at_mm[column])} mm"
            middle = self.lefts[column] + self.widths[column] / 2
            sheet.text(middle, y, f"{plane.name}{at}", ha="center", size_px=14)

    def _shift(self, column: int) -> int:
        return (self.tall - GAP_PX - self.heights[column]) // 2


def planes_of(steps: Sequence[Sequence[float]]) -> list[Plane]:
    """Plane of each column if ``steps`` are cut along each world axis.

    >>> [plane.name for plane in planes_of([(0.5, 0.7), (), (0.5,)])]
    ['Sagittal', 'Sagittal', 'Axial']
    """
    return [plane for plane in PLANES for _ in steps[plane.axis]]


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
