# SPDX-License-Identifier: Apache-2.0
"""Probabilities of several networks, interpolated to the planes of the image and averaged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from brainseg_bids.inference.views import View

SLAB_BLOCKS = 1
"""Rows of blocks whose probabilities are computed at a time."""

Plane = tuple[int, slice, slice, Tensor]
"""Index, rows and columns of a plane, and probabilities (n_labels, rows, columns)."""


def averaged(streams: Sequence[Iterator[Plane]]) -> Iterator[Plane]:
    """Planes with the mean probabilities of all streams.

    A stream that does not cover a voxel counts as background there.

    Parameters
    ----------
    streams : sequence of iterator
        One for each network or mirrored view, see `planes_of`.
    """
    if len(streams) == 1:
        yield from streams[0]
        return
    following = [next(stream, None) for stream in streams]
    while any(following):
        number = min(plane[0] for plane in following if plane)
        here = [plane for plane in following if plane is not None and plane[0] == number]
        yield _mean_plane(here, len(streams))
        following = [
            next(stream, None) if plane is not None and plane[0] == number else plane
            for stream, plane in zip(streams, following, strict=True)
        ]


def _mean_plane(planes: Sequence[Plane], n_views: int) -> Plane:
    number, _, _, first = planes[0]
    rows, columns = [plane[1] for plane in planes], [plane[2] for plane in planes]
    row, column = (min(part.start for part in parts) for parts in (rows, columns))
    height, width = (max(part.stop for part in parts) for parts in (rows, columns))
    total = first.new_zeros(len(first), height - row, width - column)
    unseen = first.new_full(total.shape[1:], n_views)
    for _, own_rows, own_columns, probabilities in planes:
        here = (
            slice(own_rows.start - row, own_rows.stop - row),
            slice(own_columns.start - column, own_columns.stop - column),
        )
        total[:, *here] += probabilities
        unseen[here] -= 1
    total[0] += unseen
    return number, slice(row, height), slice(column, width), total.div_(n_views)


def most_probable(probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """Class index of the most probable label, (rows, columns) uint8, and its probability.

    Of equal probabilities the first label is taken.

    Parameters
    ----------
    probabilities : (n_labels, rows, columns) float

    Examples
    --------
    >>> index, largest = most_probable(torch.tensor([[[0.25, 0.5]], [[0.75, 0.5]]]))
    >>> index.tolist(), largest.tolist()
    ([[1, 0]], [[0.75, 0.5]])
    """
    # Four times as fast on a processor as PyTorch's own, which keeps places in 64 bits.
    largest = probabilities[0].clone()
    index = torch.zeros(largest.shape, dtype=torch.uint8, device=largest.device)
    for number, other in enumerate(probabilities[1:], start=1):
        torch.maximum(index, (other > largest).view(torch.uint8).mul_(number), out=index)
        torch.maximum(largest, other, out=largest)
    return index, largest


def planes_of(
    view: View, slabs: Iterator[Tensor], shape: tuple[int, ...], device: str
) -> Iterator[Plane]:
    """Planes of the image with probabilities, interpolated from the voxels of a network.

    Parameters
    ----------
    view : View
    slabs : iterator of Tensor
        Features from `windows.stitched_rows`.
    shape : tuple of 3 int
        Shape of the image in RAS+ axis order.
    device : str

    Yields
    ------
    Plane
        Index of the plane, slices of rows and columns, and probabilities (n_labels, rows,
        columns).
    """
    taps = taps_of(view, shape, device)
    if taps is None:
        return
    (planes, low_x, weight_x), rows, columns = taps
    depth = SLAB_BLOCKS * view.member.net.spec.block_size
    kept: dict[int, Tensor] = {}
    numbered = enumerate(slabs)

    def plane_at(index: int) -> Tensor:
        if index not in kept:
            features = next(slab for number, slab in numbered if number == index // depth)
            slab = view.probabilities(features.to(device))
            first = index // depth * depth
            kept.update(
                {
                    first + k: _between(_between(slab[:, k], 1, *rows[1:]), 2, *columns[1:])
                    for k in range(slab.shape[1])
                }
            )
        return kept[index]

    for number, plane in enumerate(range(planes.start, planes.stop)):
        low, weight = int(low_x[number]), float(weight_x[number])
        for old in [index for index in kept if index < low]:
            del kept[old]
        here = plane_at(low)
        if weight > 0:
            here = torch.lerp(here, plane_at(low + 1), weight)
        yield plane, rows[0], columns[0], here


def taps_of(
    view: View, shape: tuple[int, ...], device: str
) -> list[tuple[slice, Tensor, Tensor]] | None:
    """Linear interpolation from the voxels of a view to those of the image, for each axis.

    Returns
    -------
    list of (slice, Tensor, Tensor), or None
        For each axis: voxels of the image within the box of the view, index of the voxel of
        ``view.seen`` below each, and weight of the voxel above. None if no voxel is within the
        box."""
    taps = []
    for axis in range(3):
        start, step = view.offset[axis]
        at = (torch.arange(shape[axis], dtype=torch.float64) - start) / step - view.box[axis].start
        length = view.box[axis].stop - view.box[axis].start
        inside = ((at > -0.5 - 1e-6) & (at < length - 0.5 + 1e-6)).nonzero().flatten()
        if len(inside) == 0:
            return None
        first, last = int(inside[0]), int(inside[-1]) + 1
        at = at[first:last].clamp(0, length - 1)
        low = at.floor().clamp(max=max(length - 2, 0)).long()
        weight = (at - low).float()
        # Positions that differ from a voxel centre by rounding only are that voxel.
        low = torch.where(weight > 1 - 1e-5, low + 1, low)
        weight = torch.where((weight < 1e-5) | (weight > 1 - 1e-5), 0.0, weight)
        low += view.lead
        taps.append((slice(first, last), low.to(device), weight.to(device)))
    return taps


def _between(values: Tensor, axis: int, low: Tensor, weight: Tensor) -> Tensor:
    """Linear interpolation along one axis at ``low + weight``."""
    if bool((weight == 0).all()):
        if len(low) == values.shape[axis]:
            return values
        return values.index_select(axis, low)
    high = (low + 1).clamp(max=values.shape[axis] - 1)
    view = [1] * values.ndim
    view[axis] = -1
    return torch.lerp(
        values.index_select(axis, low), values.index_select(axis, high), weight.view(view)
    )
