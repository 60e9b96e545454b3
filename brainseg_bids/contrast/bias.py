# SPDX-License-Identifier: Apache-2.0
"""Bias field of an image, estimated within labels.

The mean of each label and the cosine coefficients of the logarithm of the field are estimated
together by penalised least squares, iteratively reweighted (Tukey's biweight) against wrong
labels. The model is that of Ashburner and Friston 2005 (NeuroImage 26:839), with given labels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.interpolate import BSpline

from brainseg_bids.anatomy.grid import triple
from brainseg_bids.contrast.measured import BiasField
from brainseg_bids.contrast.robust import location_scale

SHORTEST_MM = 70.0
"""Shortest wavelength; half of it is about the wavelength of radio waves in the brain at 7 T (13
cm)."""

MARGIN_MM = 25.0
"""Margin of the box of cosines around the head, so that their flat ends are in air."""

NODE_MM = 16.0

USUAL_LOG_SD = 0.25
USUAL_MM = 120.0
"""Prior strength of the field, and wavelength above which power decreases."""

SAMPLES_PER_LABEL = (2500, 12_000)
SAMPLED_SHARE = 0.1
"""Fraction of a label's voxels that is sampled, within the limits of `SAMPLES_PER_LABEL`; large
labels extend to where the field varies most."""

INDEPENDENT_SAMPLES = 6000
"""Effective number of samples, since errors of neighbouring voxels are correlated."""

LEAST_SPREAD = 0.05
EVEN_SPREAD = 0.1
BIWEIGHT = 4.685
ROUNDS = 12


@dataclass(frozen=True)
class LogField:
    """Logarithm of a bias field: a sum of cosines over a box.

    Parameters
    ----------
    coefficients : (kx, ky, kz) float
    start, length : (3,) float
        Position and size of the box, in voxels. Outside, the field has the value at the nearest
        face of the box.
    """

    coefficients: np.ndarray
    start: np.ndarray
    length: np.ndarray

    def matrix(self, axis: int, positions: np.ndarray) -> np.ndarray:
        """Cosines at voxel positions (n,) along one axis, (n, k) float."""
        at = np.clip((positions - self.start[axis]) / self.length[axis], 0, 1)
        orders = np.arange(self.coefficients.shape[axis])
        return np.cos(np.pi * orders * at[:, None])

    def on_grid(self, *positions: np.ndarray) -> np.ndarray:
        """Log field on the grid of three axes of voxel positions, (X, Y, Z) float32."""
        mx, my, mz = (self.matrix(a, np.asarray(p)) for a, p in enumerate(positions))
        field = np.einsum("xi,yj,ijk->xyk", mx, my, self.coefficients, optimize=True)
        return (field.astype(np.float32)) @ mz.T.astype(np.float32)

    def at_voxels(self, positions: np.ndarray) -> np.ndarray:
        """Log field at voxel positions (n, 3), (n,) float64."""
        mx, my, mz = (self.matrix(a, positions[:, a]) for a in range(3))
        return np.einsum("ni,nj,nk,ijk->n", mx, my, mz, self.coefficients, optimize=True)

    def shifted(self, by: float) -> LogField:
        """Log field minus a constant."""
        coefficients = self.coefficients.copy()
        coefficients[0, 0, 0] -= by
        return LogField(coefficients, self.start, self.length)


def flat_field() -> LogField:
    """Log field that is 0 everywhere."""
    return LogField(np.zeros((1, 1, 1)), np.zeros(3), np.ones(3))


def fit_field(
    values: np.ndarray,
    positions: np.ndarray,
    starts: np.ndarray,
    *,
    voxel_size_mm: tuple[float, float, float],
    head: tuple[slice, slice, slice],
    rng: np.random.Generator,
) -> LogField:
    """Smooth log field, fitted together with the mean of each group of voxels.

    Parameters
    ----------
    values : (n,) float
        Positive intensities of reliable voxels, ordered by group.
    positions : (n, 3) int
        Voxel indices of ``values``.
    starts : (groups + 1,) int
        Group g is ``starts[g]:starts[g + 1]``: a label, or a left-right pair of labels.
    head : three slices
        Bounding box of the head in voxels.
    rng : numpy.random.Generator
        Draws samples of large groups.

    Returns
    -------
    LogField
        With an arbitrary mean.
    """
    size = np.asarray(voxel_size_mm)
    margin = MARGIN_MM / size
    start = np.array([s.start for s in head]) - margin
    length = np.array([s.stop - s.start for s in head]) + 2 * margin
    most = np.maximum(1, (2 * length * size / SHORTEST_MM).astype(int))
    orders = np.stack(np.meshgrid(*(np.arange(m + 1) for m in most), indexing="ij"), -1)
    frequency = np.linalg.norm(orders / (2 * length * size), axis=-1)
    used = (frequency > 0) & (frequency <= 1 / SHORTEST_MM)
    coefficients = np.zeros(used.shape)
    chosen, groups = _choose(starts, rng)
    field = LogField(coefficients, start, length)
    basis = _basis(field, positions[chosen], orders[used])
    prior_sd = _prior_sd(frequency[used], orders[used])
    coefficients[used] = _solve(basis, np.log(values[chosen]), groups, prior_sd)
    return field


def _prior_sd(frequency: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """What is expected of each coefficient: a field of `USUAL_LOG_SD`, mostly of long waves.

    Where no label tells (beyond the brain, if the scalp is uneven), the field goes back to 1.
    """
    shape = (1 + (frequency * USUAL_MM) ** 2) ** -2
    power = (shape**2 * 0.5 ** (orders > 0).sum(-1)).sum()
    return USUAL_LOG_SD * shape / math.sqrt(power)


def _choose(starts: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Indices of samples, and the group of each."""
    chosen = []
    for first, last in pairwise(starts.tolist()):
        wanted = np.clip(SAMPLED_SHARE * (last - first), *SAMPLES_PER_LABEL)
        n = min(last - first, int(wanted))
        chosen.append(np.sort(rng.choice(last - first, n, replace=False)) + first)
    groups = np.repeat(np.arange(len(chosen)), [len(c) for c in chosen])
    return np.concatenate(chosen), groups


