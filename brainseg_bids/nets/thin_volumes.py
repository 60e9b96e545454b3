# SPDX-License-Identifier: Apache-2.0
"""Convolutions whose gradients are right on volumes smaller than their kernels, too.

On CPUs with bfloat16 instructions, PyTorch 2.13 computes wrong gradients of a Conv3d's weights
where the volume is thinner than the kernel along an axis: they are made of what memory happens to
hold, up to infinity (seen with kernels of 3 and 5; values and gradients of the input are right).
The deepest levels of a U-Net are as thin as that when a patch is one or two of its multiples.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ThinSafeConv3d(nn.Conv3d):
    """A Conv3d that works in float32 where bfloat16 would go wrong."""

    def forward(self, volume: Tensor) -> Tensor:
        """Convolve (n, channels, X, Y, Z), in float32 where that is thinner than the kernel."""
        thin = any(n < k for n, k in zip(volume.shape[2:], self.kernel_size, strict=True))
        if not (thin and volume.device.type == "cpu" and torch.is_autocast_enabled("cpu")):
            return super().forward(volume)
        with torch.autocast("cpu", enabled=False):
            found = super().forward(volume.float())
        return found.to(torch.get_autocast_dtype("cpu"))


def use_float32_when_thin(body: nn.Module) -> None:
    """Make each Conv3d of a body a `ThinSafeConv3d`, in place; names and weights stay.

    >>> body = nn.Sequential(nn.Conv3d(1, 2, 3), nn.ReLU())
    >>> use_float32_when_thin(body)
    >>> type(body[0]).__name__, list(body.state_dict())
    ('ThinSafeConv3d', ['0.weight', '0.bias'])
    """
    for part in body.modules():
        if type(part) is nn.Conv3d:
            part.__class__ = ThinSafeConv3d
