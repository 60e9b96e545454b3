# SPDX-License-Identifier: Apache-2.0
"""From a ``TrainPlan`` to weights: builds Lightning's Trainer and lets it run."""

from __future__ import annotations

import gc
import json
import logging
import os
import threading
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import lightning
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.utilities.exceptions import SIGTERMException

from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.nets.architectures import NetSpec, PackedNet, build
from brainseg_bids.synth.generator import Generator, Head
from brainseg_bids.synth.space import read_space
from brainseg_bids.training.callbacks import (
    Average,
    Examination,
    Guard,
    Journal,
    Keeper,
    RealImage,
    Stopped,
    WholeCheckpoints,
)
from brainseg_bids.training.deadline import Deadline
from brainseg_bids.training.losses import loss_of
from brainseg_bids.training.pairs import Feed, HeldOut, PairStream, Share
from brainseg_bids.training.resume import (
    LAST,
    check_unchanged,
    read_checkpoint,
    settings_of,
    steps_done,
    write_whole,
)
from brainseg_bids.training.task import SegmentationTask

if TYPE_CHECKING:
    from brainseg_bids.nets.memory import MemoryPlan

__all__ = [
    "RealImage",
    "Stopped",
    "TrainPlan",
    "averaged_net",
    "fit",
    "make_generator",
    "make_task",
    "steps_done",
    "with_memory",
]

log = logging.getLogger("brainseg")

STRATEGIES = ("auto", "ddp", "fsdp")
CHECKPOINT_EVERY_S = 600.0
VALIDATION_SEED = 1_000_003
"""Added to a plan's seed for held-out pairs."""
MEMORY_FIELDS = (
    "patch_vox",
    "batch",
    "accumulate",
    "precision",
    "checkpointing",
    "offload",
    "compile",
)
"""What a `MemoryPlan` decides of a `TrainPlan`."""


@dataclass(frozen=True)
class TrainPlan:
    """Everything that decides the outcome of a training run, but the label maps.

    Parameters
    ----------
    net : NetSpec
    spaces : dict of str to float
        Recipe spaces (packaged name or TOML file) to how often they are drawn.
    batch, accumulate, devices, nodes : int
        Pairs that go through a network together, how often before the weights change, and on how
        many accelerators (on CPU: processes) of how many nodes. A step learns from the product
        of the four, and which pairs these are depends on the product alone.
    checkpointing, offload, compile : bool
        Activations computed again, or kept in the host's memory; compiled network.
    loss : {"chosen", "dense"}
    strategy : {"auto", "ddp", "fsdp"}
        ``auto`` is ``ddp`` where there are several processes. With ``fsdp`` weights, gradients
        and optimiser are shared out among GPUs; nobody has tried that yet.
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
    batch: int = 1
    accumulate: int = 1
    checkpointing: bool = False
    offload: bool = False
    compile: bool = False
    loss: str = "chosen"
    devices: int = 1
    nodes: int = 1
    strategy: str = "auto"

    def __post_init__(self) -> None:
        for name in ("batch", "accumulate", "devices", "nodes", "total_steps", "validate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it has to be at least 1")
        if self.strategy not in STRATEGIES:
            raise ValueError(f"unknown strategy {self.strategy!r}; known: {', '.join(STRATEGIES)}")

    @property
    def world(self) -> int:
        """Processes."""
        return self.devices * self.nodes

    @property
    def pairs_per_step(self) -> int:
        """Pairs that one change of the weights learns from."""
        return self.batch * self.accumulate * self.world

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> TrainPlan:
        raw = json.loads(text)
        raw["net"] = NetSpec(**raw["net"])
        raw["patch_vox"] = tuple(raw["patch_vox"])
        return cls(**raw)


def with_memory(plan: TrainPlan, memory: MemoryPlan) -> TrainPlan:
    """The same plan, run in the memory of a `MemoryPlan`."""
    return replace(plan, **{name: getattr(memory, name) for name in MEMORY_FIELDS})


def make_task(plan: TrainPlan) -> SegmentationTask:
    """Network and learning rule of a plan, not yet trained."""
    return SegmentationTask(plan, LabelTable.packaged(plan.target_table))


def fresh_net(plan: TrainPlan) -> PackedNet:
    """Network of a plan, initialised as its seed has it."""
    lightning.seed_everything(plan.seed, verbose=False)
    return build(plan.net)


def make_generator(plan: TrainPlan) -> Generator:
    """Generator of a plan's pairs."""
    return Generator(
        Crosswalk.packaged(plan.source_table, plan.target_table),
        LabelTable.packaged(plan.source_table),
        shape=plan.patch_vox,
        voxel_size_mm=plan.voxel_size_mm,
    )


