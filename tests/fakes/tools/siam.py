# SPDX-License-Identifier: Apache-2.0
"""Stand-in for ``siam-pred``: it writes beside its input, on the input's grid, without sides."""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from behaviour import Switches, head_on, read_grid, recode, save

TISSUES = {
    24: 3, 515: 15, 511: 16, 507: 16, 14: 4, 15: 4, 16: 2,
    **dict.fromkeys((3, 42), 1), **dict.fromkeys((2, 41, 7, 46, 28, 60), 2),
    **dict.fromkeys((4, 43, 5, 44), 4), **dict.fromkeys((8, 47), 5),
    **dict.fromkeys((10, 49), 6), **dict.fromkeys((13, 52), 7), **dict.fromkeys((12, 51), 8),
    **dict.fromkeys((11, 50), 9), **dict.fromkeys((26, 58), 10), **dict.fromkeys((18, 54), 11),
    **dict.fromkeys((17, 53), 12),
}  # fmt: skip
"""Its code of each of ours; eyes, vessels and nerves are soft tissue or its vascular class."""
OTHERS = {506: 16, 502: 14, 514: 14, 530: 16, 512: 16, 508: 16, 509: 16, 516: 15, 501: 0, 85: 2}


def main() -> None:
    switches = Switches(sys.argv[1:])
    parser = argparse.ArgumentParser()
    parser.add_argument("-i", "--input", required=True)
    parser.add_argument("-o", "--output")
    parser.add_argument("-device", default="cuda")
    parser.add_argument("-m", "--model", type=int, default=0)
    parser.add_argument("-voxelsize", type=float, default=0)
    parser.add_argument("-nbthread", type=int, default=4)
    options = parser.parse_args(switches.arguments)
    print("SIAM: Segment it all model, version 0.2")
    if not options.input.endswith(".nii.gz"):
        sys.exit("input must be nifti (.nii.gz)")
    switches.fail_early(options.input)
    image = Path(options.input)
    grid = read_grid(image)
    labels = recode(head_on(grid), OTHERS | TISSUES)
    prefix = {0: "siamV03", 1: "siamV01", 2: "siamV02"}[options.model]
    save(labels.astype(np.uint8), grid, image.with_name(f"{prefix}_{image.name}"), switches)
    (image.parent / f"label_{prefix}_.json").write_text("{}")


if __name__ == "__main__":
    main()
