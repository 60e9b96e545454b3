# SPDX-License-Identifier: Apache-2.0
"""``Recipe``: all parameters of one synthetic pair, drawn by `RecipeSpace.draw`."""

from __future__ import annotations

import json
from collections.abc import Sized
from dataclasses import asdict, dataclass, fields
from typing import Any

from brainseg_bids.documents import Flag, Items, Kind, Number, Object, Text, parse_json

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Tissue:
    """Intensities of one label: one or several Gaussians, in patches given by a random field.

    Parameters
    ----------
    mean, sd : tuple of float
        Mean and standard deviation of each component, in the units of the recipe space (255 is
        bright).
    weight : tuple of float
        Fraction of the label's voxels with each component; empty: equal fractions.
    """

    mean: tuple[float, ...]
    sd: tuple[float, ...]
    weight: tuple[float, ...] = ()


@dataclass(frozen=True)
class Texture:
    """Texture within labels: patches of components, and correlated texture.

    Parameters
    ----------
    scale_mm : float
        Node spacing of the random field that selects the component of each voxel.
    seed : int
        Seed of this field.
    grain_mm : float
        Node spacing of the random field of the correlated texture.
    grain_frac : float
        Fraction of a component's variance that is correlated texture instead of white noise.
    grain_seed : int
        Seed of the correlated texture.
    """

    scale_mm: float = 12.0
    seed: int = 0
    grain_mm: float = 3.0
    grain_frac: float = 0.0
    grain_seed: int = 0


@dataclass(frozen=True)
class Deformation:
    """Spatial deformation: an affine transform about the centre of the crop and a smooth warp.

    Parameters
    ----------
    rotation_deg, scaling, shearing : (3,) float
        For each axis.
    center_frac : (3,) float
        Position of the crop within the range in which it can lie, from 0 to 1 for each axis.
    velocity_sd_mm, node_spacing_mm : float
        Standard deviation and node spacing of the velocity field of the warp.
    seed : int
    """

    rotation_deg: Triple = (0.0, 0.0, 0.0)
    scaling: Triple = (1.0, 1.0, 1.0)
    shearing: Triple = (0.0, 0.0, 0.0)
    center_frac: Triple = (0.5, 0.5, 0.5)
    velocity_sd_mm: float = 0.0
    node_spacing_mm: float = 25.0
    seed: int = 0


@dataclass(frozen=True)
class Atrophy:
    """Simulated atrophy, see `synth.atrophy`; ``ageing`` in recipe files.

    Parameters
    ----------
    ventricles_mm : float
        Outward shift of the walls of the ventricles; negative: inward.
    thinning_frac : float
        Fraction of the surface of the cortex whose outermost voxels become fluid; negative: fluid
        next to it becomes cortex.
    lesion_frac : float
        Fraction of the white matter that becomes lesion.
    seed : int
    """

    ventricles_mm: float = 0.0
    thinning_frac: float = 0.0
    lesion_frac: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Bias:
    """Receive field B1-: exp of a smooth random field with standard deviation ``log_sd``."""

    log_sd: float = 0.0
    node_spacing_mm: float = 60.0
    seed: int = 0


@dataclass(frozen=True)
class Transmit:
    """Transmit field B1+: actual flip angle relative to the nominal one.

    Parameters
    ----------
    sequence : {"none", "mprage", "mp2rage"}
        Sequence, which determines the effect on the image; ``none``: no effect.
    center, edge : float
        Relative field in the centre of the brain, and at the temporal lobes and cerebellum.
    log_sd, node_spacing_mm, seed
        An additional smooth random field, as in `Bias`.
    field_t : float
        Field strength in tesla, for relaxation times.
    """

    sequence: str = "none"
    center: float = 1.0
    edge: float = 1.0
    log_sd: float = 0.0
    node_spacing_mm: float = 80.0
    seed: int = 0
    field_t: float = 7.0


@dataclass(frozen=True)
class Ratio:
    """MP2RAGE's UNI image: the ratio of two noisy inversion images.

    Parameters
    ----------
    noise_frac : float
        Standard deviation of the noise in the real and imaginary parts, as a fraction of the
        signal of grey matter in the second inversion image; 0: the image is not a ratio.
    low, high : float
        Intensities that stand for ratios of -0.5 and +0.5.
    seed : int
    """

    noise_frac: float = 0.0
    low: float = 0.0
    high: float = 255.0
    seed: int = 0


@dataclass(frozen=True)
class Susceptibility:
    """Signal loss by susceptibility gradients near air.

    Parameters
    ----------
    echo_time_ms : float
        0: no loss.
    field_t : float
        Field strength in tesla.
    """

    echo_time_ms: float = 0.0
    field_t: float = 7.0


@dataclass(frozen=True)
class Motion:
    """Movements of the head during the acquisition of k-space along one axis.

    Parameters
    ----------
    times_frac : tuple of float
        Time of each movement, as a fraction of the acquired lines; empty: no motion.
    translations_mm, rotations_deg : tuple of (3,) float
        Pose after each movement.
    axis : int
        Slow phase-encoding axis.
    """

    times_frac: tuple[float, ...] = ()
    translations_mm: tuple[Triple, ...] = ()
    rotations_deg: tuple[Triple, ...] = ()
    axis: int = 1


