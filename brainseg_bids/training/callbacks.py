# SPDX-License-Identifier: Apache-2.0
"""Callbacks: moving average of the weights, checkpoints, signals, gradient check."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.strategies.model_parallel import _load_raw_module_state
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from brainseg_bids.exit_codes import SAVED
from brainseg_bids.files import write_text
from brainseg_bids.training.data import PairStream
from brainseg_bids.training.deadline import ENDING_S, Deadline
from brainseg_bids.training.plan import TrainPlan
from brainseg_bids.training.processes import any_process, check_equal, is_sharded
from brainseg_bids.training.resume import SETTINGS_KEY, loops_at
from brainseg_bids.training.task import task_of

OTHER_PROCESS = "a signal to another process"
LARGEST_NORM = 1.0


# -- endings ---------------------------------------------------------------------------------


class Stopped(SystemExit):
    """A signal ended the run; the current step was completed and saved.

    If it is not caught, the program exits with code `SAVED`.
    """

    def __init__(self, step: int, signal_name: str) -> None:
        super().__init__(SAVED)
        self.step, self.signal_name = step, signal_name


class NotFinite(FloatingPointError):
    """A loss or gradient is NaN or infinite; the message names a file to reproduce it."""


class CannotSave(OSError):
    """A checkpoint could not be written; the previous one is unchanged."""


# -- checkpoints -----------------------------------------------------------------------------


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically: a new one replaces the old one when it is complete."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint atomically.

        Raises
        ------
        CannotSave
            If it could not be written, for instance because the disk is full.
        """
        path = Path(path)
        beside = path.with_name(path.name + ".part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with beside.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        except (OSError, RuntimeError) as error:  # torch's writer turns the first into the second
            with suppress(OSError):
                beside.unlink(missing_ok=True)
            before = "the one before it is as it was" if path.exists() else "there is none yet"
            reason = _why(error)
            raise CannotSave(
                f"{path}: the checkpoint could not be written ({reason}); {before}. Make room, "
                "then run the same command again."
            ) from error


def _why(error: BaseException) -> str:
    """The system's word for what went wrong, under what PyTorch makes of it."""
    below: BaseException | None = error
    while below is not None:
        if isinstance(below, OSError) and below.strerror:
            return below.strerror
        below = below.__cause__ or below.__context__
    return "is the disk full?"


class EMACallback(Callback):
    """Exponential moving average of the weights (Polyak and Juditsky, 1992), used in validation.

    It also works if a process has a part of the weights only. In checkpoints, ``state_dict`` is
    the average and ``current_model_state`` the weights, as in Lightning's own callback. After
    training, the module has the average.

    Parameters
    ----------
    decay : float
        Weight of the previous average.
    """

    def __init__(self, decay: float) -> None:
        self.update = get_ema_multi_avg_fn(decay)
        self.updates = 0
        self.step = 0
        self.average: list[Tensor] = []
        self.loaded: dict[str, Any] | None = None

    @staticmethod
    def _own(module: LightningModule) -> list[Tensor]:
        everything = [*module.parameters(), *module.buffers()]
        return [one.detach() for one in everything if one.is_floating_point()]

    def on_load_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore the average from a checkpoint."""
        self.updates = int(checkpoint["averaging_state"]["n_averaged"])
        self.loaded = checkpoint["current_model_state"]

    @torch.no_grad()
    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Initialise the average with the weights, or with the average of a checkpoint."""
        # Here weights are where they stay, in the pieces they stay in. After a checkpoint was
        # read they are the average.
        self.average = [one.clone() for one in self._own(module)]
        self.step = trainer.global_step
        if self.loaded is not None:
            if is_sharded(trainer):
                _load_raw_module_state(self.loaded, _sharded_model(trainer), trainer.world_size)
            else:
                module.load_state_dict(self.loaded)
            self.loaded = None

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """Update the average with the weights of a completed step."""
        if trainer.global_step == self.step:
            return  # gradients are still being gathered
        self.step = trainer.global_step
        now = self._own(module)
        if self.updates == 0:
            for mean, one in zip(self.average, now, strict=True):
                mean.copy_(one)
        else:
            self.update(self.average, now, self.updates)
        self.updates += 1

    @torch.no_grad()
    def swap(self, module: LightningModule) -> None:
        """Exchange weights and average."""
        for mean, one in zip(self.average, self._own(module), strict=True):
            kept = one.clone()
            one.copy_(mean)
            mean.copy_(kept)

    def on_validation_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Use the average for validation."""
        if self.average:
            self.swap(module)

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Restore the weights after validation."""
        if self.average:
            self.swap(module)

    def on_save_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the average to a checkpoint."""
        checkpoint["current_model_state"] = checkpoint["state_dict"]
        checkpoint["averaging_state"] = {"n_averaged": torch.tensor(self.updates)}
        if is_sharded(trainer):
            self.swap(module)
            checkpoint["state_dict"] = trainer.strategy.lightning_module_state_dict()
            self.swap(module)
            return
        means = dict(zip(map(_storage_key, self._own(module)), self.average, strict=True))
        checkpoint["state_dict"] = {
            name: means.get(_storage_key(one), one)
            for name, one in checkpoint["state_dict"].items()
        }

    @torch.no_grad()
    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Replace the weights of the network by the average."""
        for mean, one in zip(self.average, self._own(module), strict=True):
            one.copy_(mean)


def _sharded_model(trainer: Trainer) -> FullyShardedDataParallel:
    """Wrapper of the weights that processes share out, see `is_sharded`."""
    model = trainer.strategy.model
    if not isinstance(model, FullyShardedDataParallel):
        raise TypeError(f"{type(model).__name__} does not share out its weights")
    return model


def _storage_key(tensor: Tensor) -> tuple[Any, ...]:
    """The same for two names of one weight, which some libraries have."""
    return tensor.data_ptr(), tensor.shape, tensor.stride()


class CheckpointCallback(Callback):
    """Saves checkpoints at intervals of steps and time, and at the end of a run.

    A signal (`SIGNALS`) or a deadline ends the run after a checkpoint. Signals are handled within
    the context `listening`. All processes of a run decide together.

    Parameters
    ----------
    path : Path
        File of the checkpoint.
    settings : dict
        Result of `resume.settings_of`, stored in the checkpoint.
    done : int
        Number of steps done before.
    every_steps : int
    every_s : float
    deadline : Deadline, optional
        Time at which the run ends as after its last step.

    Attributes
    ----------
    is_over : bool
        Whether the run ends because of the deadline.
    """

    SIGNALS = ("SIGTERM", "SIGUSR1", "SIGINT")

    def __init__(
        self,
        path: Path,
        settings: dict[str, Any],
        *,
        done: int,
        every_steps: int,
        every_s: float,
        deadline: Deadline | None = None,
    ) -> None:
        self.path, self.settings, self.deadline = path, settings, deadline
        self.is_over = False
        self.validation_s: float | None = None
        self.step_s = 0.0
        self.every_steps, self.every_s = every_steps, every_s
        self.begun = False
        self.signal_name = ""
        self.step = done
        self.saved_s = time.monotonic()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Context in which signals end the run after a checkpoint; previous handlers are restored.

        Lightning restores the handlers that it found, but not if they were changed in the
        meantime.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # signals are heard in the main thread only
            return
        numbers = [getattr(signal, name) for name in self.SIGNALS]
        before = {number: signal.getsignal(number) for number in numbers}
        try:
            self._listen()
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _listen(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for name in self.SIGNALS:
                signal.signal(getattr(signal, name), self._on_signal)

    def _on_signal(self, number: int, _: Any) -> None:
        self.signal_name = signal.Signals(number).name
        if not self.begun:  # no step is in work, so there is nothing to finish and to save
            raise Stopped(self.step, self.signal_name)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Install signal handlers; raise an error if it is too late or processes differ."""
        check_equal(trainer, self.settings)
        is_late = self.deadline is not None and self.deadline.is_too_late()
        if any_process(trainer, is_late)[0] and self.deadline is not None:
            raise self.deadline.too_short()
        self.step = trainer.global_step
        self.saved_s = self.step_began_s = time.monotonic()
        self.begun = True
        self._listen()  # instead of Lightning's handler, which would end the run without saving

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Handle signals during validation, and start to measure its duration."""
        self._listen()  # the one after the last step comes with a handler of its own
        self.validation_began_s = time.monotonic()

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Store the duration of validation."""
        self.step_began_s = time.monotonic()
        self.validation_s = self.step_began_s - self.validation_began_s

    def _no_time_left(self, trainer: Trainer, plan: TrainPlan) -> bool:
        """Whether another step and all that comes after it would outlast the deadline."""
        if self.deadline is None:
            return False
        self.step_s = time.monotonic() - self.step_began_s
        due_s = 0.0 if self.step % self.every_steps else self._validation_s(trainer, plan)
        return self.deadline.left_s() < due_s + self.step_s + self.ending_s(trainer, plan)

    def ending_s(self, trainer: Trainer, plan: TrainPlan) -> float:
        """Estimated time in seconds of validation, bundle and page after the last step."""
        return self._validation_s(trainer, plan) + ENDING_S

    def _validation_s(self, trainer: Trainer, plan: TrainPlan) -> float:
        if self.validation_s is not None:
            return self.validation_s
        # A pair to look at takes no longer than one to learn from.
        pairs_s = self.step_s / (plan.batch * plan.accumulate)
        return math.ceil(plan.validation_pairs / trainer.world_size) * pairs_s

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """Save a checkpoint if one is due, and end the run after a signal or at the deadline."""
        if trainer.global_step == self.step:
            return
        self.step = trainer.global_step
        late = time.monotonic() - self.saved_s >= self.every_s
        is_over = self._no_time_left(trainer, task_of(module).plan)
        stop, late, self.is_over = any_process(trainer, bool(self.signal_name), late, is_over)
        last = self.step >= trainer.max_steps
        self.is_over = self.is_over and not last
        if self.is_over:
            trainer.should_stop = True  # validated once more, then the end
        if stop or late or last or self.is_over or self.step % self.every_steps == 0:
            trainer.save_checkpoint(self.path)
            self.saved_s = time.monotonic()
        self.step_began_s = time.monotonic()
        if stop and not (last or self.is_over):
            raise Stopped(self.step, self.signal_name or OTHER_PROCESS)

    def on_validation_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """End a validation early after a signal."""
        # What is validated has been saved, and a queue may not wait for the end of a validation.
        # After the last step nothing is left to go on with.
        is_last = self.is_over or self.step >= trainer.max_steps
        if not is_last and any_process(trainer, bool(self.signal_name))[0]:
            raise Stopped(self.step, self.signal_name or OTHER_PROCESS)

    def on_save_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the settings of the run to a checkpoint."""
        checkpoint[SETTINGS_KEY] = json.dumps(self.settings)

    def on_load_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore the state of this callback from a checkpoint."""
        checkpoint["loops"] = loops_at(
            checkpoint["loops"], checkpoint["global_step"], trainer.accumulate_grad_batches
        )


class DecayByTime(Callback):
    """Decays the learning rate to zero by the end of a run that has a deadline.

    The rate depends on the remaining time, not on the number of steps. A run that is continued has
    the full rate again, until near its own end.

    Parameters
    ----------
    deadline : Deadline
        With its ``decay_share``.
    checkpoints : CheckpointCallback
        Estimates the time needed after the last step.
    """

    def __init__(self, deadline: Deadline, checkpoints: CheckpointCallback) -> None:
        self.deadline, self.checkpoints = deadline, checkpoints

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Note how long the decay takes, in seconds."""
        self.decay_s = self.deadline.decay_share * (self.deadline.left_s() - ENDING_S)

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """Set the share of the learning rate for the step that begins."""
        task = task_of(module)
        left_s = self.deadline.left_s() - self.checkpoints.ending_s(trainer, task.plan)
        share = min(1.0, max(0.0, left_s / self.decay_s))
        task.rate_by_time = trainer.strategy.broadcast(share)  # clocks differ
        # The schedule set the rate of this step when the one before ended, maybe in another run.
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = group["initial_lr"] * task.rate_at(trainer.global_step)


# -- gradients -------------------------------------------------------------------------------


class GradientCheck(Callback):
    """Clips gradients, and ends the run before a step with a gradient that is not finite.

    In this case it writes ``bad-step-NNNNNN.json``, from which the pairs of the step can be
    reproduced.

    Parameters
    ----------
    out_dir : Path
    stream : PairStream
    plan_json : str
    head_names : sequence of str
        Files of the label maps; may be empty.
    """

    def __init__(
        self, out_dir: Path, stream: PairStream, plan_json: str, head_names: Sequence[str]
    ) -> None:
        self.out_dir, self.stream = out_dir, stream
        self.plan_json, self.head_names = plan_json, head_names

    def on_before_optimizer_step(
        self, trainer: Trainer, module: LightningModule, optimizer: Any
    ) -> None:
        """Clip gradients.

        Raises
        ------
        NotFinite
            If a loss or a gradient is NaN or infinite.
        """
        if is_sharded(trainer):
            norm = _sharded_model(trainer).clip_grad_norm_(LARGEST_NORM)
        else:
            norm = torch.nn.utils.clip_grad_norm_(module.parameters(), LARGEST_NORM)
        if not torch.isfinite(norm):
            self._refuse(trainer, module, float(norm))

    def _refuse(self, trainer: Trainer, module: LightningModule, norm: float) -> None:
        step = trainer.global_step
        losses = losses_by_index(trainer, module).tolist()
        bad = [index for index, loss in enumerate(losses) if not math.isfinite(loss)]
        path = self.out_dir / f"bad-step-{step:06d}.json"
        what = f"loss is {losses[bad[0]]}" if bad else f"gradient is {norm} and the loss a number"
        if trainer.is_global_zero:
            document = {
                "step": step,
                "seed": self.stream.seed,
                "what": what,
                "gradient_norm": repr(norm),
                "pairs": [
                    self._pair(step, index, losses[index]) for index in bad or range(len(losses))
                ],
                "plan": json.loads(self.plan_json),
            }
            write_text(path, json.dumps(document, indent=1) + "\n")
        raise NotFinite(
            f"{what} at step {step}; its pairs are in {path}: look at them with python -m "
            f"brainseg_bids.programs.train --replay {path}. The last checkpoint is good; a lower "
            "learning rate or precision 32-true may help."
        )

    def _pair(self, step: int, index: int, loss: float) -> dict[str, Any]:
        which, recipe = self.stream.draw(step, index)
        name = self.head_names[which] if which < len(self.head_names) else None
        return {
            "place": index,
            "loss": repr(loss),
            "head": which,
            "head_file": name,
            "recipe": json.loads(recipe.to_json()),
        }


def losses_by_index(trainer: Trainer, module: LightningModule) -> Tensor:
    """Losses of the current step from all processes, by sample index.

    Pairs of the same batch have the mean loss of this batch.
    """
    task = task_of(module)
    n_pairs = task.plan.batch * task.plan.accumulate * trainer.world_size
    losses = torch.zeros(n_pairs, device=module.device)
    for indices, loss in task.losses:
        losses[indices] = loss.float()
    return trainer.strategy.reduce(losses, reduce_op="sum")
