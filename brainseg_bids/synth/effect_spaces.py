# SPDX-License-Identifier: Apache-2.0
"""Ranges of the parameters of each effect of a recipe, and checks of their values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from brainseg_bids.documents import Items, Kind, Number, Text
from brainseg_bids.synth.streams import Range

if TYPE_CHECKING:
    pass


P = Number(0, 1)
LEVEL = Number(-10_000, 10_000)
"""Intensities, in units in which 255 is bright."""


def _range(low: float, high: float, unit: str = "", **more: Any) -> Items:
    """Kind of a range (low, high) within bounds."""
    return Items(Number(low, high, unit, **more), count=2, rising=True)


ANGLES = _range(-180, 180, "degrees")
SPREADS = _range(0, 10)
SPACING = Number(1, 1000, "mm")
"""Node spacing of smooth fields: the number of nodes in a head is limited."""
SIZES = _range(0.1, 100, "mm")
FIELD = Number(0.001, 25, "T")
KINDS: dict[str, Kind] = {
    "name": Text(),
    "law": Text(("uniform", "normal")),
    "widen": Number(0, 100),
    "shared_frac": P,
    "sd_frac": SPREADS,
    "background_dark_p": P,
    "background_noisy_mean": Items(LEVEL, count=2, rising=True),
    "background_noisy_sd": _range(0, 10_000),
    "flip_p": P,
    "rotation_deg": ANGLES,
    "scaling": _range(0.1, 10),
    "shearing": _range(-2, 2),
    "center_frac": _range(0, 1),
    "velocity_sd_mm": _range(0, 100, "mm"),
    "velocity_node_spacing_mm": SPACING,
    "bias_log_sd": SPREADS,
    "bias_node_spacing_mm": SPACING,
    "gamma_log_sd": Number(0, 5),
    "resolution_native_p": P,
    "resolution_isotropic_mm": SIZES,
    "resolution_slice_p": P,
    "resolution_slice_mm": SIZES,
    "resolution_thickness_frac": _range(0.05, 10),
    "noise_sd_frac": SPREADS,
    "noise_channels": _range(1, 256, whole=True),
    "texture_scale_mm": _range(0.5, 1000, "mm"),
    "grain_mm": _range(0.5, 1000, "mm"),
    "grain_frac": _range(0, 1),
    "stripped_p": P,
    "cut_p": P,
    "ageing.p": P,
    "ageing.ventricles_mm": _range(-30, 30, "mm"),
    "ageing.thinning_frac": _range(-1, 1),
    "ageing.lesion_frac": _range(0, 1),
    "transmit.p": P,
    "transmit.sequences": Items(Text(("none", "mprage", "mp2rage")), least=1),
    "transmit.center": _range(0, 10),
    "transmit.edge": _range(0, 10),
    "transmit.log_sd": SPREADS,
    "transmit.node_spacing_mm": SPACING,
    "transmit.field_t": FIELD,
    "ratio.p": P,
    "ratio.noise_frac": SPREADS,
    "ratio.low": LEVEL,
    "ratio.high": LEVEL,
    "susceptibility.p": P,
    "susceptibility.echo_time_ms": _range(0, 1000, "ms"),
    "susceptibility.field_t": FIELD,
    "motion.p": P,
    "motion.moves": _range(1, 1000, whole=True),
    "motion.translation_mm": _range(-200, 200, "mm"),
    "motion.rotation_deg": ANGLES,
    "gibbs.p": P,
    "gibbs.kept_frac": _range(0.01, 1),
    "field_of_view.p": P,
    "field_of_view.half_mm": _range(1, 1000, "mm"),
}
"""Valid values of the fields of a `RecipeSpace` and of its groups: wider than those of any
scanner, but within what can be computed."""
TISSUE_KINDS: dict[str, Kind] = {
    "labels": Items(Text(), least=1),
    "mean": Items(LEVEL, count=2),
    "sd": Items(Number(0, 10_000), count=2),
    "components": Number(1, 100, whole=True),
    "component_spread": Number(0, 10_000),
}
"""Valid values of the fields of a `TissueSpace`."""


@dataclass(frozen=True)
class AtrophySpace:
    """Probability and ranges of simulated atrophy, see `Atrophy`."""

    p: float = 0.0
    ventricles_mm: Range = (0.0, 0.0)
    thinning_frac: Range = (0.0, 0.0)
    lesion_frac: Range = (0.0, 0.0)


@dataclass(frozen=True)
class TransmitSpace:
    """Probability and ranges of the effect of the transmit field B1+, see `Transmit`.

    Ratio images always have the sequence ``mp2rage``, other images one of ``sequences``.
    """

    p: float = 0.0
    sequences: tuple[str, ...] = ("mprage",)
    center: Range = (1.0, 1.0)
    edge: Range = (1.0, 1.0)
    log_sd: Range = (0.0, 0.0)
    node_spacing_mm: float = 80.0
    field_t: float = 7.0


@dataclass(frozen=True)
class RatioSpace:
    """Probability and noise of MP2RAGE's UNI images, see `Ratio`."""

    p: float = 0.0
    noise_frac: Range = (0.01, 0.08)
    low: float = 0.0
    high: float = 255.0


@dataclass(frozen=True)
class SusceptibilitySpace:
    """Probability and echo times of signal loss near air, see `Susceptibility`."""

    p: float = 0.0
    echo_time_ms: Range = (2.0, 5.0)
    field_t: float = 7.0


@dataclass(frozen=True)
class MotionSpace:
    """Probability and ranges of motion, see `Motion`.

    ``translation_mm`` and ``rotation_deg`` are for each axis; ``moves`` is the smallest and the
    largest number of movements.
    """

    p: float = 0.0
    moves: tuple[int, int] = (1, 4)
    translation_mm: Range = (-2.0, 2.0)
    rotation_deg: Range = (-2.0, 2.0)


@dataclass(frozen=True)
class GibbsSpace:
    """Probability of Gibbs ringing, and fraction of k-space that is acquired, see `Gibbs`."""

    p: float = 0.0
    kept_frac: Range = (0.6, 1.0)


@dataclass(frozen=True)
class FieldOfViewSpace:
    """Probability that the field of view ends within the head.

    ``half_mm`` is the distance of both ends of the field of view from the centre of the head,
    along one random axis.
    """

    p: float = 0.0
    half_mm: Range = (50.0, 110.0)
