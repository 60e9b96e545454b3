# SPDX-License-Identifier: Apache-2.0
"""What happens beside a step: average, checkpoints, signals, log, validation, a guard."""

from __future__ import annotations

import json
import logging
import math
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.training.deadline import ENDING_S, Deadline, planned_steps
from brainseg_bids.training.experiment import Overlap
from brainseg_bids.training.pairs import Feed, PairStream
from brainseg_bids.training.resume import SETTINGS_KEY, loops_at, write_whole

if TYPE_CHECKING:
    from brainseg_bids.training.fit import TrainPlan

log = logging.getLogger("brainseg")

STOPPED = 75
"""Exit code of a run that was told to stop and has saved: sysexits.h's EX_TEMPFAIL, try again."""
OTHER_PROCESS = "a signal to another process"
GIB = 2**30
LINE_EVERY_S = 60.0
LOG_EVERY = 25
LARGEST_NORM = 1.0


# Endings ----------------------------------------------------------------------------------------


class Stopped(SystemExit):
    """A signal ended the run after the step in work was finished and saved.

    It leaves a program with code `STOPPED` unless it is caught.
    """

    def __init__(self, step: int, signal_name: str) -> None:
        super().__init__(STOPPED)
        self.step, self.signal_name = step, signal_name


class NotFinite(FloatingPointError):
    """A loss or a gradient that is no number; the message names the file to replay it from."""


class CannotSave(OSError):
    """A checkpoint could not be written; the one before it is as it was."""


