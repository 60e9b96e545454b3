# SPDX-License-Identifier: Apache-2.0
"""Network, patch and precision that fit a device, as probed: ``plan.json`` and ``memory.json``.

``python -m brainseg_bids.cli.train_memory WISH.json PLANNED.json`` does so in a process of its
own, so that the one which watches over training holds nothing of the accelerator.
"""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.bids.description import write_json
from brainseg_bids.cli.train_cache import probe_once
from brainseg_bids.cli.train_job import JobPlan, space_key
from brainseg_bids.exit_codes import DONE, UNUSABLE
from brainseg_bids.files import write_text
from brainseg_bids.lifetime import for_children
from brainseg_bids.resources import memory_gib
from brainseg_bids.settings import Settings
from brainseg_bids.stages.jobs import read_object
from brainseg_bids.training.deadline import planned_steps
from brainseg_bids.training.recipe import ABOUT_SPACES
from brainseg_bids.training.targets import SOURCE
from brainseg_bids.volumes import InputError

if TYPE_CHECKING:  # late: torch
    from brainseg_bids.nets.memory_plan import Device, MemoryPlan
    from brainseg_bids.nets.spec import NetSpec

log = logging.getLogger("brainseg")

LONG_ENOUGH_MM = 96.0
"""A patch with a shorter edge knows too little of where it is: rather a smaller network."""
PRECISIONS = {"": "", "bf16": "bf16-mixed", "fp32": "32-true"}
MEMORY_FIELDS = (
    "patch_vox",
    "batch",
    "accumulate",
    "precision",
    "checkpointing",
    "offload",
    "compile",
)
"""Fields of a `TrainPlan` that the memory plan decides."""
TRIES = 4
"""Memory plans that are probed before giving up."""
_ERROR = "train: ERROR: "


@dataclass(frozen=True)
class Wish:
    """What the memory plan is made from; JSON there and back.

    Parameters
    ----------
    architecture, net_size : str
        No size: the largest that leaves a patch of `LONG_ENOUGH_MM`.
    voxel_size_mm : float
    largest_patch_mm : tuple of 3 float
    device : str
    budget_gib : float or None
    precision : str
        As Lightning calls it; empty: what the device is fast in.
    plan : dict
        All other fields of the `TrainPlan`.
    net : dict
        Network that is trained already; empty: to be chosen.
    batch : int
        Pairs that a step of one device is to learn from.
    threads : int
        Of a CPU.
    cache : str
        Folder that keeps what probes measured; empty: none does.
    """

    architecture: str
    net_size: str
    voxel_size_mm: float
    largest_patch_mm: tuple[float, float, float]
    device: str
    budget_gib: float | None
    precision: str
    plan: dict
    net: dict
    batch: int = 1
    threads: int = 1
    cache: str = ""

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Wish:
        raw = json.loads(text)
        return cls(**raw | {"largest_patch_mm": tuple(raw["largest_patch_mm"])})


def make_plan(job: JobPlan, settings: Settings) -> Path:
    """Decide network, patch and precision; write ``plan.json`` (or what it is to become) and
    ``memory.json``; print them.

    A run that goes on keeps its own unless it is told otherwise.

    Returns
    -------
    Path
        Of the `TrainPlan` that is to be trained.

    Raises
    ------
    InputError
        If nothing fits the memory, or a name is not known.
    """
    said = said_of_plan(job, settings)
    old = read_object(job.training / "plan.json") if job.before else {}
    # Plans that no step was trained with, of --plan-only, are none that were given up.
    memory = read_object(job.training / "memory.json") if job.before else {}
    wish = Wish(
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
        plan, fresh = _planned_elsewhere(wish, job) if _on_cuda(settings) else plan_memory_of(wish)
        memory = fresh | {"plans": [*memory.get("plans", []), *fresh["plans"]]}
    else:
        plan, memory = old | said, _as_before(old, said, wish.precision, memory)
        plan |= {key: memory["plans"][-1][key] for key in MEMORY_FIELDS}
        if settings.net_size:  # said again, or another one, which training will refuse
            plan["net"] = _specs(wish)[0].to_dict()
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


def said_of_plan(job: JobPlan, settings: Settings) -> dict:
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
        "devices": settings.devices or _devices_there(settings),
        "nodes": settings.nodes,
    }


def _devices_there(settings: Settings) -> int:
    import torch

    return torch.cuda.device_count() if _on_cuda(settings) else 1


def _on_cuda(settings: Settings) -> bool:
    import torch

    return settings.device in ("auto", "cuda") and torch.cuda.is_available()


