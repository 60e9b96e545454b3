# SPDX-License-Identifier: Apache-2.0
"""CPU seconds and peak memory of Dice, HD95, ASSD and NSD of 35 labels: ours and rivals.

``python -m benchmarks.metrics``: a 353³ brain at 0.6 mm and a warped copy of it; ours by both
definitions, and each label's bounding box with `edt`.
``--rivals surface-distance monai``: these as well, once; they take minutes.
``--cases identical stray shifted far``: pairs that are hard for a search.

Needs ``pip install edt surface-distance``. Times are CPU seconds of one thread
(``OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE``), memory is beyond the two maps. The first call,
which compiles, is not counted.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from benchmarks.data import shared_data
from benchmarks.generator import memory_mb, peak_reset
from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import Label, LabelTable
from brainseg_bids.evaluation.agreement import compare

MAP = "gouhfi_expected_labels/sub002-t1w-06iso.nii.gz"
LABELS = range(1, 36)
TOLERANCE_MM = 1.0
NODES = 24
WARP_VOX = 1.9
"""Spread of the displacement at the nodes, 15 voxels apart: mean Dice 0.81."""
CASES = ("warped", "identical", "stray", "shifted", "far")
Result = dict[int, tuple[float, float, float, float]]
"""Dice, HD95, ASSD, NSD of each label that both maps have."""


# Pairs -----------------------------------------------------------------------------------------


def warped(voxels: np.ndarray, seed: int = 7) -> np.ndarray:
    """Nearest labels at smooth random places."""
    rng = np.random.default_rng(seed)
    at = []
    for axis, n in enumerate(voxels.shape):
        nodes = rng.normal(0, WARP_VOX, (NODES,) * 3).astype(np.float32)
        moves = ndimage.zoom(nodes, np.array(voxels.shape) / NODES, order=1)
        moves += np.arange(n, dtype=np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        at.append(np.clip(np.rint(moves, out=moves), 0, n - 1).astype(np.int16))
    return voxels[tuple(at)]


def changed(voxels: np.ndarray, case: str) -> np.ndarray:
    """The second map of a case."""
    if case == "identical":
        return voxels.copy()
    if case == "shifted":
        return np.roll(voxels, (6, 5, 4), (0, 1, 2))
    if case == "far":
        return np.roll(voxels, (20, 14, 9), (0, 1, 2))
    out = warped(voxels)
    if case == "stray":
        rng = np.random.default_rng(1)
        out[tuple(rng.integers(0, min(out.shape), (3, 400)))] = rng.choice(LABELS, 400)
    return out


# Methods ---------------------------------------------------------------------------------------


def ours(definition: str) -> Callable[[LabelMap, LabelMap], Result]:
    """All labels in one pass."""

    def run(reference: LabelMap, prediction: LabelMap) -> Result:
        rows = compare(prediction, reference, definition=definition, tolerances_mm=[TOLERANCE_MM])
        return {
            row.index: (row.dice, row.hd95_mm, row.assd_mm, row.nsd_at(TOLERANCE_MM))
            for row in rows
            if row.status == "both"
        }

    return run


def edges(mask: np.ndarray) -> np.ndarray:
    """Voxels of a mask that lack one of six neighbours; its margin is empty."""
    inner = mask.copy()
    for axis in range(3):
        low = tuple(slice(None, -1) if a == axis else slice(None) for a in range(3))
        high = tuple(slice(1, None) if a == axis else slice(None) for a in range(3))
        inner[high] &= mask[low]
        inner[low] &= mask[high]
    return mask & ~inner


def by_edt(reference: LabelMap, prediction: LabelMap) -> Result:
    """Bounding box and exact distance transform of each label, edge voxels."""
    import edt

    size = reference.grid.voxel_size_mm[::-1]
    maps = [m.voxels.T for m in (reference, prediction)]  # as they lie in memory
    boxes = [ndimage.find_objects(m, max(LABELS)) for m in maps]
    found = {}
    for code in LABELS:
        one, other = boxes[0][code - 1], boxes[1][code - 1]
        if one is None or other is None:
            continue
        box = tuple(
            slice(min(a.start, b.start), max(a.stop, b.stop))
            for a, b in zip(one, other, strict=True)
        )
        masks = [np.pad(m[box] == code, 1) for m in maps]
        counts = [np.count_nonzero(mask) for mask in masks]
        dice = 2 * np.count_nonzero(masks[0] & masks[1]) / sum(counts)
        rims = [edges(mask) for mask in masks]
        ways = [
            edt.edt(~rims[1 - n], anisotropy=size, parallel=1)[rims[n]].astype(float)
            for n in range(2)
        ]
        both = np.concatenate(ways)
        hd95 = max(np.percentile(way, 95) for way in ways)
        found[code] = (dice, hd95, both.mean(), np.mean(both <= TOLERANCE_MM))
    return found


def by_surface_distance(reference: LabelMap, prediction: LabelMap) -> Result:
    """DeepMind's package, label by label."""
    import surface_distance as rival

    found = {}
    for code in LABELS:
        masks = [m.voxels == code for m in (reference, prediction)]
        if not all(mask.any() for mask in masks):
            continue
        surfaces = rival.compute_surface_distances(*masks, reference.grid.voxel_size_mm)
        means = rival.compute_average_surface_distance(surfaces)
        areas = [surfaces["surfel_areas_gt"].sum(), surfaces["surfel_areas_pred"].sum()]
        found[code] = (
            rival.compute_dice_coefficient(*masks),
            rival.compute_robust_hausdorff(surfaces, 95),
            np.dot(means, areas) / sum(areas),
            rival.compute_surface_dice_at_tolerance(surfaces, TOLERANCE_MM),
        )
    return found


