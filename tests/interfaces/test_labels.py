# SPDX-License-Identifier: Apache-2.0
"""Tissues, brain mask and volumes from a label map."""

import csv
import json

import numpy as np
import pytest

from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.images import read_label_map, read_volume, write_label_map
from brainseg_bids.interfaces.labels import BrainMask, Tissue, Volumes


@pytest.fixture
def segmented(head, tmp_path, monkeypatch):
    """The phantom in the model's codes, its files on disk."""
    monkeypatch.chdir(tmp_path)
    labels = Crosswalk.packaged("fullhead", "brainseg").translate(head)
    table = LabelTable.packaged("brainseg").write(tmp_path / "table.tsv")
    return labels, {
        "labels": str(write_label_map(labels, tmp_path / "x.nii.gz")),
        "table": str(table),
    }


def test_tissues_are_the_crosswalk_of_the_labels(segmented):
    labels, inputs = segmented
    made = read_label_map(Tissue(**inputs).run().outputs.out_file, LabelTable.packaged("tissue"))
    expected = Crosswalk.packaged("brainseg", "tissue").translate(labels)
    assert np.array_equal(made.voxels, expected.voxels)
    assert made.grid.is_close(labels.grid)


def test_the_mask_is_the_brain_of_the_label_map(segmented):
    labels, inputs = segmented
    mask, grid = read_volume(BrainMask(**inputs).run().outputs.out_file)
    assert np.array_equal(mask > 0, labels.brain_mask())
    assert grid.is_close(labels.grid)


def test_volumes_add_up_to_all_that_is_not_background(segmented):
    labels, inputs = segmented
    with open(Volumes(**inputs).run().outputs.out_file, newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert list(rows[0]) == ["index", "name", "hemisphere", "n_voxels", "volume_mm3"]
    assert [int(row["index"]) for row in rows] == [c for c in labels.table.codes if c]
    assert sum(int(row["n_voxels"]) for row in rows) == (labels.voxels > 0).sum()
    for row in rows:
        expected = int(row["n_voxels"]) * labels.grid.voxel_volume_mm3
        assert float(row["volume_mm3"]) == pytest.approx(expected)


def test_volumes_of_a_segmentation_say_how_far_each_is_to_be_trusted(segmented, tmp_path):
    labels = [
        {"index": 2, "confidence": 0.95, "threshold": 0.9},
        {"index": 41, "confidence": 0.85, "threshold": 0.9},
        {"index": 3, "confidence": 0.8, "threshold": None},
    ]
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"confidence": labels}))
    with open(Volumes(**segmented[1], report=str(report)).run().outputs.out_file) as file:
        rows = {int(row["index"]): row for row in csv.DictReader(file, delimiter="\t")}
    shown = {code: list(row.values())[-3:] for code, row in rows.items()}
    assert shown[2] == ["0.95", "0.9", "no"]
    assert shown[41] == ["0.85", "0.9", "yes"]
    assert shown[3] == ["0.8", "n/a", "n/a"]
    assert shown[42] == ["n/a", "n/a", "n/a"]