# Checkpoints ------------------------------------------------------------------------------------


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside the old one and renames it when it is whole and on disk."""

    def save_checkpoint(self, checkpoint: dict, path: str | Path, storage_options=None) -> None:
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


class Average(Callback):
    """Moving average of the weights (Polyak and Juditsky, 1992), which validation looks at.

    Works on whatever part of the weights a process holds. In checkpoints the average is
    ``state_dict`` and the weights themselves are ``current_model_state``, as Lightning's own
    callback has it. When training ends the module has the average.

    Parameters
    ----------
    decay : float
    """

    def __init__(self, decay: float) -> None:
        self.update = get_ema_multi_avg_fn(decay)
        self.updates = 0
        self.step = 0
        self.average: list[Tensor] | None = None
        self.loaded: dict | None = None

    @staticmethod
    def _own(module: LightningModule) -> list[Tensor]:
        everything = [*module.parameters(), *module.buffers()]
        return [one.detach() for one in everything if one.is_floating_point()]

    def on_load_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict
    ) -> None:
        self.updates = int(checkpoint["averaging_state"]["n_averaged"])
        self.loaded = checkpoint["current_model_state"]

    @torch.no_grad()
    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        # Here weights are where they stay, in the pieces they stay in. After a checkpoint was
        # read they are the average.
        self.average = [one.clone() for one in self._own(module)]
        self.step = trainer.global_step
        if self.loaded is not None:
            if is_sharded(trainer):
                from lightning.fabric.strategies.fsdp import _load_raw_module_state

                _load_raw_module_state(
                    self.loaded, trainer.strategy.model, trainer.world_size, strict=True
                )
            else:
                module.load_state_dict(self.loaded)
            self.loaded = None

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_) -> None:
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
        if self.average is not None:
            self.swap(module)

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self.average is not None:
            self.swap(module)

    def on_save_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict
    ) -> None:
        checkpoint["current_model_state"] = checkpoint["state_dict"]
        checkpoint["averaging_state"] = {"n_averaged": torch.tensor(self.updates)}
        if is_sharded(trainer):
            self.swap(module)
            checkpoint["state_dict"] = trainer.strategy.lightning_module_state_dict()
            self.swap(module)
            return
        means = dict(zip(map(_place, self._own(module)), self.average, strict=True))
        checkpoint["state_dict"] = {
            name: means.get(_place(one), one) for name, one in checkpoint["state_dict"].items()
        }

    @torch.no_grad()
    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        for mean, one in zip(self.average, self._own(module), strict=True):
            one.copy_(mean)


def _place(tensor: Tensor) -> tuple:
    """The same for two names of one weight, which some libraries have."""
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def is_sharded(trainer: Trainer) -> bool:
    """Whether each process holds a part of the weights only."""
    from lightning.pytorch.strategies import FSDPStrategy

    return isinstance(trainer.strategy, FSDPStrategy)


class Keeper(Callback):
    """Saves at intervals of steps and of time, and when told to stop; then ends the run.

    All processes decide together. Signals that ask for an end: `SIGNALS`; heard while the block
    of `listening` lasts.

    Parameters
    ----------
    path : Path
    settings : dict
        Of `resume.settings_of`, kept in the checkpoint.
    done : int
        Steps that were done before.
    every_steps : int
    every_s : float
    deadline : Deadline, optional
        When to end as if the last step were done.

    Attributes
    ----------
    is_over : bool
        Whether the run ends for its time.
    """

    SIGNALS = ("SIGTERM", "SIGUSR1", "SIGINT")

    def __init__(
        self,
        path: Path,
        settings: dict,
        *,
        done: int,
        every_steps: int,
        every_s: float,
        deadline: Deadline | None = None,
    ) -> None:
        self.path, self.settings, self.deadline = path, settings, deadline
        self.is_over = False
        self.validation_s: float | None = None
        self.every_steps, self.every_s = every_steps, every_s
        self.begun = False
        self.told = ""
        self.step = done
        self.saved_s = time.monotonic()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear signals; afterwards they are handled as before, however the block ends.

        Lightning puts back what it finds when it begins, but not if that was changed meanwhile.
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

    def _on_signal(self, number: int, _) -> None:
        self.told = signal.Signals(number).name
        if not self.begun:  # no step is in work, so there is nothing to finish and to save
            raise Stopped(self.step, self.told)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        is_late = self.deadline is not None and self.deadline.left_s() <= 0
        if any_process(trainer, is_late)[0]:
            raise self.deadline.too_short()
        self.step = trainer.global_step
        self.saved_s = self.step_began_s = time.monotonic()
        self.begun = True
        self._listen()  # instead of Lightning's handler, which would end the run without saving

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._listen()  # the one after the last step comes with a handler of its own
        self.validation_began_s = time.monotonic()

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.step_began_s = time.monotonic()
        self.validation_s = self.step_began_s - self.validation_began_s

    def _no_time_left(self, trainer: Trainer, plan: TrainPlan) -> bool:
        """Whether another step and all that comes after it would outlast the deadline."""
        if self.deadline is None:
            return False
        step_s = time.monotonic() - self.step_began_s
        validation_s = self.validation_s
        if validation_s is None:  # a pair to look at takes no longer than one to learn from
            pairs_s = step_s / (plan.batch * plan.accumulate)
            validation_s = math.ceil(plan.validation_pairs / trainer.world_size) * pairs_s
        return self.deadline.left_s() < step_s + validation_s + ENDING_S

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_) -> None:
        if trainer.global_step == self.step:
            return
        self.step = trainer.global_step
        late = time.monotonic() - self.saved_s >= self.every_s
        is_over = self._no_time_left(trainer, module.plan)
        stop, late, self.is_over = any_process(trainer, bool(self.told), late, is_over)
        last = self.step >= trainer.max_steps
        self.is_over = self.is_over and not last
        if self.is_over:
            trainer.should_stop = True  # validated once more, then the end
        if stop or late or last or self.is_over or self.step % self.every_steps == 0:
            trainer.save_checkpoint(self.path)
            self.saved_s = time.monotonic()
        self.step_began_s = time.monotonic()
        if stop and not last:
            raise Stopped(self.step, self.told or OTHER_PROCESS)

    def on_validation_batch_end(self, trainer: Trainer, module: LightningModule, *_) -> None:
        # What is validated has been saved. To finish first could outlast a queue's patience, and
        # a job that is killed does not go back. After the last step nothing is left to go on with.
        if self.step < trainer.max_steps and any_process(trainer, bool(self.told))[0]:
            raise Stopped(self.step, self.told or OTHER_PROCESS)

    def on_save_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict
    ) -> None:
        checkpoint[SETTINGS_KEY] = json.dumps(self.settings)

    def on_load_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict
    ) -> None:
        checkpoint["loops"] = loops_at(
            checkpoint["loops"], checkpoint["global_step"], trainer.accumulate_grad_batches
        )


def any_process(trainer: Trainer, *flags: bool) -> tuple[bool, ...]:
    """Each flag: whether it is up in any process."""
    if trainer.world_size == 1:
        return flags
    votes = torch.tensor(flags, dtype=torch.float32, device=trainer.strategy.root_device)
    return tuple(bool(n) for n in trainer.strategy.reduce(votes, reduce_op="sum"))


# Guard ------------------------------------------------------------------------------------------


class Guard(Callback):
    """Clips gradients, and stops before a step that would spoil the weights.

    Leaves ``bad-step-NNNNNN.json`` with all that is needed to make the pairs again.

    Parameters
    ----------
    out_dir : Path
    stream : PairStream
    plan_json : str
    head_names : sequence of str
        Files of the heads, if they have any.
    """

    def __init__(
        self, out_dir: Path, stream: PairStream, plan_json: str, head_names: Sequence[str]
    ) -> None:
        self.out_dir, self.stream = out_dir, stream
        self.plan_json, self.head_names = plan_json, head_names

    def on_before_optimizer_step(
        self, trainer: Trainer, module: LightningModule, optimizer
    ) -> None:
        if is_sharded(trainer):
            norm = trainer.strategy.model.clip_grad_norm_(LARGEST_NORM)
        else:
            norm = torch.nn.utils.clip_grad_norm_(module.parameters(), LARGEST_NORM)
        if not torch.isfinite(norm):
            self._refuse(trainer, module, float(norm))

    def _refuse(self, trainer: Trainer, module: LightningModule, norm: float) -> None:
        step = trainer.global_step
        losses = losses_by_place(trainer, module).tolist()
        bad = [place for place, loss in enumerate(losses) if not math.isfinite(loss)]
        path = self.out_dir / f"bad-step-{step:06d}.json"
        what = f"loss is {losses[bad[0]]}" if bad else f"gradient is {norm} and the loss a number"
        if trainer.is_global_zero:
            told = {
                "step": step,
                "seed": self.stream.seed,
                "what": what,
                "gradient_norm": repr(norm),
                "pairs": [
                    self._pair(step, place, losses[place]) for place in bad or range(len(losses))
                ],
                "plan": json.loads(self.plan_json),
            }
            write_whole(path, json.dumps(told, indent=1) + "\n")
        raise NotFinite(
            f"{what} at step {step}; its pairs are in {path}: look at them with python -m "
            f"brainseg_bids.cli.train --replay {path}. The last checkpoint is good; a lower "
            "learning rate or precision 32-true may help."
        )

    def _pair(self, step: int, place: int, loss: float) -> dict:
        which, recipe = self.stream.draw(step, place)
        name = self.head_names[which] if which < len(self.head_names) else None
        return {
            "place": place,
            "loss": repr(loss),
            "head": which,
            "head_file": name,
            "recipe": json.loads(recipe.to_json()),
        }


def losses_by_place(trainer: Trainer, module: LightningModule) -> Tensor:
    """Losses of the step in work, of all processes; pairs of one batch have its mean."""
    plan = module.plan
    losses = torch.zeros(plan.batch * plan.accumulate * trainer.world_size, device=module.device)
    for places, loss in module.losses:
        losses[places] = loss.float()
    return trainer.strategy.reduce(losses, reduce_op="sum")


# Log --------------------------------------------------------------------------------------------


class Journal(Callback):
    """Loss, speed and memory to the loggers; a line a minute for the reader.

    Parameters
    ----------
    feed : callable
        Gives the `Feed` in use.
    on_used : callable
        Told GiB in use at most, now and then.
    deadline : Deadline, optional
        When the run ends.
    """

    def __init__(
        self,
        feed: Callable[[], Feed],
        on_used: Callable[[float], None],
        *,
        deadline: Deadline | None = None,
    ) -> None:
        self.feed, self.on_used, self.deadline = feed, on_used, deadline

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.memory = MemoryMeter(module.device)
        self.step = self.first_step = trainer.global_step
        self.line_s = time.monotonic()
        self._begin_stretch()

    def _begin_stretch(self) -> None:
        self.stretch_s = time.monotonic()
        self.paused_s = 0.0
        self.stretch_step = self.step
        self.waited_s = self.feed().waited_s
        self.sum: Tensor | float = 0.0

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_) -> None:
        if trainer.global_step == self.step:
            return
        self.step = trainer.global_step
        self.sum = self.sum + torch.stack([loss for _, loss in module.losses]).mean()
        module.losses.clear()
        if trainer.is_global_zero and time.monotonic() - self.line_s >= LINE_EVERY_S:
            self._say(module.plan)
        # Which steps are logged is agreed on beforehand: all processes have to do it together.
        if self.step % LOG_EVERY == 0 or self.step in (self.first_step + 1, trainer.max_steps):
            self._write(trainer, module)

    def _say(self, plan: TrainPlan) -> None:
        """One line, of this process alone."""
        self.line_s = time.monotonic()
        steps = self.step - self.stretch_step
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
        return max(time.monotonic() - self.stretch_s - self.paused_s, 1e-9)

    def _write(self, trainer: Trainer, module: LightningModule) -> None:
        plan = module.plan
        steps = self.step - self.stretch_step
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
                "waiting_frac": (self.feed().waited_s - self.waited_s) / took_s,
                "memory_gib": used_gib,
            },
        )
        if trainer.is_global_zero:
            self.on_used(used_gib)
        self._begin_stretch()

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.pause_began_s = time.monotonic()

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.paused_s += time.monotonic() - self.pause_began_s


def numbered(step: int, plan: TrainPlan) -> str:
    """A step's number, and of how many if that is known."""
    total = planned_steps(plan.total_steps)
    return f"step {step} of {total}" if total else f"step {step}"


