# SPDX-License-Identifier: Apache-2.0
"""``ARCHITECTURES`` and ``build``: networks from maintained libraries, by name.

The input of each body is the image after space-to-depth: blocks of ``block_size`` voxels per edge.
The body computes features of each block, and one linear head turns them into label scores of
every voxel in the block. No convolution runs at full resolution. Since the head is linear, windows
can be stitched as features, and a training step can compute scores of a sample of voxels only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from brainseg_bids.nets.meshnet import MeshNet
from brainseg_bids.nets.spec import NetSpec


def segresnet(
    in_channels: int,
    out_channels: int,
    *,
    width: int = 32,
    blocks_down: tuple[int, ...] = (1, 2, 2, 4),
) -> nn.Module:
    """SegResNet (Myronenko, BrainLes 2018), from MONAI."""
    from monai.networks.nets import SegResNet

    return SegResNet(
        spatial_dims=3,
        init_filters=width,
        in_channels=in_channels,
        out_channels=out_channels,
        blocks_down=tuple(blocks_down),
        blocks_up=(1,) * (len(blocks_down) - 1),
    )


def dynunet(
    in_channels: int, out_channels: int, *, widths: tuple[int, ...] = (32, 64, 128, 192)
) -> nn.Module:
    """DynUNet, the plain U-Net of nnU-Net (Isensee et al., Nature Methods 2021), from MONAI."""
    from monai.networks.nets import DynUNet

    n = len(widths)
    return DynUNet(
        spatial_dims=3,
        in_channels=in_channels,
        out_channels=out_channels,
        filters=tuple(widths),
        kernel_size=[3] * n,
        strides=[1] + [2] * (n - 1),
        upsample_kernel_size=[2] * (n - 1),
    )


def unet(
    in_channels: int,
    out_channels: int,
    *,
    widths: tuple[int, ...] = (32, 64, 128, 192),
    residual_units: int = 2,
) -> nn.Module:
    """Residual U-Net (Kerfoot et al., STACOM 2018), from MONAI."""
    from monai.networks.nets import UNet

    return UNet(
        spatial_dims=3,
        in_channels=in_channels,
        out_channels=out_channels,
        channels=tuple(widths),
        strides=(2,) * (len(widths) - 1),
        num_res_units=residual_units,
    )


def resenc_unet(
    in_channels: int,
    out_channels: int,
    *,
    widths: tuple[int, ...] = (32, 64, 128, 192),
    blocks: tuple[int, ...] = (1, 2, 2, 2),
) -> nn.Module:
    """Residual-encoder U-Net (Isensee et al., MICCAI 2024), from dynamic-network-architectures.

    Raises
    ------
    ImportError
        If the library is not installed; the message has the command.
    """
    try:
        from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
    except ImportError as error:
        raise ImportError(
            "architecture resenc_unet needs a package that is not installed: "
            "pip install --no-deps dynamic-network-architectures"
        ) from error

    n = len(widths)
    net = ResidualEncoderUNet(
        input_channels=in_channels,
        n_stages=n,
        features_per_stage=list(widths),
        conv_op=nn.Conv3d,
        kernel_sizes=3,
        strides=[1] + [2] * (n - 1),
        n_blocks_per_stage=list(blocks),
        num_classes=out_channels,
        n_conv_per_stage_decoder=[1] * (n - 1),
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    )
    # Heads of the coarser levels serve deep supervision, which is off: no dead weights.
    for level in range(len(net.decoder.seg_layers) - 1):
        net.decoder.seg_layers[level] = nn.Identity()
    return net


def mednext(
    in_channels: int,
    out_channels: int,
    *,
    width: int = 32,
    blocks: tuple[int, ...] = (2, 2, 2, 2, 2),
    expansion: tuple[int, ...] = (2, 2, 2, 2, 2),
) -> nn.Module:
    """MedNeXt (Roy et al., MICCAI 2023) with 3x3x3 kernels, from MONAI.

    ``blocks`` and ``expansion`` have one number per level of the encoder, the deepest last; the
    decoder is symmetric to it. The width doubles at every level.
    """
    from monai.networks.nets import MedNeXt

    return MedNeXt(
        spatial_dims=3,
        init_filters=width,
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=3,
        use_residual_connection=True,
        blocks_down=tuple(blocks[:-1]),
        blocks_bottleneck=blocks[-1],
        blocks_up=tuple(blocks[-2::-1]),
        encoder_expansion_ratio=tuple(expansion[:-1]),
        bottleneck_expansion_ratio=expansion[-1],
        decoder_expansion_ratio=tuple(expansion[-2::-1]),
    )


def swin_unetr(
    in_channels: int,
    out_channels: int,
    *,
    width: int = 24,
    depths: tuple[int, ...] = (2, 2, 2, 2),
    heads: tuple[int, ...] = (2, 4, 8, 16),
) -> nn.Module:
    """Swin UNETR (Hatamizadeh et al., BrainLes 2021), from MONAI.

    It always has five levels of downsampling. ``width`` is a multiple of 12.

    Raises
    ------
    ImportError
        If einops is not installed; the message has the command.
    """
    from importlib.util import find_spec

    from monai.networks.nets import SwinUNETR

    if find_spec("einops") is None:  # MONAI would find out in the first forward pass
        raise ImportError(
            "architecture swin_unetr needs a package that is not installed: pip install einops"
        )
    # MONAI reads numbers off a tensor while it builds, which the meta device does not have.
    with torch.device("cpu"):
        net = SwinUNETR(
            in_channels=in_channels,
            out_channels=out_channels,
            feature_size=width,
            depths=tuple(depths),
            num_heads=tuple(heads),
            downsample="mergingv2",
        )
    _free_window_indices(net)
    return net.to(torch.get_default_device())


def _free_window_indices(net: nn.Module) -> None:
    """Keep the indices into Swin's tables of relative positions as plain attributes.

    They are constants of the window. As buffers they would be stored as weights, where half
    precision rounds those above 2048, and moving averages of weights round integers down.
    """
    shared: dict[tuple[int, ...], Tensor] = {}
    for module in net.modules():
        index = module._buffers.get("relative_position_index")
        if index is not None:
            del module.relative_position_index
            module.relative_position_index = shared.setdefault(tuple(index.shape), index)
            module.register_forward_pre_hook(_index_follows_input)


def _index_follows_input(module: nn.Module, inputs: tuple[Any, ...]) -> None:
    if module.relative_position_index.device != inputs[0].device:
        module.relative_position_index = module.relative_position_index.to(inputs[0].device)


def meshnet(
    in_channels: int,
    out_channels: int,
    *,
    width: int = 24,
    dilations: tuple[int, ...] = (1, 2, 4, 8, 4, 2, 1),
) -> nn.Module:
    """MeshNet (Fedorov et al., IJCNN 2017), see `brainseg_bids.nets.meshnet`."""
    return MeshNet(in_channels, out_channels, width=width, dilations=dilations)


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "segresnet": segresnet,
    "dynunet": dynunet,
    "unet": unet,
    "resenc_unet": resenc_unet,
    "mednext": mednext,
    "swin_unetr": swin_unetr,
    "meshnet": meshnet,
}


def find_architecture(name: str) -> Callable[..., nn.Module]:
    """Function that builds the body of an architecture.

    Raises
    ------
    ValueError
        If the architecture is unknown; the message lists the known ones.
    """
    if name not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise ValueError(f"unknown architecture {name!r}; known: {known}")
    return ARCHITECTURES[name]


class PackedNet(nn.Module):
    """Network of a body, which works on blocks of voxels, and a linear head.

    Parameters
    ----------
    spec : NetSpec
    """

    def __init__(self, spec: NetSpec) -> None:
        super().__init__()
        self.spec = spec
        body = find_architecture(spec.architecture)
        self.body = body(spec.block_size**3, spec.features, **spec.options)
        self.head = nn.Conv3d(spec.features, spec.n_labels * spec.block_size**3, kernel_size=1)

    def features(self, image: Tensor) -> Tensor:
        """Features of the blocks of an image, (B, 1, X, Y, Z).

        Returns
        -------
        (B, F, X / block_size, Y / block_size, Z / block_size)
        """
        return self.body(space_to_depth(image, self.spec.block_size))

    def scores(self, features: Tensor) -> Tensor:
        """Label scores (B, n_labels, X, Y, Z) from features of blocks."""
        return depth_to_space(self.head(features), self.spec.block_size)

    def scores_at(self, features: Tensor, voxels: Tensor) -> Tensor:
        """Label scores of a sample of voxels only.

        Parameters
        ----------
        features : (1, F, x, y, z)
        voxels : (n, 3) int
            Voxel indices at full resolution.

        Returns
        -------
        (n, n_labels) float32
        """
        block_size = self.spec.block_size
        _, y, z = features.shape[2:]
        block = voxels // block_size
        within = voxels - block * block_size
        column = (block[:, 0] * y + block[:, 1]) * z + block[:, 2]
        part = (within[:, 0] * block_size + within[:, 1]) * block_size + within[:, 2]
        picked = features[0].flatten(1).index_select(1, column).float().T
        weight = self.head.weight.view(self.spec.n_labels, block_size**3, -1)
        bias = self.head.get_parameter("bias").view(self.spec.n_labels, block_size**3)
        scores = picked.new_empty(len(voxels), self.spec.n_labels)
        for k in range(block_size**3):
            rows = (part == k).nonzero()[:, 0]
            scores = scores.index_copy(0, rows, picked[rows] @ weight[:, k].T + bias[:, k])
        return scores

    def weights(self) -> dict[str, Tensor]:
        """Parameters and buffers by name, each once: some libraries register a layer twice."""
        return {
            name: tensor.detach()
            for name, tensor in [*self.named_parameters(), *self.named_buffers()]
        }

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Load parameters and buffers from the result of `weights`.

        Raises
        ------
        ValueError
            If names or shapes differ from those of this network.
        """
        own = self.weights()
        if set(own) != set(weights):
            odd = sorted(set(own) ^ set(weights))
            raise ValueError(
                f"weights do not fit {self.spec.architecture}: "
                f"{len(odd)} names differ, e.g. {odd[0]}"
            )
        with torch.no_grad():
            for name, tensor in own.items():
                if tensor.shape != weights[name].shape:
                    raise ValueError(
                        f"weights do not fit {self.spec.architecture}: {name} has another shape"
                    )
                tensor.copy_(weights[name])

    def forward(self, image: Tensor) -> Tensor:
        """Label scores (B, n_labels, X, Y, Z) of an image (B, 1, X, Y, Z)."""
        return self.scores(self.features(image))


