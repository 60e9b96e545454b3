# SPDX-License-Identifier: Apache-2.0
"""``ContrastPrior``: what images of one contrast look like, pooled over subjects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from brainseg_bids.contrast.measured import Component


@dataclass(frozen=True)
class Spread:
    """A positive quantity over images: its logarithm is normal.

    Parameters
    ----------
    median : float
    log_sd : float
        Standard deviation of the natural logarithm.
    """

    median: float
    log_sd: float


@dataclass(frozen=True)
class LabelPrior:
    """One label over images, in the prior's units.

    Parameters
    ----------
    mean, mean_sd : float
        Location over images; how locations of different labels go together is in the prior's
        ``correlation``.
    sd : Spread
        Of the scale within one image.
    components : tuple of Component
        The usual mixture: weights, means as offsets from ``mean`` and sds, both as shares of the
        label's scale. One of weight 1, mean 0 and sd 1 where a Gaussian does.
    grain_mm, grain_frac : float
        As of `LabelStatistics`.
    images : int
        That it was measured in.
    source : str
        ``measured`` or ``borrowed from NAME``.
    """

    mean: float
    mean_sd: float
    sd: Spread
    components: tuple[Component, ...]
    grain_mm: float = 3.0
    grain_frac: float = 0.0
    images: int = 0
    source: str = "measured"


@dataclass(frozen=True)
class NoisePrior:
    """Noise over images: ``sigma`` in the prior's units (``ratio``: of UNI, -0.5..0.5).

    ``kinds`` maps each kind of `NoiseLaw` to its share of the images.
    """

    kinds: dict[str, float]
    sigma: Spread
    channels: float = 1.0


@dataclass(frozen=True, eq=False)
class ContrastPrior:
    """What images of one contrast look like.

    Intensities are in units in which 0 is the image's zero (``ratio`` images: UNI of -0.5) and
    255 the 99.5th percentile of a head's voxels in a usual image (``ratio``: UNI of +0.5).

    Parameters
    ----------
    name : str
        What the contrast is called, such as ``T1w``.
    table : str
        Label table that the names belong to.
    labels : dict of str to LabelPrior
        Every label of the table, borrowed where no image has it.
    correlation : (n, n) float
        Of the labels' locations over images, in the order of ``labels``.
    noise : NoisePrior
    bias_log_sd, bias_smoothness_mm : Spread
    fwhm_mm : tuple of 3 Spread
    voxel_size_mm : tuple of 3 float
        Median over images, RAS axes.
    head_low : float
        Median 0.5th percentile of the head.
    n_images, n_subjects : int
    images : tuple of dict
        Where it comes from: ``image`` (BIDS URI), ``sha256``, ``subject``.
    metadata : dict
        What BIDS metadata say the contrast is: suffix, field strength, sequence, ...
    """

    name: str
    table: str
    labels: dict[str, LabelPrior]
    correlation: np.ndarray
    noise: NoisePrior
    bias_log_sd: Spread
    bias_smoothness_mm: Spread
    fwhm_mm: tuple[Spread, Spread, Spread]
    voxel_size_mm: tuple[float, float, float]
    head_low: float
    n_images: int
    n_subjects: int
    images: tuple[dict, ...] = ()
    metadata: dict | None = None

    def __getitem__(self, name: str) -> LabelPrior:
        return self.labels[name]
