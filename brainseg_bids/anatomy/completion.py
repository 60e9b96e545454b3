# SPDX-License-Identifier: Apache-2.0
"""Completion: what is 0 inside the head becomes tissue, air or the label around it.

In SAMSEG's maps 0 means outside air, air inside the head, and head beyond its atlas; CHARM leaves
pinholes. The head's outline is found on a coarse grid, then each unlabelled voxel within is
decided by the image where there is one, else by the labels around it. Arrays are on axes towards
R, A, S.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cc3d
import numpy as np
from scipy import ndimage

from brainseg_bids.anatomy.cleaning import (
    code_lookup,
    fill_nearest,
    piece_sizes,
    voxels_in,
)
from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.rules import MergeRules


@dataclass(frozen=True)
class CompletionSettings:
    """Numbers of the completion; docs/explanation/merging.md says how they were chosen.

    Parameters
    ----------
    coarse_mm : float
        Voxel size of the grid on which the head's outline is found.
    closing_mm : float
        Openings of the outline up to twice this wide are closed (nostrils, ear canals).
    rim_mm : float
        Unlabelled voxels open to the outside count as inside the head only deeper than this.
    tissue_frac : float
        Tissue is brighter than this share of the way from background to Otsu's threshold.
    far_frac : float
        Beyond the labels tissue has at least this share of the labelled head's usual
        brightness: ghosts of the head have less.
    hollow_frac : float
        As ``tissue_frac``, for hollows that labels enclose.
    smooth_mm : float
        Standard deviation of the smoothing before the image is asked.
    rind_mm : float
        Bright layers along the wall of a hollow that are thinner than this are partial volume.
    tiny_mm3 : float
        Smaller enclosed holes take the nearest label.
    smallest_air_mm3 : float
        Smaller dark spots in tissue that no tool labelled are tissue (noise, vessels, tendons).
    swallowed_share : float
        A head outline that holds more of the box's unlabelled edges than this is not believed.
    """

    coarse_mm: float = 2.5
    closing_mm: float = 10.0
    rim_mm: float = 5.0
    tissue_frac: float = 0.35
    far_frac: float = 0.25
    hollow_frac: float = 0.6
    smooth_mm: float = 0.8
    rind_mm: float = 2.0
    tiny_mm3: float = 20.0
    smallest_air_mm3: float = 150.0
    swallowed_share: float = 0.25


@dataclass
class Completed:
    """What `complete` did.

    Parameters
    ----------
    tissue, air, nearest : int
        Voxels that became tissue, air, or the label around them.
    holes_before, holes_after : int
        0-voxels with no way out of the box (through faces of voxels).
    flags : list of str
    """

    tissue: int = 0
    air: int = 0
    nearest: int = 0
    holes_before: int = 0
    holes_after: int = 0
    flags: list[str] = field(default_factory=list)


def complete(
    voxels: np.ndarray,
    grid: Grid,
    rules: MergeRules,
    *,
    image: np.ndarray | None = None,
    settings: CompletionSettings | None = None,
) -> Completed:
    """Leave no 0-voxel inside the head, in place.

    Parameters
    ----------
    voxels : (X, Y, Z) int16, C order, axes towards R, A, S
        Changed in place.
    grid : Grid
        Of ``voxels``.
    rules : MergeRules
    image : (X, Y, Z) float, optional
        Same grid; any contrast in which tissue is brighter than air.
    settings : CompletionSettings, optional
    """
    settings = settings or CompletionSettings()
    done = Completed()
    if not voxels.any():
        done.flags.append("no voxel is labelled: there is no head to complete")
        return done
    coarse = CoarseGrid.of(grid, settings.coarse_mm)
    outline = find_outline(voxels, coarse, image, settings)
    done.flags += outline.flags
    box = _box(voxels, outline, coarse)
    inside = np.ascontiguousarray(voxels[box])
    hollows = Hollows.of(inside)
    done.holes_before = hollows.enclosed_voxels
    deep, bright, strong, beyond = outline.at_voxels(box, coarse, image, settings)
    empty = inside == 0
    hollow = hollows.enclosed[hollows.numbers]
    # A tool that left a hollow saw little signal there: only what is plainly bright is tissue.
    bright = np.where(hollow, _without_rind(strong & hollow, grid, settings), bright)
    # Specks beyond the labels are noise of the image.
    beyond = _without_specks(empty & beyond, settings.tiny_mm3 / grid.voxel_volume_mm3)
    at = np.flatnonzero((hollow | deep | beyond) & empty)
    if len(at):
        lit = bright.ravel()[at] if outline.lit else None
        _decide(inside, at, lit, hollows, grid, rules, settings, done)
    done.nearest += fill_enclosed(inside, grid, rules)
    done.holes_after = Hollows.of(inside).enclosed_voxels
    voxels[box] = inside
    return done


@dataclass(frozen=True, eq=False)
class CoarseGrid:
    """Cells over the same box as a grid's voxels; none is finer than a voxel.

    Along each axis there is an odd number of cells (or as many as voxels), so that no voxel's
    centre lies on a border between cells and a mirrored head has mirrored cells.

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
        """Cells of at most ``coarse_mm``, or a voxel where that is larger."""
        shape = []
        for n, size in zip(grid.shape, grid.voxel_size_mm, strict=True):
            cells = int(np.ceil(n * size / coarse_mm - 1e-6))
            shape.append(min(n, cells + 1 - cells % 2))
        cell = tuple(extent / n for extent, n in zip(grid.extent_mm, shape, strict=True))
        return cls(grid.shape, tuple(shape), cell)

    def mean(self, array: np.ndarray) -> np.ndarray:
        """Mean over each cell, voxels on its border counted by their share, float32."""
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
        """Cell of each voxel start..stop along an axis."""
        voxel = np.arange(start, stop)
        return (2 * voxel + 1) * self.shape[axis] // (2 * self.fine[axis])

    def spread(self, cells: np.ndarray, box: tuple[slice, ...]) -> np.ndarray:
        """Each voxel of a box gets its cell's value."""
        index = [self.cells_of(axis, b.start, b.stop) for axis, b in enumerate(box)]
        return cells[np.ix_(*index)]


