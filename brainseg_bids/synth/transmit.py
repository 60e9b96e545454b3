# SPDX-License-Identifier: Apache-2.0
"""Transmit field B1+: deviation of the flip angle from the nominal one, and its effect.

In MPRAGE images it causes shading and changes of contrast. In MP2RAGE's UNI images the shading
cancels out, and small changes of contrast remain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from brainseg_bids.anatomy.grid import triple
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.synth.interpolate import (
    BandedProduct,
    along_axes,
    cubic_matrix,
    smooth_noise,
)
from brainseg_bids.synth.recipe import Transmit, Triple
from brainseg_bids.synth.relaxation import relaxation, relaxation_of

NODES_MM = 8.0
"""Distance between the nodes that the field is worked out at.

A smooth spline goes near them, within 0.015 of the field.
"""


@dataclass(frozen=True)
class Shade:
    """A region with a weak transmit field.

    Parameters
    ----------
    center_mm : (3,) float
        Position relative to the centre of the brain, RAS; if it is off the midline, there is
        another region on the other side.
    sd_mm : (3,) float
        Standard deviations of its Gaussian profile.
    depth : float
        At 1, the field at the centre of the region is ``Transmit.edge``.
    """

    center_mm: Triple
    sd_mm: Triple
    depth: float = 1.0


SHADES = (
    Shade((52.0, 10.0, -30.0), (22.0, 34.0, 22.0)),  # temporal lobe
    Shade((26.0, -45.0, -45.0), (28.0, 24.0, 22.0)),  # cerebellum
    Shade((0.0, -20.0, -125.0), (90.0, 90.0, 35.0)),  # neck: beyond the coil
)
RIM_DEPTH, RIM_MM = 0.6, (58.0, 75.0, 58.0)
"""Relative decrease from ``center`` towards ``edge`` far from the centre, and its distance."""


def transmit_field(
    transmit: Transmit,
    *,
    shape: tuple[int, int, int],
    voxel_size_mm: float,
    center_mm: Triple,
    device: torch.device,
) -> BandedProduct:
    """Relative B1+ over a crop, computed in slabs.

    The field is ``center`` in the centre of the brain. It decreases towards the periphery, and to
    ``edge`` in the temporal lobes, the cerebellum and the neck, symmetrically on both sides. It is
    multiplied by exp of a random field. This is an own model of published maps of birdcage coils
    in circular mode at 7 T, where waves interfere constructively in the centre and destructively
    at the periphery (Vaughan et al., MRM 2001; Van de Moortele et al., MRM 2005; over whole
    brains: Marques et al., NeuroImage 2010; Haast et al., HBM 2018).

    Parameters
    ----------
    transmit : Transmit
    shape : (X, Y, Z)
    voxel_size_mm : float
    center_mm : (3,) float
        Vector from the centre of the crop to the centre of the bounding box of the brain, RAS.
    device : torch.device

    Returns
    -------
    callable (start, stop) -> (stop - start, Y, Z) float32

    Examples
    --------
    >>> field = transmit_field(Transmit("mprage", center=1.2, edge=0.5), shape=(21, 25, 21),
    ...     voxel_size_mm=8.0, center_mm=(0.0, 0.0, 0.0), device=torch.device("cpu"))
    >>> middle, temporal = field(0, 21)[10, 12, 10], field(0, 21)[17, 13, 6]
    >>> round(middle.item(), 1), round(temporal.item(), 1)
    (1.2, 0.5)
    """
    stride = max(1, round(NODES_MM / voxel_size_mm))
    # One more node on each side, so that the spline has what it needs at the faces.
    wider = triple(n + 2 * stride for n in shape)
    counts = [-(-(n - 1) // stride) + 1 for n in wider]
    axes = [
        ((torch.arange(count) - 1) * stride - (n - 1) / 2) * voxel_size_mm - middle
        for count, n, middle in zip(counts, shape, center_mm, strict=True)
    ]
    nodes = transmit.center + (transmit.edge - transmit.center) * _darkness(axes)
    if transmit.log_sd > 0:
        nodes = nodes * _random_factor(transmit, wider, voxel_size_mm, stride)
    to_x, to_y, to_z = (
        cubic_matrix(n, count, positions=torch.arange(n) / stride + 1)
        for n, count in zip(shape, counts, strict=True)
    )
    nodes = nodes.to(device)
    return BandedProduct(to_x, to_y.to(device) @ (nodes @ to_z.to(device).T))


def _random_factor(
    transmit: Transmit, shape: tuple[int, int, int], voxel_size_mm: float, stride: int
) -> Tensor:
    """exp of the random field, on the nodes."""
    noise, matrices = smooth_noise(
        shape,
        voxel_size_mm=voxel_size_mm,
        node_spacing_mm=transmit.node_spacing_mm,
        seed=transmit.seed,
        stride=stride,
    )
    # B-spline synthesis of white noise has a spread of about a third; make it one.
    return (along_axes(noise[0], matrices) * (3.0 * transmit.log_sd)).exp()


def _darkness(axes: list[Tensor]) -> Tensor:
    """0 in the middle of the brain, 1 in the middle of a shade; (nx, ny, nz) float32."""
    middle = _light([torch.zeros(1)] * 3).item()
    return 1 - _light(axes) / middle


def _light(axes: list[Tensor]) -> Tensor:
    """What rim and shades leave; every shade takes its share of what the others left."""
    light = 1 - RIM_DEPTH * (1 - _bump(axes, (0.0, 0.0, 0.0), RIM_MM))
    for shade in SHADES:
        x, y, z = shade.center_mm
        for place in {(x, y, z), (-x, y, z)}:
            light = light * (1 - shade.depth * _bump(axes, place, shade.sd_mm))
    return light


def _bump(axes: list[Tensor], center_mm: Triple, sd_mm: Triple) -> Tensor:
    x, y, z = (
        torch.exp(-0.5 * ((axis - middle) / sd) ** 2)
        for axis, middle, sd in zip(axes, center_mm, sd_mm, strict=True)
    )
    return x[:, None, None] * y[:, None] * z


@dataclass(frozen=True)
class Cycle:
    """Protocol of an inversion-recovery sequence: an inversion, then one or more readout trains.

    Parameters
    ----------
    tr_s : float
        Time between inversions.
    ti_s : tuple of float
        Inversion time of each train, at the centre of k-space.
    flip_deg : tuple of float
        Nominal flip angle of each train.
    echo_spacing_s : float
        Time between the pulses of a train.
    before, after : int
        Number of pulses of a train before the centre of k-space, and from it on.
    efficiency : float
        Efficiency of the inversion. It does not depend on B1+, since the pulse is adiabatic.
    echo_time_ms : float
    """

    tr_s: float
    ti_s: tuple[float, ...]
    flip_deg: tuple[float, ...]
    echo_spacing_s: float
    before: int
    after: int
    efficiency: float = 0.96
    echo_time_ms: float = 2.5


# UltraCortex (OpenNeuro ds005216, 9.4 T), its 0.8 mm protocol: 192 partitions of which 6/8 are
# read. The echo spacing is not published. Of the data set's protocols it is the one whose UNI
# falls with T1 all the way to CSF; at 0.6 mm (TR 6 s, TI 0.8 and 2.0 s, 5 and 9 degrees) the
# equations turn round at a T1 of 2.8 s, and CSF is as bright as cortex.
MP2RAGE = Cycle(9.0, (0.9, 3.5), (4.0, 6.0), 0.006, before=48, after=96, echo_time_ms=2.3)
# 1 mm MPRAGE after van der Kouwe et al. (NeuroImage 2008), used at 3 and at 7 T.
MPRAGE = Cycle(2.53, (1.1,), (7.0,), 0.0098, before=88, after=88)


def train_signals(t1_s: ArrayLike, b: ArrayLike = 1.0, *, cycle: Cycle) -> list[np.ndarray]:
    """Steady-state signal at the centre of k-space of each train, for M0 = 1.

    Each part of the cycle maps Mz to ``gain * Mz + offset``, and so does the whole cycle. The
    steady state is its fixed point (Mugler and Brookeman, MRM 1990; Marques et al., NeuroImage
    2010, appendix). Transverse magnetisation is spoiled; T2* is not included.

    Parameters
    ----------
    t1_s : float or array
    b : float or array
        Flip angles relative to nominal ones; broadcast against ``t1_s``.
    cycle : Cycle

    Returns
    -------
    list of ndarray
        Signed: negative before the magnetisation crosses zero.

    Raises
    ------
    ValueError
        If the trains of the cycle overlap.
    """
    t1_s, b = np.broadcast_arrays(np.asarray(t1_s, float), np.asarray(b, float))
    pieces, reads, now_s = [(-cycle.efficiency, 0.0)], [], 0.0
    for ti_s, flip_deg in zip(cycle.ti_s, cycle.flip_deg, strict=True):
        angle = np.deg2rad(flip_deg) * b
        start_s = ti_s - cycle.before * cycle.echo_spacing_s
        pieces += [_recovery(start_s - now_s, t1_s)]
        pieces += [_train(cycle.before, angle, t1_s, cycle.echo_spacing_s)]
        reads.append((len(pieces), np.sin(angle)))
        pieces += [_train(cycle.after, angle, t1_s, cycle.echo_spacing_s)]
        now_s = ti_s + cycle.after * cycle.echo_spacing_s
    pieces += [_recovery(cycle.tr_s - now_s, t1_s)]
    gain, offset = _joined(pieces)
    steady = offset / (1 - gain)
    signals = []
    for count, sine in reads:
        gain, offset = _joined(pieces[:count])
        signals.append((gain * steady + offset) * sine)
    return signals


def _recovery(duration_s: float, t1_s: np.ndarray) -> tuple[Any, ...]:
    if duration_s < 0:
        raise ValueError(
            f"the trains of the cycle overlap by {-duration_s:.3f} s: "
            "fewer pulses, a shorter echo spacing or later inversion times are needed"
        )
    kept = np.exp(-duration_s / t1_s)
    return kept, 1 - kept


def _train(
    pulses: int, angle: np.ndarray, t1_s: np.ndarray, echo_spacing_s: float
) -> tuple[Any, ...]:
    """Pulses and the pauses after them: a geometric series."""
    kept = np.exp(-echo_spacing_s / t1_s)
    gain = (np.cos(angle) * kept) ** pulses
    return gain, (1 - kept) * (1 - gain) / (1 - np.cos(angle) * kept)


def _joined(pieces: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    """One piece that does what all of them do, one after the other."""
    gain, offset = 1.0, 0.0
    for next_gain, next_offset in pieces:
        gain, offset = next_gain * gain, next_gain * offset + next_offset
    return gain, offset


def mprage_signal(t1_s: ArrayLike, b: ArrayLike = 1.0, *, cycle: Cycle = MPRAGE) -> np.ndarray:
    """Magnitude of MPRAGE for a proton density of 1, without T2*; see `train_signals`.

    Examples
    --------
    >>> white, grey = mprage_signal([1.126, 1.939])
    >>> bool(white > 1.5 * grey)
    True
    """
    return np.abs(train_signals(t1_s, b, cycle=cycle)[0])


def uni_of_t1(t1_s: ArrayLike, b: ArrayLike = 1.0, *, cycle: Cycle = MP2RAGE) -> np.ndarray:
    """UNI of MP2RAGE, S1 S2 / (S1^2 + S2^2), between -0.5 and 0.5.

    It does not depend on proton density, T2* and B1- (Marques et al., NeuroImage 49:1271, 2010).

    Examples
    --------
    >>> uni_of_t1([1.126, 1.939, 4.33]).round(2)
    array([ 0.11, -0.2 , -0.5 ])
    """
    first, second = train_signals(t1_s, b, cycle=cycle)
    return first * second / (first**2 + second**2)


FIT_RANGE = (0.4, 1.5)
"""Relative B1+ over which the response is fitted."""

NULL_FRAC = 0.5
"""Signal relative to grey matter below which a label counts as nulled."""


def transmit_response(transmit: Transmit, table: LabelTable) -> Tensor:
    """Coefficients of the effect of B1+ on each label, (n_labels, 3) float32.

    The effect of a relative field b is a0 + a1 (b - 1) + a2 (b - 1)^2, fitted by least squares
    over `FIT_RANGE` to the exact signal equations; a0 is exact.

    - ``mprage``: a factor, S(T1, b) / S(T1, 1), with a0 = 1. For labels whose signal is almost
      nulled by the inversion, the change is relative to `NULL_FRAC` of the signal of grey matter.
    - ``mp2rage``: an offset, UNI(T1, b) - UNI(T1, 1), with a0 = 0, in units of UNI (-0.5 to 0.5).

    Labels without protons have no effect.

    Raises
    ------
    ValueError
        If the sequence is neither of these.
    """
    tissue = relaxation(table, transmit.field_t)
    b = np.linspace(*FIT_RANGE, 111)
    t1_s = np.asarray(tissue.t1_s)[:, None]
    if transmit.sequence == "mprage":
        grey = mprage_signal(relaxation_of("Left-Cerebral-Cortex", transmit.field_t).t1_s)
        nominal = mprage_signal(t1_s)
        change = (mprage_signal(t1_s, b) - nominal) / np.maximum(nominal, NULL_FRAC * grey)
        rest = 1.0
    elif transmit.sequence == "mp2rage":
        change, rest = uni_of_t1(t1_s, b) - uni_of_t1(t1_s), 0.0
    else:
        raise ValueError(
            f"transmit field: sequence {transmit.sequence!r} has no response; "
            "known: mprage, mp2rage"
        )
    change = change * (np.asarray(tissue.proton_density) > 0)[:, None]
    powers = np.stack([b - 1, (b - 1) ** 2], axis=1)
    slopes, *_ = np.linalg.lstsq(powers, change.T, rcond=None)
    response = np.concatenate([np.full((len(table), 1), rest), slopes.T], axis=1)
    return torch.from_numpy(response).float()
