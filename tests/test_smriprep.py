# SPDX-License-Identifier: Apache-2.0
"""Mask and tissues are what sMRIPrep (and with it fMRIPrep) takes over: asked of itself."""

from __future__ import annotations

import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from brainseg_bids.bids.inputs import find_subjects
from brainseg_bids.stages.exports import SMRIPREP, plan_precomputed
from tests.cli.conftest import lasting_app as _lasting_app
from tests.fakes import dataset, templates

lasting_app = _lasting_app  # a fixture
MNI = templates.NAME


@pytest.fixture(scope="module")
def finished(lasting_app):
    """A run with probabilities and a standard space; the T1w's first axis runs to the left."""
    data = lasting_app.images("sub-01_T1w", "sub-01_T2w", "sub-02_run-1_T1w", "sub-02_run-2_T1w")
    path = data / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    image = nib.load(path)
    turned = nib.Nifti1Image(
        np.asanyarray(image.dataobj)[::-1],
        image.affine @ np.array([[-1, 0, 0, 23], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]),
    )
    nib.save(turned, path)
    with pytest.MonkeyPatch.context() as patch:
        templates.use_home(templates.write_home(lasting_app.root / "templates"), patch)
        yield lasting_app(
            "--probseg", "--output-spaces", MNI, "--tool", templates.REGISTER,
            "--participant-label", "01",
        )  # fmt: skip


@pytest.fixture
def anat(finished):
    assert finished.code == 0, finished.log
    return finished.output / SMRIPREP / "sub-01" / "anat"


def load(path):
    image = nib.load(path)
    return image.get_fdata(), image.affine


def test_tissues_are_sums_of_probabilities_within_the_mask(finished, anat):
    mask, affine = load(anat / "sub-01_desc-brain_mask.nii.gz")
    tissue, _ = load(anat / "sub-01_dseg.nii.gz")
    shares = [
        load(anat / f"sub-01_label-{name}_probseg.nii.gz")[0] for name in ("GM", "WM", "CSF")
    ]
    assert set(np.unique(tissue)) == {0, 1, 2}  # the stand-in has no ventricles
    assert np.array_equal(tissue > 0, mask > 0)
    for number, share in enumerate(shares, start=1):
        assert np.array_equal(share > 0.5, tissue == number)
    assert nib.aff2axcodes(affine) == ("R", "A", "S")
    own = nib.load(finished.output / "sub-01" / "anat" / "sub-01_desc-brain_mask.nii.gz")
    assert nib.aff2axcodes(own.affine) == ("L", "A", "S")
    canonical = nib.as_closest_canonical(own)  # what sMRIPrep makes of its T1w
    assert np.allclose(canonical.affine, affine)
    assert np.array_equal(canonical.get_fdata(), mask)


def test_both_datasets_pass_the_bids_validator(finished, anat):
    dataset.assert_valid_bids(finished.output)
    dataset.assert_valid_bids(finished.output / SMRIPREP)


def test_probabilities_were_what_was_brought_to_the_standard_space(finished):
    beside = finished.output / f"sub-01/anat/sub-01_space-{MNI}_seg-brainseg_res-1_dseg.json"
    assert json.loads(beside.read_text())["Probabilities"] is True


def test_several_t1w_images_are_left_to_smriprep(finished):
    (subject,) = find_subjects(finished.data, ["02"])
    for scan in subject.scans:
        labels = finished.output / "sub-02" / "anat" / f"{scan.path.name[:12]}_seg-brainseg_dseg"
        labels.parent.mkdir(parents=True, exist_ok=True)
        labels.with_name(f"{labels.name}.nii.gz").touch()
    plan, notes = plan_precomputed(subject, bids_dir=finished.data, output_dir=finished.output)
    shutil.rmtree(finished.output / "sub-02")
    assert not plan.scans
    assert len(notes) == 2
    assert "2 T1w images" in notes[0].text


def test_smriprep_finds_mask_tissues_and_probabilities(finished, anat):
    bids = pytest.importorskip(
        "smriprep.utils.bids", reason="needs smriprep (pip install 'brainseg-bids[smriprep]')"
    )
    found = bids.collect_derivatives(finished.output / SMRIPREP, "01", [MNI])
    assert found["t1w_mask"] == str(anat / "sub-01_desc-brain_mask.nii.gz")
    assert found["t1w_dseg"] == str(anat / "sub-01_dseg.nii.gz")
    assert found["t1w_tpms"] == [
        str(anat / f"sub-01_label-{name}_probseg.nii.gz") for name in ("GM", "WM", "CSF")
    ]
    assert found["transforms"][MNI] == {
        "forward": str(anat / f"sub-01_from-T1w_to-{MNI}_mode-image_xfm.h5"),
        "reverse": str(anat / f"sub-01_from-{MNI}_to-T1w_mode-image_xfm.h5"),
    }
    assert set(found) == {"t1w_mask", "t1w_dseg", "t1w_tpms", "transforms"}


def test_the_derivative_itself_is_not_for_smriprep(finished):
    """It does not look at ``seg-`` and takes every segmentation for its one ``dseg``."""
    bids = pytest.importorskip(
        "smriprep.utils.bids", reason="needs smriprep (pip install 'brainseg-bids[smriprep]')"
    )
    found = bids.collect_derivatives(finished.output, "01", [MNI])
    own = finished.output / "sub-01" / "anat"
    assert found["t1w_mask"] == str(own / "sub-01_desc-brain_mask.nii.gz")
    assert isinstance(found["t1w_dseg"], list)
