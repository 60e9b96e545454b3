# SPDX-License-Identifier: Apache-2.0
"""Pairs, fresh from the generator, in an order that a restart repeats."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.synth.generator import Generator, Head
from brainseg_bids.synth.recipe import Recipe


class Space(Protocol):
    """What recipes are drawn from: a `RecipeSpace` or a `DialledSpace`."""

    name: str

    @property
    def digest(self) -> str:
        """SHA-256 of every number in it."""

    def at(self, voxel_size_mm: float) -> Space:
        """The space for pairs of this voxel size."""

    def covers(self, table: LabelTable) -> None:
        """Raise ``ValueError`` unless every label of the table has intensities."""

    def draw(self, rng: np.random.Generator) -> Recipe:
        """One recipe; all its randomness comes from ``rng``."""


class PairStream(IterableDataset):
    """Endless pairs; the pair of a step depends on heads, spaces, seed, rank and step only.

    Neither the number of workers nor the order and the names of the spaces matter, so a pair can
    be made again from (digests of the spaces, seed, step) with `draw`. Workers take turns at the
    steps.

    Parameters
    ----------
    heads : sequence of Head
    spaces : sequence of (RecipeSpace or DialledSpace, float)
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
        spaces: Sequence[tuple[Space, float]],
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
        fitting = [(space.at(generator.voxel_size_mm), share) for space, share in spaces]
        self.spaces = sorted(fitting, key=lambda pair: (pair[0].digest, pair[1]))
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
        worker = get_worker_info()
        first, every = (worker.id, worker.num_workers) if worker else (0, 1)
        step = self.start_step + first
        while self.stop_step is None or step < self.stop_step:
            which, recipe = self.draw(step)
            pair = self.generator.render(self.heads[which], recipe)
            yield {"image": pair.image[None], "labels": pair.labels, "step": torch.tensor(step)}
            step += every
