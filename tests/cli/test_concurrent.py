# SPDX-License-Identifier: Apache-2.0
"""Jobs that write one derivative at the same time do not disturb each other."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.bids.description import write_description, write_label_tables
from brainseg_bids.documents import InputError
from brainseg_bids.stages import pages
from tests.fakes import dataset

ROOT = Path(__file__).parents[2]
ROOT_FILES = (
    ".bidsignore",
    "README.md",
    "dataset_description.json",
    "logs/CITATION.bib",
    "logs/CITATION.md",
    "seg-brainseg_dseg.tsv",
    "seg-tissue_dseg.tsv",
)


def run_together(root, cases):
    """Exit codes and what was said, of jobs that begin together, each a process."""
    jobs = [
        job(root, "data", "out", f"work/sub-{label}", "--participant-label", label,
            "--session-label", session)
        for label, session in cases
    ]  # fmt: skip
    return dict(zip(cases, ends_of(jobs), strict=True))


def job(root, data, output, work, *more):
    """A command line, without workers of its own."""
    plugin = root / "plugin.yml"
    plugin.write_text("plugin: Linear\n")
    return [root / data, root / output, "participant", "-w", root / work, "--model",
            root / "model", "--nprocs", "1", "--use-plugin", plugin, *more]  # fmt: skip


def ends_of(jobs):
    """Exit code and what was said of each command line; all begin at once."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.fakes.together"],
        input=json.dumps([[str(word) for word in job] for job in jobs]),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return list(map(tuple, json.loads(done.stdout)))


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """What eight jobs leave: two sessions of each of four people; one image is broken."""
    root = tmp_path_factory.mktemp("eight")
    dataset.write_bundle(root / "model")
    cases = [(label, session) for label in ("01", "02", "03", "04") for session in "AB"]
    dataset.write_dataset(root / "data", *(f"sub-{p}_ses-{s}_T1w" for p, s in cases))
    broken = root / "data" / "sub-04" / "ses-A" / "anat" / "sub-04_ses-A_T1w.nii.gz"
    broken.write_bytes(broken.read_bytes()[:1200])
    return root, run_together(root, cases)


@pytest.mark.slow
def test_eight_jobs_end_as_each_alone_would(eight):
    root, ended = eight
    codes = {case: code for case, (code, _) in ended.items()}
    assert codes == {case: int(case == ("04", "A")) for case in ended}, ended
    files = [path for path in (root / "out").rglob(".*") if path.name != ".bidsignore"]
    assert files == []  # nothing half-written
    dataset.assert_valid_bids(root / "out")


@pytest.mark.slow
def test_a_page_shows_both_sessions_whichever_job_wrote_it_last(eight):
    root, _ = eight
    for label in ("01", "02", "03"):
        page = (root / "out" / f"sub-{label}.html").read_text()
        for session in "AB":
            assert f"sub-{label}_ses-{session}_T1w.nii.gz" in page


@pytest.mark.slow
def test_a_page_tells_what_the_other_job_could_not_do(eight):
    page = (eight[0] / "out" / "sub-04.html").read_text()
    assert "sub-04 ses-A T1w: " in page
    assert "Copy or export" in page
    assert "sub-04_ses-B_seg-brainseg_dseg.nii.gz" in page


@pytest.mark.slow
def test_root_files_are_left_alone_by_jobs_that_come_later(eight):
    root, _ = eight

    def state():
        return {name: (root / "out" / name).stat().st_mtime_ns for name in ROOT_FILES}

    before = state()
    dataset.write_dataset(root / "data", "sub-05_ses-A_T1w")
    assert run_together(root, [("05", "A")])[("05", "A")][0] == 0
    assert state() == before


# -- on one participant, or with one scratch folder ---------------------------------------


@pytest.mark.slow
@pytest.mark.input(
    "runs",
    "the same command twice at the same time, with two scratch folders",
    "one segments, the other waits and reuses",
    0,
)
def test_of_the_same_command_twice_one_waits_for_the_other(tmp_path):
    dataset.write_bundle(tmp_path / "model")
    dataset.write_dataset(tmp_path / "data", "sub-01_T1w")
    ends = ends_of([job(tmp_path, "data", "out", work) for work in ("work", "elsewhere")])
    assert [code for code, _ in ends] == [0, 0], ends
    assert sorted("reused" in said for _, said in ends) == [False, True]
    assert sorted("another run is at work" in said for _, said in ends) == [False, True]


