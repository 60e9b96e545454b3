# SPDX-License-Identifier: Apache-2.0
"""Intracranial volume and soft volumes against the truth, on pairs of a head and its atrophy.

``python -m benchmarks.intracranial --model head-1mm --work SCRATCH``

Each pair is one recipe rendered twice from a label map that the model was not trained on: as it
is, and with wide ventricles and thin cortex (`ATROPHY`), everything else, noise included, being
the same. The inside of the skull is the same in both. Both are segmented by the model, with
flips, as ``brainseg`` does by default; labels and sums of probabilities are kept in the work
folder, by the digest of the weights. The truth is measured in the labels that a pair was made of.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.data import shared_data
from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.intracranial import intracranial
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import Label, LabelTable, count_codes
from brainseg_bids.images import read_label_map
from brainseg_bids.nets.bundle import MANIFEST, ModelBundle, find_bundle
from brainseg_bids.programs.confidence import segmented
from brainseg_bids.synth.generator import Generator, LabelVolume
from brainseg_bids.synth.recipe import Atrophy, View
from brainseg_bids.synth.recipe_files import read_space

SEED = 33
FIELD_OF_VIEW_MM = (192, 240, 224)
SPACES = ("t1w", "benchmarks/released/t1w_sharp.toml", "mp2rage7t")
FLUID_MAPPING = 3
"""BIDS standard code."""
ATROPHY = Atrophy(ventricles_mm=7.0, thinning_frac=0.75, seed=7)


def pairs(
    bundle: ModelBundle, maps: list[Path], spaces: list[str], count: int
) -> Iterator[tuple[str, np.ndarray, LabelMap]]:
    """Name, image and true labels: of each recipe the head, then its atrophy."""
    source = LabelTable.packaged("fullhead")
    size_mm = bundle.voxel_size_mm
    shape = tuple(16 * math.ceil(edge / size_mm / 16) for edge in FIELD_OF_VIEW_MM)
    grid = Grid(shape, np.diag([size_mm, size_mm, size_mm, 1.0]))
    crosswalk = Crosswalk.packaged("fullhead", bundle.table.name)
    generator = Generator(crosswalk, source, shape=shape, voxel_size_mm=size_mm)
    codes = bundle.table.codes.astype(np.int16)
    for path in maps:
        number = int("".join(filter(str.isdigit, path.name)) or 0)
        volume = LabelVolume.from_label_map(read_label_map(path, source))
        for space in spaces:
            for index in range(count):
                rng = np.random.default_rng([number, index, SEED])
                recipe = read_space(space).at(size_mm).draw(rng)
                middle = replace(recipe.deformation, center_frac=(0.5, 0.5, 0.55))
                recipe = replace(recipe, deformation=middle, view=View())
                for age, ageing in (("young", Atrophy()), ("old", ATROPHY)):
                    pair = generator.render(volume, replace(recipe, ageing=ageing))
                    truth = LabelMap(codes[pair.labels.numpy()], grid, bundle.table)
                    name = f"map{number}_{Path(space).stem}{index}_{age}"
                    yield name, pair.image[0].numpy(), truth


class Measured:
    """Volumes of one image in ml: the truth, voxel counts, sums of probabilities.

    Parameters
    ----------
    truth, labels : LabelMap
    total : (n_labels,) float
        Sum of each label's probability.
    """

    def __init__(self, truth: LabelMap, labels: LabelMap, total: np.ndarray) -> None:
        self.ml = truth.grid.voxel_volume_mm3 / 1000
        self.true, self.found = intracranial(truth), intracranial(labels)
        self.true_counts, self.counts = count_codes(truth.voxels), count_codes(labels.voxels)
        self.soft = dict(zip(labels.table.codes.tolist(), total.tolist(), strict=True))
        self.brain = [label.index for label in labels.table if is_tissue(label)]

    def inside_ml(self) -> tuple[float, float, float]:
        """Inside of the skull: true, counted, soft."""
        soft = self.found.soft_voxels(self.soft, self.counts)
        return tuple(self.ml * n for n in (self.true.n_voxels, self.found.n_voxels, soft))

    def brain_ml(self) -> tuple[float, float, float]:
        """Brain without ventricles: true, counted, soft."""
        return tuple(
            self.ml * sum(found.get(code, 0) for code in self.brain)
            for found in (self.true_counts, self.counts, self.soft)
        )

    def structures(self) -> list[tuple[float, float]]:
        """Errors of each structure of the brain in percent of its true volume: counted, soft."""
        return [
            tuple(change(n, found.get(code, 0)) for found in (self.counts, self.soft))
            for code in self.brain
            if (n := self.true_counts.get(code, 0)) > 0
        ]


def is_tissue(label: Label) -> bool:
    """Brain without its fluid."""
    return label.is_brain and label.mapping != FLUID_MAPPING


def change(before: float, after: float) -> float:
    """In percent."""
    return 100 * (after / before - 1)


def measured(
    bundle: ModelBundle, work: Path, maps: list[Path], spaces: list[str], count: int
) -> Iterator[tuple[str, Measured]]:
    """Each image measured; segmentations are kept."""
    manifest = json.loads((bundle.path / MANIFEST).read_text(encoding="utf-8"))
    key = manifest["sha256"]["weights.safetensors"][:12]
    net = None
    for name, image, truth in pairs(bundle, maps, spaces, count):
        path = work / f"{name}_{key}.npz"
        if not path.exists():
            net = net or bundle.load()
            labels, _, sums = segmented(image, truth.grid, bundle, net)
            np.savez_compressed(path, labels=labels.voxels, total=sums.total)
            print(f"{name}: segmented", file=sys.stderr, flush=True)
        kept = np.load(path)
        labels = LabelMap(kept["labels"], truth.grid, bundle.table)
        yield name, Measured(truth, labels, kept["total"])


def pair_row(name: str, young: Measured, old: Measured) -> str:
    """A line of the table: errors of the head as it is, and changes with atrophy."""
    true_ml, counted_ml, soft_ml = young.inside_ml()
    cells = [name, f"{true_ml:.0f}"]
    cells += [f"{change(true_ml, found_ml):+.2f}" for found_ml in (counted_ml, soft_ml)]
    for before, after in (
        (young.inside_ml(), old.inside_ml()),
        (young.brain_ml(), old.brain_ml()),
    ):
        cells += [f"{change(*both):+.2f}" for both in zip(before, after, strict=True)]
    return "| " + " | ".join(cells) + " |"


HEAD = """\
Inside of the skull: ml, error in %; change with atrophy in % of inside and of brain

