# SPDX-License-Identifier: Apache-2.0
"""Sliding windows: their positions, and blending of overlapping predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from math import prod

import torch
from torch import Tensor

from brainseg_bids.anatomy.grid import triple

Triple = tuple[int, int, int]


def window_starts(size: int, window: int, *, overlap_frac: float, step: int = 1) -> list[int]:
    """Starts of the smallest number of windows that cover ``size`` with the given overlap.

    Windows are distributed evenly, so the actual overlap may be larger.

    Parameters
    ----------
    size, window : int
        In voxels, ``window <= size``.
    overlap_frac : float
        Smallest overlap of neighbouring windows as a fraction of a window, in [0, 1).
    step : int
        Starts are multiples of this; ``size`` and ``window`` must be as well.

    Examples
    --------
    >>> window_starts(200, 96, overlap_frac=0.25)
    [0, 52, 104]
    >>> window_starts(96, 96, overlap_frac=0.25)
    [0]
    """
    if window >= size:
        return [0]
    stride = max(step, int(window * (1 - overlap_frac)))
    count = -(-(size - window) // stride) + 1
    return [round(k * (size - window) / (count - 1) / step) * step for k in range(count)]


def window_weights(shape: Triple, *, sd_frac: float = 0.25) -> Tensor:
    """Gaussian weights of a window, (x, y, z), at least 1e-3 of the maximum in the centre.

    Voxels near the border of a window have less context, and therefore smaller weights.
    """
    axes = []
    for n in shape:
        at = (torch.arange(n, dtype=torch.float32) - (n - 1) / 2) / (n * sd_frac)
        axes.append(torch.exp(-0.5 * at**2))
    x, y, z = axes
    return (x[:, None, None] * y[:, None] * z).clamp_(min=1e-3)


def count_windows(
    shape: Triple, window: Triple, *, block_size: int, overlap_frac: float = 0.25
) -> int:
    """Number of forward passes of `stitched_rows`.

    >>> count_windows((352, 352, 256), (96, 128, 112), block_size=2)
    60
    """
    padded = triple(max(n, w) for n, w in zip(shape, window, strict=True))
    return prod(len(axis) for axis in _all_starts(padded, window, block_size, overlap_frac))


def _all_starts(
    shape: Triple, window: Triple, block_size: int, overlap_frac: float
) -> tuple[list[int], list[int], list[int]]:
    """`window_starts` of each axis."""
    return triple(
        window_starts(n, w, overlap_frac=overlap_frac, step=block_size)
        for n, w in zip(shape, window, strict=True)
    )


def stitched_rows(
    forward: Callable[[Tensor], Tensor],
    image: Tensor,
    *,
    window: Triple,
    block_size: int,
    rows: int = 4,
    overlap_frac: float = 0.25,
    keep_on: str | torch.device | None = None,
    largest_bytes: int = 2**30,
    progress: Callable[[], None] = lambda: None,
) -> Iterator[Tensor]:
    """Features of a whole image, blended from sliding windows, a few rows of blocks at a time.

    Rows that no later window covers are yielded and freed, so memory depends on the depth of one
    window only. Since the head is linear, weighted means of features are equivalent to those of
    label scores, and memory does not depend on the number of labels.

    Parameters
    ----------
    forward : callable
        Function from a window (1, 1, *window) to features (1, F, *window / block_size).
    image : (X, Y, Z) float
        With edges that are multiples of ``block_size``; axes shorter than the window are padded
        with zeros.
    window : tuple of 3 int
        Multiples of ``block_size``.
    block_size : int
    rows : int
        Number of rows of blocks that are yielded at a time.
    overlap_frac : float
        See `window_starts`.
    keep_on : device, optional
        Device of the sums; default: that of the image.
    largest_bytes : int
        Sums that need more memory are stored in float16.
    progress : callable
        Called after each window.

    Yields
    ------
    (F, rows, Y/block_size, Z/block_size) float32
        In order along the first axis; the last may have fewer rows.
    """
    image, inner = _padded(image, window, block_size)
    starts = _all_starts(triple(image.shape), window, block_size, overlap_frac)
    keep_on = keep_on or image.device
    weights = window_weights(triple(w // block_size for w in window)).to(keep_on)
    depth = min(window[0] + rows * block_size, image.shape[0]) // block_size
    sums = _Sums(triple(n // block_size for n in image.shape), inner, rows, largest_bytes // depth)
    for number, x in enumerate(starts[0]):
        for y, z in product(*starts[1:]):
            here = tuple(slice(s, s + w) for s, w in zip((x, y, z), window, strict=True))
            found = forward(image[here][None, None])[0].to(keep_on)
            sums.add(torch.mul(found, weights), weights, [s // block_size for s in (x, y, z)])
            progress()
        following = [start // block_size for start in starts[0][number + 1 :]]
        yield from sums.finished(min([*following, inner[0].stop]))


def _padded(image: Tensor, window: Triple, block_size: int) -> tuple[Tensor, list[slice]]:
    """Image with zeros around it if it is smaller than a window; where it lies, in blocks."""
    shape = [n // block_size for n in image.shape]
    padded = [max(n, w // block_size) for n, w in zip(shape, window, strict=True)]
    low = [(p - n) // 2 for p, n in zip(padded, shape, strict=True)]
    inner = [slice(start, start + n) for start, n in zip(low, shape, strict=True)]
    if padded == shape:
        return image, inner
    canvas = image.new_zeros([n * block_size for n in padded])
    canvas[tuple(slice(s.start * block_size, s.stop * block_size) for s in inner)] = image
    return canvas, inner


class _Sums:
    """Weighted sums of features and of weights, in slabs that are made and dropped as needed.

    Parameters
    ----------
    shape : tuple of 3 int
        Of the padded image, in blocks.
    inner : sequence of 3 slice
        The image in it.
    rows : int
        Of a slab; the first one begins with the image.
    largest_row_bytes : int
        Rows that need more are stored in float16.
    """

    def __init__(
        self, shape: Triple, inner: Sequence[slice], rows: int, largest_row_bytes: int
    ) -> None:
        self.shape, self.inner, self.rows = shape, inner, rows
        self.largest_row_bytes = largest_row_bytes
        self.slabs: dict[int, tuple[Tensor, Tensor]] = {}
        self.done = inner[0].start

    def add(self, found: Tensor, weights: Tensor, corner: Sequence[int]) -> None:
        """Add weighted features (F, x, y, z) and their weights, from a corner on."""
        n_features, depth, height, width = found.shape
        row_bytes = 4 * n_features * self.shape[1] * self.shape[2]
        dtype = torch.float16 if row_bytes > self.largest_row_bytes else torch.float32
        start, stop = max(corner[0], self.done), min(corner[0] + depth, self.inner[0].stop)
        across = (slice(corner[1], corner[1] + height), slice(corner[2], corner[2] + width))
        while start < stop:
            first = start - (start - self.inner[0].start) % self.rows
            end = min(first + self.rows, stop)
            if first not in self.slabs:
                size = (min(first + self.rows, self.inner[0].stop) - first, *self.shape[1:])
                self.slabs[first] = (
                    found.new_zeros(n_features, *size, dtype=dtype),
                    weights.new_zeros(size),
                )
            total, weight_sum = self.slabs[first]
            here, there = (
                slice(start - corner[0], end - corner[0]),
                slice(start - first, end - first),
            )
            total[:, there, *across] += found[:, here]
            weight_sum[there, *across] += weights[here]
            start = end

    def finished(self, stop: int) -> Iterator[Tensor]:
        """Means of whole slabs before a row, which are then forgotten."""
        while self.done < self.inner[0].stop:
            end = min(self.done + self.rows, self.inner[0].stop)
            if end > stop:
                return
            total, weight_sum = self.slabs.pop(self.done)
            self.done = end
            yield (
                total[:, :, self.inner[1], self.inner[2]].float()
                / weight_sum[:, self.inner[1], self.inner[2]]
            )