@pytest.mark.slow
@pytest.mark.input(
    "runs",
    "two datasets with participants of the same label, images of the same size and time stamp, at "
    "the same time with one scratch folder",
    "each gets its own segmentation",
    0,
)
def test_datasets_that_look_the_same_keep_their_own_images(tmp_path):
    dataset.write_bundle(tmp_path / "model")
    places = {"a": 0.0, "b": 7.0}
    for name, shift_mm in places.items():
        dataset.write_dataset(tmp_path / name)
        path = tmp_path / name / "sub-01" / "anat" / "sub-01_T1w.nii"
        dataset.write_image(path)
        file = nib.load(path, mmap=False)
        affine = file.affine.copy()
        affine[0, 3] += shift_mm
        nib.save(nib.Nifti1Image(np.asarray(file.dataobj), affine), path)
        os.utime(path, (1_700_000_000, 1_700_000_000))
    ends = ends_of([job(tmp_path, name, f"out-{name}", "work") for name in places])
    assert [code for code, _ in ends] == [0, 0], ends
    labels = [
        nib.load(tmp_path / f"out-{name}/sub-01/anat/sub-01_seg-brainseg_dseg.nii.gz")
        for name in places
    ]
    assert labels[1].affine[0, 3] - labels[0].affine[0, 3] == pytest.approx(7)


# -- the same without chance --------------------------------------------------------------


@pytest.fixture
def quick(app):
    """The app without worker processes."""
    plugin = app.root / "plugin.yml"
    plugin.write_text("plugin: Linear\n")
    app.images("sub-01_ses-A_T1w", "sub-01_ses-B_T1w")
    return lambda *arguments: app("--use-plugin", plugin, *arguments)


def test_results_that_come_while_a_page_is_written_are_on_it(quick, monkeypatch):
    done = quick()
    there, aside = done.output / "sub-01" / "ses-B", done.output.parent / "aside"
    there.rename(aside)
    write = pages.write_subject_page

    def slow_write(*args, **kwargs):
        path = write(*args, **kwargs)
        if aside.exists():  # the other job is ready meanwhile, and its page is overwritten
            aside.rename(there)
        return path

    monkeypatch.setattr(pages, "write_subject_page", slow_write)
    quick("--session-label", "A")
    assert "sub-01_ses-B_T1w.nii.gz" in (done.output / "sub-01.html").read_text()


def test_what_failed_is_told_until_it_succeeds_or_is_gone(quick, app):
    image = app.root / "data" / "sub-01" / "ses-A" / "anat" / "sub-01_ses-A_T1w.nii.gz"
    content = image.read_bytes()
    image.write_bytes(content[:1200])
    assert quick("--session-label", "A").code == 1
    other = quick("--session-label", "B")
    assert other.code == 0
    page = other.output / "sub-01.html"
    assert "sub-01 ses-A T1w: " in page.read_text()
    image.write_bytes(content)
    assert quick("--session-label", "A").code == 0
    assert "sub-01 ses-A T1w: " not in page.read_text()
    assert not list((other.output / "logs" / "failed").iterdir())
    image.write_bytes(content[:1200])
    quick("--session-label", "A")
    image.unlink()
    quick("--session-label", "B")
    assert "sub-01 ses-A T1w: " not in page.read_text()


def test_links_of_all_jobs_are_kept(tmp_path):
    (tmp_path / "data").mkdir()
    names = [f"tool{n}" for n in range(16)]

    def write(name):
        write_description(tmp_path / "data", tmp_path / "out", links={name: tmp_path / name})

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(write, names))
    said = json.loads((tmp_path / "out" / "dataset_description.json").read_text())
    assert set(said["DatasetLinks"]) == {*names, "raw"}


def test_of_two_models_with_other_labels_one_is_refused(tmp_path):
    tables = [LabelTable.packaged("brainseg"), LabelTable.packaged("tissue")] * 4

    def write(table):
        try:
            return write_label_tables(tmp_path, {"brainseg": table}) and table.name
        except InputError:
            return "refused"

    with ThreadPoolExecutor(8) as pool:
        ended = list(pool.map(write, tables))
    assert sorted(set(ended)) in (["brainseg", "refused"], ["refused", "tissue"])
    assert [path.name for path in tmp_path.iterdir()] == ["seg-brainseg_dseg.tsv"]
