# SPDX-License-Identifier: Apache-2.0
"""What the merge promised holds at finer voxels, too."""

from __future__ import annotations

import numpy as np
import pytest

from brainseg_bids.anatomy.cavities import Cavities
from brainseg_bids.anatomy.cleaning import small_components
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import Label, LabelTable
from brainseg_bids.anatomy.posteriors import TopPosteriors
from brainseg_bids.anatomy.rules import MergeRules
from brainseg_bids.anatomy.topology import components
from brainseg_bids.anatomy.upsample import regrid, upsample, upsample_posteriors
from brainseg_bids.anatomy.upsample_cleaning import clean_upsampled
from brainseg_bids.anatomy.upsampling_report import upsampling_report, upsampling_warnings
from tests.phantom.head import phantom_grid, phantom_head

RULES = MergeRules.packaged()


@pytest.fixture(scope="module")
def doubtful() -> tuple[LabelMap, LabelMap]:
    """The phantom, and its finer map from probabilities that are unsure at every border."""
    head = phantom_head(grid=phantom_grid((44, 52, 50)))
    rng = np.random.default_rng(4)
    soft = TopPosteriors.certain(head, k=2)
    border = np.zeros(head.grid.shape, dtype=bool)
    for axis in range(3):
        for step in (-1, 1):
            border |= np.roll(head.voxels, step, axis) != head.voxels
    border &= head.voxels != 0
    # The second most probable label is air almost as often as not, as beside thin bone.
    unsure = border & (rng.random(border.shape) < 0.5)
    soft.codes[1][unsure] = 0
    soft.weights[0][unsure], soft.weights[1][unsure] = 130, 125
    return head, upsample_posteriors(soft, 2.5)


@pytest.mark.input(
    "results",
    "probabilities that are unsure at borders, brought to finer voxels",
    "holes are filled and islands removed, as in the merge; the page counts both",
    0,
)
def test_no_hole_and_no_speck_is_left_of_what_interpolation_made(doubtful):
    head, raw = doubtful
    finer, done = clean_upsampled(head, raw)
    before, after = upsampling_report(head, raw), upsampling_report(head, finer)
    assert Cavities.of(raw.voxels).enclosed_voxels == done.holes > 100
    assert Cavities.of(finer.voxels).enclosed_voxels == 0
    assert any("Unknown" in said for said in upsampling_warnings(before))
    assert not any("Unknown" in said for said in upsampling_warnings(after))
    turned = np.ascontiguousarray(finer.grid.array_to_ras(finer.voxels))
    left, _ = small_components(turned, RULES.islands, RULES.table, finer.grid.to_ras())
    assert len(left) == 0
    assert after["round_trip_mean_dice"] >= before["round_trip_mean_dice"]
    assert after["labels_lost"] == []


def test_axes_do_not_matter(doubtful):
    head, raw = doubtful
    plain, _ = clean_upsampled(head, raw)
    turned = raw.grid.to_ras()
    flipped = LabelMap(
        np.ascontiguousarray(raw.voxels[::-1].transpose(2, 0, 1)),
        type(turned)(
            tuple(raw.grid.shape[a] for a in (2, 0, 1)),
            raw.grid.affine
            @ np.array([
                [0, -1, 0, raw.grid.shape[0] - 1], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]
            ]),
        ),
        raw.table,
    )  # fmt: skip
    other, _ = clean_upsampled(head, flipped)
    np.testing.assert_array_equal(other.voxels.transpose(1, 2, 0)[::-1], plain.voxels)


def test_the_largest_piece_of_a_label_stays_however_small():
    head = phantom_head(grid=phantom_grid((44, 52, 50)))
    voxels = head.voxels.copy()
    voxels[22, 26, 25] = 26  # one voxel
    source = LabelMap(voxels, head.grid, head.table)
    finer, _ = clean_upsampled(source, upsample(source, 2.0, keep_thin=True))
    assert components(finer.voxels == 26) == 1


def test_a_table_that_the_rules_do_not_know_is_left_alone():
    table = LabelTable([Label(0, "Background"), Label(6000, "Cube")])
    source = LabelMap(np.full((4, 4, 4), 6000), phantom_grid((4, 4, 4)), table)
    finer = regrid(source, source.grid.with_voxel_size(2))
    assert clean_upsampled(source, finer)[0] is finer
