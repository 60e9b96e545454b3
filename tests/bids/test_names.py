# SPDX-License-Identifier: Apache-2.0
"""Names of outputs."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainseg_bids.bids.names import OutputNames, Scan, folder, sidecar, stem

LABEL = st.text("abcXYZ019", min_size=1, max_size=4)
KEYS = ("task", "acq", "ce", "rec", "dir", "run", "echo", "flip", "inv", "mt", "part", "chunk")


@st.composite
def scans(draw):
    entities = {"sub": "01"}
    if draw(st.booleans()):
        entities["ses"] = draw(LABEL)
    for key in KEYS:
        if draw(st.integers(0, 4)) == 0:
            entities[key] = draw(LABEL)
    suffix = draw(st.sampled_from(["T1w", "T2w", "FLAIR", "UNIT1", "PDw"]))
    name = "_".join(f"{key}-{label}" for key, label in entities.items())
    return Scan.from_path(f"/data/{name}_{suffix}.nii.gz")


@given(scans(), scans())
def test_two_images_of_a_subject_never_share_an_output(one, other):
    if one.path.name != other.path.name:
        for field in ("labels", "tissue", "mask", "volumes", "probseg", "figure"):
            assert getattr(OutputNames.of(one), field) != getattr(OutputNames.of(other), field)


@given(scans())
def test_names_have_the_form_that_bids_asks_for(scan):
    order = [
        "sub",
        "ses",
        "task",
        "acq",
        "ce",
        "rec",
        "run",
        "echo",
        "part",
        "space",
        "chunk",
        "seg",
        "desc",
    ]
    for path in vars(OutputNames.of(scan)).values():
        *pairs, _suffix = path.name.split(".")[0].split("_")
        keys = [pair.split("-")[0] for pair in pairs]
        assert keys == [key for key in order if key in keys]
        assert all(re.fullmatch(r"[a-z]+-[0-9A-Za-z+]+", pair) for pair in pairs)


@pytest.mark.parametrize(
    ("image", "labels"),
    [
        ("sub-01_T1w.nii.gz", "sub-01_seg-brainseg_dseg.nii.gz"),
        ("sub-01_T2w.nii", "sub-01_space-T2w_seg-brainseg_dseg.nii.gz"),
        (
            "sub-01_ses-A_run-2_UNIT1.nii.gz",
            "sub-01_ses-A_run-2_space-UNIT1_seg-brainseg_dseg.nii.gz",
        ),
        ("sub-01_acq-x_inv-2_T1w.nii.gz", "sub-01_acq-x+inv2_seg-brainseg_dseg.nii.gz"),
        ("sub-01_space-orig_T1w.nii.gz", "sub-01_acq-spaceorig_seg-brainseg_dseg.nii.gz"),
        ("sub-01_acq-0.7mm_T1w.nii.gz", "sub-01_acq-07mm_seg-brainseg_dseg.nii.gz"),
    ],
)
def test_the_name_follows_from_the_image_alone(image, labels):
    assert OutputNames.of(Scan.from_path(image)).labels.name == labels


def test_a_session_has_its_folder_and_figures_lie_with_the_subject():
    scan = Scan.from_path("/data/sub-01/ses-A/anat/sub-01_ses-A_T1w.nii.gz")
    assert folder(scan) == Path("sub-01/ses-A/anat")
    assert OutputNames.of(scan).figure.parent == Path("sub-01/figures")


def test_the_sidecar_lies_beside_images_and_tables():
    assert sidecar(Path("a/x_dseg.nii.gz")) == Path("a/x_dseg.json")
    assert sidecar(Path("a/x_morph.tsv")) == Path("a/x_morph.json")


def test_a_mask_has_no_seg_entity():
    assert "seg-" not in stem(Scan.from_path("sub-01_T1w.nii.gz"), desc="brain")
