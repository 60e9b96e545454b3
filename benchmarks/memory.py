# SPDX-License-Identifier: Apache-2.0
"""Predicted against measured memory of a training step, and what fits a card by prediction.

python -m benchmarks.memory measured --architectures dynunet unet --edges 96 128
python -m benchmarks.memory predicted --labels 54 --budget 24
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import torch

from brainseg_bids.nets.architectures import ARCHITECTURES
from brainseg_bids.nets.devices import find_device
from brainseg_bids.nets.memory import SAVINGS
from brainseg_bids.nets.memory_plan import ALLOWANCES, MemoryPlan
from brainseg_bids.nets.memory_prediction import predict_gib
from brainseg_bids.nets.sizes import SIZES, default_spec
from brainseg_bids.nets.spec import NetSpec
from brainseg_bids.training.losses import loss_of
from brainseg_bids.training.probe import probe_step


@dataclass(frozen=True)
class Loss:
    """What a plan says about its loss."""

    loss: str = "dense"
    per_label: int = 256
    anywhere: int = 16_384
    dice_weight: float = 1.0


def measured(arguments: argparse.Namespace) -> None:
    """A table row per network and patch: predicted, measured, their ratio."""
    device = find_device(arguments.device)
    loss = Loss(arguments.loss)
    print("| network | patch | checkpointing | predicted GiB | measured GiB | ratio |")
    print("|---|---|---|---|---|---|")
    for name in arguments.architectures:
        spec = default_spec(
            name, arguments.size, n_labels=arguments.labels, voxel_size_mm=arguments.voxel_size
        )
        for edge in arguments.edges:
            for checkpointing in arguments.checkpointing:
                row(spec, edge, bool(checkpointing), loss, device.kind, arguments)


def row(
    spec: NetSpec,
    edge: int,
    checkpointing: bool,
    loss: Loss,
    kind: str,
    arguments: argparse.Namespace,
) -> None:
    """Predict and measure one step."""
    patch = (edge,) * 3
    predicted = predict_gib(
        spec,
        patch,
        loss=loss_of(loss).symbolic,
        precision=arguments.precision,
        checkpointing=checkpointing,
        device_kind=kind,
    ).total
    what = f"| {spec.architecture} {arguments.size} | {edge}³ | {'yes' if checkpointing else 'no'}"
    if predicted > arguments.most:
        print(f"{what} | {predicted:.3f} | not run | |", flush=True)
        return
    plan = MemoryPlan(
        patch, 1, 1, arguments.precision, checkpointing, False, False, 0.0, predicted, kind, ""
    )
    cost = probe_step(spec, plan, loss, limit_s=arguments.limit, threads=arguments.threads)
    told = (
        "out of memory |"
        if cost is None
        else f"{cost.peak_gib:.3f} | {predicted / cost.peak_gib:.2f}"
    )
    print(f"{what} | {predicted:.3f} | {told} |", flush=True)


def predicted(arguments: argparse.Namespace) -> None:
    """A table row per architecture and size: GiB of a GPU with every way to be lean."""
    loss = loss_of(Loss(arguments.loss)).symbolic
    room = arguments.budget - ALLOWANCES["cuda"].context_gib
    print("| network | stem | plain | checkpointing | offload | both | seconds to predict |")
    print("|---|---|---|---|---|---|---|")
    for name in arguments.architectures:
        for size in SIZES:
            spec = default_spec(
                name, size, n_labels=arguments.labels, voxel_size_mm=arguments.voxel_size
            )
            began = time.process_time()
            needs = [
                predict_gib(
                    spec,
                    (arguments.edges[0],) * 3,
                    loss=loss,
                    precision=arguments.precision,
                    checkpointing=lean.checkpointing,
                    offload=lean.offload,
                    device_kind="cuda",
                ).total
                for lean in SAVINGS
            ]
            cells = [f"**{need:.1f}**" if need <= room else f"{need:.1f}" for need in needs]
            took = (time.process_time() - began) / len(needs)
            row = " | ".join([f"{name} {size}", str(spec.block_size), *cells, f"{took:.1f}"])
            print(f"| {row} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("measured", "predicted"))
    parser.add_argument("--architectures", nargs="+", default=sorted(ARCHITECTURES))
    parser.add_argument("--edges", nargs="+", type=int, default=[96, 128, 160, 192])
    parser.add_argument("--checkpointing", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--size", default="small", choices=SIZES)
    parser.add_argument("--labels", type=int, default=54)
    parser.add_argument("--voxel-size", type=float, default=0.8)
    parser.add_argument("--loss", default="dense")
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--budget", type=float, default=24.0, help="GiB of a card")
    parser.add_argument("--most", type=float, default=10.0, help="GiB; more is not run")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds of one row")
    arguments = parser.parse_args()
    {"measured": measured, "predicted": predicted}[arguments.what](arguments)


if __name__ == "__main__":
    main()
