# SPDX-License-Identifier: Apache-2.0
"""``Recipe``: every number that makes one synthetic pair. `RecipeSpace.draw` draws them."""

from __future__ import annotations

import json
from collections.abc import Sized
from dataclasses import asdict, dataclass, fields
from typing import Any

from brainseg_bids.documents import Flag, Items, Kind, Number, Object, Text, parse_json

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Tissue:
    """Intensities of one label: components told apart by a smooth random field.

    Parameters
    ----------
    mean, sd : tuple of float
        Of each component, in the units of the recipe space (255: bright).
    weight : tuple of float
        Share of the label's voxels that each component has; equal shares if empty.
    """

    mean: tuple[float, ...]
    sd: tuple[float, ...]
    weight: tuple[float, ...] = ()


@dataclass(frozen=True)
class Texture:
    """Structure within a label.

    Parameters
    ----------
    scale_mm : float
        Distance between the nodes of the field that chooses among a tissue's components.
    seed : int
    grain_mm : float
        Distance between the nodes of a second field, the tissue's correlated texture.
    grain_frac : float
        Share of a component's variance that is correlated, not white noise; 0: none.
    grain_seed : int
    """

    scale_mm: float = 12.0
    seed: int = 0
    grain_mm: float = 3.0
    grain_frac: float = 0.0
    grain_seed: int = 0


@dataclass(frozen=True)
class Deformation:
    """How the anatomy moves: affine about the crop's centre, then a smooth invertible warp."""

    rotation_deg: Triple = (0.0, 0.0, 0.0)
    scaling: Triple = (1.0, 1.0, 1.0)
    shearing: Triple = (0.0, 0.0, 0.0)
    center_frac: Triple = (0.5, 0.5, 0.5)
    velocity_sd_mm: float = 0.0
    node_spacing_mm: float = 25.0
    seed: int = 0


@dataclass(frozen=True)
class Atrophy:
    """What the brain has lost, or has too much of; see `synth.atrophy`. Recipes say ``ageing``.

    Parameters
    ----------
    ventricles_mm : float
        How far the walls of the ventricles have moved outwards; negative: inwards.
    thinning_frac : float
        Share of the cortex's surface whose outermost voxels have become fluid; negative: where
        fluid beside it has become cortex.
    lesion_frac : float
        Share of the white matter that is lesion.
    seed : int
    """

    ventricles_mm: float = 0.0
    thinning_frac: float = 0.0
    lesion_frac: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Bias:
    """Receive field B1-: exp of a smooth field with the given spread."""

    log_sd: float = 0.0
    node_spacing_mm: float = 60.0
    seed: int = 0


