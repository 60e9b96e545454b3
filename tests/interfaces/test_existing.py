# SPDX-License-Identifier: Apache-2.0
"""Results of tools that are there already are found, and never those of another image."""

from __future__ import annotations

from pathlib import Path

import pytest

from brainseg_bids.bids.names import Scan
from brainseg_bids.interfaces.tools import find_existing, find_tool
from brainseg_bids.volumes import InputError

PLAIN = "sub-01_T1w"
IN_SESSION = "sub-01_ses-A_T1w"


def scan_of(root: Path, name: str) -> Scan:
    """A scan of a dataset on disk, by its name."""
    scan = Scan.from_path(f"{name}.nii.gz")
    folder = root / "bids" / f"sub-{scan.subject}"
    folder = folder / f"ses-{scan.session}" if scan.session else folder
    path = folder / "anat" / f"{name}.nii.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return Scan.from_path(path)


def found(tmp_path, tool: str, scan: str, *files: str) -> str | None:
    """Which of the files is taken for a scan."""
    root = tmp_path / "results"
    root.mkdir()
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    path = find_existing(find_tool(tool), root, scan_of(tmp_path, scan))
    return path and path.relative_to(root).as_posix()


@pytest.mark.parametrize(
    ("tool", "scan", "file"),
    [
        ("charm", PLAIN, "m2m_sub-01/segmentation/labeling.nii.gz"),
        ("charm", PLAIN, "m2m_01/segmentation/labeling.nii.gz"),
        ("charm", PLAIN, "sub-01/m2m_sub-01/segmentation/labeling.nii.gz"),
        ("charm", IN_SESSION, "m2m_sub-01_ses-A/segmentation/labeling.nii.gz"),
        ("freesurfer", PLAIN, "sub-01/mri/aparc+aseg.mgz"),
        ("freesurfer", PLAIN, "sub-01/mri/aseg.mgz"),
        ("freesurfer", IN_SESSION, "sub-01_ses-A/mri/aparc+aseg.mgz"),
        ("freesurfer", PLAIN, "sub-01/anat/sub-01_desc-aparcaseg_dseg.nii.gz"),
        ("fastsurfer", PLAIN, "sub-01/mri/aparc.DKTatlas+aseg.deep.mgz"),
        ("samseg", PLAIN, "sub-01/samseg/seg.mgz"),
        ("synthseg", PLAIN, "sub-01/mri/synthseg.rca.mgz"),
        ("gouhfi", PLAIN, "outputs_seg_postpro/sub-01.nii.gz"),
        ("fullhead", PLAIN, "sub-01_seg.nii.gz"),
        ("samseg", PLAIN, "sub-01/anat/sub-01_seg-samseg_dseg.nii.gz"),
        ("samseg", IN_SESSION, "sub-01/ses-A/anat/sub-01_ses-A_seg-samseg_dseg.nii.gz"),
        ("model", PLAIN, "sub-01/anat/sub-01_seg-brainseg_dseg.nii.gz"),
        ("charm", PLAIN, "sub-01/anat/sub-01_dseg.nii.gz"),
        ("charm", PLAIN, "sub-01/anat/sub-01_desc-head_dseg.nii.gz"),
        ("charm", "sub-01_acq-mprage_run-1_T1w", "sub-01/anat/sub-01_run-1_seg-charm_dseg.nii.gz"),
    ],
)
def test_native_layouts_and_derivatives_are_found(tmp_path, tool, scan, file):
    assert found(tmp_path, tool, scan, file, "sub-02/mri/aseg.mgz") == file


