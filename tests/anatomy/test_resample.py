# SPDX-License-Identifier: Apache-2.0
"""Labels and images resampled through a transform."""

import numpy as np
import pytest
from scipy import ndimage

from brainseg_bids.anatomy import resample
from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.resample import resample_image, resample_labels, resample_probabilities


@pytest.fixture
def target(rng):
    """A grid, and coordinates in the phantom: turned, scaled and wavy, some outside."""
    grid = Grid((37, 41, 29), np.diag([5.0, 5, 5, 1]))
    steps = np.indices(grid.shape, dtype=np.float32)
    turn = np.array([[1.1, 0.2, 0], [-0.15, 1.2, 0.1], [0, 0.1, 1.6]], np.float32)
    coordinates = (
        np.tensordot(turn, steps, 1) - np.array([2.0, 3, 4], np.float32)[:, None, None, None]
    )
    coordinates += 1.5 * np.sin(steps / 5)
    return grid, coordinates


def test_each_labels_share_decides_as_if_every_label_had_a_volume(head, target, monkeypatch):
    monkeypatch.setattr(resample, "SLAB_VOXELS", 5000)
    grid, coordinates = target
    resampled = resample_labels(head, coordinates, grid).voxels
    sizes = np.array(head.grid.shape)[:, None, None, None]
    inside = ((coordinates >= -0.5) & (coordinates <= sizes - 0.5)).all(0)
    codes = np.unique(head.voxels)
    shares = np.stack(
        [
            ndimage.map_coordinates(
                (head.voxels == code).astype(float), coordinates, order=1, mode="nearest"
            )
            for code in codes
        ]
    )
    top = np.sort(shares, axis=0)
    clear = inside & (top[-1] - top[-2] > 1e-4)
    assert clear.mean() > 0.5
    assert np.array_equal(resampled[clear], codes[shares.argmax(0)][clear])
    assert not resampled[~inside].any()


def test_probabilities_of_certain_labels_give_what_labels_give(head, target):
    grid, coordinates = target
    codes = [int(code) for code in np.unique(head.voxels)]
    certain = ((code, (head.voxels == code).astype(np.float32)) for code in codes)
    soft = resample_probabilities(certain, coordinates, grid, head.table).voxels
    assert (soft == resample_labels(head, coordinates, grid).voxels).mean() > 0.999


def test_an_image_is_interpolated_as_scipy_does(head_image, target):
    grid, coordinates = target
    sizes = np.array(head_image.shape)[:, None, None, None]
    inside = ((coordinates >= -0.5) & (coordinates <= sizes - 0.5)).all(0)
    expected = ndimage.map_coordinates(head_image, coordinates, order=1, mode="nearest")
    resampled = resample_image(head_image, coordinates, grid)
    assert np.allclose(resampled[inside], expected[inside], atol=0.05)
    assert not resampled[~inside].any()


def test_labels_on_their_own_grid_stay_as_they_are(head):
    coordinates = np.indices(head.grid.shape, dtype=np.float32)
    assert np.array_equal(resample_labels(head, coordinates, head.grid).voxels, head.voxels)


def test_of_equal_shares_the_order_of_voxels_does_not_decide(head):
    """Midway between two voxels the lower code wins, whichever lies first."""
    table = head.table
    voxels = np.array([2, 41, 2], np.int16).reshape(3, 1, 1)
    from brainseg_bids.anatomy.labelmap import LabelMap

    labels = LabelMap(voxels, Grid((3, 1, 1), np.eye(4)), table)
    coordinates = np.zeros((3, 2, 1, 1), np.float32)
    coordinates[0, :, 0, 0] = [0.5, 1.5]
    found = resample_labels(labels, coordinates, Grid((2, 1, 1), np.eye(4))).voxels
    assert found.ravel().tolist() == [2, 2]


def test_places_of_another_shape_are_refused(head):
    with pytest.raises(ValueError, match="do not fit"):
        resample_labels(head, np.zeros((3, 2, 2, 2)), Grid((3, 3, 3), np.eye(4)))
