# SPDX-License-Identifier: Apache-2.0
"""``segment``: an image and a bundle in, labels on the image's own grid out."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.inference.windows import stitch
from brainseg_bids.nets.architectures import PackedNet

MARGIN_MM = 12.0
"""Air kept around the head, so that its border is seen with context."""

SLAB_CELLS = 4


def segment(
    image: np.ndarray,
    grid: Grid,
    net: PackedNet,
    table: LabelTable,
    *,
    voxel_size_mm: float,
    window_vox: tuple[int, int, int],
    device: str = "cpu",
    overlap_frac: float = 0.25,
    progress: Callable[[int, int], None] = lambda done, total: None,
    on_probabilities: Callable[[int, slice, slice, Tensor], None] | None = None,
) -> LabelMap:
    """Label every voxel of an image.

    The image is turned towards RAS (axes permuted and flipped, nothing interpolated), brought
    to the network's voxel size axis by axis, and labelled window by window. Probabilities,
    never labels, are interpolated back to the image's voxels; one plane is arg-maxed at a
    time. Copies of an image in other axis orders give the same result, turned.

    Parameters
    ----------
    image : (X, Y, Z) float
    grid : Grid
        Of the image; any axis order, oblique, anisotropic.
    net : PackedNet
    table : LabelTable
        Labels in the order of the network's channels.
    voxel_size_mm : float
        That the network was trained at.
    window_vox : tuple of 3 int
    device : str
    overlap_frac : float
        Of neighbouring windows.
    progress : callable
        Told windows done and windows in all.
    on_probabilities : callable, optional
        Told, for each plane of the image turned towards RAS, its index, the rows and columns
        that were worked on, and their probabilities (n_labels, rows, columns). Elsewhere
        everything is background.

    Returns
    -------
    LabelMap
        On ``grid``, int16 codes of ``table``.
    """
    ras = grid.to_ras()
    turned = torch.from_numpy(np.ascontiguousarray(grid.array_to_ras(image), dtype=np.float32))
    work = ras.with_voxel_size(voxel_size_mm)
    offset = _axis_offsets(ras, work)
    small = turned
    for axis in range(3):
        small = _resample_axis(small, axis, work.shape[axis], *offset[axis])
    small = _whole_cells(small, net.spec.stem)
    box = head_box(small, voxel_size_mm=voxel_size_mm, multiple=net.spec.stem)
    seen = rescale(small[box].to(device))
    with torch.inference_mode():
        features = stitch(
            _looker(net, device),
            seen,
            window=window_vox,
            stem=net.spec.stem,
            overlap_frac=overlap_frac,
            progress=progress,
        )
        ranks = torch.zeros(ras.shape, dtype=torch.uint8)
        for plane, rows, columns, probabilities in _planes(net, features, box, ras.shape, offset):
            ranks[plane, rows, columns] = probabilities.max(0).indices.to(torch.uint8).cpu()
            if on_probabilities is not None:
                on_probabilities(plane, rows, columns, probabilities)
    codes = table.codes.astype(np.int16)[ranks.numpy()]
    return LabelMap(np.ascontiguousarray(grid.array_from_ras(codes)), grid, table)


def rescale(image: Tensor) -> Tensor:
    """Intensities to 0..1 between the 0.5th and 99.5th percentile, as in training."""
    # Every 61st voxel; a prime neighbour where rows are a multiple of it, or whole planes
    # would be missed.
    stride = next(step for step in (61, 59, 53, 47) if image.shape[-1] % step)
    sample = image.flatten()[::stride][:4_000_000].float()
    low, high = torch.quantile(sample, torch.tensor([0.005, 0.995], device=image.device))
    span = high - low if high > low else torch.ones_like(high)
    return ((image - low) / span).clamp_(0, 1)


def _whole_cells(image: Tensor, stem: int) -> Tensor:
    """Repeat the last plane along each axis until the network's cells fit."""
    for axis, size in enumerate(image.shape):
        missing = -size % stem
        if missing:
            last = image.narrow(axis, size - 1, 1)
            image = torch.cat([image, *[last] * missing], dim=axis)
    return image