@pytest.mark.parametrize(
    ("scan", "file"),
    [
        (PLAIN, "sub-010/anat/sub-010_seg-samseg_dseg.nii.gz"),
        (PLAIN, "sub-01/anat/sub-01_space-MNI152NLin2009cAsym_seg-samseg_dseg.nii.gz"),
        (PLAIN, "sub-01/anat/sub-01_seg-samseg_res-0p5mm_dseg.nii.gz"),
        (PLAIN, "sub-01/anat/sub-01_seg-samseg_desc-top4_dseg.nii.gz"),
        (PLAIN, "sub-01/anat/sub-01_run-2_seg-samseg_dseg.nii.gz"),
        (PLAIN, "sub-01/anat/sub-01_seg-charm_dseg.nii.gz"),
        (PLAIN, "sub-01/anat/sub-01_seg-tissue_dseg.nii.gz"),
        (IN_SESSION, "sub-01/ses-B/anat/sub-01_ses-B_seg-samseg_dseg.nii.gz"),
        ("sub-01_run-1_T1w", "sub-01/anat/sub-01_run-2_seg-samseg_dseg.nii.gz"),
        ("sub-01_T2w", "sub-01/anat/sub-01_seg-samseg_dseg.nii.gz"),
        (PLAIN, "sub-01/anat/sub-01_space-T2w_seg-samseg_dseg.nii.gz"),
    ],
)
def test_what_belongs_to_another_image_space_or_tool_is_not_taken(tmp_path, scan, file):
    assert found(tmp_path, "samseg", scan, file) is None


def test_parcels_come_before_plain_structures(tmp_path):
    files = [f"sub-01/mri/{name}.mgz" for name in ("aseg", "aparc+aseg")]
    assert found(tmp_path, "freesurfer", PLAIN, *files) == files[1]


def test_a_map_of_the_right_tool_comes_before_any_other(tmp_path):
    files = [f"sub-01/anat/sub-01{seg}_dseg.nii.gz" for seg in ("", "_seg-charm", "_seg-mine")]
    assert found(tmp_path, "charm", PLAIN, *files) == files[1]


def test_the_map_that_names_the_run_comes_before_one_that_does_not(tmp_path):
    files = [f"sub-01/anat/sub-01{run}_seg-charm_dseg.nii.gz" for run in ("", "_run-1")]
    assert found(tmp_path, "charm", "sub-01_run-1_T1w", *files) == files[1]


def test_a_name_without_session_is_taken_where_there_is_one_session_only(tmp_path):
    file = "sub-01/mri/aseg.mgz"
    assert found(tmp_path, "freesurfer", IN_SESSION, file) == file


def test_a_name_without_session_could_be_of_any_of_two(tmp_path):
    scan_of(tmp_path, "sub-01_ses-B_T1w")
    assert found(tmp_path, "freesurfer", IN_SESSION, "sub-01/mri/aseg.mgz") is None


def test_two_that_fit_equally_well_are_both_named(tmp_path):
    files = [f"sub-01/anat/sub-01_desc-{name}_seg-charm_dseg.nii.gz" for name in ("a", "b")]
    with pytest.raises(InputError, match=r"desc-a_seg-charm.* and .*desc-b_seg-charm"):
        found(tmp_path, "charm", PLAIN, *files)


def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(InputError, match=r"-d charm=.*nowhere: there is no such folder"):
        find_existing(find_tool("charm"), tmp_path / "nowhere", scan_of(tmp_path, PLAIN))


def test_names_with_brackets_are_names(tmp_path):
    root = tmp_path / "re[s]ults"
    file = root / "m2m_sub-01" / "segmentation" / "labeling.nii.gz"
    file.parent.mkdir(parents=True)
    file.touch()
    assert find_existing(find_tool("charm"), root, scan_of(tmp_path, PLAIN)) == file


def test_a_result_that_was_not_fetched_is_found_so_that_it_can_be_told(tmp_path):
    root = tmp_path / "results"
    link = root / "sub-01" / "mri" / "aseg.mgz"
    link.parent.mkdir(parents=True)
    link.symlink_to("../../.git/annex/objects/nothing")
    assert find_existing(find_tool("freesurfer"), root, scan_of(tmp_path, PLAIN)) == link
