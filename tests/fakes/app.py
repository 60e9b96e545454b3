# SPDX-License-Identifier: Apache-2.0
"""``brainseg`` as a process of its own, with a stand-in for the network."""

from __future__ import annotations

import signal
import sys

from brainseg_bids.cli.parser import parse
from brainseg_bids.cli.run import run
from tests.fakes.dataset import PREDICT


def main() -> int:
    settings = parse(sys.argv[1:])
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return run(settings, program=PREDICT)


if __name__ == "__main__":
    sys.exit(main())
