# SPDX-License-Identifier: Apache-2.0
"""``RecipeSpace``: the ranges that recipes are drawn from; every random number is drawn here.

The ranges follow SynthSeg (Billot et al., Medical Image Analysis 86, 2023) unless a recipe
file says otherwise; each file in ``data/recipes`` names the source of its numbers.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path

import numpy as np

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.synth.recipe import (
    Bias,
    Deformation,
    Noise,
    Recipe,
    Resolution,
    Texture,
    Tissue,
    Triple,
    View,
)


@dataclass(frozen=True)
class TissueSpace:
    """Where the intensities of one class come from.

    ``mean`` is (centre, spread); normal draws for ``law = "normal"``, centre ± spread
    uniformly for ``"uniform"``; ``sd`` likewise. ``components`` Gaussians are drawn,
    ``component_spread`` apart.
    """

    labels: tuple[str, ...]
    mean: tuple[float, float]
    sd: tuple[float, float]
    components: int = 1
    component_spread: float = 0.0


@dataclass(frozen=True)
class RecipeSpace:
    """The ranges that one may draw from. One field per number of a recipe.

    Ranges are (low, high) and uniform unless the name says ``_sd`` (normal about no change)
    or ``_p`` (probability). Lengths in mm, angles in degrees.
    """

    tissues: tuple[TissueSpace, ...]
    name: str = "by hand"
    law: str = "uniform"
    widen: float = 1.0
    shared_frac: float = 0.0
    sd_frac: tuple[float, float] = (1.0, 1.0)
    background_dark_p: float = 1.0
    background_noisy_mean: tuple[float, float] = (0.0, 250.0)
    background_noisy_sd: tuple[float, float] = (0.0, 30.0)
    flip_p: float = 0.5
    rotation_deg: tuple[float, float] = (-15.0, 15.0)
    scaling: tuple[float, float] = (0.8, 1.2)
    shearing: tuple[float, float] = (-0.012, 0.012)
    center_frac: tuple[float, float] = (0.2, 0.8)
    velocity_sd_mm: tuple[float, float] = (0.0, 4.0)
    velocity_node_spacing_mm: float = 25.0
    bias_log_sd: tuple[float, float] = (0.0, 0.7)
    bias_node_spacing_mm: float = 60.0
    gamma_log_sd: float = 0.5
    resolution_native_p: float = 0.1
    resolution_isotropic_mm: tuple[float, float] = (1.0, 4.0)
    resolution_slice_p: float = 0.5
    resolution_slice_mm: tuple[float, float] = (1.0, 8.0)
    resolution_thickness_frac: tuple[float, float] = (0.6, 1.2)
    noise_sd_frac: tuple[float, float] = (0.0, 0.0)
    texture_scale_mm: tuple[float, float] = (6.0, 24.0)
    stripped_p: float = 0.0
    cut_p: float = 0.0

    @classmethod
    def read(cls, path: str | Path) -> RecipeSpace:
        """Read a TOML recipe file.

        Raises
        ------
        ValueError
            If a key is not known; the message lists the known ones.
        """
        path = Path(path)
        with path.open("rb") as file:
            raw = tomllib.load(file)
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(raw) - known)
        if unknown:
            raise ValueError(
                f"{path}: {unknown[0]!r} is no setting of a recipe space; known: {sorted(known)}"
            )
        tissues = tuple(
            TissueSpace(
                labels=tuple(t["labels"]),
                mean=tuple(t["mean"]),
                sd=tuple(t["sd"]),
                components=t.get("components", 1),
                component_spread=t.get("component_spread", 0.0),
            )
            for t in raw.pop("tissues")
        )
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
        return cls(tissues=tissues, **{"name": path.stem} | values)

    @classmethod
    def packaged(cls, name: str) -> RecipeSpace:
        """Recipe space that comes with the package, e.g. ``agnostic`` or ``t1w``."""
        folder = resources.files("brainseg_bids") / "data" / "recipes"
        file = folder / f"{name}.toml"
        if not file.is_file():
            known = sorted(
                p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith(".toml")
            )
            raise ValueError(f"no recipe space {name!r}; known: {', '.join(known)}")
        with resources.as_file(file) as path:
            return cls.read(path)

    def covers(self, table: LabelTable) -> None:
        """Raise ``ValueError`` naming the labels of ``table`` for which there is no intensity."""
        given = {label for tissue in self.tissues for label in tissue.labels}
        missing = [label.name for label in table if label.name not in given]
        if missing:
            raise ValueError(f"recipe space {self.name} says nothing about: {', '.join(missing)}")

    def draw(self, rng: np.random.Generator) -> Recipe:
        """Draw one recipe; all randomness of a pair comes from ``rng`` here."""

        def within(bounds: tuple[float, float]) -> float:
            return float(rng.uniform(*bounds))

        def triple(bounds: tuple[float, float]) -> Triple:
            return tuple(float(x) for x in rng.uniform(*bounds, size=3))

        def seed() -> int:
            return int(rng.integers(2**31))

        return Recipe(
            tissues=self._draw_tissues(rng),
            flip=bool(rng.random() < self.flip_p),
            deformation=Deformation(
                rotation_deg=triple(self.rotation_deg),
                scaling=triple(self.scaling),
                shearing=triple(self.shearing),
                center_frac=triple(self.center_frac),
                velocity_sd_mm=within(self.velocity_sd_mm),
                node_spacing_mm=self.velocity_node_spacing_mm,
                seed=seed(),
            ),
            bias=Bias(within(self.bias_log_sd), self.bias_node_spacing_mm, seed()),
            gamma=float(np.exp(rng.normal(0, self.gamma_log_sd))),
            resolution=self._draw_resolution(rng),
            noise=Noise(within(self.noise_sd_frac), seed()),
            view=self._draw_view(rng),
            texture=Texture(scale_mm=within(self.texture_scale_mm), seed=seed()),
            paint_seed=seed(),
            space=self.name,
        )

    def _draw_tissues(self, rng: np.random.Generator) -> dict[str, Tissue]:
        drawn: dict[str, Tissue] = {}
        common = rng.normal()
        sd_frac = rng.uniform(*self.sd_frac)
        dark = rng.random() < self.background_dark_p
        for tissue in self.tissues:
            centre, spread = tissue.mean
            if "Background" in tissue.labels and not dark:
                centre = rng.uniform(*self.background_noisy_mean)
                mean, sd = centre, rng.uniform(*self.background_noisy_sd)
            elif self.law == "uniform":
                mean = rng.uniform(centre - spread, centre + spread)
                sd = rng.uniform(max(0, tissue.sd[0] - tissue.sd[1]), tissue.sd[0] + tissue.sd[1])
            else:
                # One draw is common to all classes: sequences are brighter or darker as a whole,
                # so white matter stays above grey far more often than independent draws allow.
                z = self.shared_frac * common + np.sqrt(1 - self.shared_frac**2) * rng.normal()
                mean = centre + self.widen * spread * z
                sd = rng.normal(*tissue.sd)
            offsets = (
                np.linspace(-1, 1, tissue.components) if tissue.components > 1 else np.zeros(1)
            )
            means = mean + tissue.component_spread * rng.uniform(0.3, 1.0) * rng.permutation(
                offsets
            )
            sds = np.full(tissue.components, max(0.0, sd) * sd_frac)
            drawn |= dict.fromkeys(
                tissue.labels,
                Tissue(tuple(float(max(0.0, m)) for m in means), tuple(float(s) for s in sds)),
            )
        return drawn

    def _draw_resolution(self, rng: np.random.Generator) -> Resolution:
        if rng.random() < self.resolution_native_p:
            return Resolution()
        if rng.random() < self.resolution_slice_p:
            size = np.ones(3)
            size[rng.integers(3)] = rng.uniform(*self.resolution_slice_mm)
        else:
            size = np.full(3, rng.uniform(*self.resolution_isotropic_mm))
        # Slices are thinner than their spacing (gaps) or a little thicker (profiles overlap).
        thickness = size * rng.uniform(*self.resolution_thickness_frac)
        return Resolution(tuple(float(s) for s in size), tuple(float(t) for t in thickness))

    def _draw_view(self, rng: np.random.Generator) -> View:
        if rng.random() < self.stripped_p:
            return View(kept=str(rng.choice(["brain", "brain+csf"])))
        if rng.random() < self.cut_p:
            normal = np.array([0.0, rng.uniform(0.3, 1.0), rng.uniform(-1.0, -0.2)])
            normal /= np.linalg.norm(normal)
            return View(
                cut_normal=tuple(float(n) for n in normal), cut_mm=float(rng.uniform(60, 95))
            )
        return View()


def read_space(name_or_path: str) -> RecipeSpace:
    """Recipe space by the name of a packaged one, or from a TOML file."""
    if name_or_path.endswith(".toml"):
        return RecipeSpace.read(name_or_path)
    return RecipeSpace.packaged(name_or_path)
