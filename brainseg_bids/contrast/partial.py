# SPDX-License-Identifier: Apache-2.0
"""Partial volume in thin labels: spill-in from neighbouring labels."""

from __future__ import annotations

from itertools import product

import numpy as np

from brainseg_bids.contrast.interior import Interior
from brainseg_bids.contrast.resolution import FWHM_PER_SD

SAMPLES = 2000
LEAST_OWN = 0.6
"""Smallest fraction of a label in its own blurred interior for which it is corrected."""

CLEAN_OWN = 0.98
PASSES = 3


def spilled_in(
    indices: np.ndarray,
    interior: Interior,
    locations: np.ndarray,
    fwhm_vox: tuple[float, float, float],
    *,
    rng: np.random.Generator,
) -> np.ndarray:
    """Bias of the location of each label by spill-in from its neighbours.

    A voxel's intensity is modelled as the mean of the labels' locations, weighted by the blurred
    masks of the labels. The model is solved for one label after the other, as with the geometric
    transfer matrix (Rousset et al. 1998, J Nucl Med 39:904).

    Parameters
    ----------
    indices : (X, Y, Z) uint8 or uint16
    interior : Interior
    locations : (labels,) float
        Measured locations; NaN if unknown.
    fwhm_vox : (3,) float
        Full width at half maximum of the point spread in voxels, including the voxel itself.

    Returns
    -------
    (labels,) float
        Bias, to be subtracted; 0 for thick labels, and for labels that are too thin to correct.

    Examples
    --------
    >>> from brainseg_bids.contrast.interior import find_interior
    >>> indices = np.zeros((40, 40, 9), dtype=np.uint8); indices[:, :, 3:6] = 1
    >>> interior, _ = find_interior(indices, 2, (1.0, 1.0, 1.0))
    >>> seen = np.array([0.0, 90.0])  # a tenth of the blur lies beyond the sheet
    >>> off = spilled_in(indices, interior, seen, (2.0, 2.0, 2.0), rng=np.random.default_rng(0))
    >>> round(float(90 - off[1]))  # of a true 100 or so
    98
    """
    steps, weights = _kernel(fwhm_vox)
    n_labels = len(locations)
    true = np.nan_to_num(locations).astype(np.float64)
    shares = {}
    for index in range(1, n_labels):
        if len(steps) > 1 and np.isfinite(locations[index]):
            own = interior.flat[interior.of(index)]
            share = _mixture(indices, own, steps, weights, n_labels, rng)
            is_known = np.isfinite(locations[share > 0.002]).all()
            if LEAST_OWN < share[index] < CLEAN_OWN and is_known:
                shares[index] = share
    for _ in range(PASSES):
        solved = true.copy()
        for index, share in shares.items():
            others = share @ true - share[index] * true[index]
            solved[index] = (locations[index] - others) / share[index]
        true = solved
    off = np.zeros(n_labels)
    for index in shares:
        off[index] = locations[index] - true[index]
    return off


def _kernel(fwhm_vox: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Steps in voxels and the share of a voxel's signal that comes from there."""
    lines = [_line(fwhm) for fwhm in fwhm_vox]
    reach = [len(line) // 2 for line in lines]
    steps = np.array(list(product(*(range(-r, r + 1) for r in reach))))
    weights = np.einsum("i,j,k->ijk", *lines).ravel()
    return steps, weights


def _line(fwhm_vox: float) -> np.ndarray:
    """Overlap of a voxel, blurred along one axis, with the voxels before and after it."""
    # The width holds the voxel itself, as in `resolution.point_spread_fwhm`.
    sd = max(fwhm_vox**3 - 1, 0.0) ** (1 / 3) / FWHM_PER_SD
    if sd < 0.05:
        return np.ones(1)
    steps = np.arange(-int(np.ceil(3 * sd)), int(np.ceil(3 * sd)) + 1)
    moved = sd * np.linspace(-4, 4, 161)
    likely = np.exp(-0.5 * (moved / sd) ** 2)
    overlap = np.maximum(0, 1 - np.abs(steps[:, None] - moved)) @ likely
    return overlap / overlap.sum()


def _mixture(
    indices: np.ndarray,
    flat: np.ndarray,
    steps: np.ndarray,
    weights: np.ndarray,
    n_labels: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Average share of each label in the blurred surroundings of some voxels."""
    share = np.zeros(n_labels)
    if len(flat) == 0:
        return share
    chosen = flat if len(flat) <= SAMPLES else rng.choice(flat, SAMPLES, replace=False)
    positions = np.stack(np.unravel_index(chosen, indices.shape))
    edge = np.array(indices.shape)[:, None] - 1
    for step, weight in zip(steps, weights, strict=True):
        at = np.clip(positions + step[:, None], 0, edge)
        share += weight * np.bincount(indices[tuple(at)], minlength=n_labels) / len(chosen)
    return share
