# SPDX-License-Identifier: Apache-2.0
"""Folders of training jobs, made up: what a run leaves behind, in good and in bad states."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np

from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable

TABLE = LabelTable.packaged("brainseg")
NAMES = [label.name for label in TABLE if label.index]

PLAN = {
    "net": {
        "architecture": "dynunet",
        "n_labels": 43,
        "stem": 2,
        "features": 24,
        "options": {"widths": [24, 48, 96, 192]},
    },
    "spaces": {"t1w": 0.8, "t2w": 0.1, "flair": 0.1},
    "source_table": "fullhead",
    "target_table": "brainseg",
    "patch_vox": [96, 128, 112],
    "voxel_size_mm": 0.8,
    "learning_rate": 0.003,
    "warmup_steps": 100,
    "total_steps": 2000,
    "decay_steps": 500,
    "per_label": 256,
    "anywhere": 16384,
    "dice_weight": 1.0,
    "ema_decay": 0.995,
    "precision": "bf16-mixed",
    "seed": 1,
    "validate_every": 250,
    "validation_pairs": 4,
    "validation_space": "t1w",
    "batch": 2,
    "accumulate": 1,
    "devices": 1,
    "nodes": 1,
}
JOB = {
    "name": "t1w-0p8mm",
    "command": "brainseg maps out group --stages train --target-voxel-size 0.8",
    "heads": [f"maps/sub-{k:02d}_seg-fullhead_dseg.nii.gz" for k in range(1, 15)],
    "validation": ["maps/sub-15_seg-fullhead_dseg.nii.gz", "maps/sub-16_seg-fullhead_dseg.nii.gz"],
    "spaces": {
        "t1w": {"share": 0.8, "contrast": "T1w", "kappa": 1.0, "digest": "d" * 64},
        "t2w": {"share": 0.1, "digest": "e" * 64},
        "flair": {"share": 0.1, "digest": "f" * 64},
    },
    "maps": {"sub-01_seg-fullhead_dseg.nii.gz": {"voxel_size_mm": [0.7, 0.7, 1.0]}},
    "contrasts": ["T1w"],
    "table": "brainseg",
    "started": "2026-01-01 08:00",
    "started_from": "",
    "seconds": 5000.0,
    "source": "Heads",
    "data_licence": "CC0",
}
_MEMORY_PLAN = {
    "patch_vox": [96, 128, 112],
    "batch": 2,
    "accumulate": 1,
    "precision": "bf16-mixed",
    "checkpointing": False,
    "offload": False,
    "compile": False,
    "budget_gib": 8.0,
    "predicted_gib": 5.1,
    "device": "cpu",
    "reason": "the largest patch that fits 8 GiB",
    "probed_gib": 5.0,
    "used_gib": 5.3,
}
MEMORY = {
    "device": {"kind": "cpu", "name": "Zen 4, 2 cores", "total_gib": 24.0, "shared": True},
    "plans": [_MEMORY_PLAN],
}


def two_plans() -> dict:
    """A first plan that ran out of memory, and the one that was used."""
    first = _MEMORY_PLAN | {
        "patch_vox": [128, 144, 128],
        "predicted_gib": 7.6,
        "probed_gib": 8.4,
        "used_gib": None,
        "reason": "probe ran out of memory",
    }
    second = _MEMORY_PLAN | {"checkpointing": True, "reason": "next that needs clearly less"}
    return MEMORY | {"plans": [first, second]}


def dice_of(name: str, step: int) -> float:
    """How a label is learned: large ones early, small ones late."""
    late = 150 + 60 * (NAMES.index(name) * 7 % 11)
    return 0.93 * (1 - math.exp(-((step / late) ** 1.3))) * (0.7 + 0.3 * (len(name) % 3 == 0))


def log_rows(first: int, last: int, *, real: bool = True) -> list[dict]:
    """Lines as Lightning writes them: losses every 25 steps, a validation every 250."""
    rng = np.random.default_rng(first)
    rows = []
    for step in range(first + 25, last + 1, 25):
        rows.append(
            {
                "step": step,
                "loss": 0.8 + 3.2 * math.exp(-step / 400) + 0.12 * rng.normal(),
                "lr": 0.003 * min(1, step / 100) * min(1, (2000 - step) / 500 + 0.02),
                "pairs_per_s": 1.2 + 0.1 * rng.normal(),
                "voxels_per_s": 1.2 * 96 * 128 * 112,
                "waiting_frac": abs(0.02 + 0.01 * rng.normal()),
                "memory_gib": 5.1 + 0.1 * rng.random(),
            }
        )
        if step % 250 == 0:
            dice = {f"dice/{name}": dice_of(name, step) for name in NAMES}
            rows.append({"step": step, "dice_brain": float(np.mean(list(dice.values())))} | dice)
            if real:
                value = 0.85 * rows[-1]["dice_brain"]
                rows[-1] |= {
                    "real/sub-03_T1w/dice_brain": value,
                    "real/sub-04_T1w/dice_brain": 0.6,
                    "real/sub-03_T1w/dice/Left-Thalamus": value,
                }
    return rows


def write_log(training: Path, first: int, rows: list[dict]) -> Path:
    """``log-from-FIRST/metrics.csv`` with a column for every name in ``rows``."""
    folder = training / f"log-from-{first}"
    folder.mkdir(parents=True)
    columns = sorted({name for row in rows for name in row})
    with (folder / "metrics.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return folder / "metrics.csv"


def write_job(folder: Path, *, rows: list[dict] | None = None, **files: dict | None) -> Path:
    """A job of one stretch; ``plan``, ``job`` and ``memory`` replace what is usual, None: none."""
    training = folder / "training"
    training.mkdir(parents=True)
    content = {"plan": PLAN, "job": JOB, "memory": MEMORY} | files
    for name, value in content.items():
        if value is not None:
            (training / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    write_log(training, 0, log_rows(0, 2000) if rows is None else rows)
    return folder


def write_samples(training: Path, head: LabelMap, image: np.ndarray, steps: list[int]) -> None:
    """Middle planes of the phantom; what is found gets better with the steps."""
    ranks = np.zeros(int(TABLE.codes[-1]) + 1, dtype=np.uint8)
    for rank, label in enumerate(TABLE):
        ranks[label.index] = rank
    labels = Crosswalk.packaged("fullhead", "brainseg").translate(head)
    truth, picture = planes(ranks[labels.voxels]), planes(image)
    rng = np.random.default_rng(5)
    folder = training / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    for step in steps:
        wrong = rng.random(truth.shape) < 0.5 * math.exp(-step / 500)
        found = np.where(wrong, rng.permuted(truth, axis=2), truth)
        np.savez_compressed(
            folder / f"step-{step:06d}.npz",
            image=picture.astype(np.float16),
            truth=truth.astype(np.uint8),
            found=found.astype(np.uint8),
        )


def planes(volume: np.ndarray) -> np.ndarray:
    """Axial, coronal and sagittal middle plane along two axes of RAS+ each, padded to one size."""
    x, y, z = (n // 2 for n in volume.shape)
    cuts = volume[:, :, z], volume[:, y], volume[x]
    height, width = (max(cut.shape[axis] for cut in cuts) for axis in (0, 1))
    return np.stack([np.pad(c, ((0, height - c.shape[0]), (0, width - c.shape[1]))) for c in cuts])
