# SPDX-License-Identifier: Apache-2.0
"""Sums that are made plane by plane are those of the whole volume of probabilities."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from brainseg_bids.evaluation.calibration import BINS
from brainseg_bids.inference.confidence import Accumulator, entropy_bits
from brainseg_bids.inference.planes import most_probable
from brainseg_bids.inference.predict import segment
from tests.inference.test_views import SIDES, small_net
from tests.phantom.head import phantom_grid


@pytest.fixture(scope="module")
def segmented():
    """Labels, probabilities on the image's grid, and the sums that were made on the way."""
    image = (np.random.default_rng(3).random((24, 20, 18)) * 10 + 100).astype(np.float32)
    grid = phantom_grid(image.shape, 2.0)
    soft = np.zeros((*grid.to_ras().shape, len(SIDES)), np.float32)

    def keep(plane, rows, columns, probabilities):
        soft[plane, rows, columns] = probabilities.permute(1, 2, 0).numpy()

    options = {"voxel_size_mm": 2.0, "window_vox": (16, 16, 16), "flips": True}
    confidence = Accumulator(len(SIDES))
    confidence.voxels += 5  # of a try that ran out of memory
    labels = segment(
        image, grid, small_net(2), SIDES, on_probabilities=keep, confidence=confidence, **options
    )
    without = segment(image, grid, small_net(2), SIDES, **options)
    return labels, grid.array_from_ras(soft), confidence.sums(), without


def test_sums_are_those_of_the_whole_volume(segmented):
    labels, soft, sums, without = segmented
    np.testing.assert_array_equal(labels.voxels, without.voxels)
    index = SIDES.positions()[labels.voxels]
    largest = np.take_along_axis(soft, index[..., None], -1)[..., 0]
    bins = np.ceil(np.round(largest.astype(float) * BINS, 5)).astype(int) - 1
    np.testing.assert_array_equal(
        sums.voxels.ravel(), np.bincount((index * BINS + bins).ravel(), minlength=sums.voxels.size)
    )
    inside = np.bincount(index.ravel(), weights=largest.ravel(), minlength=len(SIDES))
    np.testing.assert_allclose(sums.inside, inside, rtol=1e-5)
    np.testing.assert_allclose(sums.total, soft.sum((0, 1, 2)), rtol=1e-5)


def test_entropy_is_that_of_the_definition():
    probabilities = torch.tensor([[[0.25, 1.0]], [[0.25, 0.0]], [[0.5, 0.0]]])
    np.testing.assert_allclose(entropy_bits(probabilities), [[1.5, 0.0]], atol=1e-6)
    assert most_probable(probabilities)[1].tolist() == [[0.5, 1.0]]
