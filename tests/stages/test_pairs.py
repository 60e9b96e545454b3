# SPDX-License-Identifier: Apache-2.0
"""Label maps that pairs are made from."""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.contrast.pool import pool
from brainseg_bids.documents import InputError
from brainseg_bids.images import write_label_map, write_mask
from brainseg_bids.settings import Settings
from brainseg_bids.stages.pair_sources import find_sources
from brainseg_bids.stages.pairs import synthesise
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
    "synth: two folders (-d) that both hold a head, whatever they call it",
    "it counts once, with the finest map; a warning names it and the map",
    0,
)
def test_a_head_in_two_folders_counts_once(tmp_path, caplog):
    a, b = tmp_path / "a", tmp_path / "b"
    grids_mm = {
        a / "sub-01" / "anat" / "sub-01_seg-fullhead_dseg.nii.gz": 4,
        a / "sub-02" / "anat" / "sub-02_ses-1_seg-fullhead_dseg.nii.gz": 4,
        a / "sub-03" / "anat" / "sub-03_seg-fullhead_dseg.nii.gz": 4,
        b / "sub-01" / "mri" / "aparc+aseg.mgz": 4,
        b / "sub-01" / "mri" / "aseg.mgz": 4,
        b / "sub-02_ses-1_T1w" / "mri" / "aseg.mgz": 2,
        b / "04" / "mri" / "aseg.mgz": 4,
    }
    for path, mm in grids_mm.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        form = nib.MGHImage if path.suffix == ".mgz" else nib.Nifti1Image
        nib.save(form(np.ones((8, 8, 8), np.int16), np.diag([mm, mm, mm, 1])), path)
    given = {"fullhead": a, "freesurfer": b}
    found = find_sources(Settings(tmp_path, tmp_path, derivatives=given))
    paths = list(grids_mm)
    assert {one.path for one in found} == {paths[0], paths[5], paths[2], paths[6]}
    assert str(paths[0]) in caplog.text
    assert str(paths[5]) in caplog.text
    assert "sub-03" not in caplog.text
    only = Settings(tmp_path, tmp_path, derivatives=given, participant_label=("04",))
    assert [one.path for one in find_sources(only)] == [paths[6]]


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
