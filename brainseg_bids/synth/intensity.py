# SPDX-License-Identifier: Apache-2.0
"""Intensities of tissues: one table lookup per voxel, whatever the number of labels."""

from __future__ import annotations

import torch
from torch import Tensor

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.synth.recipe import Recipe, View

BRAIN_MAPPINGS = frozenset({1, 2, 7, 8, 9, 10, 11})
"""BIDS standard codes that a skull-stripped image still shows."""


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
        if not is_visible(label.mapping, label.index, recipe.view, csf=is_extracerebral(label.name)):
            rows += [complex(0, 0)] * components
            continue
        tissue = recipe.tissues[label.name]
        n = len(tissue.mean)
        rows += [complex(tissue.mean[k * n // components], tissue.sd[k * n // components]) for k in range(components)]
    return torch.tensor(rows, dtype=torch.complex64), components


def is_extracerebral(name: str) -> bool:
    """Whether a label is the CSF around the brain."""
    return name in ("CSF", "Extra-Cerebral-CSF", "Cortical-CSF")


def is_visible(mapping: int, index: int, view: View, *, csf: bool) -> bool:
    """Whether a label is still in the image under this view."""
    if view.kept == "head":
        return True
    if csf:
        return view.kept == "brain+csf"
    # CSF (3) inside the brain stays with it; label 85/530 is white matter or non-brain by table.
    return index != 0 and (mapping in BRAIN_MAPPINGS or mapping == 3)


def draw_noise(shape: tuple[int, ...], seed: int, device: torch.device) -> Tensor:
    """Standard normal noise; the stream belongs to the kind of device."""
    generator = torch.Generator(device=device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device)
