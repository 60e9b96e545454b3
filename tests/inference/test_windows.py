# SPDX-License-Identifier: Apache-2.0
"""Windows cover everything, and stitching gives back what windows saw."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from brainseg_bids.inference.windows import stitch, window_starts, window_weights
from brainseg_bids.nets.architectures import pack


@given(st.integers(8, 300), st.integers(4, 100), st.floats(0, 0.7))
def test_windows_cover_the_image_with_the_overlap_asked_for(cells, window_cells, overlap_frac):
    size, window = 2 * cells, 2 * window_cells
    starts = window_starts(size, window, overlap_frac=overlap_frac, step=2)
    assert starts[0] == 0
    assert all(start % 2 == 0 for start in starts)
    if window < size:
        assert starts[-1] == size - window
        gaps = [b - a for a, b in pairwise(starts)]
        assert max(gaps) <= max(2, int(window * (1 - overlap_frac))) + 2


@settings(deadline=None, max_examples=25)
@given(
    st.tuples(*[st.integers(2, 20)] * 3),
    st.tuples(*[st.sampled_from([4, 8, 12])] * 3),
    st.sampled_from([1, 2]),
    st.floats(0, 0.6),
)
def test_a_network_that_copies_gives_the_image_back(cells, window, stem, overlap_frac):
    shape = tuple(stem * n for n in cells)
    image = torch.rand(shape, generator=torch.Generator().manual_seed(1)) + 0.1
    features = stitch(
        lambda seen: pack(seen, stem), image, window=window, stem=stem, overlap_frac=overlap_frac
    )
    torch.testing.assert_close(features, pack(image[None, None], stem)[0], atol=1e-5, rtol=1e-5)


def test_progress_counts_every_window():
    told = []
    stitch(
        lambda seen: seen,
        torch.rand(20, 8, 8),
        window=(8, 8, 8),
        stem=1,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(k, told[-1][1]) for k in range(1, len(told) + 1)]
    assert len(told) == told[-1][1] == 3


def test_a_windows_middle_counts_most_and_its_corners_a_little():
    weights = window_weights((8, 8, 8))
    assert weights.argmax() in range(weights.numel())
    assert weights[4, 4, 4] == pytest.approx(weights.max())
    assert 0 < weights[0, 0, 0] < 0.05 * weights.max()
