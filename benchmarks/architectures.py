# SPDX-License-Identifier: Apache-2.0
"""What networks cost: weights and operations by architecture and size, and seconds of small ones.

``python -m benchmarks.architectures``: table of weights and of GFLOP of a forward pass (a
multiplication and an addition are two), counted without memory or arithmetic

``python -m benchmarks.architectures --seconds --repeats 2``: seconds of a forward and backward
pass of each small network, as training does it (bfloat16, loss over chosen voxels), one thread,
the networks in turns in one process
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator

import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from brainseg_bids.nets.architectures import ARCHITECTURES, PackedNet, build
from brainseg_bids.nets.sizes import SIZES, default_spec, patch_multiple
from brainseg_bids.nets.spec import NetSpec

CHOSEN_VOXELS = 20_000


def cost(spec: NetSpec, edge_vox: int) -> tuple[float, float]:
    """Millions of weights, and GFLOP of a forward pass of one cubic patch."""
    with torch.device("meta"):
        net = build(spec).eval()
        patch = torch.empty(1, 1, edge_vox, edge_vox, edge_vox)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(patch)
    millions = sum(p.numel() for p in net.parameters()) / 1e6
    return millions, counter.get_total_flops() / 1e9


def cost_rows(voxel_sizes_mm: list[float], n_labels: int, edge_vox: int) -> Iterator[str]:
    """Markdown table: a row per architecture and size, columns for each voxel size."""
    heads = [f"{mm:g} mm: multiple | weights (10⁶) | GFLOP" for mm in voxel_sizes_mm]
    yield f"| network | {' | '.join(heads)} |"
    yield "|---|" + "---:|" * 3 * len(voxel_sizes_mm)
    for architecture in ARCHITECTURES:
        for size in SIZES:
            cells = []
            for mm in voxel_sizes_mm:
                spec = default_spec(architecture, size, n_labels=n_labels, voxel_size_mm=mm)
                millions, gflop = cost(spec, edge_vox)
                cells.append(f"{patch_multiple(spec)} | {millions:.2f} | {gflop:.0f}")
            yield f"| {architecture} {size} | {' | '.join(cells)} |"


def step_s(net: PackedNet, image: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    """Wall and CPU seconds of a forward and backward pass with chosen voxels."""
    voxels = torch.stack([torch.randint(n, (CHOSEN_VOXELS,)) for n in labels.shape], dim=1)
    net.zero_grad()
    wall, cpu = time.perf_counter(), time.process_time()
    with torch.autocast("cpu", torch.bfloat16):
        features = net.features(image)
    scores = net.scores_at(features, voxels)
    functional.cross_entropy(scores, labels[tuple(voxels.T)].long()).backward()
    return time.perf_counter() - wall, time.process_time() - cpu


def second_rows(
    architectures: list[str], voxel_size_mm: float, n_labels: int, edge_vox: int, repeats: int
) -> Iterator[str]:
    """Markdown table of medians; the first step of each network is not counted."""
    torch.manual_seed(0)
    nets = {
        name: build(default_spec(name, "small", n_labels=n_labels, voxel_size_mm=voxel_size_mm))
        for name in architectures
    }
    image = torch.rand(1, 1, edge_vox, edge_vox, edge_vox)
    labels = torch.randint(n_labels, (edge_vox,) * 3, dtype=torch.uint8)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in nets}
    for repeat in range(repeats + 1):
        for name, net in nets.items():
            taken = step_s(net, image, labels)
            if repeat:
                seconds[name].append(taken)
    yield "| small network | s | CPU-s | CPU-s of each |"
    yield "|---|---:|---:|---|"
    for name, taken in seconds.items():
        wall, cpu = (statistics.median(column) for column in zip(*taken, strict=True))
        each = ", ".join(f"{seconds:.2f}" for _, seconds in taken)
        yield f"| {name} | {wall:.2f} | {cpu:.2f} | {each} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--voxel-sizes", type=float, nargs="+", default=[1.0, 0.7], metavar="MM")
    parser.add_argument("--labels", type=int, default=54)
    parser.add_argument("--edge", type=int, default=96, metavar="VOXELS")
    parser.add_argument("--seconds", action="store_true", help="measure steps of small networks")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument(
        "--architectures", nargs="+", choices=sorted(ARCHITECTURES), default=list(ARCHITECTURES)
    )
    given = parser.parse_args()
    if given.seconds:
        torch.set_num_threads(1)
        rows = second_rows(
            given.architectures, given.voxel_sizes[0], given.labels, given.edge, given.repeats
        )
    else:
        rows = cost_rows(given.voxel_sizes, given.labels, given.edge)
    for row in rows:
        print(row, flush=True)


if __name__ == "__main__":
    main()
