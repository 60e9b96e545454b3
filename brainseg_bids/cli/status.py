# SPDX-License-Identifier: Apache-2.0
"""``brainseg status OUTPUT_DIR``: how far each participant is. Nothing is run or changed."""

from __future__ import annotations

import argparse
import csv
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from brainseg_bids.console import OneLineParser
from brainseg_bids.documents import InputError
from brainseg_bids.exit_codes import DONE, FAILED, UNUSABLE
from brainseg_bids.nets.bundle import BundleError
from brainseg_bids.options import label

if TYPE_CHECKING:
    from brainseg_bids.hpc.status import State

EPILOG = """\
done: all results are there, of the images and with the models as they are now; failed: with the
reason; running, queued: as locks and Slurm tell; unknown: submitted or begun where this cannot be
seen from here; outdated: results are there, but of another image, model or option than the last
command's; not started. The last command that was submitted or run decides what should be there.
Exit codes: 0; 1 if any has failed; 2 if there is nothing to tell."""


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``brainseg status``."""
    parser = OneLineParser(
        prog="brainseg status",
        description="How far each participant is; nothing is run or changed.",
        epilog=EPILOG,
    )
    parser.add_argument("output_dir", type=Path, help="as given to brainseg")
    parser.add_argument(
        "--participant-label",
        nargs="+",
        default=[],
        type=label("sub-"),
        metavar="LABEL",
        help="only these participants",
    )
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="as JSON")
    shape.add_argument("--tsv", action="store_true", help="as TSV")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Print the states.

    Returns
    -------
    int
        0; 1 if a participant has failed; 2 if there is nothing to tell, said in a line.
    """
    options = build_parser().parse_args(argv)
    logging.getLogger("brainseg").addHandler(logging.NullHandler())
    logging.getLogger("brainseg").propagate = False  # the plan's own lines are not wanted
    from brainseg_bids.hpc import status  # late: `--help` shall not wait for it
    from brainseg_bids.stages.base import Refused

    try:
        settings = status.last_settings(options.output_dir.absolute())
        wanted = tuple(options.participant_label) or settings.participant_label
        states = status.states_of(replace(settings, participant_label=wanted))
    except (InputError, BundleError, Refused, OSError) as error:
        print(f"brainseg status: ERROR: {' '.join(str(error).split())}", file=sys.stderr)
        return UNUSABLE
    if options.json:
        print(json.dumps([asdict(state) for state in states], indent=2))
    elif options.tsv:
        _write_tsv(states)
    else:
        _write_table(states)
        print(f"\n{len(states)} participant(s): {status.counted(states)}")
    return FAILED if any(state.state == status.FAILED for state in states) else DONE


def _write_tsv(states: Sequence[State]) -> None:
    from brainseg_bids.hpc.status import State

    writer = csv.writer(sys.stdout, delimiter="\t", lineterminator="\n")
    writer.writerow(item.name for item in fields(State))
    writer.writerows(asdict(state).values() for state in states)


def _write_table(states: Sequence[State]) -> None:
    rows = [("participant", "state", "results", "")]
    rows += [(one.participant, one.state, f"{one.images}/{one.of}", one.reason) for one in states]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        words = [word.ljust(width) for word, width in zip(row, widths, strict=False)]
        print("  ".join([*words, row[3]]).rstrip())
