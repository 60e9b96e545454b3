# SPDX-License-Identifier: Apache-2.0
"""Volumes that are too large on average are right after calibration."""

from __future__ import annotations

import pytest
import torch

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.synth.recipe_files import read_space
from brainseg_bids.training.data import PairStream, render
from brainseg_bids.training.fit import fresh_net, make_generator
from brainseg_bids.training.losses import choose_voxels
from brainseg_bids.training.volume_calibration import add_offsets, calibrate_volumes
from tests.training.tiny import TINY, tiny_head

TABLE = LabelTable.packaged("brainseg")
PAIRS = 6


@pytest.fixture(scope="module")
def stream() -> PairStream:
    return PairStream(
        [tiny_head()], [(read_space("t1w").without("view"), 1.0)], make_generator(TINY), seed=5
    )


@pytest.fixture(scope="module")
def trained(stream):
    """A net that has seen each label as often as any other, and knows nothing of frequencies."""
    torch.manual_seed(0)
    net = fresh_net(TINY)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for step in range(100, 220):
        image, labels = render(stream, stream.heads, step, 0, torch.device("cpu"))
        voxels, _ = choose_voxels(labels, n_labels=43, per_label=40, anywhere=0, seed=step)
        scores = net.scores_at(net.features(image[None]), voxels)
        truth = labels[voxels[:, 0], voxels[:, 1], voxels[:, 2]].long()
        loss = torch.nn.functional.cross_entropy(scores, truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


def ratios(net, stream, steps) -> torch.Tensor:
    """Found over true volume of each label, both sides together."""
    found, true = torch.zeros(43), torch.zeros(43)
    mirrors = torch.from_numpy(TABLE.mirrors())
    with torch.inference_mode():
        for step in steps:
            image, labels = render(stream, stream.heads, step, 0, torch.device("cpu"))
            ranks = net.scores(net.features(image[None])).argmax(1)
            found += torch.bincount(ranks.flatten(), minlength=43)
            true += torch.bincount(labels.flatten().int(), minlength=43)
    found, true = found + found[mirrors], true + true[mirrors]
    common = true > 400
    return (found[common] + 5) / (true[common] + 5)


def test_volumes_are_right_on_pairs_that_were_not_fitted_on(trained, stream):
    before = ratios(trained, stream, range(50, 60)).log().abs().mean()
    offsets = calibrate_volumes(trained, stream, TABLE, pairs=PAIRS)
    weights = {name: tensor.clone() for name, tensor in trained.weights().items()}
    add_offsets(trained, offsets)
    after = ratios(trained, stream, range(50, 60)).log().abs().mean()
    assert before > 0.3  # there was something to mend
    assert after < before / 2
    changed = [
        name for name, tensor in trained.weights().items() if not tensor.equal(weights[name])
    ]
    assert changed == ["head.bias"]
    add_offsets(trained, -offsets)


def test_both_sides_get_the_same_and_labels_that_no_pair_has_nothing(trained, stream):
    offsets = calibrate_volumes(trained, stream, TABLE, pairs=2)
    mirrors = torch.from_numpy(TABLE.mirrors())
    assert torch.equal(offsets, offsets[mirrors])
    seen = torch.zeros(43, dtype=torch.bool)
    for step in range(2):
        _, labels = render(stream, stream.heads, step, 0, torch.device("cpu"))
        seen[labels.flatten().unique().long()] = True
    assert not offsets[~(seen | seen[mirrors])].any()


def test_the_same_pairs_and_seed_give_the_same_offsets(trained, stream):
    once, again = (calibrate_volumes(trained, stream, TABLE, pairs=2, seed=4) for _ in range(2))
    assert torch.equal(once, again)


def test_scores_rise_by_the_offset_of_their_label(trained, stream):
    image, _ = render(stream, stream.heads, 0, 0, torch.device("cpu"))
    offsets = torch.arange(43.0) / 10
    with torch.inference_mode():
        features = trained.features(image[None])
        plain = trained.scores(features)
        add_offsets(trained, offsets)
        raised = trained.scores(features)
        add_offsets(trained, -offsets)
    torch.testing.assert_close(raised - plain, offsets.view(1, -1, 1, 1, 1).expand_as(plain))
