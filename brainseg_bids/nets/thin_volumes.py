# SPDX-License-Identifier: Apache-2.0
"""Convolutions with correct gradients on volumes that are smaller than their kernels.

On CPUs with bfloat16 instructions, PyTorch 2.13 computes wrong gradients of the weights of a
Conv3d if the volume is thinner than the kernel along an axis. They depend on uninitialised memory
and may be infinite (observed with kernels of 3 and 5; the output and the gradients of the input
are correct). This concerns the deepest levels of a U-Net if a patch has one or two multiples along
an axis.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ThinSafeConv3d(nn.Conv3d):
    """Conv3d that uses float32 where bfloat16 would give wrong gradients."""

    def forward(self, volume: Tensor) -> Tensor:
        """Convolution of (n, channels, X, Y, Z), in float32 if it is thinner than the kernel."""
        thin = any(n < k for n, k in zip(volume.shape[2:], self.kernel_size, strict=True))
        if not (thin and volume.device.type == "cpu" and torch.is_autocast_enabled("cpu")):
            return super().forward(volume)
        with torch.autocast("cpu", enabled=False):
            found = super().forward(volume.float())
        return found.to(torch.get_autocast_dtype("cpu"))


def use_float32_when_thin(body: nn.Module) -> None:
    """Replace each Conv3d of a body by a `ThinSafeConv3d`, in place; names and weights stay.

    >>> body = nn.Sequential(nn.Conv3d(1, 2, 3), nn.ReLU())
    >>> use_float32_when_thin(body)
    >>> type(body[0]).__name__, list(body.state_dict())
    ('ThinSafeConv3d', ['0.weight', '0.bias'])
    """
    for part in body.modules():
        if type(part) is nn.Conv3d:
            part.__class__ = ThinSafeConv3d
