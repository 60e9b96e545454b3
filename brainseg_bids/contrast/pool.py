# SPDX-License-Identifier: Apache-2.0
"""``pool``: statistics of many images of one contrast become one `ContrastPrior`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from brainseg_bids.anatomy.labels import Label, LabelTable
from brainseg_bids.contrast import joint
from brainseg_bids.contrast.alignment import TOP, gains, ratio_range
from brainseg_bids.contrast.imputation import Imputation, imputations
from brainseg_bids.contrast.measured import (
    Component,
    ContrastStatistics,
    LabelStatistics,
    NoiseLaw,
)
from brainseg_bids.contrast.pool_checks import (
    check_statistics,
    few_labels,
    is_ratio_image,
    mixed_voxels,
    of_one_kind,
    outliers,
    with_a_zero,
)
from brainseg_bids.contrast.prior import ContrastPrior, LabelPrior, NoisePrior, Spread
from brainseg_bids.contrast.weighted import log_spread, weighted_median
from brainseg_bids.units import natural_order

USUAL_LOG_SD = {"sd": 0.35, "bias": 0.4, "smoothness": 0.25, "fwhm": 0.15, "sigma": 0.4}
"""Prior standard deviation of logarithms over images. ``sd`` is the median over the classes of the
T1 priors published with SynthSeg (Billot et al. 2023); the others are own choices."""
LEAST_LOG_SD = {"sd": 0.1, "bias": 0.15, "smoothness": 0.1, "fwhm": 0.05, "sigma": 0.15}
"""Smallest standard deviation of logarithms over images."""

LEAST_SD = 0.05
"""Smallest standard deviation of a label within an image, in units of 255: below the steps of any
stored image."""
LEAST_BIAS = 1e-3
OWN_FRAC = 0.1
"""Smallest fraction of a label's scale that is left after noise is removed."""
UNMEASURED_NOISE_FRAC = 0.5
"""Noise of images in which it could not be measured, relative to the scale of the most homogeneous
brain tissue."""
GAUSSIAN = (Component(1.0, 0.0, 1.0),)
LAW = "noise law"


@dataclass(frozen=True)
class _Units:
    """How each of n images becomes units of 255: ``(value - zero) * factor``.

    ``noise`` is its noise in those units, NaN where it is not known.
    """

    zero: np.ndarray
    factor: np.ndarray
    noise: np.ndarray


@dataclass(frozen=True)
class _Rows:
    """Labels of n images, (n, p) each, in units of each image; NaN where not measured."""

    labels: tuple[Label, ...]
    location: np.ndarray
    scale: np.ndarray
    interior: np.ndarray


def pool(
    statistics: Mapping[str, ContrastStatistics],
    *,
    name: str,
    table: LabelTable,
    subjects: Mapping[str, str],
    metadata: dict[str, Any] | None = None,
    images: Sequence[dict[str, Any]] = (),
) -> ContrastPrior:
    """Contrast prior from the statistics of images of one contrast.

    Parameters
    ----------
    statistics : mapping of str to ContrastStatistics
        Statistics by image, in any order.
    name : str
        Name of the contrast.
    table : LabelTable
        Label table of the statistics.
    subjects : mapping of str to str
        Subject of each image. Several images of a subject count as one.
    metadata : dict, optional
        BIDS metadata that define the contrast.
    images : sequence of dict
        Provenance, see `ContrastPrior`; default: image and subject. ``name`` (or ``image`` without
        a name) is the key in ``statistics``. Images that are excluded are removed.

    Returns
    -------
    ContrastPrior
        With every label of the table.

    Raises
    ------
    ValueError
        If there are no statistics, they are of another label table, an image has no subject or no
        measured label, there are as many ratio images as other images, or all magnitude images
        have brain labels below zero. The message is one line.

    Notes
    -----
    Magnitude images are brought to common units by one factor each (`alignment.gains`), ratio
    images by their range (`alignment.ratio_range`). The locations of labels have a joint normal
    distribution (`joint.fit`). Positive quantities are lognormal (`weighted.log_spread`).
    ``docs/explanation/contrast.md`` has the formulas.
    """
    check_statistics(statistics, table, subjects)
    ordered = {image: statistics[image] for image in sorted(statistics)}
    chosen, of_other_kind = of_one_kind(ordered, name)
    chosen, below = with_a_zero(chosen, table)
    prior = _pooled(chosen, name, table, subjects)
    return replace(
        prior,
        images=_provenance(images, chosen, subjects, left_out=set(statistics) - set(chosen)),
        metadata=metadata,
        warnings=(*of_other_kind, *below, *prior.warnings),
    )


