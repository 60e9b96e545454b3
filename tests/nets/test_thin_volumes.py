# SPDX-License-Identifier: Apache-2.0
"""Gradients in bfloat16 on volumes thinner than a kernel."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from brainseg_bids.nets.thin_volumes import use_float32_when_thin


def gradient(layer: nn.Module, volume: torch.Tensor, *, half: bool) -> torch.Tensor:
    # What is freed here is where a wrong gradient reads.
    freed = [torch.full((n,), 1e4, dtype=t) for n in (6912, 13824) for t in (torch.bfloat16,) * 4]
    del freed
    layer.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        found = layer(volume)
    assert found.dtype == (torch.bfloat16 if half else torch.float32)
    found.float().square().sum().backward()
    return layer[0].weight.grad.clone()


@pytest.mark.parametrize(
    ("kernel", "shape"),
    [
        (3, (2, 2, 2)),
        (3, (2, 8, 8)),
        (3, (2, 1, 1)),
        (3, (3, 3, 3)),
        (5, (4, 4, 4)),
        (5, (8, 1, 1)),
    ],
)
def test_gradients_in_half_precision_are_those_in_full_precision_rounded(kernel, shape):
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Conv3d(16, 16, kernel, padding=kernel // 2, bias=False))
    use_float32_when_thin(layer)
    volume = torch.randn(1, 16, *shape)
    expected = gradient(layer, volume, half=False)
    for _ in range(4):
        found = gradient(layer, volume, half=True)
        assert (found - expected).abs().max() < 0.03 * expected.abs().max()


def test_large_volumes_are_computed_as_they_were():
    layer = nn.Sequential(nn.Conv3d(4, 4, 3, padding=1))
    volume = torch.randn(1, 4, 8, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = layer(volume)
        use_float32_when_thin(layer)
        assert torch.equal(layer(volume), plain)
