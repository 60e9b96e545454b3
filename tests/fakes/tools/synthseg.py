# SPDX-License-Identifier: Apache-2.0
"""Stand-in for ``mri_synthseg``: brain labels on a 1 mm grid of its own, int32."""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from behaviour import Switches, head_on, only_brain, read_grid, save


def main() -> None:
    switches = Switches(sys.argv[1:])
    parser = argparse.ArgumentParser()
    for name in ("i", "o", "post", "qc", "vol", "resample"):
        parser.add_argument(f"--{name}")
    for name in ("robust", "fast", "parc", "cpu", "keepgeom", "ct", "v1"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(switches.arguments)
    print("SynthSeg-robust 2.0" if options.robust else "SynthSeg 2.0")
    print(f"using {'CPU' if options.cpu else 'GPU'}, {options.threads} threads")
    switches.fail_early(options.i)
    grid = read_grid(options.i)
    grid = grid if options.keepgeom else grid.with_voxel_size(1.0)
    save(only_brain(head_on(grid)).astype(np.int32), grid, Path(options.o), switches)


if __name__ == "__main__":
    main()