@dataclass(frozen=True, eq=False)
class Outline:
    """The head on the coarse grid.

    Parameters
    ----------
    head : (cells) bool
        Head with everything in it.
    deep : (cells) bool
        The head without its outermost millimetres.
    unlabelled : (cells) bool
        Around bright cells that no label is near: head beyond the labels.
    level : (cells) float32 or None
        What is brighter than this is tissue; None where the image does not tell.
    dark, far : float
        The background, and what tissue beyond the labels is brighter than.
    flags : list of str
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
        """Whether the image tells tissue from air."""
        return self.level is not None

    def at_voxels(
        self,
        box: tuple[slice, ...],
        coarse: CoarseGrid,
        image: np.ndarray | None,
        settings: CompletionSettings,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Whether each voxel of a box is deep in the head, bright, plainly bright, and bright
        head beyond the labels.
        """
        deep = coarse.spread(self.deep, box)
        if not self.lit:
            return deep, *np.zeros((3, *deep.shape), dtype=bool)
        smooth = _finite(image[box])
        voxel_mm = [
            cell * cells / n
            for cell, cells, n in zip(coarse.cell_mm, coarse.shape, coarse.fine, strict=True)
        ]
        sigma = [settings.smooth_mm / size for size in voxel_mm]
        ndimage.gaussian_filter(smooth, sigma, output=smooth, truncate=3, mode="nearest")
        level = coarse.spread(self.level, box)
        bright = smooth > level
        beyond = bright & (smooth > self.far) & coarse.spread(self.unlabelled, box)
        level -= self.dark
        level *= settings.hollow_frac / settings.tissue_frac
        return deep, bright, smooth > level + self.dark, beyond


