# SPDX-License-Identifier: Apache-2.0
"""``--simnibs-export`` from the command line to the files."""

import json

import nibabel as nib
import numpy as np
import pytest

from tests.cli.test_headlabels import SAMSEG, tools, write_heads
from tests.fakes import dataset

EXPORT = (*SAMSEG, *tools("samseg"), "--simnibs-export")


@pytest.fixture(scope="module")
def finished(lasting_app):
    write_heads(lasting_app.root / "data", "sub-01_T1w")
    return lasting_app(*EXPORT)


def test_tissues_are_written_under_a_valid_name_with_their_table(finished):
    assert finished.code == 0, finished.log
    anat = finished.output / "sub-01" / "anat"
    tissues = nib.load(anat / "sub-01_seg-simnibs_dseg.nii.gz")
    head = nib.load(anat / "sub-01_seg-fullhead_dseg.nii.gz")
    assert np.allclose(tissues.get_qform(), head.affine, atol=1e-3)
    assert {0, 1, 2, 3, 4, 5} <= set(np.unique(np.asanyarray(tissues.dataobj)))
    said = json.loads((anat / "sub-01_seg-simnibs_dseg.json").read_text())
    assert said["LabelsOf"] == "bids::sub-01/anat/sub-01_seg-fullhead_dseg.nii.gz"
    assert "Eye_balls" in (finished.output / "seg-simnibs_dseg.tsv").read_text()
    dataset.assert_valid_bids(finished.output)


def test_they_are_made_once_and_again_when_the_labels_change(lasting_app, finished):
    made = finished.output / "sub-01" / "anat" / "sub-01_seg-simnibs_dseg.nii.gz"
    before = made.stat().st_mtime_ns
    again = lasting_app(*EXPORT)
    assert again.code == 0
    assert made.stat().st_mtime_ns == before
    assert "sub-01 T1w for SimNIBS: results are there already, reused" in again.log
    both = lasting_app("--stages", "segment", "headlabels", *EXPORT[2:])
    assert both.code == 0  # merged labels of the head are better than a segmentation
    assert made.stat().st_mtime_ns == before
    alone = lasting_app("--stages", "segment", "--simnibs-export")
    assert "sub-01 T1w for SimNIBS: to be made (its label map has changed" in alone.log
    assert alone.code == 1  # the stand-in for the network labels no skull
    assert "no bone" in alone.log
