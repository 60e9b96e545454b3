# SPDX-License-Identifier: Apache-2.0
"""The app from one end to the other, with a stand-in for the network."""

import contextlib
import csv
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from brainseg_bids.bids.names import sidecar
from brainseg_bids.files import sha256
from tests.fakes import dataset

GOLDEN = Path(__file__).parents[1] / "outputs" / "segment.txt"


@pytest.fixture(scope="module")
def finished(lasting_app):
    lasting_app.images(
        "sub-01_T1w", "sub-01_T2w", "sub-02_ses-A_acq-x_run-1_T1w", "sub-02_ses-A_inv-1_MP2RAGE"
    )
    return lasting_app("--probseg")


def test_it_leaves_exactly_the_files_it_promises_as_valid_bids(finished):
    assert finished.code == 0, finished.log
    assert finished.files == GOLDEN.read_text().split()
    dataset.assert_valid_bids(finished.output)


def test_labels_lie_on_the_grid_of_their_image(finished):
    image = nib.load(finished.data / "sub-01" / "anat" / "sub-01_T2w.nii.gz")
    for name in (
        "seg-brainseg_dseg",
        "seg-tissue_dseg",
        "desc-brain_mask",
        "seg-brainseg_probseg",
    ):
        result = nib.load(finished.output / "sub-01" / "anat" / f"sub-01_space-T2w_{name}.nii.gz")
        assert result.shape[:3] == image.shape
        assert np.allclose(result.affine, image.affine)


def test_the_json_says_source_model_time_and_memory(finished):
    path = finished.output / "sub-01" / "anat" / "sub-01_seg-brainseg_dseg.json"
    beside = json.loads(path.read_text())
    assert beside["Sources"] == ["bids:raw:sub-01/anat/sub-01_T1w.nii.gz"]
    assert beside["SpatialReference"] == beside["Sources"][0]
    assert re.fullmatch(r"[0-9a-f]{64}", beside["ModelDigest"])
    assert beside["SegmentationSeconds"] == 1.5
    assert beside["PeakMemoryGiB"] == 0.25
    assert beside["ConfidenceCalibrated"] is True


def test_the_volumes_table_flags_structures_of_low_confidence_and_explains_its_columns(finished):
    path = finished.output / "sub-01" / "anat" / "sub-01_seg-brainseg_desc-volumes_morph.tsv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    flags = {row["index"]: row["low_confidence"] for row in rows}
    assert {code: flag for code, flag in flags.items() if flag != "n/a"} == {
        "3": "no",
        "42": "yes",
    }
    assert set(rows[0]) <= set(json.loads(path.with_suffix(".json").read_text()))


def test_labels_without_a_skull_have_no_intracranial_volume_and_all_places_say_so(finished):
    path = finished.output / "sub-01" / "anat" / "sub-01_seg-brainseg_desc-volumes_morph.tsv"
    with path.open(newline="") as file:
        *_, inside = csv.DictReader(file, delimiter="\t")
    assert (inside["name"], inside["volume_mm3"]) == ("Intracranial", "n/a")
    assert "skull" in inside["note"]
    assert inside["note"] in (finished.output / "sub-01.html").read_text()
    assert (
        f"sub-01 T1w: no intracranial volume, n/a in the table: {inside['note']}" in finished.log
    )


def test_probabilities_name_their_labels_in_order(finished):
    folder = finished.output / "sub-01" / "anat"
    names = json.loads((folder / "sub-01_seg-brainseg_probseg.json").read_text())["LabelMap"]
    shape = nib.load(folder / "sub-01_seg-brainseg_probseg.nii.gz").shape
    assert shape[3] == len(names)
    assert names[0] == "Background"


def test_the_log_is_for_people(finished):
    assert "peak 0.2 GiB" in finished.log
    assert "made for T1w" in finished.log
    assert "finished successfully!" in finished.log


def test_settings_and_methods_are_kept(finished):
    (settings,) = finished.output.glob("logs/*/settings.toml")
    assert "probseg = true" in settings.read_text()
    methods = (finished.output / "logs" / "CITATION.md").read_text()
    cited = set(re.findall(r"@(\w+)", methods))
    known = set(
        re.findall(r"@\w+\{(\w+),", (finished.output / "logs" / "CITATION.bib").read_text())
    )
    assert cited
    assert cited <= known


def test_each_participant_has_a_page_with_all_its_images(finished):
    page = (finished.output / "sub-01.html").read_text()
    assert "sub-01 T1w" in page
    assert "sub-01 T2w" in page
    assert "data:image/png;base64," in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_the_same_run_again_reuses_everything_and_is_fast(finished, lasting_app):
    labels = finished.output / "sub-01" / "anat" / "sub-01_seg-brainseg_dseg.nii.gz"
    before_ns = labels.stat().st_mtime_ns
    began_s = time.monotonic()
    again = lasting_app("--probseg")
    assert again.code == 0
    assert "reused" in again.log
    assert "segmented in" not in again.log
    assert labels.stat().st_mtime_ns == before_ns
    assert time.monotonic() - began_s < 10
    assert again.files == finished.files


def test_pages_alone_can_be_made_again(finished, lasting_app):
    page = finished.output / "sub-02.html"
    whole = page.read_text()
    page.unlink()
    assert lasting_app("--probseg", "--reports-only").code == 0
    assert page.read_text().count("<h2") == whole.count("<h2")


