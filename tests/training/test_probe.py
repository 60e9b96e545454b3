# SPDX-License-Identifier: Apache-2.0
"""A real step is measured in another process; whatever happens there is an answer."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, replace

import pytest

from brainseg_bids.nets.memory_plan import MemoryPlan
from brainseg_bids.nets.memory_prediction import predict_gib
from brainseg_bids.nets.spec import NetSpec
from brainseg_bids.training import probe
from brainseg_bids.training.losses import loss_of
from brainseg_bids.training.probe import OUT_OF_MEMORY, ProbeFailed, probe_step

SPEC = NetSpec("unet", 9, 2, 16, {"widths": [32, 32, 32]})
PLAN = MemoryPlan((96, 96, 96), 1, 1, "32-true", False, False, False, 8.0, 1.0, "cpu", "because")


@dataclass(frozen=True)
class Loss:
    loss: str = "dense"
    per_label: int = 20
    anywhere: int = 100
    dice_weight: float = 0.7


def ends(monkeypatch, code: int, stderr: str = "", stdout: str = "") -> None:
    def run(command, **options):
        return subprocess.CompletedProcess(command, code, stdout, stderr)

    monkeypatch.setattr(probe.subprocess, "run", run)


@pytest.mark.slow
def test_measured_and_predicted_memory_agree():
    """A patch so large that its tensors count, and not what a heap happens to keep (0.04 GiB)."""
    plan = replace(PLAN, patch_vox=(160, 160, 160))
    found = probe_step(SPEC, plan, Loss(), threads=1).peak_gib
    predicted = predict_gib(
        SPEC, plan.patch_vox, loss=loss_of(Loss()).symbolic, batch=1, precision="32-true"
    ).total
    assert found == pytest.approx(predicted, rel=0.3)


def test_out_of_memory_is_an_answer(monkeypatch):
    for code in (OUT_OF_MEMORY, -9, 137):
        ends(monkeypatch, code)
        assert probe_step(SPEC, PLAN, Loss()) is None


def test_a_patch_beyond_all_memory_is_out_of_memory(monkeypatch, capsys):
    def fail(*arguments):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ...")

    monkeypatch.setattr(probe, "measure", fail)
    monkeypatch.setattr(probe, "_be_killed_first", lambda: None)
    monkeypatch.setattr(probe.torch, "set_num_threads", lambda n: None)
    task = probe.task_of(SPEC, PLAN, Loss(), threads=1)
    monkeypatch.setattr(probe.sys.stdin, "read", lambda: task, raising=False)
    assert probe.main() == OUT_OF_MEMORY
    assert capsys.readouterr().out == ""


def test_another_failure_is_told_by_its_last_line(monkeypatch):
    ends(monkeypatch, 1, "Traceback\nValueError: no such thing\n")
    with pytest.raises(ProbeFailed, match="ValueError"):
        probe_step(SPEC, PLAN, Loss())


def test_a_step_that_takes_too_long_is_ended():
    with pytest.raises(TimeoutError, match="smaller network"):
        probe_step(SPEC, PLAN, Loss(), limit_s=0.2)


@pytest.mark.parametrize(("batch", "tried"), [(4, [4]), (15, [1, 15]), (256, [1])])
def test_many_pairs_are_not_tried_on_a_cpu_if_one_says_that_it_is_hopeless(
    monkeypatch, batch, tried
):
    steps = []

    def timed(spec, plan, loss, patch_vox):
        steps.append(plan.batch)
        return 3.0 * plan.batch

    monkeypatch.setattr(probe, "_steps", timed)
    plan = replace(PLAN, batch=batch)
    if tried == [1]:
        with pytest.raises(probe.TooLong):
            probe.measure(SPEC, plan, Loss())
    else:
        assert probe.measure(SPEC, plan, Loss()).seconds == 3.0 * batch
    assert steps[1:] == tried  # after the warm-up


def test_a_hopeless_step_is_told_with_its_time_and_a_remedy(monkeypatch):
    ends(monkeypatch, probe.TOO_LONG, stdout="3.0")
    with pytest.raises(TimeoutError, match=r"256 pairs .* 13 min .*--net-size"):
        probe_step(SPEC, replace(PLAN, batch=256), Loss())


@pytest.mark.input(
    "training",
    "so many pairs per step on a CPU that trying one would take minutes",
    "one pair is timed; a warning says how long a step takes, and that memory is as predicted",
    0,
)
def test_a_real_probe_of_many_pairs_ends_early():
    plan = replace(PLAN, patch_vox=(64, 64, 64), batch=100_000)
    with pytest.raises(TimeoutError, match="100000 pairs"):
        probe_step(SPEC, plan, Loss(), threads=1, limit_s=300)
