# SPDX-License-Identifier: Apache-2.0
"""Calibrate the confidence of a model on label maps that it was not trained on.

``python -m brainseg_bids.programs.confidence --model FOLDER --label-maps FILE FILE --spaces t1w``

Synthetic images of the label maps are segmented as ``brainseg`` does by default, with flips. What
the model's probabilities are worth there is written into the bundle as ``confidence.json``, which
changes its digest: see `brainseg_bids.evaluation.confidence`.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.documents import InputError, read_json
from brainseg_bids.evaluation.confidence import KnownTruth, ProbabilitySums, fit_calibration
from brainseg_bids.exit_codes import DONE, UNUSABLE
from brainseg_bids.images import read_label_map, voxel_hash
from brainseg_bids.inference.confidence import Accumulator
from brainseg_bids.inference.predict import segment
from brainseg_bids.nets.architectures import PackedNet
from brainseg_bids.nets.bundle import (
    MANIFEST,
    BundleError,
    ModelBundle,
    add_confidence,
    find_bundle,
)
from brainseg_bids.synth.generator import Generator, LabelVolume
from brainseg_bids.synth.recipe import View
from brainseg_bids.synth.recipe_files import read_space

FIELD_OF_VIEW_MM = (176, 224, 208)
SEED = 21
"""Not that of the pairs that models are scored on."""


def pairs(
    bundle: ModelBundle, label_maps: Sequence[Path], spaces: Sequence[str], count: int, seed: int
) -> Iterator[tuple[np.ndarray, LabelMap]]:
    """Synthetic images of whole heads, and their true labels.

    Raises
    ------
    BundleError
        If the model was trained on a label map.
    """
    source = LabelTable.packaged("fullhead")
    size_mm = bundle.voxel_size_mm
    shape = tuple(16 * math.ceil(edge / size_mm / 16) for edge in FIELD_OF_VIEW_MM)
    grid = Grid(shape, np.diag([size_mm, size_mm, size_mm, 1.0]))
    crosswalk = Crosswalk.packaged("fullhead", bundle.table.name)
    generator = Generator(crosswalk, source, shape=shape, voxel_size_mm=size_mm)
    codes = bundle.table.codes.astype(np.int16)
    learned = _learned_from(bundle)
    for path in label_maps:
        # Images of a label map are the same whatever other maps are named.
        number = int("".join(filter(str.isdigit, path.name)) or 0)
        labels = read_label_map(path, source)
        if voxel_hash(labels.voxels, labels.grid) in learned:
            raise BundleError(
                f"{path}: {bundle.name} was trained on it. Give label maps that were held out."
            )
        volume = LabelVolume.from_label_map(labels)
        for space in spaces:
            for index in range(count):
                rng = np.random.default_rng([number, index, seed])
                recipe = read_space(space).at(size_mm).draw(rng)
                middle = replace(recipe.deformation, center_frac=(0.5, 0.5, 0.55))
                pair = generator.render(volume, replace(recipe, deformation=middle, view=View()))
                yield (
                    pair.image[0].numpy(),
                    LabelMap(codes[pair.labels.numpy()], grid, bundle.table),
                )


def _learned_from(bundle: ModelBundle) -> set[str]:
    """Digests of the label maps of its training, those left out that were held out."""
    training = read_json(bundle.path / MANIFEST).get("training", {})
    maps = training.get("maps", {}).values()
    return {one["digest"] for one in maps if not one["held_out"]}


def segmented(
    image: np.ndarray, grid: Grid, bundle: ModelBundle, net: PackedNet
) -> tuple[LabelMap, np.ndarray, ProbabilitySums]:
    """Labels as ``brainseg`` makes them by default, the probability of each, and sums of them."""
    largest = np.ones(grid.to_ras().shape, np.float32)

    def keep(plane: int, rows: slice, columns: slice, probabilities) -> None:
        largest[plane, rows, columns] = probabilities.amax(0).cpu().numpy()

    sums = Accumulator(len(bundle.table))
    labels = segment(
        image,
        grid,
        net,
        bundle.table,
        voxel_size_mm=bundle.voxel_size_mm,
        window_vox=bundle.patch_vox,
        flips=True,
        device=next(net.parameters()).device.type,
        on_probabilities=keep,
        confidence=sums,
    )
    return labels, grid.array_from_ras(largest), sums.sums()


def calibrate_bundle(options: argparse.Namespace) -> ModelBundle:
    """Segment, fit, write.

    Raises
    ------
    BundleError, InputError, ValueError
        One line: what is wrong, and the remedy.
    """
    if options.threads > 0:
        torch.set_num_threads(options.threads)
    bundle = ModelBundle.read(find_bundle(options.model))
    net = bundle.load(options.device)
    known = []
    for image, truth in pairs(
        bundle, options.label_maps, options.spaces, options.pairs, options.seed
    ):
        labels, probability, sums = segmented(image, truth.grid, bundle, net)
        known.append(KnownTruth.of(sums, labels, probability, truth))
        mean = float(np.nanmean(known[-1].dice()[1:]))
        print(f"{len(known)}: mean Dice {mean:.3f}", file=sys.stderr, flush=True)
    about = {
        "label_maps": [path.name for path in options.label_maps],
        "spaces": [Path(space).name for space in options.spaces],
        "images": len(known),
        "seed": options.seed,
        "test_time_flips": True,
    }
    of_each = len(options.spaces) * options.pairs
    heads = [str(path) for path in options.label_maps for _ in range(of_each)]
    calibration = fit_calibration(known, bundle.table, heads=heads, about=about)
    return add_confidence(bundle.path, calibration.to_json(bundle.table))


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 after one line on stderr that says what is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="model folder, or a packaged model's name")
    parser.add_argument(
        "--label-maps", type=Path, nargs="+", required=True, help="table fullhead, held out"
    )
    parser.add_argument(
        "--spaces", nargs="+", default=["t1w"], help="recipes; of the contrast it is made for"
    )
    parser.add_argument("--pairs", type=int, default=2, help="images a label map and recipe")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: all")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    try:
        bundle = calibrate_bundle(parser.parse_args(argv))
    except (OSError, InputError, BundleError, ValueError) as error:
        print(f"confidence: ERROR: {error}", file=sys.stderr)
        return UNUSABLE
    print(f"{bundle.path}: calibrated, digest {bundle.digest[:12]}")
    return DONE


if __name__ == "__main__":
    raise SystemExit(main())
