# SPDX-License-Identifier: Apache-2.0
"""``MeshNet``: a small network of dilated convolutions."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class MeshNet(nn.Module):
    """Network of dilated 3x3x3 convolutions, all at the resolution of the input.

    After Fedorov et al., IJCNN 2017 (arXiv:1612.00940), with rising and falling dilations as in
    the models of brainchop (Masoud et al., JOSS 2023). It uses instance instead of batch
    normalisation, since the batch size is one.

    Parameters
    ----------
    in_channels, out_channels : int
    width : int
        Channels of each layer.
    dilations : sequence of int
        Dilation of each layer in voxels of the input.

    Examples
    --------
    >>> import torch
    >>> net = MeshNet(1, 4, width=8, dilations=(1, 2, 1))
    >>> net(torch.zeros(1, 1, 5, 6, 7)).shape
    torch.Size([1, 4, 5, 6, 7])
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, width: int, dilations: Sequence[int]
    ) -> None:
        super().__init__()
        given = [in_channels] + [width] * (len(dilations) - 1)
        self.blocks = nn.Sequential(
            *(_block(n, width, dilation) for n, dilation in zip(given, dilations, strict=True))
        )
        self.last = nn.Conv3d(width, out_channels, kernel_size=1)

    def forward(self, image: Tensor) -> Tensor:
        """Output (B, out_channels, X, Y, Z) for an input (B, in_channels, X, Y, Z)."""
        return self.last(self.blocks(image))


def _block(given: int, width: int, dilation: int) -> nn.Sequential:
    return nn.Sequential(
        # The normalisation would take a bias away again.
        nn.Conv3d(given, width, 3, padding=dilation, dilation=dilation, bias=False),
        nn.InstanceNorm3d(width, affine=True),
        nn.ReLU(inplace=True),
    )
