# SPDX-License-Identifier: Apache-2.0
"""Finding participants and images."""

import json

import pytest

from brainseg_bids.bids.inputs import dataset_notes, find_participants, find_subjects
from brainseg_bids.bids.names import OutputNames
from brainseg_bids.volumes import InputError
from tests.fakes.dataset import write_dataset


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


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"t1w": {"acquisition": "x"}}, ["sub-02 ses-A acq-x run-1 T1w"]),
        ({"t1w": {"acquisition": None}}, ["sub-02 ses-B run-1 T1w"]),
        ({"T1w": {"acquisition": "*"}}, ["sub-02 ses-A acq-x run-1 T1w"]),
        ({"bold": {"task": "rest"}, "t1w": {"session": ["B"]}}, ["sub-02 ses-B run-1 T1w"]),
    ],
)
def test_filters_choose_by_value_absence_and_presence(dataset, filters, expected):
    assert titles(find_subjects(dataset, ["02"], filters=filters)) == expected


@pytest.mark.parametrize(
    ("filters", "named"),
    [({"t9w": {}}, "t9w"), ({"t1w": {"acquisition_time": 1}}, "acquisition_time"),
     ({"t1w": {"suffix": "T2w"}}, "--contrasts"), ({"t1w": 3}, "braces")],
)  # fmt: skip
def test_a_filter_that_means_nothing_is_refused_by_name(dataset, filters, named):
    with pytest.raises(InputError, match=named):
        find_subjects(dataset, ["02"], filters=filters)


def test_an_unknown_participant_is_named_with_those_there_are(dataset):
    with pytest.raises(InputError, match=r"no participant 09.*01, 010, 02"):
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
    assert "Fetch it with: " in subject.faults["sub-01 T2w"]


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
    assert subject.faults == {}


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
    assert "sub-01_acq-lochead_T1w.nii.gz would both" in next(iter(subject.faults.values()))


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
    "`.bidsignore` names images of a suffix of the user's own, and `--contrasts` asks for it",
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
    assert ".bidsignore: cannot be read" in caplog.text


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
    assert "would both become" in next(iter(subject.faults.values()))


def test_a_name_that_belongs_to_another_participant_is_a_fault(dataset):
    anat = dataset / "sub-010" / "anat"
    (anat / "sub-010_FLAIR.nii.gz").rename(anat / "sub-01_FLAIR.nii.gz")
    (subject,) = find_subjects(dataset, ["010"])
    assert not subject.scans
    assert "Rename" in next(iter(subject.faults.values()))


def test_a_missing_or_poor_description_is_noted(dataset):
    assert dataset_notes(dataset) == []
    path = dataset / "dataset_description.json"
    path.write_text(json.dumps({"Name": "x"}))
    assert "BIDSVersion is missing" in dataset_notes(dataset)[0]
    path.write_text("{")
    assert "dataset_description.json, line 1" in dataset_notes(dataset)[0]
    path.unlink()
    assert "not a valid BIDS dataset" in dataset_notes(dataset)[0]
