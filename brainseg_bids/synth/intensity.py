# SPDX-License-Identifier: Apache-2.0
"""Intensities of tissues: one table lookup per voxel, whatever the number of labels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from brainseg_bids.anatomy.labels import Label, LabelTable
from brainseg_bids.synth.recipe import Recipe, View

NORMAL = torch.special.ndtri((torch.arange(2**16, dtype=torch.float64) + 0.5) / 2**16).float()
"""65,536 quantiles of the standard normal, +-4.3 at the ends."""


def tissue_lookup(recipe: Recipe, table: LabelTable) -> tuple[Tensor, int]:
    """Mean and sd for (label rank x component), packed as one complex number each.

    Returns
    -------
    (n_labels * components,) complex64, components : int
        A label of fewer components repeats them.
    """
    components = max(len(recipe.tissues[label.name].mean) for label in table)
    rows = []
    for label in table:
        if not is_visible(label, recipe.view):
            rows += [complex(0, 0)] * components
            continue
        tissue = recipe.tissues[label.name]
        n = len(tissue.mean)
        rows += [
            complex(tissue.mean[k * n // components], tissue.sd[k * n // components])
            for k in range(components)
        ]
    return torch.tensor(rows, dtype=torch.complex64), components


def is_visible(label: Label, view: View) -> bool:
    """Whether a label is still in the image under this view."""
    if view.kept == "head" or label.is_brain:
        return True
    return label.is_extracerebral_csf and view.kept == "brain+csf"


def draw_noise(
    shape: tuple[int, int, int], seed: int, device: torch.device
) -> Callable[[int, int], Tensor]:
    """Standard normal noise over a volume, as a function of a slab (first plane, stop plane).

    The stream belongs to the kind of device. On the CPU 16 random bits choose one of the
    normal's quantiles, which costs a third of ``torch.randn``.
    """
    if device.type != "cpu":
        noise = torch.randn(
            shape, generator=torch.Generator(device=device).manual_seed(seed), device=device
        )
        return lambda start, stop: noise[start:stop]
    n = int(np.prod(shape))
    words = np.random.SFC64(seed).random_raw(-(-n // 4))
    bits = torch.from_numpy(words.view(np.int16))[:n].view(shape)

    def slab(start: int, stop: int) -> Tensor:
        entry = bits[start:stop].int().bitwise_and_(0xFFFF)
        return NORMAL.index_select(0, entry.flatten()).view(entry.shape)

    return slab
