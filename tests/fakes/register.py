# SPDX-License-Identifier: Apache-2.0
"""Stand-in for the program that registers: the image lies in the template's space already."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from brainseg_bids.images import read_grid
from brainseg_bids.programs.register import parse

sys.path.insert(0, str(Path(__file__).parents[2]))  # it is run as a file, from anywhere


def main() -> int:
    from tests.fakes.transforms import write_composite

    options = parse(sys.argv[1:])
    for path in (options.forward, options.backward):
        write_composite(path, field=read_grid(options.fixed))
    said = {"Registration": options.kind, "DrivenBy": "brains", "Seconds": 1.0, "Threads": 1}
    options.report.write_text(json.dumps(said | {"ANTsVersion": "none", "PeakMemoryGiB": 0.1}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
