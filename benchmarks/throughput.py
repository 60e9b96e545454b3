# SPDX-License-Identifier: Apache-2.0
"""Many heads in one job against one job each: heads per CPU-hour, and whether labels are the same.

``python -m benchmarks.throughput BIDS_DIR --work SCRATCH [--nprocs N] [-- FLAGS]``

CPU seconds are those of all processes that a run starts, of the app's own, of Nipype's workers
and of the network. Linux only.
"""

from __future__ import annotations

import argparse
import ctypes
import filecmp
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

PR_SET_CHILD_SUBREAPER = 36


class Cost(NamedTuple):
    """What some runs took, all their processes together."""

    wall_s: float
    cpu_s: float


def measured(command: Sequence[str]) -> Cost:
    """Run a command to the end of all processes that it has started.

    Raises
    ------
    SystemExit
        If it fails.
    """
    # Whatever outlives its parent becomes a child of this process, which is told what it took.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    before, began_s = _children_s(), time.monotonic()
    done = subprocess.run(command, stdout=subprocess.DEVNULL)
    wall_s = time.monotonic() - began_s
    while True:
        try:
            os.wait()
        except ChildProcessError:
            break
    if done.returncode:
        raise SystemExit(f"exit code {done.returncode} of {' '.join(command)}")
    return Cost(wall_s, _children_s() - before)


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bids_dir", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="scratch folder, must be new")
    parser.add_argument("--nprocs", type=int, default=1)
    parser.add_argument("--only", choices=("single", "together"))
    parser.add_argument("flags", nargs="*", help="of brainseg, after --")
    options = parser.parse_args()
    labels = sorted(path.name[4:] for path in options.bids_dir.glob("sub-*"))
    costs = {}
    for how, groups in (("single", [[label] for label in labels]), ("together", [labels])):
        if options.only in (None, how):
            costs[how] = _run_all(how, groups, options)
    print("| jobs | wall s | CPU-s | heads per CPU-hour |\n|---|---|---|---|")
    for how, cost in costs.items():
        n_jobs = len(labels) if how == "single" else 1
        rate = 3600 * len(labels) / cost.cpu_s
        print(f"| {n_jobs} | {cost.wall_s:.0f} | {cost.cpu_s:.1f} | {rate:.0f} |")
    if options.only is None:
        print("labels differ:", _differing(options.work) or "nowhere")


def _run_all(how: str, groups: list[list[str]], options: argparse.Namespace) -> Cost:
    costs = []
    for index, labels in enumerate(groups):
        work = options.work / "scratch" / f"{how}_{index}"
        words = [str(options.bids_dir), str(options.work / how), "participant", "-w", str(work)]
        words += ["--participant-label", *labels, "--nprocs", str(options.nprocs)]
        costs.append(measured([sys.executable, "-m", "brainseg_bids", *words, *options.flags]))
        print(f"{how} {index}: {costs[-1].cpu_s:.1f} CPU-s", file=sys.stderr)
    return Cost(*map(sum, zip(*costs, strict=True)))


def _differing(work: Path) -> list[str]:
    """Label maps that are not the same, byte for byte."""
    maps = [path.relative_to(work / "single") for path in work.glob("single/**/*_dseg.nii.gz")]
    assert maps
    return [
        str(path)
        for path in maps
        if not filecmp.cmp(work / "single" / path, work / "together" / path, shallow=False)
    ]


if __name__ == "__main__":
    main()
