# SPDX-License-Identifier: Apache-2.0
"""UNI is the ratio of two noisy inversions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.synth.ratio import second_inversion, take_ratio
from brainseg_bids.synth.recipe import Ratio

SHAPE = (30, 32, 33)


def flat(value: float) -> torch.Tensor:
    return torch.full(SHAPE, value)


def brute_force(uni: float, second: float, sd: float, n: int) -> np.ndarray:
    """The same with numpy's complex numbers, root of u = r / (1 + r^2) found by search."""
    rng = np.random.default_rng(8)
    r = np.linspace(-1, 1, 200_001)
    first = r[np.argmin(np.abs(r / (1 + r**2) - uni))] * second
    noise = rng.normal(0, sd, (4, n))
    one, two = first + noise[0] + 1j * noise[1], second + noise[2] + 1j * noise[3]
    return np.real(np.conj(one) * two) / (np.abs(one) ** 2 + np.abs(two) ** 2)


def test_air_is_uniform_noise_whatever_is_painted_there():
    taken = take_ratio(flat(30.0), flat(0.0), Ratio(0.05, low=0.0, high=255.0, seed=1))
    uni = taken.numpy().ravel()[::3] / 255 - 0.5
    assert stats.kstest(uni, stats.uniform(-0.5, 1).cdf).pvalue > 0.01
    assert stats.ks_2samp(uni, brute_force(0.0, 0.0, 1.0, uni.size)).pvalue > 0.01


@pytest.mark.parametrize("channels", [0.5, 1, 4])
def test_noise_alone_is_a_beta_distribution_of_the_number_of_channels(channels):
    """The law that the docstring derives; half a channel is an image without imaginary part."""
    rng = np.random.default_rng(9)
    one, two = rng.normal(size=(2, round(2 * channels), 20_000))
    uni = (one * two).sum(0) / (one**2 + two**2).sum(0)
    assert stats.kstest(uni + 0.5, stats.beta(channels, channels).cdf).pvalue > 0.01


@pytest.mark.gpu
def test_on_a_gpu_every_plane_is_equally_noisy():
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    box = torch.full((12, 64, 64), 127.5, device="cuda")
    taken = take_ratio(box, torch.ones_like(box), Ratio(0.05, low=0.0, high=255.0))
    spread = taken.std(dim=(1, 2))
    assert spread.max() < 1.15 * spread.min()


@pytest.mark.parametrize(
    ("uni", "second", "noise_frac"), [(0.3, 1.0, 0.1), (-0.2, 0.05, 0.05), (-0.48, 0.6, 0.3)]
)
def test_signal_has_the_law_of_a_simulated_ratio(uni, second, noise_frac):
    painted = 20.0 + (uni + 0.5) * 200.0
    ratio = Ratio(noise_frac, low=20.0, high=220.0, seed=3)
    taken = (take_ratio(flat(painted), flat(second), ratio).numpy().ravel()[::3] - 20) / 200 - 0.5
    assert stats.ks_2samp(taken, brute_force(uni, second, noise_frac, taken.size)).pvalue > 0.01


def test_without_signal_neighbours_know_nothing_of_each_other():
    taken = take_ratio(flat(0.0), flat(0.0), Ratio(0.1, seed=2)).double()
    for axis in range(3):
        n = taken.shape[axis] - 1
        pair = torch.stack(
            [taken.narrow(axis, 0, n).flatten(), taken.narrow(axis, 1, n).flatten()]
        )
        assert abs(torch.corrcoef(pair)[0, 1]) < 0.03


def test_hardly_any_noise_gives_back_what_was_painted():
    painted = torch.linspace(10.0, 245.0, int(np.prod(SHAPE))).view(SHAPE)
    taken = take_ratio(painted, flat(1.0), Ratio(1e-5, low=0.0, high=255.0))
    assert torch.allclose(taken, painted, atol=0.05)


def test_no_noise_takes_no_ratio():
    painted = flat(400.0)
    assert take_ratio(painted, flat(1.0), Ratio(0.0)) is painted


def test_what_is_painted_beyond_the_range_of_the_ratio_stays_inside_and_the_input_is_kept():
    painted, second = flat(400.0), flat(1.0)
    taken = take_ratio(painted, second, Ratio(0.05, low=0.0, high=255.0))
    assert taken.max() <= 255.0 + 1e-3
    assert taken.min() > 150
    assert (painted == 400.0).all()
    assert (second == 1.0).all()


def test_the_seed_decides_the_noise():
    pictures = [take_ratio(flat(90.0), flat(1.0), Ratio(0.05, seed=seed)) for seed in (5, 5, 6)]
    assert torch.equal(pictures[0], pictures[1])
    assert not torch.equal(pictures[0], pictures[2])


def test_shapes_that_differ_and_a_range_upside_down_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        take_ratio(flat(0.0), torch.zeros(2, 2, 2), Ratio(0.1))
    with pytest.raises(ValueError, match="below high"):
        take_ratio(flat(0.0), flat(0.0), Ratio(0.1, low=3.0, high=3.0))


@pytest.mark.parametrize("field_t", [7.0, 9.4])
def test_the_second_inversion_shows_protons_and_leaves_bone_and_air_dark(field_t):
    table = LabelTable.packaged("fullhead")
    second = dict(
        zip(
            [label.name for label in table], second_inversion(table, field_t).tolist(), strict=True
        )
    )
    assert second["Unknown"] == second["Air-Internal"] == 0
    assert second["Left-Cerebral-Cortex"] == pytest.approx(1.0)
    assert 0 < second["Bone-Cortical"] < 0.1
    # A proton-density-like picture: white matter a little brighter, CSF darker.
    assert 0.9 < second["Left-Cerebral-White-Matter"] < 1.3
    assert 0.3 < second["Left-Lateral-Ventricle"] < 0.8
