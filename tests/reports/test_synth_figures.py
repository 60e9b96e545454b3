# SPDX-License-Identifier: Apache-2.0
"""Sheets of synthetic pairs: sides, colours and numbers are those of the pairs."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from brainseg_bids.anatomy.intensity import rescale
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import UnknownLabelError
from brainseg_bids.reports import synth_figures
from brainseg_bids.reports.canvas import SliceRow, same_size
from brainseg_bids.reports.comparison import compare
from brainseg_bids.reports.synth_figures import draw_pairs, draw_real_and_synthetic
from tests.phantom.head import phantom_head
from tests.reports.looks import seen


@pytest.fixture(scope="module")
def image(head):
    return seen(head, np.random.default_rng(4))[0]


def pictures(monkeypatch) -> list[list[list[np.ndarray]]]:
    """Fills with the tiles of each row that is laid out from now on."""
    drawn = []
    original = SliceRow.pixels

    def pixels(self, rows):
        drawn.append([list(row) for row in rows])
        return original(self, rows)

    monkeypatch.setattr(SliceRow, "pixels", pixels)
    return drawn


def test_each_pair_is_a_row_with_its_caption_and_the_legend(head, image, tmp_path, words):
    pairs = [(rescale(image), head.voxels, "seed 1, $kappa$ 1"), (image * 0, head.voxels, "b")]
    path = draw_pairs(tmp_path / "pairs.png", pairs, head.table, voxel_size_mm=4.0)
    with Image.open(path) as file:
        assert (file.format, file.width) == ("PNG", 1600)
    for wanted in ("seed 1, $kappa$ 1", "b", "1", "2", "Thalamus", "50 mm"):
        assert wanted in words, wanted
    assert "2 synthetic pairs" in " ".join(words)


def test_the_left_of_a_pair_is_drawn_left_and_in_the_tables_colour(head, tmp_path, monkeypatch):
    tiles = pictures(monkeypatch)
    codes = np.zeros((20, 20, 20), dtype=np.int16)
    codes[2:8, 6:14, 6:14] = head.table["Left-Putamen"].index  # the first axis runs to the right
    draw_pairs(tmp_path / "pairs.png", [(codes > 0, codes, "a")], head.table)
    ((row,),) = tiles
    plain, overlaid = row[2:4]  # coronal
    bright = np.flatnonzero((plain > 128).all(axis=2).any(axis=0))
    assert bright.max() < plain.shape[1] / 2
    at = overlaid[overlaid.shape[0] // 2, int(bright.mean())]
    red, green, blue = (int(v) for v in at)
    assert red > green + 40  # the putamen's pink over white
    assert blue > green + 20
    assert np.ptp(plain.astype(int), axis=2).max() == 0  # the image itself is grey


def test_crops_of_different_shapes_share_one_scale(head, tmp_path, monkeypatch):
    tiles = pictures(monkeypatch)
    large, small = np.zeros((24, 24, 24), np.int16), np.zeros((12, 12, 12), np.int16)
    pairs = [(large + 1.0, large, "large"), (small + 1.0, small, "small")]
    draw_pairs(tmp_path / "pairs.png", pairs, head.table)
    ((one,), (other,)) = tiles
    white = [(tile[0] > 200).all(axis=2).any(axis=0).sum() for tile in (one, other)]
    assert white[1] == pytest.approx(white[0] / 2, abs=2)


def test_pairs_that_cannot_be_drawn_are_refused(head, tmp_path):
    path = tmp_path / "pairs.png"
    with pytest.raises(ValueError, match="no pairs"):
        draw_pairs(path, [], head.table)
    codes = np.zeros((4, 4, 4), np.int16)
    with pytest.raises(ValueError, match="second: image"):
        draw_pairs(path, [(codes[1:] + 0.0, codes, "second")], head.table)
    with pytest.raises(UnknownLabelError):
        draw_pairs(path, [(codes + 0.0, codes + 999, "a")], head.table)
    assert not path.exists()


def test_the_sheet_names_methods_and_gives_distances(head, image, tmp_path, words, monkeypatch):
    rows = []
    original = synth_figures.draw_methods
    monkeypatch.setattr(
        synth_figures,
        "draw_methods",
        lambda axes, row, colors: (rows.append(row), original(axes, row, colors)),
    )
    tiles = pictures(monkeypatch)
    again, _ = seen(head, np.random.default_rng(9))
    other = phantom_head(shape=(40, 60, 50))  # another box: it is cut at its own places
    synthetic = [("fitted", again, head), ("agnostic", seen(other, np.random.default_rng(1))[0]
                 .max() - seen(other, np.random.default_rng(1))[0], other)]  # fmt: skip
    draw_real_and_synthetic(tmp_path / "canvas.png", (image, head), synthetic, title="T1w")
    assert {"T1w", "real", "fitted", "agnostic"} <= set(words)
    assert [row.label for row in rows][:2] == ["White matter", "Cortex"]
    assert all(row.nearest == "fitted" for row in rows)
    ((real, fitted, _),) = tiles
    difference = np.abs(real[0].astype(int) - fitted[0].astype(int)).mean()
    assert difference < 10  # the same planes of the same head


def test_a_synthetic_image_of_another_shape_than_its_labels_is_refused(head, image, tmp_path):
    with pytest.raises(ValueError, match="fitted: image"):
        draw_real_and_synthetic(
            tmp_path / "canvas.png", (image, head), [("fitted", image[1:], head)]
        )


def test_methods_are_compared_label_by_label_where_they_have_it(rng):
    real = {"CSF": rng.normal(0.2, 0.02, 500), "Putamen": rng.normal(0.6, 0.05, 500)}
    rows = compare(real, {"near": {"CSF": real["CSF"] + 0.01}, "far": {"CSF": real["CSF"] + 0.5}})
    csf, putamen = rows
    assert csf.nearest == "near"
    assert csf.distances["far"] > 10 * csf.distances["near"]
    assert sum(csf.real) == sum(csf.synthetic["far"]) == 500
    assert putamen.distances == {}
    assert putamen.nearest is None


def test_boxes_grow_about_their_centres_to_one_size():
    small, large = np.array([[0.0, 4], [0, 6], [10, 12]]), np.array([[-5.0, 5], [0, 2], [0, 8]])
    grown = same_size([small, large])
    for before, after in zip((small, large), grown, strict=True):
        np.testing.assert_allclose(after.mean(axis=1), before.mean(axis=1))
        np.testing.assert_allclose(after[:, 1] - after[:, 0], [10, 6, 8])


def test_voxels_that_are_not_finite_do_not_reach_the_picture(head, image, tmp_path):
    broken = image.copy()
    broken[:3] = np.nan
    path = draw_real_and_synthetic(
        tmp_path / "canvas.png", (broken, LabelMap(head.voxels, head.grid, head.table)), []
    )
    assert path.is_file()