def _pooled(
    chosen: dict[str, ContrastStatistics],
    name: str,
    table: LabelTable,
    subjects: Mapping[str, str],
) -> ContrastPrior:
    """`pool` of images that may be pooled, without their provenance."""
    share = Counter(subjects[image] for image in chosen)
    weights = np.array([1 / share[subjects[image]] for image in chosen])
    rows = _tabulate(chosen, table)
    units = _units(chosen, rows, weights)
    located = (rows.location - units.zero[:, None]) * units.factor[:, None]
    law = joint.fit(
        located, weights, labels=rows.labels, target=joint.typical_correlation(rows.labels)
    )
    warnings = few_labels(chosen, rows.labels, rows.location) + outliers(list(chosen), law)
    warnings += mixed_voxels(chosen)
    measured = _measured(chosen, rows, units, law)
    imputed = imputations(table, {label: prior.images for label, prior in measured.items()})
    labels = {
        label.name: measured.get(label.name) or _imputed(label, imputed[label.name], measured)
        for label in table
    }
    head_low = np.array([image.head_low for image in chosen.values()])
    noise, unknown = _noise(chosen, units, law.weights, measured, table)
    return ContrastPrior(
        name=name,
        table=table.name,
        labels=labels,
        correlation=_with_imputed(law.correlation, rows.labels, list(labels), imputed),
        noise=noise,
        **_acquisition(list(chosen.values()), law.weights),
        head_low=_median((head_low - units.zero) * units.factor, law.weights),
        n_images=len(chosen),
        n_subjects=len(share),
        warnings=tuple(warnings + unknown),
    )


def _tabulate(chosen: dict[str, ContrastStatistics], table: LabelTable) -> _Rows:
    """What was measured, and air by the noise law where it was not."""
    filled = [_with_air(found, table) for found in chosen.values()]
    names = set().union(*filled)
    labels = tuple(label for label in table if label.name in names)
    numbers = np.full((3, len(filled), len(labels)), np.nan)
    for i, image in enumerate(filled):
        for j, label in enumerate(labels):
            if (found := image.get(label.name)) is not None:
                numbers[:, i, j] = found.location, found.scale, found.interior_voxels
    return _Rows(labels, *numbers)


def _with_air(image: ContrastStatistics, table: LabelTable) -> dict[str, LabelStatistics]:
    """Measured labels of an image; the one with code 0 from the noise law if it is not there."""
    labels = {n: label for n, label in image.labels.items() if label.source == "measured"}
    if 0 in table and table[0].name not in labels:
        mean, sd = air(image.noise)
        if is_ratio_image(image):
            low, high = range_of(image)
            mean, sd = low + (mean + 0.5) * (high - low), sd * (high - low)
        labels[table[0].name] = LabelStatistics(0, 0, mean, sd, mean, sd, source=LAW)
    return labels


def air(noise: NoiseLaw) -> tuple[float, float]:
    """Mean and standard deviation of the intensity of voxels without signal.

    The magnitude of n channels of complex noise has a chi distribution with 2n degrees of freedom
    (Constantinides et al. 1997, Magn. Reson. Med. 38). UNI is uniform between -0.5 and 0.5 if both
    inversion images are noise of the same standard deviation: it is half the difference of their
    fractions of the total power, and these are uniform.

    Examples
    --------
    >>> tuple(round(x, 3) for x in air(NoiseLaw("rician", 10.0)))
    (12.533, 6.551)
    >>> tuple(round(x, 3) for x in air(NoiseLaw("ratio", 0.01)))
    (0.0, 0.289)
    """
    if noise.kind in ("rician", "chi"):
        channels = noise.channels if noise.kind == "chi" else 1.0
        log_ratio = math.lgamma(channels + 0.5) - math.lgamma(channels)
        mean = noise.sigma * math.sqrt(2) * math.exp(log_ratio)
        return mean, math.sqrt(max(2 * channels * noise.sigma**2 - mean**2, 0.0))
    if noise.kind == "ratio":
        return 0.0, 1 / math.sqrt(12)
    return 0.0, noise.sigma if noise.kind == "gaussian" else 0.0


def range_of(image: ContrastStatistics) -> tuple[float, float]:
    """Values of a ratio image that stand for -0.5 and +0.5.

    They are taken from the statistics or, if missing there, from the range of intensities.
    """
    if image.noise.low < image.noise.high:
        return image.noise.low, image.noise.high
    values = (*image.edges, image.head_low, image.head_high)
    return ratio_range(min(values), max(values))


