# SPDX-License-Identifier: Apache-2.0
"""Air bends the field as a dipole does, and signal is lost near it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from brainseg_bids.synth.recipe import Susceptibility
from brainseg_bids.synth.susceptibility import (
    AIR_PPM,
    GAMMA_HZ_PER_T,
    field_shift_ppm,
    signal_left,
)

N, RADIUS = 36, 6.0


def offsets(n: int = N) -> torch.Tensor:
    axis = torch.arange(n) - (n - 1) / 2
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"))


def ball(n: int = N, radius: float = RADIUS) -> torch.Tensor:
    """Share of each cell inside a ball in the middle, from 5^3 points a cell."""
    fine = (torch.arange(5) - 2) / 5
    share = torch.zeros(n, n, n)
    for x in fine:
        for y in fine:
            for z in fine:
                at = offsets(n) + torch.tensor([x, y, z]).view(3, 1, 1, 1)
                share += at.square().sum(0) <= radius**2
    return share / 125


@pytest.fixture(scope="module")
def sphere() -> torch.Tensor:
    return ball()


def analytic(place: torch.Tensor) -> torch.Tensor:
    """Field outside of a sphere: dchi / 3 (a / r)^3 (3 cos^2 - 1)."""
    r2 = place.square().sum(0)
    return AIR_PPM / 3 * RADIUS**3 / r2**1.5 * (3 * place[2].square() / r2 - 1)


def test_the_field_around_a_ball_of_air_is_a_dipoles(sphere):
    place = offsets()
    outside = place.square().sum(0).sqrt() > RADIUS + 2
    field, expected = field_shift_ppm(sphere), analytic(place)
    error = (field - expected)[outside]
    error = error - error.mean()  # the mean is arbitrary
    assert error.abs().max() < 0.05 * expected[outside].abs().max()
    assert error.square().mean().sqrt() < 0.03 * expected[outside].square().mean().sqrt()


def test_inside_a_ball_the_field_is_even(sphere):
    inside = offsets().square().sum(0).sqrt() < RADIUS - 2
    assert field_shift_ppm(sphere)[inside].std() < 0.02 * AIR_PPM


def test_the_main_field_is_along_the_last_axis(sphere):
    field, middle, far = field_shift_ppm(sphere), N // 2, N // 2 + 10
    assert field[middle, middle, far] > 0.5
    assert field[far, middle, middle] < -0.2
    assert torch.allclose(field, field.transpose(0, 1), atol=1e-4)


def test_the_loss_is_that_of_the_analytic_slope(sphere):
    echo_time_ms, field_t, spacing_mm, voxel_mm = 12.0, 7.0, 4.0, 1.5
    left = signal_left(
        sphere,
        Susceptibility(echo_time_ms, field_t),
        spacing_mm=spacing_mm,
        voxel_size_mm=voxel_mm,
    )
    step = 0.01
    expected = torch.ones(N, N, N)
    for axis in range(3):
        shift = torch.zeros(3, 1, 1, 1)
        shift[axis] = step
        ppm_per_mm = (analytic(offsets() + shift) - analytic(offsets() - shift)) / (
            2 * step * spacing_mm
        )
        cycles = ppm_per_mm * 1e-6 * field_t * GAMMA_HZ_PER_T * voxel_mm * echo_time_ms * 1e-3
        expected *= torch.sinc(cycles).abs()
    outside = offsets().square().sum(0).sqrt() > RADIUS + 3
    assert expected[outside].min() < 0.6  # something is lost
    assert (left - expected)[outside].abs().max() < 0.08


def test_no_echo_time_loses_nothing(sphere):
    assert torch.equal(
        signal_left(sphere, Susceptibility(0.0), spacing_mm=4.0), torch.ones(N, N, N)
    )


def test_signal_is_lost_beside_a_cavity_and_kept_far_away(sphere):
    left = signal_left(sphere, Susceptibility(12.0, 7.0), spacing_mm=4.0)
    beside = round((N - 1) / 2 + RADIUS) + 1
    assert left[N // 2, N // 2, beside] < 0.7
    assert left[0].min() > 0.98
    assert left[:, 0].min() > 0.98
    assert left.min() >= 0
    assert left.max() <= 1


def test_a_longer_echo_or_a_stronger_field_loses_more(sphere):
    kept = [
        signal_left(sphere, Susceptibility(*echo), spacing_mm=4.0).mean().item()
        for echo in ((3.0, 3.0), (3.0, 7.0), (10.0, 7.0))
    ]
    assert kept[0] > kept[1] > kept[2]


def test_a_box_all_of_tissue_or_all_of_air_loses_nothing():
    for share in (0.0, 1.0):
        left = signal_left(torch.full((12, 13, 9), share), Susceptibility(20.0), spacing_mm=4.0)
        assert left.min() > 0.999


def test_air_that_ends_at_the_face_of_the_box_goes_on_beyond_it():
    air = torch.zeros(20, 20, 20)
    air[:, :, 15:] = 1.0  # a slab: its field is even, but for what is far away
    left = signal_left(air, Susceptibility(5.0, 3.0), spacing_mm=4.0)
    assert left[5:15, 5:15, :13].min() > 0.97
    assert np.isfinite(left.numpy()).all()
