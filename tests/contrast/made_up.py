# SPDX-License-Identifier: Apache-2.0
"""Made-up statistics of images, so that what pooling should find is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.contrast.measured import (
    BiasField,
    Component,
    ContrastStatistics,
    LabelStatistics,
    NoiseLaw,
)

TABLE = LabelTable.packaged("fullhead")
T1 = {
    "Unknown": 7.0,
    "Cerebral-White-Matter": 160.0,
    "Cerebral-Cortex": 96.0,
    "Lateral-Ventricle": 44.0,
    "Cerebellum-White-Matter": 136.0,
    "Cerebellum-Cortex": 88.0,
    "Thalamus": 130.0,
    "Caudate": 100.0,
    "Putamen": 124.0,
    "Pallidum": 150.0,
    "Hippocampus": 95.0,
    "Amygdala": 93.0,
    "Brain-Stem": 130.0,
    "CSF": 40.0,
    "Bone-Cortical": 30.0,
    "Bone-Cancellous": 94.0,
    "Other-Tissues": 94.0,
    "Eyes": 18.0,
    "Skin": 114.0,
}
"""Means like those of T1-weighted heads, sides together."""


def both_sides(means: Mapping[str, float] = T1) -> dict[str, float]:
    """Left and right where the table has sides."""
    found = {}
    for name, mean in means.items():
        names = [name] if name in TABLE else [f"Left-{name}", f"Right-{name}"]
        found |= dict.fromkeys(names, mean)
    return found


def image_of(
    locations: Mapping[str, float],
    *,
    gain: float = 1.0,
    scale_frac: float = 0.1,
    noise: NoiseLaw | None = None,
    high: float = 255.0,
) -> ContrastStatistics:
    """Statistics of one image with these locations, all times ``gain``."""
    labels = {}
    for name, location in locations.items():
        at, scale = gain * location, gain * (scale_frac * abs(location) + 1)
        labels[name] = LabelStatistics(
            5000, 2000, at, scale, at, scale, (Component(1, at, scale),)
        )
    noise = noise or NoiseLaw("rician", 3.0, voxels=1000)
    return ContrastStatistics(
        table="fullhead",
        labels=labels,
        noise=replace(noise, sigma=noise.sigma * (1 if noise.kind == "ratio" else gain)),
        bias=BiasField(0.2, 60.0, (((0.0,),),), (1.0, 1.0, 1.0)),
        fwhm_mm=(1.2, 1.1, 1.0),
        voxel_size_mm=(1.0, 1.0, 1.0),
        head_low=2.0 * gain,
        head_high=high * gain,
        edges=(0.0, high * gain),
    )


def cohort(
    count: int,
    rng: np.random.Generator,
    *,
    sd_frac: float = 0.05,
    correlation: np.ndarray | None = None,
    means: Mapping[str, float] | None = None,
) -> tuple[dict[str, ContrastStatistics], np.ndarray, list[str]]:
    """``count`` images of as many subjects, each with a gain of its own.

    Returns
    -------
    statistics : dict of str to ContrastStatistics
    locations : (count, p) float
        Before the gains.
    names : list of p str
    """
    means = both_sides() if means is None else means
    names = list(means)
    mean = np.array(list(means.values()))
    matrix = np.eye(len(names)) if correlation is None else correlation
    drawn = rng.standard_normal((count, len(names))) @ np.linalg.cholesky(matrix).T
    locations = mean * (1 + sd_frac * drawn)
    gains = np.exp(rng.normal(0, 1, count))
    statistics = {
        f"sub-{i:03d}_T1w": image_of(dict(zip(names, row, strict=True)), gain=float(gain))
        for i, (row, gain) in enumerate(zip(locations, gains, strict=True))
    }
    return statistics, locations, names


def one_each(statistics: Mapping[str, ContrastStatistics]) -> dict[str, str]:
    """A subject for each image."""
    return {image: image.split("_")[0] for image in statistics}
