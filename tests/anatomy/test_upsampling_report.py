# SPDX-License-Identifier: Apache-2.0
"""The upsampling_report tells what upsampling did, good or bad."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import Label, LabelTable
from brainseg_bids.anatomy.topology import components, euler_numbers
from brainseg_bids.anatomy.upsample import upsample
from brainseg_bids.anatomy.upsampling_report import upsampling_report
from tests.phantom.head import phantom_grid

TABLE = LabelTable([Label(n, f"Label-{n}") for n in range(6)], name="six")


def row_of(found: dict, code: int) -> dict:
    return next(row for row in found["labels"] if row["index"] == code)


def euler_by_definition(mask: np.ndarray) -> int:
    """Count every vertex, edge, face and voxel as a point of a grid twice as fine."""
    cells = set()
    for voxel in np.argwhere(mask):
        for step in np.ndindex(3, 3, 3):
            cells.add(tuple(2 * voxel + step))
    return sum((-1) ** sum(c % 2 for c in cell) for cell in cells)


SHAPES = {
    "ball": (lambda m: m.__setitem__((slice(1, 4),) * 3, 1), 1),
    "shell": (lambda m: (m.__setitem__((slice(1, 4),) * 3, 1), m.__setitem__((2, 2, 2), 0)), 2),
    "ring": (
        lambda m: (
            m.__setitem__((slice(1, 4), slice(1, 4), 2), 1),
            m.__setitem__((2, 2, 2), 0),
        ),
        0,
    ),
    "two pieces": (lambda m: (m.__setitem__((0, 0, 0), 1), m.__setitem__((4, 4, 4), 1)), 2),
    "corner to corner": (lambda m: (m.__setitem__((0, 0, 0), 1), m.__setitem__((1, 1, 1), 1)), 1),
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_euler_number_of_known_shapes(name):
    paint, expected = SHAPES[name]
    mask = np.zeros((5, 5, 5), np.int16)
    paint(mask)
    assert euler_numbers(mask)[1] == expected == euler_by_definition(mask)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3))
def test_euler_numbers_are_those_of_the_definition(seed, n_labels):
    codes = np.random.default_rng(seed).integers(0, n_labels + 1, (4, 5, 3)).astype(np.int16)
    found = euler_numbers(codes)
    assert found.keys() == set(np.unique(codes).tolist())
    for code, number in found.items():
        assert number == euler_by_definition(codes == code)


def test_pieces_that_touch_at_a_corner_are_one():
    mask = np.zeros((4, 4, 4), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[3, 3, 3] = True
    assert components(mask) == 2


def test_a_lost_label_is_named_and_nothing_is_invented():
    voxels = np.zeros((9, 9, 9), np.int16)
    voxels[1:4, 1:4, 1:4] = 2
    voxels[6, 6, 6] = 5
    labels = LabelMap(voxels, phantom_grid((9, 9, 9), 1.0), TABLE)
    smooth = upsample(labels, 0.5, kernel="linear", smoothing_mm=0.8)
    found = upsampling_report(labels, smooth)
    assert found["labels_lost"] == [{"index": 5, "name": "Label-5", "voxels": 1}]
    assert found["labels_invented"] == []
    assert row_of(found, 5)["volume_change"] == -1
    assert row_of(found, 5)["components_after"] == 0
    assert row_of(found, 5)["centroid_shift_mm"] is None
    assert row_of(found, 2)["centroid_shift_mm"] == pytest.approx(0, abs=1e-9)


def test_a_lossless_map_has_a_perfect_round_trip(head):
    found = upsampling_report(head, upsample(head, 2.0, kernel="lossless"))
    assert found["round_trip_mean_dice"] == 1
    assert found["round_trip_equal_voxels"] == 1
    assert {row["round_trip_dice"] for row in found["labels"]} == {1.0}


def test_volumes_and_centroids_are_those_of_the_world(head):
    found = upsampling_report(head, upsample(head, 2.0))
    volumes = head.volumes_mm3()
    for row in found["labels"]:
        assert row["volume_before_mm3"] == volumes[row["index"]]
        assert row["volume_change"] == pytest.approx(
            row["volume_after_mm3"] / row["volume_before_mm3"] - 1
        )
        assert row["centroid_shift_mm"] < 2


def test_a_certificate_can_be_written_as_json(head):
    found = upsampling_report(head, upsample(head, 2.5, keep_thin=True))
    assert json.loads(json.dumps(found)) == found


def test_maps_of_different_tables_are_refused(head):
    other = LabelMap(np.zeros((3, 3, 3), np.int16), phantom_grid((3, 3, 3)), TABLE)
    with pytest.raises(ValueError, match="differ"):
        upsampling_report(head, other)
