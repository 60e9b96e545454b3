# SPDX-License-Identifier: Apache-2.0
"""``probe_step``: time and memory of a training step, measured in a separate process.

If this process is killed for lack of memory, or crashes in a driver, the parent is not affected.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch.autograd.graph import save_on_cpu

from brainseg_bids.lifetime import for_children
from brainseg_bids.nets.architectures import build
from brainseg_bids.nets.devices import MemoryMeter
from brainseg_bids.nets.memory_plan import MemoryPlan
from brainseg_bids.nets.memory_prediction import Step
from brainseg_bids.nets.spec import NetSpec
from brainseg_bids.training.losses import LossPlan, loss_of
from brainseg_bids.units import duration

N_STEPS = 2
"""The first step allocates the optimiser's state, the second has the full memory."""

FEW_PAIRS, LONGEST_S = 4, 120.0
"""Steps of more pairs than this are tried on a CPU only if they are expected to take less."""

OUT_OF_MEMORY, TOO_LONG = 77, 78
"""Exit codes of the probing process if the memory is not sufficient, or if it does not try."""

WARM_UP = NetSpec("unet", 2, 1, 8, {"widths": [8, 16, 32]})
"""Small network for steps before the measurement."""


class TooLong(Exception):
    """A step of one pair took so long that one of many pairs is not tried.

    Parameters
    ----------
    pair_s : float
        Seconds of a pair.
    """

    def __init__(self, pair_s: float) -> None:
        super().__init__(pair_s)
        self.pair_s = pair_s


class ProbeFailed(RuntimeError):
    """The probe failed for another reason than memory; the message is its last line of output."""


@dataclass(frozen=True)
class _Loss:
    """What `loss_of` reads, and nothing else of a plan."""

    loss: str
    per_label: int
    anywhere: int
    dice_weight: float


@dataclass(frozen=True)
class StepCost:
    """Time and peak memory of a training step.

    The time does not include the generation of pairs. Memory is that reserved by PyTorch on a GPU,
    or the resident memory on a CPU minus that of an idle process.
    """

    seconds: float
    peak_gib: float


def probe_step(
    spec: NetSpec,
    plan: MemoryPlan,
    loss: LossPlan,
    *,
    limit_s: float = 600.0,
    threads: int | None = None,
) -> StepCost | None:
    """Measured time and peak memory of training steps by a memory plan, on its device.

    Parameters
    ----------
    spec : NetSpec
    plan : MemoryPlan
    loss : LossPlan
        A `TrainPlan`, or an object with its four fields of the loss.
    limit_s : float
        Time limit; two steps on a CPU may need minutes.
    threads : int, optional
        Threads of a CPU; default: those of this process.

    Returns
    -------
    StepCost or None
        None if the memory was not sufficient.

    Raises
    ------
    TimeoutError
        If the steps exceed the time limit, or would take longer than `LONGEST_S`: on a CPU, a
        step of one pair is timed before one of more than `FEW_PAIRS`.
    ProbeFailed
        If they fail for another reason.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", "brainseg_bids.training.probe"],
            input=task_of(spec, plan, loss, threads=threads or torch.get_num_threads()),
            capture_output=True,
            text=True,
            timeout=limit_s,
            env=for_children(),
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError(
            f"no step was done in {limit_s:g} s: take a smaller network or patch"
        ) from None
    # The kernel kills with 9 whoever takes too much.
    if done.returncode in (OUT_OF_MEMORY, -9, 137):
        return None
    if done.returncode == TOO_LONG:
        raise TimeoutError(_too_long(plan.batch, plan.batch * float(done.stdout.split()[-1])))
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise ProbeFailed(f"the step tried before training failed: {lines[-1]}")
    return StepCost(*map(float, done.stdout.split()[-2:]))


def _too_long(batch: int, step_s: float) -> str:
    return (
        f"a step of {batch} pairs would take about {duration(step_s)} and is not tried. "
        "The plan is as predicted; for shorter steps take a smaller batch (--recipe) or "
        "network (--net-size)"
    )


def task_of(spec: NetSpec, plan: MemoryPlan, loss: LossPlan, *, threads: int) -> str:
    """Input of the probing process, as JSON text."""
    task = {
        "spec": spec.to_dict(),
        "plan": asdict(plan),
        "loss": {name: getattr(loss, name) for name in _Loss.__dataclass_fields__},
        "threads": threads,
    }
    return json.dumps(task)


def measure(spec: NetSpec, plan: MemoryPlan, loss: LossPlan) -> StepCost:
    """Measured time and peak memory of training steps, run in this process; see `probe_step`.

    Raises
    ------
    TooLong
        If a step of so many pairs would take too long.
    """
    # Loads libraries; of many pairs it could take longer than what is measured.
    _steps(WARM_UP, replace(plan, batch=1), loss, (32, 32, 32))
    meter = MemoryMeter(torch.device(plan.device))
    if plan.device == "cpu" and plan.batch > FEW_PAIRS:
        pair_s = _steps(spec, replace(plan, batch=1), loss, plan.patch_vox)
        if N_STEPS * plan.batch * pair_s > LONGEST_S:
            raise TooLong(pair_s)
    seconds = _steps(spec, plan, loss, plan.patch_vox)
    return StepCost(seconds, meter.peak_reserved_gib())


def _steps(
    spec: NetSpec, plan: MemoryPlan, loss: LossPlan, patch_vox: tuple[int, int, int]
) -> float:
    """Seconds of the last one."""
    device = torch.device(plan.device)
    net = build(spec).to(device).train()
    given = loss_of(loss)
    step = Step.of(
        net,
        lambda net, features, labels: given(net, features, labels, range(len(labels))),
        precision=plan.precision,
        checkpointing=plan.checkpointing,
        many=plan.device != "cpu",
    )
    image = torch.rand(plan.batch, 1, *patch_vox, device=device)
    labels = torch.randint(
        spec.n_labels, (plan.batch, *patch_vox), dtype=torch.uint8, device=device
    )
    for _ in range(N_STEPS):
        began_s = time.monotonic()
        offloaded = (
            save_on_cpu(pin_memory=device.type == "cuda") if plan.offload else nullcontext()
        )
        step.learn(image, labels, keep_gradients=plan.accumulate > 1, offloaded=offloaded)
        step.update()
        if device.type == "cuda":
            torch.cuda.synchronize()
    return time.monotonic() - began_s


def _be_killed_first() -> None:
    """If memory runs out, this process goes and not the one that asked."""
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")
    except OSError:
        return


def main() -> int:
    """Read the task from standard input, and write seconds and GiB to standard output."""
    task = json.loads(sys.stdin.read())
    _be_killed_first()
    torch.set_num_threads(task["threads"])
    spec = NetSpec.from_dict(task["spec"])
    plan = MemoryPlan.from_json(json.dumps(task["plan"]))
    try:
        cost = measure(spec, plan, _Loss(**task["loss"]))
    except TooLong as found:
        print(found.pair_s)
        return TOO_LONG
    except (torch.OutOfMemoryError, MemoryError):
        return OUT_OF_MEMORY
    except RuntimeError as error:
        # PyTorch's allocator on CPUs raises no class of its own.
        if "can't allocate memory" not in str(error):
            raise
        return OUT_OF_MEMORY
    print(cost.seconds, cost.peak_gib)
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # some drivers hang while they unload
