# SPDX-License-Identifier: Apache-2.0
"""Where windows go, and how what the network says in them is blended."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

Triple = tuple[int, int, int]


def window_starts(size: int, window: int, *, overlap_frac: float, step: int = 1) -> list[int]:
    """Starts of the fewest windows that cover ``size`` with at least the given overlap.

    They are spread evenly, so that the overlap that is left over is shared by all.

    Parameters
    ----------
    size, window : int
        In voxels, ``window <= size``.
    overlap_frac : float
        Of a window, shared with its neighbour, in [0, 1).
    step : int
        Starts are multiples of it; ``size`` and ``window`` have to be, too.

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
    """Gaussian over a window, (x, y, z), largest in its middle, never below 1e-3 of that.

    Voxels near a window's border are seen with less context, so they count less.
    """
    axes = []
    for n in shape:
        at = (torch.arange(n, dtype=torch.float32) - (n - 1) / 2) / (n * sd_frac)
        axes.append(torch.exp(-0.5 * at**2))
    x, y, z = axes
    return (x[:, None, None] * y[:, None] * z).clamp_(min=1e-3)


def stitch(
    look: Callable[[Tensor], Tensor],
    image: Tensor,
    *,
    window: Triple,
    stem: int,
    overlap_frac: float = 0.25,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """Features of a whole image from a network that sees one window at a time.

    Weighted means of features equal weighted means of label scores, because the head that
    turns one into the other is linear. So the memory for stitching is that of the features
    and does not grow with the number of labels.

    Parameters
    ----------
    look : callable
        (1, 1, *window) to features (1, F, *window / stem).
    image : (X, Y, Z) float
        Each edge a multiple of ``stem``; axes shorter than the window are padded with zeros.
    window : tuple of 3 int
        Multiples of ``stem``.
    progress : callable
        Told windows done and windows in all.

    Returns
    -------
    (F, X/stem, Y/stem, Z/stem) float32
    """
    shape = tuple(image.shape)
    padded = tuple(max(n, w) for n, w in zip(shape, window, strict=True))
    if padded != shape:
        pads = [(p - n) // 2 // stem * stem for p, n in zip(padded, shape, strict=True)]
        canvas = image.new_zeros(padded)
        inner = tuple(slice(low, low + n) for low, n in zip(pads, shape, strict=True))
        canvas[inner] = image
        image = canvas
    starts = [
        window_starts(n, w, overlap_frac=overlap_frac, step=stem)
        for n, w in zip(padded, window, strict=True)
    ]
    weights = window_weights(tuple(w // stem for w in window)).to(image.device)
    total, weight_sum = None, image.new_zeros([n // stem for n in padded])
    places = list(product(*starts))
    for done, place in enumerate(places):
        here = tuple(slice(s, s + w) for s, w in zip(place, window, strict=True))
        cells = tuple(
            slice(s // stem, (s + w) // stem) for s, w in zip(place, window, strict=True)
        )
        found = look(image[here][None, None])[0].float()
        if total is None:
            total = image.new_zeros([len(found), *weight_sum.shape])
        total[(slice(None), *cells)] += found * weights
        weight_sum[cells] += weights
        progress(done + 1, len(places))
    total /= weight_sum
    if padded != shape:
        cells = tuple(
            slice(low // stem, (low + n) // stem) for low, n in zip(pads, shape, strict=True)
        )
        total = total[(slice(None), *cells)]
    return total
