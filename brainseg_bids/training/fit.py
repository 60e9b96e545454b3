# SPDX-License-Identifier: Apache-2.0
"""From a ``TrainPlan`` to weights: builds Lightning's Trainer and lets it run."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.nets.architectures import NetSpec, PackedNet
from brainseg_bids.synth.generator import Generator, Head
from brainseg_bids.synth.space import read_space
from brainseg_bids.training.pairs import PairStream
from brainseg_bids.training.task import SegmentationTask

log = logging.getLogger("brainseg")


@dataclass(frozen=True)
class TrainPlan:
    """Everything that decides the outcome of a training run, but the label maps.

    ``spaces`` maps recipe spaces (packaged name or TOML file) to how often they are drawn.
    """

    net: NetSpec
    spaces: dict[str, float]
    source_table: str = "fullhead"
    target_table: str = "brainseg"
    patch_vox: tuple[int, int, int] = (128, 144, 128)
    voxel_size_mm: float = 1.0
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    total_steps: int = 10_000
    decay_steps: int = 2_000
    per_label: int = 256
    anywhere: int = 16_384
    dice_weight: float = 0.0
    ema_decay: float = 0.998
    precision: str = "bf16-mixed"
    seed: int = 1
    validate_every: int = 250
    validation_pairs: int = 4
    validation_space: str = "t1w"

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> TrainPlan:
        raw = json.loads(text)
        raw["net"] = NetSpec(**raw["net"])
        raw["patch_vox"] = tuple(raw["patch_vox"])
        return cls(**raw)


def make_task(plan: TrainPlan) -> SegmentationTask:
    """Network and learning rule of a plan, not yet trained."""
    return SegmentationTask(
        plan.net,
        LabelTable.packaged(plan.target_table),
        learning_rate=plan.learning_rate,
        warmup_steps=plan.warmup_steps,
        total_steps=plan.total_steps,
        decay_steps=plan.decay_steps,
        per_label=plan.per_label,
        anywhere=plan.anywhere,
        dice_weight=plan.dice_weight,
    )


def make_generator(plan: TrainPlan) -> Generator:
    """Generator of a plan's pairs."""
    return Generator(
        Crosswalk.packaged(plan.source_table, plan.target_table),
        LabelTable.packaged(plan.source_table),
        shape=plan.patch_vox,
        voxel_size_mm=plan.voxel_size_mm,
    )


class _SaveAtEnd(Callback):
    """The last steps count, too, when they are no multiple of the checkpoint's interval."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: lightning.Trainer, *_) -> None:
        if trainer.global_step >= trainer.max_steps:
            trainer.save_checkpoint(self.path)


class _ProgressLines(Callback):
    """One line per validation, for log files."""

    def __init__(self) -> None:
        self.began_s = time.monotonic()

    def on_validation_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule
    ) -> None:
        seen = {k: float(v) for k, v in trainer.callback_metrics.items() if "/" not in k}
        shown = ", ".join(f"{k} {v:.3f}" for k, v in seen.items())
        log.info(
            "step %d, %.0f s: %s", trainer.global_step, time.monotonic() - self.began_s, shown
        )


def _trainer(plan: TrainPlan, out_dir: Path, *, done: int, until_step: int) -> lightning.Trainer:
    checkpoints = ModelCheckpoint(
        dirpath=out_dir,
        filename="last",
        every_n_train_steps=plan.validate_every,
        enable_version_counter=False,
        save_top_k=1,
    )
    return lightning.Trainer(
        max_steps=min(until_step, plan.total_steps),
        precision=plan.precision,
        accelerator="auto",
        devices=1,
        logger=CSVLogger(out_dir, name="", version=f"log-from-{done}"),
        log_every_n_steps=25,
        val_check_interval=plan.validate_every,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            EMAWeightAveraging(decay=plan.ema_decay),
            checkpoints,
            _SaveAtEnd(out_dir / "last.ckpt"),
            _ProgressLines(),
        ],
    )


def fit(
    plan: TrainPlan,
    train_heads: Sequence[Head],
    validation_heads: Sequence[Head],
    out_dir: str | Path,
    *,
    until_step: int | None = None,
    start_from: PackedNet | None = None,
) -> SegmentationTask:
    """Train, or go on training.

    Leaves ``last.ckpt`` (weights, average, optimiser, schedule), ``log-from-N/metrics.csv``
    and ``plan.json`` in ``out_dir``. An interrupted run goes on from ``last.ckpt`` with the same
    pairs a straight run would have seen.

    Parameters
    ----------
    until_step : int, optional
        Stop here, before the plan's end, to go on later.
    start_from : PackedNet, optional
        Network of the same spec whose weights to begin from, when there is nothing to resume.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / "plan.json").write_text(plan.to_json())
    lightning.seed_everything(plan.seed, verbose=False)
    generator = make_generator(plan)
    spaces = [(read_space(name), share) for name, share in plan.spaces.items()]
    last = out_dir / "last.ckpt"
    done = steps_done(last)
    stream = PairStream(train_heads, spaces, generator, seed=plan.seed, start_step=done)
    held_out = PairStream(
        validation_heads,
        [(read_space(plan.validation_space), 1.0)],
        generator,
        seed=plan.seed + 1_000_003,
        stop_step=plan.validation_pairs,
    )
    task = make_task(plan)
    if start_from is not None:
        task.net.load_weights(start_from.weights())
    trainer = _trainer(plan, out_dir, done=done, until_step=until_step or plan.total_steps)
    parameters = sum(p.numel() for p in task.net.parameters())
    log.info(
        "%s: %.1f million parameters, %d labels, patch %s at %g mm, %d heads, %d threads",
        plan.net.architecture,
        parameters / 1e6,
        plan.net.n_labels,
        plan.patch_vox,
        plan.voxel_size_mm,
        len(train_heads),
        torch.get_num_threads(),
    )
    trainer.fit(
        task,
        DataLoader(stream, batch_size=None),
        DataLoader(held_out, batch_size=None),
        ckpt_path=last if done else None,
    )
    return task


def steps_done(checkpoint: Path) -> int:
    """Steps behind a checkpoint; 0 if there is none."""
    if not checkpoint.exists():
        return 0
    return int(
        torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["global_step"]
    )


def averaged_net(plan: TrainPlan, checkpoint: str | Path) -> PackedNet:
    """Network with the averaged weights of a checkpoint that `fit` left."""
    task = make_task(plan)
    task.load_state_dict(
        torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    )
    return task.net
