# SPDX-License-Identifier: Apache-2.0
"""Contrast priors: what pooling finds of a known population, and how long it takes.

``python -m benchmarks.pooling``

Images are made-up statistics: locations of T1-like means with 5 % spread and a known correlation
(common, tissue, mirror and own parts), each image times a gain of its own (log sd 1). The truth is
20,000 images of the same population, each divided by the median ratio of its brain labels to
the means. Correlations: r of estimated and true ones over all pairs of labels; spreads: median
ratio to the true ones; means: median relative error after a common factor. Mean of four seeds.
"""

from __future__ import annotations

import time

import numpy as np

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.contrast.measured import (
    BiasField,
    ContrastStatistics,
    LabelStatistics,
    NoiseLaw,
)
from brainseg_bids.contrast.pool import pool

TABLE = LabelTable.packaged("fullhead")
LABELS = [label for label in TABLE if label.index and label.mapping]
SPREAD = 0.05
NUMBERS = (1, 5, 10, 30, 100, 300)
SEEDS = 4


def root_of_correlation() -> np.ndarray:
    """Factors of common 0.2, tissue 0.4, mirror pair 0.3 and own 0.1 variance, (n, k)."""
    groups = [
        (0.2, [0] * len(LABELS)),
        (0.4, [label.mapping for label in LABELS]),
        (0.3, [min(label.index, label.mirror) for label in LABELS]),
        (0.1, list(range(len(LABELS)))),
    ]
    parts = []
    for variance, keys in groups:
        names = sorted(set(keys))
        parts.append(np.sqrt(variance) * np.array([[k == n for n in names] for k in keys]))
    return np.hstack(parts)


def draw(means: np.ndarray, root: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Locations of ``n`` images without gain, (n, labels)."""
    return means * (1 + SPREAD * rng.standard_normal((n, root.shape[1])) @ root.T)


def statistics(locations: np.ndarray, gain: float) -> ContrastStatistics:
    """One image."""
    labels = {
        label.name: LabelStatistics(5000, 2000, gain * x, gain * 0.1 * x, gain * x, gain * 0.1 * x)
        for label, x in zip(LABELS, locations, strict=True)
    }
    return ContrastStatistics(
        table="fullhead",
        labels=labels,
        noise=NoiseLaw("rician", 3.0 * gain, voxels=1000),
        bias=BiasField(0.2, 60.0, (((0.0,),),), (1.0, 1.0, 1.0)),
        fwhm_mm=(1.0, 1.0, 1.0),
        voxel_size_mm=(1.0, 1.0, 1.0),
        head_low=0.0,
        head_high=255.0 * gain,
        edges=(0.0, 255.0 * gain),
    )


def main() -> None:
    """Print a table."""
    root = root_of_correlation()
    brain = np.array([label.is_brain for label in LABELS])
    pairs = np.triu_indices(len(LABELS), 1)
    found: dict[int, list[tuple[float, ...]]] = {n: [] for n in NUMBERS}
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        means = rng.uniform(30, 170, len(LABELS))
        many = draw(means, root, 20_000, rng)
        many /= np.median(many[:, brain] / means[brain], axis=1, keepdims=True)
        true_r, true_sd, true_mean = np.corrcoef(many.T), many.std(0), many.mean(0)
        for n in NUMBERS:
            drawn = draw(means, root, n, rng)
            gains = np.exp(rng.standard_normal(n))
            images = {
                f"i{k}": statistics(x, g)
                for k, (x, g) in enumerate(zip(drawn, gains, strict=True))
            }
            began_s = time.process_time()
            prior = pool(images, name="T1w", table=TABLE, subjects={i: i for i in images})
            took_s = time.process_time() - began_s
            order = [list(prior.labels).index(label.name) for label in LABELS]
            mean = np.array([prior[label.name].mean for label in LABELS])
            sd = np.array([prior[label.name].mean_sd for label in LABELS])
            factor = np.median(mean / true_mean)
            r = np.corrcoef(prior.correlation[np.ix_(order, order)][pairs], true_r[pairs])[0, 1]
            error = np.median(np.abs(mean / (factor * true_mean) - 1))
            found[n].append((r, np.median(sd / (factor * true_sd)), 100 * error, took_s))
    print("| subjects | correlations r | sd / true sd | means % | CPU s |\n|---|---|---|---|---|")
    for n, rows in found.items():
        r, sd, error, took_s = np.mean(rows, axis=0)
        print(f"| {n} | {r:.2f} | {sd:.2f} | {error:.2f} | {took_s:.2f} |")


if __name__ == "__main__":
    main()