# Memory -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MemoryBook:
    """``memory.json``: memory plans of a run, the last one in force.

    Parameters
    ----------
    path : Path
    """

    path: Path

    def plan(self) -> MemoryPlan:
        """The one in force.

        Raises
        ------
        ValueError
            If there is none.
        """
        from brainseg_bids.nets.memory import MemoryPlan

        try:
            return MemoryPlan.from_json(json.dumps(self._read()["plans"][-1]))
        except (KeyError, IndexError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{self.path}: holds no memory plan") from error

    def add(self, plan: MemoryPlan) -> None:
        """Put another in force."""
        book = self._read()
        book["plans"].append(json.loads(plan.to_json()))
        self._write(book)

    def note_used(self, used_gib: float) -> None:
        """What was measured under the plan in force."""
        book = self._read()
        before = book["plans"][-1].get("used_gib")
        if before is None or used_gib > 1.01 * before:
            book["plans"][-1]["used_gib"] = round(used_gib, 3)
            self._write(book)

    def _read(self) -> dict:
        return json.loads(self.path.read_text(encoding="utf-8"))

    def _write(self, book: dict) -> None:
        write_whole(self.path, json.dumps(book, indent=1) + "\n")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; devices and PyTorch's versions differ."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = ("out of memory", "can't allocate memory")
    return isinstance(error, RuntimeError) and any(w in str(error).lower() for w in words)


def _less(plan: TrainPlan, book: MemoryBook) -> TrainPlan:
    """A plan that needs clearly less memory, put in force by whichever process is first."""
    from brainseg_bids.nets.memory import smaller

    memory = book.plan()
    if with_memory(plan, memory) == plan:
        memory = smaller(memory, plan.net, loss=loss_of(plan).symbolic)
        book.add(memory)
    return with_memory(plan, memory)


# Where it runs ----------------------------------------------------------------------------------


def launched_by(world: int, environ: Mapping[str, str]) -> str:
    """Who starts the processes: nobody has to ("one"), "slurm", "torchrun", or we do ("own").

    >>> launched_by(1, {"SLURM_STEP_NUM_TASKS": "8"})
    'one'
    >>> launched_by(8, {"SLURM_STEP_NUM_TASKS": "8"})
    'slurm'
    >>> launched_by(4, {"SLURM_JOB_ID": "7"})
    'own'
    """
    if world == 1:
        return "one"
    if "TORCHELASTIC_RUN_ID" in environ:
        return "torchrun"
    # Set by srun; a batch script that starts one process itself does not have it.
    if environ.get("SLURM_STEP_NUM_TASKS") == str(world):
        return "slurm"
    return "own"


def _environment(plan: TrainPlan) -> ClusterEnvironment:
    by = launched_by(plan.world, os.environ)
    if by == "slurm":
        # It would save elsewhere and requeue on its own account.
        return SLURMEnvironment(auto_requeue=False)
    if by == "torchrun":
        return TorchElasticEnvironment()
    if plan.nodes > 1:
        raise ValueError(
            f"{plan.nodes} nodes: start one process per accelerator with srun --ntasks="
            f"{plan.world} --ntasks-per-node={plan.devices}, or with torchrun"
        )
    return LightningEnvironment()


def check_hardware(plan: TrainPlan) -> None:
    """Refuse what cannot run here.

    Raises
    ------
    ValueError
        With what would.
    """
    on_gpu = torch.cuda.is_available()
    if plan.strategy == "fsdp" and not on_gpu:
        raise ValueError("strategy fsdp needs GPUs; on a CPU take ddp, or leave it to auto")
    if plan.strategy == "fsdp" and plan.compile:
        raise ValueError("strategy fsdp and compile do not go together: leave one of them out")
    if on_gpu and plan.devices > torch.cuda.device_count():
        raise ValueError(
            f"{plan.devices} devices per node were asked for, {torch.cuda.device_count()} found"
        )


def _accelerator(memory: MemoryPlan | None) -> str:
    """What Lightning takes: the best there is, but the CPU where memory was planned for it.

    A CUDA or ROCm device is hidden from a process that shall not have it; Apple's cannot be.
    """
    if memory is not None and memory.device == "cpu" and not torch.cuda.is_available():
        return "cpu"
    return "auto"


def _strategy(plan: TrainPlan):
    if plan.strategy == "fsdp":
        from lightning.pytorch.strategies import FSDPStrategy

        return FSDPStrategy(state_dict_type="full")
    if plan.world == 1:
        return "auto"
    return "ddp"


def is_first_process(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this process, of those that train together, is the one that speaks and writes."""
    ranks = ("RANK", "LOCAL_RANK") if "RANK" in environ else ("LOCAL_RANK", "NODE_RANK")
    if "SLURM_STEP_NUM_TASKS" in environ and "SLURM_PROCID" in environ:
        ranks = ("SLURM_PROCID", "LOCAL_RANK")
    return all(int(environ.get(name, "0") or 0) == 0 for name in ranks)


def quieten() -> None:
    """Lightning speaks of itself, and warns of what is meant: not to our readers."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "lightning_utilities"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    warnings.filterwarnings(
        "ignore", message=r".*(srun|pytree|LeafSpec|does not have many workers).*"
    )


# Training ---------------------------------------------------------------------------------------


class PairData(lightning.LightningDataModule):
    """Pairs of this process, made on its device, which is known when training begins."""

    def __init__(self, stream: PairStream, held_out: PairStream, plan: TrainPlan, done: int):
        super().__init__()
        self.stream, self.held_out = stream, held_out
        self.plan, self.done = plan, done
        self.feed: Feed | None = None

    def train_dataloader(self) -> Feed:
        plan, trainer = self.plan, self.trainer
        share = Share(plan.batch, plan.accumulate, trainer.global_rank, trainer.world_size)
        device = trainer.strategy.root_device
        self.feed = Feed(
            self.stream, share, device, first_step=self.done, stop_step=plan.total_steps
        )
        return self.feed

    def val_dataloader(self) -> HeldOut:
        trainer = self.trainer
        return HeldOut(
            self.held_out,
            self.plan.validation_pairs,
            trainer.strategy.root_device,
            rank=trainer.global_rank,
            world=trainer.world_size,
        )


@dataclass(frozen=True)
class _Job:
    """What stays the same in all stretches of one call of `fit`."""

    train_heads: Sequence[Head]
    validation_heads: Sequence[Head]
    out_dir: Path
    until_step: int | None = None
    start_from: PackedNet | None = None
    real: Sequence[RealImage] = ()
    book: MemoryBook | None = None
    head_names: Sequence[str] = ()
    checkpoint_every_s: float = CHECKPOINT_EVERY_S
    deadline: Deadline | None = None
    last: Path = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "last", self.out_dir / LAST)


