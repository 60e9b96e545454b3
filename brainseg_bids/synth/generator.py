# SPDX-License-Identifier: Apache-2.0
"""``Generator``: synthetic image-label pair from a label map and a recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.grid import triple
from brainseg_bids.anatomy.intensity import intensity_range, quantiles
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.synth.atrophy import VentricleField, atrophied, widen_ventricles
from brainseg_bids.synth.deform import coordinate_nodes, linear_part, node_stride
from brainseg_bids.synth.gibbs import truncate
from brainseg_bids.synth.intensity import one_value, paint, tissues
from brainseg_bids.synth.interpolate import BandedProduct, linear_matrix, slabs
from brainseg_bids.synth.motion import move
from brainseg_bids.synth.ratio import second_inversion, take_ratio
from brainseg_bids.synth.receive import receive
from brainseg_bids.synth.recipe import Recipe, Triple
from brainseg_bids.synth.resolution import AcquiredVoxels, acquire
from brainseg_bids.synth.shading import air_loss, flip_angles
from brainseg_bids.synth.texture import correlated_noise, patches
from brainseg_bids.synth.view import Box, Crop, field_of_view, masked, out_of_view


@dataclass(frozen=True)
class SynthPair:
    """Synthetic image with its labels.

    Parameters
    ----------
    image : (1, X, Y, Z) float32
        Between 0 and 1.
    labels : (X, Y, Z) uint8
        Class indices of the labels that a network learns.
    """

    image: Tensor
    labels: Tensor


@dataclass(frozen=True)
class LabelVolume:
    """A label map prepared for the generator: class indices, with a margin of background.

    Parameters
    ----------
    indices : (X + 2, Y + 2, Z + 2) uint8
        Class index of each voxel in the source table, in RAS+ axis order.
    voxel_size_mm : tuple of 3 float
    box_vox, brain_box_vox : (2, 3) float
        First and last voxel of the head, and of the brain, in ``indices``.
    ventricles : VentricleField, optional
        Vector field towards the ventricles, if there are any.
    """

    indices: Tensor
    voxel_size_mm: tuple[float, float, float]
    box_vox: np.ndarray
    brain_box_vox: np.ndarray
    ventricles: VentricleField | None = None

    @classmethod
    def from_label_map(cls, labels: LabelMap) -> LabelVolume:
        """Label volume of a label map.

        Raises
        ------
        ValueError
            If the label map is empty.
        """
        grid = labels.grid.to_ras()
        codes = labels.grid.array_to_ras(labels.voxels)
        # Codes without a position are not in a label map, so a byte holds all.
        indices = np.pad(labels.table.positions().astype(np.uint8)[codes], 1)
        box = _box(indices > 0)
        if box is None:
            raise ValueError("the label map is empty: every voxel is background")
        brain_box = _box(np.array([label.is_brain for label in labels.table])[indices])
        if brain_box is None:
            brain_box = box
        ventricles = VentricleField.of(indices, labels.table, grid.voxel_size_mm)
        return cls(torch.from_numpy(indices), grid.voxel_size_mm, box, brain_box, ventricles)

    def to(self, device: torch.device | str) -> LabelVolume:
        """Label volume on another device."""
        ventricles = self.ventricles and self.ventricles.to(device)
        return replace(self, indices=self.indices.to(device), ventricles=ventricles)


class Generator:
    """Renders recipes as synthetic pairs.

    Parameters
    ----------
    crosswalk : Crosswalk
        Translation of the codes of label maps into those that a network learns.
    source : LabelTable
        Label table of the label maps.
    shape : tuple of 3 int
        Voxels of a pair.
    voxel_size_mm : float
        Voxel size of a pair, isotropic.

    Raises
    ------
    ValueError
        If code 0 is not background in both tables, or a table has more than 255 labels.
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
        self.shape = triple(shape)
        self.voxel_size_mm = voxel_size_mm
        known = [label for label in source if label.index in crosswalk.pairs]
        self._to_target = {label.index: crosswalk.pairs[label.index] for label in known}
        if source.codes[0] != 0 or self.target.codes[0] != 0:
            raise ValueError("code 0 has to be background in both tables")
        if len(source) > 255 or len(self.target) > 255:
            raise ValueError(
                "tables of more than 255 labels do not fit the generator's uint8 class indices"
            )

    def render(self, head: LabelVolume, recipe: Recipe) -> SynthPair:
        """Synthetic pair of a label volume and a recipe.

        The same recipe and label volume give the same pair, bit for bit on one kind of device. On
        different kinds of device, labels are equal except for rounding at borders. Effects on the
        image do not change the labels.
        """
        crop = self._crop(head, recipe)
        indices = self._deform(head, recipe)  # anatomy moves; labels stay labels
        indices = atrophied(indices, recipe.ageing, self.source, voxel_size_mm=self.voxel_size_mm)
        gone = out_of_view(recipe.view, indices, self.source, crop)
        labels = self._labels(indices, gone, flip=recipe.flip)

        contrast = [
            self._tissues(recipe, crop),  # each label gets its own intensities and texture
            self._flip_angles(head, recipe, crop),  # B1+: contrast where 7 T is weak
        ]
        signal = [
            air_loss(recipe.susceptibility, indices, self.source, crop),  # echoes lost near air
            receive(recipe.bias, crop),  # B1-: what the coils hear
        ]
        if recipe.ratio.noise_frac > 0:
            image = self._ratio_image(indices, contrast, signal, recipe, crop)
        else:
            image = self._magnitude_image(indices, contrast + signal, recipe, crop)

        if recipe.view.air_masked:
            image, gone = self._mask(image, indices, recipe, crop)  # air made constant
        seen = field_of_view(recipe.view, crop)
        return SynthPair(image=_finish(image, gone, seen, recipe.gamma)[None], labels=labels)

    def _mask(
        self, image: Tensor, indices: Tensor, recipe: Recipe, crop: Crop
    ) -> tuple[Tensor, Tensor | None]:
        """Image with its air at one level, and what has to be zero besides."""
        air = masked(recipe.view, indices, self.source)
        # Tissues that are not kept have the mask's level, which is zero in magnitude images.
        beyond = replace(recipe.view, kept="head")
        gone = out_of_view(beyond, indices, self.source, crop)
        if air is not None:
            image = image.masked_fill(air, recipe.view.air_level)
        return image, gone

    def _magnitude_image(
        self, indices: Tensor, layers: list[Any], recipe: Recipe, crop: Crop
    ) -> Tensor:
        """Paint, move, acquire: length of complex numbers with noise."""
        image = paint(indices, layers)
        (scale,) = quantiles(image, 0.99)
        image = move(image, recipe.motion, crop)  # lines of k-space from other poses
        return acquire(  # slice profile, voxel size, ringing, noise
            image,
            recipe.resolution,
            recipe.noise,
            gibbs=recipe.gibbs,
            voxel_size_mm=self.voxel_size_mm,
            scale=scale,
        )

    def _ratio_image(
        self, indices: Tensor, contrast: list[Any], signal: list[Any], recipe: Recipe, crop: Crop
    ) -> Tensor:
        """MP2RAGE's UNI: what acts on both inversions cancels, and shows in the noise only.

        The noise of a ratio is that of its inversions; ``recipe.noise`` has no part in it.
        """
        voxels = AcquiredVoxels.of(self.shape, recipe.resolution, voxel_size_mm=self.voxel_size_mm)
        strength = second_inversion(self.source, recipe.transmit.field_t).to(crop.device)
        painted, second = (
            truncate(
                voxels.sample(move(paint(indices, layers), recipe.motion, crop)), recipe.gibbs
            )
            for layers in (contrast, [one_value(strength), *signal])
        )
        return voxels.resample(take_ratio(painted, second, recipe.ratio))

    def _crop(self, head: LabelVolume, recipe: Recipe) -> Crop:
        center_mm = self._place_mm(head, recipe, head.box_vox.mean(0))
        return Crop(self.shape, self.voxel_size_mm, center_mm, head.indices.device)

    @staticmethod
    def _place_mm(head: LabelVolume, recipe: Recipe, source_vox: np.ndarray) -> Triple:
        """Where a voxel of the label map is in the pair, RAS mm from its middle; warp left out."""
        middle = _middle_vox(head, recipe)
        offset_mm = (source_vox - middle) * np.asarray(head.voxel_size_mm)
        place_mm = np.linalg.solve(linear_part(recipe.deformation), offset_mm)
        if recipe.flip:
            place_mm[0] *= -1
        return triple(float(mm) for mm in place_mm)

    def _deform(self, head: LabelVolume, recipe: Recipe) -> Tensor:
        """Class index of each voxel's label in the source table, (X, Y, Z) uint8."""
        index = self._locate(head, recipe)
        source = head.indices.flatten()
        indices = torch.empty(self.shape, dtype=torch.uint8, device=source.device)
        for start, stop in slabs(self.shape[0]):
            torch.index_select(
                source, 0, index(start, stop).flatten(), out=indices[start:stop].view(-1)
            )
        return indices

    def _locate(self, head: LabelVolume, recipe: Recipe) -> Callable[[int, int], Tensor]:
        """Function of a slab: flat index into ``head.indices`` of each of its voxels."""
        device = head.indices.device
        nodes = coordinate_nodes(
            recipe.deformation,
            shape=self.shape,
            voxel_size_mm=self.voxel_size_mm,
            source_voxel_size_mm=head.voxel_size_mm,
            source_center_vox=_middle_vox(head, recipe),
            flip=recipe.flip,
            device=device,
        )
        nodes = widen_ventricles(nodes, head.ventricles, recipe.ageing, head.voxel_size_mm)
        # Half a voxel more, so that cutting off the decimals rounds.
        nodes = nodes.transpose(0, 1) + 0.5
        lowest, highest = nodes.amin((2, 3)).tolist(), nodes.amax((2, 3)).tolist()
        stride = node_stride(self.voxel_size_mm)
        to_x, to_y, to_z = (
            linear_matrix(n, c, positions=torch.arange(n) / stride)
            for n, c in zip(self.shape, (nodes.shape[0], *nodes.shape[2:]), strict=True)
        )
        finer = BandedProduct(to_x, to_y.to(device) @ (nodes @ to_z.to(device).T))
        sizes, (step_x, step_y, _) = head.indices.shape, head.indices.stride()

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

    def _labels(self, indices: Tensor, gone: Tensor | None, *, flip: bool) -> Tensor:
        """Class indices in the target table; background where there is no label, or no image."""
        positions = self.target.positions()
        to_target = np.zeros(len(self.source), dtype=np.uint8)
        for index, label in enumerate(self.source):
            code = self._to_target.get(label.index)
            if code is not None:
                entry = self.target[code]
                to_target[index] = positions[entry.mirror if flip else entry.index]
        lookup = torch.from_numpy(to_target).to(indices.device)
        labels = torch.empty_like(indices)
        for start, stop in slabs(self.shape[0]):
            part = indices[start:stop].flatten().int()
            torch.index_select(lookup, 0, part, out=labels[start:stop].view(-1))
        return labels if gone is None else labels.masked_fill_(gone, 0)

    def _tissues(self, recipe: Recipe, crop: Crop) -> Callable[..., Any]:
        return tissues(
            recipe,
            self.source,
            level=patches(recipe.texture, crop),
            noise=correlated_noise(recipe.texture, crop, recipe.paint_seed),
            device=crop.device,
        )

    def _flip_angles(
        self, head: LabelVolume, recipe: Recipe, crop: Crop
    ) -> Callable[..., Any] | None:
        brain_mm = self._place_mm(head, recipe, head.brain_box_vox.mean(0))
        return flip_angles(recipe.transmit, recipe.ratio, self.source, crop, brain_mm=brain_mm)

    def check_codes(self, codes: np.ndarray, *, what: str = "label map") -> None:
        """Raise an error if codes have no translation in the crosswalk.

        Parameters
        ----------
        codes : int array
        what : str
            Name of the label map in the message.

        Raises
        ------
        UnknownLabelError
            If a code has no translation.
        """
        Crosswalk(self._to_target, self.target, name="to the network's labels").codes(
            codes, what=what
        )


