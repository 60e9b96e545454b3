# SPDX-License-Identifier: Apache-2.0
"""The picture of a merge: what its last row marks, and that it is whole or not there."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.reports import canvas
from brainseg_bids.reports.head_figures import MARKS, changes, draw_merge

TISSUE_OR_SIDE, STRUCTURE, AIR_ADDED, TISSUE_ADDED, AIR_KNOWN = MARKS


@pytest.fixture
def merged(head) -> LabelMap:
    return head


def brain_only(head: LabelMap) -> LabelMap:
    codes = [label.index for label in head.table if label.is_brain]
    voxels = np.where(np.isin(head.voxels, codes), head.voxels, 0)
    return LabelMap(voxels, head.grid, head.table)


def mark(head: LabelMap, merged: int, *sources: int) -> int:
    return int(changes(np.array([merged]), [np.array([code]) for code in sources], head)[0])


@pytest.mark.parametrize(
    ("codes", "wanted"),
    [
        ((2, 3, 2), TISSUE_OR_SIDE),  # cortex or white matter
        ((41, 2, 41), TISSUE_OR_SIDE),  # left or right
        ((24, 24, 3), TISSUE_OR_SIDE),
        ((3, 3, 0), TISSUE_OR_SIDE),  # brain to the head tool, nothing to the brain tool
        ((3, 515, 3), TISSUE_OR_SIDE),
        ((10, 10, 11), STRUCTURE),  # thalamus or caudate: deep grey both
        ((31, 31, 4), 0),  # choroid plexus is ventricle to most tools
        ((24, 520, 24), 0),  # one CSF under two codes
        ((24, 520, 0), 0),  # a brain tool need not have the CSF outside
        ((515, 515, 0), 0),  # nor bone
        ((507, 507, 0), 0),
        ((501, 0, 0), AIR_ADDED),
        ((501, 501, 0), AIR_KNOWN),
        ((507, 0, 0), TISSUE_ADDED),
        ((0, 517, 0), 0),
        ((507, 517, 0), TISSUE_ADDED),
        ((501, 0), AIR_ADDED),
        ((258, 0), TISSUE_ADDED),
        ((3, 3), 0),
        ((3,), 0),
    ],
)
def test_differences_and_additions_are_told_apart(head, codes, wanted):
    assert mark(head, *codes) == wanted


def pixels_of(path) -> np.ndarray:
    with Image.open(path) as file:
        assert file.format == "PNG"
        return np.asarray(file.convert("RGB")).astype(int)


def test_the_picture_names_tools_cuts_sides_and_structures(merged, head_image, tmp_path, words):
    sources = [("charm", merged), ("synthseg", brain_only(merged))]
    draw_merge(head_image, merged, sources, tmp_path / "merge.png")
    assert {"image", "merged", "charm", "synthseg", "changes"} <= set(words)
    assert any("neurological convention" in text for text in words)
    assert sum(" = " in text for text in words) == 6
    # Two coronal and two axial cuts in five rows.
    assert words.count("L") == words.count("R") == 4 * 5
    assert words.count("P") == words.count("A") == 2 * 5
    assert {"Thalamus", "Skin", *(text for text, _ in MARKS.values())} <= set(words)


def test_one_tool_is_not_said_to_differ_from_another(merged, head_image, tmp_path, words):
    draw_merge(head_image, merged, [("charm", merged)], tmp_path / "merge.png")
    assert not any("differ" in text for text in words)
    assert MARKS[AIR_ADDED][0] in words


def test_structures_of_a_tool_that_did_not_win_are_in_the_legend(
    merged, head_image, tmp_path, words
):
    other = merged.voxels.copy()
    other[other == 515] = 165
    source = LabelMap(other, merged.grid, merged.table)
    draw_merge(head_image, merged, [("samseg", source)], tmp_path / "a.png")
    assert {"Skull", "Bone Cortical"} <= set(words)


def test_what_the_merge_added_is_marked_in_its_colour(merged, head_image, tmp_path):
    before = merged.voxels.copy()
    before[before == 507] = 0
    source = LabelMap(before, merged.grid, merged.table)
    same = pixels_of(draw_merge(head_image, merged, [("a", merged)], tmp_path / "same.png"))
    added = pixels_of(draw_merge(head_image, merged, [("a", source)], tmp_path / "added.png"))

    def green(pixels: np.ndarray) -> int:
        red, green, blue = np.moveaxis(pixels, -1, 0)
        return int(((green > red + 60) & (green > blue + 60)).sum())

    assert green(added) > green(same) + 2000


def test_the_colours_of_the_marks_are_told_apart():
    colors = [np.array(rgb) for _, rgb in MARKS.values()]
    apart = [np.linalg.norm(a - b) for n, a in enumerate(colors) for b in colors[:n]]
    assert min(apart) > 0.5


def test_no_sources_leave_image_and_merged_labels(merged, head_image, tmp_path, words):
    draw_merge(head_image, merged, [], tmp_path / "merge.png")
    assert "merged" in words
    assert "changes" not in words


def test_an_empty_map_makes_a_picture_that_says_so(merged, head_image, tmp_path, words):
    empty = LabelMap(np.zeros_like(merged.voxels), merged.grid, merged.table)
    draw_merge(head_image, empty, [("a", merged)], tmp_path / "merge.png")
    assert "Nothing is labelled" in " ".join(words)


def test_maps_on_different_grids_are_refused_by_name(merged, head_image, tmp_path):
    other = LabelMap(merged.voxels[:-1], _cropped(merged), merged.table)
    with pytest.raises(ValueError, match="samseg"):
        draw_merge(head_image, merged, [("samseg", other)], tmp_path / "merge.png")
    assert list(tmp_path.iterdir()) == []


def _cropped(labels: LabelMap):
    shape = (labels.grid.shape[0] - 1, *labels.grid.shape[1:])
    return type(labels.grid)(shape, labels.grid.affine)


def test_flipped_and_turned_copies_of_a_head_give_the_same_picture(merged, head_image, tmp_path):
    source = brain_only(merged)
    drawn = draw_merge(head_image, merged, [("a", source)], tmp_path / "a.png")
    affine = merged.grid.affine.copy()
    affine[:3, 3] += affine[:3, 0] * (merged.grid.shape[0] - 1)
    affine[:3, 0] *= -1
    grid = type(merged.grid)(
        tuple(merged.grid.shape[axis] for axis in (2, 0, 1)), affine[:, [2, 0, 1, 3]]
    )

    def turned(array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(array[::-1].transpose(2, 0, 1))

    maps = [LabelMap(turned(x.voxels), grid, x.table) for x in (merged, source)]
    again = draw_merge(turned(head_image), maps[0], [("a", maps[1])], tmp_path / "b.png")
    # Below the header, which tells the shape of the file.
    top = canvas.HEADER_PX
    np.testing.assert_array_equal(pixels_of(drawn)[top:], pixels_of(again)[top:])


@pytest.mark.usefixtures("full_disk")
def test_a_failure_while_writing_leaves_nothing(merged, head_image, tmp_path):
    with pytest.raises(OSError, match="No space"):
        draw_merge(head_image, merged, [], tmp_path / "merge.png")
    assert list(tmp_path.iterdir()) == []