def fit(
    plan: TrainPlan,
    train_heads: Sequence[Head],
    validation_heads: Sequence[Head],
    out_dir: str | Path,
    *,
    until_step: int | None = None,
    start_from: PackedNet | None = None,
    real: Sequence[RealImage] = (),
    memory: str | Path | None = None,
    head_names: Sequence[str] = (),
    checkpoint_every_s: float = CHECKPOINT_EVERY_S,
    deadline: Deadline | None = None,
) -> SegmentationTask:
    """Train, or go on training.

    Leaves ``last.ckpt`` (weights, average, optimiser, schedule, settings), ``plan.json``,
    ``log-from-N/metrics.csv``, TensorBoard's events beside it, and ``samples/`` in ``out_dir``.
    An interrupted run goes on from ``last.ckpt`` with the same pairs a straight run would have
    seen; on a CPU its weights are the same to the last bit.

    Parameters
    ----------
    until_step : int, optional
        Stop here, before the plan's end, to go on later.
    start_from : PackedNet, optional
        Network of the same spec whose weights to begin from, when there is nothing to resume.
    real : sequence of RealImage
        Real images to look at in each validation.
    memory : path, optional
        ``memory.json``; its last plan is in force. When memory runs out, a smaller plan is added
        to it, and training goes on from the last checkpoint.
    head_names : sequence of str
        Files of ``train_heads``, for messages.
    checkpoint_every_s : float
        Longest time between checkpoints, which are made before each validation, too.
    deadline : Deadline, optional
        When to end, with a validation, before the plan's last step. ``plan.json`` then says how
        many steps there were.

    Returns
    -------
    SegmentationTask
        With the averaged weights.

    Raises
    ------
    ValueError
        If the plan cannot run here, or memory is too little for the smallest plan.
    ChangedSettings
        If the run was begun with other settings.
    NotFinite
        A loss or a gradient is no number; its pairs are in ``bad-step-NNNNNN.json``.
    TooShort
        The time of ``deadline`` is over before a step has begun.
    CannotSave
        The disk is full; the checkpoint before is as it was.
    Stopped
        SIGTERM, SIGUSR1 or SIGINT came; the step was finished and saved.
    """
    quieten()
    job = _Job(
        train_heads,
        validation_heads,
        Path(out_dir),
        until_step,
        start_from,
        real,
        MemoryBook(Path(memory)) if memory else None,
        head_names,
        checkpoint_every_s,
        deadline,
    )
    if job.book:
        plan = with_memory(plan, job.book.plan())
    while True:
        try:
            return _stretch(plan, job)
        except Exception as error:
            if job.book is None or not out_of_memory(error):
                raise
            log.warning("memory ran out: %s", str(error).splitlines()[0][:200])
            plan = _less(plan, job.book)
            if plan.world > 1:
                raise MemoryError(
                    "memory ran out; a smaller plan is in force now: run the same command again"
                ) from error
        # Here the error is gone, and with it the frames that held the memory.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        log.info("going on with %s", job.book.plan().describe())


