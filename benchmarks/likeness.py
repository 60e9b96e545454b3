# SPDX-License-Identifier: Apache-2.0
"""Which synthetic images are like a real head that they were not fitted to?

``python -m benchmarks.likeness --derivative OUT --bids DATA --maps MAP [MAP ...]``

``OUT`` holds segmentations and contrast statistics of the heads in ``DATA`` (stages ``segment
contrast``). Each T1w head is left out once: priors are pooled over the others, pairs drawn from
label maps of other people, and the energy distance between histograms of each class is taken,
after the network's own scaling to 0..1. Methods: ``fitted`` (prior weight 1), ``half`` (0.5),
``agnostic`` (0), ``synthseg`` (class medians and deviations of the same heads, pooled as SynthSeg
does, with its own ranges for all else) and ``t1w`` (the packaged space with published priors).
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.synthseg_priors import SYNTHSEG_CLASSES, synthseg_prior, synthseg_statistics
from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.bids.description import raw_path
from brainseg_bids.contrast.pool import pool
from brainseg_bids.images import read_grid, read_volume
from brainseg_bids.interfaces.headlabels import read_source
from brainseg_bids.stages.intensities import compare_intensities, draw, read_real
from brainseg_bids.stages.measured import Measured, find_measured
from brainseg_bids.stages.pairs import centred_grid, pair_shape, whole_heads
from brainseg_bids.synth.classes import TissueSpace
from brainseg_bids.synth.generator import Generator, LabelVolume
from brainseg_bids.synth.prior_space import PriorSpace
from brainseg_bids.synth.recipe_files import read_space
from brainseg_bids.synth.space import RecipeSpace

FULLHEAD = LabelTable.packaged("fullhead")


def pooled(group: list[Measured], name: str):
    """Prior of some images."""
    return pool(
        {one.image: one.statistics for one in group},
        name=name,
        table=FULLHEAD,
        subjects={one.image: one.subject for one in group},
        images=tuple(
            {
                "image": one.metadata["Input"],
                "labels": one.metadata["LabelsOf"],
                "subject": one.subject,
            }
            for one in group
        ),
    )


def by_synthseg(group: list[Measured], bids: Path, out: Path) -> RecipeSpace:
    """SynthSeg's way: its priors of the same heads, its ranges for all else."""
    known = {name for names in SYNTHSEG_CLASSES.values() for name in names}
    statistics = {}
    for one in group:
        path = raw_path(one.metadata["Input"], bids)
        labels = out / one.metadata["LabelsOf"].removeprefix("bids::")
        image, grid = read_volume(path)
        placed = read_source(grid, tool=one.metadata["LabelsTool"], labels=str(labels)).labels
        found = synthseg_statistics(image, placed)
        statistics[one.image] = {name: two for name, two in found.items() if name in known}
    made = synthseg_prior(statistics)
    agnostic = whole_heads()
    of_label = {}
    for number, name in enumerate(made.classes):
        for label in SYNTHSEG_CLASSES[name]:
            of_label[label] = number
    tissues = []
    for tissue in agnostic.tissues:
        numbers = [of_label[label] for label in tissue.labels if label in of_label]
        if not numbers or not made.images[numbers[0]]:
            tissues.append(tissue)
            continue
        k = numbers[0]
        tissues.append(TissueSpace(tissue.labels, tuple(made.means[:, k]), tuple(made.stds[:, k])))
    return replace(agnostic, name="synthseg", law="normal", tissues=tuple(tissues))


def main() -> None:
    """Print a table: heads x methods."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--derivative", type=Path, required=True)
    parser.add_argument("--bids", type=Path, required=True)
    parser.add_argument("--maps", type=Path, nargs="+", required=True)
    parser.add_argument("--voxel-size", type=float, default=1.0)
    options = parser.parse_args()
    heads = [
        LabelVolume.from_label_map(
            read_source(read_grid(p), tool="fullhead", labels=str(p)).labels
        )
        for p in options.maps
    ]
    shape = pair_shape(heads, options.voxel_size)
    generator = Generator(
        Crosswalk.packaged("fullhead", "brainseg"),
        FULLHEAD,
        shape=shape,
        voxel_size_mm=options.voxel_size,
    )
    grid = centred_grid(shape, options.voxel_size)
    measured = find_measured(options.derivative, suffixes=("T1w",))
    published = replace(read_space("t1w"), center_frac=(0.5, 0.5))
    drawn: dict = {}
    fixed = {"t1w": draw(published, heads, generator, grid, drawn).counts}
    rows: dict[str, dict[str, float]] = {}
    for left_out in measured:
        others = [one for one in measured if one is not left_out]
        prior = pooled(others, "others")
        real = list(
            read_real(
                pooled([left_out], "own"),
                bids_dir=options.bids,
                output_dir=options.derivative,
                derivatives={},
            )
        )
        spaces = {
            "fitted": PriorSpace(whole_heads(), prior, 1.0),
            "half": PriorSpace(whole_heads(), prior, 0.5),
            "agnostic": PriorSpace(whole_heads(), prior, 0.0),
            "synthseg": by_synthseg(others, options.bids, options.derivative),
        }
        synthetic = {
            name: draw(space, heads, generator, grid, drawn).counts
            for name, space in spaces.items()
        }
        comparisons = compare_intensities(real, synthetic | fixed)
        rows[left_out.image] = {
            method: float(np.mean([c.distances[method] for c in comparisons]))
            for method in (*spaces, *fixed)
        }
        print(left_out.image, len(comparisons), rows[left_out.image], flush=True)
    methods = list(next(iter(rows.values())))
    print("\n| left-out head | " + " | ".join(methods) + " |")
    print("|---|" + "---|" * len(methods))
    for head, row in rows.items():
        print(f"| {head} | " + " | ".join(f"{row[m]:.4f}" for m in methods) + " |")
    means = [f"{np.mean([row[m] for row in rows.values()]):.4f}" for m in methods]
    print("| mean | " + " | ".join(means) + " |")


if __name__ == "__main__":
    main()