def _basis(field: LogField, positions: np.ndarray, orders: np.ndarray) -> np.ndarray:
    tables = [field.matrix(a, positions[:, a]).astype(np.float32) for a in range(3)]
    basis = tables[0][:, orders[:, 0]]
    basis *= tables[1][:, orders[:, 1]]
    basis *= tables[2][:, orders[:, 2]]
    return basis


def _solve(
    basis: np.ndarray, target: np.ndarray, groups: np.ndarray, prior_sd: np.ndarray
) -> np.ndarray:
    """Coefficients; each group's mean is free and solved for with them."""
    n = int(groups[-1]) + 1
    coefficients = np.zeros(basis.shape[1])
    penalty = np.diag(prior_sd**-2.0)
    bounds = np.flatnonzero(np.append(True, np.diff(groups) > 0))
    evidence = min(1.0, INDEPENDENT_SAMPLES / len(target))
    for turn in range(ROUNDS):
        rest = target - basis @ coefficients.astype(np.float32)
        moments = [location_scale(rest[groups == g]) for g in range(n)]
        mean, spread = (np.array(m)[groups] for m in zip(*moments, strict=True))
        spread = np.maximum(spread, LEAST_SPREAD)
        off = (rest - mean) / (BIWEIGHT * spread)
        # Uneven labels (fat and muscle) are uneven over centimetres: less evidence still.
        trust = evidence / (spread * np.maximum(1, spread / EVEN_SPREAD)) ** 2
        weight = np.where(np.abs(off) < 1, (1 - off**2) ** 2, 0) * trust
        before = coefficients
        # Taking each group's weighted mean from all sides solves for the means as well.
        total = np.maximum(np.add.reduceat(weight, bounds), 1e-12)
        root = np.sqrt(weight).astype(np.float32)[:, None]
        middle = np.add.reduceat(basis * root**2, bounds, axis=0) / total[:, None]
        centred = (basis - middle[groups].astype(np.float32)) * root
        normal = (centred.T @ centred).astype(np.float64)
        level = np.add.reduceat(weight * target, bounds) / total
        right = centred.T @ ((target - level[groups]) * root[:, 0])
        coefficients = np.linalg.solve(normal + penalty, right)
        if turn > 2 and np.abs(coefficients - before).max() < 1e-3:
            break
    return coefficients


