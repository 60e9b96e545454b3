# SPDX-License-Identifier: Apache-2.0
"""The index kept on disk is never that of another state of the dataset."""

import os
import shutil
import subprocess
import sys

import bids
import pytest

from brainseg_bids.bids import index
from brainseg_bids.bids.inputs import find_subjects
from tests.fakes.dataset import write_dataset


@pytest.fixture
def dataset(tmp_path):
    return write_dataset(
        tmp_path / "data", "sub-01_T1w", "sub-02_ses-A_T1w", "sub-02_ses-B_T1w", "sub-0_T1w"
    )


@pytest.fixture
def made(monkeypatch):
    """How many indexes were made, not taken from the disk."""
    count = []
    make = index._make
    monkeypatch.setattr(index, "_make", lambda *args: count.append(1) or make(*args))
    return count


def titles(bids_dir, labels, database_dir, **choice):
    subjects = find_subjects(bids_dir, labels, database_dir=database_dir, **choice)
    return [scan.title for subject in subjects for scan in subject.scans]


TWO = ["sub-02 ses-A T1w", "sub-02 ses-B T1w"]


def test_the_same_question_is_answered_from_the_disk(dataset, tmp_path, made):
    for _ in range(3):
        assert titles(dataset, ["02"], tmp_path / "kept") == TWO
    assert len(made) == 1


def rename(anat):
    (anat / "sub-02_ses-A_T1w.nii.gz").rename(anat / "sub-02_ses-A_acq-x_T1w.nii.gz")


def remove(anat):
    (anat / "sub-02_ses-A_T1w.nii.gz").unlink()


def add(anat):
    shutil.copy(anat / "sub-02_ses-A_T1w.nii.gz", anat / "sub-02_ses-A_T2w.nii.gz")


def remove_session(anat):
    shutil.rmtree(anat.parent)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (rename, ["sub-02 ses-A acq-x T1w", TWO[1]]),
        (remove, TWO[1:]),
        (add, [TWO[0], "sub-02 ses-A T2w", TWO[1]]),
        (remove_session, TWO[1:]),
    ],
)
def test_every_change_of_names_is_seen_even_if_times_are_put_back(
    dataset, tmp_path, change, expected
):
    assert titles(dataset, ["02"], tmp_path / "kept") == TWO
    anat = dataset / "sub-02" / "ses-A" / "anat"
    folders = [anat, anat.parent, anat.parent.parent]
    times = [folder.stat().st_mtime_ns for folder in folders]
    change(anat)
    for folder, time_ns in zip(folders, times, strict=True):
        if folder.is_dir():
            os.utime(folder, ns=(time_ns, time_ns))
    assert titles(dataset, ["02"], tmp_path / "kept") == expected


def test_a_new_participant_whom_all_are_asked_for_is_seen(dataset, tmp_path):
    assert titles(dataset, ["01"], tmp_path / "kept") == ["sub-01 T1w"]
    write_dataset(dataset, "sub-03_T1w")
    assert titles(dataset, ["01", "03"], tmp_path / "kept") == ["sub-01 T1w", "sub-03 T1w"]


def test_the_index_of_one_dataset_does_not_answer_for_a_copy_elsewhere(dataset, tmp_path):
    titles(dataset, ["02"], tmp_path / "kept")
    other = tmp_path / "other"
    shutil.copytree(dataset, other)
    (subject,) = find_subjects(other, ["02"], database_dir=tmp_path / "kept")
    assert all(scan.path.is_relative_to(other) for scan in subject.scans)


def test_another_filter_asks_anew(dataset, tmp_path):
    assert titles(dataset, ["02"], tmp_path / "kept") == TWO
    filters = {"t1w": {"session": "B"}}
    assert titles(dataset, ["02"], tmp_path / "kept", filters=filters) == TWO[1:]
    assert titles(dataset, ["02"], tmp_path / "kept", sessions=["A"]) == TWO[:1]


def test_a_filter_that_looks_in_another_folder_finds_it(dataset, tmp_path):
    anat = dataset / "sub-02" / "ses-A" / "anat"
    anat.rename(anat.with_name("perf"))
    filters = {"t1w": {"datatype": "perf"}}
    assert titles(dataset, ["02"], tmp_path / "kept") == TWO[1:]
    assert titles(dataset, ["02"], tmp_path / "kept", filters=filters) == TWO[:1]


def test_another_version_of_pybids_makes_its_own(dataset, tmp_path, made, monkeypatch):
    titles(dataset, ["02"], tmp_path / "kept")
    monkeypatch.setattr(bids, "__version__", "99.0")
    assert titles(dataset, ["02"], tmp_path / "kept") == TWO
    assert len(made) == 2


def test_a_damaged_index_is_made_again(dataset, tmp_path, made):
    titles(dataset, ["02"], tmp_path / "kept")
    (database,) = tmp_path.glob("kept/*/*.sqlite")
    for content in (b"", b"SQLite format 3\0 but no more", database.read_bytes()[:20_000]):
        database.write_bytes(content)
        assert titles(dataset, ["02"], tmp_path / "kept") == TWO
    assert len(made) == 4


def test_a_folder_that_cannot_be_written_is_told_and_does_not_matter(dataset, tmp_path, caplog):
    (tmp_path / "file").write_text("no folder")
    assert titles(dataset, ["02"], tmp_path / "file" / "kept") == TWO
    assert "--bids-database-dir" in caplog.text


def test_states_that_are_gone_are_removed_and_those_of_others_stay(dataset, tmp_path):
    titles(dataset, ["01"], tmp_path / "kept")
    for _ in range(2):
        titles(dataset, ["02"], tmp_path / "kept")
        add(dataset / "sub-02" / "ses-A" / "anat")
    titles(dataset, ["02"], tmp_path / "kept")
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_a_link_to_the_folder_above_ends(dataset, tmp_path):
    (dataset / "sub-01" / "loop").symlink_to("..")
    assert len(index._names(dataset / "sub-01")) < 10_000


def test_processes_share_one_folder_at_the_same_time(dataset, tmp_path):
    code = (
        "import sys; from pathlib import Path;"
        "from brainseg_bids.bids.inputs import find_subjects;"
        "(s,) = find_subjects(Path(sys.argv[1]), ['02'], database_dir=Path(sys.argv[2]));"
        "assert len(s.scans) == 2"
    )
    command = [sys.executable, "-c", code, str(dataset), str(tmp_path / "kept")]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(3)]
    for process in processes:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said.decode()
    assert len(list((tmp_path / "kept").iterdir())) == 1
