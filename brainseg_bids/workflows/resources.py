# SPDX-License-Identifier: Apache-2.0
"""What the machine, or the share of it that a job was given, has."""

from __future__ import annotations

from pathlib import Path

import psutil

UNLIMITED_BYTES = 2**60
"""A control group that limits nothing says a number beyond this."""


def total_memory_gib() -> float:
    """Memory of the machine."""
    return psutil.virtual_memory().total / 2**30


def memory_limit_gib(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """What a control group (of a container or a batch job) allows, if anything limits it."""
    for path in (root / "memory.max", root / "memory" / "memory.limit_in_bytes"):
        try:
            limit = int(path.read_text())
        except (OSError, ValueError):  # not there, or "max"
            continue
        return limit / 2**30 if limit < UNLIMITED_BYTES else None
    return None


def memory_gib() -> float:
    """What this process may use."""
    return min(total_memory_gib(), memory_limit_gib() or float("inf"))
