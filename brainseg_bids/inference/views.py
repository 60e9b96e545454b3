# SPDX-License-Identifier: Apache-2.0
"""Input of networks: the image at their voxel size, cropped to the head, mirrored or not."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from brainseg_bids.anatomy.grid import Grid, triple
from brainseg_bids.anatomy.intensity import AIR_SHARE, rescale
from brainseg_bids.inference.windows import Triple
from brainseg_bids.nets.architectures import PackedNet
from brainseg_bids.nets.devices import has_fast_bf16

MARGIN_MM = 12.0
"""Margin of air around the head, as context for its border."""

CHUNK = 2**20
"""Probabilities that are computed at a time, limited by the CPU cache."""


@dataclass(frozen=True)
class Member:
    """A network, with its voxel size and window.

    Parameters
    ----------
    net : PackedNet
    voxel_size_mm : float
        Voxel size of its training.
    window_vox : tuple of 3 int
        Size of a window.
    """

    net: PackedNet
    voxel_size_mm: float
    window_vox: Triple


@dataclass(frozen=True, eq=False)
class View:
    """Input of one network.

    Parameters
    ----------
    member : Member
    seen : (X, Y, Z) float
        Image at the network's voxel size, cropped to the head.
    box : tuple of 3 slice
        Position of the crop in the resampled image.
    offset : list of (float, float)
        From `axis_offsets`, for each axis.
    mirrored : (n_labels,) int or None
        Class index of each label's counterpart if windows are mirrored, otherwise None.
    lead : int
        Number of voxels of padding before the box along each axis.
    """

    member: Member
    seen: Tensor
    box: tuple[slice, slice, slice]
    offset: list[tuple[float, float]]
    mirrored: Tensor | None = None
    lead: int = 0

    def forward(self, window: Tensor) -> Tensor:
        """Features of a window (1, 1, X, Y, Z), from one forward pass."""
        kind = window.device.type
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=has_fast_bf16(kind)):
            if self.mirrored is None:
                return self.member.net.features(window)
            return self.member.net.features(window.flip(2)).flip(2)

    def probabilities(self, features: Tensor) -> Tensor:
        """Probabilities (n_labels, X, Y, Z) from features of rows of blocks, (F, rows, y, z)."""
        net, made = self.member.net, []
        rows = max(
            1, CHUNK // (net.spec.n_labels * net.spec.block_size**3 * features[0, :, 0].numel())
        )
        for part in features.split(rows, dim=2):
            scores = net.scores(part[None])[0]
            if self.mirrored is None:
                made.append(scores.softmax(0))
                continue
            # Windows were turned back block by block; the voxels within blocks have not been yet.
            voxels = scores.unflatten(1, (-1, net.spec.block_size)).flip(2).flatten(1, 2)
            made.append(voxels.softmax(0).index_select(0, self.mirrored.to(voxels.device)))
        return torch.cat(made, dim=2)


def view_of(turned: Tensor, ras: Grid, member: Member, device: str) -> View:
    """Input of a network from an image.

    Parameters
    ----------
    turned : (X, Y, Z) float
        Image in RAS+ axis order.
    ras : Grid
        Grid of ``turned``.
    member : Member
    device : str
    """
    work = ras.with_voxel_size(member.voxel_size_mm)
    offset = axis_offsets(ras, work)
    small = turned
    for axis in range(3):
        small = resample_axis(small, axis, work.shape[axis], *offset[axis])
    block_size = member.net.spec.block_size
    small = _whole_blocks(small, block_size)
    box = head_box(small, voxel_size_mm=member.voxel_size_mm, multiple=block_size)
    return View(member, rescale(small[box].to(device)), box, offset)


def flipped(view: View, mirrors: Tensor) -> View:
    """Input for a mirrored forward pass, with blocks shifted by half a block along each axis.

    The shift reduces, without additional cost, errors that depend on the position of blocks.
    """
    block_size = view.member.net.spec.block_size
    early = block_size // 2
    if not early:
        return replace(view, mirrored=mirrors)
    # Zeros, as beyond the box in the other view; nothing is reported of them.
    seen = torch.nn.functional.pad(view.seen, (early, block_size - early) * 3)
    return replace(view, seen=seen, lead=early, mirrored=mirrors)


def _whole_blocks(image: Tensor, block_size: int) -> Tensor:
    """Repeat the last plane along each axis until the network's blocks fit."""
    for axis, size in enumerate(image.shape):
        missing = -size % block_size
        if missing:
            last = image.narrow(axis, size - 1, 1)
            image = torch.cat([image, *[last] * missing], dim=axis)
    return image


def head_box(image: Tensor, *, voxel_size_mm: float, multiple: int) -> tuple[slice, slice, slice]:
    """Bounding box of voxels brighter than air, with a margin and edges of whole multiples.

    Intensities are averaged over cells of about 4 mm to reduce noise in air. If an image has no
    dark background, the box is the whole image.

    Parameters
    ----------
    image : (X, Y, Z) float
        With edges that are multiples of ``multiple``.
    voxel_size_mm : float
    multiple : int
    """
    cell = max(1, round(4 / voxel_size_mm))
    cells = [min(cell, n) for n in image.shape]
    pooled = torch.nn.functional.avg_pool3d(image[None, None], cells, ceil_mode=True)[0, 0]
    low, high = torch.quantile(pooled.flatten()[:8_000_000], torch.tensor([0.02, 0.98]))
    bright = pooled > low + AIR_SHARE * (high - low)
    margin = int(np.ceil(MARGIN_MM / voxel_size_mm))
    box = []
    for axis, size in enumerate(image.shape):
        others = [a for a in range(3) if a != axis]
        # A single bright cell (a vitamin capsule, a spike) does not make the box larger.
        filled = (bright.sum(others) >= 3).nonzero().flatten()
        first, last = (int(filled[0]), int(filled[-1])) if len(filled) else (0, size)
        start = max(0, first * cells[axis] - margin) // multiple * multiple
        stop = min(size, (last + 1) * cells[axis] + margin)
        box.append(slice(start, start + -(-(stop - start) // multiple) * multiple))
    return triple(box)


def axis_offsets(ras: Grid, work: Grid) -> list[tuple[float, float]]:
    """Position of the first voxel of ``work`` in voxels of ``ras``, and step, for each axis."""
    start = np.linalg.inv(ras.affine) @ work.affine[:, 3]
    steps = np.array(work.voxel_size_mm) / np.array(ras.voxel_size_mm)
    return [(float(start[axis]), float(steps[axis])) for axis in range(3)]


def resample_axis(image: Tensor, axis: int, count: int, start: float, step: float) -> Tensor:
    """Image resampled along one axis, by linear interpolation.

    For larger voxels the triangular kernel has their width.

    Parameters
    ----------
    image : (X, Y, Z) float
    axis : int
    count : int
        Number of voxels of the result.
    start, step : float
        Position of the first voxel and distance of voxels, in voxels of ``image``.
    """
    size = image.shape[axis]
    if count == size and abs(start) < 1e-6 and abs(step - 1) < 1e-6:
        return image
    at = start + step * torch.arange(count, dtype=torch.float64)
    width = max(1.0, step)
    distance = (torch.arange(size, dtype=torch.float64)[None] - at[:, None]).abs() / width
    weights = (1 - distance).clamp(min=0)
    # A sample beyond the last centre takes the border voxel.
    empty = weights.sum(1) == 0
    weights[empty, at[empty].round().clamp(0, size - 1).long()] = 1
    weights = (weights / weights.sum(1, keepdim=True)).float()
    return torch.movedim(torch.tensordot(weights, image, dims=([1], [axis])), 0, axis)