def test_the_group_level_puts_all_volumes_into_one_table_and_page(finished, lasting_app):
    assert lasting_app(level="group").code == 0
    table = finished.output / "group_seg-brainseg_desc-volumes_morph.tsv"
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [row["image"] for row in rows] == [
        "sub-01 T1w", "sub-01 T2w", "sub-02 ses-A acq-x run-1 T1w"
    ]  # fmt: skip
    assert rows[2]["session_id"] == "ses-A"
    assert float(rows[0]["Left-Cerebral-Cortex"]) > 0
    assert "sub-02" in (finished.output / "group.html").read_text()
    table.unlink()
    (finished.output / "group.html").unlink()


def test_only_the_wanted_participant_is_done(app):
    app.images("sub-01_T1w", "sub-02_T1w")
    done = app("--participant-label", "sub-02")
    assert done.code == 0
    assert (done.output / "sub-02.html").is_file()
    assert not (done.output / "sub-01").exists()


def test_the_methods_text_alone_runs_nothing(app):
    app.images("sub-01_T1w")
    done = app("--boilerplate-only")
    assert done.code == 0
    assert (done.output / "logs" / "CITATION.md").is_file()
    assert not (done.output / "sub-01").exists()


def test_results_of_another_model_are_replaced_if_labels_agree(app):
    app.images("sub-01_T1w")
    assert app().code == 0
    shutil.rmtree(app.model)
    dataset.write_bundle(app.model, name="newer")
    again = app()
    assert again.code == 0
    assert "another model" in again.log
    beside = again.output / "sub-01" / "anat" / "sub-01_seg-brainseg_dseg.json"
    assert json.loads(beside.read_text())["ModelName"] == "newer"


@pytest.mark.input(
    "runs",
    "labels that are computed again without the flags of an earlier run (`--probseg`, exports)",
    "earlier probabilities are removed, with a warning; other results of the earlier labels are "
    "named",
    0,
)
def test_what_other_labels_left_is_removed_or_named(app):
    app.images("sub-01_T1w")
    assert app("--probseg", "--freesurfer-export").code == 0
    anat = app.root / "out" / "sub-01" / "anat"
    soft = [f"sub-01_seg-brainseg{desc}_probseg.nii.gz" for desc in ("", "_desc-entropy")]
    exported = "derivatives/freesurfer-labels/sub-01/mri/aseg"
    (anat.parent / "figures" / "sub-01_seg-brainseg_dseg.png").unlink()
    same = app()
    assert same.code == 0
    assert all((anat / name).is_file() for name in soft)  # of the same labels
    assert not any(text in same.log for text in (soft[0], exported))

    labels = anat / "sub-01_seg-brainseg_dseg.nii.gz"
    before = sha256(labels)
    shutil.rmtree(app.model)
    dataset.write_bundle(app.model, name="newer")
    dataset.write_image(app.root / "data/sub-01/anat/sub-01_T1w.nii.gz", shape=(26, 26, 24))
    newer = app()
    assert newer.code == 0
    assert sha256(labels) != before
    for name in soft:
        assert name in newer.log
        assert not (anat / name).exists()
        assert not sidecar(anat / name).exists()
    assert exported in newer.log
    assert exported in app().log  # until something is done about it
    assert exported not in app("--freesurfer-export").log


def test_a_derivative_inside_the_dataset_names_it_by_a_relative_link(app):
    app.images("sub-01_T1w")
    done = app(output="data/derivatives/brainseg")
    assert done.code == 0
    description = json.loads((done.output / "dataset_description.json").read_text())
    assert description["DatasetLinks"]["raw"] == "../.."
    again = app(output="data/derivatives/brainseg")
    assert "sub-01 T1w" in again.log
    assert "reused" in again.log


def start(app, *program, **options):
    """The app as a process of its own, so that it has a terminal or can be interrupted."""
    arguments = [app.root / "data", app.root / "out", "participant", "-w", app.root / "work"]
    arguments += ["--model", app.model, "--", *program]
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tests.fakes.app", *map(str, arguments)],
        cwd=Path(__file__).parents[2], text=True, **options,
    )  # fmt: skip


@pytest.mark.slow
def test_an_interrupt_ends_it_with_130_and_leaves_nothing_half_written(app):
    app.images("sub-01_T1w")
    process = start(
        app, "--sleep-s", "60", start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        # A shell's background jobs ignore SIGINT, and their children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    said = ""
    while "60 %" not in said:  # progress is told in lines where there is no terminal
        line = process.stdout.readline()
        assert line, said
        said += line
    os.killpg(process.pid, signal.SIGINT)
    said += process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert "same command again" in said
    assert not list((app.root / "out").glob("sub-01/**/*.nii.gz"))


@pytest.mark.slow
def test_on_a_terminal_there_is_a_bar(app):
    app.images("sub-01_T1w")
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    with start(app, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        said = b""
        with contextlib.suppress(OSError):  # Linux' way to say that the terminal was closed
            while part := os.read(ours, 4096):
                said += part
    os.close(ours)
    assert process.returncode == 0
    assert b"100 %|" in said
    assert b"sub-01 T1w: segmented in" in said
