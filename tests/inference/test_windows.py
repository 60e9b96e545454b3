# SPDX-License-Identifier: Apache-2.0
"""Windows cover everything, and stitching gives back what windows saw."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from brainseg_bids.inference import windows
from brainseg_bids.inference.windows import (
    count_windows,
    stitched_rows,
    window_starts,
    window_weights,
)
from brainseg_bids.nets.architectures import space_to_depth


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


@settings(deadline=None, max_examples=40)
@given(
    st.tuples(*[st.integers(2, 20)] * 3),
    st.tuples(*[st.sampled_from([4, 8, 12])] * 3),
    st.sampled_from([1, 2]),
    st.floats(0, 0.6),
    st.integers(1, 7),
)
def test_a_network_that_copies_gives_the_image_back(cells, window, block_size, overlap_frac, rows):
    shape = tuple(block_size * n for n in cells)
    image = torch.rand(shape, generator=torch.Generator().manual_seed(1)) + 0.1
    slabs = list(
        stitched_rows(
            lambda seen: space_to_depth(seen, block_size),
            image, window=window, block_size=block_size, overlap_frac=overlap_frac, rows=rows,
        )
    )  # fmt: skip
    assert [slab.shape[1] for slab in slabs[:-1]] == [rows] * (len(slabs) - 1)
    features = torch.cat(slabs, dim=1)
    torch.testing.assert_close(
        features, space_to_depth(image[None, None], block_size)[0], atol=1e-5, rtol=1e-5
    )


def test_progress_counts_every_window():
    told = []
    shape, window = (20, 8, 8), (8, 8, 8)
    for _ in stitched_rows(
        lambda seen: seen,
        torch.rand(shape),
        window=window,
        block_size=1,
        progress=lambda: told.append(1),
    ):
        pass  # fmt: skip
    assert len(told) == count_windows(shape, window, block_size=1) == 3


def test_rows_are_handed_on_before_later_windows_are_looked_at():
    looked = []

    def look(seen):
        looked.append(1)
        return seen

    slabs = stitched_rows(look, torch.rand(80, 8, 8), window=(8, 8, 8), block_size=1, rows=2)
    assert next(slabs).shape == (1, 2, 8, 8)
    assert len(looked) == 1
    assert len(list(slabs)) == 39
    assert len(looked) == count_windows((80, 8, 8), (8, 8, 8), block_size=1)


def test_sums_are_kept_for_one_windows_depth_only(monkeypatch):
    held = []
    finished = windows._Sums.finished

    def count(sums, stop):
        held.append(sum(len(weights) for _, weights in sums.slabs.values()))
        return finished(sums, stop)

    monkeypatch.setattr(windows._Sums, "finished", count)
    n_slabs = sum(
        1
        for _ in stitched_rows(lambda s: s, torch.rand(160, 8, 8), window=(16, 8, 8), block_size=1)
    )
    assert n_slabs == 40
    assert max(held) <= 16 + 4


def test_sums_that_would_be_too_large_are_kept_in_half_the_bytes():
    image = torch.rand((24, 16, 16), generator=torch.Generator().manual_seed(1)) + 0.1

    def features(**options):
        return torch.cat(
            list(
                stitched_rows(lambda seen: seen, image, window=(16, 8, 8), block_size=1, **options)
            ),
            dim=1,
        )

    full, half = features(), features(largest_bytes=4 * 20 * 16 * 16 - 1)
    assert full.dtype == half.dtype == torch.float32
    assert torch.equal(full, features(largest_bytes=4 * 20 * 16 * 16))
    assert 0 < (half - full).abs().max() < 2e-3


def test_a_windows_middle_counts_most_and_its_corners_a_little():
    weights = window_weights((8, 8, 8))
    assert weights.argmax() in range(weights.numel())
    assert weights[4, 4, 4] == pytest.approx(weights.max())
    assert 0 < weights[0, 0, 0] < 0.05 * weights.max()
