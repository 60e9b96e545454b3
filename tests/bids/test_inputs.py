# SPDX-License-Identifier: Apache-2.0
"""Finding participants and images."""

import json

import pytest

from brainseg_bids.bids.inputs import (
    dataset_notes,
    find_participants,
    find_subjects,
    label_error,
)
from brainseg_bids.bids.names import OutputNames
from brainseg_bids.documents import InputError
from tests.fakes.dataset import write_dataset, write_image


@pytest.fixture
def dataset(tmp_path):
    return write_dataset(
        tmp_path / "data",
        "sub-01_T1w", "sub-01_T2w", "sub-01_inv-1_MP2RAGE", "sub-01_part-phase_T1w",
        "sub-01_inv-2_T1w", "sub-02_ses-A_acq-x_run-1_T1w", "sub-02_ses-B_run-1_T1w",
        "sub-010_FLAIR",
    )  # fmt: skip


def titles(subjects):
    return [scan.title for subject in subjects for scan in subject.scans]


def test_every_structural_image_is_found_but_no_parts_and_no_phase(dataset):
    found = titles(find_subjects(dataset, ["01", "02", "010"]))
    assert found == [
        "sub-01 T1w", "sub-01 T2w", "sub-02 ses-A acq-x run-1 T1w", "sub-02 ses-B run-1 T1w",
        "sub-010 FLAIR",
    ]  # fmt: skip


def test_a_participant_whose_label_begins_alike_is_not_taken(dataset):
    assert titles(find_subjects(dataset, ["01"])) == ["sub-01 T1w", "sub-01 T2w"]


def test_asked_for_suffixes_are_taken_parts_and_all(dataset):
    found = titles(find_subjects(dataset, ["01"], contrasts=["MP2RAGE"]))
    assert found == ["sub-01 inv-1 MP2RAGE"]


def test_a_session_leaves_images_of_others_out(dataset):
    found = titles(find_subjects(dataset, ["01", "02"], sessions=["B"]))
    assert found == ["sub-02 ses-B run-1 T1w"]


def test_an_unknown_participant_is_named_with_those_there_are(dataset):
    with pytest.raises(InputError, match=r"09.*01, 02, 010"):
        find_participants(dataset, ["01", "09"])


def test_a_folder_without_participants_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no folder sub-"):
        find_participants(tmp_path)


def test_an_image_that_is_not_fetched_is_a_fault_with_the_remedy(dataset):
    image = dataset / "sub-01" / "anat" / "sub-01_T2w.nii.gz"
    image.unlink()
    image.symlink_to("../../.git/annex/objects/aa/bb/MD5E-s1--x.nii.gz")
    (subject,) = find_subjects(dataset, ["01"])
    assert titles([subject]) == ["sub-01 T1w"]
    assert "Fetch it with: " in subject.errors["sub-01 T2w"]


@pytest.mark.input(
    "names",
    "`loc-` or another entity that BIDS does not know, such as `sub-01_loc-head_T1w`",
    "carried behind `acq-`, so that no output overwrites another: `sub-01_acq-lochead_seg-…`",
    0,
)
def test_an_entity_that_bids_does_not_know_keeps_outputs_apart(tmp_path):
    names = ("sub-01_T1w", "sub-01_loc-head_T1w", "sub-01_loc-neck_T1w", "sub-01_mod-x_T1w")
    (subject,) = find_subjects(write_dataset(tmp_path / "data", *names), ["01"])
    assert len({OutputNames.of(scan).labels for scan in subject.scans}) == len(names)
    assert subject.errors == {}


@pytest.mark.input(
    "names",
    "`sub-01_loc-head_T1w` beside `sub-01_acq-lochead_T1w`, whose outputs would have one name",
    "the second one is refused; the line names both",
    1,
)
def test_an_unknown_entity_that_meets_another_name_is_a_fault(tmp_path):
    names = ("sub-01_acq-lochead_T1w", "sub-01_loc-head_T1w")
    (subject,) = find_subjects(write_dataset(tmp_path / "data", *names), ["01"])
    assert titles([subject]) == ["sub-01 acq-lochead T1w"]
    assert "sub-01_acq-lochead_T1w.nii.gz would both" in next(iter(subject.errors.values()))


IGNORED = [
    pytest.param(
        "# spoilt by motion\n*_run-1_*\n",
        ["sub-01 T1w", "sub-01 T2w"],
        marks=pytest.mark.input(
            "names",
            "images that `.bidsignore` names",
            "left out of the search, as the validator does; a line says how many",
            0,
        ),
    ),
    pytest.param("sub-02/\n", ["sub-01 T1w", "sub-01 T2w"]),
    pytest.param("**/ses-A\n*_T2w.nii.gz\n", ["sub-01 T1w", "sub-02 ses-B run-1 T1w"]),
    pytest.param("*_T1w.*\n!sub-01_*\n", ["sub-01 T1w", "sub-01 T2w"]),
    pytest.param("T1w\n[z-a]\n\n!\n/\n", None),
]


