# SPDX-License-Identifier: Apache-2.0
"""``--stages headlabels`` from one end to the other, with stand-ins for the external tools."""

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.images import (
    read_label_map,
    read_top_posteriors,
    write_label_map,
    write_volume,
)
from tests.fakes import dataset
from tests.fakes.tools import fake_command
from tests.made_nifti import contradict
from tests.phantom.head import phantom_grid, phantom_head, phantom_image

GOLDEN = Path(__file__).parents[1] / "outputs" / "headlabels.txt"
FULLHEAD = LabelTable.packaged("fullhead")


def write_heads(root: Path, *names: str) -> Path:
    """A BIDS dataset of phantom heads."""
    dataset.write_dataset(root, *names)
    head = phantom_head()
    for seed, path in enumerate(sorted(root.rglob("*.nii.gz"))):
        image = phantom_image(head, np.random.default_rng(seed))
        write_volume(image.round(), head.grid, path)
    return root


def tools(*names: str, **switches: list[str]) -> list[str]:
    """``--tool`` for stand-ins; ``switches`` make them fail."""
    return [
        word
        for name in names
        for word in ("--tool", f"{name}={fake_command(name, *switches.get(name, []))}")
    ]


BOTH = ("--stages", "headlabels", "--head-tool", "charm", "--brain-tool", "synthseg")
SAMSEG = ("--stages", "headlabels", "--head-tool", "samseg")


@pytest.fixture(scope="module")
def finished(lasting_app):
    write_heads(lasting_app.root / "data", "sub-01_T1w", "sub-01_T2w", "sub-02_ses-A_T1w")
    return lasting_app(*BOTH, *tools("charm", "synthseg"))


def labels_of(done, name: str):
    return read_label_map(done.output / "sub-01" / "anat" / name, FULLHEAD)


def test_it_leaves_exactly_the_files_it_promises_as_valid_bids(finished):
    assert finished.code == 0, finished.log
    assert finished.files == GOLDEN.read_text().split()
    dataset.assert_valid_bids(finished.output)


