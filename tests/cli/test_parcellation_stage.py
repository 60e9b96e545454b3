# SPDX-License-Identifier: Apache-2.0
"""Parcels of a brain tool of ``headlabels``, from the command line to the files."""

import csv
import json

import nibabel as nib
import numpy as np
import pytest

from tests.cli.test_headlabels import tools, write_heads
from tests.fakes import dataset

RUN = (
    "--stages", "headlabels", "--head-tool", "charm", "--brain-tool", "fastsurfer",
    *tools("charm", "fastsurfer"),
)  # fmt: skip
STEM = "sub-01_seg-fastsurfer_desc-parcellation"


@pytest.fixture(scope="module")
def finished(lasting_app):
    write_heads(lasting_app.root / "data", "sub-01_T1w")
    return lasting_app(*RUN)


def test_parcels_are_a_derivative_of_their_own_with_table_volumes_and_picture(finished):
    assert finished.code == 0, finished.log
    anat = finished.output / "sub-01" / "anat"
    parcels = nib.load(anat / f"{STEM}_dseg.nii.gz")
    image = nib.load(finished.data / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    assert parcels.shape == image.shape
    assert np.allclose(parcels.affine, image.affine)
    voxels = np.asanyarray(parcels.dataobj)
    assert set(np.unique(voxels)) == {0, 1008, 1028, 2008, 2028}
    with (finished.output / "seg-fastsurfer_desc-parcellation_dseg.tsv").open() as file:
        names = {int(row["index"]): row["name"] for row in csv.DictReader(file, delimiter="\t")}
    assert names[1028] == "ctx-lh-superiorfrontal"
    with (anat / f"{STEM}_morph.tsv").open() as file:
        rows = {int(row["index"]): row for row in csv.DictReader(file, delimiter="\t")}
    assert set(rows) == set(names) - {0}
    assert int(rows[2008]["n_voxels"]) == np.count_nonzero(voxels == 2008)
    said = json.loads((anat / f"{STEM}_dseg.json").read_text())
    assert said["LabelsOf"] == "bids::sub-01/anat/sub-01_seg-fastsurfer_dseg.nii.gz"
    assert (finished.output / "sub-01" / "figures" / f"{STEM}_dseg.png").is_file()
    page = (finished.output / "sub-01.html").read_text()
    assert "ctx-lh-superiorfrontal" in page
    assert page.count("Brain (ml)") == 1  # of the head labels; parcels have a table of their own
    assert page.index("Parcels (ml)") < page.index("ctx-lh-superiorfrontal")
    dataset.assert_valid_bids(finished.output)


def test_right_is_right(finished):
    parcels = nib.load(finished.output / "sub-01" / "anat" / f"{STEM}_dseg.nii.gz")
    voxels = np.asanyarray(parcels.dataobj)
    x_mm = {
        code: (parcels.affine @ [*np.argwhere(voxels == code).mean(axis=0), 1])[:2]
        for code in (1028, 2028, 1008)
    }
    assert x_mm[1028][0] < 0 < x_mm[2028][0]
    assert x_mm[1028][1] > x_mm[1008][1]


def test_they_are_made_once_and_given_maps_are_taken(lasting_app, finished):
    made = finished.output / "sub-01" / "anat" / f"{STEM}_dseg.nii.gz"
    before = made.stat().st_mtime_ns
    again = lasting_app(*RUN)
    assert "sub-01 T1w parcels of fastsurfer: results are there already" in again.log
    assert made.stat().st_mtime_ns == before
    folder = lasting_app.root / "subjects" / "sub-01" / "mri"
    folder.mkdir(parents=True)
    own = nib.load(finished.output / "sub-01" / "anat" / "sub-01_seg-fastsurfer_dseg.nii.gz")
    codes = np.asanyarray(own.dataobj).astype(np.int32)
    for name, voxels in (
        ("aparc+aseg", codes),
        ("aseg", np.where(codes > 2000, 42, np.where(codes > 1000, 3, codes))),
    ):
        nib.save(nib.MGHImage(voxels, own.affine), folder / f"{name}.mgz")
        given = lasting_app(
            *RUN[:5], "freesurfer", *tools("charm"), "-d", f"freesurfer={folder.parents[1]}"
        )
        assert given.code == 0, given.log
        (folder / f"{name}.mgz").unlink()
    parcels = nib.load(str(made).replace("fastsurfer", "freesurfer"))
    assert np.array_equal(np.asanyarray(parcels.dataobj), np.asanyarray(nib.load(made).dataobj))
    assert "has no parcels of the cortex" in given.log
