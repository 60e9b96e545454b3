# SPDX-License-Identifier: Apache-2.0
"""The methods text of a page is of the participant whose page it is."""

import json

from brainseg_bids.bids.names import Scan
from brainseg_bids.stages import headlabels, methods
from brainseg_bids.stages.jobs import REUSE
from brainseg_bids.stages.segment import SegmentJob


def found(folder, name: str, **facts) -> SegmentJob:
    """A segmentation that lies in a derivative."""
    labels = folder / f"{name}_seg-brainseg_dseg.nii.gz"
    labels.with_name(f"{name}_seg-brainseg_dseg.json").write_text(json.dumps(facts))
    return SegmentJob(Scan.from_path(f"{name}.nii.gz"), REUSE, "found", {"labels": labels}, {})


def test_models_are_those_of_the_results_and_each_is_named_once(tmp_path):
    mine = {"ModelName": "mine", "ModelDigest": "a" * 64, "BrainsegVersion": "0.9"}
    text = methods.of_results([
        found(tmp_path, "sub-01_T1w", **mine, TestTimeFlips=True),
        found(tmp_path, "sub-01_UNIT1", **mine, TestTimeFlips=True),
        found(tmp_path, "sub-01_FLAIR", ModelName="flair", ModelDigest="b" * 64),
    ])  # fmt: skip
    assert "T1w and UNIT1" in text
    assert "FLAIR" in text
    assert text.count("*mine*") == text.count("*flair*") == 1
    assert text.count("mirror image") == 1
    assert "brainseg-bids* 0.9," in text


def test_an_ensemble_is_named_with_all_its_members(tmp_path):
    other = {"ModelName": "other", "ModelDigest": "c" * 64}
    text = methods.of_results([
        found(tmp_path, "sub-01_T1w", ModelName="a", ModelDigest="d" * 64, Ensemble=[other])
    ])  # fmt: skip
    assert "averaged with those of *other* (`cccccccccccc`)" in text


def test_without_results_nothing_was_made_with_anything():
    assert methods.of_results([]) == ""


def test_one_tool_is_not_merged_with_another():
    assert "merged" not in headlabels.methods_text(["samseg"])
    assert "*SAMSEG*" in headlabels.methods_text(["samseg", "synthseg"])
