# SPDX-License-Identifier: Apache-2.0
"""CPU seconds and peak memory of an image-label pair: our generator, TorchIO, cornucopia.

All candidates make a pair of the same size from the middle of the same 1 mm label map, one after
the other in rounds in one process on one thread. Loading the map is not counted.

``python -m benchmarks.generator --labels training_seg_02.nii.gz --sizes 128 256``
``python -m benchmarks.generator --effects``: what each effect costs

Rivals come with ``pip install '.[benchmarks]'``; one that is not installed is a row that says so.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.data import shared_data
from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.images import read_label_map
from brainseg_bids.synth.generator import Generator, LabelVolume
from brainseg_bids.synth.recipe import (
    Atrophy,
    Bias,
    Deformation,
    Gibbs,
    Motion,
    Noise,
    Ratio,
    Recipe,
    Resolution,
    Susceptibility,
    Texture,
    Tissue,
    Transmit,
    View,
)
from brainseg_bids.synth.space import RecipeSpace

EIGHT = (0, 2, 3, 4, 8, 16, 507, 515)
"""Codes of the map with eight labels: one for each tissue."""

OF_TISSUE = {0: 0, 2: 2, 3: 4, 4: 515, 5: 507, 6: 507, 8: 3, 9: 3, 10: 16, 11: 8}
"""BIDS standard label to one of `EIGHT`."""

Pair = Callable[[], object]

NOT_INSTALLED = "not installed"
MODULES = {"TorchIO": "torchio", "cornucopia": "cornucopia"}
"""What has to be there for candidates whose names begin so."""


def is_installed(name: str) -> bool:
    """Whether a candidate can be run here."""
    needed = (module for rival, module in MODULES.items() if name.startswith(rival))
    return all(importlib.util.find_spec(module) is not None for module in needed)


def ours(labels: LabelMap, size: int, space: str = "t1w") -> Pair:
    """Our generator, a fresh recipe each time, crop in the middle of the head."""
    head = LabelVolume.from_label_map(labels)
    generator = Generator(
        Crosswalk.packaged("fullhead", "brainseg"), labels.table, shape=(size,) * 3
    )
    recipes, rng = RecipeSpace.packaged(space), np.random.default_rng(1)

    def pair():
        recipe = recipes.draw(rng)
        middle = replace(recipe.deformation, center_frac=(0.5, 0.5, 0.5))
        return generator.render(head, replace(recipe, deformation=middle))

    return pair


def effects() -> dict[str, dict]:
    """Fields of a recipe that switch on one effect each."""
    turned = Motion((0.3, 0.7), ((1.0, -0.5, 0.8), (0.4, 0.9, -1.2)), ((1.5, -1, 2), (-2, 1, 0.5)))
    shifted = Motion((0.3,), ((1.0, -0.5, 0.8),), ((0.0, 0.0, 0.0),))
    return {
        "nothing but cut out and painted": {},
        "affine and warp": {
            "deformation": Deformation((5, -4, 3), (1.05, 0.95, 1), (0.01, 0, 0), velocity_sd_mm=3)
        },
        "other ventricles, thin cortex, lesions": {"ageing": Atrophy(3.0, 0.3, 0.01, seed=1)},
        "three components, weighted": {"texture": Texture(seed=1)},
        "grain": {"texture": Texture(grain_frac=0.5, grain_mm=3.0)},
        "transmit field, MPRAGE": {"transmit": Transmit("mprage", 1.2, 0.6, 0.1)},
        "transmit field, MP2RAGE": {"transmit": Transmit("mp2rage", 1.2, 0.6, 0.1)},
        "loss near air": {"susceptibility": Susceptibility(3.0)},
        "receive field": {"bias": Bias(0.4, seed=2)},
        "motion, one shift": {"motion": shifted},
        "motion, two turns": {"motion": turned},
        "Gibbs, three axes": {"gibbs": Gibbs((0.75, 0.75, 0.75))},
        "1.5 mm voxels": {"resolution": Resolution((1.5,) * 3, (1.5,) * 3)},
        "5 mm slices": {"resolution": Resolution((1, 1, 5), (1, 1, 5))},
        "Rician noise": {"noise": Noise(0.03, 3)},
        "noise of 32 channels": {"noise": Noise(0.01, 3, 32)},
        "ratio of two inversions": {"ratio": Ratio(0.05)},
        "brain only, cut, field of view": {
            "view": View("brain+csf", (0.0, 0.6, -0.8), 60.0, (-60.0,) * 3, (60.0,) * 3)
        },
        "gamma": {"gamma": 1.2},
    }


def every_effect(*, ratio: bool) -> dict:
    """Fields of a recipe that switch on all effects at once, as a magnitude or a ratio image."""
    fields = {}
    for changes in effects().values():
        fields |= changes
    fields["texture"] = Texture(seed=1, grain_frac=0.5)
    fields["resolution"] = Resolution((1.0, 1.0, 1.5), (1.0, 1.0, 1.5))
    if ratio:
        return fields
    return fields | {"ratio": Ratio(), "transmit": Transmit("mprage", 1.2, 0.6, 0.1)}


def with_effect(labels: LabelMap, size: int, fields: dict) -> Pair:
    """Our generator with one recipe, crop in the middle of the head."""
    head = LabelVolume.from_label_map(labels)
    generator = Generator(
        Crosswalk.packaged("fullhead", "brainseg"), labels.table, shape=(size,) * 3
    )
    means = {label.name: 10.0 * (label.index % 23) for label in labels.table}
    if fields.get("texture", Texture()).seed:
        tissues = {n: Tissue((m, m + 20, m + 40), (9.0,) * 3, (3, 2, 1)) for n, m in means.items()}
    else:
        tissues = {n: Tissue((m,), (9.0,)) for n, m in means.items()}
    recipe = Recipe(tissues, **fields)
    return lambda: generator.render(head, recipe)


def report_effects(labels: LabelMap, size: int, repeats: int) -> None:
    """Markdown table of what each effect adds, and how TorchIO's chain compares."""
    chains = {name: with_effect(labels, size, fields) for name, fields in effects().items()}
    chains["t1w recipes"] = ours(labels, size)
    chains["every effect, magnitude"] = with_effect(labels, size, every_effect(ratio=False))
    chains["every effect, ratio"] = with_effect(labels, size, every_effect(ratio=True))
    # What follows TorchIO and the largest chain finds a cold cache: that is not the first row.
    candidates = {"warm-up": (next(iter(chains.values())), repeats)}
    candidates |= {name: (chain, repeats) for name, chain in chains.items()}
    if is_installed("TorchIO"):
        candidates["TorchIO"] = (torchio_chain(labels, size, crop_first=False), 1)
    found = {name: (statistics.median(t), mb) for name, (t, mb) in measure(candidates).items()}
    found.pop("warm-up")
    plain = next(iter(found.values()))[0]
    rival, _ = found.pop("TorchIO", (None, 0))
    said = NOT_INSTALLED if rival is None else f"{rival:.3g} CPU-s"
    print(f"\n{size}³ voxels, TorchIO's chain: {said}\n")
    print(
        "| effect | CPU-ms a pair | added ms | TorchIO / ours | peak MB |\n|---|---|---|---|---|"
    )
    for name, (took, rise) in found.items():
        ratio = "" if rival is None else f"{rival / took:.0f}"
        print(f"| {name} | {1e3 * took:.0f} | {1e3 * (took - plain):.0f} | {ratio} | {rise:.0f} |")


