# SPDX-License-Identifier: Apache-2.0
"""Layers for effects of fields: flip angles, and signal loss near air."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.synth.intensity import Layer
from brainseg_bids.synth.interpolate import BandedProduct, linear_matrix
from brainseg_bids.synth.recipe import Ratio, Susceptibility, Transmit, Triple
from brainseg_bids.synth.relaxation import relaxation
from brainseg_bids.synth.susceptibility import signal_left
from brainseg_bids.synth.transmit import transmit_field, transmit_response
from brainseg_bids.synth.view import Crop

CELL_MM = 3.0
"""Cell size of the map of air for susceptibility: smaller than the sinuses, which are 10 mm
wide."""


def flip_angles(
    transmit: Transmit, ratio: Ratio, table: LabelTable, crop: Crop, *, brain_mm: Triple
) -> Layer | None:
    """Layer of the effect of B1+ on each label: a factor for MPRAGE, an offset for MP2RAGE.

    Parameters
    ----------
    transmit : Transmit
    ratio : Ratio
        ``high - low`` is the range of UNI in intensities.
    table : LabelTable
    crop : Crop
    brain_mm : (3,) float
        Vector from the centre of the crop to the centre of the brain, RAS.

    Returns
    -------
    Layer or None
        None if the sequence is ``none``.
    """
    if transmit.sequence == "none":
        return None
    response = transmit_response(transmit, table)
    is_term = transmit.sequence == "mp2rage"
    if is_term:
        response = response * (ratio.high - ratio.low)
    constant, linear, square = response.to(crop.device).T
    slopes = torch.complex(linear.contiguous(), square.contiguous())
    constant = float(constant[0]) if bool((constant == constant[0]).all()) else constant
    field = transmit_field(
        transmit,
        shape=crop.shape,
        voxel_size_mm=crop.voxel_size_mm,
        center_mm=brain_mm,
        device=crop.device,
    )

    def respond(painted: Tensor, indices: Tensor, start: int, stop: int) -> None:
        change = field(start, stop).sub_(1)
        found = torch.view_as_real(slopes.index_select(0, indices.flatten()))
        linear, square = found.view(*painted.shape, 2).unbind(-1)
        answer = torch.addcmul(linear, square, change).mul_(change)
        rest = constant
        if isinstance(constant, Tensor):
            rest = constant.index_select(0, indices.flatten()).view(painted.shape)
        answer.add_(rest)
        painted.add_(answer) if is_term else painted.mul_(answer)

    return respond


def air_loss(
    susceptibility: Susceptibility, indices: Tensor, table: LabelTable, crop: Crop
) -> Layer | None:
    """Layer that multiplies by the fraction of signal that remains near air, or None.

    Parameters
    ----------
    susceptibility : Susceptibility
    indices : (X, Y, Z) uint8
        Class indices of ``table``; labels without protons are air.
    table : LabelTable
    crop : Crop
    """
    if susceptibility.echo_time_ms <= 0:
        return None
    is_air = torch.from_numpy(relaxation(table, susceptibility.field_t).proton_density == 0)
    air = is_air.float().to(crop.device).index_select(0, indices.flatten().int())
    stride = max(1, round(CELL_MM / crop.voxel_size_mm))
    cells = functional.avg_pool3d(
        air.view(1, 1, *indices.shape), stride, ceil_mode=True, count_include_pad=False
    )[0, 0]
    left = signal_left(
        cells,
        susceptibility,
        spacing_mm=stride * crop.voxel_size_mm,
        voxel_size_mm=crop.voxel_size_mm,
    )
    to_x, to_y, to_z = (
        linear_matrix(n, c, positions=(torch.arange(n) + 0.5) / stride - 0.5)
        for n, c in zip(indices.shape, cells.shape, strict=True)
    )
    finer = BandedProduct(to_x, to_y.to(crop.device) @ (left @ to_z.to(crop.device).T))

    def lose(painted: Tensor, indices: Tensor, start: int, stop: int) -> None:
        painted.mul_(finer(start, stop))

    return lose
