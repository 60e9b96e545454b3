# SPDX-License-Identifier: Apache-2.0
"""Intensities of tissues, by one table lookup per voxel."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from scipy.special import ndtr
from torch import Tensor

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.synth.interpolate import slabs
from brainseg_bids.synth.recipe import Recipe, Tissue

Layer = Callable[[Tensor, Tensor, int, int], None]
"""Function (values, class indices, start, stop) that changes a slab of the image in place."""

NORMAL = torch.special.ndtri((torch.arange(2**16, dtype=torch.float64) + 0.5) / 2**16).float()
"""65,536 quantiles of the standard normal distribution, from -4.3 to 4.3."""

LEVELS = 256
"""Number of levels of the standard normal field that selects the component of a label."""

LEVELS_PER_SD = 32
"""Levels range from -4 to 4, so the fraction of a component deviates by at most 0.6 % of the
label."""


def tissue_lookup(recipe: Recipe, table: LabelTable) -> tuple[Tensor, int]:
    """Mean and standard deviation of each class index and level of the texture.

    Both are packed into one complex number. The levels of the texture are quantiles of a random
    field. They are divided among the components of a label in proportion to their weights.

    Returns
    -------
    (n_labels * levels,) complex64, levels : int
        Number of levels: 1 if no label has more than one component.

    Raises
    ------
    ValueError
        If the numbers of means, spreads and weights differ, or weights are negative or all zero.
    """
    levels = LEVELS if any(len(recipe.tissues[label.name].mean) > 1 for label in table) else 1
    below = ndtr((np.arange(levels) + 0.5 - levels / 2) / LEVELS_PER_SD)
    lookup = np.empty((len(table), levels), dtype=np.complex64)
    for row, label in zip(lookup, table, strict=True):
        tissue = recipe.tissues[label.name]
        component = np.searchsorted(_shares(tissue, label.name)[:-1], below)
        row.real = np.asarray(tissue.mean)[component]
        row.imag = np.asarray(tissue.sd)[component]
    return torch.from_numpy(lookup.ravel()), levels


def _shares(tissue: Tissue, name: str) -> np.ndarray:
    """Cumulative shares of a tissue's components."""
    weight = np.asarray(tissue.weight or np.ones(len(tissue.mean)), dtype=float)
    if not len(weight) == len(tissue.mean) == len(tissue.sd) > 0:
        raise ValueError(
            f"{name}: {len(tissue.mean)} means, {len(tissue.sd)} spreads and {len(weight)} "
            "weights; a component needs one of each"
        )
    if (weight < 0).any() or weight.sum() <= 0:
        raise ValueError(f"{name}: weights have to be positive, not {tissue.weight}")
    return np.cumsum(weight) / weight.sum()


def tissues(
    recipe: Recipe,
    table: LabelTable,
    *,
    level: Callable[[int, int], Tensor] | None,
    noise: Callable[[int, int], Tensor],
    device: torch.device,
) -> Layer:
    """Layer that draws the intensity of each voxel from the distribution of its label.

    Parameters
    ----------
    recipe : Recipe
    table : LabelTable
    level : callable (start, stop) -> int, or None
        Levels of the texture, see `texture.patches`. None if all labels have one component.
    noise : callable (start, stop) -> float
        Standard normal numbers.
    device : torch.device

    Raises
    ------
    ValueError
        If a label has several components and ``level`` is None.
    """
    lookup, levels = tissue_lookup(recipe, table)
    lookup = lookup.to(device)

    def paint_tissues(painted: Tensor, indices: Tensor, start: int, stop: int) -> None:
        entry = indices
        if levels > 1:
            if level is None:
                raise ValueError("labels of several components need the levels of a texture")
            entry = level(start, stop).add_(indices, alpha=levels)
        found = lookup.index_select(0, entry.flatten())
        mean, sd = torch.view_as_real(found).view(*painted.shape, 2).unbind(-1)
        torch.addcmul(mean, sd, noise(start, stop), out=painted)

    return paint_tissues


def one_value(values: Tensor) -> Layer:
    """Layer that gives each voxel the value of its label, from (n_labels,) float."""

    def paint_values(painted: Tensor, indices: Tensor, start: int, stop: int) -> None:
        torch.index_select(values, 0, indices.flatten(), out=painted.view(-1))

    return paint_values


def paint(indices: Tensor, layers: Iterable[Layer | None]) -> Tensor:
    """Image of a label map, (X, Y, Z) float32: the layers are applied in order, slab by slab.

    Negative intensities become 0.

    Parameters
    ----------
    indices : (X, Y, Z) uint8
        Class index of each voxel, in the table of the layers.
    layers : iterable of Layer or None
        Layers that are None are skipped.
    """
    used = [layer for layer in layers if layer is not None]
    image = torch.zeros(indices.shape, device=indices.device)
    for start, stop in slabs(indices.shape[0]):
        part, entry = image[start:stop], indices[start:stop].int()
        for layer in used:
            layer(part, entry, start, stop)
        part.clamp_(min=0)
    return image


def draw_noise(
    shape: tuple[int, int, int], seed: int, device: torch.device
) -> Callable[[int, int], Tensor]:
    """Function (start, stop) that returns standard normal noise for a slab of a volume.

    The noise depends on the seed and on the kind of device. On CPUs, 16 random bits select a
    quantile of the normal distribution, which takes a third of the time of ``torch.randn``.
    """
    if device.type != "cpu":
        noise = torch.randn(
            shape, generator=torch.Generator(device=device).manual_seed(seed), device=device
        )
        return lambda start, stop: noise[start:stop]
    return draw_quantiles(NORMAL, shape, seed, device)


def draw_quantiles(
    quantiles: Tensor, shape: tuple[int, int, int], seed: int, device: torch.device
) -> Callable[[int, int], Tensor]:
    """Function (start, stop) that returns random numbers of any distribution for a slab.

    Parameters
    ----------
    quantiles : (65536,) float
        Equally probable quantiles of the distribution, in any order.
    shape : tuple of 3 int
        Shape of the whole volume.
    seed : int
    device : torch.device
    """
    n = int(np.prod(shape))
    if device.type == "cpu":
        words = np.random.SFC64(seed).random_raw(-(-n // 4))
        bits = torch.from_numpy(words.view(np.int16))[:n].view(shape)
    else:
        source = torch.Generator(device=device).manual_seed(seed)
        bits = torch.empty(shape, dtype=torch.int16, device=device)
        bits.random_(-(2**15), 2**15, generator=source)
        quantiles = quantiles.to(device)

    def slab(start: int, stop: int) -> Tensor:
        entry = bits[start:stop].int().bitwise_and_(0xFFFF)
        return quantiles.index_select(0, entry.flatten()).view(entry.shape)

    return slab
