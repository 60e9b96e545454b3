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


def ends(monkeypatch, code: int, stderr: str = "") -> None:
    def run(command, **options):
        return subprocess.CompletedProcess(command, code, "", stderr)

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