@dataclass(frozen=True)
class Gibbs:
    """Gibbs ringing: fraction of k-space that is acquired along each axis; 1: no ringing."""

    kept_frac: Triple = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Resolution:
    """Acquired voxel size and slice thickness along each axis."""

    voxel_size_mm: Triple = (1.0, 1.0, 1.0)
    thickness_mm: Triple = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Noise:
    """Noise of the acquired voxels.

    Parameters
    ----------
    sd_frac : float
        Standard deviation of the real and imaginary part of each channel, as a fraction of the
        99th percentile of the image.
    seed : int
    channels : int
        1: Rician; more: root of the sum of squares over channels, non-central chi.
    sd : float
        Standard deviation in the units of intensities, added to that of ``sd_frac``.
    """

    sd_frac: float = 0.0
    seed: int = 0
    channels: int = 1
    sd: float = 0.0


@dataclass(frozen=True)
class View:
    """Parts of the head that the image shows: brain extraction, defacing, field of view.

    Parameters
    ----------
    kept : {"head", "brain", "brain+csf"}
    cut_normal, cut_mm : (3,) float, float
        Plane of defacing: voxels further than ``cut_mm`` from the centre of the head along the
        normal (RAS) are removed. A zero normal removes nothing.
    low_mm, high_mm : (3,) float
        Ends of the field of view, relative to the centre of the head (RAS).
    air_masked : bool
        Whether voxels outside of the head or of the kept tissues are set to a constant after
        acquisition.
    air_level : float
        This constant, in the units of intensities.
    """

    kept: str = "head"
    cut_normal: Triple = (0.0, 0.0, 0.0)
    cut_mm: float = 0.0
    low_mm: Triple = (-1000.0, -1000.0, -1000.0)
    high_mm: Triple = (1000.0, 1000.0, 1000.0)
    air_masked: bool = False
    air_level: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """All parameters of one synthetic pair: the same recipe and label map give the same pair.

    Effects that are not given are switched off.

    Examples
    --------
    >>> recipe = Recipe({"Skin": Tissue((90.0,), (5.0,))}, bias=Bias(0.3, seed=4))
    >>> Recipe.from_json(recipe.to_json()) == recipe
    True
    """

    tissues: dict[str, Tissue]
    flip: bool = False
    deformation: Deformation = Deformation()
    ageing: Atrophy = Atrophy()
    texture: Texture = Texture()
    bias: Bias = Bias()
    transmit: Transmit = Transmit()
    ratio: Ratio = Ratio()
    susceptibility: Susceptibility = Susceptibility()
    motion: Motion = Motion()
    gibbs: Gibbs = Gibbs()
    resolution: Resolution = Resolution()
    noise: Noise = Noise()
    view: View = View()
    gamma: float = 1.0
    paint_seed: int = 0
    space: str = "by hand"

    def to_json(self) -> str:
        """Recipe as JSON text."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Recipe from the JSON text of `to_json`.

        Raises
        ------
        ValueError
            If it cannot be used; the message names the part with the error.
        """
        raw = parse_json(text, "recipe")
        tissues = raw.pop("tissues", {})
        if why := Object(Object(Items(LEVEL))).error_of(tissues):
            raise ValueError(f"recipe: tissues {why}")
        _check_keys(raw, {item.name for item in fields(cls)}, "recipe")
        for item in fields(cls):
            name, group = item.name, type(item.default)
            if name in raw and hasattr(group, "__dataclass_fields__"):
                raw[name] = _read_group(group, raw[name], f"recipe: {name}")
            elif name in raw and (why := _kind_of(name, item.default).error_of(raw[name])):
                raise ValueError(f"recipe: {name} {why}")
        return cls(tissues={n: _read_tissue(n, one) for n, one in tissues.items()}, **raw)


LEVEL = Number(-1e6, 1e6)
DISTANCES = ("scale_mm", "grain_mm", "node_spacing_mm", "voxel_size_mm")
"""Lengths that are used as divisors: the number of nodes or voxels in a head is limited."""


def _read_tissue(name: str, values: dict[str, Any]) -> Tissue:
    what = f"recipe: tissues: {name}"
    _check_keys(values, {"mean", "sd", "weight"}, what)
    if not values.get("mean") or len(values["mean"]) != len(values.get("sd", ())):
        raise ValueError(f"{what}: give as many sd as mean, at least one")
    return Tissue(**_frozen(values))


def _read_group(group: type, values: Any, what: str) -> Any:
    """A dataclass of numbers from its JSON object."""
    if why := Object().error_of(values):
        raise ValueError(f"{what} {why}")
    _check_keys(values, {item.name for item in fields(group)}, what)
    for item in fields(group):
        if item.name in values:
            why = _kind_of(item.name, item.default).error_of(values[item.name])
            if why:
                raise ValueError(f"{what}: {item.name} {why}")
    return group(**_frozen(values))


def _check_keys(values: dict[str, Any], known: set[str], what: str) -> None:
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(f"{what}: unknown key {unknown[0]}")


def _kind_of(name: str, default: object) -> Kind:
    """What a value must be, by what stands in its place where nobody says."""
    if isinstance(default, bool):
        return Flag()
    if isinstance(default, str):
        return Text()
    if isinstance(default, int):
        return Number(0, 2**63, whole=True)
    number = Number(0.1, 1e4) if name in DISTANCES else LEVEL
    if isinstance(default, float):
        return number
    if isinstance(default, Sized) and len(default):
        return Items(number, count=len(default))
    return Items(Items(LEVEL, count=3)) if name.startswith(("trans", "rot")) else Items(LEVEL)


def _frozen(values: dict[str, Any]) -> dict[str, Any]:
    """JSON's lists as tuples, however deep."""

    def tuples(value: Any) -> Any:
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    return {name: tuples(value) for name, value in values.items()}