def find_outline(
    voxels: np.ndarray,
    coarse: CoarseGrid,
    image: np.ndarray | None,
    settings: CompletionSettings,
) -> Outline:
    """Head on the coarse grid: labels, joined with what the image shows of the head.

    An image whose bright part fills the box, or whose background is as bright as its head (the
    ratio noise of MP2RAGE), is not asked; a flag says so.
    """
    labelled = coarse.mean(voxels != 0) > 0.4999
    flags: list[str] = []
    level, dark, far, seen = None, 0.0, 0.0, np.zeros(coarse.shape, dtype=bool)
    if image is not None:
        level, dark, far, seen = _seen(coarse.mean(_finite(image)), labelled, coarse, settings)
        if level is None:
            flags.append(
                "the image does not tell head from background: unlabelled voxels were decided by "
                "the labels alone"
            )
    near = _grow(labelled, 1.01 * max(coarse.cell_mm), coarse.cell_mm)
    unlabelled = _grow(seen & ~near, 2.51 * max(coarse.cell_mm), coarse.cell_mm)
    head = _fill_cells(_close(labelled | seen, settings.closing_mm, coarse.cell_mm))
    rim_mm = max(settings.rim_mm, 1.01 * max(coarse.cell_mm))
    deep = _shrink(head, rim_mm, coarse.cell_mm)
    return Outline(head, deep, unlabelled, level, dark, far, flags)


def _seen(
    image: np.ndarray, labelled: np.ndarray, coarse: CoarseGrid, settings: CompletionSettings
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
    span = settings.tissue_frac * (otsu - dark)
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
        far = dark + settings.far_frac * (usual - dark)
        bright &= labelled | (image > far)
    pieces, n = cc3d.connected_components(bright, connectivity=6, return_N=True)
    if not n:
        return unfit
    seen = pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])
    edges = _edges(image.shape) & ~labelled
    if not (seen & labelled).any() or (
        edges.any() and seen[edges].mean() > settings.swallowed_share
    ):
        return unfit
    return level.astype(np.float32), dark, far, seen


