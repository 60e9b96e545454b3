# SPDX-License-Identifier: Apache-2.0
"""Calibration: posteriors of known quality get the error that they have."""

from __future__ import annotations

import numpy as np
import pytest

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import Label, LabelTable, UnknownLabelError
from brainseg_bids.evaluation import calibration
from brainseg_bids.evaluation.calibration import calibrate

TABLE = LabelTable([Label(0, "Background"), Label(4, "CSF"), Label(9, "GM")], name="three")
SHAPE = (40, 30, 25)
GRID = Grid(SHAPE, np.eye(4))


def sampled(rng, *, overconfident: float = 0.0):
    """Posteriors, and a truth drawn from them; too sure by ``overconfident`` where asked."""
    soft = rng.dirichlet([1, 1, 1], SHAPE)
    truth = (rng.random(SHAPE)[..., None] > soft.cumsum(-1)).sum(-1)
    truth = LabelMap(np.array([0, 4, 9], np.int16)[np.minimum(truth, 2)], GRID, TABLE)
    top = np.eye(3)[soft.argmax(-1)]
    soft = (1 - overconfident) * soft + overconfident * top
    return list(zip((0, 4, 9), np.moveaxis(soft, -1, 0), strict=True)), truth


def test_posteriors_that_the_truth_was_drawn_from_are_calibrated(rng):
    found = calibrate(*sampled(rng))
    assert found.winners.ece < 0.01
    assert all(one.ece < 0.01 for one in found.labels.values())
    assert found.winners.voxels.sum() == np.prod(SHAPE)


def test_posteriors_that_are_too_sure_show_by_how_much(rng):
    posteriors, truth = sampled(rng, overconfident=0.5)
    fair = sum(p * (np.argmax([q for _, q in posteriors], 0) == n)
               for n, (_, p) in enumerate(sampled(np.random.default_rng(20))[0]))  # fmt: skip
    found = calibrate(posteriors, truth)
    assert found.winners.ece == pytest.approx(0.5 * (1 - fair.mean()), abs=0.01)
    used = found.winners.voxels > 0
    assert (found.winners.confidence > found.winners.accuracy - 0.02)[used].all()


def test_numbers_are_those_of_the_definition(rng):
    posteriors, truth = sampled(rng)
    found = calibrate(posteriors, truth, n_bins=7)
    values, right = posteriors[1][1].ravel(), (truth.voxels == 4).ravel()
    gap = 0.0
    for n in range(7):
        inside = (values > n / 7) & (values <= (n + 1) / 7)
        assert found.labels[4].voxels[n] == inside.sum()
        gap += abs(right[inside].mean() - values[inside].mean()) * inside.mean()
    assert found.labels[4].ece == pytest.approx(gap)


def test_pieces_types_and_memory_order_do_not_matter(rng, monkeypatch):
    posteriors, truth = sampled(rng)
    within = rng.random(SHAPE) < 0.5
    bytes_ = [(code, np.rint(p * 255).astype(np.uint8)) for code, p in posteriors]
    floats = [(code, p.astype(np.float32) / 255) for code, p in bytes_]
    turned = LabelMap(np.asfortranarray(truth.voxels), GRID, TABLE)
    expected = calibrate(bytes_, truth, within=within)
    monkeypatch.setattr(calibration, "SLAB_VOXELS", 2000)
    found = calibrate(iter(floats), turned, within=within)
    assert expected.winners.voxels.sum() == within.sum()
    assert np.array_equal(found.winners.voxels, expected.winners.voxels)
    assert found.winners.ece == pytest.approx(expected.winners.ece)
    assert found.labels[9].ece == pytest.approx(expected.labels[9].ece)


def test_a_mask_without_voxels_gives_no_number_rather_than_zero(rng):
    posteriors, truth = sampled(rng)
    found = calibrate(posteriors, truth, within=np.zeros(SHAPE, bool))
    assert np.isnan(found.winners.ece)


def test_what_are_no_posteriors_is_refused(rng):
    posteriors, truth = sampled(rng)
    with pytest.raises(ValueError, match="no posteriors"):
        calibrate([], truth)
    with pytest.raises(ValueError, match="4 CSF"):
        calibrate([posteriors[1]] * 2, truth)
    with pytest.raises(ValueError, match="CSF is not"):
        calibrate([(4, posteriors[1][1] * np.nan)], truth)
    with pytest.raises(ValueError, match="CSF has shape"):
        calibrate([(4, posteriors[1][1][1:])], truth)
    with pytest.raises(UnknownLabelError):
        calibrate([(5, posteriors[1][1])], truth)
