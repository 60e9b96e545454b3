# SPDX-License-Identifier: Apache-2.0
"""Parts of the head that the image shows: kept tissues, plane of defacing, field of view.

Other voxels are background in the labels, and zero (or the level of the mask) in the image. As in
brain extraction, defacing and cropping, they are removed after acquisition, without blur.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from brainseg_bids.anatomy.grid import triple
from brainseg_bids.anatomy.labels import Label, LabelTable
from brainseg_bids.synth.recipe import Triple, View

Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Crop:
    """Grid of a pair, and position of the head relative to it.

    Parameters
    ----------
    shape : tuple of 3 int
    voxel_size_mm : float
        Isotropic.
    center_mm : (3,) float
        Vector from the centre of the crop to the centre of the head, RAS.
    device : torch.device
    """

    shape: tuple[int, int, int]
    voxel_size_mm: float
    center_mm: Triple = (0.0, 0.0, 0.0)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def axes_mm(self) -> list[Tensor]:
        """Coordinates of the voxels along each RAS axis, in mm from the centre of the head."""
        return [
            (torch.arange(n, dtype=torch.float64) - (n - 1) / 2) * self.voxel_size_mm - center
            for n, center in zip(self.shape, self.center_mm, strict=True)
        ]


def is_visible(label: Label, view: View) -> bool:
    """Whether a label is among the kept tissues of a view."""
    if view.kept == "head" or label.is_brain:
        return True
    return label.is_extracerebral_csf and view.kept == "brain+csf"


def field_of_view(view: View, crop: Crop) -> Box:
    """Slices of the voxels of the crop within the field of view, at least one along each axis.

    Examples
    --------
    >>> crop = Crop((10, 10, 10), 2.0)
    >>> field_of_view(View(low_mm=(-4.0, -100.0, -100.0)), crop)
    (slice(3, 10, None), slice(0, 10, None), slice(0, 10, None))
    """
    box = []
    for axis_mm, low_mm, high_mm in zip(crop.axes_mm(), view.low_mm, view.high_mm, strict=True):
        inside = np.flatnonzero((axis_mm >= low_mm) & (axis_mm <= high_mm))
        if inside.size == 0:
            # A crop beside the field of view keeps the plane that is nearest to it.
            middle_mm = (low_mm + high_mm) / 2
            inside = (axis_mm - middle_mm).abs().argmin(keepdim=True).numpy()
        box.append(slice(int(inside[0]), int(inside[-1]) + 1))
    return triple(box)


def is_outside(label: Label) -> bool:
    """Whether a label is air around the head: code 0, or a label of a tool for it."""
    return label.index == 0 or label.name == "Background"


def masked(view: View, indices: Tensor, table: LabelTable) -> Tensor | None:
    """Mask of the voxels that are set to ``view.air_level``, (X, Y, Z) bool, or None if none are.

    Parameters
    ----------
    view : View
    indices : (X, Y, Z) uint8
        Class indices of ``table``.
    table : LabelTable

    Examples
    --------
    >>> table = LabelTable.packaged("fullhead")
    >>> indices = torch.tensor([[[0, 1]]], dtype=torch.uint8)
    >>> masked(View(air_masked=True), indices, table).tolist()
    [[[True, False]]]
    """
    if not view.air_masked:
        return None
    return voxels_of(indices, [is_outside(x) or not is_visible(x, view) for x in table])


def voxels_of(indices: Tensor, chosen: list[bool]) -> Tensor:
    """Mask of the voxels with chosen labels, (X, Y, Z) bool; ``chosen`` is by class index."""
    lookup = torch.tensor(chosen, device=indices.device)
    return lookup.index_select(0, indices.flatten().int()).view(indices.shape)


def out_of_view(view: View, indices: Tensor, table: LabelTable, crop: Crop) -> Tensor | None:
    """Mask of the voxels that the image does not show, (X, Y, Z) bool, or None if it shows all.

    Parameters
    ----------
    view : View
    indices : (X, Y, Z) uint8
        Class indices of ``table``.
    table : LabelTable
    crop : Crop
    """
    gone = None
    if view.kept != "head":
        gone = voxels_of(indices, [not is_visible(label, view) for label in table])
    normal = np.asarray(view.cut_normal)
    if normal.any():
        along = [
            (axis * float(c)).float().to(indices.device)
            for axis, c in zip(crop.axes_mm(), normal, strict=True)
        ]
        plane_mm = along[1][:, None] + along[2][None]
        beyond = along[0][:, None, None] + plane_mm > view.cut_mm
        gone = beyond if gone is None else gone.logical_or_(beyond)
    box = field_of_view(view, crop)
    if any(side != slice(0, n) for side, n in zip(box, indices.shape, strict=True)):
        outside = torch.ones_like(indices, dtype=torch.bool)
        outside[box] = False
        gone = outside if gone is None else gone.logical_or_(outside)
    return gone
