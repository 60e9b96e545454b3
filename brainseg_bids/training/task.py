# SPDX-License-Identifier: Apache-2.0
"""The page to read: what is learned, from what, by which rule."""

from __future__ import annotations

import lightning
import numpy as np
import torch
from torch import Tensor

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.nets.architectures import NetSpec, build
from brainseg_bids.training.losses import (
    choose_voxels,
    chosen_cross_entropy,
    chosen_dice_loss,
)


class SegmentationTask(lightning.LightningModule):
    """Learn labels from synthetic pairs.

    Parameters
    ----------
    spec : NetSpec
    table : LabelTable
        What the ranks in the pairs mean.
    learning_rate : float
    warmup_steps, total_steps, decay_steps : int
        Rate rises over the first, stays, and falls to zero over the last ``decay_steps``.
    per_label, anywhere : int
        Voxels that a step learns from: of each label, and anywhere.
    dice_weight : float
        Of the Dice loss beside cross-entropy. Early on Dice of rare labels is all noise, so
        it is best joined when cross-entropy has found them.
    """

    def __init__(
        self,
        spec: NetSpec,
        table: LabelTable,
        *,
        learning_rate: float = 2e-3,
        warmup_steps: int = 100,
        total_steps: int = 10_000,
        decay_steps: int = 2_000,
        per_label: int = 256,
        anywhere: int = 16_384,
        dice_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.net = build(spec)
        self.table = table
        self.learning_rate = learning_rate
        self.warmup_steps, self.total_steps, self.decay_steps = (
            warmup_steps,
            total_steps,
            decay_steps,
        )
        self.per_label, self.anywhere = per_label, anywhere
        self.dice_weight = dice_weight
        self.overlap = torch.zeros(3, spec.n_labels)

    def training_step(self, pair: dict[str, Tensor]) -> Tensor:
        features = self.net.features(pair["image"])
        labels = pair["labels"]
        voxels, log_odds = choose_voxels(
            labels,
            n_labels=self.net.spec.n_labels,
            per_label=self.per_label,
            anywhere=self.anywhere,
            seed=int(pair["step"]),
        )
        with torch.autocast(self.device.type, enabled=False):
            scores = self.net.scores_at(features, voxels)
            truth = labels[voxels[:, 0], voxels[:, 1], voxels[:, 2]]
            loss = chosen_cross_entropy(scores, truth, log_odds)
            if self.dice_weight > 0:
                loss = loss + self.dice_weight * chosen_dice_loss(scores, truth, log_odds)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"loss is {loss.item()} at step {int(pair['step'])}; its recipe can be drawn "
                "again from the same seed and step"
            )
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate_at)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def rate_at(self, step: int) -> float:
        """Share of the learning rate at a step: up, flat, down (a trapezoid)."""
        up = min(1.0, (step + 1) / self.warmup_steps)
        down = min(1.0, max(0.0, (self.total_steps - step) / max(1, self.decay_steps)))
        return up * down

    def validation_step(self, pair: dict[str, Tensor]) -> None:
        found = self.net(pair["image"]).max(1).indices[0].flatten().cpu()
        truth = pair["labels"].flatten().cpu()
        n = self.net.spec.n_labels
        self.overlap[0] += torch.bincount(found[found == truth], minlength=n)
        self.overlap[1] += torch.bincount(found, minlength=n)
        self.overlap[2] += torch.bincount(truth.int(), minlength=n)

    def on_validation_epoch_end(self) -> None:
        both, found, truth = self.overlap.double().numpy()
        with np.errstate(invalid="ignore"):
            dice = 2 * both / (found + truth)
        self.overlap.zero_()
        named = {label.name: dice[rank] for rank, label in enumerate(self.table) if label.index}
        brain = [value for name, value in named.items() if self.table[name].is_brain]
        self.log("dice_brain", float(np.nanmean(brain)), prog_bar=True)
        for name, value in named.items():
            self.log(f"dice/{name}", float(value))
