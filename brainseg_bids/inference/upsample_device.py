# SPDX-License-Identifier: Apache-2.0
"""Upsampling of label maps on a GPU, with results identical to those of `anatomy.upsample`.

This is another engine for the same interpolation with the same weights. All sums are sums of whole
numbers in types that represent them exactly, so the result does not depend on the order of
additions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from brainseg_bids.anatomy import upsample as on_processor
from brainseg_bids.anatomy import upsample_band as band
from brainseg_bids.anatomy.grid import Grid, triple
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.posteriors import TopPosteriors
from brainseg_bids.anatomy.upsample_axis import Axis, sure_radius
from brainseg_bids.anatomy.upsample_engine import Lookup, Progress
from brainseg_bids.inference.upsample_lookup import ENTRIES, NONE, DeviceLookup

SLAB_VOXELS = 1 << 22
"""Target voxels on the device at a time, for parallel grids."""
ROTATED_VOXELS = 1 << 20
"""Target voxels on the device at a time, for rotated grids and posteriors."""


def upsample_on(
    labels: LabelMap,
    grid: Grid | float | tuple[float, float, float],
    *,
    device: str,
    kernel: str = "fitted",
    smoothing_mm: float = 0.0,
    keep_thin: bool | None = None,
    progress: Progress | None = None,
) -> LabelMap:
    """Label map on a finer grid, computed on a device; otherwise as `anatomy.upsample.upsample`.

    The device needs memory for the source, a slab, and buffers of about 0.25 GB. With ``lossless``
    and a factor that is not a whole number, the last step is done by the CPU.

    Parameters
    ----------
    labels, grid, kernel, smoothing_mm, keep_thin, progress
        As in `anatomy.upsample.upsample`.
    device : str
        ``cuda``, ``cuda:1``, or ``cpu``.

    Returns
    -------
    LabelMap
        int16, with the same table; identical to that of the CPU.

    Raises
    ------
    ValueError
        If the device is not available or not supported, or as in `anatomy.upsample.upsample`.
    MemoryError
        If the device's or the main memory is not sufficient.

    Examples
    --------
    >>> from brainseg_bids.anatomy.labels import Label, LabelTable
    >>> table = LabelTable([Label(0, "Background"), Label(7, "Cube")])
    >>> voxels = np.zeros((4, 4, 4), np.int16); voxels[1:3, 1:3, 1:3] = 7
    >>> cube = LabelMap(voxels, Grid((4, 4, 4), np.eye(4)), table)
    >>> finer = upsample_on(cube, 0.5, device="cpu")
    >>> bool((finer.voxels == on_processor.upsample(cube, 0.5).voxels).all())
    True
    """
    with _device(device) as engine:
        return on_processor.upsample(
            labels,
            grid,
            kernel=kernel,
            smoothing_mm=smoothing_mm,
            keep_thin=keep_thin,
            progress=progress,
            engine=engine,
        )


def upsample_posteriors_on(
    posteriors: TopPosteriors,
    grid: Grid | float | tuple[float, float, float],
    *,
    device: str,
    order: str = "cubic",
    progress: Progress | None = None,
) -> LabelMap:
    """Label map on a finer grid from top-k posteriors, computed on a device.

    Parameters, results and errors are those of `anatomy.upsample.upsample_posteriors` and
    `upsample_on`.
    """
    with _device(device) as engine:
        return on_processor.upsample_posteriors(
            posteriors, grid, order=order, progress=progress, engine=engine
        )


def has_cuda() -> bool:
    """Whether PyTorch finds a CUDA or ROCm GPU."""
    return torch.cuda.is_available()


@contextmanager
def _device(name: str) -> Iterator[TorchEngine]:
    """The engine; afterwards the device's memory goes back to whoever else needs it."""
    kind = name.split(":")[0]
    if kind not in ENTRIES:
        raise ValueError(f"labels are upsampled on {' or '.join(ENTRIES)}, not on {name!r}")
    if kind == "cuda" and not has_cuda():
        raise ValueError(
            f"device {name}: PyTorch sees none here. Use device cpu; in a container a GPU needs "
            "--nv (NVIDIA) or --rocm (AMD)."
        )
    try:
        with torch.inference_mode():
            yield TorchEngine(torch.device(name))
    except torch.OutOfMemoryError as error:
        raise MemoryError(f"memory of {name} ran out while upsampling: use device cpu") from error
    finally:
        if kind == "cuda":
            torch.cuda.empty_cache()


