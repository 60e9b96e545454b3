# SPDX-License-Identifier: Apache-2.0
"""How long a training will take, for ``--plan-only``."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from brainseg_bids.cli.train_job import JobPlan
from brainseg_bids.settings import Settings
from brainseg_bids.stages.jobs import read_object
from brainseg_bids.training.deadline import planned_steps
from brainseg_bids.units import duration


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
        return f"time: it ends by itself after {settings.minutes:g} min (--minutes)"
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
    from brainseg_bids.reports.training_log import read_job

    try:
        pairs_per_s = read_job(job.folder).log["pairs_per_s"].finite().values
    except (OSError, ValueError, KeyError):
        return None
    if not len(pairs_per_s) or np.median(pairs_per_s) <= 0:
        return None
    pairs = plan["batch"] * plan["accumulate"] * plan["devices"] * plan["nodes"]
    return pairs / float(np.median(pairs_per_s))


def _tried_s(job: JobPlan, plan: dict, settings: Settings) -> float | None:
    """Seconds of a step that is tried now, without making its pairs."""
    from brainseg_bids.nets.memory_plan import MemoryPlan
    from brainseg_bids.nets.spec import NetSpec
    from brainseg_bids.training import probe

    memory = MemoryPlan.from_json(json.dumps(_in_force(job)))
    try:
        cost = probe.probe_step(
            NetSpec.from_dict(plan["net"]),
            memory,
            SimpleNamespace(**plan),
            threads=max(1, settings.nprocs // plan["devices"]),
        )
    except (TimeoutError, probe.ProbeFailed):
        return None
    return cost and cost.seconds * plan["accumulate"]


def _in_force(job: JobPlan) -> dict:
    return read_object(job.training / "memory.json")["plans"][-1]


def _on_gpu(job: JobPlan) -> bool:
    return _in_force(job).get("device") not in (None, "cpu")