def _tighter(settings: Settings, memory: Mapping) -> bool:
    """Whether the budget that is said now is less than what the plan in force takes."""
    budget = settings.memory_budget_gb
    plans = memory.get("plans") or [{}]
    needed = plans[-1].get("probed_gib") or plans[-1].get("predicted_gib") or 0.0
    return budget is not None and budget < needed


def _planned_elsewhere(wish: Wish, job: JobPlan) -> tuple[dict, dict]:
    """`plan_memory_of` in a process of its own, which gives the accelerator back."""
    wanted, made = job.training / "wish.json", job.training / "planned.json"
    write_text(wanted, wish.to_json() + "\n")
    program = [sys.executable, "-m", "brainseg_bids.cli.train_memory", str(wanted), str(made)]
    done = subprocess.run(
        program, env=for_children(), stderr=subprocess.PIPE, text=True, errors="replace"
    )
    told = [line for line in done.stderr.splitlines() if line.strip()]
    if done.returncode:
        last = told[-1].removeprefix(_ERROR) if told else f"exit code {done.returncode}"
        raise InputError(f"the memory plan could not be made: {last}")
    planned = read_object(made)
    wanted.unlink()
    made.unlink()
    return planned["plan"], planned["memory"]


def plan_memory_of(wish: Wish) -> tuple[dict, dict]:
    """Content of ``plan.json`` and of ``memory.json``: network and patch that fit, as probed.

    Raises
    ------
    InputError
        If nothing fits, or architecture, size or device are not known.
    """
    from brainseg_bids.nets.devices import find_device
    from brainseg_bids.nets.spec import NetSpec

    try:
        device, budget_gib = find_device(wish.device, host_free_gib=memory_gib()), wish.budget_gib
        if device.kind == "cpu":  # all processes share its memory
            share = 1 / wish.plan["devices"]
            device = replace(device, free_gib=device.free_gib * share)
            wish = replace(wish, budget_gib=budget_gib and budget_gib * share)
        specs = [NetSpec.from_dict(wish.net)] if wish.net else _specs(wish)
        spec, plans = _fitting(wish, specs, device)
    except (ValueError, ImportError) as error:  # a library that an architecture needs
        raise InputError(str(error)) from error
    told = {"device": asdict(device), "plans": [json.loads(one.to_json()) for one in plans]}
    decided = {key: told["plans"][-1][key] for key in MEMORY_FIELDS}
    return wish.plan | {"net": spec.to_dict()} | decided, told


def _specs(wish: Wish) -> list[NetSpec]:
    """The network of the size that was asked for, else of each, the largest first."""
    from brainseg_bids.nets.sizes import SIZES, default_spec

    n_labels = len(LabelTable.packaged(wish.plan["target_table"]))
    return [
        default_spec(wish.architecture, size, n_labels=n_labels, voxel_size_mm=wish.voxel_size_mm)
        for size in ((wish.net_size,) if wish.net_size else reversed(SIZES))
    ]


def _fitting(
    wish: Wish, specs: Sequence[NetSpec], device: Device
) -> tuple[NetSpec, list[MemoryPlan]]:
    """The largest network that leaves a patch long enough, and its memory plans as probed."""
    from brainseg_bids.nets.memory_plan import TooLittleMemory

    fault = None
    for spec in specs:
        try:
            plan = _plan_of(wish, spec, device)
        except TooLittleMemory as error:
            fault = error
            continue
        shortest = min(*plan.patch_vox) * wish.voxel_size_mm
        wanted = min(LONG_ENOUGH_MM, *wish.largest_patch_mm)
        if shortest >= wanted or spec is specs[-1]:
            return spec, _probed(wish, spec, plan, device)
    raise fault


def _plan_of(wish: Wish, spec: NetSpec, device: Device) -> MemoryPlan:
    from brainseg_bids.nets.memory import plan_memory
    from brainseg_bids.nets.sizes import patch_multiple
    from brainseg_bids.training.losses import loss_of

    multiple = patch_multiple(spec)
    largest = [
        max(1, round(edge / wish.voxel_size_mm / multiple)) * multiple
        for edge in wish.largest_patch_mm
    ]
    if max(largest) == multiple:  # nothing can be normalised over a single deepest cell
        largest[-1] *= 2
    return plan_memory(
        spec,
        loss=loss_of(_loss_plan(wish)).symbolic,
        device=device,
        budget_gib=wish.budget_gib,
        precision=wish.precision,
        largest_vox=tuple(largest),
        multiple=multiple,
        batch_wanted=wish.batch,
        voxel_size_mm=wish.voxel_size_mm,
    )


