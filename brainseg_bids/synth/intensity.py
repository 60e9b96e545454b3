# SPDX-License-Identifier: Apache-2.0
"""Intensities of tissues: one table lookup per voxel, whatever the number of labels."""

from __future__ import annotations

import torch
from torch import Tensor

from brainseg_bids.anatomy.labels import Label, LabelTable
from brainseg_bids.synth.recipe import Recipe, View

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
        rows += [complex(tissue.mean[k * n // components], tissue.sd[k * n // components]) for k in range(components)]
    return torch.tensor(rows, dtype=torch.complex64), components


def is_visible(label: Label, view: View) -> bool:
    """Whether a label is still in the image under this view."""
    if view.kept == "head" or label.is_brain:
        return True
    return label.is_extracerebral_csf and view.kept == "brain+csf"


def draw_noise(shape: tuple[int, ...], seed: int, device: torch.device) -> Tensor:
    """Standard normal noise; the stream belongs to the kind of device."""
    generator = torch.Generator(device=device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device)