def check_run(
    plan: TrainPlan,
    train_heads: Sequence[Head],
    validation_heads: Sequence[Head],
    out_dir: str | Path,
    *,
    memory: str | Path | None = None,
) -> None:
    """Raise what `fit` would raise before it writes anything; arguments as there."""
    if memory:
        plan = with_memory(plan, MemoryBook(Path(memory)).plan())
    check_hardware(plan)
    last = Path(out_dir) / LAST
    if last.exists():
        check_unchanged(last, settings_of(plan, train_heads, validation_heads))


def _stretch(plan: TrainPlan, job: _Job) -> SegmentationTask:
    """Train from the last checkpoint, or from the beginning, to the end."""
    check_hardware(plan)
    settings = settings_of(plan, job.train_heads, job.validation_heads)
    if job.last.exists():
        for line in check_unchanged(job.last, settings):
            log.info("going on with another setting: %s", line)
    if is_first_process():
        write_whole(job.out_dir / "plan.json", plan.to_json())
    lightning.seed_everything(plan.seed, verbose=False)
    generator = make_generator(plan)
    spaces = [(read_space(name), share) for name, share in plan.spaces.items()]
    done = steps_done(job.last)
    stream = PairStream(job.train_heads, spaces, generator, seed=plan.seed)
    held_out = PairStream(
        job.validation_heads,
        [(read_space(plan.validation_space), 1.0)],
        generator,
        seed=plan.seed + VALIDATION_SEED,
    )
    task = make_task(plan)
    if done >= min(job.until_step or plan.total_steps, plan.total_steps):
        log.info("%d steps are done already", done)
        task.load_state_dict(read_checkpoint(job.last)["state_dict"])
        return task
    if job.start_from is not None:
        task.net.load_weights(job.start_from.weights())
    if plan.compile:
        # What cannot be compiled here runs as it is.
        torch._dynamo.config.suppress_errors = True
        task.net.body.compile()
    _announce(plan, task, len(job.train_heads))
    data = PairData(stream, held_out, plan, done)
    keeper = Keeper(
        job.last,
        settings,
        done=done,
        every_steps=plan.validate_every,
        every_s=job.checkpoint_every_s,
        deadline=job.deadline,
    )
    trainer = _trainer(plan, job, data, keeper)
    start_at = job.last if done else None
    try:
        with keeper.listening():
            trainer.fit(task, datamodule=data, ckpt_path=start_at, weights_only=True)
            if trainer.global_step % plan.validate_every and not keeper.is_over:
                # What is kept is what is judged: the log's last word is about the last step.
                trainer.validate(task, datamodule=data, verbose=False)
    except SIGTERMException as error:  # between Lightning's handler and ours
        _end_children(trainer)
        raise Stopped(steps_done(job.last), "SIGTERM") from error
    except BaseException:
        _end_children(trainer)
        raise
    if keeper.is_over and is_first_process():
        log.info("%g minutes are over after step %d", job.deadline.minutes, trainer.global_step)
        whole = replace(plan, total_steps=trainer.global_step)
        write_whole(job.out_dir / "plan.json", whole.to_json())
    return task


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


