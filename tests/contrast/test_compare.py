# SPDX-License-Identifier: Apache-2.0
"""Distances of intensities are exact."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from brainseg_bids.contrast.compare import Histogram, energy_distance


@pytest.mark.parametrize(("n", "m"), [(1, 1), (50, 80), (400, 3)])
def test_the_energy_distance_of_samples_is_the_square_of_scipys(rng, n, m):
    one, two = rng.normal(0, 1, n).round(1), rng.normal(0.5, 2, m).round(1)
    assert energy_distance(one, two) == pytest.approx(stats.energy_distance(one, two) ** 2)


def test_the_energy_distance_is_that_of_all_pairs(rng):
    one, two = rng.normal(0, 1, 40), rng.normal(1, 1, 30)

    def apart(a, b):
        return np.abs(a[:, None] - b[None]).mean()

    expected = 2 * apart(one, two) - apart(one, one) - apart(two, two)
    assert energy_distance(one, two) == pytest.approx(expected)
    assert energy_distance(two, one) == pytest.approx(expected)


def test_equal_distributions_have_no_distance(rng):
    samples = rng.normal(size=100)
    assert energy_distance(samples, rng.permutation(samples)) == 0
    histogram = Histogram(np.linspace(0, 1, 6), np.arange(5))
    finer = Histogram(np.linspace(0, 1, 11), np.repeat(np.arange(5), 2))
    assert energy_distance(histogram, finer) == pytest.approx(0, abs=1e-12)


def test_a_histogram_stands_for_many_evenly_spread_samples(rng):
    edges, counts = np.array([0.0, 1.0, 1.5, 4.0]), np.array([5, 1, 2])
    spread = np.concatenate(
        [
            low + (high - low) * (np.arange(2000 * n) + 0.5) / (2000 * n)
            for low, high, n in zip(edges[:-1], edges[1:], counts, strict=True)
        ]
    )
    other = rng.normal(1, 1, 200)
    histogram = Histogram(edges, counts)
    expected = stats.energy_distance(spread, other) ** 2
    assert energy_distance(histogram, other) == pytest.approx(expected, rel=1e-3)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="finite"):
        energy_distance(np.array([]), np.ones(3))
    with pytest.raises(ValueError, match="finite"):
        energy_distance(np.array([np.nan]), np.ones(3))
    with pytest.raises(ValueError, match="ascending"):
        Histogram([0, 0, 1], [1, 1])
    with pytest.raises(ValueError, match="negative"):
        Histogram([0, 1, 2], [0, 0])
