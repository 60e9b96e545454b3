# SPDX-License-Identifier: Apache-2.0
"""Logging of loss, speed and memory."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from brainseg_bids.nets.devices import MemoryMeter
from brainseg_bids.training.data import PairLoader
from brainseg_bids.training.deadline import Deadline, planned_steps
from brainseg_bids.training.plan import TrainPlan
from brainseg_bids.training.task import task_of
from brainseg_bids.units import duration

log = logging.getLogger("brainseg")

LINE_EVERY_S = 60.0
LOG_EVERY = 25


class LoggingCallback(Callback):
    """Logs loss, speed and memory, with a line per minute in the log of the program.

    Parameters
    ----------
    loader : callable
        Returns the current `PairLoader`.
    on_used : callable
        Called regularly with the peak memory in GiB.
    deadline : Deadline, optional
        Time limit of the run.
    """

    def __init__(
        self,
        loader: Callable[[], PairLoader],
        on_used: Callable[[float], None],
        *,
        deadline: Deadline | None = None,
    ) -> None:
        self.loader, self.on_used, self.deadline = loader, on_used, deadline

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Start to measure time and memory."""
        self.memory = MemoryMeter(module.device)
        self.step = self.first_step = trainer.global_step
        self.line_s = time.monotonic()
        self._begin_interval()

    def _begin_interval(self) -> None:
        self.interval_s = time.monotonic()
        self.paused_s = 0.0
        self.interval_step = self.step
        self.waited_s = self.loader().waited_s
        self.sum: Tensor | float = 0.0

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """Log loss, speed and memory of a completed step, at intervals."""
        if trainer.global_step == self.step:
            return
        self.step = trainer.global_step
        task = task_of(module)
        self.sum = self.sum + torch.stack([loss for _, loss in task.losses]).mean()
        task.losses.clear()
        if trainer.is_global_zero and time.monotonic() - self.line_s >= LINE_EVERY_S:
            self._say(task.plan)
        # Which steps are logged is agreed on beforehand: all processes have to do it together.
        if self.step % LOG_EVERY == 0 or self.step in (self.first_step + 1, trainer.max_steps):
            self._write(trainer, task.plan)

    def _say(self, plan: TrainPlan) -> None:
        """One line, of this process alone."""
        self.line_s = time.monotonic()
        steps = self.step - self.interval_step
        per_step_s = self._took_s() / steps
        left_s = per_step_s * (plan.total_steps - self.step)
        if self.deadline:
            left_s = min(left_s, max(0.0, self.deadline.left_s()))
        log.info(
            "%s: loss %.3f, %.2f s/step, %s left",
            numbered(self.step, plan),
            float(self.sum) / steps,
            per_step_s,
            duration(left_s),
        )

    def _took_s(self) -> float:
        return max(time.monotonic() - self.interval_s - self.paused_s, 1e-9)

    def _write(self, trainer: Trainer, plan: TrainPlan) -> None:
        steps = self.step - self.interval_step
        loss = float(trainer.strategy.reduce(self.sum / steps, reduce_op="mean"))
        took_s = self._took_s()
        pairs_per_s = steps * plan.batch * plan.accumulate * trainer.world_size / took_s
        used_gib = self.memory.peak_gib()
        write_metrics(
            trainer,
            self.step,
            {
                "loss": loss,
                "lr": trainer.optimizers[0].param_groups[0]["lr"],
                "pairs_per_s": pairs_per_s,
                "voxels_per_s": pairs_per_s * math.prod(plan.patch_vox),
                "waiting_frac": (self.loader().waited_s - self.waited_s) / took_s,
                "memory_gib": used_gib,
            },
        )
        if trainer.is_global_zero:
            self.on_used(used_gib)
        self._begin_interval()

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Pause the measurement of speed during validation."""
        self.pause_began_s = time.monotonic()

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Resume the measurement of speed after validation."""
        self.paused_s += time.monotonic() - self.pause_began_s


def numbered(step: int, plan: TrainPlan) -> str:
    """Number of a step as text, with the total number of steps if it is known."""
    total = planned_steps(plan.total_steps)
    return f"step {step} of {total}" if total else f"step {step}"


def write_metrics(trainer: Trainer, step: int, metrics: dict[str, float]) -> None:
    """Write metrics to all loggers; ``step`` is the number of completed steps."""
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step)
