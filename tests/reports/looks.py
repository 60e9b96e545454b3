# SPDX-License-Identifier: Apache-2.0
"""How the phantom looks, known exactly: an image with field and noise, and its statistics."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.contrast.measured import (
    BiasField,
    Component,
    ContrastStatistics,
    LabelStatistics,
    NoiseLaw,
)
from brainseg_bids.contrast.prior import ContrastPrior, LabelPrior, NoisePrior, Spread
from tests.phantom.head import INTENSITY

IMPUTED = "Left-Putamen"
SIGMA = 4.0


def field_nodes(log_sd: float = 0.15, shape=(5, 6, 5)) -> np.ndarray:
    """Log field: bright at the right front, of the given spread over the box."""
    x, y, z = (np.linspace(-1, 1, n) for n in shape)
    field = x[:, None, None] + 0.6 * y[None, :, None] - 0.5 * z[None, None, :] ** 2
    field = field - field.mean()
    return (field * log_sd / field.std()).astype(np.float32)


def seen(labels: LabelMap, rng: np.random.Generator, nodes: np.ndarray | None = None):
    """Image of the phantom under the field of ``nodes`` with Rician noise, and its log field."""
    nodes = field_nodes() if nodes is None else nodes
    at = np.meshgrid(
        *[np.linspace(0, m - 1, n) for m, n in zip(nodes.shape, labels.voxels.shape, strict=True)],
        indexing="ij",
    )
    log_field = ndimage.map_coordinates(nodes, at, order=3, mode="nearest")
    clean = np.zeros(labels.voxels.shape)
    for label in labels.table:
        if label.index:
            name = label.name.removeprefix("Left-").removeprefix("Right-")
            clean[labels.voxels == label.index] = INTENSITY.get(name, 0)
    grain = 1 + 0.04 * rng.normal(size=clean.shape)
    real, imaginary = rng.normal(0, SIGMA, (2, *clean.shape))
    image = np.hypot(clean * grain * np.exp(log_field) + real, imaginary)
    return image.astype(np.float32), log_field


def looks(
    labels: LabelMap, rng: np.random.Generator, *, gain: float = 1.0, log_sd: float = 0.15
) -> tuple[np.ndarray, ContrastStatistics]:
    """Image and what a perfect measurement would say of it."""
    nodes = field_nodes(log_sd)
    image, log_field = seen(labels, rng, nodes)
    image = image * np.float32(gain)
    flat = image / np.exp(log_field)
    head = labels.voxels > 0
    low, high = (float(q) for q in np.percentile(image[head], [0.5, 99.5]))
    edges = np.linspace(0, float(flat.max()), 129)
    found = {}
    for label in labels.table:
        values = flat[labels.voxels == label.index]
        if label.index and values.size:
            mean, sd = float(values.mean()), float(values.std())
            if label.name == "Other-Tissues":  # two Gaussians, for the pictures
                parts = (Component(0.6, mean - sd / 2, sd), Component(0.4, mean + sd / 2, sd))
            else:
                parts = (Component(1.0, mean, sd),)
            source = "imputed from Right-Putamen" if label.name == IMPUTED else "measured"
            counts = np.histogram(values, edges)[0] if source == "measured" else ()
            found[label.name] = LabelStatistics(
                voxels=values.size,
                interior_voxels=values.size // 2,
                location=mean,
                scale=sd,
                median=float(np.median(values)),
                mad=sd,
                components=parts,
                grain_mm=2.5,
                fit=0.25 if label.name == "CSF" else 0.02,
                source=source,
                histogram=tuple(int(n) for n in counts),
            )
    box_mm = np.array(labels.grid.extent_mm) - np.array(labels.grid.voxel_size_mm)
    bias = BiasField(
        log_sd,
        60.0,
        tuple(tuple(tuple(float(v) for v in row) for row in plane) for plane in nodes),
        tuple(float(v) for v in box_mm / (np.array(nodes.shape) - 1)),
    )
    statistics = ContrastStatistics(
        table="fullhead",
        labels=found,
        noise=NoiseLaw("rician", SIGMA * gain, voxels=int((~head).sum()), fit=0.01),
        bias=bias,
        fwhm_mm=(1.1 * labels.grid.voxel_size_mm[0],) * 3,
        voxel_size_mm=labels.grid.voxel_size_mm,
        head_low=low,
        head_high=high,
        edges=tuple(float(e) for e in edges),
        warnings=("Left-Putamen has 3 voxels away from borders; imputed from Right-Putamen.",),
    )
    return image, statistics


def prior_of(statistics: dict[str, ContrastStatistics], *, name: str = "T1w") -> ContrastPrior:
    """A plain prior of some images: means over them, labels that none has imputed from CSF."""
    table = LabelTable.packaged("fullhead")
    labels = {}
    for label in table:
        own = [
            (s[label.name].location * 255 / s.head_high, s[label.name].scale * 255 / s.head_high)
            for s in statistics.values()
            if label.name in s.labels and s[label.name].source == "measured"
        ]
        at, spread = np.mean(own, axis=0) if own else (50.0, 8.0)
        labels[label.name] = LabelPrior(
            mean=float(at),
            mean_sd=float(np.std([a for a, _ in own])) + 2.0 if own else 20.0,
            sd=Spread(float(spread), 0.2),
            components=(Component(1.0, 0.0, 1.0),),
            images=len(own),
            source="measured" if own else "imputed from CSF",
        )
    n = len(labels)
    correlation = 0.6 + 0.4 * np.eye(n)
    some = next(iter(statistics.values()))
    return ContrastPrior(
        name=name,
        table="fullhead",
        labels=labels,
        correlation=correlation,
        noise=NoisePrior({"rician": 1.0}, Spread(SIGMA * 255 / some.head_high, 0.2)),
        bias_log_sd=Spread(0.15, 0.4),
        bias_smoothness_mm=Spread(60.0, 0.2),
        fwhm_mm=tuple(Spread(value, 0.1) for value in some.fwhm_mm),
        voxel_size_mm=some.voxel_size_mm,
        head_low=5.0,
        n_images=len(statistics),
        n_subjects=len(statistics),
        metadata={"Suffix": "T1w", "MagneticFieldStrength": 3},
        warnings=("sub-02 is unlike the others.",),
    )
