# SPDX-License-Identifier: Apache-2.0
"""Label maps that pairs are made from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.contrast.pool import pool
from brainseg_bids.documents import InputError
from brainseg_bids.images import write_label_map, write_mask
from brainseg_bids.settings import Settings
from brainseg_bids.stages.pairs import find_sources, synthesise
from tests.contrast.made_up import TABLE, both_sides, image_of
from tests.phantom.head import phantom_head


@pytest.mark.input(
    "results",
    "segmentations in standard spaces beside those of the images (--output-spaces)",
    "synth: pairs are made from the images' own only",
    0,
)
def test_a_head_gives_no_pairs_once_more_in_a_standard_space(tmp_path):
    anat = tmp_path / "sub-01" / "anat"
    anat.mkdir(parents=True)
    spaces = ("", "_space-MNI152NLin2009cAsym", "_space-T2w")
    names = [f"sub-01{space}_seg-brainseg_dseg.nii.gz" for space in spaces]
    names.append("sub-01_space-MNI152NLin2009cAsym_res-2_seg-brainseg_dseg.nii.gz")
    for name in names:
        write_mask(np.ones((8, 8, 8)), Grid((8, 8, 8), np.diag([4, 4, 4, 1])), anat / name)
    found = find_sources(Settings(tmp_path, tmp_path))
    assert [source.path.name for source in found] == [names[0], names[2]]


@pytest.mark.input(
    "results",
    "synth: a prior of other labels, as an earlier version of the label table has given it",
    "one line that names the prior",
    2,
)
def test_a_prior_of_other_labels_and_a_map_of_swapped_sides_are_told(tmp_path, caplog):
    prior = pool({"a": image_of(both_sides())}, name="T1w", table=TABLE, subjects={"a": "1"})
    fewer = {name: prior[name] for name in list(prior.labels)[:-1]}
    (tmp_path / "priors").mkdir()
    replace(prior, labels=fewer, correlation=prior.correlation[:-1, :-1]).write(
        tmp_path / "priors"
    )
    labels = tmp_path / "sub-1" / "anat" / "sub-1_seg-fullhead_dseg.nii.gz"
    labels.parent.mkdir(parents=True)
    head = phantom_head((20, 24, 22), 9.0)
    write_label_map(replace(head, voxels=head.voxels[::-1]), labels)
    with pytest.raises(InputError, match=r"contrast-T1w_prior.json.*another label table"):
        synthesise(Settings(tmp_path, tmp_path))
    assert f"{labels}: look at it: left and right look swapped" in caplog.text
