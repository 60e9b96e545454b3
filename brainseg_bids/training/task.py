# SPDX-License-Identifier: Apache-2.0
"""``SegmentationTask``: training and validation steps, optimiser and learning rate."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning
import torch
from torch import Tensor

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.nets.architectures import build
from brainseg_bids.nets.checkpointing import checkpointed
from brainseg_bids.nets.thin_volumes import use_float32_when_thin
from brainseg_bids.training.losses import loss_of
from brainseg_bids.training.optimisers import OPTIMISERS
from brainseg_bids.training.plan import TrainPlan

SLAB_BLOCKS = 4


class SegmentationTask(lightning.LightningModule):
    """Lightning module that trains a network on synthetic pairs.

    The loss of a step is the mean over its pairs. It does not depend on their distribution among
    batches and processes.

    Parameters
    ----------
    plan : TrainPlan
        The learning rate rises over the first ``warmup_steps``, is then constant, and falls to
        zero over the last ``decay_steps``. The Dice loss has the weight ``dice_weight``. Since the
        Dice of rare labels is very noisy at first, it is most useful in a second phase of
        training.
    table : LabelTable
        Table of the class indices.

    Attributes
    ----------
    losses : list of (list of int, Tensor)
        Sample indices and loss of each batch of the current step.
    rate_by_time : float
        Factor of the learning rate in a run with a deadline, see `callbacks.DecayByTime`.
    """

    def __init__(self, plan: TrainPlan, table: LabelTable) -> None:
        super().__init__()
        self.net = build(plan.net)
        self.plan, self.table = plan, table
        use_float32_when_thin(self.net)
        self.loss = loss_of(plan)
        self.losses: list[tuple[list[int], Tensor]] = []
        self.rate_by_time = 1.0
        if plan.checkpointing:
            checkpointed(self.net.body)

    def training_step(self, batch: dict[str, Any]) -> Tensor:
        """Mean loss of the pairs of a batch."""
        # Dropout and the like are the same for a batch whenever and wherever it is learned from.
        torch.manual_seed(batch["seeds"][0])
        with self._offloaded():
            features = self.net.features(batch["image"])
        with torch.autocast(self.device.type, enabled=False):
            loss = self.loss(self.net, features, batch["labels"], batch["seeds"])
        self.losses.append((batch["indices"], loss.detach()))
        return loss

    def _offloaded(self) -> AbstractContextManager[Any]:
        """Where activations wait for the way back: in the CPU's memory, or where they are."""
        if not self.plan.offload:
            return nullcontext()
        return torch.autograd.graph.save_on_cpu(pin_memory=self.device.type == "cuda")

    def configure_optimizers(self) -> Any:
        """Optimiser of the plan, and the schedule of its learning rate."""
        optimizer = OPTIMISERS[self.plan.optimizer](self.net, self.plan.learning_rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate_at)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def rate_at(self, step: int) -> float:
        """Factor of the learning rate at a step, between 0 and 1.

        A trapezoidal schedule, multiplied by `rate_by_time`.
        """
        plan = self.plan
        up = min(1.0, (step + 1) / max(1, plan.warmup_steps))
        down = min(1.0, max(0.0, (plan.total_steps - step) / max(1, plan.decay_steps)))
        return up * down * self.rate_by_time

    def validation_step(self, batch: dict[str, Any]) -> Tensor:
        """Predicted class indices, (X, Y, Z) uint8; `ValidationCallback` compares them."""
        return self._class_indices(self.net.features(batch["image"]))

    def _class_indices(self, features: Tensor) -> Tensor:
        # Slab by slab: scores of all labels of a large patch at once would be gigabytes.
        # In float32, as where a model is used: in bfloat16 many scores are equal.
        with torch.autocast(features.device.type, enabled=False):
            slabs = (self.net.scores(slab.float()) for slab in features.split(SLAB_BLOCKS, dim=2))
            return torch.cat([scores.max(1).indices[0].to(torch.uint8) for scores in slabs])


def task_of(module: lightning.LightningModule) -> SegmentationTask:
    """``module`` as a `SegmentationTask`, for type checks in callbacks.

    Raises
    ------
    TypeError
        If it is not one.
    """
    if not isinstance(module, SegmentationTask):
        raise TypeError(f"{type(module).__name__} is not a SegmentationTask")
    return module
