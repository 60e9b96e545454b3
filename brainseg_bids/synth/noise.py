# SPDX-License-Identifier: Apache-2.0
"""Noise of magnitude images: Rician with one channel, non-central chi with several."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from scipy.special import gammaincinv
from torch import Tensor

from brainseg_bids.anatomy.grid import triple
from brainseg_bids.synth.intensity import NORMAL, draw_noise, draw_quantiles
from brainseg_bids.synth.interpolate import slabs
from brainseg_bids.synth.recipe import Noise


def magnitude(image: Tensor, noise: Noise, *, scale: float) -> Tensor:
    """Root of the sum of squares over channels with noise in their real and imaginary parts.

    Of the ``2 channels`` noisy parts only one, along the signal, has to be added to it; the sum
    of the others' squares is chi-square with ``2 channels - 1`` degrees of freedom and drawn as
    one number. So the law is exact whatever the number of channels (Gudbjartsson and Patz, Magn
    Reson Med 34, 1995; Constantinides et al., Magn Reson Med 38, 1997), up to its tables of
    65,536 quantiles, and without signal it is Rayleigh's, or the central chi's.

    Parameters
    ----------
    image : (X, Y, Z) float
        Signal: root of the sum of the channels' squares, without noise.
    scale : float
        Intensity that ``noise.sd_frac`` is a share of.
    """
    if noise.channels < 1:
        raise ValueError(f"noise needs one channel or more, not {noise.channels}")
    sd = noise.sd_frac * scale + noise.sd
    if sd <= 0:
        return image.abs()
    along = draw_noise(triple(image.shape), noise.seed, image.device)
    across = draw_quantiles(
        chi_square(2 * noise.channels - 1), triple(image.shape), noise.seed + 1, image.device
    )
    out = torch.empty_like(image)
    for start, stop in slabs(image.shape[0]):
        part = torch.add(image[start:stop], along(start, stop), alpha=sd)
        part.mul_(part).add_(across(start, stop), alpha=sd**2)
        torch.sqrt(part, out=out[start:stop])
    return out


@lru_cache(maxsize=8)
def chi_square(degrees: int) -> Tensor:
    """65,536 equally probable quantiles of the chi-square law, (65536,) float.

    >>> round(float(chi_square(7).mean()), 2)
    7.0
    """
    if degrees == 1:
        return NORMAL.square()
    below = (np.arange(2**16) + 0.5) / 2**16
    return torch.from_numpy(2 * gammaincinv(degrees / 2, below)).float()
