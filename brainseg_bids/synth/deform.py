# SPDX-License-Identifier: Apache-2.0
"""Spatial deformation: source coordinates of each voxel of a pair."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from brainseg_bids.anatomy.grid import triple
from brainseg_bids.synth.interpolate import along_axes, smooth_noise
from brainseg_bids.synth.recipe import Deformation, Triple

NODES_MM = 8.0
"""Node spacing of the coordinate map: a third of that of the warp."""

SQUARINGS = 5


def node_stride(voxel_size_mm: float) -> int:
    """Distance between the nodes of the coordinate map, in voxels."""
    return max(1, round(NODES_MM / voxel_size_mm))


def rotation(angles_deg: Triple) -> np.ndarray:
    """Rotation matrix (3, 3): about z first, then y, then x.

    >>> rotation((0.0, 0.0, 90.0)).round(3) + 0.0
    array([[ 0., -1.,  0.],
           [ 1.,  0.,  0.],
           [ 0.,  0.,  1.]])
    """
    rx, ry, rz = np.deg2rad(angles_deg)
    about_x = np.array([[1, 0, 0], [0, np.cos(rx), -np.sin(rx)], [0, np.sin(rx), np.cos(rx)]])
    about_y = np.array([[np.cos(ry), 0, np.sin(ry)], [0, 1, 0], [-np.sin(ry), 0, np.cos(ry)]])
    about_z = np.array([[np.cos(rz), -np.sin(rz), 0], [np.sin(rz), np.cos(rz), 0], [0, 0, 1]])
    return about_x @ about_y @ about_z


def linear_part(deformation: Deformation) -> np.ndarray:
    """Matrix (3, 3), rotation x shear x scaling: offsets in the pair to offsets in the source."""
    shear = np.eye(3)
    shear[0, 1], shear[0, 2], shear[1, 2] = deformation.shearing
    return (
        rotation(deformation.rotation_deg) @ shear @ np.diag(1 / np.asarray(deformation.scaling))
    )


def coordinate_nodes(
    deformation: Deformation,
    *,
    shape: tuple[int, int, int],
    voxel_size_mm: float,
    source_voxel_size_mm: tuple[float, float, float],
    source_center_vox: np.ndarray,
    flip: bool,
    device: torch.device,
) -> Tensor:
    """Source voxel coordinates at every ``node_stride``-th voxel of the pair.

    The nonlinear part is the flow of a stationary velocity field (scaling and squaring, Arsigny et
    al., MICCAI 2006). It is invertible and has no folds at the default ranges.

    Parameters
    ----------
    deformation : Deformation
    shape : tuple of 3 int
        Voxels of the pair.
    voxel_size_mm : float
        Voxel size of the pair, isotropic.
    source_voxel_size_mm : tuple of 3 float
    source_center_vox : (3,) float
        Source voxel at the centre of the pair.
    flip : bool
        Whether the pair is mirrored.
    device : torch.device

    Returns
    -------
    (3, nx, ny, nz) float32
        ``n = ceil((shape - 1) / node_stride) + 1``.
    """
    stride = node_stride(voxel_size_mm)
    counts = [-(-(n - 1) // stride) + 1 for n in shape]
    axes = [
        (torch.arange(c, dtype=torch.float32) * stride - (n - 1) / 2) * voxel_size_mm
        for c, n in zip(counts, shape, strict=True)
    ]
    offset_mm = torch.stack(torch.meshgrid(*axes, indexing="ij")).to(device)
    if deformation.velocity_sd_mm > 0:
        nodes, matrices = smooth_noise(
            shape,
            voxel_size_mm=voxel_size_mm,
            node_spacing_mm=deformation.node_spacing_mm,
            seed=deformation.seed,
            channels=3,
            stride=stride,
        )
        velocity = along_axes(nodes.to(device), triple(m.to(device) for m in matrices))
        offset_mm = offset_mm + flow(
            velocity * deformation.velocity_sd_mm, spacing_mm=stride * voxel_size_mm
        )
    if flip:
        offset_mm = offset_mm * torch.tensor([-1.0, 1, 1], device=device).view(3, 1, 1, 1)
    to_source = linear_part(deformation) / np.asarray(source_voxel_size_mm)[:, None]
    to_source = torch.as_tensor(to_source, dtype=torch.float32, device=device)
    center = torch.as_tensor(source_center_vox, dtype=torch.float32, device=device)
    return (to_source @ offset_mm.flatten(1) + center[:, None]).view(3, *counts)


def flow(velocity_mm: Tensor, *, spacing_mm: float) -> Tensor:
    """Displacement in mm, (3, x, y, z): the flow of a velocity field after unit time."""
    sizes = velocity_mm.shape[1:]
    identity = torch.stack(
        torch.meshgrid(
            *[torch.linspace(-1, 1, n, device=velocity_mm.device) for n in sizes], indexing="ij"
        )
    )
    to_unit = torch.tensor(
        [2 / (max(n - 1, 1) * spacing_mm) for n in sizes], device=velocity_mm.device
    ).view(3, 1, 1, 1)
    moved = velocity_mm / 2**SQUARINGS
    for _ in range(SQUARINGS):
        where = (identity + moved * to_unit).flip(0).permute(1, 2, 3, 0)[None]
        moved = (
            moved
            + functional.grid_sample(
                moved[None], where, mode="bilinear", padding_mode="border", align_corners=True
            )[0]
        )
    return moved