def _units(chosen: dict[str, ContrastStatistics], rows: _Rows, weights: np.ndarray) -> _Units:
    found = list(chosen.values())
    sigma = np.array([image.noise.sigma for image in found])
    sigma = np.where(sigma > 0, sigma, np.nan)
    if is_ratio_image(found[0]):
        low, high = np.array([range_of(image) for image in found]).T
        return _Units(low, TOP / np.maximum(high - low, 1e-12), sigma * TOP)
    factor = gains(
        rows.location,
        rows.scale / np.sqrt(np.maximum(rows.interior, 1)),
        brain=np.array([label.is_brain for label in rows.labels]),
        head_high=_tops(found, rows),
        weights=weights,
    )
    return _Units(np.zeros(len(found)), factor, sigma * factor)


def _tops(found: list[ContrastStatistics], rows: _Rows) -> np.ndarray:
    """99.5th percentiles of the heads; the brightest label where that is not positive."""
    high = np.array([image.head_high for image in found], dtype=float)
    brightest = np.nanmax(rows.location, axis=1)
    return np.where(high > 0, high, np.where(brightest > 0, brightest, 1.0))


def _measured(
    chosen: dict[str, ContrastStatistics], rows: _Rows, units: _Units, law: joint.Joint
) -> dict[str, LabelPrior]:
    """Priors of the labels that at least one image has."""
    known = np.isfinite(rows.location)
    scale = rows.scale * units.factor[:, None]
    scale = np.where(known, np.maximum(scale, LEAST_SD), np.nan)
    noise = np.nan_to_num(units.noise)[:, None]
    own = np.sqrt(np.maximum(scale**2 - noise**2, (OWN_FRAC * scale) ** 2))
    widths = {"before": USUAL_LOG_SD["sd"], "least": LEAST_LOG_SD["sd"]}
    total, total_log_sd = log_spread(scale, law.weights, **widths)
    tissue, tissue_log_sd = log_spread(own, law.weights, **widths)
    priors = {}
    for j, label in enumerate(rows.labels):
        found = [image.labels.get(label.name) for image in chosen.values()]
        own_weights = [
            (one, weight)
            for one, weight in zip(found, law.weights, strict=True)
            if one is not None and one.source == "measured"
        ]
        ones = [one for one, _ in own_weights]
        weights = np.array([weight for _, weight in own_weights])
        grains = [np.nan if one.grain_mm is None else one.grain_mm for one in ones]
        priors[label.name] = LabelPrior(
            mean=float(law.mean[j]),
            mean_sd=float(law.sd[j]),
            sd=Spread(float(total[j]), float(total_log_sd[j])),
            components=_components(ones, weights),
            grain_mm=_median(grains, weights, 3.0),
            grain_frac=_median([one.grain_frac for one in ones], weights, 0.0),
            images=len(ones),
            source="measured" if ones else LAW,
            index=label.index,
            # Air is noise and nothing else.
            tissue_sd=None
            if joint.is_background(label)
            else Spread(float(tissue[j]), float(tissue_log_sd[j])),
        )
    return priors


def _components(found: list[LabelStatistics], weights: np.ndarray) -> tuple[Component, ...]:
    """The usual mixture, as `LabelPrior` has it.

    Of the number of components that most subjects have (the fewer if two are as frequent), in
    order of brightness, the median of each.
    """
    votes: Counter[int] = Counter()
    for one, weight in zip(found, weights, strict=True):
        votes[max(len(one.components), 1)] += weight
    count = min(votes, key=lambda n: (-round(votes[n], 9), n), default=1)
    if count == 1:
        return GAUSSIAN
    has = [i for i, one in enumerate(found) if len(one.components) == count]
    parts = np.array([_offsets(found[i]) for i in has])
    usual = weighted_median(parts, weights[has])
    usual[:, 0] /= usual[:, 0].sum()
    return tuple(Component(*map(float, part)) for part in usual)


def _offsets(one: LabelStatistics) -> list[tuple[float, float, float]]:
    """Weight, offset and sd of each component, dark to bright, in units of the label's scale."""
    scale = one.scale if one.scale > 0 else 1.0
    ordered = sorted(one.components, key=lambda part: (part.mean, part.sd))
    return [(p.weight, (p.mean - one.location) / scale, p.sd / scale) for p in ordered]


def _imputed(label: Label, imputation: Imputation, measured: dict[str, LabelPrior]) -> LabelPrior:
    donor = measured[imputation.donor]
    return replace(
        donor,
        mean_sd=donor.mean_sd * imputation.widen,
        images=0,
        source=f"imputed from {imputation.donor}",
        index=label.index,
    )


def _with_imputed(
    correlation: np.ndarray,
    labels: Sequence[Label],
    names: Sequence[str],
    imputed: Mapping[str, Imputation],
) -> np.ndarray:
    """Correlation of all labels: an imputed label is its donor, by its similarity, and its own."""
    at = {label.name: i for i, label in enumerate(labels)}
    donor = [at[imputed[name].donor if name in imputed else name] for name in names]
    similarity = np.array([imputed[name].similarity if name in imputed else 1.0 for name in names])
    whole = correlation[np.ix_(donor, donor)] * np.outer(similarity, similarity)
    np.fill_diagonal(whole, 1.0)
    return whole


