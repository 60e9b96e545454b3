# SPDX-License-Identifier: Apache-2.0
"""Checkpointed bodies compute the same and keep less."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from brainseg_bids.nets.architectures import build
from brainseg_bids.nets.checkpointing import LAYERS_PER_BLOCK, blocks, checkpointed
from brainseg_bids.nets.spec import NetSpec

SMALL = {
    "segresnet": {"width": 8, "blocks_down": [1, 1, 1]},
    "dynunet": {"widths": [4, 8, 8]},
    "unet": {"widths": [4, 8, 8]},
    "resenc_unet": {"widths": [4, 8, 8], "blocks": [1, 2, 1]},
    "mednext": {"width": 4, "blocks": [1, 1, 1, 1, 1], "expansion": [2, 2, 2, 2, 2]},
    "swin_unetr": {"width": 12, "depths": [2, 1, 1, 1], "heads": [1, 2, 4, 8]},
    "meshnet": {"width": 4, "dilations": [1, 2, 4, 2, 1]},
}


def learnt(body: nn.Module, image: torch.Tensor) -> dict[str, torch.Tensor]:
    """Features, gradients and buffers after one backward pass."""
    body.zero_grad()
    torch.manual_seed(0)
    features = body(image)
    (features * torch.linspace(0, 1, features.numel()).view_as(features)).sum().backward()
    gradients = {n: p.grad.clone() for n, p in body.named_parameters() if p.grad is not None}
    return {"features": features.detach(), **gradients, **dict(body.named_buffers())}


@pytest.mark.parametrize("architecture", sorted(SMALL))
def test_every_architecture_learns_the_same_with_and_without(architecture):
    if architecture == "resenc_unet":
        pytest.importorskip("dynamic_network_architectures")
    if architecture == "swin_unetr":
        pytest.importorskip("einops")
    torch.manual_seed(1)
    body = build(NetSpec(architecture, 3, 1, 4, SMALL[architecture])).body
    edge = 64 if architecture == "swin_unetr" else 16
    image = torch.randn(1, 1, edge, 32, 32)
    lean = copy.deepcopy(body)
    checkpointed(lean)
    assert len(blocks(lean)) > 1
    assert list(lean.state_dict()) == list(body.state_dict())
    plain, recomputed = learnt(body, image), learnt(lean, image)
    assert plain.keys() == recomputed.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(recomputed[name], tensor, msg=name)


def saved_bytes(body: nn.Module, image: torch.Tensor) -> int:
    """Bytes that a forward pass keeps for the backward pass."""
    kept = {}

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = body(image)
    assert out.requires_grad
    return sum(kept.values())


def test_less_is_kept():
    body = build(NetSpec("segresnet", 3, 1, 4, SMALL["segresnet"])).body
    image = torch.randn(1, 1, 16, 16, 16)
    before = saved_bytes(body, image)
    checkpointed(body)
    assert saved_bytes(body, image) < 0.6 * before


def test_what_is_drawn_and_counted_is_drawn_and_counted_once():
    parts = [nn.Conv3d(1, 4, 1), nn.BatchNorm3d(4), nn.Dropout3d(0.5), nn.Conv3d(4, 1, 1)]
    body = nn.Sequential(nn.Sequential(*parts))
    lean = copy.deepcopy(body)
    checkpointed(lean)
    image = torch.randn(3, 1, 4, 4, 4)
    plain, recomputed = learnt(body, image), learnt(lean, image)
    for name, tensor in plain.items():
        torch.testing.assert_close(recomputed[name], tensor, msg=name)
    assert int(recomputed["0.1.num_batches_tracked"]) == 1
    assert lean[0][1].momentum == 0.1


def test_a_copy_runs_its_own_blocks_and_can_be_stored():
    body = nn.Sequential(nn.Conv3d(1, 2, 1), nn.Conv3d(2, 1, 1))
    checkpointed(body)
    double = copy.deepcopy(body)
    with torch.no_grad():
        double[0].weight.zero_()
        double[0].bias.zero_()
        double[1].bias.zero_()
    assert double(torch.ones(1, 1, 2, 2, 2)).abs().max() == 0
    stored = io.BytesIO()
    torch.save(body, stored)
    stored.seek(0)
    again = torch.load(stored, weights_only=False)
    assert again(torch.ones(1, 1, 2, 2, 2)).equal(body(torch.ones(1, 1, 2, 2, 2)))


def test_twice_is_once():
    body = nn.Sequential(nn.Conv3d(1, 2, 1))
    checkpointed(body)
    forward = body.forward
    checkpointed(body)
    assert body.forward is forward


def test_blocks_are_the_largest_parts_of_few_layers():
    residual = nn.Sequential(*[nn.Conv3d(1, 1, 1) for _ in range(LAYERS_PER_BLOCK)])
    listed = nn.ModuleList([nn.Conv3d(1, 1, 1)])
    assert blocks(nn.Sequential(residual, nn.ReLU(), listed)) == [residual, listed[0]]
