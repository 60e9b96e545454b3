# SPDX-License-Identifier: Apache-2.0
"""Parts of the measurement on data of known truth: noise law, grain, resolution, mixture."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from brainseg_bids.contrast.bias import flat_field
from brainseg_bids.contrast.interior import border_depth, find_interior
from brainseg_bids.contrast.mixture import describe
from brainseg_bids.contrast.noise import find_background, is_ratio, magnitude_law, tissue_sigma
from brainseg_bids.contrast.resolution import edge_fwhm_mm, noise_correlation, noise_fwhm_mm
from brainseg_bids.contrast.robust import location_scale
from brainseg_bids.contrast.texture import autocorrelation, correlated_texture
from tests.phantom.head import phantom_head


def test_location_and_scale_are_unbiased_at_the_normal(rng):
    location, scale = location_scale(rng.normal(50, 8, 100_000))
    assert location == pytest.approx(50, abs=0.1)
    assert scale == pytest.approx(8, rel=0.01)


def test_a_fifth_of_wrong_voxels_hardly_moves_location_and_scale(rng):
    values = np.concatenate([rng.normal(100, 5, 8000), rng.normal(30, 8, 2000)])
    location, scale = location_scale(values)
    assert location == pytest.approx(100, abs=0.3)
    assert scale == pytest.approx(5, rel=0.05)
    assert values.std() > 25


def test_weights_say_whom_to_trust(rng):
    values = np.concatenate([rng.normal(100, 5, 4000), rng.normal(112, 5, 4000)])
    weights = np.repeat([1.0, 0.01], 4000)
    assert location_scale(values, weights)[0] < location_scale(values)[0] - 3


def test_a_mixture_is_told_apart_and_its_moments_are_the_labels(rng):
    values = np.concatenate([rng.normal(60, 8, 5000), rng.normal(150, 20, 3000)])
    shape = describe(values)
    assert [c.mean for c in shape.components] == pytest.approx([60, 150], abs=2)
    assert [c.weight for c in shape.components] == pytest.approx([5 / 8, 3 / 8], abs=0.02)
    assert shape.location == pytest.approx(values.mean(), rel=0.01)
    assert shape.scale == pytest.approx(values.std(), rel=0.02)
    assert shape.fit < 0.02


def test_some_partial_volume_is_no_component(rng):
    values = np.concatenate([rng.normal(60, 4, 9600), rng.uniform(60, 200, 400)])
    shape = describe(values)
    assert len(shape.components) == 1
    assert shape.location == pytest.approx(60, abs=0.5)


def test_integers_fit_as_well_as_what_they_were_rounded_from(rng):
    assert describe(np.rint(rng.normal(20, 1.5, 5000))).fit < 0.02


def test_a_voxel_at_a_border_is_never_interior():
    ranks = np.zeros((30, 30, 30), dtype=np.uint8)
    ranks[5:25, 5:25, 5:25] = 1
    ranks[5:25, 5:25, 14:17] = 2  # three voxels thick
    interior, level = find_interior(ranks, 3, (1.0, 1.0, 1.0))
    _, depth_mm = border_depth(ranks, (1.0, 1.0, 1.0))
    assert (level.ravel()[interior.flat] > 0).all()
    thick, thin = (np.unravel_index(interior.flat[interior.of(r)], ranks.shape) for r in (1, 2))
    assert set(thin[2]) == {15}
    assert depth_mm[level[thick]].min() > 1.9
    assert interior.weights[interior.of(2)].max() < interior.weights[interior.of(1)].min()


def test_wrong_labels_at_borders_are_not_trusted(rng):
    true = np.zeros((40, 40, 40), dtype=np.uint8)
    true[8:32, 8:32, 8:32] = 1
    noisy = true.copy()
    shell = ndimage.binary_dilation(true == 1) & (true == 0)
    noisy[shell & (rng.random(true.shape) < 0.2)] = 1
    interior, _ = find_interior(noisy, 2, (1.0, 1.0, 1.0))
    assert (true.ravel()[interior.flat] == 1).all()


def test_channels_of_the_noise_are_told(rng):
    four = np.sqrt((rng.normal(0, 5.0, (8, 60_000)) ** 2).sum(0))
    law = magnitude_law(four)
    assert law.kind == "chi"
    assert law.channels == pytest.approx(4, rel=0.1)
    assert law.sigma == pytest.approx(5, rel=0.05)


@pytest.mark.parametrize("rounded", [False, True])
def test_integers_and_cut_zeros_do_not_spoil_the_rician_fit(rng, rounded):
    values = np.hypot(*rng.normal(0, 3.0, (2, 50_000)))
    values[:4000] = 0
    law = magnitude_law(np.rint(values) if rounded else values)
    assert (law.kind, law.sigma) == ("rician", pytest.approx(3.0, rel=0.04))


def test_ghosts_and_masked_parts_of_the_air_are_left_out(rng):
    shape = (96, 64, 64)
    image = np.hypot(*rng.normal(0, 4.0, (2, *shape))).astype(np.float32)
    image[60:] = 0
    image[:, 20:40] *= 3  # a ghost along the phase-encoding axis
    head = np.zeros(shape, dtype=bool)
    head[20:40, 24:40, 24:40] = True
    image[head] = 500
    background = find_background(image, ~head, (1.0, 1.0, 1.0), rng=rng)
    assert magnitude_law(background.values).sigma == pytest.approx(4, rel=0.05)
    assert background.masked_share == pytest.approx(36 / 96, abs=0.12)
    assert not is_ratio(background)


def test_negative_air_is_gaussian(rng):
    law = magnitude_law(rng.normal(0, 2.0, 20_000))
    assert (law.kind, law.sigma) == ("gaussian", pytest.approx(2.0, rel=0.03))


def test_noise_within_tissue_does_not_count_slow_change(rng):
    slow = np.linspace(0, 200, 40)[:, None, None]
    image = (slow + rng.normal(0, 3.0, (40, 40, 40))).astype(np.float32)
    level = np.ones(image.shape, dtype=np.uint8)
    sigma = tissue_sigma(image, np.arange(image.size), level)
    assert sigma == pytest.approx(3, rel=0.03)


@pytest.mark.parametrize(("share", "length_mm"), [(0.5, 3.0), (0.3, 6.0), (0.0, 3.0)])
def test_grain_is_told_from_noise(rng, share, length_mm):
    shape = (72, 72, 72)
    # Two blurs: the autocorrelation of noise blurred by s is Gaussian of sd sqrt(2) s.
    grain = ndimage.gaussian_filter(rng.normal(size=shape), length_mm / 1.1774 / np.sqrt(2))
    image = np.sqrt(share) * grain / grain.std() + np.sqrt(1 - share) * rng.normal(size=shape)
    ranks = np.ones(shape, dtype=np.uint8)
    interior, _ = find_interior(ranks, 2, (1.0, 1.0, 1.0))
    distance, product, spread = autocorrelation(
        image.astype(np.float32), ranks, interior, (1.0, 1.0, 1.0), rng=rng
    )
    grain_mm, grain_frac = correlated_texture(distance, product[1], spread[1], resolution_mm=1.0)
    if share == 0:
        assert (grain_mm, grain_frac) == (None, 0.0)
    else:
        assert grain_frac == pytest.approx(share, abs=0.1)
        assert grain_mm == pytest.approx(length_mm, rel=0.3)


@pytest.mark.parametrize("blur_vox", [0.5, 1.5, 2.2])
def test_resolution_is_found_within_fifteen_percent(blur_vox):
    coarse = phantom_head(shape=(64, 75, 70), voxel_size_mm=3.0)
    fine = phantom_head(grid=coarse.grid.with_voxel_size(1.5))
    kept = (coarse.voxels > 0).astype(np.uint8)
    image = np.where(fine.voxels > 0, 100.0, 5.0).astype(np.float32)
    image = ndimage.gaussian_filter(image, 2 * blur_vox / 2.3548)
    image = image.reshape(64, 2, 75, 2, 70, 2).mean((1, 3, 5))
    noise = np.random.default_rng(0).normal(0, 1.0, image.shape)
    found = edge_fwhm_mm(
        (image + noise).astype(np.float32),
        kept,
        np.array([5.0, 100.0]),
        1.0,
        (3.0, 3.0, 3.0),
        rng=np.random.default_rng(0),
    )
    expected = 3.0 * (blur_vox**3 + 1) ** (1 / 3)
    assert found == pytest.approx((expected,) * 3, rel=0.15)


def test_where_borders_do_not_serve_noise_tells_the_resolution(rng):
    image = ndimage.gaussian_filter(rng.normal(size=(50, 50, 50)), (0.0, 0.7, 1.2))
    ranks = np.ones(image.shape, dtype=np.uint8)
    none = edge_fwhm_mm(image, ranks, np.array([0.0, 1.0]), 1.0, (1.0, 1.0, 1.0), rng=rng)
    assert none == (None, None, None)
    correlation = noise_correlation(image, ranks, np.arange(image.size))
    x, y, z = noise_fwhm_mm(correlation, (1.0, 1.0, 1.0))
    assert x == pytest.approx(1.0, abs=0.15)
    assert y == pytest.approx((1.65**3 + 1) ** (1 / 3), rel=0.15)
    assert z == pytest.approx((2.83**3 + 1) ** (1 / 3), rel=0.15)


def test_no_field_is_zero_everywhere():
    field = flat_field().on_grid(np.arange(3), np.arange(4), np.arange(5))
    assert field.shape == (3, 4, 5)
    assert not field.any()
