# SPDX-License-Identifier: Apache-2.0
"""The picture files: what is on them, and that they are whole or not there."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import Label, LabelTable
from brainseg_bids.reports.canvas import HEADER_PX
from brainseg_bids.reports.figures import cut_planes, draw_segmentation
from brainseg_bids.reports.volume_figures import draw_volumes

TABLE = LabelTable.packaged("brainseg")


@pytest.fixture
def head() -> tuple[np.ndarray, LabelMap]:
    voxels = np.zeros((32, 36, 30), dtype=np.int16)
    voxels[4:28, 4:32, 4:26] = 511
    voxels[8:16, 8:28, 8:22] = 2
    voxels[16:24, 8:28, 8:22] = 41
    voxels[10:14, 14:20, 12:18] = 4
    image = np.random.default_rng(0).normal(100, 10, voxels.shape) * (voxels > 0)
    return image, LabelMap(voxels, Grid(voxels.shape, np.diag([4, 4, 4, 1])), TABLE)


def test_the_file_is_a_small_png_that_holds_the_tiles(head, tmp_path):
    path = draw_segmentation(*head, tmp_path / "head.png", n_cuts=3)
    with Image.open(path) as file:
        assert file.format == "PNG"
        picture = np.asarray(file.convert("RGB"))
    assert path.stat().st_size < 2_000_000
    top = HEADER_PX + 26
    for plane in cut_planes(*head, n_cuts=3):
        slices = plane.slices
        for tiles in plane.rows.values():
            for tile, left in zip(tiles, slices.lefts, strict=True):
                half = tile.shape[0] // 2  # marks are above
                shown = picture[top + half : top + tile.shape[0], left : left + tile.shape[1]]
                np.testing.assert_array_equal(shown, tile[half:])
            top += slices.tall
        top += 26


def test_the_picture_names_convention_sides_places_and_structures(head, tmp_path, words):
    draw_segmentation(*head, tmp_path / "head.png")
    assert any("neurological convention" in text for text in words)
    assert words.count("L") == words.count("R") == 2 * 3 * 7
    assert words.count("P") == words.count("A") == 3 * 7
    assert sum(any(at in text for at in ("x = ", "y = ", "z = ")) for text in words) == 3 * 7
    assert [text for text in words if text in ("Brain", "CSF", "Head")] == ["Brain", "CSF", "Head"]
    assert words.count("Cerebral White Matter") == 1
    assert {"Lateral Ventricle", "Skin"} <= set(words)
    assert "Thalamus" not in words


def test_a_tilted_grid_is_said(head, tmp_path, words):
    image, labels = head
    turn = np.eye(4)
    angle = np.radians(12)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    tilted = LabelMap(labels.voxels, Grid(labels.grid.shape, turn @ labels.grid.affine), TABLE)
    draw_segmentation(image, tilted, tmp_path / "a.png")
    assert any("12°" in text for text in words)


def test_a_picture_with_nothing_labelled_says_so(head, tmp_path, words):
    image, labels = head
    empty = LabelMap(np.zeros_like(labels.voxels), labels.grid, TABLE)
    draw_segmentation(image, empty, tmp_path / "empty.png")
    assert "Nothing is labelled" in " ".join(words)


def test_a_table_without_mappings_is_drawn_in_its_own_colours(tmp_path):
    table = LabelTable([Label(0, "Background"), Label(7, "Cube $x^2$", color="#ff0000")])
    voxels = np.zeros((20, 20, 20), dtype=np.uint8)
    voxels[5:15, 5:15, 5:15] = 7
    labels = LabelMap(voxels, Grid(voxels.shape, np.diag([8, 8, 8, 1])), table)
    with Image.open(draw_segmentation(voxels * 1.0, labels, tmp_path / "cube.png")) as file:
        picture = np.asarray(file.convert("RGB")).astype(int)
    assert (picture == (255, 0, 0)).all(axis=2).sum() > 100  # the legend
    reddish = picture[HEADER_PX:, :, 0] - picture[HEADER_PX:, :, 1]
    assert (reddish > 100).sum() > 1000


def test_pure_noise_still_makes_a_small_file(tmp_path):
    noise = np.random.default_rng(0).uniform(0, 100, (160, 160, 160)).astype(np.float32)
    voxels = np.zeros(noise.shape, dtype=np.int16)
    voxels[2:-2, 2:-2, 2:-2] = 511
    path = draw_segmentation(
        noise, LabelMap(voxels, Grid(noise.shape, np.eye(4)), TABLE), tmp_path / "noise.png"
    )
    assert path.stat().st_size < 2_600_000


def test_a_failure_while_writing_leaves_the_old_picture_and_nothing_else(head, tmp_path, request):
    path = draw_segmentation(*head, tmp_path / "head.png", n_cuts=1)
    before = path.read_bytes()
    request.getfixturevalue("full_disk")
    with pytest.raises(OSError, match="No space"):
        draw_segmentation(*head, path, n_cuts=2)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["head.png"]


def test_far_volumes_are_named_and_do_not_flatten_the_rest():
    percents = {"Left-Thalamus": {f"sub-{k}": k - 3.0 for k in range(6)} | {"sub-far": 900.0}}
    near = draw_volumes(percents, {}).pixels()
    named = draw_volumes(percents, {"Left-Thalamus": {"sub-far"}}).pixels()
    assert (named != near).any()
    picture = named.astype(int)
    columns = (picture[..., 2] - picture[..., 0] > 60).nonzero()[1]  # blue
    assert np.ptp(columns) > 15  # six dots over 5 % stay apart on an axis of 200 %


def test_the_lowest_and_the_highest_of_each_structure_are_named(monkeypatch):
    said = []
    original = Axes.annotate
    monkeypatch.setattr(
        Axes,
        "annotate",
        lambda axes, text, *a, **k: said.append(text) or original(axes, text, *a, **k),
    )
    percents = {"Left-Thalamus": {f"sub-{k}": k - 3.0 for k in range(6)}, "Nowhere": {}}
    draw_volumes(percents, {})
    assert said == ["sub-0", "sub-5"]


def test_figures_need_no_pyplot_and_no_writable_home(tmp_path):
    code = (
        "import sys, brainseg_bids.reports.figures\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    environment = {"HOME": "/proc/none", "PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
