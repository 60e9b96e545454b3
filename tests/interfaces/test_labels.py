# SPDX-License-Identifier: Apache-2.0
"""Tissues, brain mask and volumes from a label map."""

import csv
import json
import logging
from pathlib import Path

import numpy as np
import pytest

from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.intracranial import CONTRADICTED, STRIPPED, intracranial
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.images import read_label_map, read_volume, write_label_map, write_volume
from brainseg_bids.interfaces.labels import BrainMask, Tissue, Volumes
from brainseg_bids.stages.volumes import no_intracranial_volume


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


def rows_of(interface):
    """Rows of structures by code, and the one of the inside of the skull."""
    with open(interface.run().outputs.out_file, newline="") as file:
        *rows, inside = csv.DictReader(file, delimiter="\t")
    assert inside["index"] == "n/a"
    return {int(row["index"]): row for row in rows}, inside


def test_volumes_add_up_to_all_that_is_not_background(segmented):
    labels, inputs = segmented
    rows, inside = rows_of(Volumes(**inputs))
    assert list(rows) == [c for c in labels.table.codes if c]
    assert sum(int(row["n_voxels"]) for row in rows.values()) == (labels.voxels > 0).sum()
    assert float(inside["percent_of_intracranial"]) == 100
    inside_mm3 = float(inside["volume_mm3"])
    for row in rows.values():
        expected = int(row["n_voxels"]) * labels.grid.voxel_volume_mm3
        assert float(row["volume_mm3"]) == pytest.approx(expected)
        if labels.table[int(row["index"])].is_brain:
            share = float(row["percent_of_intracranial"])
            assert share == pytest.approx(100 * expected / inside_mm3, abs=1e-4)
        assert "soft_volume_mm3" not in row


def test_what_lies_outside_of_the_skull_has_no_share_of_it(segmented):
    labels, inputs = segmented
    rows, _ = rows_of(Volumes(**inputs))
    shares = {row["name"]: row["percent_of_intracranial"] for row in rows.values()}
    outside = {name for name, share in shares.items() if share == "n/a"}
    assert {"Skin", "Bone-Cortical", "Spinal-Cord"} <= outside
    brain = {label.name for label in labels.table if label.is_brain or label.is_extracerebral_csf}
    assert not outside & (brain | {"Artery", "Vein"})
    assert sum(float(share) for share in shares.values() if share != "n/a") <= 100.01


def test_the_inside_of_the_skull_has_a_row(segmented):
    labels, inputs = segmented
    _, inside = rows_of(Volumes(**inputs))
    assert int(inside["n_voxels"]) == intracranial(labels).n_voxels
    assert inside["name"] == "Intracranial"
    assert inside["note"] == "n/a"


def test_without_a_skull_the_row_says_why_and_no_number_is_given(segmented):
    inputs = segmented[1] | {"stripped": True}
    interface = Volumes(**inputs)
    rows, inside = rows_of(interface)
    assert {inside[name] for name in ("n_voxels", "volume_mm3", "percent_of_intracranial")} == {
        "n/a"
    }
    assert inside["note"] == STRIPPED
    assert {row["percent_of_intracranial"] for row in rows.values()} == {"n/a"}
    assert json.loads(Path("facts.json").read_text()) == {"NoIntracranialVolume": STRIPPED}


@pytest.mark.input(
    "metadata",
    "SkullStripped true, the segmented image shows a head",
    "no intracranial volume; a warning in log, table and page asks to correct the metadata",
    0,
)
def test_a_head_that_is_said_to_be_stripped_is_told(segmented, tmp_path):
    labels, inputs = segmented
    head = np.where(labels.voxels > 0, 100.0, 0.0).astype(np.float32)
    image = write_volume(head, labels.grid, tmp_path / "image.nii.gz")
    _, inside = rows_of(Volumes(**inputs, image=str(image), stripped=True))
    assert inside["n_voxels"] == "n/a"
    assert inside["note"] == CONTRADICTED
    (message,) = no_intracranial_volume("sub-01 T1w", json.loads(Path("facts.json").read_text()))
    assert message.level == logging.WARNING
    assert "SkullStripped" in message.text


def test_soft_volumes_are_sums_of_probabilities(segmented, tmp_path):
    labels, inputs = segmented
    voxel_mm3, (before, inside) = labels.grid.voxel_volume_mm3, rows_of(Volumes(**inputs))
    soft = {code: int(row["n_voxels"]) + 0.25 for code, row in before.items()}
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"confidence": [], "soft_voxels": soft}))
    rows, soft_inside = rows_of(Volumes(**inputs, report=str(report)))
    for code, row in rows.items():
        assert float(row["soft_volume_mm3"]) == pytest.approx(soft[code] * voxel_mm3)
        assert row["volume_mm3"] == before[code]["volume_mm3"]
    more = float(soft_inside["soft_volume_mm3"]) - float(inside["volume_mm3"])
    assert 0 < more < 0.25 * voxel_mm3 * len(soft)


def test_volumes_of_a_segmentation_say_how_far_each_is_to_be_trusted(segmented, tmp_path):
    labels = [
        {"index": 2, "confidence": 0.95, "threshold": 0.9},
        {"index": 41, "confidence": 0.85, "threshold": 0.9},
        {"index": 3, "confidence": 0.8, "threshold": None},
    ]
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"confidence": labels}))
    rows, _ = rows_of(Volumes(**segmented[1], report=str(report)))
    columns = ("confidence", "confidence_threshold", "low_confidence")
    shown = {code: [row[name] for name in columns] for code, row in rows.items()}
    assert shown[2] == ["0.95", "0.9", "no"]
    assert shown[41] == ["0.85", "0.9", "yes"]
    assert shown[3] == ["0.8", "n/a", "n/a"]
    assert shown[42] == ["n/a", "n/a", "n/a"]
