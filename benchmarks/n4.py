# SPDX-License-Identifier: Apache-2.0
"""The smooth field found beside the label statistics, against N4's of the image alone.

``python -m benchmarks.n4 [--maps 15]``

Images are those of ``benchmarks.contrast truth`` (made from label maps, +-40 % field, noise, 20 %
wrong labels at the borders). N4 (Tustison et al., IEEE TMI 29, 2010; antspyx) gets the head as its
mask and its usual settings. Errors are of the field as a factor, its mean over the voxels set to
that of the truth, in per cent: over the head and over the brain. Ours knows labels, N4 does not.
"""

from __future__ import annotations

import argparse
import time

import ants
import numpy as np

from benchmarks.contrast import draw_means, field_on, make_truth
from benchmarks.data import shared_data
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.contrast.statistics import measure
from brainseg_bids.images import read_label_map

SPACINGS_MM = (120.0, 70.0, 50.0)


def rmse_percent(found: np.ndarray, truth: np.ndarray, where: np.ndarray) -> float:
    """Of the ratio of two fields, freed of a common factor."""
    ratio = np.log(found[where]) - np.log(truth[where])
    return float(100 * np.sqrt(np.mean(np.expm1(ratio - ratio.mean()) ** 2)))


def by_n4(image: np.ndarray, mask: np.ndarray, size_mm: tuple[float, ...]) -> np.ndarray:
    """N4's field as a factor."""
    one = ants.from_numpy(image.astype(np.float32) + 1.0, spacing=tuple(map(float, size_mm)))
    inside = ants.from_numpy(mask.astype(np.float32), spacing=one.spacing)
    return ants.n4_bias_field_correction(one, mask=inside, return_bias_field=True).numpy()


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--maps", nargs="+", default=["15"])
    options = parser.parse_args()
    table = LabelTable.packaged("fullhead")
    print("| map, node spacing | method | head % | brain % | CPU s |\n|---|---|---|---|---|")
    for number in options.maps:
        path = shared_data() / "synthseg_training_labels" / f"training_seg_{number}.nii.gz"
        labels = read_label_map(path, table)
        head, brain = labels.voxels > 0, labels.brain_mask()
        for spacing_mm in SPACINGS_MM:
            rng = np.random.default_rng(int(number))
            means = draw_means(labels, rng) | {table[0].name: 0.0}
            truth = make_truth(labels, means, rng, node_spacing_mm=spacing_mm)
            for name in ("ours", "N4"):
                began_s = time.process_time()
                if name == "ours":
                    bias = measure(truth.image, truth.labels).bias
                    took_s = time.process_time() - began_s
                    turned = labels.grid.array_to_ras(labels.voxels).shape
                    found = labels.grid.array_from_ras(np.exp(field_on(bias, turned)))
                else:
                    found = by_n4(truth.image, head, labels.grid.voxel_size_mm)
                    took_s = time.process_time() - began_s
                errors = [rmse_percent(found, np.exp(truth.log_field), m) for m in (head, brain)]
                print(
                    f"| {number}, {spacing_mm:g} mm | {name} | {errors[0]:.2f} | {errors[1]:.2f} "
                    f"| {took_s:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
