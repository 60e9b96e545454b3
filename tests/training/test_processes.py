# SPDX-License-Identifier: Apache-2.0
"""Real processes: several train as one would, signals and kills lose nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from brainseg_bids.training.fit import fit
from brainseg_bids.training.processes import check_equal
from brainseg_bids.training.resume import steps_done
from tests.training.tiny import FOUR, TINY, difference, read_state, tiny_head, write_inputs

PATIENCE_S = 120
HEADS = ([tiny_head()], [tiny_head((26, 28, 26))])


def start(arguments: list[str], folder: Path, **environ: str) -> subprocess.Popen:
    """Training in a process of its own, once it has left a checkpoint."""
    own = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"} | environ
    command = [sys.executable, "-m", "brainseg_bids.programs.train", *arguments, "--threads", "1"]
    with (folder / "said.txt").open("w") as said:
        process = subprocess.Popen(
            command, env=os.environ | own, stdout=said, stderr=said, start_new_session=True
        )
    until = time.monotonic() + PATIENCE_S
    while not (folder / "out" / "last.ckpt").exists():
        if process.poll() is not None or time.monotonic() > until:
            process.kill()
            pytest.fail((folder / "said.txt").read_text())
        time.sleep(0.02)
    return process


def trainer_of_two(first: dict, *, other_differs: bool):
    """What one of two processes sees of its trainer."""
    strategy = SimpleNamespace(
        broadcast=lambda _: first,
        reduce=lambda votes, reduce_op: votes + float(other_differs),
        root_device=torch.device("cpu"),
    )
    return SimpleNamespace(world_size=2, strategy=strategy)


@pytest.mark.input(
    "training",
    "a label map that changes between the start of one training process and of the next",
    "refused by all processes",
    2,
)
def test_processes_that_read_different_maps_do_not_train_together():
    first, second = {"label_maps": ["a"]}, {"label_maps": ["b"]}
    check_equal(trainer_of_two(first, other_differs=False), first)
    for own, other_differs in ((second, False), (first, True)):
        with pytest.raises(ValueError, match="label maps"):
            check_equal(trainer_of_two(first, other_differs=other_differs), own)


@pytest.fixture(scope="module")
def told_to_stop(tmp_path_factory) -> Path:
    """A run of two processes under a stand-in for Slurm, after SIGUSR1."""
    folder = tmp_path_factory.mktemp("two")
    scontrol = folder / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {folder}/asked.txt\n')
    scontrol.chmod(0o755)
    arguments = write_inputs(folder, replace(FOUR, accumulate=1, devices=2, validation_pairs=3))
    process = start(
        arguments,
        folder,
        PATH=f"{scontrol.parent}{os.pathsep}{os.environ['PATH']}",
        SLURM_JOB_ID="42",
        BRAINSEG_REQUEUE="1",
    )
    process.send_signal(signal.SIGUSR1)
    process.wait(PATIENCE_S)
    (folder / "code.txt").write_text(str(process.returncode))
    return folder


@pytest.mark.slow
def test_a_signal_ends_all_processes_after_a_checkpoint_and_the_job_goes_back(told_to_stop):
    said = (told_to_stop / "said.txt").read_text()
    assert (told_to_stop / "code.txt").read_text() == "75", said
    done = steps_done(told_to_stop / "out" / "last.ckpt")
    assert said.count(f"stopped by SIGUSR1 after step {done}, which is saved") == 1
    assert (told_to_stop / "asked.txt").read_text() == "requeue 42\n"


@pytest.mark.slow
def test_two_processes_train_to_the_weights_of_one_with_the_same_pairs(told_to_stop, tmp_path):
    checkpoint = told_to_stop / "out" / "last.ckpt"
    done = steps_done(checkpoint)
    fit(FOUR, *HEADS, tmp_path / "one", until_step=done)
    one, two = read_state(tmp_path / "one" / "last.ckpt"), read_state(checkpoint)
    assert difference(one, two) < 1e-5
    # A run of other pairs is far away, so that the line above says something.
    fit(replace(FOUR, accumulate=1), *HEADS, tmp_path / "fewer", until_step=done)
    assert difference(read_state(tmp_path / "fewer" / "last.ckpt"), two) > 1e-3


@pytest.mark.slow
def test_a_run_ends_after_all_its_processes(tmp_path):
    arguments = write_inputs(tmp_path, replace(TINY, devices=2, total_steps=4))
    process = start(arguments, tmp_path)
    assert process.wait(PATIENCE_S) == 0
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_after_a_kill_a_run_goes_on_to_the_same_weights_bit_by_bit(tmp_path):
    process = start(write_inputs(tmp_path, TINY), tmp_path)
    process.kill()
    assert process.wait(PATIENCE_S) == -signal.SIGKILL
    done = steps_done(tmp_path / "out" / "last.ckpt")
    fit(TINY, *HEADS, tmp_path / "out", until_step=done + 3)
    fit(TINY, *HEADS, tmp_path / "unbroken", until_step=done + 3)
    resumed, unbroken = (read_state(tmp_path / d / "last.ckpt") for d in ("out", "unbroken"))
    assert difference(resumed, unbroken) == 0
