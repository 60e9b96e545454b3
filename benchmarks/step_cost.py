# SPDX-License-Identifier: Apache-2.0
"""CPU-seconds of a training step by part: pair, forward pass, loss, backward pass, optimiser.

``python -m benchmarks.step_cost --map training_seg_01.nii.gz --layouts contiguous channels_last``

Each part is given per million voxels of the patch, the median over steps; the first step, in
which libraries choose their kernels, is left out. Layouts and losses take turns step by step, in
one process, so that what else the machine does falls on all alike. CPU time of all threads is
counted, not elapsed time.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from benchmarks.data import shared_data
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.images import read_label_map
from brainseg_bids.nets.architectures import PackedNet
from brainseg_bids.nets.bundle import ModelBundle, find_bundle
from brainseg_bids.nets.spec import NetSpec
from brainseg_bids.nets.thin_volumes import use_float32_when_thin
from brainseg_bids.synth.generator import LabelVolume
from brainseg_bids.synth.recipe_files import read_space
from brainseg_bids.training.fit import make_generator
from brainseg_bids.training.losses import loss_of
from brainseg_bids.training.plan import TrainPlan

PARTS = ("pair", "forward", "loss", "backward", "optimiser")
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last_3d}


class Clock:
    """CPU-seconds of this process since it was last asked."""

    def __init__(self) -> None:
        self.last_s = time.process_time()

    def lap_s(self) -> float:
        now_s = time.process_time()
        took_s, self.last_s = now_s - self.last_s, now_s
        return took_s


def step(
    net: PackedNet,
    optimiser,
    loss,
    pair: tuple[torch.Tensor, torch.Tensor],
    *,
    seed: int,
    bf16: bool,
) -> dict[str, float]:
    """One step as training runs it, without the pair: CPU-seconds by part."""
    image, labels = pair
    clock, took_s = Clock(), {}
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        features = net.features(image)
    took_s["forward"] = clock.lap_s()
    value = loss(net, features, labels, [seed])
    took_s["loss"] = clock.lap_s()
    optimiser.zero_grad()
    value.backward()
    took_s["backward"] = clock.lap_s()
    torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimiser.step()
    took_s["optimiser"] = clock.lap_s()
    return took_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="head-1mm", help="whose network and voxel size")
    parser.add_argument("--map", type=Path, help="label map; default: training_seg_01 of the data")
    parser.add_argument("--patch", type=int, nargs=3, default=(144, 192, 160), metavar="VOXELS")
    parser.add_argument("--space", default="t1w", help="recipe space of the pairs")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--losses", nargs="+", choices=("dense", "chosen"), default=["dense"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5, help="that are counted")
    parser.add_argument("--fp32", action="store_true", help="not in bfloat16")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    file = options.map or shared_data() / "synthseg_training_labels" / "training_seg_01.nii.gz"
    head = LabelVolume.from_label_map(read_label_map(file, LabelTable.packaged("fullhead")))
    bundle = ModelBundle.read(find_bundle(options.model))
    plan = TrainPlan(
        net=NetSpec.from_dict(bundle.net),
        spaces={options.space: 1.0},
        patch_vox=tuple(options.patch),
        voxel_size_mm=bundle.voxel_size_mm,
        dice_weight=1.0,
    )
    generator = make_generator(plan)
    space = read_space(options.space).at(plan.voxel_size_mm)
    nets = {}
    for layout in options.layouts:
        net = bundle.load().train()
        use_float32_when_thin(net)
        net.to(memory_format=LAYOUTS[layout])
        nets[layout] = net, torch.optim.AdamW(net.parameters(), lr=1e-5)
    found: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for number in range(options.steps + 1):
        clock = Clock()
        made = generator.render(head, space.draw(np.random.default_rng(number)))
        pair_s = clock.lap_s()
        pair = made.image[None], made.labels[None]
        for name in options.losses:
            loss = loss_of(TrainPlan(**vars(plan) | {"loss": name}))
            for layout, (net, optimiser) in nets.items():
                took_s = step(net, optimiser, loss, pair, seed=number, bf16=not options.fp32)
                if number:
                    for part, seconds in {"pair": pair_s, **took_s}.items():
                        found[layout, name][part].append(seconds)
    million = math.prod(options.patch) / 1e6
    print(
        f"\n{options.threads} threads, {'float32' if options.fp32 else 'bfloat16'}, patch ", end=""
    )
    print(f"{'x'.join(map(str, options.patch))}: CPU-seconds per million voxels\n")
    print("| layout | loss | " + " | ".join(PARTS) + " | step |\n|" + "---|" * (len(PARTS) + 3))
    for (layout, name), parts in found.items():
        cells = [statistics.median(parts[part]) / million for part in PARTS]
        print(
            f"| {layout} | {name} | " + " | ".join(f"{c:.3f}" for c in (*cells, sum(cells))) + " |"
        )


if __name__ == "__main__":
    main()
