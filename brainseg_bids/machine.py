# SPDX-License-Identifier: Apache-2.0
"""What this machine has and this process takes: cores, memory, bfloat16. Without PyTorch."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

_MAXRSS_GIB = 2**-30 if sys.platform == "darwin" else 2**-20
"""Unit of ``getrusage``: bytes on macOS, KiB elsewhere."""


def allowed_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def host_memory_gib(meminfo: Path = Path("/proc/meminfo")) -> tuple[float, float]:
    """Memory of the machine, and what is free of it, GiB."""
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        total, free = (int(lines[key].split()[0]) for key in ("MemTotal", "MemAvailable"))
        return total / 2**20, free / 2**20
    except (OSError, KeyError):  # not Linux: count all as free; a budget or limit says better
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
        return total, total


def resident_gib(what: str = "VmHWM") -> float:
    """Memory of this process, GiB: now ("VmRSS"), or at most since it began ("VmHWM").

    Where there is no ``/proc`` it is 0 now, and at most what ``getrusage`` says: on Linux that
    number begins at the parent's, which may be large.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 2**20
    except (OSError, StopIteration):
        if what == "VmRSS":
            return 0.0
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_GIB


def cpu_has_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor says that it computes in bfloat16 (`nets.devices` asks PyTorch)."""
    try:
        return "avx512_bf16" in cpuinfo.read_text()
    except OSError:  # another system than Linux
        return False
