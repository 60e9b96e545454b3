# SPDX-License-Identifier: Apache-2.0
"""Validation of the averaged network on held-out pairs and real images during training."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.files import whole_or_nothing
from brainseg_bids.inference.predict import segment
from brainseg_bids.training.overlap import Overlap
from brainseg_bids.training.processes import is_sharded
from brainseg_bids.training.progress import numbered, write_metrics
from brainseg_bids.training.task import SegmentationTask, task_of
from brainseg_bids.units import duration

log = logging.getLogger("brainseg")


@dataclass(frozen=True)
class RealImage:
    """A real image with reference labels for validation; it is not used for training.

    Parameters
    ----------
    name : str
    image : (X, Y, Z) float32
    grid : Grid
    labels : LabelMap
        On ``grid``, with the label table of the network; may lack structures.

    Raises
    ------
    ValueError
        If image and labels differ in shape.
    """

    name: str
    image: np.ndarray
    grid: Grid
    labels: LabelMap

    def __post_init__(self) -> None:
        if self.image.shape != self.labels.voxels.shape:
            raise ValueError(f"{self.name}: its labels have another shape than the image")


class ValidationCallback(Callback):
    """Measures the Dice of the averaged network on held-out pairs and real images.

    It must precede `EMACallback` in the list of callbacks, so that the weights are the average.

    Parameters
    ----------
    samples_dir : Path
        Folder for a sample of each validation.
    real : sequence of RealImage
    """

    def __init__(self, samples_dir: Path, real: Sequence[RealImage]) -> None:
        self.samples_dir, self.real = samples_dir, real
        self.began_s = time.monotonic()

    def on_validation_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Reset the voxel counts."""
        self.overlap = Overlap(task_of(module).table)

    def on_validation_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: STEP_OUTPUT, batch: Any, *_: Any
    ) -> None:
        """Add the voxel counts of a pair."""
        if not isinstance(outputs, Tensor):
            raise TypeError(f"a validation step gave {type(outputs).__name__}, no labels")
        predicted, truth = outputs.cpu(), batch["labels"][0].cpu()
        if batch["counted"]:
            self.overlap.add(predicted.numpy(), truth.numpy())
        if batch["number"] == 0 and trainer.is_global_zero:
            image = batch["image"][0, 0].cpu()
            path = self.samples_dir / f"step-{trainer.global_step:06d}.npz"
            write_sample(path, image.numpy(), truth.numpy(), predicted.numpy())

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Log mean Dice over all processes."""
        shared_counts(trainer, [self.overlap])
        metrics = scores(self.overlap, "")
        for one, overlap in zip(
            self.real, self._segment_real(trainer, task_of(module)), strict=True
        ):
            metrics |= scores(overlap, f"real/{one.name}/")
        write_metrics(trainer, trainer.global_step, metrics)
        shown = ", ".join(f"{k} {v:.3f}" for k, v in metrics.items() if k.endswith("dice_brain"))
        log.info(
            "%s, %s: %s",
            numbered(trainer.global_step, task_of(module).plan),
            duration(time.monotonic() - self.began_s),
            shown or "no structure of the brain was there to look at",
        )

    def _segment_real(self, trainer: Trainer, task: SegmentationTask) -> list[Overlap]:
        counted = [Overlap(task.table) for _ in self.real]
        index_of = task.table.positions()
        for number, (one, overlap) in enumerate(zip(self.real, counted, strict=True)):
            mine = number % trainer.world_size == trainer.global_rank
            # Where weights are shared out, all processes take part.
            if not mine and not is_sharded(trainer):
                continue
            labels = segment(
                one.image,
                one.grid,
                task.net,
                task.table,
                voxel_size_mm=task.plan.voxel_size_mm,
                window_vox=task.plan.patch_vox,
                device=str(task.device),
            )
            if mine:
                overlap.add(index_of[labels.voxels], index_of[one.labels.voxels])
        shared_counts(trainer, counted)
        return counted


def shared_counts(trainer: Trainer, overlaps: Sequence[Overlap]) -> None:
    """Sum the counts of all processes, in place."""
    if trainer.world_size == 1 or not overlaps:
        return
    counts = torch.from_numpy(np.stack([one.counts for one in overlaps]))
    total = trainer.strategy.reduce(counts.to(trainer.strategy.root_device), reduce_op="sum")
    for one, sums in zip(overlaps, total.cpu().numpy(), strict=True):
        one.counts[:] = sums


def scores(overlap: Overlap, prefix: str) -> dict[str, float]:
    """Mean Dice of brain structures, and Dice of each structure of the reference, as metrics.

    Parameters
    ----------
    overlap : Overlap
    prefix : str
        Beginning of the names of the metrics.
    """
    dice = overlap.dice()
    brain = [value for name, value in dice.items() if overlap.table[name].is_brain]
    metrics = {f"{prefix}dice_brain": float(np.mean(brain))} if brain else {}
    return metrics | {f"{prefix}dice/{name}": value for name, value in dice.items()}


def write_sample(path: Path, image: np.ndarray, truth: np.ndarray, predicted: np.ndarray) -> None:
    """Write the middle planes (axial, coronal, sagittal) of a pair as NPZ, each (3, H, W).

    The keys are ``image``, ``truth`` and, for the prediction, ``found``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_or_nothing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            image=middle_planes(image.astype(np.float16)),
            truth=middle_planes(truth),
            found=middle_planes(predicted),
        )


def middle_planes(volume: np.ndarray) -> np.ndarray:
    """Middle planes along z, y and x of a volume (X, Y, Z), padded with zeros to (3, H, W).

    >>> middle_planes(np.ones((2, 4, 6), np.uint8)).shape
    (3, 4, 6)
    """
    x, y, z = (edge // 2 for edge in volume.shape)
    planes = [volume[:, :, z], volume[:, y, :], volume[x, :, :]]
    shape = np.max([plane.shape for plane in planes], axis=0)
    padded = np.zeros((3, *shape), volume.dtype)
    for target, plane in zip(padded, planes, strict=True):
        target[: plane.shape[0], : plane.shape[1]] = plane
    return padded