def _noise(
    chosen: dict[str, ContrastStatistics],
    units: _Units,
    weights: np.ndarray,
    measured: dict[str, LabelPrior],
    table: LabelTable,
) -> tuple[NoisePrior, list[str]]:
    laws = [found.noise for found in chosen.values()]
    shares: dict[str, float] = {}
    for law, weight in zip(laws, weights, strict=True):
        shares[law.kind] = shares.get(law.kind, 0.0) + float(weight / weights.sum())
    kinds = {kind: shares[kind] for kind in sorted(shares)}
    sigma, log_sd = _positive(units.noise, weights, "sigma")
    warnings = []
    if not math.isfinite(sigma):
        even = [prior.sd.median for name, prior in measured.items() if table[name].is_brain]
        even = even or [prior.sd.median for prior in measured.values()]
        sigma = UNMEASURED_NOISE_FRAC * min(even)
        warnings.append(
            "No image tells its noise: half the spread of the most even label is taken for it."
        )
    # Noise of ratios is in UNI's own units.
    per_unit = TOP if "ratio" in kinds else 1.0
    multi = [law.channels if law.kind == "chi" else np.nan for law in laws]
    channels = _median(multi, weights, 1.0)
    masked, level = _masked(chosen, units, weights, table)
    noise = NoisePrior(kinds, Spread(sigma / per_unit, log_sd), channels, masked, level)
    return noise, warnings


def _masked(
    chosen: dict[str, ContrastStatistics],
    units: _Units,
    weights: np.ndarray,
    table: LabelTable,
) -> tuple[float, float]:
    """Share of the images whose air is constant, and its level."""
    found = list(chosen.values())
    is_masked = np.array([image.noise.is_masked for image in found])
    if not is_masked.any():
        return 0.0, 0.0
    level = np.full(len(found), np.nan)
    if is_ratio_image(found[0]) and 0 in table:
        air = [image.labels.get(table[0].name) for image in found]
        level = np.array([np.nan if one is None else one.location for one in air])
        level = np.where(is_masked, np.clip((level - units.zero) * units.factor, 0, TOP), np.nan)
    share = float(weights[is_masked].sum() / weights.sum())
    return share, _median(level.tolist(), weights)


def _acquisition(found: list[ContrastStatistics], weights: np.ndarray) -> dict[str, Any]:
    """Bias field, point spread and voxels over images."""
    strength = [max(image.bias.log_sd, LEAST_BIAS) for image in found]
    smoothness = [image.bias.smoothness_mm for image in found]
    fwhm = np.array([image.fwhm_mm for image in found])
    voxels = np.array([image.voxel_size_mm for image in found])
    return {
        "bias_log_sd": Spread(*_positive(strength, weights, "bias")),
        "bias_smoothness_mm": Spread(*_positive(smoothness, weights, "smoothness")),
        "fwhm_mm": tuple(Spread(*_positive(axis, weights, "fwhm")) for axis in fwhm.T),
        "voxel_size_mm": tuple(_median(axis, weights) for axis in voxels.T),
    }


def _positive(
    values: Sequence[float] | np.ndarray, weights: np.ndarray, what: str
) -> tuple[float, float]:
    """Median and spread of the logarithm of ``what``, a key of `USUAL_LOG_SD`."""
    numbers = np.asarray(values, dtype=float)
    spread = log_spread(numbers, weights, before=USUAL_LOG_SD[what], least=LEAST_LOG_SD[what])
    return float(spread[0]), float(spread[1])


def _median(values: Sequence[float], weights: np.ndarray, otherwise: float = 0.0) -> float:
    """Weighted median; ``otherwise`` if there is nothing."""
    if not len(values):
        return otherwise
    found = float(weighted_median(np.asarray(values, dtype=float), weights))
    return found if math.isfinite(found) else otherwise


def _provenance(
    images: Sequence[dict[str, Any]],
    chosen: dict[str, ContrastStatistics],
    subjects: Mapping[str, str],
    *,
    left_out: set[str],
) -> tuple[dict[str, Any], ...]:
    """Where the chosen images come from; ``name``, or else ``image``, is the statistics' key."""
    if not images:
        return tuple({"image": image, "subject": subjects[image]} for image in chosen)
    kept = [image for image in images if image.get("name", image.get("image")) not in left_out]
    return tuple(sorted(kept, key=lambda image: natural_order(image.get("image", ""))))
