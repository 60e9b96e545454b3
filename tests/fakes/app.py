# SPDX-License-Identifier: Apache-2.0
"""``brainseg`` as a process of its own, with a stand-in for the network.

Words after ``--`` are the stand-in's own.
"""

from __future__ import annotations

import sys

from brainseg_bids.cli.parser import parse
from brainseg_bids.cli.run import run
from brainseg_bids.lifetime import ended_by_signals
from brainseg_bids.standard_streams import protected
from tests.fakes.dataset import PREDICT


def main() -> int:
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    with ended_by_signals(), protected():
        return run(parse(words[:end]), program=(*PREDICT, *words[end + 1 :]))


if __name__ == "__main__":
    sys.exit(main())
