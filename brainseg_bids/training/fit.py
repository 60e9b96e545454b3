# SPDX-License-Identifier: Apache-2.0
"""``fit``: training by a ``TrainPlan`` with Lightning's Trainer."""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.files import write_text
from brainseg_bids.nets.architectures import PackedNet, build
from brainseg_bids.nets.memory import smaller
from brainseg_bids.nets.memory_plan import PRECISIONS
from brainseg_bids.synth.generator import Generator, LabelVolume
from brainseg_bids.synth.recipe_files import read_space
from brainseg_bids.training.callbacks import (
    AtomicCheckpointIO,
    CheckpointCallback,
    DecayByTime,
    EMACallback,
    GradientCheck,
    Stopped,
)
from brainseg_bids.training.data import PairLoader, PairStream, Shard, ValidationLoader
from brainseg_bids.training.deadline import Deadline
from brainseg_bids.training.losses import loss_of
from brainseg_bids.training.memory import MemoryBook, out_of_memory
from brainseg_bids.training.plan import TrainPlan, with_memory
from brainseg_bids.training.processes import (
    accelerator_for,
    check_hardware,
    cluster_environment,
    end_children,
    is_first_process,
    quieten,
    strategy_of,
)
from brainseg_bids.training.progress import LoggingCallback
from brainseg_bids.training.resume import (
    LAST,
    check_unchanged,
    read_checkpoint,
    settings_of,
    steps_done,
)
from brainseg_bids.training.task import SegmentationTask
from brainseg_bids.training.validation import RealImage, ValidationCallback

log = logging.getLogger("brainseg")

CHECKPOINT_EVERY_S = 600.0
END_WITHIN_S = 60.0
"""How long a process may take to end after the last step of a run."""
VALIDATION_SEED = 1_000_003
"""Added to the seed of a plan for validation pairs."""


def make_task(plan: TrainPlan) -> SegmentationTask:
    """Untrained network, loss and optimiser of a plan, as a Lightning module."""
    return SegmentationTask(plan, LabelTable.packaged(plan.target_table))


def fresh_net(plan: TrainPlan) -> PackedNet:
    """Network of a plan, initialised with its seed."""
    lightning.seed_everything(plan.seed, verbose=False)
    return build(plan.net)


def make_generator(plan: TrainPlan) -> Generator:
    """Generator of the pairs of a plan."""
    return Generator(
        Crosswalk.packaged(plan.source_table, plan.target_table),
        LabelTable.packaged(plan.source_table),
        shape=plan.patch_vox,
        voxel_size_mm=plan.voxel_size_mm,
    )


def _smaller_plan(plan: TrainPlan, book: MemoryBook, error: Exception) -> TrainPlan:
    """A plan that needs clearly less memory, put in force by whichever process is first.

    Raises
    ------
    MemoryError
        If there are several processes, which have to start again.
    """
    log.warning("memory ran out: %s", str(error).splitlines()[0][:200])
    memory = book.plan()
    if with_memory(plan, memory) == plan:
        memory = smaller(memory, plan.net, loss=loss_of(plan).symbolic)
        book.add(memory)
    if plan.world > 1:
        raise MemoryError(
            "memory ran out; a smaller plan is in force now: run the same command again"
        ) from error
    return with_memory(plan, memory)


class PairData(lightning.LightningDataModule):
    """Data module of this process; pairs are generated on its device."""

    def __init__(self, stream: PairStream, held_out: PairStream, plan: TrainPlan, done: int):
        super().__init__()
        self.stream, self.held_out = stream, held_out
        self.plan, self.done = plan, done
        self.loader: PairLoader | None = None

    def _training(self) -> lightning.Trainer:
        if self.trainer is None:
            raise RuntimeError("a trainer asks for the loaders")
        return self.trainer

    def loader_in_use(self) -> PairLoader:
        """Last result of `train_dataloader`."""
        if self.loader is None:
            raise RuntimeError("no loader was made yet")
        return self.loader

    def train_dataloader(self) -> PairLoader:
        """Training pairs of this process, from the current step on."""
        plan, trainer = self.plan, self._training()
        shard = Shard(plan.batch, plan.accumulate, trainer.global_rank, trainer.world_size)
        device = trainer.strategy.root_device
        self.loader = PairLoader(
            self.stream, shard, device, first_step=self.done, stop_step=plan.total_steps
        )
        return self.loader

    def val_dataloader(self) -> ValidationLoader:
        """Validation pairs of this process; the same at each validation."""
        trainer = self._training()
        return ValidationLoader(
            self.held_out,
            self.plan.validation_pairs,
            trainer.strategy.root_device,
            rank=trainer.global_rank,
            world=trainer.world_size,
        )


