# SPDX-License-Identifier: Apache-2.0
"""Results of tools that are there already are found, and never those of another image."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from brainseg_bids.bids.names import Scan
from brainseg_bids.documents import InputError
from brainseg_bids.interfaces.existing import check_origin, find_existing
from brainseg_bids.interfaces.tools import find_tool

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
    with pytest.raises(InputError, match=r"-d charm=.*nowhere:"):
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


# Several images of one session


@pytest.mark.parametrize(
    ("tool", "file", "better"),
    [
        ("charm", "m2m_sub-01/segmentation/labeling.nii.gz", "m2m_sub-01_run-1"),
        ("charm", "m2m_01/segmentation/labeling.nii.gz", "m2m_sub-01_run-1"),
        ("freesurfer", "sub-01/mri/aseg.mgz", "sub-01_run-1"),
        ("fullhead", "sub-01_seg.nii.gz", "sub-01_run-1_seg.nii.gz"),
        ("samseg", "sub-01/anat/sub-01_seg-samseg_dseg.nii.gz", "sub-01_run-1_seg-samseg_dseg"),
    ],
)
def test_one_result_is_not_taken_for_two_images(tmp_path, tool, file, better):
    scan_of(tmp_path, "sub-01_run-2_T1w")
    with pytest.raises(InputError) as caught:
        found(tmp_path, tool, "sub-01_run-1_T1w", file)
    said = str(caught.value)
    assert "\n" not in said
    for word in (file, "sub-01_run-1_T1w.nii.gz, sub-01_run-2_T1w.nii.gz", better):
        assert word in said


def test_an_image_whose_name_is_the_subjects_has_no_better_claim(tmp_path):
    scan_of(tmp_path, "sub-01_acq-x_T1w")
    with pytest.raises(InputError, match="m2m_sub-01_T1w, m2m_sub-01_acq-x"):
        found(tmp_path, "charm", PLAIN, "m2m_sub-01/segmentation/labeling.nii.gz")


def test_results_of_sessions_are_told_apart_by_run_too(tmp_path):
    scan_of(tmp_path, "sub-01_ses-A_run-2_T1w")
    with pytest.raises(InputError, match="sub-01_ses-A_run-1, sub-01_ses-A_run-2"):
        found(tmp_path, "freesurfer", "sub-01_ses-A_run-1_T1w", "sub-01_ses-A/mri/aseg.mgz")


@pytest.mark.parametrize("other", ["sub-01_run-1_T2w", "sub-02_T1w", "sub-01_ses-A_T1w"])
def test_images_of_another_kind_or_folder_do_not_count(tmp_path, other):
    file = "m2m_sub-01/segmentation/labeling.nii.gz"
    scan_of(tmp_path, other)
    assert found(tmp_path, "charm", "sub-01_run-1_T1w", file) == file


@pytest.mark.parametrize("scan", ["sub-01_run-1_T1w", "sub-01_run-2_T1w"])
def test_results_that_name_the_run_are_taken_whatever_else_there_is(tmp_path, scan):
    scan_of(tmp_path, "sub-01_run-1_T1w")
    scan_of(tmp_path, "sub-01_run-2_T1w")
    name = scan.removesuffix("_T1w")
    files = [f"m2m_{x}/segmentation/labeling.nii.gz" for x in ("sub-01", name)]
    files[1] = f"{name}/{files[1]}"  # a place that is looked at later
    assert found(tmp_path, "charm", scan, *files) == files[1]


def test_a_derivative_with_an_images_whole_name_is_that_images_only(tmp_path):
    file = "sub-01/anat/sub-01_seg-charm_dseg.nii.gz"
    scan_of(tmp_path, "sub-01_run-2_T1w")
    assert found(tmp_path, "charm", PLAIN, file) == file
    run_2 = scan_of(tmp_path, "sub-01_run-2_T1w")
    assert find_existing(find_tool("charm"), tmp_path / "results", run_2) is None


# What a derivative says of itself


def origin(tmp_path, text: str | None, name="sub-01_seg-charm_dseg.nii.gz") -> None:
    path = tmp_path / name
    path.touch()
    if text is not None:
        (tmp_path / f"{name.split('.')[0]}.json").write_text(text)
    return check_origin(path, find_tool("charm"), scan_of(tmp_path, PLAIN), "ab12")


@pytest.mark.parametrize(
    "said", [None, {}, {"Tool": "charm"}, {"InputSHA256": "ab12"}, {"RawSources": ["x"]}]
)
def test_a_derivative_that_says_nothing_against_it_is_taken(tmp_path, said):
    assert origin(tmp_path, said if said is None else json.dumps(said)) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"InputSHA256": "cd34"}', "was made from another image than"),
        ('{"Tool": "samseg", "InputSHA256": "ab12"}', "says that samseg made it, not charm"),
        ('{"Tool": ', "sub-01_seg-charm_dseg.json, line 1"),
        ("[1]", "a list, not an object"),
        ("", "the file is empty"),
    ],
)
def test_a_derivative_of_another_image_or_tool_is_refused(tmp_path, text, words):
    with pytest.raises(InputError, match="sub-01_seg-charm_dseg") as caught:
        origin(tmp_path, text)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_sidecar_that_was_not_fetched_is_told(tmp_path):
    (tmp_path / "sub-01_seg-charm_dseg.json").symlink_to(".git/annex/objects/nothing")
    with pytest.raises(InputError, match=r"(datalad|annex) get"):
        origin(tmp_path, None)


def test_json_beside_a_tools_own_file_is_no_sidecar(tmp_path):
    assert origin(tmp_path, '{"Tool": "samseg"}', name="labeling.nii.gz") is None
