# SPDX-License-Identifier: Apache-2.0
"""The step that makes label maps finer: which device does it, and what is said of that."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.anatomy.posteriors import TopPosteriors
from brainseg_bids.anatomy.upsample import upsample, upsample_posteriors
from brainseg_bids.images import read_label_map, write_label_map, write_top_posteriors
from brainseg_bids.inference import upsample_device
from brainseg_bids.interfaces.upsample import Upsample
from brainseg_bids.stages import PARTICIPANT
from brainseg_bids.stages.base import ExecutionOptions
from brainseg_bids.stages.jobs import RUN
from brainseg_bids.stages.upsample import Scan, Target, UpsampleJob, finer_outputs

FULLHEAD = LabelTable.packaged("fullhead")
DEVICE_MODULE = "brainseg_bids.inference.upsample_device"


@pytest.fixture
def run(head, tmp_path, monkeypatch):
    """Upsample the phantom to 2.9 mm; labels and facts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NIPYPE_NO_ET", "1")
    given = {
        "labels": str(write_label_map(head, tmp_path / "x_dseg.nii.gz")),
        "table": str(FULLHEAD.write(tmp_path / "x_dseg.tsv")),
        "voxel_size_mm": [2.9],
    }

    def make(**inputs):
        outputs = Upsample(**given, **inputs).run().outputs
        return read_label_map(outputs.labels, FULLHEAD), json.loads(
            Path(outputs.facts).read_text()
        )

    return make


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that is the processor under another name; lists the names it was asked by."""
    asked = []

    def stand_in(real):
        def call(*args, device, **settings):
            asked.append(device)
            return real(*args, device="cpu", **settings)

        return call

    for name in ("upsample_on", "upsample_posteriors_on"):
        monkeypatch.setattr(upsample_device, name, stand_in(getattr(upsample_device, name)))
    monkeypatch.setattr(upsample_device, "has_cuda", lambda: True)
    return asked


@pytest.mark.parametrize("device", ["cpu", "auto", "mps"])
def test_without_a_gpu_nothing_that_needs_pytorch_is_imported(run, head, monkeypatch, device):
    # None makes any import of it fail.
    monkeypatch.setitem(sys.modules, DEVICE_MODULE, None)
    finer, facts = run(device=device)
    assert facts["Device"] == "cpu"
    np.testing.assert_array_equal(finer.voxels, upsample(head, 2.9).voxels)


@pytest.mark.parametrize("where", [{"device": "cuda"}, {"device": "auto", "use_gpu": True}])
def test_a_gpu_is_used_and_named_in_the_facts(run, head, gpu, where):
    finer, facts = run(**where)
    assert facts["Device"] == "cuda"
    assert facts["Method"] == "labels, fitted"
    assert gpu == ["cuda"]
    np.testing.assert_array_equal(finer.voxels, upsample(head, 2.9).voxels)


def test_settings_reach_the_gpu(run, head, gpu):
    finer, _ = run(device="cuda", kernel="linear", smoothing_mm=1.5, keep_thin=True)
    expected = upsample(head, 2.9, kernel="linear", smoothing_mm=1.5, keep_thin=True)
    np.testing.assert_array_equal(finer.voxels, expected.voxels)


def test_kept_probabilities_are_used_on_the_gpu_too(run, head, gpu, tmp_path):
    soft = TopPosteriors.certain(head, k=2)
    paths = [tmp_path / f"top_{what}.nii.gz" for what in ("codes", "weights")]
    write_top_posteriors(soft, *paths)
    finer, facts = run(device="cuda", top_codes=str(paths[0]), top_weights=str(paths[1]))
    assert facts["Method"] == "probabilities, cubic"
    assert gpu == ["cuda"]
    np.testing.assert_array_equal(finer.voxels, upsample_posteriors(soft, finer.grid).voxels)


def test_a_gpu_that_pytorch_does_not_see_is_not_used(run, gpu, monkeypatch):
    monkeypatch.setattr(upsample_device, "has_cuda", lambda: False)
    _, facts = run(device="auto", use_gpu=True)
    assert facts["Device"] == "cpu"
    assert gpu == []


def test_a_full_gpu_is_given_up_unless_it_was_asked_for(run, gpu, monkeypatch):
    def full(*args, **settings):
        raise MemoryError("memory of cuda ran out")

    monkeypatch.setattr(upsample_device, "upsample_on", full)
    _, facts = run(device="auto", use_gpu=True)
    assert facts["Device"] == "cpu"
    with pytest.raises(MemoryError, match="cuda ran out"):
        run(device="cuda")


@pytest.mark.parametrize(("device", "slots"), [("cpu", 0), ("cuda", 1)])
def test_a_step_on_a_gpu_takes_a_slot_and_more_memory(tmp_path, device, slots):
    (tmp_path / "sub-01_seg-fullhead_dseg.nii.gz").write_bytes(b"labels")
    (tmp_path / "dseg.tsv").write_text("index\tname\n")
    scan = Scan.from_path(tmp_path / "sub-01_seg-fullhead_dseg.nii.gz")
    outputs = finer_outputs(tmp_path / "sub-01_seg-fullhead_res-0p5mm_dseg.nii.gz", tmp_path)
    plan = UpsampleJob(
        scan, RUN, "it is new", outputs, {"Input": "bids::x"}, Target((0.5,)), (), 1.5
    )
    how = ExecutionOptions(
        tables={"fullhead": tmp_path / "dseg.tsv"},
        output_dir=tmp_path,
        device=device,
    )
    node = PARTICIPANT["upsample"].workflow(plan, how).get_node("upsample")
    assert node.inputs.device == device
    assert node.is_gpu_node() == bool(slots)
    assert node.mem_gb == 1.5 + 2 * slots
