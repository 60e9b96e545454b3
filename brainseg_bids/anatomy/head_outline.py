# SPDX-License-Identifier: Apache-2.0
"""Outline of the head on a coarse grid, from labels and image."""

from __future__ import annotations

from dataclasses import dataclass

import cc3d
import numpy as np
from scipy import ndimage

from brainseg_bids.anatomy.cavities import fill_cavities
from brainseg_bids.anatomy.grid import Grid, triple

# How these were chosen stands in docs/explanation/merging.md.
COARSE_MM = 2.5
"""Voxel size of the grid on which the outline of the head is found."""
CLOSING_MM = 10.0
"""Radius of the morphological closing of the outline (nostrils, ear canals)."""
RIM_MM = 5.0
"""Depth below the outline from which unlabelled voxels that are open to the outside count as
inside the head."""
TISSUE_FRAC = 0.35
"""Threshold of tissue, as a fraction of the way from background to Otsu's threshold."""
FAR_FRAC = 0.25
"""Threshold of tissue beyond the labels, as a fraction of the way from background to the median of
the labelled head: ghosts of the head are darker."""
CAVITY_FRAC = 0.6
"""As `TISSUE_FRAC`, for cavities that labels enclose."""
SMOOTH_MM = 0.8
"""Standard deviation of the Gaussian smoothing before thresholds are applied."""
SWALLOWED_SHARE = 0.25
"""The outline from the image is rejected if it contains more than this fraction of the unlabelled
voxels on the border of the image."""


@dataclass(frozen=True, eq=False)
class CoarseGrid:
    """Coarse cells over the field of view of a grid, none smaller than a voxel.

    Along each axis the number of cells is odd, or that of the voxels. So no voxel centre lies on
    a border between cells, and a mirrored head has mirrored cells.

    Parameters
    ----------
    fine, shape : tuple of 3 int
        Number of voxels and of cells along each axis.
    cell_mm : tuple of 3 float
        Edge lengths of a cell.

    Examples
    --------
    >>> coarse = CoarseGrid.of(Grid((10, 4, 1), np.diag([1.0, 1, 9, 1])), 2.5)
    >>> coarse.shape, coarse.cell_mm
    ((5, 3, 1), (2.0, 1.3333333333333333, 9.0))
    """

    fine: tuple[int, int, int]
    shape: tuple[int, int, int]
    cell_mm: tuple[float, float, float]

    @classmethod
    def of(cls, grid: Grid, coarse_mm: float) -> CoarseGrid:
        """Coarse grid with cells of at most ``coarse_mm``, or of one voxel if that is larger."""
        shape = []
        for n, size in zip(grid.shape, grid.voxel_size_mm, strict=True):
            cells = int(np.ceil(n * size / coarse_mm - 1e-6))
            shape.append(min(n, cells + 1 - cells % 2))
        cell = triple(extent / n for extent, n in zip(grid.extent_mm, shape, strict=True))
        return cls(grid.shape, triple(shape), cell)

    def mean(self, array: np.ndarray) -> np.ndarray:
        """Mean of an array (X, Y, Z) over each cell, (cells) float32.

        A voxel on the border of cells counts for each by the part that lies in it.
        """
        out = array.astype(np.float32)
        for axis, (n, cells) in enumerate(zip(self.fine, self.shape, strict=True)):
            if n != cells:
                edges = np.arange(cells + 1) * (n / cells)
                low, high = edges[:-1, None], edges[1:, None]
                voxel = np.arange(n)[None]
                share = np.clip(np.minimum(high, voxel + 1) - np.maximum(low, voxel), 0, None)
                share = (share / share.sum(axis=1, keepdims=True)).astype(np.float32)
                out = np.moveaxis(np.tensordot(share, out, axes=(1, axis)), 0, axis)
        return np.ascontiguousarray(out)

    def cells_of(self, axis: int, start: int, stop: int) -> np.ndarray:
        """Cell index of each voxel from ``start`` to ``stop - 1`` along an axis, (n,) int."""
        voxel = np.arange(start, stop)
        return (2 * voxel + 1) * self.shape[axis] // (2 * self.fine[axis])

    def spread(self, cells: np.ndarray, box: tuple[slice, ...]) -> np.ndarray:
        """Values of the cells at the voxels of a box, in the shape of the box."""
        index = [self.cells_of(axis, b.start, b.stop) for axis, b in enumerate(box)]
        return cells[np.ix_(*index)]


