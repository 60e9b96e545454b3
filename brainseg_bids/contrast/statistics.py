# SPDX-License-Identifier: Apache-2.0
"""``measure``: one image and its label map to `ContrastStatistics`."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from brainseg_bids.anatomy.fill import without_fill
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import Label, LabelTable
from brainseg_bids.anatomy.stripped import brain_alone, brain_and_fluid, is_stripped
from brainseg_bids.contrast import doubts
from brainseg_bids.contrast.bias import LogField, fit_field, flat_field, summarise
from brainseg_bids.contrast.grain import autocorrelation, grain_of
from brainseg_bids.contrast.interior import FEWEST_VOXELS, Interior, find_interior
from brainseg_bids.contrast.measured import (
    MASKED_SHARE,
    BiasField,
    Component,
    ContrastStatistics,
    LabelStatistics,
    NoiseLaw,
)
from brainseg_bids.contrast.mixture import describe, ks_distance
from brainseg_bids.contrast.noise import (
    BAD_FIT,
    Background,
    find_background,
    is_ratio,
    magnitude_law,
    ratio_span,
    rician_corrected,
    tissue_sigma,
)
from brainseg_bids.contrast.partial import spilled_in
from brainseg_bids.contrast.resolution import edge_fwhm_mm, noise_correlation, noise_fwhm_mm
from brainseg_bids.contrast.robust import location_scale, median_mad

KINDS = ("auto", "magnitude", "ratio")

MARGIN_MM = 12.0
"""Air around the head that is looked at, for borders of the skin."""

HISTOGRAM_BINS = 128

MOST_VALUES = 100_000
"""Voxels of a label that its distribution is fitted to; more change nothing."""

BRIGHT_SHARE = 0.45
MOST_LOG_SPREAD = 0.5
"""The field is fitted to labels brighter than this share of the head's 95th percentile, whose
logarithm spreads no more than this."""


@dataclass(frozen=True)
class _Scene:
    """An image and its labels, cropped to the head, on axes towards R, A, S.

    Parameters
    ----------
    image : (X, Y, Z) float32, C order
    ranks : (X, Y, Z) uint8 or uint16
        Rank among ``labels``; 0 is air.
    labels : tuple of Label
        What is there; the first is the table's background.
    offset : tuple of 3 int
        Voxel of the whole image at which the crop begins.
    """

    image: np.ndarray
    ranks: np.ndarray
    labels: tuple[Label, ...]
    offset: tuple[int, int, int]
    head: tuple[slice, slice, slice]
    voxel_size_mm: tuple[float, float, float]
    whole_shape: tuple[int, int, int]


def measure(
    image: np.ndarray,
    labels: LabelMap,
    *,
    background: np.ndarray | None = None,
    kind: str = "auto",
    threads: int = 1,
    stripped: bool | None = None,
) -> ContrastStatistics:
    """Measure what each label looks like, and how the image was formed.

    Parameters
    ----------
    image : (X, Y, Z) float
        On the grid of ``labels``, axes as on disk.
    labels : LabelMap
        Rough borders do no harm: only voxels away from them are used.
    background : (X, Y, Z) bool, optional
        Where noise may be looked for; by default far from everything labelled.
    kind : {"auto", "magnitude", "ratio"}
        ``ratio``: MP2RAGE's UNI, which has no receive field; ``auto`` tells it by noise that
        fills the image's range.
    threads : int
        Labels that are described at the same time.
    stripped : bool, optional
        Whether the image is said to be skull-stripped. One that shows a brain without its head is
        taken for stripped whatever is said; of a stripped one only the brain is measured.

    Returns
    -------
    ContrastStatistics
        What is doubtful is in ``warnings``.

    Raises
    ------
    ValueError
        If shapes differ, the image has no finite or no differing voxels, there is no such kind,
        no voxel is labelled, or a magnitude image has nothing above zero in the head.

    Examples
    --------
    >>> from brainseg_bids.anatomy.grid import Grid
    >>> table = LabelTable([Label(0, "Background"), Label(7, "Ball")], name="demo")
    >>> away = np.linalg.norm(np.indices((40, 40, 40)) - 19.5, axis=0)
    >>> ball = LabelMap((away < 14).astype(np.int16) * 7, Grid((40,) * 3, np.eye(4)), table)
    >>> image = ball.voxels * 10 + np.random.default_rng(0).normal(0, 2, (40, 40, 40))
    >>> statistics = measure(image, ball)
    >>> round(statistics["Ball"].location), round(statistics["Ball"].scale)
    (70, 2)
    """
    _check(image, labels, background, kind)
    rng = np.random.default_rng(0)
    image, fills = without_fill(np.asarray(image, dtype=np.float32))
    warnings = [*map(str, fills), *doubts.of_image(image)]
    grid, labelled = labels.grid, labels.grid.array_to_ras(labels.voxels) != 0
    shows_no_head = is_stripped(image, brain_and_fluid(labels), grid)
    if is_bare := shows_no_head or bool(stripped):
        whole, labels = labels, brain_alone(labels)
        warnings += doubts.of_stripped(whole, stripped, seen=shows_no_head)
    image, voxels = grid.array_to_ras(image), grid.array_to_ras(labels.voxels)
    scene = _crop(image, voxels, labels)
    finite = np.isfinite(scene.image)
    usable = None if finite.all() else finite
    interior, level = find_interior(
        scene.ranks,
        len(scene.labels),
        scene.voxel_size_mm,
        usable=usable,
        partners=_partners(scene.labels),
    )
    air = ~labelled
    if background is not None:
        air &= grid.array_to_ras(np.asarray(background, dtype=bool))
    behind = find_background(image, air, scene.voxel_size_mm, rng=rng)
    ratio = kind == "ratio" or (kind == "auto" and is_ratio(behind))
    low, high = _head_range(scene)
    if not ratio:
        _check_bright(high)
    span = ratio_span(image) if ratio else None
    field = flat_field() if ratio else _fit_field(scene, interior, rng)
    head_places = _head_places(scene, rng)
    field = field.shifted(float(field.at_voxels(head_places).mean()))
    values = _field_free(scene, interior, field)
    edges = _edges(values)
    described = _describe_all(scene, interior, values, edges, behind, threads=threads)
    in_tissue, _, even = _tissue_noise(scene, interior, level, described, span)
    noise = _noise(scene, behind, in_tissue, span)
    fwhm_mm, method = _resolution(scene, interior, described, in_tissue, even, rng)
    described = _with_grain(scene, interior, values, fwhm_mm, described, rng)
    described = _without_spill(scene, interior, described, fwhm_mm, rng)
    named = {label.name: described[rank] for rank, label in enumerate(scene.labels)}
    named = {name: known for name, known in named.items() if known.voxels > 0}
    warnings += doubts.of_labels(
        labels.table, named, scene.image, scene.ranks, brain_alone=is_bare
    )
    masked = behind.masked_share
    warnings += doubts.of_noise(noise, in_tissue, ratio=ratio, masked_share=masked)
    named, alone = _borrow(named, labels.table)
    warnings += [
        f"{name} has nothing to borrow from: all its voxels were taken." for name in alone
    ]
    return ContrastStatistics(
        table=labels.table.name,
        labels=named,
        noise=noise,
        bias=_bias(scene, field, head_places),
        fwhm_mm=fwhm_mm,
        voxel_size_mm=scene.voxel_size_mm,
        head_low=low,
        head_high=high,
        edges=tuple(float(e) for e in edges),
        warnings=tuple(warnings),
        fwhm_method=method,
        stripped=is_bare,
    )


def _check(image: np.ndarray, labels: LabelMap, background: np.ndarray | None, kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"there is no kind of image {kind!r}; known: {', '.join(KINDS)}")
    if image.shape != labels.voxels.shape:
        raise ValueError(
            f"the image has {image.shape} voxels, its label map {labels.voxels.shape}; "
            "bring both to one grid"
        )
    if background is not None and background.shape != image.shape:
        raise ValueError(
            f"the image has {image.shape} voxels, its background mask {background.shape}; "
            "bring both to one grid"
        )
    low, high = np.fmin.reduce(image, axis=None), np.fmax.reduce(image, axis=None)
    if not (np.isfinite(low) or np.isfinite(high)) and not np.isfinite(image).any():
        raise ValueError("the image has no finite voxel; check the export")
    if low == high:
        raise ValueError(f"every voxel of the image is {low:g}; check the export")
    if not labels.voxels.any():
        raise ValueError("no voxel of the label map is labelled; check that it is the right file")


def _check_bright(head_high: float) -> None:
    """Refuse a magnitude image without signal."""
    if head_high <= 0:
        raise ValueError(
            f"its head has no intensity above zero (99.5th percentile {head_high:g}); give the "
            "image as it was before normalisation, or say that it is a ratio (MP2RAGE UNI)"
        )


def _ranked(voxels: np.ndarray, table: LabelTable) -> tuple[np.ndarray, list[Label]]:
    """Voxels as ranks among the labels that are there; rank 0 is outside air."""
    highest = int(table.codes[-1])
    seen = np.zeros(highest + 1, dtype=bool)
    for slab in voxels:
        seen[np.bincount(slab.ravel(), minlength=highest + 1) > 0] = True
    air = table[0] if 0 in table else Label(0, "Background")
    present = [air, *(table[int(code)] for code in np.flatnonzero(seen) if code != 0)]
    lookup = np.zeros(highest + 1, dtype=np.uint8 if len(present) < 256 else np.uint16)
    for rank, label in enumerate(present):
        lookup[label.index] = rank
    return np.take(lookup, voxels), present


def _crop(image: np.ndarray, voxels: np.ndarray, labels: LabelMap) -> _Scene:
    """The head with some air around; arrays are on RAS axes."""
    order = labels.grid.to_ras()
    size = order.voxel_size_mm
    taken = voxels != 0
    box, wide = [], []
    for axis in range(3):
        lines = np.flatnonzero(taken.any(axis=tuple(a for a in range(3) if a != axis)))
        margin = math.ceil(MARGIN_MM / size[axis])
        start, stop = int(lines[0]), int(lines[-1]) + 1
        wide.append(slice(max(0, start - margin), min(voxels.shape[axis], stop + margin)))
        box.append(slice(start - wide[-1].start, stop - wide[-1].start))
    ranks, present = _ranked(voxels[tuple(wide)], labels.table)
    return _Scene(
        image=np.ascontiguousarray(image[tuple(wide)], dtype=np.float32),
        ranks=np.ascontiguousarray(ranks),
        labels=tuple(present),
        offset=tuple(s.start for s in wide),
        head=tuple(box),
        voxel_size_mm=size,
        whole_shape=voxels.shape,
    )


def _partners(labels: tuple[Label, ...]) -> np.ndarray:
    """Rank of each label's mirror, (labels,) int; its own where the mirror is not there."""
    rank_of = {label.index: rank for rank, label in enumerate(labels)}
    return np.array([rank_of.get(label.mirror, rank) for rank, label in enumerate(labels)])