def torchio_chain(labels: LabelMap, size: int, *, crop_first: bool) -> Pair:
    """TorchIO's transforms in a row.

    With ``crop_first`` the map is cropped before it is deformed, which leaves empty corners, and
    affine and elastic moves are done in one: the fastest way to write it.
    """
    import SimpleITK as sitk
    import torchio as tio

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    tensor = torch.from_numpy(labels.voxels.astype(np.int16))[None]
    subject = tio.Subject(label=tio.LabelMap(tensor=tensor, affine=labels.grid.affine))
    crop = tio.CropOrPad(size)
    if crop_first:
        moves = [crop, tio.RandomAffineElasticDeformation()]
    else:
        moves = [tio.RandomElasticDeformation(), tio.RandomAffine(), crop]
    chain = tio.Compose(
        [
            *moves,
            tio.RandomLabelsToImage(label_key="label", image_key="image"),
            tio.RandomBiasField(),
            tio.RandomGamma(),
            tio.RandomAnisotropy(),
            tio.RandomBlur(),
            tio.RandomNoise(),
        ]
    )
    return lambda: chain(subject)


def cornucopia_chain(labels: LabelMap, size: int, **settings) -> Pair:
    """cornucopia's ``SynthFromLabelTransform``, with its defaults but for ``settings``."""
    from cornucopia import SynthFromLabelTransform

    ranks = labels.table.positions()[labels.voxels].astype(np.int32)
    tensor = torch.from_numpy(ranks)[None]
    make = SynthFromLabelTransform(patch=size, **settings)
    return lambda: make(tensor)