@dataclass(frozen=True, eq=False)
class Outline:
    """Outline of the head on the coarse grid, and intensity thresholds of tissue.

    Parameters
    ----------
    head : (cells) bool
        The head, without holes.
    deep : (cells) bool
        The head, eroded by the depth of its rim.
    unlabelled : (cells) bool
        Head beyond the labels: around bright cells that are not near a label.
    level : (cells) float32 or None
        Intensity threshold of tissue; None if the image cannot be used.
    dark, far : float
        Intensity of the background, and threshold of tissue beyond the labels.
    flags : list of str
        Sentences about what a person should check.
    """

    head: np.ndarray
    deep: np.ndarray
    unlabelled: np.ndarray
    level: np.ndarray | None
    dark: float
    far: float
    flags: list[str]

    @property
    def lit(self) -> bool:
        """Whether tissue and air can be distinguished in the image."""
        return self.level is not None

    def at_voxels(
        self, box: tuple[slice, ...], coarse: CoarseGrid, image: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Four masks of a box's voxels, each bool and in the shape of the box.

        In order: deep in the head; above the threshold of tissue; above that of enclosed cavities;
        tissue beyond the labels.
        """
        deep = coarse.spread(self.deep, box)
        if self.level is None or image is None:
            dull = np.zeros(deep.shape, dtype=bool)
            return deep, dull, dull.copy(), dull.copy()
        smooth = _finite(image[box])
        voxel_mm = [
            cell * cells / n
            for cell, cells, n in zip(coarse.cell_mm, coarse.shape, coarse.fine, strict=True)
        ]
        sigma = [SMOOTH_MM / size for size in voxel_mm]
        ndimage.gaussian_filter(smooth, sigma, output=smooth, truncate=3, mode="nearest")
        level = coarse.spread(self.level, box)
        bright = smooth > level
        beyond = bright & (smooth > self.far) & coarse.spread(self.unlabelled, box)
        level -= self.dark
        level *= CAVITY_FRAC / TISSUE_FRAC
        return deep, bright, smooth > level + self.dark, beyond


def find_outline(voxels: np.ndarray, coarse: CoarseGrid, image: np.ndarray | None) -> Outline:
    """Outline of the head: union of the labels and the largest bright component of the image.

    The image is not used if its bright part fills the field of view, or if its background is as
    bright as the head (the noise of MP2RAGE's UNI images); a flag reports this.
    """
    labelled = coarse.mean(voxels != 0) > 0.4999
    flags: list[str] = []
    level, dark, far, seen = None, 0.0, 0.0, np.zeros(coarse.shape, dtype=bool)
    if image is not None:
        level, dark, far, seen = _seen(coarse.mean(_finite(image)), labelled, coarse)
        if level is None:
            flags.append(
                "head and background cannot be distinguished in the image: unlabelled voxels were "
                "filled from the labels alone"
            )
    near = _grow(labelled, 1.01 * max(coarse.cell_mm), coarse.cell_mm)
    unlabelled = _grow(seen & ~near, 2.51 * max(coarse.cell_mm), coarse.cell_mm)
    head = _fill_cells(_close(labelled | seen, CLOSING_MM, coarse.cell_mm))
    rim_mm = max(RIM_MM, 1.01 * max(coarse.cell_mm))
    deep = _shrink(head, rim_mm, coarse.cell_mm)
    return Outline(head, deep, unlabelled, level, dark, far, flags)


def _seen(
    image: np.ndarray, labelled: np.ndarray, coarse: CoarseGrid
) -> tuple[np.ndarray | None, float, float, np.ndarray]:
    """Level of tissue, background, level beyond the labels, and the largest bright piece; no
    level and no piece if the image is unfit.
    """
    unfit = None, 0.0, 0.0, np.zeros(image.shape, dtype=bool)
    otsu = otsu_threshold(image)
    outside = image[~_grow(labelled, 4 * max(coarse.cell_mm), coarse.cell_mm)]
    dark = float(np.median(outside)) if len(outside) > 100 else float(image.min())
    inside = float(np.median(image[labelled])) if labelled.any() else otsu
    if not dark < otsu or inside - dark < 0.5 * (otsu - dark):
        return unfit
    span = TISSUE_FRAC * (otsu - dark)
    rough = labelled | (image > dark + span)
    # Signal falls off towards the neck: there tissue is judged by its own surroundings.
    sigma = [20 / size for size in coarse.cell_mm]
    weight = ndimage.gaussian_filter(rough.astype(np.float32), sigma, truncate=2)
    local = ndimage.gaussian_filter(np.where(rough, image - dark, 0), sigma, truncate=2)
    local = np.divide(local, weight, out=np.zeros_like(local), where=weight > 1e-3)
    usual = float(np.median(local[labelled])) if labelled.any() else 1.0
    level = dark + span * np.clip(local / max(usual, 1e-6), 0.4, 1)
    bright, far = image > level, dark
    if (bright & labelled).any():
        usual = float(np.median(image[bright & labelled]))
        far = dark + FAR_FRAC * (usual - dark)
        bright &= labelled | (image > far)
    components, n = cc3d.connected_components(bright, connectivity=6, return_N=True)
    if not n:
        return unfit
    seen = components == 1 + np.argmax(np.bincount(components.ravel())[1:])
    edges = _edges(image.shape) & ~labelled
    if not (seen & labelled).any() or (edges.any() and seen[edges].mean() > SWALLOWED_SHARE):
        return unfit
    return level.astype(np.float32), dark, far, seen


def otsu_threshold(image: np.ndarray) -> float:
    """Threshold with the largest variance between dark and bright values (Otsu 1979).

    >>> 1 < otsu_threshold(np.array([0.0, 0, 1, 9, 10, 10])) < 9
    True
    """
    low, high = float(image.min()), float(np.quantile(image, 0.995))
    if not high > low:
        return low
    counts, edges = np.histogram(np.minimum(image, high), bins=256, range=(low, high))
    middle = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1].astype(float)
    total, mass = below[-1] + counts[-1], np.cumsum(counts * middle)
    above = total - below
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = mass[:-1] / below - (mass[-1] - mass[:-1]) / above
    between = np.nan_to_num(below * above * gap**2)
    best = np.flatnonzero(between == between.max())
    return float(edges[1:-1][best].mean())


def _finite(image: np.ndarray) -> np.ndarray:
    """Copy as float32 with 0 for what is no number."""
    image = np.array(image, dtype=np.float32)
    np.nan_to_num(image, copy=False, nan=0, posinf=0, neginf=0)
    return image


def _grow(mask: np.ndarray, reach_mm: float, cell_mm: tuple[float, ...]) -> np.ndarray:
    if not mask.any():
        return mask
    return ndimage.distance_transform_edt(~mask, sampling=cell_mm) <= reach_mm + 1e-6


def _shrink(mask: np.ndarray, depth_mm: float, cell_mm: tuple[float, ...]) -> np.ndarray:
    """Mask without its outermost millimetres; the faces of the box are no border of it."""
    margin = [1 + int(np.ceil(depth_mm / size)) for size in cell_mm]
    padded = np.pad(mask, [(m, m) for m in margin], mode="edge")
    if padded.all():
        return mask
    inner = ndimage.distance_transform_edt(padded, sampling=cell_mm) > depth_mm + 1e-6
    return inner[tuple(slice(m, m + n) for m, n in zip(margin, mask.shape, strict=True))]


def _close(mask: np.ndarray, reach_mm: float, cell_mm: tuple[float, ...]) -> np.ndarray:
    """Closing with a ball, unhindered by the faces of the box."""
    margin = [1 + int(np.ceil(reach_mm / size)) for size in cell_mm]
    padded = np.pad(mask, [(m, m) for m in margin])
    grown = _grow(padded, reach_mm, cell_mm)
    closed = ndimage.distance_transform_edt(grown, sampling=cell_mm) > reach_mm + 1e-6
    inner = tuple(slice(m, m + n) for m, n in zip(margin, mask.shape, strict=True))
    return closed[inner] | mask


def _fill_cells(mask: np.ndarray) -> np.ndarray:
    """Fill cavities, airways cut by a face of the box included."""
    mask = mask.copy()
    for axis in range(3):
        for end in (0, -1):
            face = np.moveaxis(mask, axis, 0)[end]
            face |= ndimage.binary_fill_holes(face)
    return fill_cavities(mask)


def _edges(shape: tuple[int, ...]) -> np.ndarray:
    """The twelve edges of a box; heads leave them free, an image's noise does not."""
    ends = [np.isin(np.arange(n), (0, n - 1)) for n in shape]
    count = ends[0][:, None, None].astype(int) + ends[1][:, None] + ends[2]
    return count >= 2