@pytest.mark.parametrize(("lines", "expected"), IGNORED)
def test_what_bidsignore_names_is_left_out(lines, expected, dataset, caplog):
    usual = titles(find_subjects(dataset, ["01", "02"]))
    (dataset / ".bidsignore").write_text(lines)
    with caplog.at_level("INFO", logger="brainseg"):
        assert titles(find_subjects(dataset, ["01", "02"])) == (expected or usual)
    assert (".bidsignore" in caplog.text) == bool(expected)


@pytest.mark.input(
    "names",
    "`.bidsignore` names the folder of a participant",
    "the participant is left out; asked for by name, refused with the file's name",
    2,
)
def test_a_participant_that_bidsignore_names_is_left_out(dataset):
    (dataset / ".bidsignore").write_text("/sub-02\n")
    assert find_participants(dataset) == ["01", "010"]
    with pytest.raises(InputError, match=r"no participant 02.*\.bidsignore"):
        find_participants(dataset, ["02"])


@pytest.mark.input(
    "names",
    "`.bidsignore` names images with a suffix of the user's own, and `--contrasts` asks for it",
    "taken: a valid dataset can hold such a suffix only through `.bidsignore`",
    0,
)
def test_a_suffix_of_the_users_own_is_taken_although_ignored(dataset):
    (dataset / ".bidsignore").write_text("*_MP2RAGE.*\n")
    found = titles(find_subjects(dataset, ["01"], contrasts=["MP2RAGE"]))
    assert found == ["sub-01 inv-1 MP2RAGE"]


@pytest.mark.input(
    "names",
    "a `.bidsignore` that is not UTF-8, or cannot be read",
    "nothing is left out for it; a warning names the file",
    0,
)
def test_a_bidsignore_that_cannot_be_read_is_told(dataset, caplog):
    (dataset / ".bidsignore").write_bytes(b"*_r\xe9_*\n*_T1w.*\n")
    assert titles(find_subjects(dataset, ["01"])) == ["sub-01 T1w", "sub-01 T2w"]
    assert ".bidsignore, line 1:" in caplog.text


@pytest.mark.input(
    "names",
    "`sub-01_FLAIR.nii` beside `sub-01_FLAIR.nii.gz`",
    "one is taken, the other refused; the line names both",
    1,
)
def test_two_files_for_one_image_are_a_fault(dataset):
    anat = dataset / "sub-010" / "anat"
    (anat / "sub-010_FLAIR.nii").write_bytes(b"x" * 2000)
    (subject,) = find_subjects(dataset, ["010"])
    assert len(subject.scans) == 1
    assert "would both become" in next(iter(subject.errors.values()))


@pytest.mark.input(
    "names",
    "images or participants whose names differ in letter case only, such as `acq-MPR` and "
    "`acq-mpr`",
    "the second one is refused; the line names both",
    1,
)
def test_names_that_differ_in_case_only_are_a_fault(tmp_path):
    names = ("sub-01_acq-MPR_T1w", "sub-01_acq-mpr_T1w", "sub-S1_T1w", "sub-s1_T1w")
    data = write_dataset(tmp_path / "data", *names)
    one, upper, lower = find_subjects(data, ["01", "S1", "s1"])
    assert titles([one]) == ["sub-01 acq-MPR T1w"]
    assert "sub-01_acq-MPR_T1w.nii.gz would both" in next(iter(one.errors.values()))
    assert titles([upper]) == ["sub-S1 T1w"]
    assert titles([lower]) == []
    assert "sub-S1 differ in letter case" in lower.errors["sub-s1"]
    (alone,) = find_subjects(data, ["s1"])  # as in a job of its own
    assert alone.errors == lower.errors


def test_a_name_that_belongs_to_another_participant_is_a_fault(dataset):
    anat = dataset / "sub-010" / "anat"
    (anat / "sub-010_FLAIR.nii.gz").rename(anat / "sub-01_FLAIR.nii.gz")
    (subject,) = find_subjects(dataset, ["010"])
    assert not subject.scans
    assert "Rename" in next(iter(subject.errors.values()))


def test_a_missing_or_poor_description_is_noted(dataset):
    assert dataset_notes(dataset) == []
    path = dataset / "dataset_description.json"
    path.write_text(json.dumps({"Name": "x"}))
    assert "BIDSVersion is missing" in dataset_notes(dataset)[0]
    path.write_text("{")
    assert "dataset_description.json, line 1" in dataset_notes(dataset)[0]
    path.unlink()
    assert "valid BIDS dataset" in dataset_notes(dataset)[0]


@pytest.mark.parametrize(
    ("label", "file"),
    [
        pytest.param(
            "CON-01",
            "sub-CON-01_T1w",
            marks=pytest.mark.input(
                "names",
                "participants called `sub-CON-01`, `sub-WMH_MRI_21` or `sub-Jürgen`",
                "each refused by name, with a proposal; the others continue",
                1,
            ),
        ),
        ("WMH_MRI_21", "sub-WMH_MRI_21_T1w"),
        ("Jürgen", "sub-Jürgen_T1w"),
        ("", "sub-_T1w"),
    ],
)
def test_a_label_that_is_none_is_one_refusal_and_the_others_go_on(dataset, label, file):
    write_image(dataset / f"sub-{label}" / "anat" / f"{file}.nii.gz")
    labels = find_participants(dataset)
    assert label in labels
    found = find_subjects(dataset, labels)
    assert titles(found)[:2] == ["sub-01 T1w", "sub-01 T2w"]
    (refused,) = [subject for subject in found if subject.errors]
    assert (refused.label, refused.scans) == (label, ())
    (line,) = refused.errors.values()
    assert f"sub-{label}: " in line
    assert "Rename" in line
    assert label_error(dataset, label) == line