| pair | true ml | counted | soft | inside, true | counted | soft | brain, true | counted | soft |
|---|---|---|---|---|---|---|---|---|---|"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="head-1mm", help="packaged name or folder")
    parser.add_argument("--work", type=Path, required=True, help="folder for results")
    parser.add_argument("--data", help="folder of the shared data")
    parser.add_argument("--maps", type=int, nargs="+", default=[15, 16])
    parser.add_argument("--spaces", nargs="+", default=list(SPACES))
    parser.add_argument("--pairs", type=int, default=1, help="a map and space")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    folder = shared_data(options.data) / "synthseg_training_labels"
    maps = [folder / f"training_seg_{number:02d}.nii.gz" for number in options.maps]
    bundle = ModelBundle.read(find_bundle(options.model))
    found = dict(measured(bundle, options.work, maps, options.spaces, options.pairs))
    print(HEAD)
    for name, young in found.items():
        stem, age = name.rsplit("_", 1)
        if age == "young":
            print(pair_row(stem, young, found[f"{stem}_old"]))
    errors = np.array([error for one in found.values() for error in one.structures()])
    inside = np.array([one.inside_ml() for one in found.values()])
    shares = 100 * np.abs(inside[:, 1:] / inside[:, :1] - 1)
    print(f"\nMean absolute error of the inside in %: {_both(shares.mean(0))}")
    print(
        f"Structures of the brain, {len(errors)} volumes, absolute error in %: "
        f"median {_both(np.median(np.abs(errors), 0))}, mean {_both(np.abs(errors).mean(0))}"
    )


def _both(values: np.ndarray) -> str:
    return f"counted {values[0]:.2f}, soft {values[1]:.2f}"


if __name__ == "__main__":
    main()
