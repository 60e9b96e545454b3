# SPDX-License-Identifier: Apache-2.0
"""What the machine, or the share of it that a job was given, has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from brainseg_bids.machine import cpu_has_bf16, memory_limit_gib
from brainseg_bids.nets.bundle import ModelBundle


def total_memory_gib() -> float:
    """Memory of the machine."""
    return psutil.virtual_memory().total / 2**30


def memory_gib() -> float:
    """What this process may use."""
    return min(total_memory_gib(), memory_limit_gib() or float("inf"))


PROGRAM_GIB = 0.44
"""Python, PyTorch and MONAI, before anything is read."""

IMAGE_BYTES = 14
"""Per voxel of an image: as read and as turned (4 each), ranks (1), codes as made and as turned
(2 each), and what writing takes."""

SLAB_BLOCKS = 1
"""Rows of blocks that labels are made of at a time, as in `brainseg_bids.inference.planes`."""

ACTIVATION_BYTES = {
    "dynunet": 45,
    "segresnet": 66,
    "unet": 27,
    "resenc_unet": 48,
    "mednext": 71,
    "swin_unetr": 200,
    "meshnet": 45,
}
"""Most that is alive while a network looks at a window, measured in float32: bytes per cell and
channel of the finest level."""

HALF = 0.6
"""What bfloat16 leaves of it: weights and statistics stay float32."""


@dataclass(frozen=True)
class Footprint:
    """What the memory of a network's predictions depends on.

    Parameters
    ----------
    architecture : str
    n_labels, block_size, features : int
        As in `brainseg_bids.nets.architectures.NetSpec`.
    width : int
        Channels of the finest level.
    voxel_size_mm : float
    window_vox : tuple of 3 int
    """

    architecture: str
    n_labels: int
    block_size: int
    features: int
    width: int
    voxel_size_mm: float
    window_vox: tuple[int, int, int]

    @classmethod
    def of(cls, bundle: ModelBundle) -> Footprint | None:
        """Of a bundle; None if it does not say what network it holds."""
        net = bundle.net
        if not net.get("architecture"):
            return None
        options = net.get("options", {})
        width = next(iter(options.get("widths", ())), options.get("width", 32))
        return cls(
            net["architecture"],
            len(bundle.table),
            net.get("stem", 2),
            net.get("features", 32),
            width,
            bundle.voxel_size_mm,
            bundle.patch_vox,
        )


def segmentation_gib(
    shape: tuple[int, ...],
    voxel_size_mm: tuple[float, ...],
    nets: Sequence[Footprint],
    *,
    flips: bool = False,
    half: bool | None = None,
) -> float:
    """Peak memory of segmenting an image on a CPU, predicted; GiB.

    Probabilities that are written, too, lie in a mapped file, which the system may drop from
    memory at any time: they do not count.

    Parameters
    ----------
    shape : tuple of 3 int
        Of the image, on axes in the order of RAS.
    voxel_size_mm : tuple of 3 float
    nets : sequence of Footprint
        All members of the ensemble.
    flips : bool
        Whether each also sees the mirrored image.
    half : bool, optional
        Whether the processor computes in bfloat16; by default, whether this one does.

    Examples
    --------
    >>> net = Footprint("dynunet", 43, 2, 24, 24, 1.5, (96, 128, 112))
    >>> f"{segmentation_gib((256, 256, 256), (1, 1, 1), [net], half=True):.1f}"
    '0.9'
    """
    half = cpu_has_bf16() if half is None else half
    times = 2 if flips else 1
    n_views = times * len(nets)
    plane = shape[1] * shape[2]
    steady = IMAGE_BYTES * math.prod(shape)
    fleeting = 0.0
    for net in nets:
        work = [
            max(1, round(n * mm / net.voxel_size_mm))
            for n, mm in zip(shape, voxel_size_mm, strict=True)
        ]
        deep, high, wide = (
            max(n, w) / net.block_size for n, w in zip(work, net.window_vox, strict=True)
        )
        rows = min(deep, net.window_vox[0] / net.block_size) + SLAB_BLOCKS
        sums = 4 * (net.features + 1) * rows * high * wide
        if sums > 2**30:  # kept in half precision then
            sums /= 2
        voxel_rows = SLAB_BLOCKS * net.block_size
        kept = 4 * net.n_labels * (voxel_rows + 1) * plane
        steady += (1 + times) * 4 * math.prod(work) + times * (sums + kept)
        cells = math.prod(net.window_vox) / net.block_size**3
        alive = ACTIVATION_BYTES.get(net.architecture, max(ACTIVATION_BYTES.values()))
        looking = alive * net.width * cells * (HALF if half else 1)
        scoring = 2 * 4 * net.n_labels * voxel_rows * work[1] * work[2]
        fleeting = max(fleeting, looking, scoring)
    if n_views > 1:
        steady += 4 * nets[0].n_labels * plane
    return PROGRAM_GIB + (steady + fleeting) / 2**30
