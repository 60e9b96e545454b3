# SPDX-License-Identifier: Apache-2.0
"""``RecipeSpace``: the distributions that recipes are drawn from.

Defaults follow SynthSeg (Billot et al., Medical Image Analysis 86, 2023). Each file in
``data/recipes`` names the source of its numbers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from brainseg_bids.anatomy.grid import triple
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.documents import Text, read_toml
from brainseg_bids.synth.classes import ClassDraw, ClassSpace, read_classes, with_own_classes
from brainseg_bids.synth.effect_spaces import (
    KINDS,
    TISSUE_KINDS,
    AtrophySpace,
    FieldOfViewSpace,
    GibbsSpace,
    MotionSpace,
    RatioSpace,
    SusceptibilitySpace,
    TransmitSpace,
)
from brainseg_bids.synth.ranges import changed, check_ranges, digest_of
from brainseg_bids.synth.recipe import (
    Atrophy,
    Bias,
    Deformation,
    Gibbs,
    Motion,
    Noise,
    Ratio,
    Recipe,
    Resolution,
    Susceptibility,
    Texture,
    Tissue,
    Transmit,
    Triple,
    View,
)
from brainseg_bids.synth.streams import Range, Streams, within

EFFECTS = (
    "flip",
    "deformation",
    "ageing",
    "texture",
    "bias",
    "transmit",
    "ratio",
    "susceptibility",
    "motion",
    "gibbs",
    "resolution",
    "noise",
    "view",
    "gamma",
)
"""Effects that `RecipeSpace.without` can switch off: fields of a `Recipe`."""

DRAWING = 2
"""Version of the drawing of recipes, part of every digest: increased if the same space and seed
give another recipe."""


@dataclass(frozen=True)
class RecipeSpace(ClassSpace):
    """Distributions of the parameters of a recipe.

    A range (low, high) stands for a uniform distribution. A number whose name ends in ``_sd`` is
    the standard deviation of a normal distribution about no change, one that ends in ``_p`` is a
    probability. Lengths are in mm, angles in degrees.

    Each part of a recipe has its own random stream: if one effect is switched off, all other
    numbers of the recipe stay the same.

    Raises
    ------
    ValueError
        If a probability is outside 0 to 1, the low end of a range is above the high end, or a
        label is in two classes.

    Examples
    --------
    >>> space = RecipeSpace.packaged("agnostic7t")
    >>> still = space.without("motion")
    >>> one, other = (s.draw(np.random.default_rng(1)) for s in (space, still))
    >>> other.motion == Motion(), one.bias == other.bias, space.digest == still.digest
    (True, True, False)
    """

    name: str = "by hand"
    flip_p: float = 0.5
    rotation_deg: Range = (-15.0, 15.0)
    scaling: Range = (0.8, 1.2)
    shearing: Range = (-0.012, 0.012)
    center_frac: Range = (0.2, 0.8)
    velocity_sd_mm: Range = (0.0, 4.0)
    velocity_node_spacing_mm: float = 25.0
    bias_log_sd: Range = (0.0, 0.7)
    bias_node_spacing_mm: float = 60.0
    gamma_log_sd: float = 0.5
    resolution_native_p: float = 0.1
    resolution_isotropic_mm: Range = (1.0, 4.0)
    resolution_slice_p: float = 0.5
    resolution_slice_mm: Range = (1.0, 8.0)
    resolution_thickness_frac: Range = (0.6, 1.2)
    noise_sd_frac: Range = (0.0, 0.0)
    noise_channels: tuple[int, int] = (1, 1)
    texture_scale_mm: Range = (6.0, 24.0)
    grain_mm: Range = (3.0, 3.0)
    grain_frac: Range = (0.0, 0.0)
    stripped_p: float = 0.0
    cut_p: float = 0.0
    ageing: AtrophySpace = field(default_factory=AtrophySpace)
    transmit: TransmitSpace = field(default_factory=TransmitSpace)
    ratio: RatioSpace = field(default_factory=RatioSpace)
    susceptibility: SusceptibilitySpace = field(default_factory=SusceptibilitySpace)
    motion: MotionSpace = field(default_factory=MotionSpace)
    gibbs: GibbsSpace = field(default_factory=GibbsSpace)
    field_of_view: FieldOfViewSpace = field(default_factory=FieldOfViewSpace)

    def __post_init__(self) -> None:
        check_ranges(self, KINDS)
        for number, tissue in enumerate(self.tissues, start=1):
            what = f"class {number} of [[tissues]]: "
            check_ranges(tissue, {what + key: kind for key, kind in TISSUE_KINDS.items()}, what)
            if tissue.mean[1] < 0:
                raise ValueError(f"{what}mean is [centre, spread]: a spread is 0 or more")
        labels = Counter(label for tissue in self.tissues for label in tissue.labels)
        if twice := [label for label, count in labels.items() if count > 1]:
            raise ValueError(f"{twice[0]} is in two classes of [[tissues]]: name it in one")

    @classmethod
    def read(cls, path: str | Path, above: tuple[Path, ...] = ()) -> RecipeSpace:
        """Recipe space from a TOML file.

        The key ``base`` names a recipe space of the package, or a file in the same folder, from
        which other values are taken. Labels of the file's own ``[[tissues]]`` leave the classes
        that they have there.

        Parameters
        ----------
        path : path
        above : tuple of Path
            Files whose ``base`` led to this one.

        Raises
        ------
        ValueError
            If the file cannot be used or a key is unknown; the message lists the known keys.
        """
        path = Path(path)
        raw = read_toml(path)
        base, classes = raw.pop("base", ""), raw.pop("tissues", None)
        if not base and not classes:
            raise ValueError(f"{path}: the classes are missing; add [[tissues]] or base")
        if not isinstance(base, str):
            raise ValueError(f"{path}: base {Text().error_of(base)}")
        if path.resolve() in above:
            raise ValueError(f"{path}: base leads back to this file. Name another.")
        space = cls.named(base, path.parent, (*above, path.resolve())) if base else cls(())
        try:
            if classes:
                own = cls(read_classes(classes)).tissues
                space = replace(
                    space, tissues=with_own_classes(space.tissues, own) if base else own
                )
            return replace(space, name=path.stem).changed(raw)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def named(
        cls, name_or_path: str, folder: Path = Path(), above: tuple[Path, ...] = ()
    ) -> RecipeSpace:
        """Recipe space of the package, by its name, or from a TOML file relative to ``folder``."""
        if name_or_path.endswith(".toml"):
            return cls.read(folder / name_or_path, above)
        return cls.packaged(name_or_path)

    @classmethod
    def packaged(cls, name: str) -> RecipeSpace:
        """Recipe space of the package, e.g. ``agnostic`` or ``t1w``.

        Raises
        ------
        ValueError
            If there is no such space; the message lists the known ones.
        """
        folder = resources.files("brainseg_bids") / "data" / "recipes"
        file = folder / f"{name}.toml"
        if not file.is_file():
            known = sorted(
                p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith(".toml")
            )
            raise ValueError(f"no recipe space {name!r}; known: {', '.join(known)}")
        with resources.as_file(file) as path:
            return cls.read(path)

    def changed(self, values: dict[str, Any]) -> RecipeSpace:
        """Recipe space with some values changed.

        Parameters
        ----------
        values : dict
            Values by field, as in a recipe file; a group such as ``transmit`` is a dictionary.

        Raises
        ------
        ValueError
            If a key is unknown; the message lists the known keys.

        Examples
        --------
        >>> space = RecipeSpace.packaged("agnostic")
        >>> space.changed({"gibbs": {"p": 0.5}}).gibbs
        GibbsSpace(p=0.5, kept_frac=(0.6, 1.0))
        """
        return changed(self, values)

    def without(self, *effects: str) -> RecipeSpace:
        """Recipe space with some effects of `EFFECTS` switched off.

        Raises
        ------
        ValueError
            If there is no such effect.
        """
        check_effects(effects)
        space = self
        for effect in effects:
            if effect == "texture":
                single = tuple(replace(t, components=1) for t in space.tissues)
                space = replace(space, tissues=single, grain_frac=(0.0, 0.0))
            else:
                space = space.changed(_OFF[effect])
        return space

    @property
    def digest(self) -> str:
        """SHA-256 of all values and of the method of drawing, without the name.

        Digest, seed and index identify a pair.
        """
        return digest_of(asdict(self) | {"name": "", "drawing": DRAWING})

    def at(self, voxel_size_mm: float) -> RecipeSpace:
        """This space: its standard deviations do not depend on the voxel size, as in SynthSeg."""
        return self

    def covers(self, table: LabelTable) -> None:
        """Raise an error unless all labels of ``table`` have intensities.

        Raises
        ------
        ValueError
            If labels are missing; the message lists them.
        """
        given = {label for tissue in self.tissues for label in tissue.labels}
        missing = [label.name for label in table if label.name not in given]
        if missing:
            raise ValueError(f"recipe space {self.name} lacks intensities of {', '.join(missing)}")

    def draw(self, rng: np.random.Generator) -> Recipe:
        """Random recipe, which determines everything random about a pair."""
        streams = Streams.draw(rng)
        classes = ClassDraw.of(self, streams)
        tissues = {
            label: classes.tissue(index, classes.location[index])
            for index, tissue in enumerate(self.tissues)
            for label in tissue.labels
        }
        return self.draw_rest(streams, tissues)

    def draw_rest(self, streams: Streams, tissues: dict[str, Tissue]) -> Recipe:
        """Random recipe with the given tissues."""
        ratio = self._draw_ratio(streams)
        return Recipe(
            tissues=tissues,
            flip=bool(streams.uniform("flip") < self.flip_p),
            deformation=self._draw_deformation(streams),
            ageing=self._draw_ageing(streams),
            texture=self._draw_texture(streams),
            bias=self._draw_bias(streams),
            transmit=self._draw_transmit(streams, ratio),
            ratio=ratio,
            susceptibility=self._draw_susceptibility(streams),
            motion=self._draw_motion(streams),
            gibbs=self._draw_gibbs(streams),
            resolution=self._draw_resolution(streams),
            # The noise of a ratio is in its inversions.
            noise=Noise() if ratio.noise_frac > 0 else self._draw_noise(streams),
            view=self._draw_view(streams),
            gamma=math.exp(self.gamma_log_sd * streams.normals("gamma", 1)[0]),
            paint_seed=streams.seed("paint"),
            space=self.name,
        )

    def _draw_deformation(self, streams: Streams) -> Deformation:
        u = streams.uniforms("deformation", 13)
        return Deformation(
            rotation_deg=_triple(self.rotation_deg, u[:3]),
            scaling=_triple(self.scaling, u[3:6]),
            shearing=_triple(self.shearing, u[6:9]),
            center_frac=_triple(self.center_frac, u[9:12]),
            velocity_sd_mm=within(self.velocity_sd_mm, u[12]),
            node_spacing_mm=self.velocity_node_spacing_mm,
            seed=streams.seed("deformation"),
        )

    def _draw_ageing(self, streams: Streams) -> Atrophy:
        space = self.ageing
        on, ventricles, thinning, lesion = streams.uniforms("ageing", 4)
        if on >= space.p:
            return Atrophy()
        return Atrophy(
            ventricles_mm=within(space.ventricles_mm, ventricles),
            thinning_frac=within(space.thinning_frac, thinning),
            lesion_frac=within(space.lesion_frac, lesion),
            seed=streams.seed("ageing"),
        )

    def _draw_texture(self, streams: Streams) -> Texture:
        scale, grain, frac = streams.uniforms("texture", 3)
        return Texture(
            scale_mm=within(self.texture_scale_mm, scale),
            seed=streams.seed("texture"),
            grain_mm=within(self.grain_mm, grain),
            grain_frac=within(self.grain_frac, frac),
            grain_seed=streams.seed("grain"),
        )

    def _draw_bias(self, streams: Streams) -> Bias:
        log_sd = within(self.bias_log_sd, streams.uniform("bias"))
        if log_sd == 0:
            return Bias()
        return Bias(log_sd, self.bias_node_spacing_mm, streams.seed("bias"))

    def _draw_transmit(self, streams: Streams, ratio: Ratio) -> Transmit:
        space = self.transmit
        on, which, center, edge, log_sd = streams.uniforms("transmit", 5)
        if on >= space.p:
            return Transmit()
        sequence = space.sequences[int(which * len(space.sequences))]
        return Transmit(
            sequence="mp2rage" if ratio.noise_frac > 0 else sequence,
            center=within(space.center, center),
            edge=within(space.edge, edge),
            log_sd=within(space.log_sd, log_sd),
            node_spacing_mm=space.node_spacing_mm,
            seed=streams.seed("transmit"),
            field_t=space.field_t,
        )

    def _draw_ratio(self, streams: Streams) -> Ratio:
        on, noise = streams.uniforms("ratio", 2)
        if on >= self.ratio.p:
            return Ratio()
        return Ratio(
            noise_frac=within(self.ratio.noise_frac, noise),
            low=self.ratio.low,
            high=self.ratio.high,
            seed=streams.seed("ratio"),
        )

    def _draw_susceptibility(self, streams: Streams) -> Susceptibility:
        on, echo = streams.uniforms("susceptibility", 2)
        if on >= self.susceptibility.p:
            return Susceptibility()
        return Susceptibility(
            within(self.susceptibility.echo_time_ms, echo), self.susceptibility.field_t
        )

    def _draw_motion(self, streams: Streams) -> Motion:
        space, rng = self.motion, streams.generator("motion")
        if rng.random() >= space.p:
            return Motion()
        axis, moves = int(rng.integers(3)), int(rng.integers(space.moves[0], space.moves[1] + 1))
        return Motion(
            times_frac=tuple(sorted(rng.random(moves).tolist())),
            translations_mm=tuple(
                _triple(space.translation_mm, u) for u in rng.random((moves, 3))
            ),
            rotations_deg=tuple(_triple(space.rotation_deg, u) for u in rng.random((moves, 3))),
            axis=axis,
        )

    def _draw_gibbs(self, streams: Streams) -> Gibbs:
        u = streams.uniforms("gibbs", 4)
        return Gibbs(_triple(self.gibbs.kept_frac, u[1:])) if u[0] < self.gibbs.p else Gibbs()

    def _draw_resolution(self, streams: Streams) -> Resolution:
        native, is_slice, axis, size_u, thickness_u = streams.uniforms("resolution", 5)
        if native < self.resolution_native_p:
            return Resolution()
        if is_slice < self.resolution_slice_p:
            size = [1.0, 1.0, 1.0]
            size[int(axis * 3)] = within(self.resolution_slice_mm, size_u)
        else:
            size = [within(self.resolution_isotropic_mm, size_u)] * 3
        # Slices are thinner than their spacing (gaps) or a little thicker (profiles overlap).
        share = within(self.resolution_thickness_frac, thickness_u)
        return Resolution(triple(size), triple(s * share for s in size))

    def _draw_noise(self, streams: Streams) -> Noise:
        sd, count = streams.uniforms("noise", 2)
        sd_frac, (fewest, most) = within(self.noise_sd_frac, sd), self.noise_channels
        if sd_frac == 0:
            return Noise()
        channels = min(most, fewest + int(count * (most - fewest + 1)))
        return Noise(sd_frac, streams.seed("noise"), channels)

    def _draw_view(self, streams: Streams) -> View:
        stripped, csf, cut, forward, down, distance = streams.uniforms("view", 6)
        view = View()
        if stripped < self.stripped_p:
            view = View(kept="brain" if csf < 0.5 else "brain+csf")
        elif cut < self.cut_p:
            normal = (0.0, within((0.3, 1.0), forward), within((-1.0, -0.2), down))
            length = math.hypot(*normal)
            view = View(
                cut_normal=triple(n / length for n in normal),
                cut_mm=within((60.0, 95.0), distance),
            )
        on, axis, low, high = streams.uniforms("field of view", 4)
        if on < self.field_of_view.p:
            lows, highs = list(view.low_mm), list(view.high_mm)
            lows[int(axis * 3)] = -within(self.field_of_view.half_mm, low)
            highs[int(axis * 3)] = within(self.field_of_view.half_mm, high)
            view = replace(view, low_mm=triple(lows), high_mm=triple(highs))
        return view


def check_effects(effects: tuple[str, ...]) -> None:
    """Raise an error for a name that is not in `EFFECTS`.

    Raises
    ------
    ValueError
        If there is no such effect; the message lists the known ones.
    """
    for effect in effects:
        if effect not in EFFECTS:
            raise ValueError(f"no effect {effect!r}; known: {', '.join(EFFECTS)}")


_OFF: dict[str, dict[str, Any]] = {
    "flip": {"flip_p": 0.0},
    "deformation": {
        "rotation_deg": (0.0, 0.0),
        "scaling": (1.0, 1.0),
        "shearing": (0.0, 0.0),
        "velocity_sd_mm": (0.0, 0.0),
    },
    "ageing": {"ageing": {"p": 0.0}},
    "bias": {"bias_log_sd": (0.0, 0.0)},
    "transmit": {"transmit": {"p": 0.0}},
    "ratio": {"ratio": {"p": 0.0}},
    "susceptibility": {"susceptibility": {"p": 0.0}},
    "motion": {"motion": {"p": 0.0}},
    "gibbs": {"gibbs": {"p": 0.0}},
    "resolution": {"resolution_native_p": 1.0},
    "noise": {"noise_sd_frac": (0.0, 0.0)},
    "view": {"stripped_p": 0.0, "cut_p": 0.0, "field_of_view": {"p": 0.0}},
    "gamma": {"gamma_log_sd": 0.0},
}
"""Values at which an effect is off."""


def _triple(bounds: Range, u: Iterable[float]) -> Triple:
    return triple(float(within(bounds, one)) for one in u)
