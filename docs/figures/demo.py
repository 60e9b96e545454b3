# SPDX-License-Identifier: Apache-2.0
"""Draw README's figure: the head of ``make demo``, its image above its labels, in three planes.

``make demo``, then ``python -m docs.figures.demo`` from the root of the repository. The head is the
average of 152 that nilearn ships, without skull and face.
"""

from __future__ import annotations

import sys
from pathlib import Path

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.images import read_label_map, read_volume
from brainseg_bids.reports.canvas import Canvas, SliceRow
from brainseg_bids.reports.slices import (
    MARGIN_PX,
    PLANES,
    WIDTH_PX,
    cut_positions,
    grey_window,
    paint_cut,
    view_mm,
)

ROOT = Path(__file__).parents[2]
STEPS = ((0.34,), (0.55,), (0.5,))
"""Where each axis of the brain is cut, 0 to 1: through hippocampus, thalamus and putamen."""
TOP_PX = 40


def draw(demo: Path, target: Path) -> Path:
    """Draw the demo's head.

    Parameters
    ----------
    demo : Path
        What ``make demo`` leaves: ``bids`` and ``out``.
    target : Path
        PNG file.
    """
    image, _ = read_volume(demo / "bids/sub-MNI152/anat/sub-MNI152_T1w.nii.gz")
    table = LabelTable.read(demo / "out/seg-brainseg_dseg.tsv")
    name = "out/sub-MNI152/anat/sub-MNI152_seg-brainseg_dseg.nii.gz"
    labels = read_label_map(demo / name, table)
    box_mm = view_mm(labels)
    at_mm = [at for along in cut_positions(labels, STEPS, box_mm) for at in along]
    slices = SliceRow.fit(box_mm[:, 1] - box_mm[:, 0], PLANES, tallest_px=620)
    cuts = slices.cuts(image, labels, at_mm, box_mm)
    window = grey_window(cuts, labels)
    rows = {
        "T1w": [paint_cut(cut, labels, window) for cut in cuts],
        "labels": [paint_cut(cut, labels, window, overlay=True) for cut in cuts],
    }
    canvas = Canvas(WIDTH_PX, TOP_PX + len(rows) * slices.tall + MARGIN_PX // 4)
    slices.write(canvas, TOP_PX, rows, at_mm)
    return canvas.save(target)


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "demo"
    print(draw(folder, ROOT / "docs" / "figures" / "demo.png"))