def _trainer(plan: TrainPlan, job: _Job, data: PairData, keeper: Keeper) -> lightning.Trainer:
    version = f"log-from-{data.done}"
    return lightning.Trainer(
        max_steps=min(job.until_step or plan.total_steps, plan.total_steps),
        precision=plan.precision,
        accelerator=_accelerator(job.book.plan() if job.book else None),
        devices=plan.devices,
        num_nodes=plan.nodes,
        strategy=_strategy(plan),
        accumulate_grad_batches=plan.accumulate,
        plugins=[WholeCheckpoints(), _environment(plan)],
        logger=[
            CSVLogger(job.out_dir, name="", version=version, flush_logs_every_n_steps=1),
            TensorBoardLogger(job.out_dir, name="", version=version),
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
            Guard(job.out_dir, data.stream, plan.to_json(), job.head_names),
            Examination(job.out_dir / "samples", job.real),
            Average(plan.ema_decay),
            Journal(
                lambda: data.feed,
                job.book.note_used if job.book else lambda _: None,
                deadline=job.deadline,
            ),
            keeper,
        ],
    )


def _end_children(trainer: lightning.Trainer) -> None:
    """Processes that we started end with us; one that waits for us would wait for ever."""
    children = getattr(trainer.strategy.launcher, "procs", [])
    for thread in threading.enumerate():
        if thread.name == "child-process-observer":
            thread._child_processes = []  # it would kill us before we have said why we end
    for child in children:
        with suppress(Exception):
            child.wait(timeout=5)
        if child.poll() is None:
            child.kill()
            child.wait()


def averaged_net(plan: TrainPlan, checkpoint: str | Path) -> PackedNet:
    """Network with the averaged weights of a checkpoint that `fit` left."""
    task = make_task(plan)
    task.load_state_dict(read_checkpoint(Path(checkpoint))["state_dict"])
    return task.net
