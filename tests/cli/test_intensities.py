# SPDX-License-Identifier: Apache-2.0
"""Real and synthetic images side by side, each drawn once."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.stages import intensities
from brainseg_bids.stages.intensities import EDGES, draw

TABLE = LabelTable.packaged("brainseg")
SHAPE = (8, 9, 10)


@pytest.fixture
def generator(monkeypatch):
    """Draws noise with two classes, and counts how often."""
    monkeypatch.setattr(intensities, "FEWEST_VOXELS", 1)
    monkeypatch.setattr(intensities, "PairStream", Stream)
    made = SimpleNamespace(target=TABLE, shape=SHAPE, voxel_size_mm=1.0, rendered=0)

    def render(head, recipe):
        made.rendered += 1
        noise = torch.Generator().manual_seed(recipe.seed)
        labels = torch.zeros(SHAPE, dtype=torch.uint8)
        labels[: recipe.seed + 1] = 1
        return SimpleNamespace(image=torch.rand(1, *SHAPE, generator=noise), labels=labels)

    made.render = render
    return made


class Stream:
    """Recipes that depend on nothing but the space's first seed."""

    def __init__(self, heads, spaces, generator, *, seed):
        self.heads, self.generator = heads, generator
        ((self.first, _),) = spaces

    def draw(self, step):
        number = self.first + step % 3
        return 0, SimpleNamespace(seed=number, to_json=lambda: f'{{"seed": {number}}}')


def test_images_of_the_same_recipes_are_drawn_once(generator):
    grid, before = Grid(SHAPE, np.eye(4)), {}
    first = draw(0, [None], generator, grid, before)
    assert generator.rendered == intensities.PAIRS
    assert draw(0, [None], generator, grid, before) is first
    assert generator.rendered == intensities.PAIRS
    assert draw(1, [None], generator, grid, before) is not first
    assert generator.rendered == 2 * intensities.PAIRS
    assert (first.largest.labels.voxels != 0).sum() == 3 * 9 * 10


def test_counts_are_shares_of_each_class_in_each_bin(generator):
    drawn = draw(0, [None], generator, Grid(SHAPE, np.eye(4)), {})
    assert len(drawn.counts) == 2
    for counts in drawn.counts.values():
        assert len(counts) == len(EDGES) - 1
        assert counts.sum() == pytest.approx(intensities.PAIRS)
    image = drawn.largest.image
    own = image[drawn.largest.labels.voxels == 0]
    wanted, _ = np.histogram(own, EDGES)
    # Of one pair alone the shares are those of a plain histogram.
    alone = intensities.histograms([drawn.largest])
    name = next(label.name for label in TABLE if label.index == 0)
    assert alone[name] == pytest.approx(wanted / wanted.sum())