@dataclass(frozen=True)
class TrainingRun:
    """Arguments of `fit` in addition to the plan.

    Parameters
    ----------
    train_heads, validation_heads : sequence of LabelVolume
    out_dir : Path
    until_step : int, optional
        Step at which to stop before the end of the plan, to be resumed later.
    start_from : PackedNet, optional
        Network of the same specification, whose weights are used unless a checkpoint is resumed.
    real : sequence of RealImage
        Real images for validation.
    memory : path, optional
        ``memory.json``, whose last plan is used. If memory is not sufficient, a smaller plan is
        added, and training is resumed from the last checkpoint.
    head_names : sequence of str
        Files of ``train_heads``, for messages.
    checkpoint_every_s : float
        Longest time between checkpoints. A checkpoint is also written before each validation.
    deadline : Deadline, optional
        Time at which the run ends, after a validation. Then ``plan.json`` has the actual number of
        steps.
    """

    train_heads: Sequence[LabelVolume]
    validation_heads: Sequence[LabelVolume]
    out_dir: Path
    until_step: int | None = None
    start_from: PackedNet | None = None
    real: Sequence[RealImage] = ()
    memory: str | Path | None = None
    head_names: Sequence[str] = ()
    checkpoint_every_s: float = CHECKPOINT_EVERY_S
    deadline: Deadline | None = None

    @property
    def last(self) -> Path:
        """Path of the checkpoint."""
        return self.out_dir / LAST

    @property
    def book(self) -> MemoryBook | None:
        """Memory plans of the run, or None if ``memory`` is not given."""
        return MemoryBook(Path(self.memory)) if self.memory else None


def fit(
    plan: TrainPlan,
    train_heads: Sequence[LabelVolume],
    validation_heads: Sequence[LabelVolume],
    out_dir: str | Path,
    **options: Any,
) -> SegmentationTask:
    """Train a network, or resume a training run.

    Writes ``last.ckpt`` (weights, average, optimiser, schedule, settings), ``plan.json``, logs and
    ``samples/`` to ``out_dir``. An interrupted run is resumed from ``last.ckpt``, with the same
    pairs as without the interruption. On a CPU, the weights are identical as well.

    Parameters
    ----------
    plan : TrainPlan
    train_heads, validation_heads : sequence of LabelVolume
        Label volumes for training and validation.
    out_dir : path
    **options
        Further fields of `TrainingRun`.

    Returns
    -------
    SegmentationTask
        With the averaged weights.

    Raises
    ------
    ValueError
        If the plan cannot run on this machine, or the memory is not sufficient for the smallest
        plan.
    ChangedSettings
        If the run was started with other settings.
    NotFinite
        If a loss or a gradient is NaN or infinite; its pairs are in ``bad-step-NNNNNN.json``.
    TooShort
        If ``deadline`` has passed before the first step.
    CannotSave
        If a checkpoint cannot be written; the previous one is unchanged.
    Stopped
        If SIGTERM, SIGUSR1 or SIGINT was received; the current step was completed and saved.
    """
    quieten()
    run = TrainingRun(train_heads, validation_heads, Path(out_dir), **options)
    book = run.book
    if book:
        plan = with_memory(plan, book.plan())
    while True:
        try:
            return _train(plan, run)
        except Exception as error:
            if book is None or not out_of_memory(error):
                raise
            plan = _smaller_plan(plan, book, error)
        # Here the error is gone, and with it the frames that held the memory.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        log.info("going on with %s", book.plan().describe())


def check_run(
    plan: TrainPlan,
    train_heads: Sequence[LabelVolume],
    validation_heads: Sequence[LabelVolume],
    out_dir: str | Path,
    *,
    memory: str | Path | None = None,
) -> None:
    """Raise the errors that `fit` would raise before it writes a file; arguments as in `fit`."""
    if memory:
        plan = with_memory(plan, MemoryBook(Path(memory)).plan())
    check_hardware(plan)
    last = Path(out_dir) / LAST
    if last.exists():
        check_unchanged(last, settings_of(plan, train_heads, validation_heads))


