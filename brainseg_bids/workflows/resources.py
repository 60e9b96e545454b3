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


def memory_limit_gib(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> float | None:
    """What a control group (of a container or a batch job) allows, if anything limits it.

    Parameters
    ----------
    root : Path
        Where control groups are mounted.
    own : Path
        File that says which of them this process is in.
    """
    limits = []
    for folder in _groups(root, own):
        for name in ("memory.max", "memory.limit_in_bytes"):  # versions 2 and 1
            try:
                limits.append(int((folder / name).read_text()))
            except (OSError, ValueError):  # not there, or "max"
                continue
    limit = min(limits, default=UNLIMITED_BYTES)
    return limit / 2**30 if limit < UNLIMITED_BYTES else None


def _groups(root: Path, own: Path) -> list[Path]:
    """The process's groups and all above them; a limit of any counts."""
    folders = [root, root / "memory"]
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return folders
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        folder = (root / "memory" if controllers else root) / place.lstrip("/")
        while folder != root and root in folder.parents:
            folders.append(folder)
            folder = folder.parent
    return folders


def memory_gib() -> float:
    """What this process may use."""
    return min(total_memory_gib(), memory_limit_gib() or float("inf"))
