# SPDX-License-Identifier: Apache-2.0
"""Image formation: bias field, noise and point spread of an image."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np

from brainseg_bids.anatomy.grid import triple
from brainseg_bids.contrast.bias import LogField, fit_field, flat_field
from brainseg_bids.contrast.interior import FEWEST_VOXELS, Interior
from brainseg_bids.contrast.measured import (
    LabelStatistics,
    NoiseLaw,
)
from brainseg_bids.contrast.noise import (
    BAD_FIT,
    Background,
    magnitude_law,
    rician_corrected,
    tissue_sigma,
)
from brainseg_bids.contrast.resolution import edge_fwhm_mm, noise_correlation, noise_fwhm_mm
from brainseg_bids.contrast.robust import location_scale
from brainseg_bids.contrast.scene import Scene

BRIGHT_SHARE = 0.45
MOST_LOG_SPREAD = 0.5
"""The field is fitted to labels that are brighter than `BRIGHT_SHARE` of the head's 95th
percentile, and whose logarithm has a standard deviation below this."""


def fit_scene_field(scene: Scene, interior: Interior, rng: np.random.Generator) -> LogField:
    """Log bias field, fitted in bright and homogeneous labels; left and right are one group."""
    flat_image = scene.image.reshape(-1)
    head = flat_image[interior.flat[:: max(1, len(interior.flat) // 200_000)]]
    if len(head) == 0:
        return flat_field()
    dark = BRIGHT_SHARE * float(np.quantile(head, 0.95))
    groups: dict[int, list[np.ndarray]] = {}
    for index, label in enumerate(scene.labels[1:], start=1):
        flat = interior.flat[interior.of(index)]
        values = flat_image[flat]
        if len(flat) < FEWEST_VOXELS or np.median(values) <= dark:
            continue
        flat, values = flat[values > 0.2 * dark], values[values > 0.2 * dark]
        if location_scale(np.log(values[:: max(1, len(values) // 5000)]))[1] < MOST_LOG_SPREAD:
            groups.setdefault(min(label.index, label.mirror), []).append(flat)
    if not groups:
        return flat_field()
    parts = [np.concatenate(flats) for flats in groups.values()]
    starts = np.cumsum([0, *(len(p) for p in parts)])
    flat = np.concatenate(parts)
    positions = np.stack(np.unravel_index(flat, scene.image.shape), -1)
    return fit_field(
        flat_image[flat].astype(np.float64),
        positions,
        starts,
        voxel_size_mm=scene.voxel_size_mm,
        head=scene.head,
        rng=rng,
    )


def field_free(scene: Scene, interior: Interior, field: LogField) -> np.ndarray:
    """Intensities of the interior voxels, divided by the bias field, (n,) float32."""
    values = scene.image.reshape(-1)[interior.flat]
    if not field.coefficients.any():
        return values
    # Thousands of cosines per voxel are dear; slab by slab on the grid they are cheap.
    axes = [np.arange(n) for n in scene.image.shape]
    plane = scene.image.shape[1] * scene.image.shape[2]
    slab = 16
    of_slab = interior.flat // (slab * plane)
    order = np.argsort(of_slab, kind="stable")
    bounds = np.searchsorted(of_slab[order], np.arange(of_slab.max(initial=0) + 2))
    for number, (first, last) in enumerate(pairwise(bounds.tolist())):
        if last == first:
            continue
        log_field = field.on_grid(axes[0][number * slab : (number + 1) * slab], axes[1], axes[2])
        chosen = order[first:last]
        here = interior.flat[chosen] - number * slab * plane
        values[chosen] /= np.exp(log_field.reshape(-1)[here])
    return values


def tissue_noise(
    scene: Scene,
    interior: Interior,
    level: np.ndarray,
    described: list[LabelStatistics],
    span: tuple[float, float] | None,
) -> tuple[float, float, int]:
    """Noise within tissue, from the most homogeneous of the large bright labels.

    Structure within a label adds to the measured noise. Therefore the lower quartile of the
    labels, weighted by their voxels, is taken.

    Parameters
    ----------
    level : (X, Y, Z) uint8
        See `interior.border_depth`.
    described : list of LabelStatistics
        By class index.
    span : (float, float) or None
        For ratio images, see `noise.ratio_span`.

    Returns
    -------
    sigma, location : float
        Standard deviation of the noise, and location of the label that was taken; 0 if there is
        none.
    index : int
        Class index of this label; -1 if there is none.
    """
    zero = 0.0 if span is None else span[0]
    seen = []
    for index, known in enumerate(described):
        if index > 0 and known.interior_voxels >= 200 and known.scale > 0:
            sigma = tissue_sigma(scene.image, interior.flat[interior.of(index)], level)
            if math.isfinite(sigma) and sigma > 0:
                seen.append((sigma, known.location, index, known.interior_voxels))
    if not seen:
        return 0.0, 0.0, -1
    # Magnitude noise is smaller where there is no signal: dark labels would be taken for even.
    brightest = max(location for _, location, _, _ in seen)
    bright = min(brightest, zero + 0.4 * (brightest - zero))
    seen = sorted(s for s in seen if s[1] >= bright)
    share = np.cumsum([s[3] for s in seen]) / sum(s[3] for s in seen)
    sigma, location, index, _ = seen[int(np.searchsorted(share, 0.25))]
    if span is None:  # the noise of a ratio is not Rician
        sigma = rician_corrected(sigma, abs(location))
    return sigma, location, index


def noise_law(
    scene: Scene, behind: Background, in_tissue: float, span: tuple[float, float] | None
) -> NoiseLaw:
    """Noise distribution of an image, from its background or from within tissue.

    Parameters
    ----------
    behind : Background
    in_tissue : float
        Standard deviation of the noise within tissue, see `tissue_noise`.
    span : (float, float) or None
        For ratio images, see `noise.ratio_span`.
    """
    if span is not None:
        low, high = span
        fit = 0.0
        if len(behind.values):
            # Of two noisy inversions of equal noise the ratio is uniform.
            share = np.sort(np.clip((behind.values - low) / (high - low), 0, 1))
            fit = float(np.abs(share - (np.arange(len(share)) + 0.5) / len(share)).max())
        sigma, quiet = in_tissue / (high - low), behind.quiet_share
        return NoiseLaw("ratio", sigma, 1.0, len(behind.values), fit, quiet, low, high)
    masked = behind.masked_share
    if len(behind.values):
        law = magnitude_law(behind.values)
        if law.fit <= BAD_FIT:
            return replace(law, masked_share=masked)
    finite = scene.image[np.isfinite(scene.image)]
    if in_tissue <= 5e-4 * float(np.ptp(finite)):
        return NoiseLaw("none", 0.0, masked_share=masked)
    return NoiseLaw("gaussian", in_tissue, masked_share=masked)


def point_spread(
    scene: Scene,
    interior: Interior,
    described: list[LabelStatistics],
    noise_sd: float,
    even_index: int,
    rng: np.random.Generator,
) -> tuple[tuple[float, float, float], str]:
    """Full width at half maximum of the point spread in mm per axis, and the method.

    The method is one of those of `ContrastStatistics.fwhm_method`.

    Parameters
    ----------
    described : list of LabelStatistics
        By class index.
    noise_sd : float
        Standard deviation of the noise.
    even_index : int
        Class index of a homogeneous label, see `tissue_noise`; -1 if there is none.
    """
    locations = np.array([d.location for d in described])
    edges = edge_fwhm_mm(
        scene.image, scene.indices, locations, noise_sd, scene.voxel_size_mm, rng=rng
    )
    size = np.array(scene.voxel_size_mm)
    seen = [width for width in edges if width is not None]
    # Voxels that are cubes were acquired alike along all axes.
    if len(seen) == 3 or (seen and size.max() / size.min() < 1.1):
        usual = float(np.mean(seen))
        return triple(usual if width is None else width for width in edges), "edges"
    if even_index < 0:
        other = scene.voxel_size_mm
    else:
        flat = interior.flat[interior.of(even_index)]
        correlation = noise_correlation(scene.image, scene.indices, flat)
        other = noise_fwhm_mm(correlation, scene.voxel_size_mm)
    widths = triple(o if e is None else e for e, o in zip(edges, other, strict=True))
    if seen:
        return widths, "edges and noise"
    return widths, "noise" if even_index >= 0 else "voxel size"
