# SPDX-License-Identifier: Apache-2.0
"""What this machine has and this process takes: cores, memory, bfloat16. Without PyTorch."""

from __future__ import annotations

import math
import os
import resource
import sys
from pathlib import Path

_MAXRSS_GIB = 2**-30 if sys.platform == "darwin" else 2**-20
"""Unit of ``getrusage``: bytes on macOS, KiB elsewhere."""


CONTROL_GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
"""Where control groups (of a container or a batch job) are mounted, and the file that says which
of them this process is in."""
UNLIMITED_BYTES = 2**60
"""A control group that limits nothing says a number beyond this."""


def allowed_cores(root: Path = CONTROL_GROUPS, own: Path = OWN_GROUPS) -> int:
    """Cores that this process may use, or as many as its share of processor time is worth.

    A container's share (``docker run --cpus 2``) does not change which cores there are.

    Parameters
    ----------
    root, own : Path
        See `CONTROL_GROUPS` and `OWN_GROUPS`.
    """
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    shares = [_cpu_share(folder) for folder in _groups("cpu", root, own)]
    return max(1, math.ceil(min(cores, *shares)))


def _cpu_share(folder: Path) -> float:
    """Processors that a control group allows; infinite if it limits nothing."""
    try:  # version 2
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:  # version 1
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            quota, period = ((folder / name).read_text().strip() for name in names)
        except OSError:
            return math.inf
    try:
        share = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # "max"
        return math.inf
    return share if share > 0 else math.inf  # -1


def memory_limit_gib(root: Path = CONTROL_GROUPS, own: Path = OWN_GROUPS) -> float | None:
    """What a control group (of a container or a batch job) allows, if anything limits it.

    Parameters
    ----------
    root, own : Path
        See `CONTROL_GROUPS` and `OWN_GROUPS`.
    """
    limits = []
    for folder in _groups("memory", root, own):
        for name in ("memory.max", "memory.limit_in_bytes"):  # versions 2 and 1
            try:
                limits.append(int((folder / name).read_text()))
            except (OSError, ValueError):  # not there, or "max"
                continue
    limit = min(limits, default=UNLIMITED_BYTES)
    return limit / 2**30 if limit < UNLIMITED_BYTES else None


def _groups(controller: str, root: Path, own: Path) -> list[Path]:
    """The process's groups of a controller and all above them; a limit of any counts."""
    folders = [root, root / controller]
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return folders
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        folder = (root / controller if controllers else root) / place.lstrip("/")
        while folder != root and root in folder.parents:
            folders.append(folder)
            folder = folder.parent
    return folders


def host_memory_gib(meminfo: Path = Path("/proc/meminfo")) -> tuple[float, float]:
    """Memory of the machine, and what is free of it, GiB; at most what a control group allows."""
    limit = memory_limit_gib() or math.inf
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        total, free = (int(lines[key].split()[0]) for key in ("MemTotal", "MemAvailable"))
        return min(total / 2**20, limit), min(free / 2**20, limit)
    except (OSError, KeyError):  # not Linux: count all as free; a budget or limit says better
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
        return min(total, limit), min(total, limit)


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
