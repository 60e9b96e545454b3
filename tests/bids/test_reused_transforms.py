# SPDX-License-Identifier: Apache-2.0
"""Transforms of fMRIPrep and sMRIPrep: found by name, and refused if they are another image's."""

import json

import nibabel as nib
import numpy as np
import pytest

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.bids.names import Scan
from brainseg_bids.bids.reused_transforms import find_reused
from brainseg_bids.bids.templates import find_template
from brainseg_bids.documents import InputError
from brainseg_bids.images import read_grid
from tests.fakes import dataset, templates
from tests.fakes.transforms import write_composite

MNI = templates.NAME


@pytest.fixture
def template(tmp_path):
    return find_template(templates.write_home(tmp_path / "templates"), MNI)


@pytest.fixture
def scan(tmp_path):
    path = tmp_path / "data" / "sub-01" / "ses-A" / "anat" / "sub-01_ses-A_run-01_T1w.nii.gz"
    dataset.write_image(path)
    return Scan.from_path(path)


def leave(scan, template, name, *, folder="sub-01/ses-A/anat", shift_mm=0.0, turned=True):
    """What fMRIPrep leaves for an image: the transform, and the image in RAS beside it."""
    root = scan.path.parents[4] / "fmriprep"
    path = root / folder / f"{name}_from-T1w_to-{template.space}_mode-image_xfm.h5"
    write_composite(path, None, read_grid(template.image))
    image = nib.load(scan.path)
    image = nib.as_closest_canonical(image) if turned else image
    affine = image.affine.copy()
    affine[0, 3] += shift_mm
    beside = path.with_name(f"{name}_desc-preproc_T1w.nii.gz")
    nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), affine), beside)
    return root, path


@pytest.mark.parametrize(
    ("name", "folder"),
    [("sub-01_ses-A_run-1", "sub-01/ses-A/anat"), ("sub-01_ses-A", "sub-01/ses-A/anat"),
     ("sub-01", "sub-01/anat")],
)  # fmt: skip
def test_a_transform_of_the_same_voxels_is_taken_over(scan, template, name, folder):
    root, path = leave(scan, template, name, folder=folder)
    found = find_reused({"fmriprep": root}, scan, template)
    assert found.paths == (path,)
    assert found.uri == f"bids:fmriprep:{folder}/{path.name}"
    assert find_reused({"samseg": root}, scan, template) is None


@pytest.mark.parametrize(
    ("name", "folder"),
    [("sub-01_ses-A_run-2", "sub-01/ses-A/anat"), ("sub-01_ses-B", "sub-01/ses-B/anat"),
     ("sub-01_ses-A_acq-x", "sub-01/ses-A/anat"), ("sub-02", "sub-02/anat")],
)  # fmt: skip
def test_what_is_named_for_other_images_is_not_taken(scan, template, name, folder):
    root, _ = leave(scan, template, name, folder=folder)
    assert find_reused({"fmriprep": root}, scan, template) is None


def test_the_name_that_says_most_is_taken_and_two_alike_are_refused(scan, template):
    leave(scan, template, "sub-01", folder="sub-01/anat")
    root, path = leave(scan, template, "sub-01_ses-A")
    assert find_reused({"fmriprep": root}, scan, template).paths == (path,)
    leave(scan, template, "sub-01_run-1")
    with pytest.raises(InputError, match="several transforms fit"):
        find_reused({"fmriprep": root}, scan, template)


@pytest.mark.input(
    "metadata",
    "`-d fmriprep=` with the transform of an image of other voxels",
    "refused, with both grids, before anything runs if no image has one that fits",
    2,
)
def test_a_transform_of_other_voxels_is_refused(scan, template):
    root, path = leave(scan, template, "sub-01", folder="sub-01/anat", shift_mm=0.5)
    with pytest.raises(InputError, match=f"{path.name}.*another image.*-d fmriprep"):
        find_reused({"fmriprep": root}, scan, template)


def leave_average(scan, root, moved_mm=0.0, content=None):
    """The transform of one of several images to their average."""
    own = root / "sub-01/ses-A/anat/sub-01_ses-A_run-01_from-orig_to-T1w_mode-image_xfm.txt"
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_text(
        content
        or "#Insight Transform File V1.0\n#Transform 0\n"
        "Transform: AffineTransform_double_3_3\n"
        f"Parameters: 1 0 0 0 1 0 0 0 1 {moved_mm} 0 0\nFixedParameters: 0 0 0\n"
    )
    return own


def test_one_of_several_images_goes_through_their_average(scan, template):
    root, path = leave(scan, template, "sub-01", folder="sub-01/anat", shift_mm=3)
    own = leave_average(scan, root, moved_mm=3)
    found = find_reused({"fmriprep": root}, scan, template)
    assert found.paths == (path, own)
    assert found.through_average


@pytest.mark.parametrize(("moved_mm", "content"), [(300, None), (0, "#Insight Transform File\n")])
def test_a_transform_to_an_average_of_other_images_is_refused(scan, template, moved_mm, content):
    root, _ = leave(scan, template, "sub-01", folder="sub-01/anat")
    own = leave_average(scan, root, moved_mm, content)
    with pytest.raises(InputError, match=own.name):
        find_reused({"fmriprep": root}, scan, template)


@pytest.mark.input(
    "metadata",
    "`-d fmriprep=` with a transform beside which there is no image to check it by",
    "refused with the file that is missing",
    2,
)
def test_what_cannot_be_checked_is_refused(scan, template):
    root, path = leave(scan, template, "sub-01", folder="sub-01/anat")
    image = path.with_name("sub-01_desc-preproc_T1w.nii.gz")
    image.rename(image.with_name("sub-01_desc-brain_mask.nii.gz"))
    assert find_reused({"fmriprep": root}, scan, template)
    image.with_name("sub-01_desc-brain_mask.nii.gz").unlink()
    with pytest.raises(InputError, match=f"cannot be checked.*{image.name}"):
        find_reused({"fmriprep": root}, scan, template)


def test_a_field_of_another_template_is_refused(scan, template):
    root, path = leave(scan, template, "sub-01", folder="sub-01/anat")
    write_composite(path, None, Grid((10, 10, 10), read_grid(template.image).affine))
    with pytest.raises(InputError, match=f"{path.name}.*does not cover template"):
        find_reused({"fmriprep": root}, scan, template)


def test_content_that_is_elsewhere_is_named_with_the_command(scan, template):
    root, path = leave(scan, template, "sub-01", folder="sub-01/anat")
    said = {"DatasetDOI": "doi:10.18112/openneuro.ds000001.v1"}
    (root / "dataset_description.json").write_text(json.dumps(said))
    path.unlink()
    path.symlink_to("../../.git/annex/objects/aa/bb/MD5E-s1--c/MD5E-s1--c")
    assert path.is_symlink()
    with pytest.raises(InputError, match=path.name):
        find_reused({"fmriprep": root}, scan, template)
