# SPDX-License-Identifier: Apache-2.0
"""Pairs of a training run can be made again, one by one, by whoever asks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.nets.memory_plan import ALLOWANCES
from brainseg_bids.synth.generator import Generator, LabelVolume
from brainseg_bids.synth.prior_space import PriorSpace
from brainseg_bids.synth.space import RecipeSpace
from brainseg_bids.training.data import (
    HEADS_SHARE,
    PairLoader,
    PairStream,
    Shard,
    ValidationLoader,
)
from tests.synth.priors import make_prior

T1W, AGNOSTIC = RecipeSpace.packaged("t1w"), RecipeSpace.packaged("agnostic")


@pytest.fixture(scope="module")
def ready(head) -> LabelVolume:
    return LabelVolume.from_label_map(head)


@pytest.fixture(scope="module")
def generator() -> Generator:
    source = LabelTable.packaged("fullhead")
    crosswalk = Crosswalk.packaged("fullhead", "brainseg")
    return Generator(crosswalk, source, shape=(16, 16, 16), voxel_size_mm=12.0)


def stream(ready, generator, spaces=((T1W, 1.0), (AGNOSTIC, 2.0)), **options) -> PairStream:
    return PairStream([ready, ready], list(spaces), generator, **{"seed": 4} | options)


def test_a_pair_depends_on_neither_order_nor_names_of_the_spaces(ready, generator):
    renamed = ((replace(AGNOSTIC, name="any"), 2.0), (T1W, 1.0))
    ours, theirs = (stream(ready, generator, s) for s in (((T1W, 1.0), (AGNOSTIC, 2.0)), renamed))
    for step in range(10):
        (head, recipe), (other_head, other) = ours.draw(step), theirs.draw(step)
        assert head == other_head
        assert replace(recipe, space="") == replace(other, space="")


@pytest.mark.parametrize("kappa", [0.0, 0.5, 1.0])
def test_a_prior_space_gives_pairs_that_can_be_made_again(ready, generator, kappa):
    spaces = [[(PriorSpace(AGNOSTIC, make_prior(), kappa), 1.0)] for _ in range(2)]
    one, other = (stream(ready, generator, s) for s in spaces)
    assert one.spaces[0][0].digest == other.spaces[0][0].digest
    straight = next(iter(one))
    head, recipe = other.draw(0)
    again = generator.render(other.heads[head], recipe)
    assert torch.equal(straight["image"][0], again.image)
    assert torch.equal(straight["labels"], again.labels)
    assert torch.isfinite(straight["image"]).all()


def test_workers_take_turns_and_give_what_one_process_gives(ready, generator):
    pairs = stream(ready, generator, start_step=3, stop_step=8)
    alone = list(pairs)
    shared = list(DataLoader(pairs, batch_size=None, num_workers=2))
    assert [int(pair["step"]) for pair in alone] == [3, 4, 5, 6, 7]
    assert [int(pair["step"]) for pair in shared] == [3, 4, 5, 6, 7]
    for one, other in zip(alone, shared, strict=True):
        assert torch.equal(one["image"], other["image"])


@pytest.mark.parametrize(
    ("batch", "accumulate", "world"), [(1, 1, 1), (1, 6, 1), (2, 3, 1), (1, 2, 3), (3, 1, 2)]
)
def test_processes_and_batches_share_a_step_out_without_rest(batch, accumulate, world):
    indices = [
        index
        for rank in range(world)
        for turn in range(accumulate)
        for index in Shard(batch, accumulate, rank, world).indices(turn)
    ]
    assert sorted(indices) == list(range(batch * accumulate * world))


def test_a_feed_gives_the_pairs_of_its_places_from_the_first_step_on(ready, generator):
    pairs = stream(ready, generator)
    shard = Shard(batch=2, accumulate=2, rank=1, world=2)
    loader = PairLoader(pairs, shard, torch.device("cpu"), first_step=3, stop_step=5)
    batches = list(loader)
    assert [(batch["step"], batch["indices"]) for batch in batches] == [
        (3, [2, 3]),
        (3, [6, 7]),
        (4, [2, 3]),
        (4, [6, 7]),
    ]
    assert len(loader) == 10  # from step 0 on
    which, recipe = pairs.draw(4, 7)
    expected = generator.render(pairs.heads[which], recipe)
    assert torch.equal(batches[3]["image"][1], expected.image)
    assert torch.equal(batches[3]["labels"][1], expected.labels)
    assert loader.waited_s > 0
    assert len({seed for batch in batches for seed in batch["seeds"]}) == 8


def test_held_out_pairs_are_counted_once_and_keep_processes_in_step(ready, generator):
    pairs = stream(ready, generator)
    shares = [
        list(ValidationLoader(pairs, 3, torch.device("cpu"), rank=rank, world=2))
        for rank in range(2)
    ]
    assert [len(share) for share in shares] == [2, 2]
    counted = [pair["number"] for share in shares for pair in share if pair["counted"]]
    assert sorted(counted) == [0, 1, 2]
    straight = list(stream(ready, generator, stop_step=3))
    assert torch.equal(shares[1][0]["image"], straight[1]["image"])


def test_places_and_seeds_give_other_pairs(ready, generator):
    drawn = [
        stream(ready, generator, seed=seed).draw(2, index)[1].to_json()
        for seed, index in ((4, 0), (4, 1), (5, 0))
    ]
    assert len(set(drawn)) == 3


def test_a_prior_for_other_labels_is_refused_before_training(ready, generator):
    prior = make_prior()
    prior.labels["Skin"] = replace(prior["Skin"], index=999)
    space = PriorSpace(AGNOSTIC, prior, 0.5)
    with pytest.raises(ValueError, match="another label table"):
        stream(ready, generator, [(space, 1.0)])


def test_every_space_of_a_mixture_is_drawn_from_at_its_rate(ready, generator):
    pairs = stream(ready, generator)
    names = [pairs.draw(step)[1].space for step in range(300)]
    assert np.mean([name == "agnostic" for name in names]) == pytest.approx(2 / 3, abs=0.09)


def test_label_maps_and_a_step_fit_an_accelerator_together():
    # Those to learn from and those held out, beside a plan that takes all it may.
    assert 2 * HEADS_SHARE + ALLOWANCES["cuda"].free_share < 0.98


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator here")
def test_pairs_made_ahead_on_an_accelerator_are_those_made_in_turn(ready, generator):
    pairs, device = stream(ready, generator), torch.device("cuda", 0)
    ahead = PairLoader(pairs, Shard(batch=2), device, first_step=0, stop_step=4)
    in_turn = [ahead.make(step, 0) for step in range(4)]
    for one, other in zip(ahead, in_turn, strict=True):
        assert one["image"].device == device
        assert one["indices"] == other["indices"]
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["labels"], other["labels"])
