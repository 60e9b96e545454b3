# SPDX-License-Identifier: Apache-2.0
"""Seconds and peak memory of merging a head map and a brain map.

Both are made from one full-head map: the head source is warped by about a millimetre, the brain
source keeps what mri_synthseg labels. The image is painted from the map. Each row is a process of
its own; reading and making the inputs is not timed. ``inputs`` is the memory in use before the
merge, ``peak`` the most in use during it, inputs included. Linux only.

``python -m benchmarks.merge --labels training_seg_02.nii.gz``
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import time
from pathlib import Path

import numpy as np
from scipy import ndimage

from benchmarks.data import shared_data
from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.anatomy.merge import Merged, Source, merge
from brainseg_bids.anatomy.posteriors import TopPosteriors
from brainseg_bids.images import read_label_map

ROWS = (
    ("head alone", False, False, False),
    ("pair", True, False, False),
    ("pair, image", True, True, False),
    ("pair, posteriors", True, False, True),
    ("pair, image, posteriors", True, True, True),
)
"""What is merged: name, brain source, image, posteriors."""

GREY = {0: 3, 1: 90, 2: 145, 3: 35, 4: 25, 5: 110, 6: 60, 7: 130, 8: 90, 9: 100, 10: 135, 11: 85}
"""T1-like grey of each BIDS standard label."""


def brain_source(truth: LabelMap, *, with_csf: bool = True) -> LabelMap:
    """What a brain tool makes of a full head: brain and the CSF around, nothing else.

    Labels that mri_synthseg has not (choroid, lesion, small vessels) become those it has.
    """
    model = Crosswalk.packaged("fullhead", "brainseg")
    lookup = np.zeros(int(truth.table.codes[-1]) + 1, dtype=np.int16)
    for label in truth.table:
        target = truth.table[model.pairs.get(label.index, label.index)]
        if target.is_brain or (with_csf and target.is_extracerebral_csf):
            lookup[label.index] = target.index
    return LabelMap(lookup[truth.voxels], truth.grid, truth.table)


def head_source(truth: LabelMap, *, shift_mm: float = 1.0, seed: int = 1) -> LabelMap:
    """The head as another tool sees it: every border moved by about ``shift_mm``."""
    rng = np.random.default_rng(seed)
    place = np.indices(truth.grid.shape, dtype=np.float32)
    for axis, size in enumerate(truth.grid.voxel_size_mm):
        coarse = rng.standard_normal([max(2, n // 8) for n in truth.grid.shape])
        zoom = [n / c for n, c in zip(truth.grid.shape, coarse.shape, strict=True)]
        place[axis] += ndimage.zoom(coarse, zoom, order=1) * shift_mm / size
    moved = ndimage.map_coordinates(truth.voxels, place, order=0, mode="nearest")
    return LabelMap(moved.astype(np.int16), truth.grid, truth.table)


def paint(truth: LabelMap, *, noise: float = 8.0, seed: int = 2) -> np.ndarray:
    """T1-like image of a label map, (X, Y, Z) float32."""
    lookup = np.zeros(int(truth.table.codes[-1]) + 1, dtype=np.float32)
    for label in truth.table:
        lookup[label.index] = GREY[label.mapping]
    noisy = np.random.default_rng(seed).standard_normal(truth.grid.shape, dtype=np.float32)
    return np.abs(lookup[truth.voxels] + noise * noisy)


def soften(labels: LabelMap, *, k: int = 4) -> TopPosteriors:
    """Top-k posteriors as tools leave them: the label first, its neighbours after it."""
    codes = np.stack([np.roll(labels.voxels, shift, 0) for shift in range(k)]).astype(np.int16)
    weights = np.zeros(codes.shape, dtype=np.uint8)
    for rank, weight in enumerate((200, 40, 10, 5)[:k]):
        weights[rank] = np.where((codes[rank] != codes[0]) | (rank == 0), weight, 0)
    codes[1:][weights[1:] == 0] = 0
    return TopPosteriors(codes, weights, labels.grid, labels.table)


def measure(row: tuple, path: Path, answers: multiprocessing.Queue) -> None:
    """One row: wall and CPU seconds of the merge, GiB before it and at the peak."""
    name, with_brain, with_image, soft = row
    truth = read_label_map(path, LabelTable.packaged("fullhead"))
    maps = {"charm": head_source(truth)} | (
        {"synthseg": brain_source(truth)} if with_brain else {}
    )
    sources = [
        Source(tool, labels, soften(labels) if soft else None) for tool, labels in maps.items()
    ]
    image = paint(truth) if with_image else None
    del truth
    gc.collect()
    before_gib = _memory_gib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    wall, cpu = time.perf_counter(), time.process_time()
    merged: Merged = merge(*sources, image=image)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    holes = merged.report.holes["after_voxels"]
    answers.put((name, wall, cpu, before_gib, _memory_gib("VmHWM"), holes))


def _memory_gib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 2**20


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", default="training_seg_02.nii.gz", help="full-head map")
    parser.add_argument("--shared-data", help="folder of the real heads")
    given = parser.parse_args()
    folder = shared_data(given.shared_data) / "synthseg_training_labels"
    path = Path(given.labels) if Path(given.labels).exists() else folder / given.labels
    context = multiprocessing.get_context("spawn")
    print(f"{'merged':28}{'wall s':>8}{'CPU s':>8}{'inputs GiB':>12}{'peak GiB':>10}{'holes':>7}")
    for row in ROWS:
        answers = context.Queue()
        process = context.Process(target=measure, args=(row, path, answers))
        process.start()
        while process.is_alive() and answers.empty():
            process.join(0.2)
        if answers.empty() and process.exitcode:
            raise SystemExit(f"{row[0]}: the process ended with {process.exitcode}")
        name, wall, cpu, before, peak, holes = answers.get()
        process.join()
        print(f"{name:28}{wall:8.1f}{cpu:8.1f}{before:12.2f}{peak:10.2f}{holes:7d}", flush=True)


if __name__ == "__main__":
    main()