def otsu_threshold(image: np.ndarray) -> float:
    """Value that parts dark from bright with the largest variance between them (Otsu 1979).

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


@dataclass(frozen=True, eq=False)
class Hollows:
    """Connected pieces of code 0 (through faces of voxels), and which have no way out of the box.

    Parameters
    ----------
    numbers : (X, Y, Z) uint32
        Piece of each voxel; 0 is labelled.
    sizes : (n + 1,) int
    enclosed : (n + 1,) bool
    """

    numbers: np.ndarray
    sizes: np.ndarray
    enclosed: np.ndarray

    @classmethod
    def of(cls, voxels: np.ndarray) -> Hollows:
        """Find them all."""
        numbers, n = cc3d.connected_components(voxels == 0, connectivity=6, return_N=True)
        return cls(numbers, piece_sizes(numbers, n), _touches_no_face(numbers, n))

    @property
    def enclosed_voxels(self) -> int:
        """Voxels of all enclosed pieces."""
        return int(self.sizes[self.enclosed].sum())

    def at_enclosed(self) -> np.ndarray:
        """Flat indices, ascending, of the voxels of all enclosed pieces."""
        return voxels_in(self.numbers, self.enclosed)


def fill_cavities(mask: np.ndarray) -> np.ndarray:
    """Mask with what it encloses (through faces of voxels), (X, Y, Z) bool.

    >>> ring = np.ones((3, 3, 3), bool); ring[1, 1, 1] = False
    >>> fill_cavities(ring).all()
    np.True_
    """
    numbers, n = cc3d.connected_components(~mask, connectivity=6, return_N=True)
    return mask | _touches_no_face(numbers, n)[numbers]


def _touches_no_face(numbers: np.ndarray, n: int) -> np.ndarray:
    inner = np.ones(n + 1, dtype=bool)
    for axis in range(3):
        for end in (0, -1):
            inner[np.take(numbers, end, axis)] = False
    inner[0] = False
    return inner


def _decide(
    voxels: np.ndarray,
    at: np.ndarray,
    lit: np.ndarray | None,
    hollows: Hollows,
    grid: Grid,
    rules: MergeRules,
    settings: CompletionSettings,
    done: Completed,
) -> None:
    """Tissue, air or the label around, for each voxel of ``at``, in place."""
    volume, flat = grid.voxel_volume_mm3, voxels.reshape(-1)
    present = set(np.flatnonzero(np.bincount(flat)).tolist())
    piece = hollows.numbers.reshape(-1)[at]
    enclosed = hollows.enclosed[piece]
    small = hollows.enclosed & (hollows.sizes * volume < settings.tiny_mm3)
    near = (small | _in_brain(voxels, at[enclosed], piece[enclosed], hollows, rules))[piece]
    tissue = np.zeros(len(at), dtype=bool) if lit is None else lit & ~near
    air = ~near & ~tissue
    flat[at[tissue]] = rules.fill_code("tissue", present)
    spots = np.zeros(voxels.shape, dtype=bool)
    spots.reshape(-1)[at[air]] = True
    numbers, n = cc3d.connected_components(spots, connectivity=6, return_N=True)
    number = numbers.reshape(-1)[at]
    walled = np.zeros(n + 1, dtype=bool)
    walled[number[enclosed]] = True
    limit = settings.tiny_mm3 if lit is None else settings.smallest_air_mm3
    least = np.where(walled, settings.tiny_mm3, limit)
    speck = np.bincount(numbers.ravel(), minlength=n + 1) * volume < least
    near |= air & speck[number]
    air &= ~near
    flat[at[air]] = rules.fill_code("air", present)
    _fill_at(voxels, at[near], rules, grid)
    done.tissue, done.air, done.nearest = int(tissue.sum()), int(air.sum()), int(near.sum())


def _without_rind(bright: np.ndarray, grid: Grid, settings: CompletionSettings) -> np.ndarray:
    """Bright parts of hollows but for thin layers: half wall, half air is grey too."""
    turns = round(settings.rind_mm / 2 / min(grid.voxel_size_mm))
    if not turns or not bright.any():
        return bright
    return ndimage.binary_opening(bright, iterations=turns)


def _in_brain(voxels, at, piece, hollows: Hollows, rules: MergeRules) -> np.ndarray:
    """By piece: whether more brain and fluid than anything else is around it."""
    kinds = code_lookup(rules.groups["brain"] | rules.groups["csf"], rules.table)
    n = len(hollows.sizes)
    brain, other = np.zeros(n), np.zeros(n)
    place = np.stack(np.unravel_index(at, voxels.shape))
    for axis in range(3):
        for step in (-1, 1):
            there = place.copy()
            # Enclosed pieces touch no face, so a neighbour is always there.
            there[axis] += step
            code = voxels[tuple(there)]
            wall = code != 0
            brain += np.bincount(piece[wall & kinds[code]], minlength=n)
            other += np.bincount(piece[wall & ~kinds[code]], minlength=n)
    return hollows.enclosed & (brain > other)


def fill_enclosed(voxels: np.ndarray, grid: Grid, rules: MergeRules) -> int:
    """Enclosed voxels without a label take the one around them, in place; how many there were."""
    at = Hollows.of(voxels).at_enclosed()
    _fill_at(voxels, at, rules, grid)
    return len(at)


def _fill_at(voxels: np.ndarray, at: np.ndarray, rules: MergeRules, grid: Grid) -> None:
    if len(at):
        labels = set(rules.table.codes.tolist()) - {0}
        fill_nearest(voxels, at, code_lookup(labels, rules.table), grid, rules.table)


def _without_specks(mask: np.ndarray, smallest_vox: float) -> np.ndarray:
    if not mask.any():
        return mask
    numbers, n = cc3d.connected_components(mask, connectivity=6, return_N=True)
    keep = np.bincount(numbers.ravel(), minlength=n + 1) >= smallest_vox
    keep[0] = False
    return keep[numbers]


def _box(voxels: np.ndarray, outline: Outline, coarse: CoarseGrid) -> tuple[slice, ...]:
    """Box around labels and head, with a voxel of air where the field of view has one."""
    mask = outline.head | outline.unlabelled
    box = []
    for axis, n in enumerate(voxels.shape):
        others = tuple(a for a in range(3) if a != axis)
        cells = np.flatnonzero(mask.any(axis=others))
        used = np.flatnonzero(voxels.any(axis=others))
        low, high = used[0], used[-1]
        if len(cells):
            inside = np.isin(coarse.cells_of(axis, 0, n), cells).nonzero()[0]
            low, high = min(low, inside[0]), max(high, inside[-1])
        box.append(slice(max(int(low) - 1, 0), min(int(high) + 2, n)))
    return tuple(box)


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
