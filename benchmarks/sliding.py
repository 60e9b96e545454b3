# SPDX-License-Identifier: Apache-2.0
"""Whole heads window by window: ours, and MONAI's default ``sliding_window_inference``.

Both get the same array on the network's grid, the same network, the same windows in the same
places and the same Gaussian, and end with labels (uint8) of every voxel. MONAI blends label
scores in float32; ours blends features in rolling sums, in bfloat16 where the processor has it.
Each run is a process of its own; the two take turns.

``python -m benchmarks.sliding --model head-1mm --threads 2``

Cases: ``own``, the head cropped at the network's own voxel size; ``large``, that head repeated
until 352x352x256 voxels are full, so that the network sees what it was trained for; ``large54``,
the same with 54 labels (some labels repeated, a little less probable); ``fine``, one head of
0.7 mm voxels in 352x352x256, finer than the network knows, so that it is often in doubt.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.data import shared_data
from brainseg_bids.nets.bundle import DEFAULT_MODEL

LARGE_SHAPE, FINE_MM = (256, 352, 352), 0.7
LARGE_WINDOW = (112, 112, 112)
"""Divides that shape into windows at equal distances, so that both programs place them alike."""

PROGRAMS = {"ours": ("ours", "bf16"), "ours, float32": ("ours", "fp32"), "MONAI": ("monai", "")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=DEFAULT_MODEL, help="packaged model or a model folder")
    parser.add_argument("--image", type=Path, help="by default the ECoG subject, 256³ at 1 mm")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--cases", nargs="+", default=["own", "large", "large54"])
    parser.add_argument("--programs", nargs="+", default=list(PROGRAMS), choices=PROGRAMS)
    parser.add_argument("--child", nargs=3, metavar=("PROGRAM", "CASE", "FOLDER"))
    options = parser.parse_args()
    options.image = options.image or shared_data() / "mne_sample_ecog" / "T1.mgz"
    if options.child:
        return _child(options, *options.child)
    # Waiting threads would otherwise burn CPU time that no work is done in.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    print(HEAD)
    for case in options.cases:
        with tempfile.TemporaryDirectory() as folder:
            for line in _compare(options, case, Path(folder)):
                print(line, flush=True)


HEAD = (
    "| case | program | windows | wall s | CPU-s | x ours (CPU) | network % | stitching % | "
    "scores and labels % | sums GiB | peak GiB | equal labels %, all / head |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def _compare(options: argparse.Namespace, case: str, folder: Path) -> list[str]:
    found: dict[str, list[dict]] = {name: [] for name in options.programs}
    labels = {}
    for _ in range(options.repeats):
        for name in options.programs:
            command = [
                sys.executable, "-m", "benchmarks.sliding", "--model", options.model,
                "--image", options.image, "--threads", options.threads,
                "--child", name, case, folder,
            ]  # fmt: skip
            child = subprocess.Popen(list(map(str, command)))
            _, status, used = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
            if child.returncode != 0:
                print(f"{case}, {name}: ended with {child.returncode}", file=sys.stderr)
                continue
            facts = json.loads((folder / "facts.json").read_text())
            found[name].append(facts | {"peak_gib": used.ru_maxrss / 2**20})
            print(f"{case}, {name}: {found[name][-1]}", file=sys.stderr, flush=True)
            labels[name] = np.load(folder / "labels.npy")
    rows = []
    for name, runs in found.items():
        if not runs:
            continue
        cpu_s = _median(runs, "cpu_s")
        ours = _median(found.get("ours", []) or runs, "cpu_s")
        parts = " | ".join(f"{100 * _median(runs, key) / cpu_s:.1f}" for key in PARTS)
        equal = _equal(labels[name], labels["MONAI"]) if "MONAI" in labels else "not run"
        rows.append(
            f"| {runs[0]['what']} | {name} | {runs[0]['windows']} | {_median(runs, 'wall_s'):.1f} "
            f"| {cpu_s:.1f} | {cpu_s / ours:.2f} | {parts} | {runs[0]['sums_gib']:.2f} | "
            f"{_median(runs, 'peak_gib'):.2f} | {equal} |"
        )
    return rows


PARTS = ("network_s", "stitching_s", "labels_s")


def _median(runs: list[dict], key: str) -> float:
    return statistics.median(run[key] for run in runs)


def _equal(labels: np.ndarray, others: np.ndarray) -> str:
    same = labels == others
    head = (labels > 0) | (others > 0)
    return f"{100 * same.mean():.3f} / {100 * same[head].mean():.3f}"


# One run ---------------------------------------------------------------------------------------


def _child(options: argparse.Namespace, program: str, case: str, folder: str) -> None:
    import torch

    from brainseg_bids.nets.bundle import ModelBundle, find_bundle

    torch.set_num_threads(options.threads)
    bundle = ModelBundle.read(find_bundle(options.model))
    net = bundle.load()
    if case.endswith("54"):
        net = _with_labels(net, 54)
    seen = _image(options.image, case, bundle.voxel_size_mm, net.spec.block_size)
    window = bundle.patch_vox if case == "own" else LARGE_WINDOW
    kind, precision = PROGRAMS[program]
    began, cpu = time.monotonic(), time.process_time()
    with torch.inference_mode():
        if kind == "ours":
            labels, facts = _ours(net, seen, window, precision)
        else:
            labels, facts = _monai(net, seen, window)
    facts |= {"wall_s": time.monotonic() - began, "cpu_s": time.process_time() - cpu}
    facts["labels_s"] = facts["cpu_s"] - facts["network_s"] - facts["stitching_s"]
    shape = "x".join(map(str, seen.shape))
    facts["what"] = f"{shape}, {net.spec.n_labels} labels"
    np.save(Path(folder) / "labels.npy", labels.numpy())
    (Path(folder) / "facts.json").write_text(json.dumps(facts))


def _image(path: Path, case: str, voxel_size_mm: float, stem: int):
    """Grey values 0..1 on the network's grid: the head's box, once or many times, or a cube."""
    import torch

    from brainseg_bids.anatomy.intensity import rescale
    from brainseg_bids.images import read_volume
    from brainseg_bids.inference import views

    image, grid = read_volume(path)
    ras = grid.to_ras()
    turned = torch.from_numpy(np.ascontiguousarray(grid.array_to_ras(image), dtype=np.float32))
    mm = FINE_MM if case.startswith("fine") else voxel_size_mm
    box = views.head_box(turned, voxel_size_mm=ras.voxel_size_mm[0], multiple=1)
    for axis, part in enumerate(box):
        step = mm / ras.voxel_size_mm[axis]
        n = LARGE_SHAPE[axis]
        if not case.startswith("fine"):
            n = int((part.stop - part.start) / step) // stem * stem
        start = (part.start + part.stop - 1) / 2 - step * (n - 1) / 2
        turned = views.resample_axis(turned, axis, n, start, step)
    turned = rescale(turned)
    if case.startswith("large"):
        turned = turned.repeat(
            *(-(-n // old) for n, old in zip(LARGE_SHAPE, turned.shape, strict=True))
        )
        turned = turned[tuple(slice(0, n) for n in LARGE_SHAPE)].contiguous()
    return turned


def _with_labels(net, n_labels: int):
    """The same network whose head says some labels twice, the second time less probable."""
    import torch

    from brainseg_bids.nets.architectures import PackedNet
    from brainseg_bids.nets.spec import NetSpec

    spec = net.spec
    wide = PackedNet(
        NetSpec(spec.architecture, n_labels, spec.block_size, spec.features, spec.options)
    ).eval()
    wide.body.load_state_dict(net.body.state_dict())
    cells = spec.block_size**3
    again = torch.arange(n_labels) % spec.n_labels
    with torch.no_grad():
        for name in ("weight", "bias"):
            old = getattr(net.head, name).unflatten(0, (spec.n_labels, cells))
            getattr(wide.head, name).copy_(old[again].flatten(0, 1))
        wide.head.bias.unflatten(0, (n_labels, cells))[spec.n_labels :] -= 0.5
    return wide


def _ours(net, seen, window, precision: str):
    """Labels as `predict.segment` makes them of what it has cropped."""
    import torch

    from brainseg_bids.inference import planes, views
    from brainseg_bids.inference.windows import count_windows, stitched_rows

    if precision == "fp32":
        views.has_fast_bf16 = lambda device: False
    box = tuple(slice(0, n) for n in seen.shape)
    view = views.View(views.Member(net, 1.0, window), seen, box, [(0.0, 1.0)] * 3)
    stem = net.spec.block_size
    spent = {"network_s": 0.0, "rows_s": 0.0}

    def look(part):
        began = time.process_time()
        found = view.forward(part)
        spent["network_s"] += time.process_time() - began
        return found

    def timed(rows):
        while True:
            began = time.process_time()
            slab = next(rows, None)
            spent["rows_s"] += time.process_time() - began
            if slab is None:
                return
            yield slab

    labels = torch.zeros(tuple(seen.shape), dtype=torch.uint8)
    slabs = timed(
        stitched_rows(look, seen, window=window, block_size=stem, rows=planes.SLAB_BLOCKS)
    )
    for plane, rows, columns, probabilities in planes.planes_of(view, slabs, seen.shape, "cpu"):
        labels[plane, rows, columns] = planes.most_probable(probabilities)[0]
    rows = window[0] // stem + planes.SLAB_BLOCKS
    cells = rows * (seen.shape[1] // stem) * (seen.shape[2] // stem)
    return labels, {
        "network_s": spent["network_s"],
        "stitching_s": spent["rows_s"] - spent["network_s"],
        "windows": count_windows(tuple(seen.shape), window, block_size=stem),
        "sums_gib": 4 * (net.spec.features + 1) * cells / 2**30,
    }


def _monai(net, seen, window):
    """MONAI's function with its defaults; overlap per axis, and spread, so that they are ours."""
    import torch
    from monai.inferers import sliding_window_inference

    from brainseg_bids.inference.windows import window_starts

    overlaps = []
    for n, w in zip(seen.shape, window, strict=True):
        starts = window_starts(n, w, overlap_frac=0.25, step=net.spec.block_size)
        # A hair less overlap: it takes the whole part of the distance.
        gap = starts[1] - starts[0] if len(starts) > 2 else int(0.75 * w)
        overlaps.append(1 - gap / w - 1e-6)
    spent = {"network_s": 0.0, "windows": 0}

    def look(part):
        began = time.process_time()
        found = net(part)
        spent["network_s"] += time.process_time() - began
        spent["windows"] += 1
        return found

    began = time.process_time()
    scores = sliding_window_inference(
        seen[None, None], window, 1, look, overlap=overlaps, mode="gaussian", sigma_scale=0.25
    )
    in_all_s = time.process_time() - began
    labels = scores.argmax(1)[0].to(torch.uint8)
    sums = (net.spec.n_labels + 1) * seen.numel()
    return labels, {
        **spent, "stitching_s": in_all_s - spent["network_s"], "sums_gib": 4 * sums / 2**30,
    }  # fmt: skip


if __name__ == "__main__":
    main()
