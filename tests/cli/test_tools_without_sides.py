# SPDX-License-Identifier: Apache-2.0
"""A brain tool that does not tell left from right, from the command line to the merged map."""

import csv

import nibabel as nib
import numpy as np

from tests.cli.test_headlabels import tools, write_heads
from tests.fakes import dataset
from tests.phantom.head import phantom_head


def test_the_head_tool_tells_the_sides_of_what_siam_labels(app):
    write_heads(app.root / "data", "sub-01_T1w")
    done = app(
        "--stages", "headlabels", "--head-tool", "charm", "--brain-tool", "siam",
        *tools("charm", "siam"),
    )  # fmt: skip
    assert done.code == 0, done.log
    anat = done.output / "sub-01" / "anat"
    own = np.asanyarray(nib.load(anat / "sub-01_seg-siam_dseg.nii.gz").dataobj)
    assert own.max() <= 17
    merged = np.asanyarray(nib.load(anat / "sub-01_seg-fullhead_dseg.nii.gz").dataobj)
    truth = phantom_head().voxels
    for code in (2, 41, 3, 42, 10, 49, 8, 47, 16):  # brain stem is white matter to it
        assert (merged == code)[truth == code].mean() > 0.95
    with (anat / "sub-01_seg-fullhead_desc-merge_morph.tsv").open() as file:
        voxels = {row["rule"]: int(row["voxels"]) for row in csv.DictReader(file, delimiter="\t")}
    assert voxels["coarse"] > 0
    with (done.output / "seg-siam_dseg.tsv").open() as file:
        sides = {row["name"]: row["hemisphere"] for row in csv.DictReader(file, delimiter="\t")}
    assert sides["GM"] == sides["Thal"] == "none"
    dataset.assert_valid_bids(done.output)
