# SPDX-License-Identifier: Apache-2.0
"""Stand-in for ``run_samseg``: labels on the image's grid, and the probability of each."""

import argparse
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).parent))
from behaviour import Switches, head_on, read_grid, recode, save

BOTTOM_MM = -75.0
"""Where its atlas ends: what lies below has no label."""
NAMES = {
    0: "Unknown", 165: "Skull", 258: "Soft_Nonbrain_Tissue", 16: "Brain-Stem", 24: "CSF",
    8: "Left-Cerebellum-Cortex", 47: "Right-Cerebellum-Cortex", 15: "4th-Ventricle",
    259: "Fluid_Inside_Eyes", 3: "Left-Cerebral-Cortex", 42: "Right-Cerebral-Cortex",
    7: "Left-Cerebellum-White-Matter", 46: "Right-Cerebellum-White-Matter",
    41: "Right-Cerebral-White-Matter", 2: "Left-Cerebral-White-Matter",
    63: "Right-choroid-plexus", 54: "Right-Amygdala", 18: "Left-Amygdala",
    53: "Right-Hippocampus", 44: "Right-Inf-Lat-Vent", 17: "Left-Hippocampus",
    31: "Left-choroid-plexus", 5: "Left-Inf-Lat-Vent", 85: "Optic-Chiasm",
    60: "Right-VentralDC", 28: "Left-VentralDC", 14: "3rd-Ventricle",
    26: "Left-Accumbens-area", 12: "Left-Putamen", 51: "Right-Putamen", 62: "Right-vessel",
    58: "Right-Accumbens-area", 77: "WM-hypointensities", 4: "Left-Lateral-Ventricle",
    30: "Left-vessel", 43: "Right-Lateral-Ventricle", 52: "Right-Pallidum",
    11: "Left-Caudate", 49: "Right-Thalamus", 13: "Left-Pallidum", 50: "Right-Caudate",
    10: "Left-Thalamus", 80: "non-WM-hypointensities", 72: "5th-Ventricle",
}  # fmt: skip
"""In the order in which the program prints them."""


def main() -> None:
    switches = Switches(sys.argv[1:])
    parser = argparse.ArgumentParser()
    parser.add_argument("-i", "--input", nargs="+", required=True)
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save-posteriors", nargs="*")
    parser.add_argument("--options")
    options = parser.parse_args(switches.arguments)
    out = Path(options.output)
    out.mkdir(parents=True, exist_ok=True)
    print(f"##----\n              Samsegment Options\noutput directory: {out}")
    switches.fail_early(options.input[0])
    grid = read_grid(options.input[0])
    labels = recode(head_on(grid), {511: 258, 507: 258, 515: 165})
    heights_mm = np.tensordot(grid.affine[2, :3], np.indices(grid.shape), 1) + grid.affine[2, 3]
    labels[heights_mm < BOTTOM_MM] = 0
    posteriors = {
        code: ndimage.gaussian_filter((labels == code).astype(np.float32), 0.6, mode="nearest")
        if (labels == code).any()
        else np.zeros(labels.shape, np.float32)
        for code in NAMES
    }
    total = np.maximum(sum(posteriors.values()), 1e-9)
    for values in posteriors.values():  # where it has not looked, nothing is probable
        values[heights_mm < BOTTOM_MM] = 0
    codes = np.array(list(posteriors))
    best = codes[np.argmax(list(posteriors.values()), axis=0)]
    save(best.astype(np.int32), grid, out / "seg.mgz", switches)
    if options.save_posteriors is not None:
        (out / "posteriors").mkdir(exist_ok=True)
        for code, values in posteriors.items():
            file = nib.MGHImage(values / total, grid.affine)
            nib.save(file, out / "posteriors" / f"{NAMES[code]}.mgz")
    (out / "samseg.stats").write_text("# Measure Intra-Cranial, 1950111.702299, mm^3\n")
    (out / "cost.txt").write_text("templateRegistration 3 -0.941117\n")
    print("run_samseg complete: 0:09:41.495992")


if __name__ == "__main__":
    main()
