# SPDX-License-Identifier: Apache-2.0
"""Stand-in for ``run_gouhfi``, and by another name for the programs before it."""

import argparse
import sys
from pathlib import Path

import nibabel as nib
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from behaviour import Switches, head_on, lia, only_brain, read_grid, recode, save

COUNTED = [
    0, 2, 3, 4, 5, 7, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18, 24, 26, 28, 31, 41, 42, 43, 44, 46,
    47, 49, 50, 51, 52, 53, 54, 58, 60, 63, 77,
]  # fmt: skip
"""FreeSurfer's code of each of its own."""


def folders(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("-i", "--input_dir", type=Path, required=True)
    parser.add_argument("-o", "--output_dir", type=Path)
    parser.add_argument("--np")
    parser.add_argument("--folds")
    for name in ("skip_parc", "reorder_labels", "cpu"):
        parser.add_argument(f"--{name}", action="store_true")
    return parser.parse_args(argv)


def inputs(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*.nii.gz"))
    if not found:
        raise FileNotFoundError(f"no .nii/.nii.gz files found in {folder}.")
    return found


def conform(argv: list[str]) -> None:
    """Write LIA at the smallest voxel edge."""
    options = folders([word for word in argv if not word.startswith("@")])
    for path in inputs(options.input_dir):
        grid = read_grid(path)
        size_mm = min(grid.voxel_size_mm)
        conformed = lia(grid, (int(np.ceil(max(grid.extent_mm) / size_mm)),) * 3, size_mm)
        options.output_dir.mkdir(parents=True, exist_ok=True)
        image = np.zeros(conformed.shape, dtype=np.uint8)
        nib.save(nib.Nifti1Image(image, conformed.affine), options.output_dir / path.name)


def parcels(labels: np.ndarray) -> np.ndarray:
    """Its second map: the cortex of each side in parcels, counted from 1."""
    counted = np.zeros(labels.shape, dtype=np.uint8)
    last = np.indices(labels.shape)[2] > labels.shape[2] / 2  # towards the front
    for whole, front, back in ((3, 26, 6), (42, 57, 37)):
        counted[(labels == whole) & last] = front
        counted[(labels == whole) & ~last] = back
    return counted


def main() -> None:
    switches = Switches(sys.argv[1:])
    version = 1 if "one" in switches else 2
    options = folders(switches.arguments)
    switches.fail_early(
        options.input_dir.parent / "gouhfi_raw" / inputs(options.input_dir)[0].name
    )
    if version == 1 and options.skip_parc:
        sys.exit("run_gouhfi: error: unrecognized arguments: --skip_parc")
    for path in inputs(options.input_dir):
        grid = read_grid(path)
        labels = recode(head_on(grid), {})
        labels = only_brain(labels)
        counted = np.zeros(labels.max() + 1, dtype=np.uint16)
        counted[[code for code in COUNTED if code < len(counted)]] = [
            n for n, code in enumerate(COUNTED) if code < len(counted)
        ]
        out = options.output_dir / ("outputs_seg_postpro" if version == 2 else ".")
        name = path.name.replace("_0000", "")
        save(counted[labels], grid, out / name, switches)
        if version == 2 and not options.skip_parc:
            second = options.output_dir / "outputs_parc_postpro" / name
            save(parcels(labels), grid, second, Switches([]))


if __name__ == "__main__":
    main()
