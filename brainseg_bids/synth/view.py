# SPDX-License-Identifier: Apache-2.0
"""What of the head is in the image: kept tissues, cut plane, field of view.

What is not there is background in the labels and zero in the image; what is masked has the
mask's level instead. It is taken away after the
image was acquired, as brain extraction, defacing and cropping do, so nothing is blurred into it.
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
    """The voxels of a pair, and where the head is from there.

    Parameters
    ----------
    shape : tuple of 3 int
    voxel_size_mm : float
        Isotropic.
    center_mm : (3,) float
        RAS, from the middle of the crop to the middle of the head.
    device : torch.device
    """

    shape: tuple[int, int, int]
    voxel_size_mm: float
    center_mm: Triple = (0.0, 0.0, 0.0)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def axes_mm(self) -> list[Tensor]:
        """Three axes of the voxels' places, RAS mm from the middle of the head."""
        return [
            (torch.arange(n, dtype=torch.float64) - (n - 1) / 2) * self.voxel_size_mm - center
            for n, center in zip(self.shape, self.center_mm, strict=True)
        ]


def is_visible(label: Label, view: View) -> bool:
    """Whether a label is still in the image under this view."""
    if view.kept == "head" or label.is_brain:
        return True
    return label.is_extracerebral_csf and view.kept == "brain+csf"


def field_of_view(view: View, crop: Crop) -> Box:
    """Voxels of the crop that lie within the field of view; along each axis at least one.

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
    """Whether a label is air around the head: code 0, and a tool's own name for it."""
    return label.index == 0 or label.name == "Background"


def masked(view: View, indices: Tensor, table: LabelTable) -> Tensor | None:
    """Voxels that were set to ``view.air_level``, (X, Y, Z) bool; ``None`` if none were.

    Parameters
    ----------
    indices : (X, Y, Z) uint8
        Class index of each voxel's label in ``table``.

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
    """Voxels of the chosen labels, (X, Y, Z) bool; ``chosen`` says so for each class index."""
    lookup = torch.tensor(chosen, device=indices.device)
    return lookup.index_select(0, indices.flatten().int()).view(indices.shape)


def out_of_view(view: View, indices: Tensor, table: LabelTable, crop: Crop) -> Tensor | None:
    """Voxels that are not in the image, (X, Y, Z) bool; ``None`` if all are.

    Parameters
    ----------
    indices : (X, Y, Z) uint8
        Class index of each voxel's label in ``table``.
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
