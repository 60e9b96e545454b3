# SPDX-License-Identifier: Apache-2.0
"""How a network is trained: memory plan and training plan, written down; and how long it takes."""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np

from brainseg_bids.bids.description import write_json
from brainseg_bids.documents import InputError, read_object
from brainseg_bids.files import write_text
from brainseg_bids.lifetime import for_children
from brainseg_bids.nets.devices import cuda_devices
from brainseg_bids.nets.memory_plan import MemoryPlan
from brainseg_bids.nets.spec import NetSpec
from brainseg_bids.programs.plan_memory import ERROR, MemoryRequest, plan_memory_of, specs
from brainseg_bids.stages.train_job import JobPlan, space_key
from brainseg_bids.training import probe
from brainseg_bids.training.deadline import planned_steps
from brainseg_bids.training.plan import MEMORY_FIELDS
from brainseg_bids.training.recipe import ABOUT_SPACES
from brainseg_bids.training.targets import SOURCE
from brainseg_bids.units import duration

if TYPE_CHECKING:
    from brainseg_bids.options import Settings

log = logging.getLogger("brainseg")

PRECISIONS = {"": "", "bf16": "bf16-mixed", "fp32": "32-true"}


def make_plan(job: JobPlan, settings: Settings) -> Path:
    """Decide network, patch and precision; write ``plan.json`` (or what it is to become) and
    ``memory.json``; print them.

    A run that goes on keeps its own unless something else is asked for.

    Returns
    -------
    Path
        Of the `TrainPlan` that is to be trained.

    Raises
    ------
    InputError
        If nothing fits the memory, or a name is not known.
    """
    said = plan_metadata(job, settings)
    old = read_object(job.training / "plan.json") if job.before else {}
    # Plans that no step was trained with, of --plan-only, are none that were given up.
    memory = read_object(job.training / "memory.json") if job.before else {}
    request = MemoryRequest(
        architecture=settings.architecture,
        net_size=settings.net_size or job.recipe.values.get("net_size", ""),
        voxel_size_mm=job.voxel_size_mm,
        largest_patch_mm=job.recipe.values["largest_patch_mm"],
        device=settings.device,
        budget_gib=settings.memory_budget_gb,
        precision=PRECISIONS[settings.precision],
        plan=said,
        net=old.get("net", {}),
        batch=job.recipe.values["batch"],
        threads=settings.nprocs,
        cache=str(job.cache.absolute()),
    )
    if not old or not memory or _tighter(settings, memory):
        log.info("looking for the largest patch that fits; trying a step may take a minute")
        plan, fresh = (
            _planned_elsewhere(request, job)
            if cuda_devices(settings.device)
            else plan_memory_of(request)
        )
        memory = fresh | {"plans": [*memory.get("plans", []), *fresh["plans"]]}
    else:
        plan, memory = old | said, _as_before(old, said, request.precision, memory)
        plan |= {key: memory["plans"][-1][key] for key in MEMORY_FIELDS}
        if settings.net_size:  # said again, or another one, which training will refuse
            plan["net"] = specs(request)[0].to_dict()
    write_json(job.training / "memory.json", memory)
    _tell_plan(plan, memory)
    # What training has done is compared with its own plan.json: a changed one lies beside it.
    path = job.training / ("plan-wanted.json" if job.before else "plan.json")
    write_text(path, json.dumps(plan, indent=1) + "\n")
    return path


def _as_before(old: Mapping, said: Mapping, precision: str, memory: Mapping) -> dict:
    """``memory.json`` with the plan in force; one with other devices learns from as many pairs."""
    last = memory["plans"][-1]
    pairs = math.prod(old[key] for key in ("batch", "accumulate", "devices", "nodes"))
    accumulate = pairs // (last["batch"] * said["devices"] * said["nodes"]) or 1
    now = last | {"accumulate": accumulate, "precision": precision or last["precision"]}
    if now == last:
        return dict(memory)
    log.info("memory: as before, but for devices or precision")
    return memory | {"plans": [*memory["plans"], now | {"reason": "devices or precision changed"}]}


def plan_metadata(job: JobPlan, settings: Settings) -> dict:
    """Fields of the `TrainPlan` that neither network nor memory decide."""
    values = {
        key: value
        for key, value in job.recipe.values.items()
        if key not in ABOUT_SPACES and key != "batch"
    }
    return values | {
        "spaces": {space_key(name, job): share for name, share in job.spaces.shares.items()},
        "validation_space": space_key(job.spaces.validation, job),
        "source_table": SOURCE,
        "target_table": job.target.name,
        "voxel_size_mm": job.voxel_size_mm,
        "seed": settings.seed,
        "devices": settings.devices or cuda_devices(settings.device) or 1,
        "nodes": settings.nodes,
    }


def _tighter(settings: Settings, memory: Mapping) -> bool:
    """Whether the budget that is said now is less than what the plan in force takes."""
    budget = settings.memory_budget_gb
    plans = memory.get("plans") or [{}]
    needed = plans[-1].get("probed_gib") or plans[-1].get("predicted_gib") or 0.0
    return budget is not None and budget < needed