def test_the_merged_map_lies_on_the_images_grid_and_is_nearly_the_truth(finished):
    image = nib.load(finished.data / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    merged = labels_of(finished, "sub-01_seg-fullhead_dseg.nii.gz")
    assert merged.grid.shape == image.shape
    assert np.allclose(merged.grid.affine, image.affine)
    truth = phantom_head()
    brain = np.isin(truth.voxels, [label.index for label in FULLHEAD if label.is_brain])
    assert (merged.voxels == truth.voxels)[brain].mean() > 0.9


def test_nothing_inside_the_head_is_unlabelled(finished):
    merge = finished.output / "sub-01" / "anat" / "sub-01_seg-fullhead_desc-merge_morph.json"
    report = json.loads(merge.read_text())["Merge"]
    assert report["holes"]["after_voxels"] == 0
    assert (report["head"], report["brain"]) == ("charm", "synthseg")
    assert any(line["structure"] for line in report["conflicts"])


def test_each_tools_map_is_kept_in_its_own_codes_and_grid_with_its_table(finished):
    path = finished.output / "sub-01" / "anat" / "sub-01_seg-synthseg_dseg.nii.gz"
    table = LabelTable.read(finished.output / "seg-synthseg_dseg.tsv")
    labels = read_label_map(path, table)
    assert labels.grid.voxel_size_mm == pytest.approx((1, 1, 1))
    said = json.loads(path.with_name("sub-01_seg-synthseg_dseg.json").read_text())
    assert said["Tool"] == "synthseg"
    assert "synthseg.py" in said["Command"]
    assert said["Seconds"] >= 0
    assert said["Mode"]


def test_the_page_shows_both_tools_and_the_group_page_compares_the_heads(finished, lasting_app):
    page = (finished.output / "sub-01.html").read_text()
    for word in ("charm", "synthseg", "data:image/png", "brain-is-the-brain-tools"):
        assert word in page
    assert lasting_app(level="group").code == 0
    with (finished.output / "group_seg-fullhead_desc-presence_morph.tsv").open() as file:
        rows = {row["structure"]: row for row in csv.DictReader(file, delimiter="\t")}
    assert rows["Brain-Stem"]["n_has"] == "2"
    assert (finished.output / "group_fullhead.html").is_file()
    for path in finished.output.glob("group*"):
        path.unlink()


def test_a_second_run_starts_no_tool(finished, lasting_app):
    again = lasting_app(*BOTH, *tools("charm", "synthseg", charm=["exit1"], synthseg=["exit1"]))
    assert again.code == 0, again.log
    assert "reused" in again.log
    assert again.files == finished.files


def test_a_merge_that_is_missing_is_made_again_from_the_tools_maps(finished, lasting_app):
    (finished.output / "sub-01" / "anat" / "sub-01_seg-fullhead_dseg.nii.gz").unlink()
    again = lasting_app(
        *BOTH, *tools("charm", "synthseg", charm=["exit1"], synthseg=["exit1"]), work="other"
    )
    assert again.code == 0, again.log
    assert "labels are reused" in again.log
    assert again.files == finished.files


def test_probabilities_are_kept_and_agree_with_the_labels(app):
    write_heads(app.root / "data", "sub-01_T1w")
    done = app(*SAMSEG, *tools("samseg"))
    assert done.code == 0, done.log
    merged = labels_of(done, "sub-01_seg-fullhead_dseg.nii.gz")
    stem = done.output / "sub-01" / "anat" / "sub-01_seg-fullhead_desc-top4"
    top = read_top_posteriors(f"{stem}_dseg.nii.gz", f"{stem}_probseg.nii.gz", FULLHEAD)
    assert np.array_equal(top.hard().voxels, merged.voxels)
    assert (np.diff(top.weights.astype(int), axis=0) <= 0).all()
    shown = nib.load(f"{stem}_probseg.nii.gz").get_fdata()
    assert shown.max() == pytest.approx(1)
    assert (shown[..., 1] > 0).any()
    dataset.assert_valid_bids(done.output)


def test_the_packaged_way_needs_no_external_program(app, monkeypatch):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    write_heads(app.root / "data", "sub-01_T1w")
    done = app("--stages", "headlabels", "segment")
    assert done.code == 0, done.log
    folder = done.output / "sub-01" / "anat"
    assert (folder / "sub-01_seg-fullhead_dseg.nii.gz").is_file()
    assert (folder / "sub-01_seg-brainseg_dseg.nii.gz").is_file()


def test_results_the_user_has_are_taken_instead_of_running_the_tool(app):
    write_heads(app.root / "data", "sub-01_T1w")
    theirs = app.root / "simnibs" / "m2m_sub-01" / "segmentation" / "labeling.nii.gz"
    theirs.parent.mkdir(parents=True)
    write_label_map(phantom_head(), theirs)
    doubt = contradict(theirs)
    head = ("--stages", "headlabels", "--head-tool", "charm")
    done = app(*head, "-d", f"charm={app.root / 'simnibs'}")
    assert done.code == 0, done.log
    assert f"charm is not run: found in {app.root / 'simnibs'}" in done.log
    said = json.loads(
        (done.output / "sub-01" / "anat" / "sub-01_seg-fullhead_dseg.json").read_text()
    )
    assert "bids:charm:m2m_sub-01/segmentation/labeling.nii.gz" in said["Sources"]
    links = json.loads((done.output / "dataset_description.json").read_text())["DatasetLinks"]
    assert links["charm"] == (app.root / "simnibs").as_uri()
    assert done.log.count(doubt) == 1
    assert doubt in (done.output / "sub-01.html").read_text()
    dataset.assert_valid_bids(done.output)


def test_a_map_of_another_place_or_with_strange_codes_is_refused_by_name(app):
    write_heads(app.root / "data", "sub-01_T1w", "sub-02_T1w")
    head, affine = phantom_head(), phantom_grid().affine.copy()
    affine[2, 3] += 900
    away = LabelMap(head.voxels, Grid(head.grid.shape, affine), head.table)
    for subject, labels in (("01", away), ("02", head)):
        path = app.root / "maps" / f"m2m_sub-{subject}" / "segmentation" / "labeling.nii.gz"
        path.parent.mkdir(parents=True)
        write_label_map(labels, path)
    strange = nib.load(path)
    voxels = np.asarray(strange.dataobj).copy()
    voxels[20, 20, 20] = 999
    nib.save(nib.Nifti1Image(voxels, strange.affine), path)
    done = app(
        "--stages", "headlabels", "--head-tool", "charm", "-d", f"charm={app.root / 'maps'}"
    )
    assert done.code == 1
    (first,) = [line for line in done.log.splitlines() if "ERROR: sub-01 T1w head labels" in line]
    (second,) = [line for line in done.log.splitlines() if "ERROR: sub-02 T1w head labels" in line]
    assert "labeling.nii.gz" in first
    assert "its header" in first or "label the grid" in first
    assert "999 (1 voxel)" in second
    assert not list(done.output.glob("sub-*/anat/*"))


@pytest.mark.parametrize(
    ("switch", "code", "words"),
    [
        ("exit1", 1, "samseg failed with exit code 1"),
        ("sigkill", 1, "was killed, most likely because memory ran out"),
        ("nothing", 1, "wrote no"),
        ("grid", 1, "was to label the grid of"),
        ("code", 1, "no translation for codes"),
        ("licence", 126, "--fs-license-file"),
    ],
)
def test_a_tool_that_fails_is_one_line_that_names_its_log(app, switch, code, words):
    write_heads(app.root / "data", "sub-01_T1w")
    done = app(*SAMSEG, *tools("samseg", samseg=[switch]))
    (line,) = [line for line in done.log.splitlines() if "ERROR: sub-01 T1w head labels" in line]
    assert words in line or "does not know: " in line
    assert "samseg.log" in line
    assert done.code == code
    assert not list(done.output.glob("sub-01/anat/*"))
    assert words in (done.output / "sub-01.html").read_text() or switch == "code"


def test_what_an_earlier_merge_left_beside_does_not_stay(app):
    write_heads(app.root / "data", "sub-01_T1w")
    assert app(*SAMSEG, *tools("samseg")).code == 0
    top = app.root / "out" / "sub-01" / "anat" / "sub-01_seg-fullhead_desc-top4_probseg.nii.gz"
    assert top.is_file()
    done = app("--stages", "headlabels", "--head-tool", "charm", *tools("charm"))
    assert done.code == 0, done.log
    assert not list(top.parent.glob("*_seg-fullhead_desc-top4_*"))
    assert (top.parent / "sub-01_seg-samseg_desc-top4_probseg.nii.gz").is_file()


def test_a_map_of_another_image_is_refused_by_what_its_json_says(app):
    write_heads(app.root / "data", "sub-01_T1w", "sub-02_T1w")
    done = app(*SAMSEG, *tools("samseg"), "--participant-label", "01")
    theirs = app.root / "theirs" / "sub-02" / "anat"
    theirs.mkdir(parents=True)
    for ending in ("dseg.nii.gz", "dseg.json"):
        source = done.output / "sub-01" / "anat" / f"sub-01_seg-samseg_{ending}"
        (theirs / f"sub-02_seg-samseg_{ending}").write_bytes(source.read_bytes())
    given = ("-d", f"samseg={app.root / 'theirs'}", "--participant-label", "02")
    again = app(*SAMSEG, *given, output="other")
    assert again.code == 1
    (line,) = [line for line in again.log.splitlines() if "ERROR: sub-02 T1w" in line]
    assert "sub-02_seg-samseg_dseg" in line


def test_a_given_map_in_another_axis_order_is_brought_to_the_image(app):
    write_heads(app.root / "data", "sub-01_T1w")
    done = app(*SAMSEG, *tools("samseg"))
    labels = done.output / "sub-01" / "anat" / "sub-01_seg-samseg_dseg.nii.gz"
    turned = nib.load(labels).as_reoriented(np.array([[2, -1], [1, 1], [0, -1]]))
    assert turned.shape != nib.load(labels).shape
    path = app.root / "theirs" / "sub-01" / "anat" / labels.name
    path.parent.mkdir(parents=True)
    nib.save(turned, path)
    again = app(*SAMSEG, "-d", f"samseg={app.root / 'theirs'}", output="other")
    assert again.code == 0, again.log
    name = "sub-01_seg-fullhead_dseg.nii.gz"
    assert np.array_equal(labels_of(done, name).voxels, labels_of(again, name).voxels)


def test_pages_alone_do_not_turn_a_failure_into_a_success(app, monkeypatch):
    write_heads(app.root / "data", "sub-01_T1w", "sub-02_T1w")
    done = app(*SAMSEG, *tools("samseg", samseg=["exit1", "only=sub-02"]))
    assert done.code == 1
    monkeypatch.setenv("PATH", "")  # the tool need not be here to look at what it made
    again = app(*SAMSEG, "--reports-only")
    assert again.code == 1
    assert "sub-02 T1w head labels: failed: there are no results of it" in again.log
    assert "data:image/png" in (again.output / "sub-01.html").read_text()


def test_a_page_shows_what_earlier_stages_left(app):
    write_heads(app.root / "data", "sub-01_T1w")
    assert app("--stages", "segment").code == 0
    assert app(*SAMSEG, *tools("samseg")).code == 0
    page = (app.root / "out" / "sub-01.html").read_text()
    assert "seg-brainseg" in page
    assert "seg-fullhead" in page
    done = app("--stages", "upsample", "--target-voxel-size", "3")
    assert done.code == 0, done.log
    page = (app.root / "out" / "sub-01.html").read_text()
    for name in ("seg-brainseg", "seg-fullhead_dseg", "seg-fullhead_res-3mm_dseg"):
        assert name in page


def test_a_damaged_table_of_another_subject_costs_nothing_but_the_comparison(app):
    write_heads(app.root / "data", "sub-01_T1w")
    other = app.root / "out" / "sub-99" / "anat" / "sub-99_seg-fullhead_desc-volumes_morph.tsv"
    other.parent.mkdir(parents=True)
    other.write_text("nonsense\n1\n")
    done = app(*SAMSEG, *tools("samseg"))
    assert done.code == 0, done.log
    assert "not compared" in done.log
    assert (done.output / "sub-01.html").is_file()


def test_a_tool_that_fails_for_one_subject_leaves_the_others_complete(app):
    write_heads(app.root / "data", "sub-01_T1w", "sub-02_T1w")
    done = app(*SAMSEG, *tools("samseg", samseg=["exit1", "only=sub-02"]))
    assert done.code == 1
    assert "1 of 2" in done.log
    assert (done.output / "sub-01" / "anat" / "sub-01_seg-fullhead_dseg.nii.gz").is_file()
    mended = app(*SAMSEG, *tools("samseg", samseg=["exit1", "only=sub-01"]))
    assert mended.code == 0, mended.log


def test_a_tool_that_takes_too_long_is_ended_with_all_it_started(app):
    write_heads(app.root / "data", "sub-01_T1w")
    done = app(*SAMSEG, *tools("samseg", samseg=["hang"]), "--tool-timeout", "0.0008")
    assert done.code == 1
    assert "took longer than" in done.log
    assert "--tool-timeout" in done.log
    assert running(app.root) == []


def test_a_missing_tool_is_127_and_says_how_to_get_it(app, monkeypatch):
    monkeypatch.setenv("PATH", "")
    write_heads(app.root / "data", "sub-01_T1w")
    done = app("--stages", "headlabels", "--head-tool", "charm")
    assert done.code == 127
    assert "SimNIBS" in done.log
    assert not (done.output / "sub-01").exists()


def test_odd_paths_work_for_every_tool(app):
    odd = app.root / 'it\'s a "folder" ü $HOME'
    write_heads(odd / "data", "sub-01_T1w")
    moved = type(app)(odd, app.capture)
    dataset.write_bundle(odd / "model")
    done = moved(*BOTH, *tools("charm", "synthseg"))
    assert done.code == 0, done.log
    assert moved(*SAMSEG, *tools("samseg")).code == 0


def test_a_head_that_is_cut_is_done_and_flagged(app):
    root = write_heads(app.root / "data", "sub-01_T1w")
    path = root / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    whole = nib.load(path)
    nib.save(whole.slicer[:, :, :36], path)
    done = app(*SAMSEG, *tools("samseg"))
    assert done.code == 0, done.log
    merge = done.output / "sub-01" / "anat" / "sub-01_seg-fullhead_desc-merge_morph.json"
    flags = " ".join(json.loads(merge.read_text())["Merge"]["flags"])
    assert "superior edge" in flags
    assert "superior edge" in (done.output / "sub-01.html").read_text()


def test_where_a_given_brain_map_has_not_looked_the_head_tools_brain_stays(app):
    write_heads(app.root / "data", "sub-01_T1w")
    path = app.root / "fs" / "sub-01" / "mri" / "aseg.mgz"
    path.parent.mkdir(parents=True)
    head = phantom_head()
    known = [label.index for label in FULLHEAD if label.is_brain]
    brain = np.where(np.isin(head.voxels, known), head.voxels, 0)[:, :, :36]
    nib.save(nib.MGHImage(brain.astype(np.int32), head.grid.affine), path)
    done = app(
        "--stages", "headlabels", "--head-tool", "samseg", "--brain-tool", "freesurfer",
        *tools("samseg"), "-d", f"freesurfer={app.root / 'fs'}",
    )  # fmt: skip
    assert done.code == 0, done.log
    merged = labels_of(done, "sub-01_seg-fullhead_dseg.nii.gz").voxels
    above = np.isin(head.voxels, known)
    above[:, :, :36] = False
    assert np.isin(merged[above], known).mean() > 0.95
    assert "freesurfer's field" in done.log


def running(root: Path) -> list[str]:
    """Stand-ins at work below a folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "fakes/tools" in "".join(words[1:2]) and str(root) in "".join(words):
            found.append(shlex.join(words))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_or_the_end_of_a_job_ends_the_tools_too(app, number):
    write_heads(app.root / "data", "sub-01_T1w")
    arguments = [
        app.root / "data", app.root / "out", "participant", "-w", app.root / "work",
        "--model", app.model, *SAMSEG, *tools("samseg", samseg=["hang"]),
    ]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "brainseg_bids", *map(str, arguments)],
        cwd=Path(__file__).parents[2], start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    until_s = time.monotonic() + 60
    while not running(app.root) and time.monotonic() < until_s:
        time.sleep(0.2)
    assert running(app.root)
    os.kill(process.pid, number)
    assert process.wait(timeout=60) == 128 + number
    until_s = time.monotonic() + 10
    while running(app.root) and time.monotonic() < until_s:
        time.sleep(0.2)
    assert running(app.root) == []
