# SPDX-License-Identifier: Apache-2.0
"""``Generator``: from a label map and a recipe to an image-label pair."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.synth.deform import STRIDE, coordinate_nodes
from brainseg_bids.synth.intensity import draw_noise, is_visible, tissue_lookup
from brainseg_bids.synth.interpolate import linear_matrix, smooth_noise
from brainseg_bids.synth.recipe import Recipe
from brainseg_bids.synth.resolution import acquire

SLAB = 8
"""Planes painted at once: their coordinates, noise and bias stay in the processor's cache."""


@dataclass(frozen=True)
class SynthPair:
    """Image (1, X, Y, Z) float32 in 0..1, labels (X, Y, Z) uint8: ranks in the target table."""

    image: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Head:
    """A label map made ready: ranks instead of codes, one voxel of background around.

    Parameters
    ----------
    ranks : (X + 2, Y + 2, Z + 2) uint8
        Rank of each voxel's code in the source table, RAS+ axes.
    voxel_size_mm : tuple of 3 float
    box_vox : (2, 3) float
        First and last voxel of the head in ``ranks``.
    """

    ranks: Tensor
    voxel_size_mm: tuple[float, float, float]
    box_vox: np.ndarray

    @classmethod
    def from_label_map(cls, labels: LabelMap) -> Head:
        """Turn towards RAS, rank the codes, find the head."""
        grid = labels.grid.to_ras()
        codes = labels.grid.array_to_ras(labels.voxels)
        ranks = np.pad(labels.table.positions()[codes].astype(np.uint8), 1)
        head = ranks > 0
        box = []
        for axis in range(3):
            others = tuple(a for a in range(3) if a != axis)
            filled = np.flatnonzero(head.any(axis=others))
            if filled.size == 0:
                raise ValueError("the label map is empty: every voxel is background")
            box.append((filled[0], filled[-1]))
        return cls(torch.from_numpy(ranks), grid.voxel_size_mm, np.array(box, dtype=float).T)

    def to(self, device: torch.device | str) -> Head:
        """The same head on another device."""
        return Head(self.ranks.to(device), self.voxel_size_mm, self.box_vox)


