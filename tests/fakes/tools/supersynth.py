# SPDX-License-Identifier: Apache-2.0
"""Stand-in for ``mri_super_synth``: brain and head on a 1 mm grid of its own, uint16."""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from behaviour import Switches, head_on, read_grid, recode, save


def main() -> None:
    switches = Switches(sys.argv[1:])
    parser = argparse.ArgumentParser()
    for name in ("i", "o", "mode", "device"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--sharpen_synths", action="store_true")
    parser.add_argument("--threads", type=int, default=-1)
    options = parser.parse_args(switches.arguments)
    if options.mode not in ("invivo", "exvivo", "cerebrum", "left-hemi", "right-hemi"):
        sys.exit(f"Exception: mode not supported: {options.mode}")
    print("It seems like your input is an image file")
    switches.fail_early(options.i)
    grid = read_grid(options.i).with_voxel_size(1.0)
    labels = head_on(grid)
    # No class of its own for these; codes of the head are 400 higher.
    codes = {28: 2, 60: 41, 31: 4, 63: 43} | {
        int(code): int(code) + 400 for code in np.unique(labels) if code > 500
    }
    out = Path(options.o) / "segmentation.mgz"
    save(recode(labels, codes).astype(np.int32), grid, out, switches)


if __name__ == "__main__":
    main()
