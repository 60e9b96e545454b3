# SPDX-License-Identifier: Apache-2.0
"""Losses are exact, for batches, and never hold all scores."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch.nn import functional

from brainseg_bids.nets.architectures import build
from brainseg_bids.nets.memory_tracker import MemoryTracker
from brainseg_bids.nets.spec import NetSpec
from brainseg_bids.training.losses import dense_loss, loss_of


@dataclass(frozen=True)
class Plan:
    loss: str = "dense"
    per_label: int = 20
    anywhere: int = 100
    dice_weight: float = 0.7


def make(n_labels=7, block_size=2, blocks=(6, 5, 4), pairs=2, dtype=torch.float32):
    torch.manual_seed(0)
    net = build(NetSpec("unet", n_labels, block_size, 8, {"widths": [4, 4, 4]}))
    features = torch.randn(pairs, 8, *blocks, dtype=dtype, requires_grad=True)
    edges = [edge * block_size for edge in blocks]
    # The last label is in no pair, the one before in the first only.
    labels = torch.randint(n_labels - 1, (pairs, *edges), dtype=torch.uint8)
    labels[1:][labels[1:] == n_labels - 2] = 0
    return net, features, labels


def plain_loss(net, features, labels, dice_weight):
    """The formula, with all scores of all labels."""
    losses = []
    for scores, truth in zip(net.scores(features.float()), labels.long(), strict=True):
        loss = functional.cross_entropy(scores[None], truth[None])
        predicted = scores.softmax(0)
        one_hot = functional.one_hot(truth, len(scores)).movedim(-1, 0).float()
        both = (predicted * one_hot).sum((1, 2, 3))
        sizes = (predicted + one_hot).sum((1, 2, 3))
        present = one_hot.sum((1, 2, 3)) > 0
        losses.append(loss + dice_weight * (1 - (2 * both[present] / sizes[present]).mean()))
    return torch.stack(losses).mean()


def gradients(net, features, loss):
    net.zero_grad()
    features.grad = None
    loss.backward()
    return [features.grad.clone(), net.head.weight.grad.clone(), net.head.bias.grad.clone()]


@pytest.mark.parametrize("block_size", [1, 2])
@pytest.mark.parametrize("dice_weight", [0.0, 0.7])
@pytest.mark.parametrize("chunk_blocks", [None, 17])
def test_the_dense_loss_is_the_plain_formula(block_size, dice_weight, chunk_blocks):
    net, features, labels = make(block_size=block_size)
    plain = plain_loss(net, features, labels, dice_weight)
    expected = gradients(net, features, plain)
    loss = dense_loss(net, features, labels, dice_weight=dice_weight, chunk_blocks=chunk_blocks)
    assert loss.item() == pytest.approx(plain.item(), abs=1e-5)
    for found, gradient in zip(gradients(net, features, 3 * loss), expected, strict=True):
        torch.testing.assert_close(found / 3, gradient, rtol=1e-4, atol=1e-7)


def test_the_dense_loss_is_float32_under_autocast():
    net, features, labels = make(dtype=torch.bfloat16)
    plain = plain_loss(net, features, labels, 0.7)
    expected = gradients(net, features, plain)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = dense_loss(net, features, labels, dice_weight=0.7)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(plain.item(), abs=1e-5)
    found = gradients(net, features, loss)
    assert found[0].dtype == torch.bfloat16
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-7)


def peak_bytes(n_labels: int, edge: int) -> int:
    net, features, labels = make(n_labels=n_labels, blocks=(edge,) * 3, pairs=1)
    blocks = 2**12 // n_labels
    with MemoryTracker() as ledger:
        dense_loss(net, features, labels, dice_weight=1.0, chunk_blocks=blocks).backward()
    return ledger.peak


def test_memory_does_not_grow_with_labels_times_voxels():
    scores = 4 * 48**3 * 50
    many, few = peak_bytes(50, 24), peak_bytes(5, 24)
    assert many < few + scores / 50
    assert many < scores / 5


def test_labels_of_another_grid_are_refused():
    net, features, labels = make()
    with pytest.raises(ValueError, match="labels are"):
        dense_loss(net, features, labels[:, :-2], dice_weight=0.0)


@pytest.mark.parametrize("kind", ["chosen", "dense"])
def test_the_loss_of_a_batch_is_the_mean_over_its_pairs(kind):
    net, features, labels = make()
    loss = loss_of(Plan(kind))
    alone = [loss(net, features[k : k + 1], labels[k : k + 1], [5 + k]).item() for k in (0, 1)]
    assert alone[0] != alone[1]
    assert loss(net, features, labels, [5, 6]).item() == pytest.approx(sum(alone) / 2, rel=1e-5)


def test_a_seed_chooses_the_voxels():
    net, features, labels = make(pairs=1)
    loss = loss_of(Plan("chosen"))
    one, same, other = (loss(net, features, labels, [seed]).item() for seed in (1, 1, 2))
    assert one == same != other


def test_an_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="known: chosen, dense"):
        loss_of(Plan("focal"))


def test_the_symbolic_chosen_loss_takes_the_memory_of_the_real_one():
    net, features, labels = make(blocks=(24, 24, 24), pairs=1)
    loss = loss_of(Plan("chosen", per_label=100))
    with MemoryTracker() as real:
        loss(net, features, labels, [1]).backward()
    with MemoryTracker() as acted:
        loss.symbolic(net, features, labels).backward()
    assert acted.peak == pytest.approx(real.peak, rel=0.15)


def test_the_symbolic_dense_loss_takes_the_memory_of_the_real_one_with_fewer_steps():
    def peak(most_chunks: int | None) -> int:
        net, features, labels = make(blocks=(24, 24, 24), pairs=5)
        options = {"dice_weight": 1.0, "chunk_blocks": 2**10, "most_chunks": most_chunks}
        with MemoryTracker() as tracker:
            dense_loss(net, features, labels, **options).backward()
        return tracker.peak

    assert peak(2) == pytest.approx(peak(None), rel=0.01)
