# SPDX-License-Identifier: Apache-2.0
"""Stand-in for ``brainchop``: 18 or 104 classes on the image's grid, uint8.

Version 0.2.5, whose source was read and which was really run; with ``@one`` what is known of
version 1: other models, the image's grid without being told, other options refused.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from behaviour import Switches, head_on, only_brain, read_grid, recode, save

from brainseg_bids.anatomy.crosswalk import Crosswalk

MODELS = {"subcortical": 18, "DKatlas": 104, "mindmap": 18, "mindsnap": 104}


def parsed(switches: Switches) -> argparse.Namespace:
    one = "one" in switches
    parser = argparse.ArgumentParser(prog="brainchop")
    parser.add_argument("input", nargs="*")
    parser.add_argument("-o", "--output", default="output.nii.gz")
    models = ("mindmap", "mindsnap") if one else ("subcortical", "DKatlas")
    parser.add_argument("-m", "--model", default=models[0], choices=models)
    if not one:
        parser.add_argument("--inverse-conform", action="store_true")
        parser.add_argument("--no-optimize", action="store_true")
    return parser.parse_args(switches.arguments)


def main() -> None:
    switches = Switches(sys.argv[1:])
    options = parsed(switches)
    if "one" not in switches and not options.no_optimize:
        input("brainchop :: Optimize now? [y/n]: ")
    (image,) = options.input
    print(f"brainchop :: [1/1] {image}")
    switches.fail_early(image)
    grid = read_grid(image)
    labels = only_brain(head_on(grid), csf=False)
    if MODELS[options.model] == 104:
        ahead = (np.indices(grid.shape).T @ grid.affine[1, :3]).T + grid.affine[1, 3] > 0
        for whole, front, back in ((3, 27, 7), (42, 61, 41)):
            labels[(labels == whole) & ahead] = 1000 + front
            labels[labels == whole] = 1000 + back
    counted = {1000 + code: code for code in (27, 7, 61, 41)} | codes_of(MODELS[options.model])
    save(recode(labels, counted).astype(np.uint8), grid, Path(options.output), switches)
    print("brainchop :: Done!")


def codes_of(classes: int) -> dict[int, int]:
    """Its own code of each of FreeSurfer's; left and right are one class of 18."""
    walk = Crosswalk.packaged("brainchop" if classes == 18 else "brainchop104", "fullhead")
    codes = {0: 0}
    for own, target in walk.pairs.items():
        for one in walk.among.get(own, {target}):
            if not walk.names[own].startswith("ctx-"):
                codes[one] = own
    return codes


if __name__ == "__main__":
    main()
