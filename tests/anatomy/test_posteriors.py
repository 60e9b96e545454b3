# SPDX-License-Identifier: Apache-2.0
"""Compressed posteriors: what is kept, what adds up, what is refused."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labels import Label, LabelTable, UnknownLabelError
from brainseg_bids.anatomy.posteriors import TopPosteriors

CODES = (0, 2, 3, 10, 24, 515)
TABLE = LabelTable([Label(code, f"L{code}") for code in CODES], name="demo")
GRID = Grid((3, 4, 5), np.eye(4))


def posteriors(rng, sharpness=2.0) -> np.ndarray:
    raw = rng.random((len(CODES), *GRID.shape)) ** sharpness
    return raw / raw.sum(axis=0)


@given(st.integers(0, 10**6), st.integers(1, 6))
def test_the_k_most_probable_labels_are_kept_in_order(seed, k):
    p = posteriors(np.random.default_rng(seed))
    soft = TopPosteriors.from_posteriors(zip(CODES, p, strict=True), GRID, TABLE, k=k)
    order = np.argsort(-p, axis=0, kind="stable")[:k]
    expected = np.rint(np.take_along_axis(p, order, axis=0) * 255)
    assert np.abs(soft.weights - expected).max() <= 1
    assert (np.diff(soft.weights.astype(int), axis=0) <= 0).all()
    best = np.sort(p, axis=0)[-2:]
    clear = best[1] - best[0] > 1e-4
    first = np.array(CODES)[p.argmax(axis=0)]
    np.testing.assert_array_equal(soft.hard().voxels[clear], first[clear])


@given(st.integers(0, 10**6))
def test_the_order_of_the_volumes_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    p, order = posteriors(rng), rng.permutation(len(CODES))
    one = TopPosteriors.from_posteriors(zip(CODES, p, strict=True), GRID, TABLE, k=3)
    other = TopPosteriors.from_posteriors(((CODES[i], p[i]) for i in order), GRID, TABLE, k=3)
    np.testing.assert_array_equal(one.weights, other.weights)
    np.testing.assert_array_equal(one.codes, other.codes)


def test_one_volume_is_held_at_a_time():
    alive = []

    def stream():
        for code in CODES:
            volume = np.full(GRID.shape, 1 / len(CODES))
            alive.append(weakref.ref(volume))
            yield code, volume
            del volume
            assert sum(ref() is not None for ref in alive) <= 1

    TopPosteriors.from_posteriors(stream(), GRID, TABLE, k=2)
    assert len(alive) == len(CODES)


def test_where_no_volume_speaks_background_is_certain():
    p = np.zeros(GRID.shape)
    p[0] = 0.9
    soft = TopPosteriors.from_posteriors([(10, p)], GRID, TABLE, k=2)
    assert soft.codes[0, 0].tolist() == [[10] * 5] * 4
    assert (soft.codes[:, 1:] == 0).all()
    assert (soft.weights[0, 1:] == 255).all()


def test_eight_bit_volumes_are_read_as_255_for_certain():
    p = np.full(GRID.shape, 255, dtype=np.uint8)
    assert (TopPosteriors.from_posteriors([(3, p)], GRID, TABLE).weights[0] == 255).all()


def test_padding_is_code_0_with_weight_0(rng):
    soft = TopPosteriors.from_posteriors([(3, rng.random(GRID.shape))], GRID, TABLE, k=4)
    assert (soft.codes[1:] == 0).all()
    assert (soft.weights[1:] == 0).all()


def test_what_is_no_posterior_is_refused():
    for bad in (np.full(GRID.shape, 1.5), np.full(GRID.shape, -0.2), np.full(GRID.shape, np.nan)):
        with pytest.raises(ValueError, match=r"L3: "):
            TopPosteriors.from_posteriors([(3, bad)], GRID, TABLE)
    with pytest.raises(ValueError, match="does not fit"):
        TopPosteriors.from_posteriors([(3, np.zeros((2, 2, 2)))], GRID, TABLE)
    with pytest.raises(ValueError, match="occurs twice"):
        TopPosteriors.from_posteriors([(3, np.zeros(GRID.shape))] * 2, GRID, TABLE)
    with pytest.raises(UnknownLabelError, match="99"):
        TopPosteriors.from_posteriors([(99, np.zeros(GRID.shape))], GRID, TABLE)


def test_shapes_and_types_must_fit():
    codes, weights = np.zeros((2, *GRID.shape), np.int16), np.zeros((2, *GRID.shape), np.uint8)
    with pytest.raises(ValueError, match="do not fit"):
        TopPosteriors(codes, weights[:1], GRID, TABLE)
    with pytest.raises(ValueError, match="int16"):
        TopPosteriors(codes.astype(int), weights, GRID, TABLE)


def test_certainty_gives_the_label_map_back(head):
    soft = TopPosteriors.certain(head, k=3)
    np.testing.assert_array_equal(soft.hard().voxels, head.voxels)
    assert (soft.weights[0] == 255).all()
    assert not soft.weights[1:].any()


@given(st.integers(0, 10**6), st.integers(1, 5))
def test_codes_that_become_the_same_code_add_up(seed, k):
    p = posteriors(np.random.default_rng(seed))
    fold = Crosswalk({0: 0, 2: 2, 3: 2, 10: 2, 24: 24, 515: 515}, TABLE)
    soft = TopPosteriors.from_posteriors(zip(CODES, p, strict=True), GRID, TABLE, k=k)
    folded = soft.translate(fold)
    for code in (0, 2, 24, 515):
        sources = [source for source, target in fold.pairs.items() if target == code]
        before = (soft.weights * np.isin(soft.codes, sources)).sum(axis=0)
        after = (folded.weights * (folded.codes == code)).sum(axis=0)
        np.testing.assert_array_equal(after, np.minimum(before, 255))
    assert (np.diff(folded.weights.astype(int), axis=0) <= 0).all()


def test_a_split_structure_wins_once_its_parts_add_up():
    halves = [(2, 0.3), (3, 0.3), (10, 0.4)]
    soft = TopPosteriors.from_posteriors(
        [(code, np.full(GRID.shape, p)) for code, p in halves], GRID, TABLE
    )
    assert (soft.hard().voxels == 10).all()
    folded = soft.translate(Crosswalk({2: 2, 3: 2, 10: 10}, TABLE))
    assert (folded.hard().voxels == 2).all()


def test_padding_needs_no_translation_and_unknown_codes_do(rng):
    soft = TopPosteriors.from_posteriors([(3, np.ones(GRID.shape))], GRID, TABLE, k=3)
    assert (soft.translate(Crosswalk({3: 2}, TABLE)).codes[0] == 2).all()
    with pytest.raises(UnknownLabelError, match=r"codes 3"):
        soft.translate(Crosswalk({2: 2}, TABLE))