def _planned_elsewhere(request: MemoryRequest, job: JobPlan) -> tuple[dict, dict]:
    """`plan_memory_of` in a process of its own, which gives the accelerator back."""
    wanted, made = job.training / "request.json", job.training / "planned.json"
    write_text(wanted, request.to_json() + "\n")
    program = [sys.executable, "-m", "brainseg_bids.programs.plan_memory", str(wanted), str(made)]
    done = subprocess.run(
        program, env=for_children(), stderr=subprocess.PIPE, text=True, errors="replace"
    )
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    if done.returncode:
        last = lines[-1].removeprefix(ERROR) if lines else f"exit code {done.returncode}"
        raise InputError(f"the memory plan could not be made: {last}")
    planned = read_object(made)
    wanted.unlink()
    made.unlink()
    return planned["plan"], planned["memory"]


def _tell_plan(plan: Mapping, memory: Mapping) -> None:
    """The plan as a short table, on the console."""
    device, last = memory["device"], memory["plans"][-1]
    patch_mm = " x ".join(f"{n * plan['voxel_size_mm']:.0f}" for n in plan["patch_vox"])
    measured = last.get("probed_gib")
    peak = f"{last['predicted_gib']:.1f} GiB predicted"
    if measured is not None:
        peak += f", {measured:.1f} measured"
    extras = [name for name in ("checkpointing", "offload", "compile") if plan.get(name)]
    rows = {
        "device": f"{device['name']} ({device['kind']}), {plan['devices']} x {plan['nodes']}",
        "network": f"{plan['net']['architecture']}, {plan['net']['n_labels']} labels, "
        f"blocks of {plan['net']['stem']} voxel(s), {json.dumps(plan['net']['options'])}",
        "patch": f"{' x '.join(map(str, plan['patch_vox']))} voxels of "
        f"{plan['voxel_size_mm']:g} mm = {patch_mm} mm",
        "pairs a step": f"{plan['batch']} x {plan['accumulate']} a device",
        "precision": ", ".join([plan["precision"], *extras]),
        "memory": f"{peak}, of {last['budget_gib']:.1f} GiB ({last['reason']})",
        "steps": f"{planned_steps(plan['total_steps']) or 'as many as there is time for'}, "
        f"{plan.get('optimizer', 'adamw')}, learning rate {plan['learning_rate']:g}, "
        f"loss {plan['loss']}, Dice weight {plan['dice_weight']:g}",
        "recipe spaces": ", ".join(f"{k} {v:g}" for k, v in plan["spaces"].items()),
    }
    for name, value in rows.items():
        log.info("  %-14s %s", name, value)


# -- time ---------------------------------------------------------------------------------

TIMED_PAIRS = 4
"""Pairs of the step that is timed, at most: the time grows with them."""


def expected_time(job: JobPlan, plan_path: Path, settings: Settings, *, done: int = 0) -> str:
    """A line on how long the steps that are left will take, and how that is known.

    Parameters
    ----------
    job : JobPlan
    plan_path : Path
        ``plan.json``, or what it is to become.
    settings : Settings
    done : int
        Steps that are done already.
    """
    plan = read_object(plan_path)
    steps = planned_steps(plan["total_steps"])
    if steps is None:
        share = job.decay_share(settings)
        rate = f"the rate decays over the last {share:.0%}" if share else "the rate stays constant"
        return f"time: it ends by itself after {settings.minutes:g} min (--minutes); {rate}"
    left = max(0, steps - done)
    step_s = _logged_s(job, plan) if done else None
    if step_s:
        return f"time: {duration(left * step_s)}: {left} steps of {step_s:,.1f} s, as so far"
    step_s = _tried_s(job, plan, settings)
    if step_s is None:
        return "time: not known; a step could not be measured"
    extra = "" if _on_gpu(job) else "; on a CPU making the pairs comes on top"
    return (
        f"time: at least {duration(left * step_s)}: {left} steps of {step_s:,.1f} s, as the "
        f"network took when one was tried{extra}"
    )


def _logged_s(job: JobPlan, plan: dict) -> float | None:
    """Seconds that steps of this run took so far; None if nothing is logged."""
    from brainseg_bids.reports.training_log import read_job  # late: pandas

    try:
        pairs_per_s = read_job(job.folder).log["pairs_per_s"].finite().values
    except (OSError, ValueError, KeyError):
        return None
    if not len(pairs_per_s) or np.median(pairs_per_s) <= 0:
        return None
    pairs = plan["batch"] * plan["accumulate"] * plan["devices"] * plan["nodes"]
    return pairs / float(np.median(pairs_per_s))


def _tried_s(job: JobPlan, plan: dict, settings: Settings) -> float | None:
    """Seconds of a step, from one of a few pairs that is tried now, without making them.

    None if the step whose memory was to be measured took too long already.
    """
    memory = MemoryPlan.from_json(json.dumps(_in_force(job)))
    if memory.probed_gib is None:
        return None
    pairs = min(memory.batch, TIMED_PAIRS)
    try:
        cost = probe.probe_step(
            NetSpec.from_dict(plan["net"]),
            replace(memory, batch=pairs),
            SimpleNamespace(**plan),
            threads=max(1, settings.nprocs // plan["devices"]),
        )
    except (TimeoutError, probe.ProbeFailed):
        return None
    return cost and cost.seconds * plan["accumulate"] * plan["batch"] / pairs


def _in_force(job: JobPlan) -> dict:
    return read_object(job.training / "memory.json")["plans"][-1]


def _on_gpu(job: JobPlan) -> bool:
    return _in_force(job).get("device") not in (None, "cpu")
