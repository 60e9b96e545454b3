# SPDX-License-Identifier: Apache-2.0
"""Label maps that pairs are made from."""

from __future__ import annotations

import numpy as np
import pytest

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.images import write_mask
from brainseg_bids.settings import Settings
from brainseg_bids.stages.pairs import find_sources


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