def summarise(
    field: LogField,
    *,
    offset: tuple[float, float, float],
    shape: tuple[int, int, int],
    voxel_size_mm: tuple[float, float, float],
    head_positions: np.ndarray,
) -> BiasField:
    """Bias field on a coarse grid over the whole image, with its strength and smoothness.

    Parameters
    ----------
    field : LogField
        With mean 0 in the head.
    offset : (3,) float
        Position of the image's first voxel, in voxels of the array that the field was fitted in.
    shape : tuple of 3 int
        Shape of the image in RAS+ axis order.
    head_positions : (n, 3) float
        Voxel indices of a sample of the head.
    """
    size = np.asarray(voxel_size_mm)
    extent = (np.array(shape) - 1) * size
    counts = np.maximum(2, np.rint(extent / NODE_MM).astype(int) + 1)
    axes = [o + np.linspace(0, n - 1, c) for o, n, c in zip(offset, shape, counts, strict=True)]
    nodes = np.round(field.on_grid(*axes).astype(np.float64), 4)
    log_sd = float(field.at_voxels(head_positions).std())
    return BiasField(
        log_sd=log_sd,
        smoothness_mm=smoothness_mm(field, head_positions, voxel_size_mm) if log_sd > 0 else 60.0,
        nodes=tuple(tuple(tuple(row) for row in plane) for plane in nodes.tolist()),
        node_spacing_mm=triple(float(e / (c - 1)) for e, c in zip(extent, counts, strict=True)),
    )


def smoothness_mm(
    field: LogField, positions: np.ndarray, voxel_size_mm: tuple[float, float, float]
) -> float:
    """Node spacing in mm of random B-spline fields with the same smoothness.

    Smoothness is the root mean square gradient divided by the standard deviation. Since this
    ratio also depends on the size of the head, it is compared with that of random fields at the
    same voxels.

    Parameters
    ----------
    field : LogField
    positions : (n, 3) float
        Voxel indices of a sample of the head.
    """
    size = np.asarray(voxel_size_mm)
    positions = positions[:: max(1, len(positions) // 1500)].astype(float)
    steps = np.eye(3) * 4 / size
    here = field.at_voxels(positions)
    slopes = [(field.at_voxels(positions + s) - here) / 4 for s in steps]
    ratio = math.sqrt(sum((s**2).mean() for s in slopes) / max(here.var(), 1e-12))
    candidates = np.geomspace(25, 200, 10)
    rng = np.random.default_rng(0)
    around = [positions * size, *((positions + s) * size for s in steps)]
    expected = [_steepness(around, spacing, rng) for spacing in candidates]
    logs = np.minimum.accumulate(np.log(expected))  # falls with the spacing, up to chance
    return float(np.exp(np.interp(-math.log(ratio), -logs, np.log(candidates))))


def _steepness(around: list[np.ndarray], spacing_mm: float, rng: np.random.Generator) -> float:
    """Median ratio of slope and spread of random B-spline fields (median of 9)."""
    low = np.min([a.min(0) for a in around], axis=0)
    high = np.max([a.max(0) for a in around], axis=0)
    counts = ((high - low) / spacing_mm).astype(int) + 4
    nodes = rng.standard_normal((*counts, 9))
    seen = []
    for points in around:
        tables = [_splines((points[:, a] - low[a]) / spacing_mm, counts[a]) for a in range(3)]
        field = np.einsum("ijkf,nk->nijf", nodes, tables[2], optimize=True)
        field = np.einsum("nijf,nj->nif", field, tables[1], optimize=True)
        seen.append(np.einsum("nif,ni->nf", field, tables[0], optimize=True))
    slope = sum((((other - seen[0]) / 4) ** 2).mean(0) for other in seen[1:])
    return float(np.median(np.sqrt(slope / seen[0].var(0))))


def _splines(at: np.ndarray, count: int) -> np.ndarray:
    """Uniform cubic B-splines at positions in node spacings, (n, count)."""
    knots = np.arange(count + 4) - 3.0
    at = np.clip(at, 0, count - 3 - 1e-9)
    return BSpline.design_matrix(at, knots, 3).toarray()
