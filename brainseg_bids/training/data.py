# SPDX-License-Identifier: Apache-2.0
"""Pairs, fresh from the generator, in an order that a restart repeats."""

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
"""Of the accelerator's free memory that label maps to learn from, and those held out, may take
each: a memory plan leaves a tenth, which pairs are made in, too. If they need more, they stay out
and each is copied when its turn comes, which takes milliseconds."""
INDEX_STRIDE = 1_000_003
"""Between the seeds of two samples of a step: more than the steps of a run."""


class Space(Protocol):
    """What recipes are drawn from: a `RecipeSpace` or a `PriorSpace`."""

    @property
    def name(self) -> str:
        """Of the contrast."""

    @property
    def digest(self) -> str:
        """SHA-256 of every number in it."""

    def at(self, voxel_size_mm: float) -> Space:
        """The space for pairs of this voxel size."""

    def covers(self, table: LabelTable) -> None:
        """Raise ``ValueError`` unless every label of the table has intensities."""

    def draw(self, rng: np.random.Generator) -> Recipe:
        """One recipe; all its randomness comes from ``rng``."""


class PairStream(IterableDataset[dict[str, Tensor]]):
    """Pairs by step and sample index; one depends on heads, spaces, seed, step and index only.

    A step learns from several pairs; a sample's index counts from 0 within its step. Neither the
    number of processes nor the order and the names of the spaces matter, so a pair can be made
    again from (digests of the spaces, seed, step, index) with `draw`.

    Iterating gives the pairs at one index, step by step, without end; workers of a ``DataLoader``
    take turns at the steps.

    Parameters
    ----------
    heads : sequence of LabelVolume
    spaces : sequence of (RecipeSpace or PriorSpace, float)
        Recipe spaces and how often each is drawn from.
    generator : Generator
    seed : int
    index, start_step : int
        What iterating gives, and from where on.
    stop_step : int, optional
        Step before which to end; by default never.
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
        """Which head, and the recipe, of one sample of a step."""
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
    """Which pairs of a step one process makes.

    Parameters
    ----------
    batch : int
        Pairs that go through the network together.
    accumulate : int
        Batches of a process in one step.
    rank, world : int
        Number of the process, and of how many.
    """

    batch: int = 1
    accumulate: int = 1
    rank: int = 0
    world: int = 1

    def indices(self, turn: int) -> list[int]:
        """Places of this process's batch number ``turn`` of a step.

        >>> [Shard(batch=2, accumulate=2, rank=rank, world=2).indices(1) for rank in (0, 1)]
        [[4, 5], [6, 7]]
        """
        first = (turn * self.world + self.rank) * self.batch
        return list(range(first, first + self.batch))


def pair_seed(step: int, index: int) -> int:
    """Seed of what a sample chooses besides its recipe: the voxels to learn from.

    >>> pair_seed(7, 0)
    7
    """
    return step + index * INDEX_STRIDE


class PairLoader:
    """Batches of one process, made on its device.

    On an accelerator the next batch is made while the network works on the last, on a stream of
    its own. A CPU has nothing to gain from that: there a batch is made when it is asked for.

    Parameters
    ----------
    stream : PairStream
    shard : Shard
    device : torch.device
    first_step, stop_step : int
        The length counts from step 0, as Lightning does; batches begin at ``first_step``.

    Attributes
    ----------
    waited_s : float
        Time in which there was nothing to learn from.
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
        """One batch: image (B, 1, X, Y, Z) float32, labels (B, X, Y, Z) uint8, and whose."""
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
    """Validation pairs of one process; every process gives equally many.

    Processes have to stay in step, so one that is left over repeats a pair, ``counted`` False.

    Parameters
    ----------
    stream : PairStream
    pairs : int
        Of all processes.
    rank, world : int
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
    """Image (1, X, Y, Z) and labels (X, Y, Z) of one sample of a step, on the device."""
    which, recipe = stream.draw(step, index)
    pair = stream.generator.render(heads[which].to(_workshop(device)), recipe)
    return pair.image.to(device), pair.labels.to(device)


def _workshop(device: torch.device) -> torch.device:
    """Where pairs are made: not every accelerator can do all that the generator does."""
    return device if device.type == "cuda" else torch.device("cpu")


def heads_on(heads: Sequence[LabelVolume], device: torch.device) -> Sequence[LabelVolume]:
    """Heads where pairs are made, once and for all if they fit there."""
    if _workshop(device).type == "cpu":
        return heads
    needed = sum(head.indices.numel() for head in heads)
    free, _ = torch.cuda.mem_get_info(device)
    return [head.to(device) for head in heads] if needed <= HEADS_SHARE * free else heads
