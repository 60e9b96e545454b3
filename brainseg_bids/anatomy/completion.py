# SPDX-License-Identifier: Apache-2.0
"""Completion: unlabelled voxels inside the head become tissue, air or the label around them.

In SAMSEG's maps, code 0 stands for air outside of the head, air inside, and head beyond the
atlas; CHARM leaves pinholes. The outline of the head is found on a coarse grid. Each unlabelled
voxel within it is then labelled from the image if there is one, otherwise from the labels around
it. Arrays have RAS+ axis order.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cc3d
import numpy as np
from scipy import ndimage

from brainseg_bids.anatomy.cavities import Cavities
from brainseg_bids.anatomy.cleaning import code_lookup, fill_nearest
from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.head_outline import COARSE_MM, CoarseGrid, Outline, find_outline
from brainseg_bids.anatomy.rules import MergeRules

# How these were chosen stands in docs/explanation/merging.md.
THIN_LAYER_MM = 2.0
"""Bright layers along the wall of a cavity that are thinner than this are partial volume."""
TINY_MM3 = 20.0
"""Enclosed holes smaller than this take the nearest label."""
SMALLEST_AIR_MM3 = 150.0
"""Dark spots smaller than this, in tissue that no tool labelled, are tissue (noise, vessels,
tendons)."""


@dataclass
class Completed:
    """Changes made by `complete`.

    Parameters
    ----------
    tissue, air, nearest : int
        Number of voxels that became tissue, air, or the label around them.
    holes_before, holes_after : int
        Number of enclosed voxels without a label: their 6-connected component does not reach the
        border of the image.
    flags : list of str
        Sentences about what a person should check.
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
) -> Completed:
    """Label every unlabelled voxel inside the head, in place.

    Parameters
    ----------
    voxels : (X, Y, Z) int16, C order, RAS+ axis order
        Changed in place.
    grid : Grid
        Grid of ``voxels``.
    rules : MergeRules
    image : (X, Y, Z) float, optional
        Image on the same grid, of any contrast in which tissue is brighter than air.
    """
    done = Completed()
    if not voxels.any():
        done.flags.append("no voxel is labelled: there is no head to complete")
        return done
    coarse = CoarseGrid.of(grid, COARSE_MM)
    outline = find_outline(voxels, coarse, image)
    done.flags += outline.flags
    box = _box(voxels, outline, coarse)
    inside = np.ascontiguousarray(voxels[box])
    cavities = Cavities.of(inside)
    done.holes_before = cavities.enclosed_voxels
    deep, bright, strong, beyond = outline.at_voxels(box, coarse, image)
    empty = inside == 0
    cavity = cavities.enclosed[cavities.numbers]
    # A tool that left a cavity saw little signal there: only what is plainly bright is tissue.
    bright = np.where(cavity, _without_thin_layers(strong & cavity, grid), bright)
    # Specks beyond the labels are noise of the image.
    beyond = _without_specks(empty & beyond, TINY_MM3 / grid.voxel_volume_mm3)
    at = np.flatnonzero((cavity | deep | beyond) & empty)
    if len(at):
        lit = bright.ravel()[at] if outline.lit else None
        _decide(inside, at, lit, cavities, grid, rules, done)
    done.nearest += fill_enclosed(inside, grid, rules)
    done.holes_after = Cavities.of(inside).enclosed_voxels
    voxels[box] = inside
    return done


def _decide(
    voxels: np.ndarray,
    at: np.ndarray,
    lit: np.ndarray | None,
    cavities: Cavities,
    grid: Grid,
    rules: MergeRules,
    done: Completed,
) -> None:
    """Tissue, air or the label around, for each voxel of ``at``, in place."""
    volume, flat = grid.voxel_volume_mm3, voxels.reshape(-1)
    present = set(np.flatnonzero(np.bincount(flat)).tolist())
    component = cavities.numbers.reshape(-1)[at]
    enclosed = cavities.enclosed[component]
    small = cavities.enclosed & (cavities.sizes * volume < TINY_MM3)
    near = (small | _in_brain(voxels, at[enclosed], component[enclosed], cavities, rules))[
        component
    ]
    tissue = np.zeros(len(at), dtype=bool) if lit is None else lit & ~near
    air = ~near & ~tissue
    flat[at[tissue]] = rules.fill_code("tissue", present)
    spots = np.zeros(voxels.shape, dtype=bool)
    spots.reshape(-1)[at[air]] = True
    numbers, n = cc3d.connected_components(spots, connectivity=6, return_N=True)
    number = numbers.reshape(-1)[at]
    walled = np.zeros(n + 1, dtype=bool)
    walled[number[enclosed]] = True
    limit = TINY_MM3 if lit is None else SMALLEST_AIR_MM3
    least = np.where(walled, TINY_MM3, limit)
    speck = np.bincount(numbers.ravel(), minlength=n + 1) * volume < least
    near |= air & speck[number]
    air &= ~near
    flat[at[air]] = rules.fill_code("air", present)
    _fill_at(voxels, at[near], rules, grid)
    done.tissue, done.air, done.nearest = int(tissue.sum()), int(air.sum()), int(near.sum())


def _without_thin_layers(bright: np.ndarray, grid: Grid) -> np.ndarray:
    """Bright parts of cavities but for thin layers: half wall, half air is grey too."""
    turns = round(THIN_LAYER_MM / 2 / min(grid.voxel_size_mm))
    if not turns or not bright.any():
        return bright
    return ndimage.binary_opening(bright, iterations=turns)


def _in_brain(
    voxels: np.ndarray,
    at: np.ndarray,
    component: np.ndarray,
    cavities: Cavities,
    rules: MergeRules,
) -> np.ndarray:
    """By component: whether more brain and fluid than anything else is around it."""
    kinds = code_lookup(rules.groups["brain"] | rules.groups["csf"], rules.table)
    n = len(cavities.sizes)
    brain, other = np.zeros(n), np.zeros(n)
    position = np.stack(np.unravel_index(at, voxels.shape))
    for axis in range(3):
        for step in (-1, 1):
            there = position.copy()
            # Enclosed components touch no face, so a neighbour is always there.
            there[axis] += step
            code = voxels[tuple(there)]
            wall = code != 0
            brain += np.bincount(component[wall & kinds[code]], minlength=n)
            other += np.bincount(component[wall & ~kinds[code]], minlength=n)
    return cavities.enclosed & (brain > other)


def fill_enclosed(voxels: np.ndarray, grid: Grid, rules: MergeRules) -> int:
    """Fill enclosed unlabelled voxels with the label around them, in place; returns the count."""
    at = Cavities.of(voxels).at_enclosed()
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
