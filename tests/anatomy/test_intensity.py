# SPDX-License-Identifier: Apache-2.0
"""Normalisation: one function for arrays and tensors, for whole planes that are sampled, too."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from brainseg_bids.anatomy.intensity import HIGH, LOW, IntensityRange, intensity_range, rescale


@pytest.mark.parametrize("last_axis", [42, 61, 59 * 61])
def test_arrays_and_tensors_are_scaled_alike(rng, last_axis):
    image = rng.gamma(2, 50, (20, 7, last_axis)).astype(np.float32)
    scaled = rescale(image)
    assert scaled.dtype == np.float32
    assert (scaled.min(), scaled.max()) == (0, 1)
    np.testing.assert_allclose(rescale(torch.from_numpy(image)).numpy(), scaled, atol=1e-5)


def test_the_range_is_that_of_all_voxels_whatever_the_length_of_rows(rng):
    for last_axis in (60, 61, 2 * 61, 59 * 61):
        image = rng.gamma(2, 50, (40, 4000 // last_axis + 30, last_axis))
        window = intensity_range(image)
        assert np.mean(image < window.low) == pytest.approx(LOW, abs=0.003)
        assert np.mean(image < window.high) == pytest.approx(HIGH, abs=0.003)


def test_a_constant_image_is_dark_and_nothing_is_divided_by_zero():
    assert not rescale(np.full((5, 5, 5), 7.0)).any()
    assert IntensityRange(3.0, 3.0).level(4.0) == 1
