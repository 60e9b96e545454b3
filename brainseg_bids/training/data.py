# SPDX-License-Identifier: Apache-2.0
"""Synthetic pairs for training and validation, reproducible after a restart."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.synth.generator import Generator, LabelVolume
from brainseg_bids.synth.recipe import Recipe

HEADS_SHARE = 0.03
"""Fraction of the GPU's free memory for the label volumes of training, and for those of
validation: a memory plan leaves a tenth, which the generator needs as well. If more is needed,
each volume is copied when it is used, which takes milliseconds."""
INDEX_STRIDE = 1_000_003
"""Difference of the seeds of two samples of a step: more than the steps of a run."""


class Space(Protocol):
    """Interface of recipe spaces: `RecipeSpace` or `PriorSpace`."""

    @property
    def name(self) -> str:
        """Name of the recipe space."""

    @property
    def digest(self) -> str:
        """SHA-256 of all values of the recipe space."""

    def at(self, voxel_size_mm: float) -> Space:
        """Recipe space for pairs of this voxel size."""

    def covers(self, table: LabelTable) -> None:
        """Raise an error (`ValueError`) unless every label of the table has intensities."""

    def draw(self, rng: np.random.Generator) -> Recipe:
        """Random recipe, which depends on ``rng`` only."""


class PairStream(IterableDataset[dict[str, Tensor]]):
    """Stream of synthetic pairs, identified by training step and sample index.

    A training step uses several pairs, whose sample indices count from 0. A pair depends on label
    volumes, recipe spaces, seed, step and index only, not on the number of processes or on the
    order and names of the recipe spaces. It can be reproduced with `draw`.

    Iteration yields the pairs with one sample index for successive steps. Workers of a
    ``DataLoader`` share the steps.

    Parameters
    ----------
    heads : sequence of LabelVolume
    spaces : sequence of (RecipeSpace or PriorSpace, float)
        Recipe spaces with their weights.
    generator : Generator
    seed : int
    index, start_step : int
        Sample index and first step of the iteration.
    stop_step : int, optional
        Step at which the iteration ends (exclusive); default: none.
    """

    def __init__(
        self,
        heads: Sequence[LabelVolume],
        spaces: Sequence[tuple[Space, float]],
        generator: Generator,
        *,
        seed: int,
        index: int = 0,
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
        self.seed, self.index = seed, index
        self.start_step, self.stop_step = start_step, stop_step

    def draw(self, step: int, index: int = 0) -> tuple[int, Recipe]:
        """Index of the label volume, and recipe, of one sample of a step."""
        rng = np.random.default_rng([self.seed, index, step])
        which = int(rng.integers(len(self.heads)))
        shares = np.array([share for _, share in self.spaces], dtype=float)
        space = self.spaces[int(rng.choice(len(shares), p=shares / shares.sum()))][0]
        return which, space.draw(rng)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        worker = get_worker_info()
        first, every = (worker.id, worker.num_workers) if worker else (0, 1)
        step = self.start_step + first
        while self.stop_step is None or step < self.stop_step:
            which, recipe = self.draw(step, self.index)
            pair = self.generator.render(self.heads[which], recipe)
            yield {"image": pair.image[None], "labels": pair.labels, "step": torch.tensor(step)}
            step += every


@dataclass(frozen=True)
class Shard:
    """The pairs of a step that one process generates.

    Parameters
    ----------
    batch : int
        Pairs of one forward pass.
    accumulate : int
        Batches of a process in one step.
    rank, world : int
        Rank of the process, and number of processes.
    """

    batch: int = 1
    accumulate: int = 1
    rank: int = 0
    world: int = 1

    def indices(self, turn: int) -> list[int]:
        """Sample indices of batch number ``turn`` of this process within a step.

        >>> [Shard(batch=2, accumulate=2, rank=rank, world=2).indices(1) for rank in (0, 1)]
        [[4, 5], [6, 7]]
        """
        first = (turn * self.world + self.rank) * self.batch
        return list(range(first, first + self.batch))


def pair_seed(step: int, index: int) -> int:
    """Seed for the random sample of voxels of a pair.

    >>> pair_seed(7, 0)
    7
    """
    return step + index * INDEX_STRIDE


class PairLoader:
    """Loader of the training batches of one process, generated on its device.

    On a GPU, the next batch is generated in a separate CUDA stream during the training step. On a
    CPU this would not be faster: a batch is generated when it is needed.

    Parameters
    ----------
    stream : PairStream
    shard : Shard
    device : torch.device
    first_step, stop_step : int
        Batches begin at ``first_step``. The length counts from step 0, as in Lightning.

    Attributes
    ----------
    waited_s : float
        Time spent waiting for batches.
    """

    def __init__(
        self,
        stream: PairStream,
        shard: Shard,
        device: torch.device,
        *,
        first_step: int,
        stop_step: int,
    ) -> None:
        self.stream, self.shard, self.device = stream, shard, device
        self.first_step, self.stop_step = first_step, stop_step
        self.waited_s = 0.0
        self.heads = heads_on(stream.heads, device)

    def __len__(self) -> int:
        return self.stop_step * self.shard.accumulate

    def __iter__(self) -> Iterator[dict[str, Any]]:
        jobs = (
            (step, turn)
            for step in range(self.first_step, self.stop_step)
            for turn in range(self.shard.accumulate)
        )
        yield from (self._ahead(jobs) if self.device.type == "cuda" else self._in_turn(jobs))

    def _in_turn(self, jobs: Iterator[tuple[int, int]]) -> Iterator[dict[str, Any]]:
        for job in jobs:
            began_s = time.monotonic()
            batch = self.make(*job)
            self.waited_s += time.monotonic() - began_s
            yield batch

    def _ahead(self, jobs: Iterator[tuple[int, int]]) -> Iterator[dict[str, Any]]:
        """One batch ahead; works where PyTorch says "cuda": NVIDIA and ROCm."""
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))  # heads are on their way

        def make(job: tuple[int, int]) -> tuple[dict[str, Any], torch.cuda.Event]:
            # The current device and stream belong to a thread.
            with torch.cuda.device(self.device), torch.cuda.stream(side):
                return self.make(*job), side.record_event()

        with ThreadPoolExecutor(1, thread_name_prefix="pairs") as pool:
            job = next(jobs, None)
            coming = pool.submit(make, job) if job else None
            while coming is not None:
                began_s = time.monotonic()
                batch, made = coming.result()
                made.synchronize()
                self.waited_s += time.monotonic() - began_s
                for name in ("image", "labels"):
                    # Or its memory would be taken for the next batch while it is still used.
                    batch[name].record_stream(torch.cuda.current_stream(self.device))
                job = next(jobs, None)
                coming = pool.submit(make, job) if job else None
                yield batch

    def make(self, step: int, turn: int) -> dict[str, Any]:
        """Batch: image (B, 1, X, Y, Z) float32, labels (B, X, Y, Z) uint8, sample indices."""
        indices = self.shard.indices(turn)
        pairs = [render(self.stream, self.heads, step, index, self.device) for index in indices]
        return {
            "image": torch.stack([image for image, _ in pairs]),
            "labels": torch.stack([labels for _, labels in pairs]),
            "step": step,
            "indices": indices,
            "seeds": [pair_seed(step, index) for index in indices],
        }


class ValidationLoader:
    """Loader of the validation pairs of one process.

    All processes have the same number of pairs. If the pairs cannot be divided equally, some
    processes repeat a pair, with ``counted`` False.

    Parameters
    ----------
    stream : PairStream
    pairs : int
        Number of pairs of all processes together.
    rank, world : int
        Rank of the process, and number of processes.
    device : torch.device
    """

    def __init__(
        self, stream: PairStream, pairs: int, device: torch.device, *, rank: int, world: int
    ) -> None:
        self.stream, self.pairs, self.device = stream, pairs, device
        self.rank, self.world = rank, world
        self.heads = heads_on(stream.heads, device)

    def __len__(self) -> int:
        return math.ceil(self.pairs / self.world)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for turn in range(len(self)):
            number = turn * self.world + self.rank
            counted = number < self.pairs
            number = number if counted else 0
            image, labels = render(self.stream, self.heads, number, 0, self.device)
            yield {
                "image": image[None],
                "labels": labels[None],
                "number": number,
                "counted": counted,
            }


def render(
    stream: PairStream, heads: Sequence[LabelVolume], step: int, index: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Image (1, X, Y, Z) float32 and labels (X, Y, Z) uint8 of one sample, on the device."""
    which, recipe = stream.draw(step, index)
    pair = stream.generator.render(heads[which].to(_rendering_device(device)), recipe)
    return pair.image.to(device), pair.labels.to(device)


def _rendering_device(device: torch.device) -> torch.device:
    """Where pairs are made: not every accelerator can do all that the generator does."""
    return device if device.type == "cuda" else torch.device("cpu")


def heads_on(heads: Sequence[LabelVolume], device: torch.device) -> Sequence[LabelVolume]:
    """Label volumes, copied to the device that generates pairs if they fit into its memory."""
    if _rendering_device(device).type == "cpu":
        return heads
    needed = sum(head.indices.numel() for head in heads)
    free, _ = torch.cuda.mem_get_info(device)
    return [head.to(device) for head in heads] if needed <= HEADS_SHARE * free else heads
