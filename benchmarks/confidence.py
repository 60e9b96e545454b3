# SPDX-License-Identifier: Apache-2.0
"""Whether structures of low confidence are those of low Dice: held-out pairs and real heads.

``python -m benchmarks.confidence --model head-1mm --work SCRATCH --data FOLDER``

Each image is segmented once by the model, with flips; labels and sums of probabilities are kept
in the work folder, by the digest of the weights. Confidence is computed from the sums: taken at
their word, and by the calibration of the bundle. A structure is a label of the brain, left and
right apart; one that a model does not find at all has no confidence and does not count. Sets:

``heldout``
    Fresh pairs of label maps 15 and 16, other ones than the calibration is fitted on.
``ecog``, ``voxelmorph``, ``oasis``
    As in `benchmarks.released_model`. Nothing is fitted on them.

The area under the ROC curve is the probability that of two structures, one with a Dice below
`LOW_DICE` and one above it, the first has the lower confidence. Beside it that of the structures'
usual Dice on held-out maps, which knows nothing of the image.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from scipy.stats import mannwhitneyu

from benchmarks import real_heads
from benchmarks.data import shared_data
from benchmarks.real_heads import STRUCTURES, TABLE
from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.evaluation.confidence import LOW_DICE, ConfidenceCalibration, ProbabilitySums
from brainseg_bids.images import read_volume
from brainseg_bids.nets.bundle import MANIFEST, ModelBundle, find_bundle
from brainseg_bids.programs.confidence import pairs, segmented
from brainseg_bids.programs.segment import read_calibration

SEED = 20
"""Of held-out pairs; those that are calibrated on have another."""
BRAIN = [int(TABLE.positions()[code]) for codes in STRUCTURES.values() for code in codes]
SPACES = ("t1w", "benchmarks/released/t1w_sharp.toml", "mp2rage7t")


Result = tuple[np.ndarray, ProbabilitySums]
"""Codes on the image's voxels, and sums of probabilities."""


class Cases:
    """Images, references and what the model makes of them, each made once.

    Parameters
    ----------
    bundle : ModelBundle
    work : Path
    """

    def __init__(self, bundle: ModelBundle, work: Path) -> None:
        self.bundle, self.work = bundle, work
        manifest = json.loads((bundle.path / MANIFEST).read_text(encoding="utf-8"))
        self.key = manifest["sha256"]["weights.safetensors"][:12]
        self.net = None

    def result(self, name: str, image: np.ndarray, grid: Grid) -> Result:
        """Labels and sums of an image, from the work folder if they are there."""
        path = self.work / f"{name}_{self.key}.npz"
        if not path.exists():
            self.net = self.net or self.bundle.load()
            labels, _, sums = segmented(image, grid, self.bundle, self.net)
            np.savez_compressed(
                path,
                labels=labels.voxels,
                voxels=sums.voxels,
                inside=sums.inside,
                total=sums.total,
            )
            print(f"{name}: segmented", file=sys.stderr, flush=True)
        kept = np.load(path)
        sums = ProbabilitySums(kept["voxels"], kept["inside"], kept["total"])
        return kept["labels"], sums

    def heldout(self, maps: list[Path], spaces: list[str], count: int) -> Iterator[tuple]:
        """Reference and result of fresh pairs."""
        for image, truth in pairs(self.bundle, maps, spaces, count, SEED):
            # By content: with other maps or recipes, the first pair is another one.
            name = f"heldout-{hashlib.sha256(image.tobytes()).hexdigest()[:12]}"
            yield truth.voxels, self.result(name, image, truth.grid)

    def real(self, cases: Iterator[real_heads.Case]) -> Iterator[tuple]:
        """Reference and result of real heads."""
        for case in cases:
            image, grid = read_volume(case.image)
            yield case.reference, self.result(real_heads.stem(case.image), image, grid)


def dice(reference: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Of each label, by class index; NaN where nobody has it."""
    counts = real_heads.count(reference, labels)
    both = counts.sum(0) + counts.sum(1)
    return np.divide(2 * np.diag(counts), both, out=np.full(len(both), np.nan), where=both > 0)


def area(confidence: np.ndarray, low: np.ndarray) -> float:
    """Under the ROC curve; NaN if all are low, or none.

    >>> area(np.array([0.2, 0.9, 0.8]), np.array([True, False, False]))
    1.0
    """
    if low.all() or not low.any():
        return float("nan")
    return float(
        mannwhitneyu(confidence[~low], confidence[low]).statistic / low.sum() / (~low).sum()
    )


def row(title: str, found: list[tuple], calibration: ConfidenceCalibration | None) -> str:
    """A line of the table: one set of images."""
    dices = np.array([dice(reference, labels)[BRAIN] for reference, (labels, _) in found])
    plain = np.array([sums.expected_dice()[BRAIN] for _, (_, sums) in found])
    there = np.isfinite(dices) & np.isfinite(plain)
    dices, plain = dices[there], plain[there]
    low = dices < LOW_DICE
    cells = [title, len(found), len(dices), low.sum(), f"{area(plain, low):.3f}"]
    if calibration:
        known = np.array([calibration.expected_dice(s)[BRAIN] for _, (_, s) in found])[there]
        flagged = np.array([calibration.flagged(s)[BRAIN] for _, (_, s) in found])[there]
        right = (flagged & low).sum()
        cells += [
            f"{area(np.tile(calibration.usual_dice[BRAIN], (len(found), 1))[there], low):.3f}",
            f"{area(known, low):.3f}",
            f"{np.mean(known - dices):+.3f}",
            flagged.sum(),
            f"{right / max(low.sum(), 1):.2f}",
            f"{right / max(flagged.sum(), 1):.2f}",
            *(f"{group.mean():.3f}" if len(group) else "-" for group in _split(dices, flagged)),
        ]
    return "| " + " | ".join(map(str, cells)) + " |"


def _split(values: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return values[chosen], values[~chosen]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="head-1mm", help="packaged name or folder")
    parser.add_argument("--work", type=Path, required=True, help="folder for results")
    parser.add_argument("--data", help="folder of the shared data")
    parser.add_argument("--spaces", nargs="+", default=list(SPACES), help="of held-out pairs")
    parser.add_argument("--pairs", type=int, default=1, help="held-out pairs a map and space")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    data = shared_data(options.data)
    bundle = ModelBundle.read(find_bundle(options.model))
    calibration = read_calibration(bundle)
    cases = Cases(bundle, options.work)
    maps = [data / "synthseg_training_labels" / f"training_seg_{n}.nii.gz" for n in (15, 16)]
    sets = {
        "held-out pairs": cases.heldout(maps, options.spaces, options.pairs),
        "ECoG head": cases.real(real_heads.ecog(data)),
        "VoxelMorph's scan": cases.real(real_heads.aligned(data, options.work)),
        "OASIS": cases.real(real_heads.oasis(data)),
    }
    columns = ["set", "images", "structures", f"Dice < {LOW_DICE}", "AUC, uncalibrated"]
    if calibration:
        columns += [
            "AUC, usual Dice",
            "AUC, calibrated",
            "mean error",
            "flagged",
            "sensitivity",
            "precision",
        ]
        columns += ["Dice of flagged", "of others"]
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for title, found in sets.items():
        print(row(title, list(found), calibration), flush=True)


if __name__ == "__main__":
    main()
