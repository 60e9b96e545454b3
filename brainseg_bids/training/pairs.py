# SPDX-License-Identifier: Apache-2.0
"""Pairs, fresh from the generator, in an order that a restart repeats."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from brainseg_bids.synth.generator import Generator, Head
from brainseg_bids.synth.recipe import Recipe
from brainseg_bids.synth.space import RecipeSpace


class PairStream(IterableDataset):
    """Endless pairs; the pair of a step depends on seed, rank and step only.

    Parameters
    ----------
    heads : sequence of Head
    spaces : sequence of (RecipeSpace, float)
        Recipe spaces and how often each is drawn from.
    generator : Generator
    seed, rank : int
    start_step : int
        First step to give; a resumed run sets it.
    stop_step : int, optional
        Step before which to end; by default never.
    """

    def __init__(
        self,
        heads: Sequence[Head],
        spaces: Sequence[tuple[RecipeSpace, float]],
        generator: Generator,
        *,
        seed: int,
        rank: int = 0,
        start_step: int = 0,
        stop_step: int | None = None,
    ) -> None:
        super().__init__()
        for space, _ in spaces:
            space.covers(generator.source)
        self.heads = heads
        self.spaces = spaces
        self.generator = generator
        self.seed, self.rank = seed, rank
        self.start_step, self.stop_step = start_step, stop_step

    def draw(self, step: int) -> tuple[int, Recipe]:
        """Which head, and the recipe, of one step."""
        rng = np.random.default_rng([self.seed, self.rank, step])
        which = int(rng.integers(len(self.heads)))
        shares = np.array([share for _, share in self.spaces], dtype=float)
        space = self.spaces[int(rng.choice(len(shares), p=shares / shares.sum()))][0]
        return which, space.draw(rng)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        step = self.start_step
        while self.stop_step is None or step < self.stop_step:
            which, recipe = self.draw(step)
            pair = self.generator.render(self.heads[which], recipe)
            yield {"image": pair.image[None], "labels": pair.labels, "step": torch.tensor(step)}
            step += 1
