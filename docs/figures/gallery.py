# SPDX-License-Identifier: Apache-2.0
"""Pictures of the gallery that no page of the app holds, drawn when the documentation is built."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.anatomy.upsample import upsample
from brainseg_bids.images import read_label_map
from brainseg_bids.reports.upsample_figures import WINDOW_MM, draw_upsampled
from docs.figures import demo

LABELS = "out/sub-MNI152/anat/sub-MNI152_seg-brainseg_dseg.nii.gz"


def draw(runs: Path, target: Path) -> None:
    """Draw the demo's head, and its labels at half the voxel size.

    Parameters
    ----------
    runs : Path
        With what the first tutorial leaves, in ``demo/demo``.
    target : Path
        Folder of the pictures.
    """
    head = runs / "demo" / "demo"
    demo.draw(head, target / "head.png")
    labels = read_label_map(head / LABELS, LabelTable.read(head / "out" / "seg-brainseg_dseg.tsv"))
    middle = middle_of(labels)
    draw_upsampled(middle, upsample(middle, 0.5), target / "upsampling.png")


def middle_of(labels: LabelMap) -> LabelMap:
    """What the picture shows and a margin: the rest need not be upsampled."""
    size = np.ceil((WINDOW_MM + 20) / np.array(labels.grid.voxel_size_mm)).astype(int)
    size = tuple(int(n) for n in np.minimum(size, labels.grid.shape))
    start = tuple((n - m) // 2 for n, m in zip(labels.grid.shape, size, strict=True))
    box = tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))
    voxels = np.ascontiguousarray(labels.voxels[box])
    return LabelMap(voxels, labels.grid.crop(start, size), labels.table)
