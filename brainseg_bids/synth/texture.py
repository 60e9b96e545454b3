# SPDX-License-Identifier: Apache-2.0
"""Texture within labels: patches of components, and correlated texture.

Both are random fields of cubic B-splines with a standard deviation of 1 in every voxel.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from brainseg_bids.synth.intensity import LEVELS, LEVELS_PER_SD, draw_noise
from brainseg_bids.synth.interpolate import smooth_field
from brainseg_bids.synth.recipe import Texture
from brainseg_bids.synth.view import Crop

BySlab = Callable[[int, int], Tensor]


def patches(texture: Texture, crop: Crop) -> BySlab:
    """Function (start, stop) that returns the levels of the texture for a slab.

    Returns
    -------
    callable (start, stop) -> (stop - start, Y, Z) int32
        Levels below `LEVELS`; `intensity.tissue_lookup` has the component of each label and level.
    """
    field = smooth_field(
        crop.shape,
        voxel_size_mm=crop.voxel_size_mm,
        node_spacing_mm=texture.scale_mm,
        seed=texture.seed,
        device=crop.device,
        spread=LEVELS_PER_SD,
    )

    def level(start: int, stop: int) -> Tensor:
        return field(start, stop).add_(LEVELS / 2).clamp_(0, LEVELS - 1).int()

    return level


def correlated_noise(texture: Texture, crop: Crop, seed: int) -> BySlab:
    """Function (start, stop) that returns standard normal noise, a part of it smooth, for a slab.

    ``sqrt(1 - f) white + sqrt(f) smooth`` with ``f = texture.grain_frac``: the standard deviation
    is always 1, and the correlation of two voxels is ``f`` times that of the smooth part.

    Parameters
    ----------
    texture : Texture
    crop : Crop
    seed : int
        Seed of the white part.

    Raises
    ------
    ValueError
        If ``texture.grain_frac`` is outside 0 to 1.
    """
    if not 0 <= texture.grain_frac <= 1:
        raise ValueError(
            f"the share of correlated texture has to lie in 0..1, not be {texture.grain_frac:g}"
        )
    white = draw_noise(crop.shape, seed, crop.device)
    if texture.grain_frac == 0:
        return white
    smooth = smooth_field(
        crop.shape,
        voxel_size_mm=crop.voxel_size_mm,
        # Nodes closer than voxels would only be another white noise, at a price.
        node_spacing_mm=max(texture.grain_mm, crop.voxel_size_mm),
        seed=texture.grain_seed,
        device=crop.device,
        spread=texture.grain_frac**0.5,
    )
    rest = (1 - texture.grain_frac) ** 0.5
    return lambda start, stop: smooth(start, stop).add_(white(start, stop), alpha=rest)
