# SPDX-License-Identifier: Apache-2.0
"""``segment``: an image and a bundle in, labels on the image's own grid out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from brainseg_bids.anatomy.fill import without_fill, wrapped_share
from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.intensity import AIR_SHARE, rescale
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.inference.confidence import Accumulator
from brainseg_bids.inference.windows import Triple, count_windows, stitched_rows
from brainseg_bids.nets.architectures import PackedNet
from brainseg_bids.nets.devices import has_fast_bf16
from brainseg_bids.nets.sizes import patch_multiple

MARGIN_MM = 12.0
"""Air kept around the head, so that its border is seen with context."""

SLAB_CELLS = 1
"""Rows of cells that become probabilities at a time."""

PLANES_TO_WINDOWS = 0.35
"""Time that all planes take, in that of all windows, for voxels as large as the network's; a guess
until the first planes are done. Measured: 0.32 on a processor with bfloat16."""

CHUNK = 2**20
"""Probabilities that are computed at a time: as many as a processor keeps close."""

Plane = tuple[int, slice, slice, Tensor]
"""Index, rows and columns of a plane, and probabilities (n_labels, rows, columns)."""


@dataclass(frozen=True)
class Member:
    """A network, and how it wants to see an image.

    Parameters
    ----------
    net : PackedNet
    voxel_size_mm : float
        That it was trained at.
    window_vox : tuple of 3 int
    """

    net: PackedNet
    voxel_size_mm: float
    window_vox: Triple


def segment(
    image: np.ndarray,
    grid: Grid,
    net: PackedNet,
    table: LabelTable,
    *,
    voxel_size_mm: float,
    window_vox: Triple,
    others: Sequence[Member] = (),
    flips: bool = False,
    device: str = "cpu",
    overlap_frac: float = 0.25,
    progress: Callable[[float], None] = lambda left_s: None,
    on_probabilities: Callable[[int, slice, slice, Tensor], None] | None = None,
    confidence: Accumulator | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> LabelMap:
    """Label every voxel of an image.

    The image is turned towards RAS (axes permuted and flipped, nothing interpolated), brought
    to the network's voxel size axis by axis, and labelled window by window. Probabilities,
    never labels, are interpolated back to the image's voxels; one plane is arg-maxed at a
    time, as soon as the windows that show it are done. Copies of an image in other axis orders
    give the same result, turned.

    Several networks, and each network's view of the mirrored image, are averaged as
    probabilities, plane by plane. Where a view shows air only, it says background.

    Fill values count as background; `note` is told of them, and of integers that wrapped round.

    Where an accelerator's memory runs out, windows become smaller, then sums are kept in main
    memory; only then it is an error.

    Parameters
    ----------
    image : (X, Y, Z) float
    grid : Grid
        Of the image; any axis order, oblique, anisotropic.
    net : PackedNet
    table : LabelTable
        Labels in the order of the channels of all networks; its mirrors say what changes sides.
    voxel_size_mm : float
        That the network was trained at.
    window_vox : tuple of 3 int
    others : sequence of Member
        Further networks with the same labels; at any voxel size, with any cells.
    flips : bool
        Also look at the image mirrored left to right, in cells that begin half a cell earlier:
        what depends on where cells happen to lie is averaged with, too, at no cost.
    device : str
    overlap_frac : float
        Of neighbouring windows.
    progress : callable
        Told after each window and each plane how many seconds are likely left.
    on_probabilities : callable, optional
        Told, for each plane of the image turned towards RAS, its index, the rows and columns
        that were worked on, and their probabilities (n_labels, rows, columns). Elsewhere
        everything is background.
    confidence : Accumulator, optional
        Sums of probabilities are added to it.
    note : callable
        Told in one line what had to be done otherwise than asked, or is wrong with intensities.

    Returns
    -------
    LabelMap
        On ``grid``, int16 codes of ``table``.

    Raises
    ------
    RuntimeError
        If there is not enough memory.
    """
    image = _without_what_is_no_image(image, note)
    ras = grid.to_ras()
    turned = torch.from_numpy(np.ascontiguousarray(grid.array_to_ras(image), dtype=np.float32))
    members = [Member(net, voxel_size_mm, window_vox), *others]
    views = [_view(turned, ras, member, device) for member in members]
    if flips:
        mirrors = torch.from_numpy(table.mirrors())
        views = [v for view in views for v in (view, _half_a_cell_off(view, mirrors))]

    def look(thrift: _Thrift) -> Tensor:
        ranks = torch.zeros(ras.shape, dtype=torch.uint8)
        work = _Work(progress, views, ras, thrift, overlap_frac)
        streams = _streams(views, ras.shape, thrift, overlap_frac, work.window_done)
        if confidence is not None:
            confidence.clear()
        for plane, rows, columns, probabilities in _averaged(streams):
            indices, largest = most_probable(probabilities)
            ranks[plane, rows, columns] = indices.cpu()
            if confidence is not None:
                confidence.add(indices, largest, probabilities)
            if on_probabilities is not None:
                on_probabilities(plane, rows, columns, probabilities)
            work.plane_done()
        return ranks

    with torch.inference_mode():
        ranks = _within_memory(look, device, note)
    codes = table.codes.astype(np.int16)[ranks.numpy()]
    return LabelMap(np.ascontiguousarray(grid.array_from_ras(codes)), grid, table)


def _without_what_is_no_image(image: np.ndarray, note: Callable[[str], None]) -> np.ndarray:
    image, fills = without_fill(image)
    for fill in fills:
        note(str(fill))
    if share := wrapped_share(image):
        note(
            f"{100 * share:.2g} % of voxels are negative beside the brightest ones: intensities "
            "above the largest integer of the file's type have wrapped round. Labels there are "
            "wrong. Export the image again as float or as unsigned 16-bit integers."
        )
    return image


@dataclass(frozen=True)
class _Thrift:
    """How memory is saved: edges of windows divided by ``shrink``, sums kept on ``keep_on``."""

    device: str
    shrink: int = 1
    keep_on: str = ""

    def describe(self) -> str:
        where = " and sums in main memory" if self.keep_on == "cpu" else ""
        return f"windows of 1/{self.shrink} of the edges{where}"


def _within_memory(
    look: Callable[[_Thrift], Tensor], device: str, note: Callable[[str], None]
) -> Tensor:
    """What ``look`` gives with as much thrift as an accelerator asks for."""
    steps = [_Thrift(device)]
    if device != "cpu":
        steps += [_Thrift(device, 2), _Thrift(device, 2, "cpu"), _Thrift(device, 4, "cpu")]
    for thrift, following in zip(steps, [*steps[1:], None], strict=True):
        try:
            return look(thrift)
        except RuntimeError as error:
            if following is None or "out of memory" not in str(error):
                raise
        # Outside of the handler, where the error no longer holds on to what filled the memory.
        if torch.device(device).type == "cuda":  # training names one of several: cuda:1
            torch.cuda.empty_cache()
        note(
            f"not enough memory on {device}: done again with {following.describe()}; labels may "
            "differ a little"
        )
    raise AssertionError("the last step returns or raises")


@dataclass(frozen=True, eq=False)
class _View:
    """What one network sees of an image.

    Parameters
    ----------
    member : Member
    seen : (X, Y, Z) float
        At the network's voxel size, cropped to the head.
    box : tuple of 3 slice
        Where that is.
    offset : list of (float, float)
        Per axis, as `_axis_offsets` gives it.
    mirrored : (n_labels,) int or None
        Rank of each label's counterpart on the other side, if windows are mirrored.
    lead : int
        Voxels of ``seen`` that lie before the box along each axis.
    """

    member: Member
    seen: Tensor
    box: tuple[slice, slice, slice]
    offset: list[tuple[float, float]]
    mirrored: Tensor | None = None
    lead: int = 0

    def look(self, window: Tensor) -> Tensor:
        """Features of a window."""
        kind = window.device.type
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=has_fast_bf16(kind)):
            if self.mirrored is None:
                return self.member.net.features(window)
            return self.member.net.features(window.flip(2)).flip(2)

    def probabilities(self, features: Tensor) -> Tensor:
        """Of rows of features (F, rows, y, z): (n_labels, X, Y, Z) of their voxels."""
        net, made = self.member.net, []
        rows = max(
            1, CHUNK // (net.spec.n_labels * net.spec.block_size**3 * features[0, :, 0].numel())
        )
        for part in features.split(rows, dim=2):
            scores = net.scores(part[None])[0]
            if self.mirrored is None:
                made.append(scores.softmax(0))
                continue
            # Windows were turned back cell by cell; the voxels within cells have not been yet.
            voxels = scores.unflatten(1, (-1, net.spec.block_size)).flip(2).flatten(1, 2)
            made.append(voxels.softmax(0).index_select(0, self.mirrored.to(voxels.device)))
        return torch.cat(made, dim=2)


def _view(turned: Tensor, ras: Grid, member: Member, device: str) -> _View:
    work = ras.with_voxel_size(member.voxel_size_mm)
    offset = _axis_offsets(ras, work)
    small = turned
    for axis in range(3):
        small = _resample_axis(small, axis, work.shape[axis], *offset[axis])
    block_size = member.net.spec.block_size
    small = _whole_cells(small, block_size)
    box = head_box(small, voxel_size_mm=member.voxel_size_mm, multiple=block_size)
    return _View(member, rescale(small[box].to(device)), box, offset)


def _half_a_cell_off(view: _View, mirrors: Tensor) -> _View:
    """The same mirrored, in cells that begin half a cell earlier along each axis."""
    block_size = view.member.net.spec.block_size
    early = block_size // 2
    if not early:
        return replace(view, mirrored=mirrors)
    # Zeros, as beyond the box in the other view; nothing is told of them.
    seen = torch.nn.functional.pad(view.seen, (early, block_size - early) * 3)
    return replace(view, seen=seen, lead=early, mirrored=mirrors)


def _streams(
    views: Sequence[_View],
    shape: tuple[int, ...],
    thrift: _Thrift,
    overlap_frac: float,
    on_window: Callable[[], None],
) -> list[Iterator[Plane]]:
    """Planes of each view; nothing is computed before they are asked for."""
    return [
        _planes(
            view,
            stitched_rows(
                view.look,
                view.seen,
                window=_shrunk(view.member, thrift.shrink),
                block_size=view.member.net.spec.block_size,
                rows=SLAB_CELLS,
                overlap_frac=overlap_frac,
                keep_on=thrift.keep_on or thrift.device,
                progress=on_window,
            ),
            shape,
            thrift.device,
        )
        for view in views
    ]


class _Work:
    """How long what is left will take, by how long windows and planes have taken so far.

    Parameters
    ----------
    tell : callable
        Told the seconds that are left.
    views : sequence of _View
    ras : Grid
        Of the image.
    thrift : _Thrift
    overlap_frac : float
    """

    def __init__(
        self,
        tell: Callable[[float], None],
        views: Sequence[_View],
        ras: Grid,
        thrift: _Thrift,
        overlap_frac: float,
    ) -> None:
        self.tell = tell
        self.windows = sum(
            count_windows(
                tuple(view.seen.shape),
                _shrunk(view.member, thrift.shrink),
                block_size=view.member.net.spec.block_size,
                overlap_frac=overlap_frac,
            )
            for view in views
        )
        inside = [_taps(view, ras.shape, "cpu") for view in views]
        rows = [taps[0][0] for taps in inside if taps]
        self.planes = max((r.stop for r in rows), default=0) - min(
            (r.start for r in rows), default=0
        )
        finer = [
            view.member.voxel_size_mm**3 / float(np.prod(ras.voxel_size_mm)) for view in views
        ]
        self.ratio = PLANES_TO_WINDOWS * sum(finer) / len(finer)
        self.done = {"window": 0, "plane": 0}
        self.took_s = {"window": 0.0, "plane": 0.0}
        self.last_s = time.monotonic()

    def window_done(self) -> None:
        """Told after each window."""
        self._done("window")

    def plane_done(self) -> None:
        """Told after each plane of the image."""
        self._done("plane")

    def _done(self, part: str) -> None:
        now_s = time.monotonic()
        self.took_s[part] += now_s - self.last_s
        self.done[part] += 1
        self.last_s = now_s
        self.tell(self.left_s())

    def left_s(self) -> float:
        """Seconds that are likely left."""
        a_window_s = self.took_s["window"] / max(1, self.done["window"])
        all_planes_s = self.ratio * a_window_s * self.windows
        if self.done["plane"]:
            all_planes_s = self.took_s["plane"] * self.planes / self.done["plane"]
        planes_left = 1 - self.done["plane"] / max(1, self.planes)
        return a_window_s * (self.windows - self.done["window"]) + all_planes_s * planes_left


def _shrunk(member: Member, times: int) -> Triple:
    """The window with edges divided, as far as the network's levels allow."""
    if times == 1:
        return member.window_vox
    multiple = patch_multiple(member.net.spec)
    # Two multiples: a network cannot normalise over a single cell at its deepest level.
    return tuple(
        min(n, max(2 * multiple, n // times // multiple * multiple)) for n in member.window_vox
    )


def _averaged(streams: Sequence[Iterator[Plane]]) -> Iterator[Plane]:
    """Mean probabilities of all streams, plane by plane; background where one has none."""
    if len(streams) == 1:
        yield from streams[0]
        return
    following = [next(stream, None) for stream in streams]
    while any(following):
        number = min(plane[0] for plane in following if plane)
        due = [plane is not None and plane[0] == number for plane in following]
        here = [plane for plane, is_due in zip(following, due, strict=True) if is_due]
        yield _mean_plane(here, len(streams))
        following = [
            next(stream, None) if is_due else plane
            for stream, plane, is_due in zip(streams, following, due, strict=True)
        ]


def _mean_plane(planes: Sequence[Plane], n_views: int) -> Plane:
    number, _, _, first = planes[0]
    row, column = (min(plane[k].start for plane in planes) for k in (1, 2))
    height, width = (max(plane[k].stop for plane in planes) for k in (1, 2))
    total = first.new_zeros(len(first), height - row, width - column)
    unseen = first.new_full(total.shape[1:], n_views)
    for _, rows, columns, probabilities in planes:
        here = (
            slice(rows.start - row, rows.stop - row),
            slice(columns.start - column, columns.stop - column),
        )
        total[:, *here] += probabilities
        unseen[here] -= 1
    total[0] += unseen
    return number, slice(row, height), slice(column, width), total.div_(n_views)


def most_probable(probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """Class index of the largest of (n, rows, columns), uint8, the first of equals; and that.

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


def _whole_cells(image: Tensor, block_size: int) -> Tensor:
    """Repeat the last plane along each axis until the network's cells fit."""
    for axis, size in enumerate(image.shape):
        missing = -size % block_size
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
    bright = pooled > low + AIR_SHARE * (high - low)
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
    view: _View, slabs: Iterator[Tensor], shape: tuple[int, ...], device: str
) -> Iterator[Plane]:
    """Probabilities plane by plane of the image's own voxels."""
    taps = _taps(view, shape, device)
    if taps is None:
        return
    (planes, low_x, weight_x), rows, columns = taps
    depth = SLAB_CELLS * view.member.net.spec.block_size
    kept: dict[int, Tensor] = {}
    numbered = enumerate(slabs)

    def plane_at(index: int) -> Tensor:
        if index not in kept:
            cells = next(slab for number, slab in numbered if number == index // depth)
            slab = view.probabilities(cells.to(device))
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


def _taps(
    view: _View, shape: tuple[int, ...], device: str
) -> list[tuple[slice, Tensor, Tensor]] | None:
    """Per axis: voxels of the image within the box, the voxel of ``seen`` below each, and the
    weight of the one above. None if no voxel is within."""
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