def _train(plan: TrainPlan, run: TrainingRun) -> SegmentationTask:
    """Train from the last checkpoint, or from the beginning, to the end."""
    check_hardware(plan)
    settings = settings_of(plan, run.train_heads, run.validation_heads)
    if run.last.exists():
        for line in check_unchanged(run.last, settings):
            log.info("going on with another setting: %s", line)
    if is_first_process():
        write_text(run.out_dir / "plan.json", plan.to_json())
    lightning.seed_everything(plan.seed, verbose=False)
    stream, held_out = _pair_streams(plan, run)
    done = steps_done(run.last)
    task = make_task(plan)
    if done >= min(run.until_step or plan.total_steps, plan.total_steps):
        log.info("%d steps are done already", done)
        task.load_state_dict(read_checkpoint(run.last)["state_dict"])
        return task
    if run.start_from is not None:
        task.net.load_weights(run.start_from.weights())
    if plan.compile:
        # What cannot be compiled here runs as it is.
        torch._dynamo.config.suppress_errors = True
        task.net.body.compile()
    _announce(plan, task, len(run.train_heads))
    data = PairData(stream, held_out, plan, done)
    checkpoints = CheckpointCallback(
        run.last,
        settings,
        done=done,
        every_steps=plan.validate_every,
        every_s=run.checkpoint_every_s,
        deadline=run.deadline,
    )
    trainer = _trainer(plan, run, data, checkpoints)
    start_at = run.last if done else None
    try:
        with checkpoints.listening():
            trainer.fit(task, datamodule=data, ckpt_path=start_at, weights_only=True)
            if trainer.global_step % plan.validate_every and not checkpoints.is_over:
                # What is kept is what is judged: the log's last word is about the last step.
                trainer.validate(task, datamodule=data, verbose=False)
    except SIGTERMException as error:  # between Lightning's handler and ours
        end_children(trainer)
        raise Stopped(steps_done(run.last), "SIGTERM") from error
    except BaseException:
        end_children(trainer)
        raise
    end_children(trainer, within_s=END_WITHIN_S)
    if checkpoints.is_over and run.deadline is not None and is_first_process():
        log.info("%g minutes are over after step %d", run.deadline.minutes, trainer.global_step)
        whole = replace(plan, total_steps=trainer.global_step)
        write_text(run.out_dir / "plan.json", whole.to_json())
    return task


def _pair_streams(plan: TrainPlan, run: TrainingRun) -> tuple[PairStream, PairStream]:
    """Pairs for training, and pairs of held-out heads."""
    generator = make_generator(plan)
    spaces = [(read_space(name), share) for name, share in plan.spaces.items()]
    looked_at = [(read_space(plan.validation_space), 1.0)]
    seed = plan.seed + VALIDATION_SEED
    return (
        PairStream(run.train_heads, spaces, generator, seed=plan.seed),
        PairStream(run.validation_heads, looked_at, generator, seed=seed),
    )


def _announce(plan: TrainPlan, task: SegmentationTask, n_heads: int) -> None:
    if plan.strategy == "fsdp":
        log.warning(
            "strategy fsdp has never been tried on GPUs: stop and go on once before you trust it"
        )
    log.info(
        "%s: %.1f million parameters, %d labels, patch %s at %g mm, %d pairs per step, %d heads, "
        "%d threads",
        plan.net.architecture,
        sum(p.numel() for p in task.net.parameters()) / 1e6,
        plan.net.n_labels,
        plan.patch_vox,
        plan.voxel_size_mm,
        plan.pairs_per_step,
        n_heads,
        torch.get_num_threads(),
    )


def _precision_of(plan: TrainPlan) -> Literal["bf16-mixed", "32-true"]:
    if plan.precision == "bf16-mixed":
        return "bf16-mixed"
    if plan.precision == "32-true":
        return "32-true"
    raise ValueError(f"unknown precision {plan.precision!r}; known: {', '.join(PRECISIONS)}")


def _trainer(
    plan: TrainPlan, run: TrainingRun, data: PairData, checkpoints: CheckpointCallback
) -> lightning.Trainer:
    version = f"log-from-{data.done}"
    timed = [run.deadline] if run.deadline and run.deadline.decay_share > 0 else []
    return lightning.Trainer(
        max_steps=min(run.until_step or plan.total_steps, plan.total_steps),
        precision=_precision_of(plan),
        accelerator=accelerator_for(run.book.plan() if run.book else None),
        devices=plan.devices,
        num_nodes=plan.nodes,
        strategy=strategy_of(plan),
        accumulate_grad_batches=plan.accumulate,
        plugins=[AtomicCheckpointIO(), cluster_environment(plan)],
        logger=[
            CSVLogger(run.out_dir, name="", version=version, flush_logs_every_n_steps=1),
            TensorBoardLogger(run.out_dir, name="", version=version),
        ],
        val_check_interval=plan.validate_every * plan.accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        # Their order matters: looked at is the average; saved is what has been averaged.
        callbacks=[
            *(DecayByTime(deadline, checkpoints) for deadline in timed),
            GradientCheck(run.out_dir, data.stream, plan.to_json(), run.head_names),
            ValidationCallback(run.out_dir / "samples", run.real),
            EMACallback(plan.ema_decay),
            LoggingCallback(
                data.loader_in_use,
                run.book.note_used if run.book else lambda _: None,
                deadline=run.deadline,
            ),
            checkpoints,
        ],
    )


def averaged_net(plan: TrainPlan, checkpoint: str | Path) -> PackedNet:
    """Network with the averaged weights of a checkpoint of `fit`.

    Raises
    ------
    ValueError
        If the checkpoint cannot be read, or is of another network than the plan.
    """
    task = make_task(plan)
    average = read_checkpoint(Path(checkpoint))["state_dict"]
    try:
        task.load_state_dict(average)
    except RuntimeError as error:
        raise ValueError(
            f"{checkpoint}: this checkpoint is of another network than its plan.json says. Take "
            "both from one run."
        ) from error
    return task.net
