# SPDX-License-Identifier: Apache-2.0
"""What pages say of results, from the files beside them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from brainseg_bids.bids.description import raw_uri
from brainseg_bids.bids.names import OutputNames, ParcelNames, Scan, sidecar
from brainseg_bids.bids.templates import SpaceNames, Template
from brainseg_bids.files import sha256
from brainseg_bids.reports.image_section import no_asymmetry
from brainseg_bids.stages import PARTICIPANT
from brainseg_bids.stages.base import Folders
from brainseg_bids.stages.jobs import REUSE, SubjectPlan
from brainseg_bids.stages.pages import with_found
from brainseg_bids.stages.space_jobs import KIND, SpaceJob
from tests.fakes.dataset import write_dataset


@pytest.mark.input(
    "results",
    "segmented with --no-test-time-flips",
    "volumes as usual; the page says why left and right are not compared",
    0,
)
@pytest.mark.parametrize(
    ("said", "compared"),
    [
        ({"ModelDigest": "a", "TestTimeFlips": True}, True),
        ({"ModelDigest": "a"}, False),
        ({"ModelDigest": "a", "Ensemble": [{"ModelDigest": "b"}]}, False),
        ({"Tool": "samseg"}, True),
        (None, True),
    ],
)
def test_sides_are_compared_if_the_network_saw_the_mirrored_image_too(said, compared, tmp_path):
    labels = tmp_path / "sub-01_seg-brainseg_dseg.nii.gz"
    if said is not None:
        (tmp_path / "sub-01_seg-brainseg_dseg.json").write_text(json.dumps(said))
    assert (no_asymmetry(labels) == "") is compared


@pytest.mark.parametrize("resolution", ["", "1"])
def test_results_in_a_standard_space_stay_on_the_pages_of_later_runs(tmp_path, resolution):
    data = write_dataset(tmp_path / "data", "sub-01_T1w")
    scan = Scan.from_path(data / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    names = SpaceNames.of(scan, Template("MNI", "", resolution, Path()))
    own = OutputNames.of(scan)
    for path in (*vars(names).values(), own.labels, own.mask):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(path.name.encode())
    said = {
        "Input": raw_uri(scan.path, data),
        "InputSHA256": sha256(scan.path),
        "LabelsSHA256": sha256(tmp_path / own.labels),
        "Registration": KIND,
    }
    for path in (names.labels, names.image):
        sidecar(tmp_path / path).write_text(json.dumps(said))
    (plan,) = with_found([SubjectPlan("01", (), {})], Folders(data, tmp_path))
    assert [(job.title, job.has_results) for job in plan.scans] == [("sub-01 T1w in MNI", True)]


@pytest.mark.input(
    "runs",
    "a run of other stages or sessions after a skull-stripped image (by its metadata) was "
    "segmented",
    "the participant's page still has this segmentation",
    0,
)
@pytest.mark.parametrize(
    "more",
    [{}, {"SkullStripped": True}, {"TestTimeFlips": True, "Ensemble": [{"ModelName": "b"}]}],
)
def test_segmentations_stay_on_the_pages_of_later_runs(tmp_path, more):
    data = write_dataset(tmp_path / "data", "sub-01_T1w")
    scan = Scan.from_path(data / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    names = OutputNames.of(scan)
    said = {"Input": raw_uri(scan.path, data), "InputSHA256": sha256(scan.path), **more}
    for path in vars(names).values():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"")
        sidecar(tmp_path / path).write_text(json.dumps(said))
    (plan,) = with_found([SubjectPlan("01", (), {})], Folders(data, tmp_path))
    assert [(job.stage, job.has_results) for job in plan.scans] == [("segment", True)]


@pytest.mark.parametrize(
    ("second_map", "of"), [(True, "these labels"), (False, "these labels"), (False, "others")]
)
def test_parcels_stay_on_the_pages_of_later_runs(tmp_path, second_map, of):
    data = write_dataset(tmp_path / "data", "sub-01_T1w")
    scan = Scan.from_path(data / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    names = ParcelNames.of(scan, "gouhfi")
    said = {
        "Tool": "gouhfi",
        "Input": raw_uri(scan.path, data),
        "InputSHA256": sha256(scan.path),
        "LabelsOf": "bids::sub-01/anat/sub-01_seg-gouhfi_dseg.nii.gz",
    }
    said |= {"ParcelsSHA256": "of the tool's second file"} if second_map else {}
    labels = tmp_path / said["LabelsOf"].removeprefix("bids::")
    labels.parent.mkdir(parents=True)
    labels.write_bytes(b"labels")
    said["LabelsSHA256"] = sha256(labels) if of == "these labels" else "of replaced ones"
    for path in vars(names).values():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"")
        sidecar(tmp_path / path).write_text(json.dumps(said))
    (plan,) = with_found([SubjectPlan("01", (), {})], Folders(data, tmp_path))
    shown = [("parcellation", True)] if of == "these labels" else []
    assert [(job.stage, job.has_results) for job in plan.scans] == shown


@pytest.mark.input(
    "results",
    "`--output-spaces` whose registration failed: the brain does not lie in the template's",
    "a warning in log and page; the last line says 1 to look at",
    0,
)
def test_a_brain_beside_the_templates_is_a_warning_on_the_page(tmp_path):
    scan = Scan.from_path(tmp_path / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    template = Template("MNI", "", "1", Path())
    names = vars(SpaceNames.of(scan, template))
    outputs = {name: tmp_path / path for name, path in names.items()}
    labels = outputs["labels"]
    labels.parent.mkdir(parents=True)
    said = {"BrainDice": 0.0, "ToLookAt": ["image and template do not lie on each other"]}
    sidecar(labels).write_text(json.dumps(said))
    job = SpaceJob(scan, REUSE, "found", outputs, {}, (template,), labels, labels)
    section = PARTICIPANT["spaces"].section(job, Folders(tmp_path, tmp_path))
    assert list(section.warnings) == said["ToLookAt"]
    assert said["ToLookAt"][0] in section.body
    assert "0.000" in section.body
