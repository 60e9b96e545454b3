# SPDX-License-Identifier: Apache-2.0
"""Several ``tests.fakes.app`` at the same time, each a process, that share what is imported.

Reads one JSON list of command lines; writes exit codes and what was said.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile

import bids.layout  # noqa: F401

from tests.fakes.app import main


def begin(argv: list[str], output) -> int:
    """Number of a process that does this."""
    child = os.fork()
    if child:
        return child
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    sys.argv[1:] = argv
    code = 70
    try:
        code = main()
    finally:
        sys.stdout.flush()
        os._exit(code)


def together() -> None:
    with tempfile.TemporaryDirectory() as folder:
        jobs = []
        for number, argv in enumerate(json.load(sys.stdin)):
            output = open(os.path.join(folder, str(number)), "w+")  # noqa: SIM115
            jobs.append((begin(argv, output), output))
        ended = []
        for child, output in jobs:
            _, status = os.waitpid(child, 0)
            output.seek(0)
            ended.append((os.waitstatus_to_exitcode(status), output.read()))
    json.dump(ended, sys.stdout)


if __name__ == "__main__":
    together()