def duration(seconds: float) -> str:
    """Time for a reader.

    >>> duration(40), duration(3000), duration(100_000)
    ('40 s', '50 min', '27.8 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def write_metrics(trainer: Trainer, step: int, metrics: dict[str, float]) -> None:
    """To all loggers; ``step`` counts steps done."""
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step)


class MemoryMeter:
    """Most memory that training has taken: the accelerator's, or the process's since now.

    Parameters
    ----------
    device : torch.device
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        with suppress(OSError):  # Linux: forget what reading label maps took
            Path("/proc/self/clear_refs").write_text("5")
        self.before_gib = resident_gib("VmRSS")

    def peak_gib(self) -> float:
        """So far, GiB."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / GIB
        return max(0.0, resident_gib("VmHWM") - self.before_gib)


def resident_gib(what: str) -> float:
    """Memory of this process, GiB: now ("VmRSS"), or at most since it began ("VmHWM").

    Where there is no ``/proc`` it is 0 now, and at most what ``getrusage`` says: on Linux that
    number begins at the parent's, which may be large.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 2**20
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB
        return peak if what == "VmHWM" else 0.0


# Validation -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RealImage:
    """A real image with reference labels, to look at while training; nothing is learned from it.

    Parameters
    ----------
    name : str
    image : (X, Y, Z) float32
    grid : Grid
    labels : LabelMap
        On ``grid``, in the table that the network learns; may lack structures.
    """

    name: str
    image: np.ndarray
    grid: Grid
    labels: LabelMap

    def __post_init__(self) -> None:
        if self.image.shape != self.labels.voxels.shape:
            raise ValueError(f"{self.name}: its labels have another shape than the image")


