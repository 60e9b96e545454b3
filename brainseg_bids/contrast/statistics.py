# SPDX-License-Identifier: Apache-2.0
"""``measure``: `ContrastStatistics` from an image and its label map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from brainseg_bids.anatomy.fill import without_fill
from brainseg_bids.anatomy.grid import triple
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.anatomy.stripped import brain_alone, brain_and_fluid, is_stripped
from brainseg_bids.contrast import quality_warnings
from brainseg_bids.contrast.bias import flat_field, summarise
from brainseg_bids.contrast.formation import (
    field_free,
    fit_scene_field,
    noise_law,
    point_spread,
    tissue_noise,
)
from brainseg_bids.contrast.imputation import impute
from brainseg_bids.contrast.interior import Interior, find_interior
from brainseg_bids.contrast.label_statistics import describe_all, with_texture, without_spill
from brainseg_bids.contrast.measured import (
    ContrastStatistics,
    LabelStatistics,
)
from brainseg_bids.contrast.noise import (
    find_background,
    is_ratio,
    ratio_span,
)
from brainseg_bids.contrast.scene import Scene, crop_scene, head_positions, head_range, partners

KINDS = ("auto", "magnitude", "ratio")


HISTOGRAM_BINS = 128


def measure(
    image: np.ndarray,
    labels: LabelMap,
    *,
    kind: str = "auto",
    stripped: bool | None = None,
) -> ContrastStatistics:
    """Statistics of an image: intensities of each label, noise, bias field and resolution.

    Parameters
    ----------
    image : (X, Y, Z) float
        On the grid of ``labels``, in the axis order of the file.
    labels : LabelMap
        Inaccurate borders have little effect, since only voxels away from them are used.
    kind : {"auto", "magnitude", "ratio"}
        ``ratio`` is MP2RAGE's UNI image, which has no receive field. ``auto`` recognises it by
        noise that fills the range of the image.
    stripped : bool, optional
        ``SkullStripped`` of the metadata. An image that shows a brain without a head counts as
        skull-stripped in any case. In a skull-stripped image only the brain is measured.

    Returns
    -------
    ContrastStatistics
        With quality warnings in ``warnings``.

    Raises
    ------
    ValueError
        If shapes differ, the image is constant or has no finite voxel, ``kind`` does not exist, no
        voxel has a label (of the brain, if ``stripped``), or the head of a magnitude image has no
        intensity above zero.

    Examples
    --------
    >>> from brainseg_bids.anatomy.grid import Grid
    >>> from brainseg_bids.anatomy.labels import Label, LabelTable
    >>> table = LabelTable([Label(0, "Background"), Label(7, "Ball")], name="demo")
    >>> away = np.linalg.norm(np.indices((40, 40, 40)) - 19.5, axis=0)
    >>> ball = LabelMap((away < 14).astype(np.int16) * 7, Grid((40,) * 3, np.eye(4)), table)
    >>> image = ball.voxels * 10 + np.random.default_rng(0).normal(0, 2, (40, 40, 40))
    >>> statistics = measure(image, ball)
    >>> round(statistics["Ball"].location), round(statistics["Ball"].scale)
    (70, 2)
    """
    _check(image, labels, kind)
    image, fills = without_fill(np.asarray(image, dtype=np.float32))
    air = labels.grid.array_to_ras(labels.voxels) == 0
    labels, is_bare, about_head = _brain_if_stripped(image, labels, stripped)
    warnings = [*map(str, fills), *quality_warnings.of_image(image), *about_head]
    image = labels.grid.array_to_ras(image)
    scene = crop_scene(image, labels.grid.array_to_ras(labels.voxels), labels)
    measured = _measure_scene(scene, image, air, kind, labels.table, stripped=is_bare)
    return replace(measured, warnings=(*warnings, *measured.warnings))


def _measure_scene(
    scene: Scene,
    image: np.ndarray,
    air: np.ndarray,
    kind: str,
    table: LabelTable,
    *,
    stripped: bool,
) -> ContrastStatistics:
    """`measure` of what was made ready; ``image`` and ``air`` are whole, on RAS axes."""
    rng = np.random.default_rng(0)
    interior, level = _interior(scene)
    behind = find_background(image, air, scene.voxel_size_mm, rng=rng)
    ratio = kind == "ratio" or (kind == "auto" and is_ratio(behind))
    low, high = head_range(scene)
    if not ratio:
        _check_bright(high)
    span = ratio_span(image) if ratio else None
    field = flat_field() if ratio else fit_scene_field(scene, interior, rng)
    positions = head_positions(scene, rng)
    field = field.shifted(float(field.at_voxels(positions).mean()))
    values = field_free(scene, interior, field)
    edges = _edges(values)
    described = describe_all(scene, interior, values, edges, behind)
    in_tissue, _, even = tissue_noise(scene, interior, level, described, span)
    noise = noise_law(scene, behind, in_tissue, span)
    fwhm_mm, method = point_spread(scene, interior, described, in_tissue, even, rng)
    described = with_texture(scene, interior, values, fwhm_mm, described, rng)
    described = without_spill(scene, interior, described, fwhm_mm, rng)
    named = _that_have_voxels(scene, described)
    warnings = list(
        quality_warnings.of_labels(table, named, scene.image, scene.indices, brain_alone=stripped)
    )
    warnings += quality_warnings.of_noise(
        noise, in_tissue, ratio=ratio, masked_share=behind.masked_share
    )
    named, alone = impute(named, table)
    warnings += [f"{name} has no similar label: all its voxels were taken." for name in alone]
    return ContrastStatistics(
        table=table.name,
        labels=named,
        noise=noise,
        bias=summarise(
            field,
            offset=triple(-o for o in scene.offset),
            shape=scene.whole_shape,
            voxel_size_mm=scene.voxel_size_mm,
            head_positions=positions,
        ),
        fwhm_mm=fwhm_mm,
        voxel_size_mm=scene.voxel_size_mm,
        head_low=low,
        head_high=high,
        edges=tuple(float(e) for e in edges),
        warnings=tuple(warnings),
        fwhm_method=method,
        stripped=stripped,
    )


def _that_have_voxels(
    scene: Scene, described: Sequence[LabelStatistics]
) -> dict[str, LabelStatistics]:
    """Statistics by name, of labels that the image has."""
    named = {label.name: described[index] for index, label in enumerate(scene.labels)}
    return {name: known for name, known in named.items() if known.voxels > 0}


def _check(image: np.ndarray, labels: LabelMap, kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"there is no kind of image {kind!r}; known: {', '.join(KINDS)}")
    if image.shape != labels.voxels.shape:
        raise ValueError(
            f"the image has {image.shape} voxels, its label map {labels.voxels.shape}; "
            "bring both to one grid"
        )
    low, high = np.fmin.reduce(image, axis=None), np.fmax.reduce(image, axis=None)
    if not (np.isfinite(low) or np.isfinite(high)) and not np.isfinite(image).any():
        raise ValueError("the image has no finite voxel; check the export")
    if low == high:
        raise ValueError(f"every voxel of the image is {low:g}; check the export")
    if not labels.voxels.any():
        raise ValueError("no voxel of the label map is labelled; check that it is the right file")


def _brain_if_stripped(
    image: np.ndarray, labels: LabelMap, stripped: bool | None
) -> tuple[LabelMap, bool, list[str]]:
    """Labels that may be measured, whether they are the brain alone, and warnings of it."""
    shows_no_head = is_stripped(image, brain_and_fluid(labels), labels.grid)
    if not (shows_no_head or stripped):
        return labels, False, []
    brain = brain_alone(labels)
    if not brain.voxels.any():
        raise ValueError(
            "SkullStripped in its metadata is true, and its label map has no structure of the "
            "brain. Correct the metadata, or give another label map"
        )
    warnings = quality_warnings.of_stripped(labels, stripped, seen=shows_no_head)
    return brain, True, list(warnings)


def _interior(scene: Scene) -> tuple[Interior, np.ndarray]:
    """Voxels away from borders, and the local level around them."""
    finite = np.isfinite(scene.image)
    return find_interior(
        scene.indices,
        len(scene.labels),
        scene.voxel_size_mm,
        usable=None if finite.all() else finite,
        partners=partners(scene.labels),
    )


def _check_bright(head_high: float) -> None:
    """Refuse a magnitude image without signal."""
    if head_high <= 0:
        raise ValueError(
            f"its head has no intensity above zero (99.5th percentile {head_high:g}); give the "
            "image as it was before normalisation, or say that it is a ratio (MP2RAGE UNI)"
        )


def _edges(values: np.ndarray) -> np.ndarray:
    if len(values) == 0:
        return np.zeros(0)
    low, high = np.quantile(values[:: max(1, len(values) // 500_000)], [0.0002, 0.9998])
    low = min(float(low), 0.0)
    return np.linspace(low, float(high) if high > low else low + 1.0, HISTOGRAM_BINS + 1)
