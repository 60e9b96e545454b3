# SPDX-License-Identifier: Apache-2.0
"""``probe_gib``: what a training step really takes, measured in a process of its own.

A process that is killed for its memory, or crashes in a driver, leaves its parent unharmed: that
is an answer, too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.autograd.graph import save_on_cpu

from brainseg_bids.lifetime import for_children
from brainseg_bids.nets.architectures import NetSpec, build
from brainseg_bids.nets.memory import GIB, MemoryPlan, Step
from brainseg_bids.training.losses import LossPlan, loss_of

N_STEPS = 2
"""The first makes the optimiser's state, the second has all at once."""

OUT_OF_MEMORY = 77
"""Exit code of the probe's process."""

WARM_UP = NetSpec("unet", 2, 1, 8, {"widths": [8, 16, 32]})
"""Small network whose steps are not measured."""


class ProbeFailed(RuntimeError):
    """The probe ended, but not for want of memory: the last line of what it said."""


@dataclass(frozen=True)
class _Loss:
    """What `loss_of` reads, and nothing else of a plan."""

    loss: str
    per_label: int
    anywhere: int
    dice_weight: float


def probe_gib(
    spec: NetSpec,
    plan: MemoryPlan,
    loss: LossPlan,
    *,
    limit_s: float = 600.0,
    threads: int | None = None,
) -> float | None:
    """Peak memory of real steps by a plan, on its device.

    Parameters
    ----------
    spec : NetSpec
    plan : MemoryPlan
    loss : LossPlan
        A `TrainPlan`, or anything with its four fields on the loss.
    limit_s : float
        Time that the steps may take; two of a CPU may need minutes.
    threads : int, optional
        Of a CPU; by default as many as this process has.

    Returns
    -------
    float or None
        GiB that PyTorch reserved on a GPU, or resident memory beyond that of an idle process on a
        CPU. None if it was not enough.

    Raises
    ------
    TimeoutError
        If the steps took too long.
    ProbeFailed
        If they failed in another way.
    """
    said = _tried(spec, plan, loss, limit_s=limit_s, threads=threads)
    return None if said is None else said[1]


def step_seconds(
    spec: NetSpec,
    plan: MemoryPlan,
    loss: LossPlan,
    *,
    limit_s: float = 600.0,
    threads: int | None = None,
) -> float | None:
    """Seconds of a real step of one batch, whose pairs are there already; as `probe_gib`."""
    said = _tried(spec, plan, loss, limit_s=limit_s, threads=threads)
    return None if said is None else said[0]


def _tried(
    spec: NetSpec, plan: MemoryPlan, loss: LossPlan, *, limit_s: float, threads: int | None
) -> tuple[float, float] | None:
    """Seconds of the last step, and GiB; None if memory was not enough."""
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
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise ProbeFailed(f"the step tried before training failed: {said[-1]}")
    seconds, gib = done.stdout.split()[-2:]
    return float(seconds), float(gib)


def task_of(spec: NetSpec, plan: MemoryPlan, loss: LossPlan, *, threads: int) -> str:
    """What the process reads, as JSON."""
    task = {
        "spec": asdict(spec),
        "plan": asdict(plan),
        "loss": {name: getattr(loss, name) for name in _Loss.__dataclass_fields__},
        "threads": threads,
    }
    return json.dumps(task)


def measure(spec: NetSpec, plan: MemoryPlan, loss: LossPlan) -> tuple[float, float]:
    """Run the steps here and now: seconds of the last one, and GiB.

    See `probe_gib`, which does so in another process.
    """
    device = torch.device(plan.device)
    _steps(WARM_UP, plan, loss, (32, 32, 32))  # loads libraries
    meter = _Meter(device)
    seconds = _steps(spec, plan, loss, plan.patch_vox)
    return seconds, meter.peak_gib()


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


class _Meter:
    """Highest memory from now on."""

    def __init__(self, device: torch.device) -> None:
        self.kind = device.type
        if self.kind == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        elif self.kind == "cpu":
            # Forgets the highest resident size so far (Linux: proc_pid_clear_refs(5)).
            Path("/proc/self/clear_refs").write_text("5")
            self.start_gib = _resident_gib("VmRSS")

    def peak_gib(self) -> float:
        if self.kind == "cuda":
            return torch.cuda.max_memory_reserved() / GIB
        if self.kind == "mps":
            return torch.mps.driver_allocated_memory() / GIB
        return _resident_gib("VmHWM") - self.start_gib


def _resident_gib(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024 / GIB
    raise ProbeFailed(f"/proc/self/status has no {field}")


def _be_killed_first() -> None:
    """If memory runs out, this process goes and not the one that asked."""
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")
    except OSError:
        return


def main() -> int:
    """Read a task from standard input, write GiB to standard output."""
    task = json.loads(sys.stdin.read())
    _be_killed_first()
    torch.set_num_threads(task["threads"])
    spec = NetSpec(**task["spec"])
    plan = MemoryPlan.from_json(json.dumps(task["plan"]))
    try:
        seconds, peak_gib = measure(spec, plan, _Loss(**task["loss"]))
    except (torch.OutOfMemoryError, MemoryError):
        return OUT_OF_MEMORY
    except RuntimeError as error:
        # PyTorch's allocator on CPUs raises no class of its own.
        if "can't allocate memory" not in str(error):
            raise
        return OUT_OF_MEMORY
    print(seconds, peak_gib)
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # some drivers hang while they unload