@dataclass(frozen=True)
class TorchEngine:
    """Engine for a PyTorch device, see `anatomy.upsample_engine.Engine`.

    Parameters
    ----------
    device : torch.device
    """

    device: torch.device

    def fill(
        self,
        source: np.ndarray,
        axes: tuple[Axis, Axis, Axis],
        hold: int,
        out: np.ndarray,
        progress: Progress | None,
    ) -> None:
        """Compute an upsampled map on parallel axes, slab by slab; see `Engine.fill`."""
        reach, first = axes[0].reach, axes[0].first
        padded = np.pad(source.astype(np.int16, copy=False), reach, mode="edge")
        band_ = _Band.of(torch.from_numpy(padded).to(self.device), axes, hold)
        per_plane = max(1, int(np.diff(first).max()) * out.shape[1] * out.shape[2])
        planes = max(1, SLAB_VOXELS // per_plane)
        for start in _reported(range(0, source.shape[0], planes), progress):
            stop = min(start + planes, source.shape[0])
            if first[stop] > first[start]:
                out[first[start] : first[stop]] = band_.slab(start, stop, out.shape).cpu().numpy()

    def resample(self, lookup: Lookup, out: np.ndarray, progress: Progress | None) -> None:
        """Write the most probable label of each voxel, see `Engine.resample`."""
        on_device = DeviceLookup.of(lookup, self.device)
        planes = max(1, ROTATED_VOXELS // (out.shape[1] * out.shape[2]))
        for start in _reported(range(0, out.shape[0], planes), progress):
            shape = triple((min(planes, out.shape[0] - start), *out.shape[1:]))
            out[start : start + planes] = (
                on_device.labels(start, shape).reshape(shape).cpu().numpy()
            )


def _reported(starts: range, progress: Progress | None) -> Iterator[int]:
    """The starts one by one, each reported to ``progress`` before, and their end."""
    for number, start in enumerate(starts):
        if progress:
            progress(number, len(starts))
        yield start
    if progress:
        progress(len(starts), len(starts))


# Grids with the source's axes ------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _AxisOnDevice:
    """As `upsample_axis.Axis`, by owner.

    Parameters
    ----------
    first, n_owned : (n_source,) int64
    owner : (n_target inside,) int64
    weights : (n_source, taps, most owned) int32
    midway : (n_source, most owned) bool
    alike : bool
        Whether all source voxels have the same weights.
    """

    first: Tensor
    n_owned: Tensor
    owner: Tensor
    weights: Tensor
    midway: Tensor
    alike: bool

    @classmethod
    def of(cls, axis: Axis, device: torch.device) -> _AxisOnDevice:
        weights, midway = axis.by_owner()
        n_owned = np.diff(axis.first)
        first, owned, owner, by_owner, turns = (
            torch.from_numpy(array).to(device)
            for array in (
                axis.first[:-1],
                n_owned,
                np.repeat(np.arange(len(n_owned)), n_owned),
                np.ascontiguousarray(weights.transpose(2, 1, 0)),
                np.ascontiguousarray(midway.T != 0),
            )
        )
        alike = bool((weights == weights[:, :, :1]).all())
        return cls(first, owned, owner, by_owner, turns, alike)


_Owners = Sequence[tuple[_AxisOnDevice, Tensor]]
"""Three axes, and along each of them the source voxels in work, (n,) int64."""


@dataclass(frozen=True, eq=False)
class _Band:
    """A source on a device, and what `upsample_band.fill_planes` needs beside it."""

    padded: Tensor
    axes: tuple[_AxisOnDevice, _AxisOnDevice, _AxisOnDevice]
    reach: int
    radius: int
    hold: int
    total: int
    ties: bool

    @classmethod
    def of(cls, padded: Tensor, axes: tuple[Axis, Axis, Axis], hold: int) -> _Band:
        return cls(
            padded,
            triple(_AxisOnDevice.of(axis, padded.device) for axis in axes),
            axes[0].reach,
            sure_radius(axes),
            hold,
            int(np.prod([axis.one for axis in axes])),
            any(bool(axis.midway.any()) for axis in axes),
        )

    def slab(self, start: int, stop: int, shape: tuple[int, ...]) -> Tensor:
        """Target planes that the source planes own, (planes, Y', Z') int16."""
        x, y, z = self.axes
        taps = 2 * self.reach + 1
        window = self.padded[start : stop + 2 * self.reach]
        views = window.unfold(0, taps, 1).unfold(1, taps, 1).unfold(2, taps, 1)
        own = views[..., self.reach, self.reach, self.reach]
        rows = own.repeat_interleave(x.n_owned[start:stop], 0)
        rows = rows.index_select(1, y.owner).index_select(2, z.owner)
        slab = torch.zeros((len(rows), *shape[1:]), dtype=torch.int16, device=window.device)
        y0, z0 = int(y.first[0]), int(z.first[0])
        slab[:, y0 : y0 + rows.shape[1], z0 : z0 + rows.shape[2]] = rows
        mixed = _mixed(window, self.reach, self.radius)
        mixed &= (x.n_owned[start:stop] > 0)[:, None, None]
        mixed &= (y.n_owned > 0)[:, None] & (z.n_owned > 0)
        for some in mixed.nonzero().split(max(1, ENTRIES[window.device.type] // taps**3)):
            if not len(some):  # split gives one part of nothing, too
                continue
            # Last axis first, so that the sums over the other two are one product.
            blocks = views.permute(0, 1, 2, 5, 3, 4)[some[:, 0], some[:, 1], some[:, 2]]
            self._weigh(blocks, some + some.new_tensor([start, 0, 0]), slab, start)
        return slab

    def _weigh(self, blocks: Tensor, where: Tensor, slab: Tensor, start: int) -> None:
        """Target voxels of some source voxels; blocks (n, taps z, taps x, taps y)."""
        axes = list(zip(self.axes, where.T, strict=True))
        label, lead = self._contest(blocks.flatten(2).contiguous(), axes)
        label, lead = label.flatten(1), lead.flatten(1)
        index, exists = _owned(axes, triple(slab.shape), start)
        if self.hold:
            own = blocks[:, self.reach, self.reach, self.reach]
            held = _thin(blocks) if self.hold == band.THIN else torch.ones_like(own) > 0
            _keep(own, label, lead, exists, held)
        if not all(axis.alike for axis in self.axes):
            index, label = index[exists], label[exists]
        slab.view(-1)[index.flatten()] = label.flatten()

    def _contest(self, blocks: Tensor, axes: _Owners) -> tuple[Tensor, Tensor]:
        """Best label of each owned voxel, and how far it is ahead of the owner's.

        Labels come in ascending order. Scores add up to one: the last one's is what is left.

        Parameters
        ----------
        blocks : (n, taps, taps * taps) int16
        axes : three pairs of `_AxisOnDevice` and (n,) int64

        Returns
        -------
        label, lead : (n, owned x * owned y, owned z) int16, int32
        """
        own = blocks[:, blocks.shape[1] // 2, blocks.shape[2] // 2]
        across, along = _across(axes[0], axes[1], blocks.device), axes[2][0].weights[axes[2][1]]
        odd = _odd(axes) if self.ties else None
        shape = (len(blocks), across.shape[-1], along.shape[2])
        rest = torch.full(shape, self.total, dtype=torch.int32, device=blocks.device)
        best, mine = torch.full_like(rest, -(2**31)), torch.zeros_like(rest)
        label = torch.zeros(shape, dtype=torch.int16, device=blocks.device)
        live, code = torch.arange(len(blocks), device=blocks.device), blocks.amin((1, 2))
        here = blocks
        while len(live):
            following = torch.where(here > code[:, None, None], here, NONE).amin((1, 2))
            more = (following < NONE).nonzero()[:, 0]
            here, score = here[more], rest[live]
            some = live[more]
            mask = here == code[more, None, None]
            score[more] = _score(mask, across if across.ndim == 2 else across[some], along[some])
            rest[live] -= score
            old = best[live]
            better = score > old
            if odd is not None:
                better |= (score == old) & odd[live]
            best[live] = torch.where(better, score, old)
            label[live] = torch.where(better, code[:, None, None], label[live])
            is_own = (code == own[live])[:, None, None]
            mine[live] = torch.where(is_own, score, mine[live])
            live, code = some, following[more]
        return label, best - mine


def _owned(axes: _Owners, shape: tuple[int, int, int], start: int) -> tuple[Tensor, Tensor]:
    """Numbers of owned target voxels in a slab, and which of them there are; (n, owned) each."""
    index = axes[0][1].new_zeros(1)
    exists = torch.ones_like(index, dtype=torch.bool)
    for number, ((axis, at), size) in enumerate(zip(axes, shape, strict=True)):
        view = [len(at), 1, 1, 1]
        view[number + 1] = axis.weights.shape[2]
        nth = torch.arange(view[number + 1], device=at.device)
        first = axis.first[at] - (axis.first[start] if number == 0 else 0)
        index = index * size + (first[:, None] + nth).view(view)
        exists = exists & (nth < axis.n_owned[at][:, None]).view(view)
    return index.flatten(1), exists.flatten(1)


def _mixed(window: Tensor, reach: int, radius: int) -> Tensor:
    """Whether there are several labels within ``radius``, for all but ``reach`` border voxels."""
    low = high = window
    for axis in range(3):
        n = window.shape[axis] - 2 * reach
        parts = [(t, n) for t in range(reach - radius, reach + radius + 1)]
        lows = [low.narrow(axis, *part) for part in parts]
        highs = [high.narrow(axis, *part) for part in parts]
        low, high = lows[0], highs[0]
        for other_low, other_high in zip(lows[1:], highs[1:], strict=True):
            low, high = torch.minimum(low, other_low), torch.maximum(high, other_high)
    return low != high


def _across(
    x: tuple[_AxisOnDevice, Tensor], y: tuple[_AxisOnDevice, Tensor], device: torch.device
) -> Tensor:
    """Products of the weights of two axes, (n or nothing, taps * taps, owned x * owned y).

    PyTorch may shorten float32 factors on a GPU (TF32), never float64 ones; a processor's sums
    stay below 2**24, which float32 holds.
    """
    kind = torch.float64 if device.type == "cuda" else torch.float32
    alike = x[0].alike and y[0].alike
    wx, wy = (axis.weights[at[:1] if alike else at].to(kind) for axis, at in (x, y))
    both = (wx[:, :, None, :, None] * wy[:, None, :, None, :]).flatten(1, 2).flatten(2)
    return both[0] if alike else both


def _score(mask: Tensor, across: Tensor, along: Tensor) -> Tensor:
    """Weighted sums of masks: (n, taps, taps * taps) -> (n, owned x * owned y, owned z) int32."""
    columns = torch.matmul(mask.to(across.dtype), across).to(torch.int32)
    score = columns[:, 0, :, None] * along[:, 0, None, :]
    for t in range(1, along.shape[1]):
        score += columns[:, t, :, None] * along[:, t, None, :]
    return score


def _odd(axes: _Owners) -> Tensor:
    """Whether the highest label wins a tie, (n, owned x * owned y, owned z)."""
    x, y, z = (axis.midway[at] for axis, at in axes)
    return ((x[:, :, None] ^ y[:, None]).flatten(1))[:, :, None] ^ z[:, None]


def _thin(blocks: Tensor) -> Tensor:
    """As `upsample_band._is_thin`, for blocks (n, taps, taps, taps)."""
    c = blocks.shape[1] // 2
    near = slice(c - 1, c + 2)
    same = blocks[:, near, near, near] == blocks[:, c, c, c, None, None, None]
    pairs = same.unfold(1, 2, 1).unfold(2, 2, 1).unfold(3, 2, 1)
    return ~pairs.flatten(4).all(4).flatten(1).any(1)


def _keep(own: Tensor, codes: Tensor, lead: Tensor, exists: Tensor, held: Tensor) -> None:
    """As `upsample_band._hold`, for codes, lead, exists (n, owned), in place."""
    n = codes.shape[1]
    order = torch.arange(n, device=codes.device)
    # Of equal misses the first; the order among equals is not a device's to choose.
    far = lead.to(torch.int64) * n + order
    far[~exists] = torch.iinfo(torch.int64).max
    todo = held.nonzero()[:, 0]
    while len(todo):
        some, there = codes[todo], exists[todo]
        count = ((some[:, :, None] == some[:, None]) & there[:, None]).sum(2)
        is_own = some == own[todo, None]
        n_own = (count * (is_own & there)).amax(1)
        n_other = (count * (~is_own & there)).amax(1)
        lacking = (n_own <= n_other).nonzero()[:, 0]
        todo, is_own = todo[lacking], is_own[lacking]
        nearest = far[todo].masked_fill(is_own, torch.iinfo(torch.int64).max).argmin(1)
        codes[todo, nearest] = own[todo]
