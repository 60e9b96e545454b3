# SPDX-License-Identifier: Apache-2.0
"""Expected Dice: that of a truth that is drawn from the probabilities, and of one that is not."""

from __future__ import annotations

import json

import numpy as np
import pytest

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import Label, LabelTable
from brainseg_bids.documents import InputError
from brainseg_bids.evaluation.calibration import BINS
from brainseg_bids.evaluation.confidence import (
    LOW_DICE,
    ConfidenceCalibration,
    KnownTruth,
    ProbabilitySums,
    fit_calibration,
)

TABLE = LabelTable(
    [
        Label(0, "Background"),
        Label(2, "Left", hemisphere="left", mirror=41),
        Label(7, "Middle"),
        Label(41, "Right", hemisphere="right", mirror=2),
    ],
    name="sides",
)
SHAPE = (40, 40, 30)
GRID = Grid(SHAPE, np.eye(4))


def image(seed, *, sharpness=8.0, believed=1.0):
    """A segmentation whose truth is drawn from its probabilities to the power of ``believed``."""
    rng = np.random.default_rng(seed)
    scores = sharpness * rng.normal(size=(*SHAPE, len(TABLE)))
    soft = np.exp(scores - scores.max(-1, keepdims=True))
    soft /= soft.sum(-1, keepdims=True)
    really = soft**believed
    really /= really.sum(-1, keepdims=True)
    truth = (rng.random(SHAPE)[..., None] > really.cumsum(-1)).sum(-1).clip(max=len(TABLE) - 1)
    index, largest = soft.argmax(-1), soft.max(-1)
    bins = np.ceil(np.round(largest * BINS, 6)).astype(int) - 1
    voxels = np.bincount((index * BINS + bins).ravel(), minlength=len(TABLE) * BINS)
    sums = ProbabilitySums(
        voxels.reshape(-1, BINS),
        np.bincount(index.ravel(), weights=largest.ravel()),
        soft.sum((0, 1, 2)),
    )
    labels, true = (LabelMap(TABLE.codes[i].astype(np.int16), GRID, TABLE) for i in (index, truth))
    return KnownTruth.of(sums, labels, largest, true)


def test_known_truth_counts_what_is_right():
    one = image(0)
    assert (one.right.sum(1)[1:] > 0).all()
    assert (one.right <= one.sums.voxels).all()
    assert one.truth.sum() == np.prod(SHAPE)


def test_probabilities_that_the_truth_is_drawn_from_give_its_dice():
    one = image(0)
    np.testing.assert_allclose(one.sums.expected_dice()[1:], one.dice()[1:], atol=0.02)


def test_what_is_too_sure_is_calibrated_on_other_images():
    known = [image(seed, believed=0.4) for seed in range(4)]
    calibration = fit_calibration(known, TABLE)
    new = image(9, believed=0.4)
    assert (new.sums.expected_dice()[1:] > new.dice()[1:] + 0.05).all()
    np.testing.assert_allclose(calibration.expected_dice(new.sums)[1:], new.dice()[1:], atol=0.02)


def test_flagged_is_what_lies_below_the_images_that_it_was_fitted_on():
    known = [image(seed, sharpness=30) for seed in range(4)]
    calibration = fit_calibration(known, TABLE)
    assert (calibration.threshold[1:] > 0.8).all()
    assert not calibration.flagged(image(9, sharpness=30).sums)[1:].any()
    assert calibration.flagged(image(9, sharpness=5).sums)[1:].all()
    poor = fit_calibration([image(seed, sharpness=1) for seed in range(2)], TABLE)
    assert (poor.threshold[1:] == LOW_DICE).all()


def test_an_image_is_judged_by_other_heads_than_its_own():
    # The probabilities of one head are right, those of the other one too high.
    known = [image(seed, believed=believed) for believed in (1.0, 0.4) for seed in (0, 1)]
    by_head = fit_calibration(known, TABLE, heads=["a", "a", "b", "b"])
    by_other = [fit_calibration(half, TABLE) for half in (known[2:], known[:2])]
    expected = [by_other[number // 2].expected_dice(one.sums) for number, one in enumerate(known)]
    spread = np.std(np.array(expected)[:, 1:])
    by_image = fit_calibration(known, TABLE)
    assert spread > 0.02
    assert (by_head.threshold[1:] < by_image.threshold[1:] - spread / 2).all()
    np.testing.assert_array_equal(by_head.accuracy, by_image.accuracy)
    one_head = fit_calibration(known, TABLE, heads=["a"] * 4)
    np.testing.assert_array_equal(one_head.threshold, by_image.threshold)


def test_a_label_without_voxels_is_not_flagged_and_takes_what_all_labels_have():
    known = [image(seed, sharpness=30) for seed in range(2)]
    for one in known:
        for rows in (one.sums.voxels, one.right, one.sums.inside, one.sums.total, one.truth):
            rows[2] = 0
    calibration = fit_calibration(known, TABLE)
    assert np.isnan(calibration.expected_dice(known[0].sums)[2])
    assert not calibration.flagged(known[0].sums)[2]
    assert 0 < calibration.accuracy[2, -1] <= 1
    assert calibration.threshold[2] == LOW_DICE


def test_sides_share_a_calibration_and_it_is_read_as_it_was_written():
    calibration = fit_calibration([image(0), image(1)], TABLE, about={"images": 2})
    np.testing.assert_array_equal(calibration.accuracy[1], calibration.accuracy[3])
    both = [side for seed in (0, 1) for side in image(seed).dice()[[1, 3]]]
    assert calibration.usual_dice[1] == pytest.approx(np.mean(both))
    again = ConfidenceCalibration.from_json(calibration.to_json(TABLE), TABLE, what="x")
    np.testing.assert_allclose(again.accuracy[1:], calibration.accuracy[1:], atol=1e-4)
    np.testing.assert_allclose(again.missed[1:], calibration.missed[1:], atol=1e-4)
    np.testing.assert_allclose(again.threshold[1:], calibration.threshold[1:], atol=1e-4)
    np.testing.assert_allclose(again.usual_dice[1:], calibration.usual_dice[1:], atol=1e-4)
    assert again.about == {"images": 2}


GOOD = {"accuracy": [1] * BINS, "missed": 1, "threshold": 1, "usual_dice": 1}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"format": 2}, "format 2"),
        ({"labels": {}}, "accuracy of Left is missing"),
        ({"labels": [1]}, "labels"),
        ({"labels": {"2": GOOD | {"accuracy": [2] * BINS}}}, "accuracy"),
        ({"labels": {"2": GOOD | {"accuracy": [1]}}}, "accuracy"),
    ],
)
def test_a_damaged_calibration_is_refused_by_name(change, named):
    good = json.loads(fit_calibration([image(0), image(1)], TABLE).to_json(TABLE))
    with pytest.raises(InputError, match=named):
        ConfidenceCalibration.from_json(json.dumps(good | change), TABLE, what="mine.json")


def test_a_voxel_that_is_counted_in_the_bin_beside_harms_nothing():
    known = [image(seed, sharpness=30) for seed in range(2)]
    for one in known:
        one.right[:] = one.sums.voxels
        one.right[:, -1] += 1
        one.truth[:] = one.right.sum(1)
    text = fit_calibration(known, TABLE).to_json(TABLE)
    assert ConfidenceCalibration.from_json(text, TABLE, what="x").accuracy.max() == 1


def test_one_image_is_too_few():
    with pytest.raises(ValueError, match="two images"):
        fit_calibration([image(0)], TABLE)
