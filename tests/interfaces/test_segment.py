# SPDX-License-Identifier: Apache-2.0
"""The segmentation process as a Nipype interface."""

import json
import sys

import nibabel as nib
import numpy as np
import pytest

from brainseg_bids.interfaces.segment import PREDICT, Segment, SegmentationError
from brainseg_bids.nets.bundle import ModelBundle
from tests.fakes import dataset

IN_PYTHON = (sys.executable, "-c")


@pytest.fixture
def bundle(tmp_path):
    return ModelBundle.read(dataset.write_bundle(tmp_path / "a model"))


def interface(bundle, image, program=dataset.PREDICT, **inputs):
    return Segment(
        program=program, image=str(image), model=str(bundle.path), model_digest=bundle.digest,
        **inputs,
    )  # fmt: skip


def test_it_leaves_labels_probabilities_and_facts(bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = dataset.write_image(tmp_path / "odd name's (1)" / "T1w.nii.gz")
    outputs = interface(bundle, image, probseg="probseg.nii.gz").run().outputs
    assert nib.load(outputs.labels).shape == nib.load(image).shape
    assert nib.load(outputs.probseg).shape[3] == len(bundle.table)
    with open(outputs.report) as file:
        assert json.load(file)["model_digest"] == bundle.digest


@pytest.mark.input(
    "training", "a model that is replaced while it segments", "that image failed", 1
)
def test_a_model_that_was_replaced_meanwhile_is_not_taken_for_the_planned_one(
    bundle, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    image = dataset.write_image(tmp_path / "T1w.nii.gz")
    manifest = bundle.path / "bundle.json"
    manifest.write_text(manifest.read_text() + "\n")
    with pytest.raises(SegmentationError, match=r".*Run it again"):
        interface(bundle, image).run()


def test_a_killed_process_says_that_memory_ran_out(bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = dataset.write_image(tmp_path / "T1w.nii.gz")
    with pytest.raises(SegmentationError, match=r"T1w.nii.gz.*was killed.*memory") as caught:
        interface(bundle, image, program=(*dataset.PREDICT, "--kill", "T1w")).run()
    assert "\n" not in str(caught.value)


def test_what_the_process_says_is_handed_on_in_one_line(bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = tmp_path / "T1w.nii.gz"
    image.write_text("no image")
    with pytest.raises(SegmentationError, match=r"T1w.nii.gz: ") as caught:
        interface(bundle, image).run()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("code", "message"),
    [("import os; os.abort()", "ended by signal SIGABRT"), ("raise SystemExit(3)", "exit code 3"),
     ("raise KeyError('strange')", "failed .KeyError: 'strange'")],
)  # fmt: skip
def test_any_other_end_is_told_too(bundle, tmp_path, monkeypatch, code, message):
    monkeypatch.chdir(tmp_path)
    image = dataset.write_image(tmp_path / "T1w.nii.gz")
    with pytest.raises(SegmentationError, match=message):
        interface(bundle, image, program=(*IN_PYTHON, code)).run()


def test_threads_reach_the_process_as_option_and_environment(bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = dataset.write_image(tmp_path / "T1w.nii.gz")
    code = "import os, sys; sys.exit(f'{os.environ[\"OMP_NUM_THREADS\"]} {sys.argv[-2:]}')"
    with pytest.raises(SegmentationError, match=r"3 \['--threads', '3'\]"):
        interface(bundle, image, program=(*IN_PYTHON, code), threads=3).run()


def test_the_default_program_is_our_own_in_the_same_python():
    assert (sys.executable, "-m", "brainseg_bids.programs.segment") == PREDICT


def test_the_stand_in_writes_codes_that_the_model_knows(bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = dataset.write_image(tmp_path / "T1w.nii.gz")
    labels = nib.load(interface(bundle, image).run().outputs.labels)
    assert set(np.unique(labels.dataobj)) <= set(bundle.table.codes)