class Examination(Callback):
    """Counts what the averaged network finds in held-out pairs and in real images.

    It has to come before `Average` in the list, while the weights are the average.

    Parameters
    ----------
    samples_dir : Path
        Gets a sample of each validation.
    real : sequence of RealImage
    """

    def __init__(self, samples_dir: Path, real: Sequence[RealImage]) -> None:
        self.samples_dir, self.real = samples_dir, real
        self.began_s = time.monotonic()

    def on_validation_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.overlap = Overlap(module.table)

    def on_validation_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Tensor, batch: dict, *_
    ) -> None:
        found, truth = outputs.cpu(), batch["labels"][0].cpu()
        if batch["counted"]:
            self.overlap.add(found.numpy(), truth.numpy())
        if batch["number"] == 0 and trainer.is_global_zero:
            image = batch["image"][0, 0].cpu()
            path = self.samples_dir / f"step-{trainer.global_step:06d}.npz"
            write_sample(path, image.numpy(), truth.numpy(), found.numpy())

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        shared_counts(trainer, [self.overlap])
        metrics = scores(self.overlap, "")
        for one, overlap in zip(self.real, self._look_at_real(trainer, module), strict=True):
            metrics |= scores(overlap, f"real/{one.name}/")
        write_metrics(trainer, trainer.global_step, metrics)
        shown = ", ".join(f"{k} {v:.3f}" for k, v in metrics.items() if k.endswith("dice_brain"))
        log.info(
            "%s, %s: %s",
            numbered(trainer.global_step, module.plan),
            duration(time.monotonic() - self.began_s),
            shown or "no structure of the brain was there to look at",
        )

    def _look_at_real(self, trainer: Trainer, module: LightningModule) -> list[Overlap]:
        from brainseg_bids.inference.predict import segment  # late: few runs have real images

        counted = [Overlap(module.table) for _ in self.real]
        ranks = module.table.positions()
        for number, (one, overlap) in enumerate(zip(self.real, counted, strict=True)):
            mine = number % trainer.world_size == trainer.global_rank
            # Where weights are shared out, all processes have to look.
            if not mine and not is_sharded(trainer):
                continue
            found = segment(
                one.image,
                one.grid,
                module.net,
                module.table,
                voxel_size_mm=module.plan.voxel_size_mm,
                window_vox=module.plan.patch_vox,
                device=str(module.device),
            )
            if mine:
                overlap.add(ranks[found.voxels], ranks[one.labels.voxels])
        shared_counts(trainer, counted)
        return counted


