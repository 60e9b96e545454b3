# SPDX-License-Identifier: Apache-2.0
"""The picture of an upsampled map: the same places above each other, whichever way axes run."""

from __future__ import annotations

import numpy as np
from PIL import Image

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.reports.upsample_figures import draw_upsampled


def turned(labels: LabelMap) -> LabelMap:
    """The same map, its first axis reversed and the axes permuted."""
    affine = labels.grid.affine.copy()
    affine[:3, 3] += affine[:3, 0] * (labels.grid.shape[0] - 1)
    affine[:3, 0] *= -1
    voxels = np.ascontiguousarray(labels.voxels[::-1].transpose(2, 0, 1))
    return LabelMap(voxels, Grid(voxels.shape, affine[:, [2, 0, 1, 3]]), labels.table)


def test_both_rows_show_the_same_places(head, tmp_path):
    path = draw_upsampled(head, turned(head), tmp_path / "upsampled.png")
    with Image.open(path) as file:
        pixels = np.asarray(file.convert("RGB"))[34:, 44:]
    half = len(pixels) // 2
    upper, lower = pixels[: half - 6], pixels[half : 2 * half - 6]
    assert (upper == lower).all(axis=2).mean() > 0.999
    white = np.rint(255 * np.array(head.table["Left-Cerebral-White-Matter"].rgb))
    assert (upper == white).all(axis=2).mean() > 0.05
    assert [file.name for file in tmp_path.iterdir()] == ["upsampled.png"]


def test_a_map_without_labels_is_drawn(head, tmp_path):
    empty = LabelMap(np.zeros_like(head.voxels), head.grid, head.table)
    assert draw_upsampled(empty, empty, tmp_path / "empty.png").is_file()