def test_participants_without_a_label_alone_are_refused_too(tmp_path):
    write_image(tmp_path / "sub-A_1" / "anat" / "sub-A_1_T1w.nii.gz")
    (subject,) = find_subjects(tmp_path, ["A_1"])
    assert "not a BIDS label" in subject.errors["sub-A_1"]


@pytest.mark.parametrize(
    ("folder", "file", "named"),
    [
        pytest.param(
            "sub-07/ses-1",
            "sub-07_ses-2_T1w",
            "says ses-2, the folder ses-1",
            marks=pytest.mark.input(
                "names",
                "`ses-1/anat/sub-07_ses-2_T1w`, or a name without its folder's session",
                "this image is refused by name; the others continue",
                1,
            ),
        ),
        ("sub-07/ses-1", "sub-07_T1w", "says no ses-, the folder ses-1"),
        pytest.param(
            "sub-07",
            "sub-08_T1w",
            "says sub-08, the folder sub-07",
            marks=pytest.mark.input(
                "names", "a name of another participant than its folder", "refused by name", 1
            ),
        ),
        ("sub-07", "T1w", "says no sub-"),
        pytest.param(
            "sub-07",
            "sub-07_acq-my-seq_T1w",
            "acq-my-seq",
            marks=pytest.mark.input(
                "names",
                "`acq-my-seq`, `acq-`, a word without a key, or a key twice in a name",
                "this image is refused by name; the others continue",
                1,
            ),
        ),
        ("sub-07", "sub-07_mine_T1w", "'mine'"),
        ("sub-07", "sub-07_acq-_T1w", "'acq-'"),
        ("sub-07", "sub-07_run-1_run-2_T1w", "run- twice"),
    ],
)
def test_a_name_that_is_none_or_that_its_folder_contradicts_is_a_fault(
    tmp_path, folder, file, named
):
    write_image(tmp_path / folder / "anat" / f"{file}.nii.gz")
    write_image(tmp_path / "sub-07" / "anat" / "sub-07_T2w.nii.gz")
    (subject,) = find_subjects(tmp_path, ["07"])
    assert titles([subject]) == ["sub-07 T2w"]
    (line,) = subject.errors.values()
    assert named in line
    assert "Rename" in line


def test_a_contradicting_session_is_told_whichever_session_is_asked_for(tmp_path):
    write_image(tmp_path / "sub-07" / "ses-1" / "anat" / "sub-07_ses-2_T1w.nii.gz")
    for session in ("1", "2"):
        (subject,) = find_subjects(tmp_path, ["07"], sessions=[session])
        assert "says ses-2" in next(iter(subject.errors.values()))


def test_a_session_in_the_name_alone_is_no_contradiction(tmp_path):
    write_image(tmp_path / "sub-07" / "anat" / "sub-07_ses-2_T1w.nii.gz")
    assert titles(find_subjects(tmp_path, ["07"])) == ["sub-07 ses-2 T1w"]


@pytest.mark.input(
    "names",
    "a dataset below a folder that is called `pet`, `func` or another datatype",
    "its images are found",
    0,
)
@pytest.mark.parametrize("above", ["pet", "func/meg", "anat"])
def test_names_of_folders_above_the_dataset_do_not_count(tmp_path, above):
    data = write_dataset(tmp_path / above / "data", "sub-01_T1w", "sub-02_ses-A_T1w")
    assert titles(find_subjects(data, ["01", "02"])) == ["sub-01 T1w", "sub-02 ses-A T1w"]
    perf = {"t1w": {"datatype": "perf"}}
    assert titles(find_subjects(data, ["01"], filters=perf)) == []


@pytest.mark.input(
    "names",
    "images that were put aside below `anat`, such as `anat/excluded/sub-01_run-2_T1w`",
    "left out; a warning says how many, and names one",
    0,
)
def test_images_that_were_put_aside_are_left_out_and_told(dataset, caplog):
    usual = titles(find_subjects(dataset, ["01", "02"]))
    assert not caplog.text
    aside = ("sub-01/anat/excluded/sub-01_run-2", "sub-02/old/anat/sub-02_ses-A")
    for name in (*aside, "sub-01/sub-01_run-3"):
        write_image(dataset / f"{name}_T1w.nii.gz")
    assert titles(find_subjects(dataset, ["01", "02"])) == usual
    assert f"2 are left out, e.g. {aside[0]}_T1w.nii.gz" in caplog.text
    anywhere = {"t1w": {"datatype": "*"}}
    assert "sub-01 run-2 T1w" in titles(find_subjects(dataset, ["01"], filters=anywhere))
