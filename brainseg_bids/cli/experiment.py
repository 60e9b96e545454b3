# SPDX-License-Identifier: Apache-2.0
"""Plan, run and report the prior-weight experiment.

``python -m brainseg_bids.cli.experiment plan|run|report|slurm FOLDER ...``
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from pathlib import Path

from brainseg_bids.exit_codes import DONE, FAILED, UNUSABLE


def main(argv: list[str] | None = None) -> int:
    """Do one of the verbs.

    Returns
    -------
    int
        0; 1 if a run failed or nothing is finished; 2 if the input is at fault, said in a line.
    """
    options = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    verbs = {"plan": _plan, "run": _run, "report": _report, "slurm": _slurm}
    try:
        return verbs[options.verb](options)
    except (ValueError, OSError) as error:
        _complain(" ".join(str(error).split()))
        return UNUSABLE


def _complain(words: str) -> None:
    print(f"brainseg experiment: ERROR: {words}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="brainseg_bids.cli.experiment", description=__doc__.splitlines()[0]
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    plan = verbs.add_parser("plan", help="write down settings and decision rule; nothing is run")
    plan.add_argument("folder", type=Path, help="where the experiment lives")
    plan.add_argument("--prior", type=Path, required=True, help="contrast-NAME_prior.json")
    plan.add_argument("--maps", type=Path, nargs="+", required=True, help="maps to learn from")
    plan.add_argument("--validation", type=Path, nargs="*", default=[], help="maps held out")
    plan.add_argument("--steps", type=int, required=True, help="of each run")
    plan.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    plan.add_argument("--kappa", type=float, nargs="+", default=[0.0, 0.25, 0.5, 0.75, 1.0])
    plan.add_argument("--plan", type=Path, help="TrainPlan as JSON; default: a small net")
    plan.add_argument(
        "--margin", type=float, default=0.01, help="smallest difference of Dice that matters"
    )
    plan.add_argument("--agnostic", default="agnostic", help="recipe space at kappa 0")
    plan.add_argument("--off", nargs="*", help="recipe spaces of other contrasts")
    plan.add_argument("--pairs", type=int, default=8, help="per held-out map and space")
    plan.add_argument(
        "--image", type=Path, action="append", default=[], help="real image of the contrast"
    )
    plan.add_argument(
        "--labels", type=Path, action="append", default=[], help="its labels, one per --image"
    )
    plan.add_argument(
        "--allow-seen",
        action="store_true",
        help="take images that the prior was measured in; the report says so",
    )
    runs = verbs.add_parser("run", help="train and measure what is missing")
    runs.add_argument("folder", type=Path)
    runs.add_argument(
        "--only",
        type=int,
        nargs="+",
        metavar="INDEX",
        help="these runs; default: $SLURM_ARRAY_TASK_ID, else all",
    )
    runs.add_argument("--threads", type=int, help="CPU threads; default: all")
    verbs.add_parser("report", help="tables, figure, decision").add_argument("folder", type=Path)
    batch = verbs.add_parser("slurm", help="print a script that submits all; nothing is submitted")
    batch.add_argument("folder", type=Path)
    batch.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION",
        help="for each run, such as --sbatch=--gres=gpu:1 (may be repeated)",
    )
    return parser


def _plan(options: argparse.Namespace) -> int:
    from brainseg_bids.stages.experiment import make_plan  # late: torch

    make_plan(options)
    return DONE


def _run(options: argparse.Namespace) -> int:
    """Train and measure what is missing; runs that fail are named at the end."""
    from brainseg_bids.programs.experiment import run_missing  # late: torch

    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    only = [int(task)] if options.only is None and task else options.only
    failed = run_missing(options.folder, only, threads=options.threads)
    for one in failed:
        _complain(f"run {one.index} ({one.name}) failed")
    return FAILED if failed else DONE


def _report(options: argparse.Namespace) -> int:
    from brainseg_bids.stages.experiment import write_report  # late: torch, matplotlib

    try:
        print(write_report(options.folder))
    except LookupError as error:
        _complain(error.args[0])
        return FAILED
    return DONE


def _slurm(options: argparse.Namespace) -> int:
    """Print a script that submits a job for each run, and the report after them."""
    from brainseg_bids.hpc.slurm import make_job, submit_script
    from brainseg_bids.programs.experiment import read_plan  # late: torch

    folder = options.folder.resolve()
    plan = read_plan(folder)
    program = f"{shlex.quote(sys.executable)} -m brainseg_bids.cli.experiment"
    array = f"--array=0-{len(plan.runs) - 1}"
    runs = make_job(
        "job.sh",
        "prior-weight",
        folder / "slurm-%A_%a.log",
        options=(array, "--requeue", "--open-mode=append", *options.sbatch),
        command=[
            f"{program} run {shlex.quote(str(folder))}",
            '--only "$SLURM_ARRAY_TASK_ID" --threads "${SLURM_CPUS_PER_TASK:-1}"',
        ],
    )
    # Also after failed runs: the report names what is missing.
    last = make_job(
        "job.sh",
        "prior-weight-report",
        folder / "slurm-report-%j.log",
        options=(),
        command=[f"{program} report {shlex.quote(str(folder))}"],
    )
    title = f"Submits the experiment's {len(plan.runs)} runs, and the report after them"
    print(submit_script(title, [runs], last), end="")
    return DONE


if __name__ == "__main__":
    raise SystemExit(main())
