# SPDX-License-Identifier: Apache-2.0
"""What is done slab by slab or by table equals what it stands for, done plainly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from brainseg_bids.synth.intensity import draw_noise
from brainseg_bids.synth.interpolate import BandedProduct, cubic_matrix, linear_matrix, slabs
from brainseg_bids.synth.recipe import Noise, Resolution
from brainseg_bids.synth.resolution import _sampling, acquire

CPU = torch.device("cpu")


@pytest.mark.parametrize("n", [1, 7, 8, 9, 40, 61])
def test_slabs_cover_every_plane_and_are_equally_thick(n):
    found = slabs(n)
    assert set().union(*(range(*slab) for slab in found)) == set(range(n))
    assert {stop - start for start, stop in found} == {min(n, 8)}


@pytest.mark.parametrize("matrix_of", [linear_matrix, cubic_matrix])
@pytest.mark.parametrize("n", [5, 33, 64])
def test_a_product_by_slabs_is_the_whole_product(matrix_of, n):
    matrix = matrix_of(n, 9, positions=torch.linspace(-1, 9.5, n))
    values = torch.randn(9, 4, 3, generator=torch.Generator().manual_seed(1))
    product = BandedProduct(matrix, values)
    whole = (matrix @ values.flatten(1)).view(n, 4, 3)
    for start, stop in slabs(n):
        torch.testing.assert_close(product(start, stop), whole[start:stop])


def test_noise_is_standard_normal_and_its_voxels_know_nothing_of_each_other():
    noise = draw_noise((40, 40, 40), 7, CPU)(0, 40).numpy().astype(float)
    assert stats.kstest(noise.ravel(), "norm").pvalue > 0.01
    assert abs(stats.kurtosis(noise.ravel())) < 0.1
    for axis in range(3):
        ahead = np.roll(noise, 1, axis)
        assert abs(np.corrcoef(noise.ravel(), ahead.ravel())[0, 1]) < 0.02
    other = draw_noise((40, 40, 40), 8, CPU)(0, 40).numpy()
    assert abs(np.corrcoef(noise.ravel(), other.ravel())[0, 1]) < 0.02


def test_a_slab_of_noise_is_a_slab_of_the_whole():
    noise = draw_noise((19, 5, 3), 3, CPU)
    whole = noise(0, 19)
    for start, stop in slabs(19):
        assert torch.equal(noise(start, stop), whole[start:stop])


@pytest.mark.parametrize(
    "size", [(1.0, 1.0, 1.0), (1.7, 1.7, 1.7), (1, 1, 5.3), (1, 4.0, 1), (3.1, 1, 1)]
)
def test_acquisition_by_slabs_equals_plain_matrices(size, rng):
    image = torch.from_numpy(rng.random((26, 31, 19), dtype=np.float32))
    found = acquire(image, Resolution(size, size), Noise(), voxel_size_mm=1.0, scale=1.0)
    expected = image.double().numpy()
    for axis in range(3):
        sampling = _sampling(image.shape[axis], 1.0, size[axis], size[axis])
        if sampling is None:
            continue
        profile, back = sampling
        up = linear_matrix(len(back), len(profile), positions=back)
        both = (up.double() @ profile.double()).numpy()
        expected = np.moveaxis(np.tensordot(both, expected, (1, axis)), 0, axis)
    assert found.numpy() == pytest.approx(expected, abs=1e-5)


def test_noise_of_an_empty_image_is_rayleigh():
    image = torch.zeros(32, 32, 32)
    found = acquire(image, Resolution(), Noise(0.05, seed=1), voxel_size_mm=1.0, scale=100.0)
    assert float(found.mean()) == pytest.approx(5 * np.sqrt(np.pi / 2), rel=0.02)
    assert float(found.min()) >= 0
