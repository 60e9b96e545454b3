# SPDX-License-Identifier: Apache-2.0
"""Devices and processes of a training run."""

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
    """How the processes of a run are started: "one", "slurm", "torchrun" or "own".

    "one" is a single process; "own" means that this program starts them.

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
    """Lightning's environment of the processes: Slurm, torchrun, or started by this program.

    Raises
    ------
    ValueError
        If there are several nodes, but neither Slurm nor torchrun started the processes.
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
    """Raise an error if a plan cannot run on this machine.

    Raises
    ------
    ValueError
        If strategy, devices and compilation cannot be used together, or devices are missing.
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
    """Accelerator for Lightning: "cpu" if the memory plan is for a CPU, otherwise "auto".

    CUDA and ROCm devices can be hidden from a process, but Apple's GPUs cannot.
    """
    if memory is not None and memory.device == "cpu" and not torch.cuda.is_available():
        return "cpu"
    return "auto"


def strategy_of(plan: TrainPlan) -> FSDPStrategy | str:
    """Strategy for Lightning: ``auto`` for one process, otherwise ``ddp`` or FSDP."""
    if plan.strategy == "fsdp":
        return FSDPStrategy(state_dict_type="full")
    if plan.world == 1:
        return "auto"
    return "ddp"


def is_first_process(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is the first of a run, which writes logs and files."""
    ranks = ("RANK", "LOCAL_RANK") if "RANK" in environ else ("LOCAL_RANK", "NODE_RANK")
    if "SLURM_STEP_NUM_TASKS" in environ and "SLURM_PROCID" in environ:
        ranks = ("SLURM_PROCID", "LOCAL_RANK")
    return all(int(environ.get(name, "0") or 0) == 0 for name in ranks)


def quieten() -> None:
    """Suppress Lightning's messages about itself, and warnings about intended behaviour."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "lightning_utilities"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    warnings.filterwarnings(
        "ignore", message=r".*(srun|pytree|LeafSpec|does not have many workers).*"
    )


def end_children(trainer: lightning.Trainer, *, within_s: float = 5.0) -> None:
    """Wait for the processes that this process started, and kill those that do not end.

    After an error they would wait for this process for ever. After a run that went well they end
    by themselves; this process still waits, since only then their CPU time is counted as its own.

    Parameters
    ----------
    trainer : lightning.Trainer
    within_s : float
        Longest wait for each process.
    """
    children = getattr(trainer.strategy.launcher, "procs", [])
    for thread in threading.enumerate():
        if isinstance(thread, _ChildProcessObserver):
            thread._child_processes = []  # it would kill us before we have said why we end
    for child in children:
        with suppress(Exception):
            child.wait(timeout=within_s)
        if child.poll() is None:
            child.kill()
            child.wait()


def is_sharded(trainer: lightning.Trainer) -> bool:
    """Whether each process has a part of the weights only."""
    return isinstance(trainer.strategy, FSDPStrategy)


def any_process(trainer: lightning.Trainer, *flags: bool) -> tuple[bool, ...]:
    """For each flag, whether it is True in any process."""
    if trainer.world_size == 1:
        return flags
    votes = torch.tensor(flags, dtype=torch.float32, device=trainer.strategy.root_device)
    return tuple(bool(n) for n in trainer.strategy.reduce(votes, reduce_op="sum"))


def check_equal(trainer: lightning.Trainer, settings: Mapping[str, object]) -> None:
    """Raise an error in all processes unless all have the same settings.

    Each process reads label maps and recipe spaces itself, seconds after the first one.

    Raises
    ------
    ValueError
        If the settings of a process are others than those of the first one.
    """
    differ = trainer.strategy.broadcast(settings) != settings
    if any_process(trainer, differ)[0]:
        raise ValueError(
            "label maps or recipe spaces changed while training began, so that its processes read "
            "different ones. Run the same command again."
        )
