# SPDX-License-Identifier: Apache-2.0
"""Network, patch and precision that fit a device, as probed.

``python -m brainseg_bids.programs.plan_memory REQUEST.json PLANNED.json`` plans in a process of
its own, so that the one which watches over training holds nothing of the accelerator.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.bids.description import write_json
from brainseg_bids.documents import InputError
from brainseg_bids.exit_codes import DONE, UNUSABLE
from brainseg_bids.nets import memory
from brainseg_bids.nets.devices import find_device
from brainseg_bids.nets.memory_plan import ALLOWANCES, Device, MemoryPlan, TooLittleMemory
from brainseg_bids.nets.sizes import SIZES, default_spec, patch_multiple
from brainseg_bids.nets.spec import NetSpec
from brainseg_bids.resources import memory_gib
from brainseg_bids.training import probe
from brainseg_bids.training.losses import loss_of
from brainseg_bids.training.plan import MEMORY_FIELDS
from brainseg_bids.training.probe_cache import probe_once

log = logging.getLogger("brainseg")

LONG_ENOUGH_MM = 96.0
"""A patch with a shorter edge knows too little of where it is: rather a smaller network."""
TRIES = 4
"""Memory plans that are probed before giving up."""
ERROR = "train: ERROR: "


@dataclass(frozen=True)
class MemoryRequest:
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
    def from_json(cls, text: str) -> MemoryRequest:
        raw = json.loads(text)
        return cls(**raw | {"largest_patch_mm": tuple(raw["largest_patch_mm"])})


def plan_memory_of(request: MemoryRequest) -> tuple[dict, dict]:
    """Content of ``plan.json`` and of ``memory.json``: network and patch that fit, as probed.

    Raises
    ------
    InputError
        If nothing fits, or architecture, size or device are not known.
    """
    try:
        device = find_device(request.device, host_free_gib=memory_gib())
        if device.kind == "cpu":  # all processes share its memory
            share = 1 / request.plan["devices"]
            device = replace(device, free_gib=device.free_gib * share)
            budget_gib = request.budget_gib and request.budget_gib * share
            request = replace(request, budget_gib=budget_gib)
        candidates = [NetSpec.from_dict(request.net)] if request.net else specs(request)
        spec, plans = _fitting(request, candidates, device)
    except (ValueError, ImportError) as error:  # a library that an architecture needs
        raise InputError(str(error)) from error
    planned = {"device": asdict(device), "plans": [json.loads(one.to_json()) for one in plans]}
    decided = {key: planned["plans"][-1][key] for key in MEMORY_FIELDS}
    return request.plan | {"net": spec.to_dict()} | decided, planned


def specs(request: MemoryRequest) -> list[NetSpec]:
    """The network of the size that was asked for, else of each, the largest first."""
    n_labels = len(LabelTable.packaged(request.plan["target_table"]))
    return [
        default_spec(
            request.architecture, size, n_labels=n_labels, voxel_size_mm=request.voxel_size_mm
        )
        for size in ((request.net_size,) if request.net_size else reversed(SIZES))
    ]


def _fitting(
    request: MemoryRequest, candidates: Sequence[NetSpec], device: Device
) -> tuple[NetSpec, list[MemoryPlan]]:
    """The largest network that leaves a patch long enough, and its memory plans as probed."""
    fault = None
    for spec in candidates:
        try:
            plan = _plan_of(request, spec, device)
        except TooLittleMemory as error:
            fault = error
            continue
        shortest = min(*plan.patch_vox) * request.voxel_size_mm
        wanted = min(LONG_ENOUGH_MM, *request.largest_patch_mm)
        if shortest >= wanted or spec is candidates[-1]:
            return spec, _probed(request, spec, plan, device)
    raise fault


def _plan_of(request: MemoryRequest, spec: NetSpec, device: Device) -> MemoryPlan:
    multiple = patch_multiple(spec)
    largest = [
        max(1, round(edge / request.voxel_size_mm / multiple)) * multiple
        for edge in request.largest_patch_mm
    ]
    if max(largest) == multiple:  # nothing can be normalised over a single deepest block
        largest[-1] *= 2
    return memory.plan_memory(
        spec,
        loss=loss_of(_loss_plan(request)).symbolic,
        device=device,
        budget_gib=request.budget_gib,
        precision=request.precision,
        largest_vox=tuple(largest),
        multiple=multiple,
        batch_wanted=request.batch,
        voxel_size_mm=request.voxel_size_mm,
        predicted=_predicted(request),
    )


def _predicted(request: MemoryRequest) -> memory.Predict:
    """`memory.predicted_total`, which takes seconds and imports MONAI, once for each step."""
    if not request.cache:
        return memory.predicted_total

    def predicted(spec: NetSpec, patch_vox: tuple[int, int, int], **step: Any) -> float:
        named = {name: value for name, value in step.items() if name != "loss"}
        decides = {"predicted": spec.to_dict(), "patch_vox": patch_vox, "step": named}
        predict = partial(memory.predicted_total, spec, patch_vox, **step)
        gib, _ = probe_once(Path(request.cache), decides | _conditions(request), predict)
        return predict() if gib is None else gib

    return predicted


def _loss_plan(request: MemoryRequest):
    """What `training.losses.loss_of` reads of a plan."""
    return SimpleNamespace(**request.plan)


def _probed(
    request: MemoryRequest, spec: NetSpec, plan: MemoryPlan, device: Device
) -> list[MemoryPlan]:
    """Memory plans, each with what a step took; the last one fits.

    Raises
    ------
    InputError
        If none of `TRIES` does, or the step fails.
    """
    loss, plans = _loss_plan(request), []
    while len(plans) < TRIES:
        try:
            measure = partial(_peak_gib, spec, plan, loss, request.threads)
            if request.cache:
                decides = _decides(request, spec, plan, device)
                probed_gib, is_kept = probe_once(Path(request.cache), decides, measure)
            else:
                probed_gib, is_kept = measure(), False
        except TimeoutError as error:
            log.warning("memory was not measured: %s", error)
            return [*plans, plan]
        except probe.ProbeFailed as error:
            raise InputError(str(error)) from error
        if is_kept:
            log.info("memory of a step: as measured before")
        plans.append(replace(plan, probed_gib=probed_gib))
        # The process itself comes on top of what a step takes.
        own_gib = ALLOWANCES[device.kind].context_gib
        if probed_gib is not None and probed_gib <= plan.budget_gib - own_gib:
            return plans
        took = "more than there is" if probed_gib is None else f"{probed_gib:.1f} GiB"
        log.info("a step took %s of %.1f GiB: a smaller plan", took, plan.budget_gib)
        plan = memory.smaller(plan, spec, loss=loss_of(loss).symbolic)
    raise InputError(
        f"no plan was found that fits {plan.budget_gib:.1f} GiB; the last one: {plan.describe()}. "
        "Choose a smaller network (--net-size small) or larger voxels (--target-voxel-size)."
    )


def _peak_gib(spec: NetSpec, plan: MemoryPlan, loss: object, threads: int) -> float | None:
    cost = probe.probe_step(spec, plan, loss, threads=threads)
    return cost and cost.peak_gib


def _decides(request: MemoryRequest, spec: NetSpec, plan: MemoryPlan, device: Device) -> dict:
    """All that decides what a probe measures, but code and environment."""
    return _conditions(request) | {
        "net": spec.to_dict(),
        "plan": {name: getattr(plan, name) for name in MEMORY_FIELDS if name != "accumulate"},
        "accumulates": plan.accumulate > 1,
        # What is free changes from minute to minute; it decides whether a step fits.
        "device": {key: value for key, value in asdict(device).items() if key != "free_gib"},
        "threads": request.threads,
    }


def _conditions(request: MemoryRequest) -> dict:
    """What decides the memory of every step: the loss, and the versions of libraries."""
    named = ("loss", "per_label", "anywhere", "dice_weight")
    return {
        "loss": {name: request.plan[name] for name in named},
        "versions": {
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "hip": torch.version.hip,
            "monai": metadata.version("monai"),
            "cpu": torch.backends.cpu.get_cpu_capability(),
        },
    }


def main(argv: list[str] | None = None) -> int:
    """Read a `MemoryRequest`, write plan and memory plan."""
    wanted, made = map(Path, sys.argv[1:] if argv is None else argv)
    try:
        plan, planned = plan_memory_of(MemoryRequest.from_json(wanted.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        print(f"{ERROR}{' '.join(str(error).split())}", file=sys.stderr)
        return UNUSABLE
    write_json(made, {"plan": plan, "memory": planned})
    return DONE


if __name__ == "__main__":
    raise SystemExit(main())
