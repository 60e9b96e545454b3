# SPDX-License-Identifier: Apache-2.0
"""``PriorSpace``: recipe space between an agnostic space and the prior of a contrast.

Every number of a recipe is a quantile of its distribution. With prior weight w it is ``(1 - w)``
times the quantile of the agnostic distribution plus ``w`` times the quantile of the prior at the
same probability (displacement interpolation: McCann, Advances in Mathematics 128, 1997). The
distribution is the agnostic one at weight 0 and that of the prior at 1. In between, it is an
intermediate distribution, not a mixture of both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from brainseg_bids.anatomy.grid import triple
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.contrast.prior import ContrastPrior
from brainseg_bids.documents import Number, Text, check, read_toml
from brainseg_bids.synth.classes import ClassDraw
from brainseg_bids.synth.prior_tissues import (
    UNITS,
    MeasuredNoise,
    between_tissues,
    fitted_tissue,
    quantile,
    ratio_slope,
    variance_lost,
)
from brainseg_bids.synth.ranges import digest_of
from brainseg_bids.synth.recipe import (
    Bias,
    Noise,
    Ratio,
    Recipe,
    Resolution,
    Texture,
    Tissue,
    View,
)
from brainseg_bids.synth.space import RecipeSpace, check_effects
from brainseg_bids.synth.streams import Streams

WHITE_MATTER = "Left-Cerebral-White-Matter"
"""Label for which the noise of a ratio is defined."""

USUAL_UNI = 0.2
"""Default of the ratio of white matter in a prior; in data/recipes/mp2rage7t.toml it is 0.14."""

WHITE_SIGNAL = 1.1
"""Signal of white matter in the second inversion image relative to grey matter, see
`ratio.second_inversion`."""


@dataclass(frozen=True, eq=False)
class PriorSpace:
    """Recipe space between an agnostic space and a contrast prior.

    Parameters that a prior does not have come from the agnostic space for every weight: geometry,
    field of view, motion, Gibbs ringing, susceptibility, and the size of patches of components.
    The effect of the transmit field decreases with the weight, since it is part of the measured
    bias field. The probability of masked air is the weight times that of the prior.

    Parameters
    ----------
    agnostic : RecipeSpace
    prior : ContrastPrior
    prior_weight : float
        0: the agnostic space; 1: the prior.
    name : str
        Default: ``PRIOR-kappaK``.
    off : tuple of str
        Effects of `space.EFFECTS` that are switched off; see `without`.
    voxel_size_mm : float
        Voxel size of the pairs, see `at`.

    Raises
    ------
    ValueError
        If the weight is outside 0 to 1, the correlation of the prior is not a matrix of its
        labels, ``SkullStripped`` of its metadata is invalid, or the agnostic space lacks one of
        the prior's labels.
    """

    agnostic: RecipeSpace
    prior: ContrastPrior
    prior_weight: float
    name: str = ""
    off: tuple[str, ...] = ()
    voxel_size_mm: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.prior_weight <= 1:
            raise ValueError(
                f"kappa is {self.prior_weight!r}: choose a number from 0 (any contrast) to 1 "
                "(measured)"
            )
        if not self.name:
            object.__setattr__(self, "name", f"{self.prior.name}-kappa{self.prior_weight:g}")
        n, correlation = len(self.prior.labels), np.asarray(self.prior.correlation)
        if correlation.shape != (n, n) or not np.isfinite(correlation).all():
            raise ValueError(
                f"prior {self.prior.name}: the correlation is not a finite {n} x {n} matrix"
            )
        stripped_share(self.prior)
        missing = sorted(set(self.prior.labels) - set(self._class_of))
        if missing:
            raise ValueError(
                f"recipe space {self.agnostic.name} lacks intensities of {', '.join(missing)}"
            )

    @classmethod
    def read(cls, path: str | Path) -> PriorSpace:
        """Recipe space from a TOML file with the keys ``prior``, ``kappa`` and ``agnostic``.

        Paths are relative to the file. Other keys change the agnostic space.

        Raises
        ------
        ValueError
            If the file or the prior cannot be used; the message names the file.
        """
        path = Path(path)
        raw = read_toml(path)
        check(raw, {"prior": Text(), "agnostic": Text(), "name": Text()}, str(path))
        prior_path = path.parent / raw.pop("prior", "")
        kappa, name = raw.pop("kappa", 1.0), raw.pop("name", path.stem)
        agnostic = raw.pop("agnostic", "agnostic")
        if not prior_path.is_file():
            raise ValueError(f"{path}: the prior {prior_path} is not there")
        if why := Number(0, 1).error_of(kappa):
            raise ValueError(f"{path}: kappa {why}")
        space = RecipeSpace.named(agnostic, path.parent)
        prior = ContrastPrior.read(prior_path)
        try:
            return cls(space.changed(raw), prior, float(kappa), name)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @property
    def digest(self) -> str:
        """SHA-256 of the agnostic space, the prior and its weight, without the name."""
        return digest_of(
            {
                "agnostic": self.agnostic.digest,
                "prior": self.prior.digest,
                "kappa": self.prior_weight,
                "off": sorted(set(self.off)),
                "voxel_size_mm": self.voxel_size_mm,
            }
        )

    def covers(self, table: LabelTable) -> None:
        """Raise an error unless the prior has exactly the labels of ``table``.

        Raises
        ------
        ValueError
            If labels or codes differ.
        """
        self.prior.check_table(table)
        self.agnostic.covers(table)

    def without(self, *effects: str) -> PriorSpace:
        """Recipe space with some effects of `space.EFFECTS` switched off.

        Without ``noise``, the standard deviations of labels include the measured noise.
        """
        check_effects(effects)
        return replace(self, agnostic=self.agnostic.without(*effects), off=(*self.off, *effects))

    def at(self, voxel_size_mm: float) -> PriorSpace:
        """Recipe space for pairs of another voxel size.

        The standard deviations of a prior are those of acquired images, but a pair is blurred to
        the acquired resolution after intensities are drawn. Therefore larger standard deviations
        are drawn, the more so, the smaller the voxels of the pair.
        """
        return replace(self, voxel_size_mm=float(voxel_size_mm))

    def draw(self, rng: np.random.Generator) -> Recipe:
        """Random recipe, which determines everything random about a pair."""
        streams = Streams.draw(rng)
        # Numbers of the agnostic law; those of the prior are drawn from the same streams.
        recipe = self._base.draw_rest(streams, {})
        noise, ratio, measured = self._draw_noise(streams, recipe)
        sharpness = self._draw_sharpness(streams)
        grain_mm, grain_frac = self._correlated_texture
        lost = variance_lost(sharpness, self.voxel_size_mm)
        gain = (1 - grain_frac) * lost + grain_frac
        return replace(
            recipe,
            tissues=self._draw_tissues(streams, measured, math.sqrt(gain)),
            texture=self._draw_texture(recipe.texture, grain_mm, grain_frac / gain),
            bias=self._draw_bias(streams, recipe.bias),
            ratio=ratio,
            resolution=self._between_resolutions(recipe.resolution, sharpness),
            noise=noise,
            view=self._draw_mask(streams, recipe.view, ratio),
            # A prior is of images as they are: its gamma is 1.
            gamma=recipe.gamma ** (1 - self.prior_weight),
            space=self.name,
        )

    def _between(self, agnostic: float, fitted: float) -> float:
        return float((1 - self.prior_weight) * agnostic + self.prior_weight * fitted)

    @cached_property
    def _class_of(self) -> dict[str, int]:
        """Rank of the agnostic class of each label."""
        classes = enumerate(self.agnostic.tissues)
        return {label: index for index, tissue in classes for label in tissue.labels}

    @cached_property
    def _ratio_share(self) -> float:
        """Of the prior's images."""
        kinds = self.prior.noise.kinds
        if "ratio" in self.off:
            return 0.0
        return kinds.get("ratio", 0.0) / max(sum(kinds.values()), 1e-12)

    @cached_property
    def _base(self) -> RecipeSpace:
        """The agnostic space with the probabilities of its choices moved towards the prior's."""
        space = self.agnostic
        stripped = stripped_share(self.prior)
        if stripped is None or "view" in self.off:
            stripped = space.stripped_p
        return replace(
            space,
            background_dark_p=self._between(space.background_dark_p, 1.0),
            stripped_p=self._between(space.stripped_p, stripped),
            transmit=replace(space.transmit, p=self._between(space.transmit.p, 0.0)),
            ratio=replace(space.ratio, p=self._between(space.ratio.p, self._ratio_share)),
        )

    @cached_property
    def _root(self) -> np.ndarray:
        """Matrix that gives independent normals the prior's correlation: (n, n).

        Cholesky's, because eigenvectors differ from one machine to the next.
        """
        symmetric = np.asarray(self.prior.correlation, dtype=float)
        symmetric = (symmetric + symmetric.T) / 2
        # Rounding and pooling leave eigenvalues at 0 or a little below it.
        lift = max(0.0, 1e-8 - float(np.linalg.eigvalsh(symmetric)[0]))
        root = np.linalg.cholesky(symmetric + lift * np.eye(len(symmetric)))
        return root / np.linalg.norm(root, axis=1, keepdims=True)

    @cached_property
    def _correlated_texture(self) -> tuple[float, float]:
        """Grain (mm) of the prior's usual label, and its share of the variance less noise."""
        known = [label for label in self.prior.labels.values() if label.source == "measured"]
        if not known or "texture" in self.off:
            return 3.0, 0.0
        shares = []
        for label in known:
            painted_alone = "noise" in self.off or set(self.prior.noise.kinds) == {"none"}
            own = label.sd.median
            if label.tissue_sd is not None and not painted_alone:
                own = label.tissue_sd.median
            share = label.grain_frac * (label.sd.median / own) ** 2 if own > 0 else 0.0
            shares.append(min(1.0, share))
        return float(np.median([label.grain_mm for label in known])), float(np.median(shares))

    def _draw_noise(self, streams: Streams, recipe: Recipe) -> tuple[Noise, Ratio, MeasuredNoise]:
        """Noise, ratio, and the noise that is to be taken out of the prior's spreads.

        An image of a kind that the prior has never seen takes the agnostic noise.
        """
        prior, share = self.prior.noise, self._ratio_share
        if recipe.ratio.noise_frac > 0:
            if share == 0:
                return recipe.noise, recipe.ratio, MeasuredNoise()
            uni = USUAL_UNI
            if WHITE_MATTER in self.prior.labels:
                uni = self.prior[WHITE_MATTER].mean / UNITS - 0.5
            sigma = quantile(prior.sigma, streams.uniforms("ratio", 2)[1])
            fitted = sigma * WHITE_SIGNAL / max(ratio_slope(uni), 0.1)
            ratio = replace(
                recipe.ratio,
                noise_frac=self._between(recipe.ratio.noise_frac, fitted),
                low=self._between(recipe.ratio.low, 0.0),
                high=self._between(recipe.ratio.high, UNITS),
            )
            return recipe.noise, ratio, MeasuredNoise(inversions_frac=fitted)
        kinds = {kind: p for kind, p in prior.kinds.items() if kind != "ratio" and p > 0}
        if not kinds or "noise" in self.off:
            return recipe.noise, recipe.ratio, MeasuredNoise()
        level, _, kind_u, channels_u = streams.uniforms("noise", 4)
        kind = _choose(kinds, kind_u)
        # Where the background holds no noise, what the labels hold is painted as their spread.
        sigma = 0.0 if kind == "none" else quantile(prior.sigma, level)
        fitted_channels = max(1, round(prior.channels)) if kind == "chi" else 1
        channels = fitted_channels if channels_u < self.prior_weight else recipe.noise.channels
        sd_frac, sd = (1 - self.prior_weight) * recipe.noise.sd_frac, self.prior_weight * sigma
        noise = Noise(sd_frac, streams.seed("noise"), channels, sd) if sd_frac + sd else Noise()
        return noise, recipe.ratio, MeasuredNoise(sigma, fitted_channels)

    def _draw_mask(self, streams: Streams, view: View, ratio: Ratio) -> View:
        """View with constant air as often as the prior's images have it."""
        noise = self.prior.noise
        if "view" in self.off or streams.uniform("masked air") >= self.prior_weight * noise.masked:
            return view
        # A magnitude without signal is zero.
        level = 0.0
        if ratio.noise_frac > 0:
            level = ratio.low + noise.masked_level / UNITS * (ratio.high - ratio.low)
        return replace(view, air_masked=True, air_level=level)

    def _draw_tissues(
        self, streams: Streams, measured: MeasuredNoise, gain: float
    ) -> dict[str, Tissue]:
        classes = ClassDraw.of(self._base, streams)
        common = self._root @ streams.normals("fitted means", len(self.prior.labels))
        fitted_z = dict(zip(self.prior.labels, common, strict=True))
        order = streams.generator("fitted components")
        own, shared = math.sqrt(1 - self.prior_weight), math.sqrt(self.prior_weight)
        tissues = {}
        for label, index in self._class_of.items():
            if label not in self.prior.labels:
                continue
            # The sum's correlation is (1 - w) the classes' plus w the prior's.
            z = own * classes.location[index] + shared * fitted_z[label]
            prior = self.prior[label]
            n = 1 if "texture" in self.off else len(prior.components)
            fitted = fitted_tissue(
                prior,
                location=float(z),
                spread=float(classes.spread[index]),
                noise=measured,
                gain=gain,
                order=order.permutation(n).tolist() if n > 1 else (0,),
            )
            tissues[label] = between_tissues(classes.tissue(index, z), fitted, self.prior_weight)
        return tissues

    def _draw_texture(self, texture: Texture, grain_mm: float, grain_frac: float) -> Texture:
        if "texture" in self.off or self.prior_weight == 0:
            return texture
        # The texture's size means nothing where there is none.
        agnostic_mm = texture.grain_mm if texture.grain_frac > 0 else grain_mm
        return replace(
            texture,
            grain_mm=self._between(agnostic_mm, grain_mm),
            grain_frac=self._between(texture.grain_frac, grain_frac),
        )

    def _draw_bias(self, streams: Streams, bias: Bias) -> Bias:
        if "bias" in self.off or self.prior_weight == 0:
            return bias
        strength, smoothness = streams.uniforms("bias", 2)
        log_sd = self._between(bias.log_sd, quantile(self.prior.bias_log_sd, strength))
        if log_sd == 0:
            return Bias()
        fitted_mm = quantile(self.prior.bias_smoothness_mm, smoothness)
        return Bias(
            log_sd,
            self._between(self.agnostic.bias_node_spacing_mm, fitted_mm),
            streams.seed("bias"),
        )

    def _draw_sharpness(self, streams: Streams) -> Resolution:
        """Of the prior."""
        if "resolution" in self.off:
            return Resolution()
        level = streams.uniforms("resolution", 5)[3]
        fwhm = triple(quantile(axis, level) for axis in self.prior.fwhm_mm)
        return Resolution(triple(self.prior.voxel_size_mm), fwhm)

    def _between_resolutions(self, agnostic: Resolution, fitted: Resolution) -> Resolution:
        if "resolution" in self.off:
            return agnostic
        return Resolution(
            triple(map(self._between, agnostic.voxel_size_mm, fitted.voxel_size_mm)),
            triple(map(self._between, agnostic.thickness_mm, fitted.thickness_mm)),
        )


def stripped_share(prior: ContrastPrior) -> float | None:
    """Fraction of a prior's images that are skull-stripped; None if unknown.

    Raises
    ------
    ValueError
        If ``SkullStripped`` of the prior's metadata is neither boolean nor from 0 to 1.
    """
    stripped = (prior.metadata or {}).get("SkullStripped")
    if stripped is None:
        return None
    if not isinstance(stripped, bool | int | float) or not 0 <= stripped <= 1:
        raise ValueError(
            f"prior {prior.name}: SkullStripped of its metadata is {stripped!r}; it has to be "
            "true, false, or the share of images that are stripped, from 0 to 1"
        )
    return float(stripped)


def _choose(shares: dict[str, float], u: float) -> str:
    """Name whose stretch of 0..1 holds ``u``."""
    names = sorted(shares)
    ends = np.cumsum([shares[name] for name in names])
    return names[min(int(np.searchsorted(ends, u * ends[-1], side="right")), len(names) - 1)]
