# SPDX-License-Identifier: Apache-2.0
"""The log of the packaged models' training: which bundle came of what, and what it is worth.

``python -m benchmarks.released_log start --log FILE --bundles FOLDER`` prints the model to go on
from; ``… steps --run TRAINING`` the steps behind a checkpoint; ``… add`` appends a line.
`benchmarks/released/continue.sh` calls all three.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import math
import sys
from pathlib import Path

import numpy as np

from brainseg_bids.exit_codes import DONE, UNUSABLE
from brainseg_bids.nets.bundle import BundleError, ModelBundle, find_bundle

COLUMNS = (
    "date",
    "processor",
    "start_bundle",
    "bundle",
    "steps",
    "pairs",
    "minutes",
    "cpu_s",
    "recipe",
    "dice_brain",
    "dice_head",
)
FIRST = "head-1mm"
"""Packaged model to begin from where nothing was logged."""
FAST = ("amx_bf16", "avx512_bf16")
"""What of a processor's features decides most about the time of a step."""


def read_log(path: Path) -> list[dict[str, str]]:
    """Lines of the log, oldest first; none if there is no such file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def start(log: Path, bundles: Path) -> str:
    """Folder of the latest bundle of the log that is here and whole, else `FIRST`."""
    for row in reversed(read_log(log)):
        folder = bundles / row["bundle"]
        try:
            if ModelBundle.read(folder).digest.startswith(row["bundle"]):
                return str(folder)
        except BundleError as error:
            if folder.exists():
                print(f"{error} Left out.", file=sys.stderr)
    return FIRST


def processor(cpuinfo: str, device: dict) -> str:
    """Name of what was trained on, and whether it is fast in bfloat16.

    >>> processor("model name : Some CPU\\nflags : fpu avx512_bf16", {"kind": "cpu"})
    'Some CPU, avx512_bf16'
    >>> processor("", {"kind": "cuda", "name": "Some GPU"})
    'Some GPU'
    """
    if device.get("kind", "cpu") != "cpu":
        return device["name"]
    said = dict(
        (part.strip() for part in line.split(":", 1))
        for line in cpuinfo.splitlines()
        if ":" in line
    )
    features = set(said.get("flags", "").split())
    return ", ".join([said.get("model name", "CPU"), *(name for name in FAST if name in features)])


def line(options: argparse.Namespace) -> dict[str, str]:
    """What one run came to, by column."""
    manifest = json.loads((options.bundle / "bundle.json").read_text(encoding="utf-8"))
    plan, steps = manifest["training"]["plan"], manifest["training"]["steps"]
    per_step = math.prod(plan[part] for part in ("batch", "accumulate", "devices", "nodes"))
    wall_s, *cpu_s = map(float, options.used)
    memory = json.loads((options.run / "memory.json").read_text(encoding="utf-8"))
    cpuinfo = Path("/proc/cpuinfo")
    scores = {name: [float(row[name]) for row in read_log(options.scores)] for name in PARTS}
    began = ModelBundle.read(find_bundle(options.start))
    done = steps - options.steps_before
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "processor": processor(
            cpuinfo.read_text(encoding="utf-8") if cpuinfo.is_file() else "", memory["device"]
        ),
        "start_bundle": began.digest[:12],
        "bundle": ModelBundle.read(options.bundle).digest[:12],
        "steps": str(done),
        "pairs": str(done * per_step),
        "minutes": f"{wall_s / 60:.1f}",
        "cpu_s": f"{sum(cpu_s):.0f}",
        "recipe": options.recipe.name,
        **{f"dice_{name}": f"{np.mean(values):.4f}" for name, values in scores.items()},
    }


PARTS = ("brain", "head")


def add(log: Path, row: dict[str, str]) -> None:
    """Append a line; the first one brings the heading."""
    is_new = not log.is_file()
    with log.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, delimiter="\t", lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def main(argv: list[str] | None = None) -> int:
    """Print the model to go on from or the steps of a run, or append a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_subparsers(dest="what", required=True)
    first = what.add_parser("start")
    first.add_argument("--log", type=Path, required=True)
    first.add_argument("--bundles", type=Path, required=True)
    steps = what.add_parser("steps")
    steps.add_argument("--run", type=Path, required=True, help="folder that training left")
    new = what.add_parser("add")
    new.add_argument("--log", type=Path, required=True)
    new.add_argument("--run", type=Path, required=True)
    new.add_argument("--bundle", type=Path, required=True)
    new.add_argument("--start", required=True, help="model that the run began from")
    new.add_argument("--steps-before", type=int, required=True)
    new.add_argument("--used", nargs=3, required=True, help="seconds: elapsed, user, system")
    new.add_argument("--recipe", type=Path, required=True)
    new.add_argument("--scores", type=Path, required=True, help="of released_model --tsv")
    try:
        print(_answer(parser.parse_args(argv)))
    except (OSError, ValueError) as error:
        print(f"released_log: ERROR: {error}", file=sys.stderr)
        return UNUSABLE
    return DONE


def _answer(options: argparse.Namespace) -> str:
    if options.what == "start":
        return start(options.log, options.bundles)
    if options.what == "steps":
        from brainseg_bids.training.resume import LAST, steps_done  # late: torch

        return str(steps_done(options.run / LAST))
    row = line(options)
    add(options.log, row)
    return "\t".join(row.values())


if __name__ == "__main__":
    raise SystemExit(main())
