# SPDX-License-Identifier: Apache-2.0
"""What pages say of results, from the files beside them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from brainseg_bids.bids.names import Scan, sidecar
from brainseg_bids.bids.templates import SpaceNames, Template
from brainseg_bids.reports.image_section import no_asymmetry
from brainseg_bids.stages import PARTICIPANT
from brainseg_bids.stages.base import Folders
from brainseg_bids.stages.jobs import REUSE
from brainseg_bids.stages.space_jobs import SpaceJob


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
