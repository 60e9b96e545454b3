# SPDX-License-Identifier: Apache-2.0
"""`CompareRaters`: what is told about maps that are compared."""

from __future__ import annotations

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.images import read_volume, voxel_hash, write_label_map
from brainseg_bids.interfaces.evaluate import CompareRaters
from tests.phantom.head import phantom_head

HEAD = phantom_head()


def cropped(planes: slice) -> LabelMap:
    """The phantom without the other planes along its last axis."""
    n_x, n_y, n_z = HEAD.grid.shape
    start, stop, _ = planes.indices(n_z)
    grid = HEAD.grid.crop((0, 0, start), (n_x, n_y, stop - start))
    return replace(HEAD, voxels=np.ascontiguousarray(HEAD.voxels[..., planes]), grid=grid)


def compared(tmp_path, rated: LabelMap, **inputs) -> dict:
    paths = {}
    for name, labels in {"manual": HEAD, "rater": rated}.items():
        folder = tmp_path / name
        folder.mkdir()
        lines = (f"{label.index}\t{label.name}\n" for label in HEAD.table)
        (folder / "dseg.tsv").write_text("index\tname\n" + "".join(lines))
        paths[name] = str(write_label_map(labels, folder / "sub-01_dseg.nii.gz"))
    node = CompareRaters(
        reference="manual", labels=paths["manual"], raters=["rater"], who=["rater"],
        maps=[paths["rater"]], tolerances_mm=[1.0], **inputs,
    )  # fmt: skip
    facts = node.run(cwd=str(tmp_path)).outputs.facts
    return json.loads(open(facts, encoding="utf-8").read())


@pytest.mark.input(
    "geometry",
    "`evaluate`: a rater's map whose field of view ends inside of the reference's labels",
    "compared; what lies outside counts as missed, a warning in log and on the page says how much",
    0,
)
def test_what_a_map_does_not_show_is_told_and_counts_as_missed(tmp_path):
    middle = HEAD.grid.shape[2] // 2
    facts = compared(tmp_path, cropped(slice(0, middle)))
    (warning,) = facts["Warnings"]
    labelled = HEAD.voxels > 0
    share = 100 * np.count_nonzero(labelled[..., middle:]) / np.count_nonzero(labelled)
    assert "rater/sub-01_dseg.nii.gz" in warning
    assert float(warning.split(": ")[1].split(" %")[0]) == pytest.approx(share, abs=2)
    dice = {row["name"]: row["dice"] for row in facts["Compared"]["rater"]}
    assert 0 < dice["Brain"] < 0.9


def test_a_map_without_empty_planes_misses_nothing(tmp_path):
    seen = np.flatnonzero((HEAD.voxels > 0).any(axis=(0, 1)))
    facts = compared(tmp_path, cropped(slice(seen[0], seen[-1] + 1)))
    assert not facts["Warnings"]
    assert {row["dice"] for row in facts["Compared"]["rater"]} <= {1.0, None}


def test_the_image_that_was_segmented_counts_as_seen_beside_the_references(tmp_path):
    # FreeSurfer's reference has orig.mgz, which no model was trained or fitted on.
    paths = {name: tmp_path / f"{name}.nii.gz" for name in ("orig", "raw")}
    hashes = set()
    for value, path in enumerate(paths.values(), start=1):
        image = np.where(HEAD.voxels > 0, value * 100 + HEAD.voxels, 0).astype(np.float32)
        nib.save(nib.Nifti1Image(image, HEAD.grid.affine), path)
        hashes.add(voxel_hash(*read_volume(path)))
    facts = compared(tmp_path, HEAD, image=str(paths["orig"]), segmented=[str(paths["raw"])])
    assert hashes < set(facts["Hashes"])
