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
    """Magnitude image with Rician or non-central chi noise, (X, Y, Z) float32.

    It is the root of the sum of squares over channels with Gaussian noise in their real and
    imaginary parts. Of these ``2 channels`` parts, the one along the signal is added to it. The
    sum of squares of the others has a chi-square distribution with ``2 channels - 1`` degrees of
    freedom, and is drawn as one number. The distribution is exact for any number of channels,
    except for the discretisation to 65,536 quantiles (Gudbjartsson and Patz, Magn Reson Med 34,
    1995; Constantinides et al., Magn Reson Med 38, 1997). Without signal it is a Rayleigh or
    central chi distribution.

    Parameters
    ----------
    image : (X, Y, Z) float
        Magnitude without noise.
    noise : Noise
    scale : float
        Intensity that ``noise.sd_frac`` is relative to.

    Raises
    ------
    ValueError
        If the number of channels is below 1.
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
    """Equally probable quantiles of the chi-square distribution, (65536,) float.

    >>> round(float(chi_square(7).mean()), 2)
    7.0
    """
    if degrees == 1:
        return NORMAL.square()
    below = (np.arange(2**16) + 0.5) / 2**16
    return torch.from_numpy(2 * gammaincinv(degrees / 2, below)).float()
