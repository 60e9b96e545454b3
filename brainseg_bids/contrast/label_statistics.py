# SPDX-License-Identifier: Apache-2.0
"""Intensities of each label: distribution, correlated texture, spill-in from neighbours."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from brainseg_bids.anatomy.grid import triple
from brainseg_bids.contrast.interior import FEWEST_VOXELS, Interior
from brainseg_bids.contrast.measured import (
    MASKED_SHARE,
    Component,
    LabelStatistics,
)
from brainseg_bids.contrast.mixture import describe, ks_distance
from brainseg_bids.contrast.noise import (
    Background,
)
from brainseg_bids.contrast.partial import spilled_in
from brainseg_bids.contrast.robust import location_scale, median_mad
from brainseg_bids.contrast.scene import Scene
from brainseg_bids.contrast.texture import autocorrelation, correlated_texture

MOST_VALUES = 100_000
"""Largest number of voxels of a label used to fit its distribution; more have no effect."""


def describe_all(
    scene: Scene,
    interior: Interior,
    values: np.ndarray,
    edges: np.ndarray,
    behind: Background,
) -> list[LabelStatistics]:
    """Statistics of each label, ordered by class index.

    Parameters
    ----------
    values : (n,) float
        Intensities of the interior voxels without bias field, see `formation.field_free`.
    edges : (bins + 1,) float
        Edges of the histograms.
    behind : Background

    Returns
    -------
    list of LabelStatistics
        The location is NaN if a label has too few interior voxels.
    """
    raw = _by_label(scene)

    def one(index: int) -> LabelStatistics:
        voxels, median, mad = raw(index)
        bare = LabelStatistics(voxels, 0, math.nan, math.nan, median, mad)
        if index == 0:
            return _describe_air(bare, scene, behind, edges)
        mine = interior.of(index)
        count = mine.stop - mine.start
        if count < FEWEST_VOXELS:
            return replace(bare, interior_voxels=count)
        step = max(1, count // MOST_VALUES)
        shape = describe(values[mine][::step], interior.weights[mine][::step])
        return replace(
            bare,
            interior_voxels=count,
            location=shape.location,
            scale=shape.scale,
            components=shape.components,
            fit=shape.fit,
            histogram=tuple(np.histogram(values[mine], edges)[0].tolist()),
        )

    return [one(index) for index in range(len(scene.labels))]


def _by_label(scene: Scene) -> Callable[[int], tuple[int, float, float]]:
    """Function from class index to voxels, median and MAD of the image as it is."""
    flat = np.flatnonzero(scene.indices)
    indices = scene.indices.reshape(-1)[flat]
    order = np.argsort(indices, kind="stable")
    values = scene.image.reshape(-1)[flat[order]]
    starts = np.searchsorted(indices[order], np.arange(len(scene.labels) + 1))
    in_box = math.prod(scene.whole_shape) - len(flat)

    def of(index: int) -> tuple[int, float, float]:
        if index == 0:
            mine, count = scene.image[scene.indices == 0][::7], in_box
        else:
            mine = values[starts[index] : starts[index + 1]]
            count = len(mine)
        mine = mine[np.isfinite(mine)]
        return (count, *(median_mad(mine) if len(mine) else (0.0, 0.0)))

    return of


def _describe_air(
    bare: LabelStatistics, scene: Scene, behind: Background, edges: np.ndarray
) -> LabelStatistics:
    """The background, which has no interior and no field."""
    masked = behind.masked_share > MASKED_SHARE
    values = behind.everywhere if masked or len(behind.values) == 0 else behind.values
    if len(values) == 0:
        values = scene.image[scene.indices == 0]
        values = values[np.isfinite(values)][:: max(1, len(values) // MOST_VALUES)]
    if len(values) == 0:
        return replace(bare, location=0.0, scale=0.0)
    location, scale = location_scale(values)
    only = (Component(1.0, location, scale),)
    return replace(
        bare,
        interior_voxels=len(values),
        location=location,
        scale=scale,
        components=only,
        fit=ks_distance(values, np.ones(len(values)), only) if scale > 0 else 0.0,
        histogram=tuple(np.histogram(values, edges)[0].tolist()) if len(edges) else (),
    )


def without_spill(
    scene: Scene,
    interior: Interior,
    described: list[LabelStatistics],
    fwhm_mm: tuple[float, float, float],
    rng: np.random.Generator,
) -> list[LabelStatistics]:
    """Statistics with locations corrected for spill-in from neighbours, by at most one scale.

    Parameters
    ----------
    described : list of LabelStatistics
        By class index.
    fwhm_mm : tuple of 3 float
        Full width at half maximum of the point spread.

    Returns
    -------
    list of LabelStatistics
    """
    locations = np.array([known.location for known in described])
    fwhm_vox = triple(w / s for w, s in zip(fwhm_mm, scene.voxel_size_mm, strict=True))
    off = spilled_in(scene.indices, interior, locations, fwhm_vox, rng=rng)
    found = []
    for known, by in zip(described, off.tolist(), strict=True):
        if by == 0 or not known.scale > 0:
            found.append(known)
            continue
        by = min(max(by, -known.scale), known.scale)
        parts = tuple(replace(part, mean=part.mean - by) for part in known.components)
        found.append(replace(known, location=known.location - by, components=parts))
    return found


def with_texture(
    scene: Scene,
    interior: Interior,
    values: np.ndarray,
    fwhm_mm: tuple[float, float, float],
    described: list[LabelStatistics],
    rng: np.random.Generator,
) -> list[LabelStatistics]:
    """Statistics with the correlated texture of each label added.

    Parameters
    ----------
    values : (n,) float
        Intensities of the interior voxels without bias field.
    fwhm_mm : tuple of 3 float
        Full width at half maximum of the point spread.
    described : list of LabelStatistics
        By class index.

    Returns
    -------
    list of LabelStatistics
    """
    location = np.array([d.location for d in described], dtype=np.float32)
    scale = np.array([d.scale for d in described], dtype=np.float32)
    indices = interior.indices()
    residual = np.full(scene.image.size, np.nan, dtype=np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        residual[interior.flat] = (values - location[indices]) / scale[indices]
    distance_mm, product, spread = autocorrelation(
        residual.reshape(scene.image.shape), scene.indices, interior, scene.voxel_size_mm, rng=rng
    )
    widest = max(fwhm_mm)
    found = []
    for index, known in enumerate(described):
        if index == 0 or not known.scale > 0:
            found.append(known)
            continue
        grain_mm, grain_frac = correlated_texture(
            distance_mm, product[index], spread[index], resolution_mm=widest
        )
        if grain_frac < 3 / math.sqrt(known.interior_voxels):  # may well be chance
            grain_mm, grain_frac = None, 0.0
        found.append(replace(known, grain_mm=grain_mm, grain_frac=grain_frac))
    return found
