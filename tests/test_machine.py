# SPDX-License-Identifier: Apache-2.0
"""What a container or a batch job allows of a machine."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from brainseg_bids import machine

MEMINFO = f"MemTotal: {64 * 2**20} kB\nMemAvailable: {48 * 2**20} kB\n"


def group(root: Path, file: str, text: str) -> Path:
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("file", "text", "limit_gib"),
    [
        ("memory.max", f"{16 * 2**30}\n", 16),
        ("memory.max", "max\n", None),
        ("memory/memory.limit_in_bytes", f"{8 * 2**30}\n", 8),
        ("memory/memory.limit_in_bytes", "9223372036854771712\n", None),
        ("other", "", None),
    ],
)
def test_memory_limits_of_containers_are_read(tmp_path, file, text, limit_gib):
    assert machine.memory_limit_gib(group(tmp_path, file, text)) == limit_gib


def test_memory_of_the_machine_is_no_more_than_the_limit(tmp_path, monkeypatch):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(MEMINFO)
    for limit_gib, seen in ((None, (64, 48)), (50.0, (50, 48)), (8.0, (8, 8))):
        monkeypatch.setattr(machine, "memory_limit_gib", lambda limit=limit_gib: limit)
        assert machine.host_memory_gib(meminfo) == seen


@pytest.mark.parametrize(
    ("files", "share"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "10000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, math.inf),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        # That of the job counts, not only that of the step.
        ({"job/cpu.max": "200000 100000\n", "job/step/cpu.max": "max 100000\n"}, 2),
        ({}, math.inf),
    ],
)
def test_a_share_of_processor_time_limits_the_cores(tmp_path, monkeypatch, files, share):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    for file, text in files.items():
        group(tmp_path / "root", file, text)
    own = tmp_path / "own"
    own.write_text("0::/job/step\n")
    assert machine.allowed_cores(tmp_path / "root", own) == min(8, share)
