# SPDX-License-Identifier: Apache-2.0
"""Stand-in for ``run_fastsurfer.sh --seg_only``: conformed LIA grid, cortex in parcels."""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from behaviour import Switches, head_on, lia, only_brain, read_grid, save


def main() -> None:
    switches = Switches(sys.argv[1:])
    parser = argparse.ArgumentParser()
    for name in ("t1", "sid", "sd", "device", "viewagg_device", "py", "fs_license"):
        parser.add_argument(f"--{name}")
    for name in ("seg_only", "no_cereb", "no_hypothal", "no_biasfield", "3T"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(switches.arguments)
    for path in (options.t1, options.sd):
        if not path.startswith("/"):
            sys.exit(f"ERROR: {path} is not an absolute path")
        if set(path) & set(" '\"()"):  # older scripts split such a path into words
            sys.exit(f"ERROR: T1 image ({path.split()[0]}) could not be found. Quitting.")
    if not options.seg_only:
        sys.exit("ERROR: A valid FreeSurfer license file is required for surfaces")
    print(f"running on {options.device}, {options.threads} threads")
    switches.fail_early(options.t1)
    grid = lia(read_grid(options.t1), (256, 256, 256), 1.0)
    labels = only_brain(head_on(grid), csf=False)
    ahead = np.zeros(grid.shape, dtype=bool)
    ahead[:, :, 138:] = True  # the third axis points forward
    for whole, front, back in ((3, 1028, 1008), (42, 2028, 2008)):
        labels[(labels == whole) & ahead] = front
        labels[labels == whole] = back
    mri = Path(options.sd) / options.sid / "mri"
    save(labels.astype(np.int16), grid, mri / "aparc.DKTatlas+aseg.deep.mgz", switches)


if __name__ == "__main__":
    main()