def _fit_field(scene: _Scene, interior: Interior, rng: np.random.Generator) -> LogField:
    """The field in labels that are bright and even; a label and its mirror are one."""
    flat_image = scene.image.reshape(-1)
    head = flat_image[interior.flat[:: max(1, len(interior.flat) // 200_000)]]
    if len(head) == 0:
        return flat_field()
    dark = BRIGHT_SHARE * float(np.quantile(head, 0.95))
    groups: dict[int, list[np.ndarray]] = {}
    for rank, label in enumerate(scene.labels[1:], start=1):
        flat = interior.flat[interior.of(rank)]
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
    places = np.stack(np.unravel_index(flat, scene.image.shape), -1)
    return fit_field(
        flat_image[flat].astype(np.float64),
        places,
        starts,
        voxel_size_mm=scene.voxel_size_mm,
        head=scene.head,
        rng=rng,
    )


def _head_places(scene: _Scene, rng: np.random.Generator) -> np.ndarray:
    """Some voxels of the head, (n, 3) int."""
    flat = np.flatnonzero(scene.ranks)
    flat = flat if len(flat) <= 20_000 else rng.choice(flat, 20_000, replace=False)
    return np.stack(np.unravel_index(flat, scene.ranks.shape), -1)


def _field_free(scene: _Scene, interior: Interior, field: LogField) -> np.ndarray:
    """Interior voxels, the field divided out, (n,) float32."""
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


def _head_range(scene: _Scene) -> tuple[float, float]:
    flat = np.flatnonzero(scene.ranks)
    values = scene.image.reshape(-1)[flat[:: max(1, len(flat) // 1_000_000)]]
    low, high = np.percentile(values[np.isfinite(values)], [0.5, 99.5])
    return float(low), float(high)


def _edges(values: np.ndarray) -> np.ndarray:
    if len(values) == 0:
        return np.zeros(0)
    low, high = np.quantile(values[:: max(1, len(values) // 500_000)], [0.0002, 0.9998])
    low = min(float(low), 0.0)
    return np.linspace(low, float(high) if high > low else low + 1.0, HISTOGRAM_BINS + 1)


def _describe_all(
    scene: _Scene,
    interior: Interior,
    values: np.ndarray,
    edges: np.ndarray,
    behind: Background,
    *,
    threads: int,
) -> list[LabelStatistics]:
    """Statistics by rank; a label with too few interior voxels has a location of NaN."""
    raw = _by_label(scene)

    def one(rank: int) -> LabelStatistics:
        voxels, median, mad = raw(rank)
        bare = LabelStatistics(voxels, 0, math.nan, math.nan, median, mad)
        if rank == 0:
            return _describe_air(bare, scene, behind, edges)
        mine = interior.of(rank)
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

    with ThreadPoolExecutor(max(1, threads)) as pool:
        return list(pool.map(one, range(len(scene.labels))))


def _by_label(scene: _Scene) -> Callable[[int], tuple[int, float, float]]:
    """Function from rank to voxels, median and MAD of the image as it is."""
    flat = np.flatnonzero(scene.ranks)
    ranks = scene.ranks.reshape(-1)[flat]
    order = np.argsort(ranks, kind="stable")
    values = scene.image.reshape(-1)[flat[order]]
    starts = np.searchsorted(ranks[order], np.arange(len(scene.labels) + 1))
    in_box = math.prod(scene.whole_shape) - len(flat)

    def of(rank: int) -> tuple[int, float, float]:
        if rank == 0:
            mine, count = scene.image[scene.ranks == 0][::7], in_box
        else:
            mine = values[starts[rank] : starts[rank + 1]]
            count = len(mine)
        mine = mine[np.isfinite(mine)]
        return (count, *(median_mad(mine) if len(mine) else (0.0, 0.0)))

    return of


def _describe_air(
    bare: LabelStatistics, scene: _Scene, behind: Background, edges: np.ndarray
) -> LabelStatistics:
    """The background, which has no interior and no field."""
    masked = behind.masked_share > MASKED_SHARE
    values = behind.everywhere if masked or len(behind.values) == 0 else behind.values
    if len(values) == 0:
        values = scene.image[scene.ranks == 0]
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


def _without_spill(
    scene: _Scene,
    interior: Interior,
    described: list[LabelStatistics],
    fwhm_mm: tuple[float, float, float],
    rng: np.random.Generator,
) -> list[LabelStatistics]:
    """Locations of thin labels without their neighbours' share; by one scale at most."""
    locations = np.array([known.location for known in described])
    fwhm_vox = tuple(w / s for w, s in zip(fwhm_mm, scene.voxel_size_mm, strict=True))
    off = spilled_in(scene.ranks, interior, locations, fwhm_vox, rng=rng)
    found = []
    for known, by in zip(described, off.tolist(), strict=True):
        if by == 0 or not known.scale > 0:
            found.append(known)
            continue
        by = min(max(by, -known.scale), known.scale)
        parts = tuple(replace(part, mean=part.mean - by) for part in known.components)
        found.append(replace(known, location=known.location - by, components=parts))
    return found


def _with_grain(
    scene: _Scene,
    interior: Interior,
    values: np.ndarray,
    fwhm_mm: tuple[float, float, float],
    described: list[LabelStatistics],
    rng: np.random.Generator,
) -> list[LabelStatistics]:
    location = np.array([d.location for d in described], dtype=np.float32)
    scale = np.array([d.scale for d in described], dtype=np.float32)
    ranks = interior.ranks()
    residual = np.full(scene.image.size, np.nan, dtype=np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        residual[interior.flat] = (values - location[ranks]) / scale[ranks]
    distance_mm, product, spread = autocorrelation(
        residual.reshape(scene.image.shape), scene.ranks, interior, scene.voxel_size_mm, rng=rng
    )
    widest = max(fwhm_mm)
    found = []
    for rank, known in enumerate(described):
        if rank == 0 or not known.scale > 0:
            found.append(known)
            continue
        grain_mm, grain_frac = grain_of(
            distance_mm, product[rank], spread[rank], resolution_mm=widest
        )
        if grain_frac < 3 / math.sqrt(known.interior_voxels):  # may well be chance
            grain_mm, grain_frac = None, 0.0
        found.append(replace(known, grain_mm=grain_mm, grain_frac=grain_frac))
    return found


def _tissue_noise(
    scene: _Scene,
    interior: Interior,
    level: np.ndarray,
    described: list[LabelStatistics],
    span: tuple[float, float] | None,
) -> tuple[float, float, int]:
    """Noise in the evenest of the large labels: sigma, its location, its rank (-1: none).

    Structure adds to noise, never takes from it: the labels' lower quartile by voxels is taken.
    ``span`` is a ratio's, see `ratio_span`.
    """
    zero = 0.0 if span is None else span[0]
    seen = []
    for rank, known in enumerate(described):
        if rank > 0 and known.interior_voxels >= 200 and known.scale > 0:
            sigma = tissue_sigma(scene.image, interior.flat[interior.of(rank)], level)
            if math.isfinite(sigma) and sigma > 0:
                seen.append((sigma, known.location, rank, known.interior_voxels))
    if not seen:
        return 0.0, 0.0, -1
    # Magnitude noise is smaller where there is no signal: dark labels would be taken for even.
    brightest = max(location for _, location, _, _ in seen)
    bright = min(brightest, zero + 0.4 * (brightest - zero))
    seen = sorted(s for s in seen if s[1] >= bright)
    share = np.cumsum([s[3] for s in seen]) / sum(s[3] for s in seen)
    sigma, location, rank, _ = seen[int(np.searchsorted(share, 0.25))]
    if span is None:  # the noise of a ratio is not Rician
        sigma = rician_corrected(sigma, abs(location))
    return sigma, location, rank


def _noise(
    scene: _Scene, behind: Background, in_tissue: float, span: tuple[float, float] | None
) -> NoiseLaw:
    """The law; ``span`` is a ratio's, see `ratio_span`."""
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


def _resolution(
    scene: _Scene,
    interior: Interior,
    described: list[LabelStatistics],
    noise_sd: float,
    even_rank: int,
    rng: np.random.Generator,
) -> tuple[tuple[float, float, float], str]:
    """Width of the point spread per axis, and how it was found."""
    locations = np.array([d.location for d in described])
    edges = edge_fwhm_mm(
        scene.image, scene.ranks, locations, noise_sd, scene.voxel_size_mm, rng=rng
    )
    size = np.array(scene.voxel_size_mm)
    seen = [width for width in edges if width is not None]
    if seen and size.max() / size.min() < 1.1:
        # Voxels that are cubes were acquired alike along all axes.
        edges = tuple(float(np.mean(seen)) if width is None else width for width in edges)
    if all(width is not None for width in edges):
        return edges, "edges"
    if even_rank < 0:
        other = scene.voxel_size_mm
    else:
        flat = interior.flat[interior.of(even_rank)]
        correlation = noise_correlation(scene.image, scene.ranks, flat)
        other = noise_fwhm_mm(correlation, scene.voxel_size_mm)
    widths = tuple(o if e is None else e for e, o in zip(edges, other, strict=True))
    if seen:
        return widths, "edges and noise"
    return widths, "noise" if even_rank >= 0 else "voxel size"


def _bias(scene: _Scene, field: LogField, head_places: np.ndarray) -> BiasField:
    return summarise(
        field,
        offset=tuple(-o for o in scene.offset),
        shape=scene.whole_shape,
        voxel_size_mm=scene.voxel_size_mm,
        head_places=head_places,
    )


def _borrow(
    named: dict[str, LabelStatistics], table: LabelTable
) -> tuple[dict[str, LabelStatistics], list[str]]:
    """What could not be measured, from the mirror or the most similar of the same tissue.

    Returns
    -------
    labels : dict of str to LabelStatistics
    alone : list of str
        Labels that found nothing to borrow; they keep the median and MAD of all their voxels.
    """
    measured = {name for name, s in named.items() if math.isfinite(s.location)}
    out, alone = {}, []
    for name, own in named.items():
        if name in measured:
            out[name] = own
            continue
        label = table[name]
        lender = table[label.mirror].name
        if lender not in measured:
            kin = [n for n in measured if n in table and table[n].mapping == label.mapping]
            kin = [n for n in kin if table[n].index != 0]
            lender = min(kin, key=lambda n: abs(named[n].median - own.median), default=None)
        if lender is None:
            alone.append(name)
            only = (Component(1.0, own.median, own.mad),)
            out[name] = replace(own, location=own.median, scale=own.mad, components=only)
            continue
        lent = named[lender]
        out[name] = replace(
            lent,
            voxels=own.voxels,
            interior_voxels=own.interior_voxels,
            median=own.median,
            mad=own.mad,
            source=f"borrowed from {lender}",
            histogram=(),
        )
    return out, alone
