# SPDX-License-Identifier: Apache-2.0
"""A model's confidence is calibrated on label maps that it was not trained on."""

from __future__ import annotations

import json

import pytest
import torch

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.evaluation.confidence import LOW_DICE
from brainseg_bids.images import voxel_hash, write_label_map
from brainseg_bids.nets.architectures import build
from brainseg_bids.nets.bundle import ModelBundle, write_bundle
from brainseg_bids.nets.spec import NetSpec
from brainseg_bids.programs.confidence import main
from brainseg_bids.programs.segment import read_calibration
from tests.phantom.head import phantom_head


@pytest.fixture
def maps(tmp_path):
    """Two label maps of heads, coarse."""
    head = phantom_head((44, 56, 52), 4.0)
    return [write_label_map(head, tmp_path / f"map_{n}.nii.gz") for n in (1, 2)], head


def bundle(folder, training=None):
    torch.manual_seed(0)
    return write_bundle(
        folder / "raw", name="raw", net=build(NetSpec("dynunet", 43, 2, 8, {"widths": [8, 8, 8]})),
        table=LabelTable.packaged("brainseg"), voxel_size_mm=4.0, patch_vox=(48, 48, 48),
        contrasts=("T1w",), card="# raw\n", training=training or {},
    )  # fmt: skip


def test_a_bundle_gets_its_calibration_and_says_what_it_was_fitted_on(maps, tmp_path, capsys):
    before = bundle(tmp_path)
    files = [str(path) for path in maps[0]]
    arguments = ["--model", str(before.path), "--pairs", "1", "--threads", "1", "--label-maps"]
    assert main([*arguments, *files]) == 0
    after = ModelBundle.read(before.path)
    assert after.digest[:12] in capsys.readouterr().out
    assert after.digest != before.digest
    calibration = read_calibration(after)
    assert (calibration.threshold[1:] == LOW_DICE).all()  # it was never trained
    assert calibration.usual_dice.max() < 0.9
    about = json.loads(after.confidence)["about"]
    assert about["label_maps"] == ["map_1.nii.gz", "map_2.nii.gz"]
    assert (about["spaces"], about["images"], about["test_time_flips"]) == (["t1w"], 2, True)


def test_a_label_map_that_it_was_trained_on_is_refused(maps, tmp_path, capsys):
    files, head = maps
    digest = voxel_hash(head.voxels, head.grid)
    known = {"a": {"digest": digest, "held_out": False}}
    model = bundle(tmp_path, training={"maps": known})
    assert main(["--model", str(model.path), "--label-maps", *map(str, files)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "map_1.nii.gz" in line
    assert "held out" in line
    assert ModelBundle.read(model.path).confidence == ""