@dataclass(frozen=True)
class Transmit:
    """Transmit field B1+: the flip angle reached, relative to the one that was asked for.

    Parameters
    ----------
    sequence : {"none", "mprage", "mp2rage"}
        How the field shows in the image; ``none``: not at all.
    center, edge : float
        Relative field in the middle of the head and at the temporal lobes and cerebellum.
    log_sd, node_spacing_mm, seed
        A smooth random field on top, as of `Bias`.
    field_t : float
        Field strength that the relaxation times belong to.
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
    """MP2RAGE's UNI image: the ratio of two noisy inversions.

    Parameters
    ----------
    noise_frac : float
        Noise of each inversion's real and imaginary part, as a share of the second inversion's
        signal in grey matter; 0: no ratio is taken.
    low, high : float
        Painted intensities that stand for ratios of -0.5 and +0.5.
    seed : int
    """

    noise_frac: float = 0.0
    low: float = 0.0
    high: float = 255.0
    seed: int = 0


@dataclass(frozen=True)
class Susceptibility:
    """Signal lost to field gradients near air in the head.

    Parameters
    ----------
    echo_time_ms : float
        0: nothing is lost.
    field_t : float
    """

    echo_time_ms: float = 0.0
    field_t: float = 7.0


@dataclass(frozen=True)
class Motion:
    """Moves of the head while k-space was filled along one axis.

    Parameters
    ----------
    times_frac : tuple of float
        When it moved, as a share of the lines that were read; empty: it lay still.
    translations_mm, rotations_deg : tuple of (3,) float
        Pose after each move.
    axis : int
        Slow phase-encoding axis.
    """

    times_frac: tuple[float, ...] = ()
    translations_mm: tuple[Triple, ...] = ()
    rotations_deg: tuple[Triple, ...] = ()
    axis: int = 1


@dataclass(frozen=True)
class Gibbs:
    """Ringing: share of k-space that was read along each axis, the rest is zero; 1: all of it."""

    kept_frac: Triple = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Resolution:
    """Voxel size and slice thickness that the scanner had, per axis in mm."""

    voxel_size_mm: Triple = (1.0, 1.0, 1.0)
    thickness_mm: Triple = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Noise:
    """Noise of the acquired voxels.

    Parameters
    ----------
    sd_frac : float
        Of each channel's real and imaginary part, as a share of the image's 99th percentile.
    seed : int
    channels : int
        1: Rician; more: root of the sum of squares over channels, non-central chi.
    sd : float
        As ``sd_frac``, in painted units; the two add up.
    """

    sd_frac: float = 0.0
    seed: int = 0
    channels: int = 1
    sd: float = 0.0


@dataclass(frozen=True)
class View:
    """What of the head is in the image.

    Parameters
    ----------
    kept : {"head", "brain", "brain+csf"}
    cut_normal, cut_mm : (3,) float, float
        The normal points away from what is kept (RAS); voxels further along it than ``cut_mm``
        from the middle of the head are gone, as after defacing. A zero normal cuts nothing.
    low_mm, high_mm : (3,) float
        Field of view about the middle of the head (RAS); what lies outside is gone.
    air_masked : bool
        Whether what is outside the head, and tissues that are not kept, were set to a constant
        after the image was acquired.
    air_level : float
        That constant, in painted units.
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
    """Every number that makes one pair. Same recipe, same labels: same pair.

    What is not given is switched off.

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
        """The recipe as JSON text."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Read `to_json`'s text.

        Raises
        ------
        ValueError
            If it is something else; names the part that cannot be used.
        """
        raw = parse_json(text, "recipe")
        tissues = raw.pop("tissues", {})
        if why := Object(Object(Items(LEVEL))).fault(tissues):
            raise ValueError(f"recipe: tissues {why}")
        _check_keys(raw, {item.name for item in fields(cls)}, "recipe")
        for item in fields(cls):
            name, group = item.name, type(item.default)
            if name in raw and hasattr(group, "__dataclass_fields__"):
                raw[name] = _read_group(group, raw[name], f"recipe: {name}")
            elif name in raw and (why := _kind_of(name, item.default).fault(raw[name])):
                raise ValueError(f"recipe: {name} {why}")
        return cls(tissues={n: _read_tissue(n, one) for n, one in tissues.items()}, **raw)


LEVEL = Number(-1e6, 1e6)
DISTANCES = ("scale_mm", "grain_mm", "node_spacing_mm", "voxel_size_mm")
"""What is divided by: as many nodes or voxels as fit into a head, not more."""


def _read_tissue(name: str, values: dict[str, Any]) -> Tissue:
    what = f"recipe: tissues: {name}"
    _check_keys(values, {"mean", "sd", "weight"}, what)
    if not values.get("mean") or len(values["mean"]) != len(values.get("sd", ())):
        raise ValueError(f"{what}: give as many sd as mean, at least one")
    return Tissue(**_frozen(values))


def _read_group(group: type, values: Any, what: str) -> Any:
    """A dataclass of numbers from its JSON object."""
    if why := Object().fault(values):
        raise ValueError(f"{what} {why}")
    _check_keys(values, {item.name for item in fields(group)}, what)
    for item in fields(group):
        if item.name in values:
            why = _kind_of(item.name, item.default).fault(values[item.name])
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