def space_to_depth(image: Tensor, block_size: int) -> Tensor:
    """Rearrange the voxels of each block into channels.

    (B, C, X, Y, Z) becomes (B, C * size³, X / size, Y / size, Z / size).

    >>> space_to_depth(torch.arange(8.).view(1, 1, 2, 2, 2), 2).flatten().tolist()
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    """
    if block_size == 1:
        return image
    b, c, x, y, z = image.shape
    blocks = image.view(
        b, c, x // block_size, block_size, y // block_size, block_size, z // block_size, block_size
    )
    return blocks.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(
        b, c * block_size**3, x // block_size, y // block_size, z // block_size
    )


def depth_to_space(blocks: Tensor, block_size: int) -> Tensor:
    """Rearrange channels into the voxels of blocks; the inverse of `space_to_depth`."""
    if block_size == 1:
        return blocks
    b, c, x, y, z = blocks.shape
    c //= block_size**3
    voxels = blocks.view(b, c, block_size, block_size, block_size, x, y, z).permute(
        0, 1, 5, 2, 6, 3, 7, 4
    )
    return voxels.reshape(b, c, x * block_size, y * block_size, z * block_size)


def build(spec: NetSpec) -> PackedNet:
    """Network of a specification, with random weights.

    Raises
    ------
    ValueError
        If the architecture is unknown; the message lists the known ones.
    ImportError
        If the library of the architecture is not installed.
    """
    return PackedNet(spec)