def _box(mask: np.ndarray) -> np.ndarray | None:
    """First and last voxel of a mask, (2, 3) float; ``None`` if there is none."""
    sides = []
    for axis in range(3):
        filled = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        if filled.size == 0:
            return None
        sides.append((filled[0], filled[-1]))
    return np.array(sides, dtype=float).T


def _middle_vox(head: LabelVolume, recipe: Recipe) -> np.ndarray:
    """Voxel of the label map that the middle of the crop is put on."""
    low, high = head.box_vox
    return low + (high - low) * np.asarray(recipe.deformation.center_frac)


def _finish(image: Tensor, gone: Tensor | None, seen: Box, gamma: float) -> Tensor:
    """Take away what is not in view, and scale what is in the field of view to 0..1."""
    if gone is None:
        return _rescale(image, gamma)
    finished = torch.zeros_like(image)
    finished[seen] = _rescale(image.masked_fill_(gone, 0)[seen].contiguous(), gamma)
    return finished.masked_fill_(gone, 0)


def _rescale(image: Tensor, gamma: float) -> Tensor:
    """Intensities as `anatomy.intensity.rescale` gives them, then ``** gamma``; by slabs."""
    window = intensity_range(image)
    scaled = torch.empty_like(image)
    for start, stop in slabs(image.shape[0]):
        part = window.scaled(image[start:stop])
        if gamma != 1.0:
            part.log2_().mul_(gamma).exp2_()  # half the time of pow
        scaled[start:stop] = part
    return scaled
