# SPDX-License-Identifier: Apache-2.0
"""``Generator``: from a label map and a recipe to an image-label pair."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.synth.deform import coordinate_nodes, node_stride
from brainseg_bids.synth.intensity import draw_noise, is_visible, tissue_lookup
from brainseg_bids.synth.interpolate import BandedProduct, linear_matrix, slabs, smooth_noise
from brainseg_bids.synth.recipe import Recipe
from brainseg_bids.synth.resolution import acquire


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
            raise ValueError(
                "tables of more than 255 labels do not fit the generator's uint8 ranks"
            )

    def render(self, head: Head, recipe: Recipe) -> SynthPair:
        """Make the pair that ``recipe`` describes.

        Same recipe and head give the same pair, bit for bit on one kind of device; labels are
        the same on all of them up to rounding at borders.
        """
        image, labels = self._paint(head, recipe)
        (scale,) = _quantiles(image, 0.99)
        image = acquire(
            image, recipe.resolution, recipe.noise, voxel_size_mm=self.voxel_size_mm, scale=scale
        )
        return SynthPair(image=rescale(image, recipe.gamma)[None], labels=labels)

    def _locate(self, head: Head, recipe: Recipe) -> Callable[[int, int], Tensor]:
        """Function of a slab: flat index into ``head.ranks`` of each of its voxels."""
        low, high = head.box_vox
        device = head.ranks.device
        center = low + (high - low) * np.asarray(recipe.deformation.center_frac)
        nodes = coordinate_nodes(
            recipe.deformation,
            shape=self.shape,
            voxel_size_mm=self.voxel_size_mm,
            source_voxel_size_mm=head.voxel_size_mm,
            source_center_vox=center,
            flip=recipe.flip,
            device=device,
        )
        # Half a voxel more, so that cutting off the decimals rounds.
        nodes = nodes.transpose(0, 1) + 0.5
        lowest, highest = nodes.amin((2, 3)).tolist(), nodes.amax((2, 3)).tolist()
        stride = node_stride(self.voxel_size_mm)
        to_x, to_y, to_z = (
            linear_matrix(n, c, positions=torch.arange(n) / stride)
            for n, c in zip(self.shape, (nodes.shape[0], *nodes.shape[2:]), strict=True)
        )
        finer = BandedProduct(to_x, to_y.to(device) @ (nodes @ to_z.to(device).T))
        sizes, (step_x, step_y, _) = head.ranks.shape, head.ranks.stride()

        def index(start: int, stop: int) -> Tensor:
            where = finer(start, stop)
            band = finer.columns(start, stop)
            for axis, size in enumerate(sizes):
                below = min(row[axis] for row in lowest[band])
                above = max(row[axis] for row in highest[band])
                if below < 0.01 or above > size - 0.01:
                    # Beyond the map is its one-voxel frame of background.
                    where[:, axis].clamp_(0, size - 0.5)
            where = where.int()
            flat = where[:, 2].add(where[:, 1], alpha=step_y)
            return flat.add_(where[:, 0], alpha=step_x)

        return index

    def _paint(self, head: Head, recipe: Recipe) -> tuple[Tensor, Tensor]:
        device = head.ranks.device
        lookup, components = tissue_lookup(recipe, self.source)
        lookup = lookup.to(device)
        target = self._target_lookup(recipe).to(device)
        ranks = head.ranks.flatten()
        index = self._locate(head, recipe)
        beyond = self._beyond(head, recipe)
        noise = draw_noise(self.shape, recipe.paint_seed, device)
        bias = texture = None
        if recipe.bias.log_sd > 0:
            # Powers of two cost a third of powers of e.
            scale = recipe.bias.log_sd / math.log(2)
            bias = self._smooth_field(recipe.bias.node_spacing_mm, recipe.bias.seed, device, scale)
        if components > 1:
            texture = self._smooth_field(
                recipe.texture.scale_mm,
                recipe.texture.seed,
                device,
                0.6 * components,
                components / 2,
            )
        image = torch.empty(self.shape, device=device)
        labels = torch.empty(self.shape, dtype=torch.uint8, device=device)
        for start, stop in slabs(self.shape[0]):
            entry = ranks.index_select(0, index(start, stop).flatten()).int()
            if beyond is not None:
                entry.masked_fill_(beyond(start, stop).flatten(), 0)
            torch.index_select(target, 0, entry, out=labels[start:stop].view(-1))
            if texture is not None:
                part = texture(start, stop).clamp_(0, components - 1e-3).int()
                entry.mul_(components).add_(part.view(-1))
            tissue = torch.view_as_real(lookup.index_select(0, entry)).view(-1, *self.shape[1:], 2)
            painted = image[start:stop]
            torch.addcmul(tissue[..., 0], tissue[..., 1], noise(start, stop), out=painted)
            if bias is not None:
                painted.mul_(bias(start, stop).exp2_())
            painted.clamp_(min=0)
        return image, labels

    def _smooth_field(
        self,
        node_spacing_mm: float,
        seed: int,
        device: torch.device,
        spread: float,
        mean: float = 0.0,
    ) -> BandedProduct:
        nodes, (to_x, to_y, to_z) = smooth_noise(
            self.shape,
            voxel_size_mm=self.voxel_size_mm,
            node_spacing_mm=node_spacing_mm,
            seed=seed,
        )
        # B-spline synthesis of white noise has a spread of about a third; make it one. Its
        # weights sum to one, so that the mean may be added to the nodes.
        nodes = (nodes[0] * (3.0 * spread) + mean).to(device)
        return BandedProduct(to_x, to_y.to(device) @ (nodes @ to_z.to(device).T))

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
        """Function of a slab: which voxels lie beyond the cut plane; ``None`` cuts nothing."""
        normal = np.asarray(recipe.view.cut_normal)
        if not normal.any():
            return None
        # The plane is placed from the middle of the head, wherever the crop lies.
        extent_mm = (head.box_vox[1] - head.box_vox[0]) * np.asarray(head.voxel_size_mm)
        shift_mm = (np.asarray(recipe.deformation.center_frac) - 0.5) * extent_mm
        limit_mm = recipe.view.cut_mm - float(normal @ shift_mm)
        parts = [
            (torch.arange(n, device=head.ranks.device) - (n - 1) / 2)
            * self.voxel_size_mm
            * float(c)
            for n, c in zip(self.shape, normal, strict=True)
        ]
        plane = parts[1][:, None] + parts[2][None]
        return lambda start, stop: (parts[0][start:stop, None, None] + plane) > limit_mm

    def check_codes(self, labels: LabelMap, *, what: str = "label map") -> None:
        """Refuse a label map that holds codes without a translation."""
        Crosswalk(self._to_target, self.target, name="to the network's labels").codes(
            labels.voxels, what=what
        )


def _quantiles(image: Tensor, *wanted: float) -> list[float]:
    """Quantiles of every 61st voxel: 40,000 of 128³, good to 1 % of a class's spread."""
    sample = image.flatten()[::61][:4_000_000]
    return torch.quantile(sample, torch.tensor(wanted, device=image.device)).tolist()


def rescale(image: Tensor, gamma: float = 1.0) -> Tensor:
    """Intensities to 0..1 between the 0.5th and 99.5th percentile, then ``** gamma``.

    The same scaling (with ``gamma = 1``) is what a network sees at inference.
    """
    low, high = _quantiles(image, 0.005, 0.995)
    scaled = torch.empty_like(image)
    for start, stop in slabs(image.shape[0]):
        part = torch.sub(image[start:stop], low, out=scaled[start:stop])
        part.mul_(1 / max(high - low, 1e-6)).clamp_(0, 1)
        if gamma != 1.0:
            part.log2_().mul_(gamma).exp2_()  # half the time of pow
    return scaled
