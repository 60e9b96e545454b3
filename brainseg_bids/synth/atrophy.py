# SPDX-License-Identifier: Apache-2.0
"""Simulated atrophy (``ageing`` in recipes): size of ventricles, thickness of cortex, lesions.

It changes the labels before intensities are generated. It simulates what ageing brains have in
common (larger ventricles, thinner cortex, bright or dark lesions in white matter), without
modelling its statistics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from brainseg_bids.anatomy.grid import triple
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.synth.interpolate import slabs, smooth_field
from brainseg_bids.synth.recipe import Atrophy
from brainseg_bids.synth.view import voxels_of

NODES_MM = 4.0
"""Node spacing of the vector field towards the ventricles."""
REACH_MM = 8.0
"""Standard deviation of the Gaussian that determines the range of this field."""
THIN_PATCH_MM = 15.0
LESION_MM = 7.0
"""Node spacings of the random fields for thin cortex and for lesions."""

VENTRICLES = ("Lateral-Ventricle", "Inf-Lat-Vent", "3rd-Ventricle")
CORTEX = ("Left-Cerebral-Cortex", "Right-Cerebral-Cortex")
FLUID = ("CSF", "Extra-Cerebral-CSF")
SIDES = ("Left", "Right")


@dataclass(frozen=True)
class VentricleField:
    """Vector field that points towards the ventricles, on a coarse grid over a label map.

    Parameters
    ----------
    vectors : (3, x, y, z) float32
        Direction of the nearest ventricle at each node, with a length of at most 1.
    spacing_vox : tuple of 3 float
        Distance of nodes in source voxels.
    """

    vectors: Tensor
    spacing_vox: tuple[float, float, float]

    @classmethod
    def of(
        cls, indices: np.ndarray, table: LabelTable, voxel_size_mm: tuple[float, float, float]
    ) -> VentricleField | None:
        """Vector field of class indices, (X, Y, Z) uint8; None if there are no ventricles."""
        chosen = np.array([label.name.endswith(VENTRICLES) for label in table])
        steps = [max(1, round(NODES_MM / size)) for size in voxel_size_mm]
        inside = _block_means(chosen[indices], steps)
        if not inside.any():
            return None
        spacing_mm = [step * size for step, size in zip(steps, voxel_size_mm, strict=True)]
        smooth = ndimage.gaussian_filter(inside, [REACH_MM / mm for mm in spacing_mm])
        slope = np.stack(np.gradient(smooth, *spacing_mm)).astype(np.float32)
        longest = np.sqrt(np.square(slope).sum(0)).max()
        return cls(torch.from_numpy(slope / longest), triple(float(step) for step in steps))

    def to(self, device: torch.device | str) -> VentricleField:
        """Vector field on another device."""
        return VentricleField(self.vectors.to(device), self.spacing_vox)

    def at(self, where_vox: Tensor) -> Tensor:
        """Vectors at source voxels, (3, x, y, z); zero outside of the map."""
        sizes = torch.tensor(self.vectors.shape[1:], device=where_vox.device)
        spacing = torch.tensor(self.spacing_vox, device=where_vox.device)
        # Node i is the mean of voxels i * step to i * step + step - 1: its place is their middle.
        nodes = (where_vox - ((spacing - 1) / 2).view(3, 1, 1, 1)) / spacing.view(3, 1, 1, 1)
        unit = nodes * (2 / (sizes - 1).clamp(min=1)).view(3, 1, 1, 1) - 1
        return functional.grid_sample(
            self.vectors[None], unit.flip(0).permute(1, 2, 3, 0)[None], align_corners=True
        )[0]


def _block_means(mask: np.ndarray, steps: list[int]) -> np.ndarray:
    """Share of each block of voxels; the last blocks are filled up with nothing."""
    filled = np.pad(mask, [(0, -n % step) for n, step in zip(mask.shape, steps, strict=True)])
    blocks = [
        part for n, step in zip(filled.shape, steps, strict=True) for part in (n // step, step)
    ]
    return filled.reshape(blocks).mean((1, 3, 5), dtype=np.float32)


def widen_ventricles(
    where_vox: Tensor,
    field: VentricleField | None,
    atrophy: Atrophy,
    voxel_size_mm: Sequence[float],
) -> Tensor:
    """Coordinate map with wider (or narrower) ventricles.

    Parameters
    ----------
    where_vox : (3, x, y, z) float32
        Source voxel coordinates of each node of a pair.
    field : VentricleField or None
    atrophy : Atrophy
    voxel_size_mm : tuple of 3 float
        Voxel size of the source.

    Returns
    -------
    (3, x, y, z) float32
        Coordinates shifted by ``ventricles_mm`` towards the ventricles, which widens them.
    """
    if field is None or atrophy.ventricles_mm == 0:
        return where_vox
    shift_mm = atrophy.ventricles_mm * field.at(where_vox)
    sizes_mm = torch.tensor(voxel_size_mm, dtype=torch.float32, device=where_vox.device)
    return where_vox + shift_mm / sizes_mm.view(3, 1, 1, 1)


def atrophied(
    indices: Tensor, atrophy: Atrophy, table: LabelTable, *, voxel_size_mm: float
) -> Tensor:
    """Class indices with thinner (or thicker) cortex and with lesions, (X, Y, Z) uint8.

    Where a smooth random field is high, cortex next to fluid becomes fluid, or (for thicker
    cortex) fluid next to the cortex of one side becomes cortex. Where another random field is
    high, white matter becomes lesion. An effect is left out if its labels are not in the table.

    Parameters
    ----------
    indices : (X, Y, Z) uint8
        Class indices of ``table``.
    atrophy : Atrophy
    table : LabelTable
    voxel_size_mm : float
    """
    if atrophy.thinning_frac != 0:
        indices = _thin(indices, atrophy, table, voxel_size_mm)
    if atrophy.lesion_frac > 0:
        indices = _lesions(indices, atrophy, table, voxel_size_mm)
    return indices


def _thin(indices: Tensor, atrophy: Atrophy, table: LabelTable, voxel_size_mm: float) -> Tensor:
    names = [label.name for label in table]
    cortex = [names.index(name) for name in CORTEX if name in names]
    fluid = [names.index(name) for name in FLUID if name in names]
    if not cortex or not fluid:
        return indices
    is_fluid = voxels_of(indices, [name in FLUID for name in names])
    share = abs(atrophy.thinning_frac)
    here = _highest(indices, share, THIN_PATCH_MM, voxel_size_mm, atrophy.seed)
    if atrophy.thinning_frac > 0:
        here &= voxels_of(indices, [name in CORTEX for name in names])
        return indices.masked_fill(here & _touches(is_fluid), fluid[0])
    here &= is_fluid
    near = [_touches(indices == index) for index in cortex]
    if len(near) == len(CORTEX):
        here &= ~(near[0] & near[1])  # between the hemispheres neither side is preferred
    grown = indices
    for index, beside in zip(cortex, near, strict=True):
        grown = grown.masked_fill(here & beside, index)
    return grown


def _lesions(indices: Tensor, atrophy: Atrophy, table: LabelTable, voxel_size_mm: float) -> Tensor:
    index_of = {label.name: index for index, label in enumerate(table)}
    spots = _highest(indices, atrophy.lesion_frac, LESION_MM, voxel_size_mm, atrophy.seed + 1)
    for side in SIDES:
        matter, lesion = (index_of.get(f"{side}-{x}") for x in ("Cerebral-White-Matter", "Lesion"))
        if matter is not None and lesion is not None:
            indices = indices.masked_fill(spots & (indices == matter), lesion)
    return indices


def _touches(mask: Tensor) -> Tensor:
    """Voxels that share a face with the mask, and those of the mask."""
    grown = mask.clone()
    for axis, n in enumerate(mask.shape):
        first, last = mask.narrow(axis, 0, n - 1), mask.narrow(axis, 1, n - 1)
        grown.narrow(axis, 1, n - 1).logical_or_(first)
        grown.narrow(axis, 0, n - 1).logical_or_(last)
    return grown


def _highest(
    indices: Tensor, share: float, spacing_mm: float, voxel_size_mm: float, seed: int
) -> Tensor:
    """The given share of all voxels, in patches: where a smooth normal field is highest."""
    field = smooth_field(
        triple(indices.shape),
        voxel_size_mm=voxel_size_mm,
        node_spacing_mm=spacing_mm,
        seed=seed,
        device=indices.device,
    )
    bound = torch.special.ndtri(torch.tensor(1 - min(share, 1 - 1e-6), dtype=torch.float64))
    high = torch.empty_like(indices, dtype=torch.bool)
    for start, stop in slabs(indices.shape[0]):
        high[start:stop] = field(start, stop) > float(bound)
    return high