def by_monai(reference: LabelMap, prediction: LabelMap) -> Result:
    """MONAI's four functions, label by label."""
    import torch
    from monai import metrics

    torch.set_num_threads(1)
    options = {"include_background": True, "spacing": list(reference.grid.voxel_size_mm)}
    found = {}
    for code in LABELS:
        pair = [torch.from_numpy(m.voxels == code)[None, None] for m in (prediction, reference)]
        if not all(mask.any() for mask in pair):
            continue
        found[code] = tuple(
            float(value)
            for value in (
                metrics.compute_dice(*pair),
                metrics.compute_hausdorff_distance(*pair, percentile=95, **options),
                metrics.compute_average_surface_distance(*pair, symmetric=True, **options),
                metrics.compute_surface_dice(*pair, class_thresholds=[TOLERANCE_MM], **options),
            )
        )
    return found


NEEDS = {"bounding box + edt": "edt", "surface-distance": "surface_distance"}
"""Modules of other packages; a method whose module is not installed is a row that says so."""

RIVALS = {"surface-distance": by_surface_distance, "monai": by_monai}
TWINS = {"bounding box + edt": "ours, voxel", "monai": "ours, voxel"}
"""Which of ours a rival's numbers are to be equal to; else the surface definition."""


# Tables ----------------------------------------------------------------------------------------


def measure(run: Callable[[], Result], repeats: int) -> tuple[float, float, Result]:
    """Median CPU seconds, peak memory beyond what was in use before in MB, and the result."""
    took, rises = [], []
    for _ in range(repeats):
        peak_reset()
        before = memory_mb("VmRSS")
        start = time.process_time()
        result = run()
        took.append(time.process_time() - start)
        rises.append(memory_mb("VmHWM") - before)
    return statistics.median(took), max(rises), result


def table(case: str, reference: LabelMap, prediction: LabelMap, rivals: list[str]) -> None:
    """Rows of one case."""
    methods = {
        "ours, surface": ours("surface"),
        "ours, voxel": ours("voxel"),
        "bounding box + edt": by_edt,
        **{name: RIVALS[name] for name in rivals},
    }
    absent = [name for name in methods if not find_spec(NEEDS.get(name, "numpy"))]
    rows = {}
    for name, run in methods.items():
        if name in absent:
            continue
        repeats = 1 if name in RIVALS else 5 if name.startswith("ours") else 2
        rows[name] = (repeats, *measure(lambda run=run: run(reference, prediction), repeats))
    for name, (repeats, took, rise, result) in rows.items():
        ratios = " | ".join(f"{took / rows[f'ours, {d}'][1]:.3g}" for d in ("surface", "voxel"))
        values = np.array(list(result.values()))
        twin = np.array(list(rows[TWINS.get(name, "ours, surface")][3].values()))
        apart = "" if name.startswith("ours") else f"{np.abs(values - twin).max():.1e}"
        means = " | ".join(f"{mean:.3f}" for mean in values.mean(0))
        print(
            f"| {case} | {name} | {took:.3g} | {repeats} | {ratios} | {rise:.0f} | {means} "
            f"| {apart} |",
            flush=True,
        )
    for name in absent:
        print(f"| {case} | {name} | not installed |" + " |" * 9, flush=True)


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of the real heads")
    parser.add_argument("--cases", nargs="+", default=["warped"], choices=CASES)
    parser.add_argument("--rivals", nargs="+", default=[], choices=list(RIVALS))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    image = nib.load(shared_data(options.data) / MAP)
    voxels = np.asanyarray(image.dataobj)
    names = LabelTable([Label(code, f"label-{code}") for code in (0, *LABELS)], name="gouhfi")
    reference = LabelMap(voxels, Grid(voxels.shape, image.affine), names)
    corner = voxels[120:180, 120:180, 120:180]
    small = LabelMap(corner, Grid(corner.shape, image.affine), names)
    moved = LabelMap(np.roll(corner, 30, 0), small.grid, names)  # far enough for every loop
    for definition in ("surface", "voxel"):
        ours(definition)(small, moved)
    print(
        "| pair | method | CPU-s | n | x ours, surface | x ours, voxel | peak MB | Dice | HD95 mm "
        "| ASSD mm | NSD 1 mm | most apart |\n|" + "---|" * 12
    )
    for case in options.cases:
        second = np.asfortranarray(changed(voxels, case))
        table(case, reference, LabelMap(second, reference.grid, names), options.rivals)


if __name__ == "__main__":
    main()
