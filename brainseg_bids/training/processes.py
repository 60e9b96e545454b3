# SPDX-License-Identifier: Apache-2.0
"""Where training runs: devices, and the processes that train together."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

import lightning
import torch
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.pytorch.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.strategies import FSDPStrategy

from brainseg_bids.training.plan import TrainPlan

if TYPE_CHECKING:
    from brainseg_bids.nets.memory_plan import MemoryPlan


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


def cluster_environment(plan: TrainPlan) -> ClusterEnvironment:
    """How Lightning learns of the other processes: from Slurm, from torchrun, or by starting them.

    Raises
    ------
    ValueError
        If there are several nodes and nothing has started the processes on them.
    """
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


def accelerator_for(memory: MemoryPlan | None) -> str:
    """What Lightning takes: the best there is, but the CPU where memory was planned for it.

    A CUDA or ROCm device is hidden from a process that shall not have it; Apple's cannot be.
    """
    if memory is not None and memory.device == "cpu" and not torch.cuda.is_available():
        return "cpu"
    return "auto"


def strategy_of(plan: TrainPlan) -> FSDPStrategy | str:
    """Strategy of Lightning: ``auto`` for one process, else ``ddp`` or FSDP."""
    if plan.strategy == "fsdp":
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


def end_children(trainer: lightning.Trainer) -> None:
    """Processes that we started end with us; one that waits for us would wait for ever."""
    children = getattr(trainer.strategy.launcher, "procs", [])
    for thread in threading.enumerate():
        if isinstance(thread, _ChildProcessObserver):
            thread._child_processes = []  # it would kill us before we have said why we end
    for child in children:
        with suppress(Exception):
            child.wait(timeout=5)
        if child.poll() is None:
            child.kill()
            child.wait()


def is_sharded(trainer: lightning.Trainer) -> bool:
    """Whether each process holds a part of the weights only."""
    return isinstance(trainer.strategy, FSDPStrategy)


def any_process(trainer: lightning.Trainer, *flags: bool) -> tuple[bool, ...]:
    """Each flag: whether it is up in any process."""
    if trainer.world_size == 1:
        return flags
    votes = torch.tensor(flags, dtype=torch.float32, device=trainer.strategy.root_device)
    return tuple(bool(n) for n in trainer.strategy.reduce(votes, reduce_op="sum"))
