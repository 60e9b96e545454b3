# SPDX-License-Identifier: Apache-2.0
"""Merged head maps of Colin27 beside its own tissue map.

``python -m benchmarks.colin27 samseg=OUT/sub-colin27/anat/sub-colin27_seg-fullhead_dseg.nii.gz``

The tissue map (``colin27_v3_on_ch2_grid_seg``) has scalp, skull, CSF, grey matter, white matter
and air. It was made by other software from the same image: agreement with it is no accuracy.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import nibabel as nib
import numpy as np

from benchmarks.data import shared_data
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.images import read_label_map

REFERENCE = {
    "scalp": (1,),
    "skull": (2,),
    "scalp+skull": (1, 2),
    "CSF": (3,),
    "GM": (4,),
    "WM": (5,),
}
GREY, WHITE_LIKE, FLUID, BONE = (8, 9, 11), (2, 10), (3,), (4,)
"""BIDS standard codes (column ``mapping``) of grey and white matter, fluid and bone."""


def tissues(table: LabelTable) -> dict[str, list[int]]:
    """Codes of ``fullhead`` for each tissue of the reference."""

    def mapped(*mappings: int) -> list[int]:
        return [label.index for label in table if label.mapping in mappings]

    # Eyes, vessels, nerves and cord are scalp there, as is all that is neither bone nor brain.
    soft = mapped(5, 6)
    return {
        "scalp": soft,
        "skull": mapped(*BONE),
        "scalp+skull": soft + mapped(*BONE),
        "CSF": mapped(*FLUID),
        "GM": mapped(*GREY),
        "WM": mapped(*WHITE_LIKE),
    }


def main() -> None:
    """Print a table of Dice."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("maps", nargs="+", metavar="NAME=FILE")
    options = parser.parse_args()
    truth = nib.load(shared_data() / "colin27" / "colin27_v3_on_ch2_grid_seg.nii.gz")
    reference = np.asarray(truth.dataobj)
    table = LabelTable.packaged("fullhead")
    print(f"| map | {' | '.join(REFERENCE)} |")
    print("|---|" + "---|" * len(REFERENCE))
    for text in options.maps:
        name, _, path = text.partition("=")
        labels = read_label_map(Path(path), table)
        if not np.allclose(labels.grid.affine, truth.affine, atol=1e-3):
            raise SystemExit(f"{path}: lies on another grid than the reference")
        row = []
        for tissue, codes in tissues(table).items():
            one = np.isin(labels.voxels, codes)
            other = np.isin(reference, REFERENCE[tissue])
            row.append(f"{2 * (one & other).sum() / (one.sum() + other.sum()):.3f}")
        print(f"| {name} | {' | '.join(row)} |")


if __name__ == "__main__":
    main()