class Generator:
    """Renders recipes.

    Parameters
    ----------
    crosswalk : Crosswalk
        From the codes of the label maps to those that a network shall learn.
    source : LabelTable
        Table of the label maps.
    shape : tuple of 3 int
        Voxels of a pair.
    voxel_size_mm : float
        Of a pair; isotropic.
    """

    def __init__(
        self,
        crosswalk: Crosswalk,
        source: LabelTable,
        *,
        shape: tuple[int, int, int],
        voxel_size_mm: float = 1.0,
    ) -> None:
        self.source = source
        self.target = crosswalk.target
        self.shape = tuple(shape)
        self.voxel_size_mm = voxel_size_mm
        known = [label for label in source if label.index in crosswalk.pairs]
        self._to_target = {label.index: crosswalk.pairs[label.index] for label in known}
        if source.codes[0] != 0 or self.target.codes[0] != 0:
            raise ValueError("code 0 has to be background in both tables")
        if len(source) > 255 or len(self.target) > 255:
            raise ValueError("tables of more than 255 labels do not fit the generator's uint8 ranks")

    def render(self, head: Head, recipe: Recipe) -> SynthPair:
        """Make the pair that ``recipe`` describes.

        Same recipe and head give the same pair, bit for bit on one kind of device; labels are
        the same on all of them up to rounding at borders.
        """
        image, labels = self._paint(head, recipe, *self._locate(head, recipe))
        scale = _quantile(image, 0.99)
        image = acquire(
            image, recipe.resolution, recipe.noise, voxel_size_mm=self.voxel_size_mm, scale=scale
        )
        return SynthPair(image=rescale(image, recipe.gamma)[None], labels=labels)

    def _locate(self, head: Head, recipe: Recipe) -> tuple[Tensor, Tensor]:
        """Source coordinates, fine along Y and Z, and the matrix that makes X fine."""
        low, high = head.box_vox
        center = low + (high - low) * np.asarray(recipe.deformation.center_frac)
        nodes = coordinate_nodes(
            recipe.deformation, shape=self.shape, voxel_size_mm=self.voxel_size_mm,
            source_voxel_size_mm=head.voxel_size_mm, source_center_vox=center,
            flip=recipe.flip, device=head.ranks.device,
        )
        matrices = [
            linear_matrix(n, c, positions=torch.arange(n) / STRIDE).to(head.ranks.device)
            for n, c in zip(self.shape, nodes.shape[1:], strict=True)
        ]
        nodes = matrices[1] @ (nodes @ matrices[2].T)
        return nodes, matrices[0]

    def _paint(self, head: Head, recipe: Recipe, nodes: Tensor, last: Tensor):
        device = head.ranks.device
        lookup, components = tissue_lookup(recipe, self.source)
        lookup = lookup.to(device)
        target = self._target_lookup(recipe).to(device)
        ranks = head.ranks.flatten()
        top = torch.tensor(head.ranks.shape, device=device) - 1
        stride = torch.tensor(head.ranks.stride(), device=device)
        bias = self._slabwise_field(recipe.bias.node_spacing_mm, recipe.bias.seed, device) if recipe.bias.log_sd > 0 else None
        texture = self._slabwise_field(recipe.texture_scale_mm, recipe.texture_seed, device) if components > 1 else None
        x, y, z = self.shape
        image = torch.empty(self.shape, device=device)
        labels = torch.empty(self.shape, dtype=torch.uint8, device=device)
        noise = draw_noise((x, y, z), recipe.paint_seed, device)
        nodes = nodes.permute(1, 0, 2, 3).flatten(1)
        beyond = self._beyond(head, recipe)
        for start in range(0, x, SLAB):
            stop = min(start + SLAB, x)
            where = (last[start:stop] @ nodes).view(stop - start, 3, y, z)
            where = where.round_().to(torch.int32)
            index = torch.zeros(stop - start, y, z, dtype=torch.int32, device=device)
            for axis in range(3):
                # Beyond the map is its one-voxel frame of background.
                index.add_(where[:, axis].clamp_(0, int(top[axis])), alpha=int(stride[axis]))
            found = ranks.index_select(0, index.flatten()).view(index.shape)
            if beyond is not None:
                found = found.masked_fill(beyond(start, stop), 0)
            labels[start:stop] = target.index_select(0, found.flatten().int()).view(found.shape)
            entry = found.int()
            if texture is not None:
                part = texture(start, stop).mul_(1.2 * components / 2).add_(components / 2)
                entry = entry.mul_(components).add_(part.clamp_(0, components - 1e-3).int())
            tissue = torch.view_as_real(lookup.index_select(0, entry.flatten()).view(found.shape))
            painted = torch.addcmul(tissue[..., 0], tissue[..., 1], noise[start:stop])
            if bias is not None:
                painted = painted.mul_(bias(start, stop).mul_(recipe.bias.log_sd).exp_())
            image[start:stop] = painted.clamp_(min=0)
        return image, labels

    def _slabwise_field(self, node_spacing_mm: float, seed: int, device: torch.device):
        nodes, (mx, my, mz) = smooth_noise(
            self.shape, voxel_size_mm=self.voxel_size_mm, node_spacing_mm=node_spacing_mm, seed=seed
        )
        plane = (my.to(device) @ (nodes[0].to(device) @ mz.to(device).T)).flatten(1)
        # B-spline synthesis of white noise has a spread of about a third; make it one.
        plane = plane * 3.0
        mx = mx.to(device)
        shape = self.shape[1:]
        return lambda start, stop: (mx[start:stop] @ plane).view(stop - start, *shape)

    def _target_lookup(self, recipe: Recipe) -> Tensor:
        positions = self.target.positions()
        lookup = np.zeros(len(self.source), dtype=np.uint8)
        for rank, label in enumerate(self.source):
            code = self._to_target.get(label.index)
            if code is None or not is_visible(label, recipe.view):
                continue
            entry = self.target[code]
            lookup[rank] = positions[entry.mirror if recipe.flip else entry.index]
        return torch.from_numpy(lookup)

    def _beyond(self, head: Head, recipe: Recipe):
        """Function of a slab: which of its voxels lie beyond the cut plane. ``None`` cuts nothing."""
        normal = np.asarray(recipe.view.cut_normal)
        if not normal.any():
            return None
        # The plane is placed from the middle of the head, wherever the crop lies.
        extent_mm = (head.box_vox[1] - head.box_vox[0]) * np.asarray(head.voxel_size_mm)
        shift_mm = (np.asarray(recipe.deformation.center_frac) - 0.5) * extent_mm
        limit_mm = recipe.view.cut_mm - float(normal @ shift_mm)
        parts = [
            (torch.arange(n, device=head.ranks.device) - (n - 1) / 2) * self.voxel_size_mm * float(c)
            for n, c in zip(self.shape, normal, strict=True)
        ]
        plane = parts[1][:, None] + parts[2][None]
        return lambda start, stop: (parts[0][start:stop, None, None] + plane) > limit_mm

    def check_codes(self, labels: LabelMap, *, what: str = "label map") -> None:
        """Refuse a label map that holds codes without a translation."""
        Crosswalk(self._to_target, self.target, name="to the network's labels").codes(labels.voxels, what=what)


def _quantile(image: Tensor, q: float) -> float:
    """Quantile of every 61st voxel: 40,000 of 128³, good to 1 % of a class's spread."""
    sample = image.flatten()[::61]
    return float(torch.quantile(sample[:4_000_000], q))


def rescale(image: Tensor, gamma: float = 1.0) -> Tensor:
    """Intensities to 0..1 between the 0.5th and 99.5th percentile, then ``** gamma``.

    The same scaling (with ``gamma = 1``) is what a network sees at inference.
    """
    low, high = _quantile(image, 0.005), _quantile(image, 0.995)
    scaled = (image - low).div_(max(high - low, 1e-6)).clamp_(0, 1)
    return scaled if gamma == 1.0 else scaled.pow_(gamma)
