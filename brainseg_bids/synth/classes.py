# SPDX-License-Identifier: Apache-2.0
"""Classes of labels with common intensities, and how these are drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from brainseg_bids.synth.ranges import tuples
from brainseg_bids.synth.recipe import Tissue
from brainseg_bids.synth.streams import Range, Streams, normal_cdf, within

MEAN_LIMITS = (0.0, 300.0)
"""Limits of means, as those of intensities in SynthSeg."""

BACKGROUND = ("Background", "Unknown")
"""What label tables call code 0."""


@dataclass(frozen=True)
class TissueSpace:
    """Distribution of the intensities of one class of labels.

    Parameters
    ----------
    labels : tuple of str
        Names of the labels of this class.
    mean, sd : (float, float)
        Centre and spread of the mean and of the standard deviation. They are drawn from a normal
        distribution, or uniformly from centre - spread to centre + spread, see `ClassSpace.law`.
    components : int
        Number of Gaussians of a mixture.
    component_spread : float
        Largest distance of a component's mean from that of the class.
    """

    labels: tuple[str, ...]
    mean: Range
    sd: Range
    components: int = 1
    component_spread: float = 0.0


@dataclass(frozen=True)
class ClassSpace:
    """Distribution of the intensities of all classes; a part of `space.RecipeSpace`.

    Parameters
    ----------
    tissues : tuple of TissueSpace
    law : {"uniform", "normal"}
        Distribution of means and standard deviations.
    widen : float
        Factor of the spread of means, for the normal distribution.
    shared_frac : float
        Correlation of the means: weight of a random number that all classes have in common.
    sd_frac : (float, float)
        Range of a factor of all standard deviations.
    background_dark_p : float
        Probability that the background is like other classes; otherwise its mean and standard
        deviation are drawn from ``background_noisy_mean`` and ``background_noisy_sd``.
    """

    tissues: tuple[TissueSpace, ...]
    law: str = "uniform"
    widen: float = 1.0
    shared_frac: float = 0.0
    sd_frac: Range = (1.0, 1.0)
    background_dark_p: float = 1.0
    background_noisy_mean: Range = (0.0, 250.0)
    background_noisy_sd: Range = (0.0, 30.0)


@dataclass(frozen=True)
class ClassDraw:
    """Random numbers that determine the tissues of one recipe.

    Parameters
    ----------
    space : ClassSpace
    location, spread : (n_classes,) float
        Standard normal numbers, which determine the mean and the standard deviation of each class
        as quantiles of their distributions.
    sd_frac : float
        Factor of all standard deviations.
    is_dark : bool
        Whether the background is dark.
    offsets : tuple of tuple of float
        Offset of each component of each class from the mean of the class.
    """

    space: ClassSpace
    location: np.ndarray
    spread: np.ndarray
    sd_frac: float
    is_dark: bool
    offsets: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, space: ClassSpace, streams: Streams) -> ClassDraw:
        """Random numbers for one recipe, drawn from its streams."""
        n = len(space.tissues)
        location = streams.normals("means", n)
        if space.law == "normal":
            # One draw is common to all classes: sequences are brighter or darker as a whole,
            # so white matter stays above grey far more often than independent draws allow.
            own = math.sqrt(1 - space.shared_frac**2)
            common = streams.normals("brightness", 1)[0]
            location = space.shared_frac * common + own * location
        return cls(
            space=space,
            location=location,
            spread=streams.normals("sds", n),
            sd_frac=within(space.sd_frac, streams.uniform("sd factor")),
            is_dark=bool(streams.uniform("background") < space.background_dark_p),
            offsets=_draw_offsets(space, streams),
        )

    def tissue(self, index: int, location: float) -> Tissue:
        """Tissue of one class.

        Parameters
        ----------
        index : int
            Index of the class.
        location : float
            Standard normal number that determines the mean, as in `location`.
        """
        space, tissue, spread = self.space, self.space.tissues[index], float(self.spread[index])
        if not self.is_dark and any(name in BACKGROUND for name in tissue.labels):
            mean = within(space.background_noisy_mean, normal_cdf(location))
            sd = within(space.background_noisy_sd, normal_cdf(spread))
        elif space.law == "uniform":
            (centre, half), (sd_centre, sd_half) = tissue.mean, tissue.sd
            mean = within((centre - half, centre + half), normal_cdf(location))
            sd = within((max(0.0, sd_centre - sd_half), sd_centre + sd_half), normal_cdf(spread))
        else:
            mean = tissue.mean[0] + space.widen * tissue.mean[1] * float(location)
            sd = max(0.0, tissue.sd[0] + tissue.sd[1] * spread)
        offsets = self.offsets[index]
        return Tissue(
            tuple(clip_mean(mean + offset) for offset in offsets),
            (sd * self.sd_frac,) * len(offsets),
        )


def _draw_offsets(space: ClassSpace, streams: Streams) -> tuple[tuple[float, ...], ...]:
    """Components' distances from their class's mean, in an order by chance."""
    rng, offsets = streams.generator("components"), []
    for tissue in space.tissues:
        if tissue.components == 1:
            offsets.append((0.0,))
            continue
        width = tissue.component_spread * rng.uniform(0.3, 1.0)
        places = width * rng.permutation(np.linspace(-1, 1, tissue.components))
        offsets.append(tuple(places.tolist()))
    return tuple(offsets)


def clip_mean(mean: float) -> float:
    """Mean, clipped to `MEAN_LIMITS`."""
    return float(min(max(mean, MEAN_LIMITS[0]), MEAN_LIMITS[1]))


def with_own_classes(
    below: tuple[TissueSpace, ...], own: tuple[TissueSpace, ...]
) -> tuple[TissueSpace, ...]:
    """Classes of a base without the labels of a file's own classes, and these behind them."""
    known = {label for tissue in below for label in tissue.labels}
    moved = {label for tissue in own for label in tissue.labels}
    if unknown := sorted(moved - known):
        raise ValueError(f"{unknown[0]} of [[tissues]] is in no class of base: check its name")
    left = ((tissue, tuple(x for x in tissue.labels if x not in moved)) for tissue in below)
    return (*(replace(tissue, labels=labels) for tissue, labels in left if labels), *own)


def read_classes(classes: object) -> tuple[TissueSpace, ...]:
    """Classes of a recipe file; ``ValueError`` if they are none."""
    if not isinstance(classes, list) or not all(isinstance(one, dict) for one in classes):
        raise ValueError("tissues is a list of tables: write [[tissues]]")
    lacking = [key for one in classes for key in ("labels", "mean", "sd") if key not in one]
    if lacking:
        raise ValueError(f"a class of [[tissues]] has no {lacking[0]}")
    return tuple(TissueSpace(**tuples(one)) for one in classes)
