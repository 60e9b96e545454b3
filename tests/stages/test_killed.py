# SPDX-License-Identifier: Apache-2.0
"""Nothing that the app has started outlives it, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from brainseg_bids.images import write_volume
from tests.fakes import dataset
from tests.fakes.tools import fake_command
from tests.phantom.head import phantom_head, phantom_image

APP = (
    "import sys; from brainseg_bids.cli.parser import parse\n"
    "from brainseg_bids.cli.run import run; sys.exit(run(parse(sys.argv[1:])))"
)


def descendants(process: subprocess.Popen) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still run; what nobody has waited for does not."""
    found = []
    for process in processes:
        try:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def wait_until(true, within_s: float) -> bool:
    until_s = time.monotonic() + within_s
    while not (done := true()) and time.monotonic() < until_s:
        time.sleep(0.2)
    return bool(done)


@pytest.mark.slow
def test_workers_and_tools_end_when_the_app_is_killed(tmp_path):
    (image,) = sorted(dataset.write_dataset(tmp_path / "data", "sub-01_T1w").rglob("*.nii.gz"))
    head = phantom_head()
    write_volume(phantom_image(head, np.random.default_rng(1)), head.grid, image)
    arguments = [
        tmp_path / "data", tmp_path / "out", "participant", "-w", tmp_path / "work",
        "--model", dataset.write_bundle(tmp_path / "model"),
        "--stages", "headlabels", "--head-tool", "samseg",
        "--tool", f"samseg={fake_command('samseg', 'hang')}",
    ]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", APP, *map(str, arguments)],
        cwd=Path(__file__).parents[2], start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    started: list[psutil.Process] = []
    try:
        assert wait_until(lambda: list(tmp_path.rglob("hanging.pids")), within_s=90)
        assert wait_until(lambda: next(tmp_path.rglob("hanging.pids")).read_text(), within_s=5)
        started = descendants(process)
        pids = next(tmp_path.rglob("hanging.pids")).read_text().split()
        assert {int(pid) for pid in pids} <= {child.pid for child in started}
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert wait_until(lambda: not alive(started), within_s=30), alive(started)
    finally:
        for left in alive([psutil.Process(process.pid)] if process.poll() is None else []):
            left.kill()
        for left in alive(started):
            left.kill()
