# SPDX-License-Identifier: Apache-2.0
"""When parcels of a map that lies in two files are made, made again, or refused."""

import json

import nibabel as nib
import numpy as np
import pytest

from brainseg_bids.bids.inputs import find_subjects
from brainseg_bids.bids.names import sidecar
from brainseg_bids.interfaces.tools import find_tool
from brainseg_bids.stages.jobs import REUSE, RUN
from brainseg_bids.stages.parcellation import plan_parcels

GRID = np.eye(4)


def save(path, codes):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.full((4, 4, 4), codes, np.uint8), GRID), path)
    return path


@pytest.fixture
def given(tmp_path):
    """GOUHFI's two maps of sub-01: left cortex, and its parcels."""
    root = tmp_path / "gouhfi"
    save(root / "outputs_seg_postpro" / "sub-01_T1w.nii.gz", 2)
    return save(root / "outputs_parc_postpro" / "sub-01_T1w.nii.gz", 20)


@pytest.fixture
def planned(data, tmp_path, given):
    def plan():
        (subject,) = find_subjects(data, ["01"], usual=("T1w",))
        return plan_parcels(
            subject,
            [find_tool("gouhfi")],
            bids_dir=data,
            output_dir=tmp_path / "out",
            derivatives={"gouhfi": tmp_path / "gouhfi"},
        )

    return plan


def leave_results(plan):
    for job in plan.scans:
        for path in job.outputs.values():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")
            sidecar(path).write_text(json.dumps(job.provenance))


def test_they_are_made_again_when_the_map_of_parcels_alone_changes(planned, given):
    leave_results(planned())
    assert [job.action for job in planned().scans] == [REUSE]
    save(given, 21)
    assert [job.action for job in planned().scans] == [RUN]


def test_a_map_of_parcels_with_unknown_codes_is_told_of_its_image(planned, given):
    save(given, 99)
    plan = planned()
    assert not plan.scans
    (line,) = plan.errors.values()
    assert str(given) in line
    assert "99" in line


def test_parcels_of_a_map_that_has_none_any_more_are_told(planned, given, caplog):
    leave_results(planned())
    given.unlink()
    assert not planned().scans
    assert "sub-01_seg-gouhfi_desc-parcellation_dseg.nii.gz" in caplog.text