def shared_counts(trainer: Trainer, overlaps: Sequence[Overlap]) -> None:
    """Add up the counts of all processes, in place."""
    if trainer.world_size == 1 or not overlaps:
        return
    counts = torch.from_numpy(np.stack([one.counts for one in overlaps]))
    total = trainer.strategy.reduce(counts.to(trainer.strategy.root_device), reduce_op="sum")
    for one, sums in zip(overlaps, total.cpu().numpy(), strict=True):
        one.counts[:] = sums


def scores(overlap: Overlap, prefix: str) -> dict[str, float]:
    """Dice of the brain's structures and of each structure that the reference has."""
    dice = overlap.dice()
    brain = [value for name, value in dice.items() if overlap.table[name].is_brain]
    metrics = {f"{prefix}dice_brain": float(np.mean(brain))} if brain else {}
    return metrics | {f"{prefix}dice/{name}": value for name, value in dice.items()}


def write_sample(path: Path, image: np.ndarray, truth: np.ndarray, found: np.ndarray) -> None:
    """Middle planes (axial, coronal, sagittal) of a pair: image, truth, found, each (3, H, W)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    planes = {
        "image": middle_planes(image.astype(np.float16)),
        "truth": middle_planes(truth),
        "found": middle_planes(found),
    }
    beside = path.with_name(f".{path.name}.part")
    with beside.open("wb") as file:
        np.savez_compressed(file, **planes)
    os.replace(beside, path)


def middle_planes(volume: np.ndarray) -> np.ndarray:
    """(X, Y, Z), RAS, to (3, H, W): planes z, y and x, padded with zeros behind.

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
