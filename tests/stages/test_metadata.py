# SPDX-License-Identifier: Apache-2.0
"""Metadata on their way from the sidecar to the prior: kept, or missed by name."""

from __future__ import annotations

import json

import pytest

from brainseg_bids.bids.inputs import find_subjects
from brainseg_bids.contrast.prior import ContrastPrior
from brainseg_bids.images import write_label_map
from brainseg_bids.stages.contrast import LabelChoice, contrast_metadata, plan_contrast
from brainseg_bids.stages.contrast_section import section
from brainseg_bids.stages.pooling import make_priors
from tests.contrast.made_up import T1, both_sides, image_of
from tests.fakes.dataset import write_dataset
from tests.phantom.head import phantom_head

STATISTICS = json.loads(image_of(both_sides(T1)).to_json())


@pytest.fixture
def data(tmp_path):
    write_dataset(tmp_path / "data", "sub-01_T1w")
    (tmp_path / "maps").mkdir()
    write_label_map(phantom_head(), tmp_path / "maps" / "sub-01.nii.gz")
    return tmp_path / "data"


def planned(data):
    choice = LabelChoice("", {"fullhead": data.parent / "maps"})
    (subject,) = find_subjects(data, ["01"])
    (plan,) = plan_contrast(
        subject, bids_dir=data, output_dir=data.parent / "out", choice=choice
    ).scans
    return plan


def measured(plan) -> None:
    """What the run would have left."""
    said = contrast_metadata(plan)["statistics"] | {"Statistics": STATISTICS}
    for path in plan.outputs.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    plan.outputs["statistics"].with_suffix(".json").write_text(json.dumps(said))


@pytest.mark.input(
    "metadata",
    "a sidecar that is repaired after an image was measured",
    "the image is measured again",
    0,
)
def test_an_image_is_measured_again_when_its_metadata_change(data):
    path = data / "sub-01" / "anat" / "sub-01_T1w.json"
    path.write_bytes('{"InstitutionName": "Zürich", "MagneticFieldStrength": 7}'.encode("latin-1"))
    first = planned(data)
    assert first.action == "run"
    assert "MagneticFieldStrength" not in first.contrast
    assert "sub-01_T1w.json, line 1" in first.notes[0]
    measured(first)
    assert planned(data).action == "reuse"
    shown = section(first, output_dir=data.parent / "out", bids_dir=data)
    assert any("sub-01_T1w.json, line 1" in flag for flag in shown.warnings)
    path.write_text('{"MagneticFieldStrength": 7}')
    again = planned(data)
    assert again.action == "run"
    assert again.contrast["MagneticFieldStrength"] == 7
    assert again.notes == ()


@pytest.mark.input(
    "metadata",
    "images whose field strength is not known, in `priors`",
    "a contrast of their own; a warning names them",
    0,
)
def test_a_prior_names_the_images_whose_field_strength_is_not_known(tmp_path):
    for number, strength in enumerate([3, 3, None, None]):
        folder = tmp_path / f"sub-0{number}" / "anat"
        folder.mkdir(parents=True)
        contrast = {"Suffix": "T1w", "VoxelSizeMm": 1.0}
        contrast |= {"MagneticFieldStrength": strength} if strength else {}
        (folder / f"sub-0{number}_seg-brainseg_desc-contrast_morph.json").write_text(
            json.dumps({"Contrast": contrast, "Statistics": STATISTICS})
        )
    keys = ("Suffix", "MagneticFieldStrength", "Sequence", "VoxelSizeMm")
    made = make_priors(tmp_path, bids_dir=tmp_path, keys=keys)
    assert set(made) == {"T1w+3T+1mm", "T1w+1mm"}

    def about_strength(name: str) -> list[str]:
        prior = ContrastPrior.read(tmp_path / "priors" / f"contrast-{name}_prior.json")
        return [note for note in prior.warnings if "MagneticFieldStrength" in note]

    assert about_strength("T1w+3T+1mm") == []
    (note,) = about_strength("T1w+1mm")
    assert "sub-02, sub-03" in note