def eight_labels(labels: LabelMap) -> LabelMap:
    """The same head with one label for each tissue."""
    lookup = np.zeros(int(labels.table.codes[-1]) + 1, dtype=np.int16)
    for label in labels.table:
        lookup[label.index] = OF_TISSUE[label.mapping]
    return LabelMap(lookup[labels.voxels], labels.grid, labels.table.subset(EIGHT, name="eight"))


def peak_reset() -> None:
    """Let the peak of resident memory begin at what is in use now."""
    # Without this, memory that an earlier candidate left to the allocator would hide the next.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def memory_mb(entry: str) -> float:
    """``VmHWM`` (peak) or ``VmRSS`` (now) of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(entry):
            return int(line.split()[1]) / 1024
    raise ValueError(f"no {entry} in /proc/self/status")


def measure(candidates: dict[str, tuple[Pair, int]]) -> dict[str, tuple[list[float], float]]:
    """CPU seconds of each repeat, and the rise of memory during the last one in MB.

    What is repeated twice or more is called once before, to warm up.
    """
    times = {name: [] for name in candidates}
    rises = {}
    for turn in range(max(repeats for _, repeats in candidates.values()) + 1):
        for name, (pair, repeats) in candidates.items():
            if turn > repeats or (turn == 0 and repeats == 1):
                continue
            memory_turn = turn == repeats
            if memory_turn:
                peak_reset()
                before = memory_mb("VmRSS")
            start = time.process_time()
            pair()
            took = time.process_time() - start
            if turn > 0:
                times[name].append(took)
            if memory_turn:
                rises[name] = memory_mb("VmHWM") - before
    return {name: (times[name], rises[name]) for name in candidates}


def report(
    title: str, found: dict[str, tuple[list[float], float]], absent: Sequence[str] = ()
) -> None:
    """Markdown table; ratios are to the first candidate, ``absent`` are not installed."""
    first = statistics.median(next(iter(found.values()))[0])
    print(f"\n{title}\n\n| generator | CPU-s a pair | n | x ours | peak MB |")
    print("|---|---|---|---|---|")
    for name, (times, rise) in found.items():
        median = statistics.median(times)
        print(f"| {name} | {median:.3g} | {len(times)} | {median / first:.3g} | {rise:.0f} |")
    for name in absent:
        print(f"| {name} | {NOT_INSTALLED} | 0 | | |")


def contest(labels: LabelMap, size: int, n: int, *, slowest: bool) -> dict:
    """How each candidate is made, and how often it is measured, by its name."""
    few = eight_labels(labels)
    candidates = {
        "ours, t1w recipes": (lambda: ours(labels, size), 12 * n),
        "ours, agnostic recipes": (lambda: ours(labels, size, "agnostic"), 12 * n),
        "ours, t1w recipes, 8 labels": (lambda: ours(few, size), 12 * n),
        "TorchIO, crop after the moves": (
            lambda: torchio_chain(labels, size, crop_first=False),
            n,
        ),
        "TorchIO, crop first, moves in one": (
            lambda: torchio_chain(labels, size, crop_first=True),
            n,
        ),
        "cornucopia, gmm_fwhm=False, order=1": (
            lambda: cornucopia_chain(labels, size, gmm_fwhm=False, order=1),
            n,
        ),
    }
    if slowest:
        candidates["cornucopia, defaults"] = (lambda: cornucopia_chain(labels, size), 1)
    return candidates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", type=Path, help="label map, 1 mm, codes of table fullhead")
    parser.add_argument("--sizes", type=int, nargs="+", default=[128])
    parser.add_argument("--repeats", type=int, default=3, help="of a TorchIO pair")
    parser.add_argument("--no-slowest", action="store_true", help="without cornucopia's defaults")
    parser.add_argument("--effects", action="store_true", help="only ours, effect by effect")
    options = parser.parse_args()
    torch.set_num_threads(1)
    file = options.labels
    if file is None:
        file = shared_data() / "synthseg_training_labels" / "training_seg_02.nii.gz"
    labels = read_label_map(file, LabelTable.packaged("fullhead"))
    if options.effects:
        for size in options.sizes:
            report_effects(labels, size, 4 * options.repeats)
        return
    for size in options.sizes:
        candidates = contest(labels, size, options.repeats, slowest=not options.no_slowest)
        ready = {k: (make(), n) for k, (make, n) in candidates.items() if is_installed(k)}
        present = len(np.unique(labels.voxels))
        report(
            f"{size}³ voxels of {file.name}, {present} labels",
            measure(ready),
            [name for name in candidates if name not in ready],
        )


if __name__ == "__main__":
    main()