def _loss_plan(wish: Wish):
    """What `training.losses.loss_of` reads of a plan."""
    return SimpleNamespace(**wish.plan)


def _probed(wish: Wish, spec: NetSpec, plan: MemoryPlan, device: Device) -> list[MemoryPlan]:
    """Memory plans, each with what a step took; the last one fits.

    Raises
    ------
    InputError
        If none of `TRIES` does, or the step fails.
    """
    from brainseg_bids.nets.memory import smaller
    from brainseg_bids.nets.memory_plan import ALLOWANCES
    from brainseg_bids.training.losses import loss_of
    from brainseg_bids.training.probe import ProbeFailed

    loss, plans = _loss_plan(wish), []
    while len(plans) < TRIES:
        try:
            probe = partial(_peak_gib, spec, plan, loss, wish.threads)
            if wish.cache:
                decides = _decides(wish, spec, plan, device)
                probed_gib, is_kept = probe_once(Path(wish.cache), decides, probe)
            else:
                probed_gib, is_kept = probe(), False
        except TimeoutError as error:
            log.warning("memory was not measured: %s", error)
            return [*plans, plan]
        except ProbeFailed as error:
            raise InputError(str(error)) from error
        if is_kept:
            log.info("memory of a step: as measured before")
        plans.append(replace(plan, probed_gib=probed_gib))
        # The process itself comes on top of what a step takes.
        own_gib = ALLOWANCES[device.kind].context_gib
        if probed_gib is not None and probed_gib <= plan.budget_gib - own_gib:
            return plans
        told = "more than there is" if probed_gib is None else f"{probed_gib:.1f} GiB"
        log.info("a step took %s of %.1f GiB: a smaller plan", told, plan.budget_gib)
        plan = smaller(plan, spec, loss=loss_of(loss).symbolic)
    raise InputError(
        f"no plan was found that fits {plan.budget_gib:.1f} GiB; the last one: {plan.describe()}. "
        "Choose a smaller network (--net-size small) or larger voxels (--target-voxel-size)."
    )


def _peak_gib(spec: NetSpec, plan: MemoryPlan, loss: object, threads: int) -> float | None:
    from brainseg_bids.training.probe import probe_step

    cost = probe_step(spec, plan, loss, threads=threads)
    return cost and cost.peak_gib


def _decides(wish: Wish, spec: NetSpec, plan: MemoryPlan, device: Device) -> dict:
    """All that decides what a probe measures, but code and environment."""
    import torch

    named = ("loss", "per_label", "anywhere", "dice_weight")
    return {
        "net": spec.to_dict(),
        "plan": {name: getattr(plan, name) for name in MEMORY_FIELDS if name != "accumulate"},
        "accumulates": plan.accumulate > 1,
        "loss": {name: wish.plan[name] for name in named},
        # What is free changes from minute to minute; it decides whether a step fits.
        "device": {key: value for key, value in asdict(device).items() if key != "free_gib"},
        "threads": wish.threads,
        "versions": {
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "hip": torch.version.hip,
            "monai": metadata.version("monai"),
            "cpu": torch.backends.cpu.get_cpu_capability(),
        },
    }


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
        f"cells of {plan['net']['stem']} voxel(s), {json.dumps(plan['net']['options'])}",
        "patch": f"{' x '.join(map(str, plan['patch_vox']))} voxels of "
        f"{plan['voxel_size_mm']:g} mm = {patch_mm} mm",
        "pairs a step": f"{plan['batch']} x {plan['accumulate']} a device",
        "precision": ", ".join([plan["precision"], *extras]),
        "memory": f"{peak}, of {last['budget_gib']:.1f} GiB ({last['reason']})",
        "steps": f"{planned_steps(plan['total_steps']) or 'as many as there is time for'}, "
        f"learning rate {plan['learning_rate']:g}, "
        f"loss {plan['loss']}, Dice weight {plan['dice_weight']:g}",
        "recipe spaces": ", ".join(f"{k} {v:g}" for k, v in plan["spaces"].items()),
    }
    for name, value in rows.items():
        log.info("  %-14s %s", name, value)


def main(argv: list[str] | None = None) -> int:
    """Read a `Wish`, write plan and memory plan."""
    wanted, made = map(Path, sys.argv[1:] if argv is None else argv)
    try:
        plan, memory = plan_memory_of(Wish.from_json(wanted.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        print(f"{_ERROR}{' '.join(str(error).split())}", file=sys.stderr)
        return UNUSABLE
    write_json(made, {"plan": plan, "memory": memory})
    return DONE


if __name__ == "__main__":
    raise SystemExit(main())
