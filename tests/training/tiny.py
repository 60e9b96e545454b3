# SPDX-License-Identifier: Apache-2.0
"""A net, a plan and heads small enough for many steps a second."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from brainseg_bids.images import write_label_map
from brainseg_bids.nets.spec import NetSpec
from brainseg_bids.synth.generator import LabelVolume
from brainseg_bids.training.plan import TrainPlan
from tests.phantom.head import phantom_head

TINY = TrainPlan(
    net=NetSpec("dynunet", 43, 2, 8, {"widths": [8, 8, 12]}),
    spaces={"t1w": 1.0},
    patch_vox=(24, 24, 24),
    voxel_size_mm=8.0,
    learning_rate=1e-2,
    warmup_steps=2,
    total_steps=5000,
    decay_steps=1,
    per_label=16,
    anywhere=256,
    precision="32-true",
    seed=3,
    validate_every=2,
    validation_pairs=1,
    ema_decay=0.5,
)
FOUR = replace(TINY, batch=2, accumulate=2)
"""Four pairs a step in one process."""


def tiny_head(shape: tuple[int, int, int] = (24, 28, 26)) -> LabelVolume:
    return LabelVolume.from_label_map(phantom_head(shape, 8.0))


def write_inputs(folder: Path, plan: TrainPlan) -> list[str]:
    """Two label maps and a plan as files; the arguments of the command that takes them."""
    write_label_map(phantom_head((24, 28, 26), 8.0), folder / "learn.nii.gz")
    write_label_map(phantom_head((26, 28, 26), 8.0), folder / "held.nii.gz")
    (folder / "plan.json").write_text(plan.to_json())
    return [
        *("--plan", str(folder / "plan.json")),
        *("--heads", str(folder / "learn.nii.gz")),
        *("--validation", str(folder / "held.nii.gz")),
        *("--out", str(folder / "out")),
    ]


def read_state(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Everything that training goes on from: weights, average, optimiser's moments."""
    read = torch.load(checkpoint, weights_only=True)
    moments = read["optimizer_states"][0]["state"]
    state = {f"moment/{k}/{name}": m for k, one in moments.items() for name, m in one.items()}
    for part in ("state_dict", "current_model_state"):
        state |= {f"{part}/{name}": tensor for name, tensor in read[part].items()}
    return state


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Largest between two states of the same names."""
    assert set(one) == set(other)
    return max(float((one[name] - other[name]).abs().max()) for name in one)
