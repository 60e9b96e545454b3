# SPDX-License-Identifier: Apache-2.0
"""What the machine, or the share of it that a job was given, has."""

from __future__ import annotations

from pathlib import Path

import psutil

CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),  # version 2
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),  # version 1
)


def memory_gb() -> float:
    """Memory that this process may use, GiB: the machine's, or less if a container or a batch
    job has a limit.
    """
    there = [psutil.virtual_memory().total]
    for path in CGROUP_LIMITS:
        try:
            there.append(int(path.read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return min(there) / 2**30