def head_box(image: Tensor, *, voxel_size_mm: float, multiple: int) -> tuple[slice, slice, slice]:
    """Box around what is brighter than air, with a margin, its edges multiples of ``multiple``.

    Cells of about 4 mm are averaged first, so that noise in air does not count. An image
    without dark surroundings gives the whole image. Edges of ``image`` are multiples, too.
    """
    cell = max(1, round(4 / voxel_size_mm))
    cells = [min(cell, n) for n in image.shape]
    pooled = torch.nn.functional.avg_pool3d(image[None, None], cells, ceil_mode=True)[0, 0]
    low, high = torch.quantile(pooled.flatten()[:8_000_000], torch.tensor([0.02, 0.98]))
    bright = pooled > low + 0.12 * (high - low)
    margin = int(np.ceil(MARGIN_MM / voxel_size_mm))
    box = []
    for axis, size in enumerate(image.shape):
        others = [a for a in range(3) if a != axis]
        # A single bright cell (a vitamin capsule, a spike) does not make the box larger.
        filled = (bright.sum(others) >= 3).nonzero().flatten()
        first, last = (int(filled[0]), int(filled[-1])) if len(filled) else (0, size)
        start = max(0, first * cells[axis] - margin) // multiple * multiple
        stop = min(size, (last + 1) * cells[axis] + margin)
        box.append(slice(start, start + -(-(stop - start) // multiple) * multiple))
    return tuple(box)


def _looker(net: PackedNet, device: str) -> Callable[[Tensor], Tensor]:
    kind = torch.device(device).type
    # Half precision only where the processor has instructions for it; it is slower elsewhere.
    half = (kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)) or (
        kind == "cpu" and _cpu_has_bf16()
    )

    def look(window: Tensor) -> Tensor:
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=half):
            return net.features(window)

    return look


def _cpu_has_bf16() -> bool:
    capabilities = getattr(torch.cpu, "get_capabilities", dict)  # not in older releases
    return bool(capabilities().get("avx512_bf16", False))


def _axis_offsets(ras: Grid, work: Grid) -> list[tuple[float, float]]:
    """Per axis: position of the work grid's first voxel in image voxels, and voxels per step."""
    start = np.linalg.inv(ras.affine) @ work.affine[:, 3]
    steps = np.array(work.voxel_size_mm) / np.array(ras.voxel_size_mm)
    return [(float(start[axis]), float(steps[axis])) for axis in range(3)]


def _resample_axis(image: Tensor, axis: int, count: int, start: float, step: float) -> Tensor:
    """Linear along one axis; where the new voxels are larger, a triangle of their width."""
    size = image.shape[axis]
    if count == size and abs(start) < 1e-6 and abs(step - 1) < 1e-6:
        return image
    at = start + step * torch.arange(count, dtype=torch.float64)
    width = max(1.0, step)
    distance = (torch.arange(size, dtype=torch.float64)[None] - at[:, None]).abs() / width
    weights = (1 - distance).clamp(min=0)
    # A sample beyond the last centre takes the border voxel.
    empty = weights.sum(1) == 0
    weights[empty, at[empty].round().clamp(0, size - 1).long()] = 1
    weights = (weights / weights.sum(1, keepdim=True)).float()
    return torch.movedim(torch.tensordot(weights, image, dims=([1], [axis])), 0, axis)


def _planes(
    net: PackedNet,
    features: Tensor,
    box: tuple[slice, ...],
    shape: tuple[int, ...],
    offset: list[tuple[float, float]],
) -> Iterator[tuple[int, slice, slice, Tensor]]:
    """Probabilities plane by plane of the image's own voxels."""
    taps = []
    for axis in range(3):
        start, step = offset[axis]
        at = (torch.arange(shape[axis], dtype=torch.float64) - start) / step - box[axis].start
        length = box[axis].stop - box[axis].start
        inside = ((at > -0.5 - 1e-6) & (at < length - 0.5 + 1e-6)).nonzero().flatten()
        if len(inside) == 0:
            return
        first, last = int(inside[0]), int(inside[-1]) + 1
        at = at[first:last].clamp(0, length - 1)
        low = at.floor().clamp(max=max(length - 2, 0)).long()
        weight = (at - low).float()
        # Positions that differ from a voxel centre by rounding only are that voxel.
        low = torch.where(weight > 1 - 1e-5, low + 1, low)
        weight = torch.where((weight < 1e-5) | (weight > 1 - 1e-5), 0.0, weight)
        taps.append((slice(first, last), low.to(features.device), weight.to(features.device)))
    (planes, low_x, weight_x), rows, columns = taps
    stem = net.spec.stem
    kept: dict[int, Tensor] = {}

    def plane_at(index: int) -> Tensor:
        if index not in kept:
            first = index // stem // SLAB_CELLS * SLAB_CELLS
            cells = features[None, :, first : first + SLAB_CELLS]
            slab = net.scores(cells)[0].softmax(0)
            kept.update(
                {
                    first * stem + k: _between(_between(slab[:, k], 1, *rows[1:]), 2, *columns[1:])
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
