# SPDX-License-Identifier: Apache-2.0
"""Seconds and peak memory of a whole head: a model of ours and brainchop's MeshNet.

Each run is a process of its own, image file to label file, Python's start included; the
programs take turns. This program imports neither, because a child's peak memory would begin
at its parent's.

``python -m benchmarks.inference --model FOLDER --image T1.mgz --threads 2 --repeats 3``
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.data import shared_data


def run(command: list[str]) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds, peak resident GiB of a program that has to succeed."""
    start = time.monotonic()
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(command, stdout=log, stderr=log)
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode != 0:
            log.seek(0)
            sys.exit(log.read().decode(errors="replace"))
    return time.monotonic() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20


def commands(options: argparse.Namespace, folder: Path) -> dict[str, list[str]]:
    """What is compared, by name."""
    common = ["--image", options.image, "--threads", str(options.threads)]
    ours = [
        sys.executable,
        "-m",
        "brainseg_bids.programs.segment",
        *common,
        "--model",
        options.model,
    ]
    ours += ["--device", "cpu", "--labels", folder / "a.nii.gz", "--report", folder / "a.json"]
    theirs = [sys.executable, "-m", "benchmarks.meshnet", *common]
    theirs += ["--labels", folder / "b.nii.gz", "--model", options.rival]
    return {
        "ours": ours,
        f"{options.rival}, float32": theirs,
        f"{options.rival}, bfloat16": [*theirs, "--bf16"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="packaged model's name or a model folder")
    parser.add_argument("--rival", default="model30chan18cls")
    parser.add_argument("--image", type=Path, help="by default the ECoG subject, 256³ at 1 mm")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    options.image = options.image or shared_data() / "mne_sample_ecog" / "T1.mgz"
    # Waiting threads would otherwise burn CPU time that no work is done in.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with tempfile.TemporaryDirectory() as folder:
        programs = commands(options, Path(folder))
        found = {name: [] for name in programs}
        for turn in range(options.repeats):
            for name, command in programs.items():
                found[name].append(run(command))
                print(f"{turn + 1}/{options.repeats} {name}: {found[name][-1]}", file=sys.stderr)
    print(f"\n{options.image.name}, {options.threads} threads, medians of {options.repeats}\n")
    print("| program | wall s | CPU-s | x ours (CPU) | peak GiB |\n|---|---|---|---|---|")
    first = statistics.median(cpu for _, cpu, _ in found["ours"])
    for name, rows in found.items():
        wall, cpu, peak = (statistics.median(values) for values in zip(*rows, strict=True))
        print(f"| {name} | {wall:.1f} | {cpu:.1f} | {cpu / first:.2f} | {peak:.2f} |")


if __name__ == "__main__":
    main()
