# SPDX-License-Identifier: Apache-2.0
"""``SIZES`` and ``default_spec``: a network of an architecture and a size, for a voxel size.

Two rules adapt a network to the voxel size, so that its receptive field in mm is the same:

- *Block size.* Blocks have an edge of two voxels in medium networks for voxels up to 1 mm, and in
  small networks up to 1.5 mm (a limit of CPUs). In all other networks it is one voxel.
- *Levels.* Each level doubles the edge of a block. The number of levels is that for which the
  deepest block is nearest to 18 mm (13 to 25 mm). Half the voxel size gives one more level. For a
  MeshNet this rule applies to the largest dilation.

Pairs have isotropic voxels, so every kernel is 3x3x3.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import Any

from brainseg_bids.nets.architectures import find_architecture
from brainseg_bids.nets.spec import NetSpec

SIZES = ("small", "medium", "large")
"""Meant for a CPU or 8 GB, for 24 GB, and for 48 to 80 GB of GPU memory."""

FEATURES = {"small": 24, "medium": 32, "large": 32}
"""Number of features of each block that the body passes to the head."""

DEEPEST_MM = 18.0

COARSEST_PACKED_MM = {"small": 1.5, "medium": 1.0}
"""Largest voxel size for which a network of this size works on blocks of two voxels."""

MOST_LEVELS = {"segresnet": 5, "mednext": 5}
"""Largest number of levels of architectures that double their width at every level; for others it
is six."""

LEVEL_OPTION = {
    "segresnet": "blocks_down",
    "dynunet": "widths",
    "unet": "widths",
    "resenc_unet": "widths",
    "mednext": "blocks",
}
"""Option with one entry per level of a U-Net."""

SWIN_FACTOR = 32


@dataclass(frozen=True)
class _Scale:
    """What a size means for one architecture.

    Parameters
    ----------
    width : int
        Channels of the finest level.
    cap : int
        Most channels of a level, where the architecture lets one choose.
    blocks, expansion : tuple of int
        Per level, the finest first; cut to the levels that there are.
    """

    width: int
    cap: int = 0
    blocks: tuple[int, ...] = ()
    expansion: tuple[int, ...] = ()


RESENC_BLOCKS = (1, 3, 4, 6, 6, 6)
SEGRESNET_BLOCKS = (1, 2, 2, 4, 4)

SCALES = {
    # nnU-Net's plain U-Net has 32 to 320 channels (Isensee et al., Nature Methods 2021).
    "dynunet": {"small": _Scale(24, 192), "medium": _Scale(48, 320), "large": _Scale(32, 320)},
    # Its first layer halves the grid at once, so it can be wider.
    "unet": {"small": _Scale(32, 256), "medium": _Scale(64, 512), "large": _Scale(64, 512)},
    # nnU-Net's ResEnc presets M, L and XL are one network, 32 to 320 channels and these blocks,
    # for 8, 24 and 40 GB of patch (Isensee et al., MICCAI 2024; its planner's source).
    "resenc_unet": {
        "small": _Scale(24, 192, RESENC_BLOCKS),
        "medium": _Scale(48, 320, RESENC_BLOCKS),
        "large": _Scale(32, 320, RESENC_BLOCKS),
    },
    # The large one has the blocks and width of MONAI's Auto3DSeg.
    "segresnet": {
        "small": _Scale(16, 0, SEGRESNET_BLOCKS),
        "medium": _Scale(32, 0, SEGRESNET_BLOCKS),
        "large": _Scale(32, 0, SEGRESNET_BLOCKS),
    },
    # Variants S, M (32 channels there) and L with kernel 3 (Roy et al., MICCAI 2023).
    "mednext": {
        "small": _Scale(32, 0, (2, 2, 2, 2, 2), (2, 2, 2, 2, 2)),
        "medium": _Scale(48, 0, (3, 4, 4, 4, 4), (2, 3, 4, 4, 4)),
        "large": _Scale(32, 0, (3, 4, 8, 8, 8), (3, 4, 8, 8, 8)),
    },
    # Its published width is 48 (Hatamizadeh et al., BrainLes 2021).
    "swin_unetr": {"small": _Scale(12), "medium": _Scale(24), "large": _Scale(48)},
    # brainchop's largest have 30 channels.
    "meshnet": {"small": _Scale(24), "medium": _Scale(48), "large": _Scale(32)},
}


def default_spec(architecture: str, size: str, *, n_labels: int, voxel_size_mm: float) -> NetSpec:
    """Tested network of an architecture and a size for a voxel size.

    Parameters
    ----------
    architecture : str
        Key of `brainseg_bids.nets.architectures.ARCHITECTURES`.
    size : {"small", "medium", "large"}
    n_labels : int
        Number of labels, including background.
    voxel_size_mm : float
        Voxel size of the grid that the network works on, isotropic.

    Raises
    ------
    ValueError
        If architecture or size is unknown, or the voxel size is not positive.

    Examples
    --------
    >>> spec = default_spec("dynunet", "small", n_labels=43, voxel_size_mm=0.8)
    >>> spec.block_size, spec.options, patch_multiple(spec)
    (2, {'widths': [24, 48, 96, 192]}, 16)
    >>> default_spec("dynunet", "large", n_labels=43, voxel_size_mm=0.5).options
    {'widths': [32, 64, 128, 256, 320, 320]}
    """
    find_architecture(architecture)
    if size not in SIZES:
        raise ValueError(f"unknown network size {size!r}; known: {', '.join(SIZES)}")
    if not 0 < voxel_size_mm < math.inf:
        raise ValueError(f"voxel size {voxel_size_mm:g} mm is not positive; give e.g. 0.8")
    block_size = _block_size(architecture, size, voxel_size_mm)
    n_levels = _levels(architecture, voxel_size_mm * block_size)
    options = _options(architecture, SCALES[architecture][size], n_levels)
    return NetSpec(architecture, n_labels, block_size, FEATURES[size], options)


def patch_multiple(spec: NetSpec) -> int:
    """Number of voxels of which every edge of a patch must be a multiple.

    A patch with one multiple along all axes is a single block at the deepest level, which cannot
    be normalised. Therefore at least one edge needs two multiples.

    Examples
    --------
    >>> patch_multiple(NetSpec("unet", 5, 2, 8, {"widths": [8, 16, 24]}))
    8
    >>> patch_multiple(NetSpec("swin_unetr", 5, block_size=1))
    32
    """
    body = find_architecture(spec.architecture)
    if spec.architecture == "meshnet":
        return spec.block_size
    if spec.architecture == "swin_unetr":
        return spec.block_size * SWIN_FACTOR
    option = LEVEL_OPTION[spec.architecture]
    default = inspect.signature(body).parameters[option].default
    return spec.block_size * 2 ** (len(spec.options.get(option, default)) - 1)


def _block_size(architecture: str, size: str, voxel_size_mm: float) -> int:
    # Swin UNETR packs 2x2x2 voxels itself and always goes five halvings deep: blocks of two
    # voxels would take its deepest level to 64 mm at 1 mm.
    if architecture == "swin_unetr" or size == "large":
        return 1
    return 2 if voxel_size_mm < COARSEST_PACKED_MM[size] * 1.001 else 1


def _levels(architecture: str, cell_mm: float) -> int:
    """Levels that bring the deepest block nearest to `DEEPEST_MM` on a scale of ratios."""
    halvings = round(math.log2(DEEPEST_MM / cell_mm))
    return min(max(halvings + 1, 3), MOST_LEVELS.get(architecture, 6))


def _options(architecture: str, scale: _Scale, n_levels: int) -> dict[str, Any]:
    widths = [min(scale.width * 2**level, scale.cap) for level in range(n_levels)]
    blocks = list(scale.blocks[:n_levels])
    if architecture in ("dynunet", "unet"):
        return {"widths": widths}
    if architecture == "resenc_unet":
        return {"widths": widths, "blocks": blocks}
    if architecture == "segresnet":
        return {"width": scale.width, "blocks_down": blocks}
    if architecture == "mednext":
        expansion = list(scale.expansion[:n_levels])
        return {"width": scale.width, "blocks": blocks, "expansion": expansion}
    if architecture == "swin_unetr":
        heads = scale.width // (16 if scale.width == 48 else 12)
        return {"width": scale.width, "heads": [heads * 2**stage for stage in range(4)]}
    rising = [2**level for level in range(n_levels)]
    return {"width": scale.width, "dilations": rising + rising[-2::-1]}
