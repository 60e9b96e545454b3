# SPDX-License-Identifier: Apache-2.0
"""Label maps of raters: read into common labels, and what of two can be judged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.bids.adapters import read_adapter
from brainseg_bids.bids.names import Scan
from brainseg_bids.bids.references import Case, find_cases
from brainseg_bids.documents import InputError
from brainseg_bids.evaluation.ratings import translate
from brainseg_bids.images import (
    read_label_map,
    voxel_hash,
    write_label_map,
    write_volume,
)
from brainseg_bids.interfaces.raters import find_adapter, find_rated, tool_cases
from brainseg_bids.interfaces.ratings import meaning_digest, read_rating
from tests.phantom.head import phantom_grid, phantom_head


def write_codes(path, codes, grid=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    codes = np.asarray(codes, np.int16)
    return write_volume(codes, grid or Grid(codes.shape, np.eye(4)), path)


@pytest.fixture(scope="module")
def small_head():
    """The phantom at 8 mm, as the labels that raters of UltraCortex would leave."""
    return phantom_head((24, 28, 26), 8.0)


# ---- translation


def test_raters_are_brought_to_common_labels(tmp_path):
    path = write_codes(tmp_path / "aseg.nii.gz", [[[2, 251], [31, 80]], [[41, 0], [1005, 85]]])
    found, note = read_rating(path, find_adapter("freesurfer"))
    assert found.labels.voxels.tolist() == [[[2, 2], [4, 0]], [[41, 0], [3, 0]]]
    assert np.argwhere(found.void).tolist() == [[0, 1, 1], [1, 1, 1]]
    assert note == ""
    assert 80 not in found.labels.table
    assert 31 not in found.labels.table


def test_an_unknown_code_is_refused_with_its_voxels(tmp_path):
    path = write_codes(tmp_path / "a.nii.gz", np.full((2, 2, 2), 7))
    with pytest.raises(InputError, match=r"a.nii.gz: .*7 \(8"):
        read_rating(path, read_adapter("ultracortex"))


def test_a_rater_without_sides_has_merged_labels(tmp_path):
    path = write_codes(tmp_path / "a.nii.gz", [[[0, 1], [2, 7]], [[11, 13], [14, 17]]])
    found, _ = read_rating(path, read_adapter("meshnet"))
    table = found.labels.table
    names = [table[int(code)].name for code in found.labels.voxels.ravel()[1:]]
    assert names == [
        "Cerebral-WM",
        "Cerebral-GM",
        "Thalamus",
        "3rd-Ventricle",
        "Brain-Stem",
        "Hippocampus",
        "VentralDC",
    ]
    assert not found.has_sides


# ---- a BIDS derivative that explains itself


def test_a_derivative_is_read_by_the_names_in_its_table(tmp_path):
    path = write_codes(tmp_path / "sub-01/anat/sub-01_dseg.nii.gz", [[[0, 1], [2, 0]]] * 2)
    with pytest.raises(InputError, match=r"no dseg.tsv"):
        read_rating(path, find_adapter("manual"))
    table = tmp_path / "dseg.tsv"
    table.write_text("index\tname\n0\tUnknown\n1\tLeft-Thalamus\n2\tRight-Thalamus\n9\tSpleen\n")
    found, _ = read_rating(path, find_adapter("manual"))
    assert found.labels.voxels[0].tolist() == [[0, 10], [49, 0]]
    assert [label.index for label in found.labels.table] == [0, 10, 49]
    table.write_text("index\tname\n0\tUnknown\n1\tSpleen\n2\tLiver\n")
    with pytest.raises(InputError, match=r"Spleen \(1\)"):
        read_rating(path, find_adapter("manual"))


def test_our_own_output_is_a_rater(tmp_path):
    labels = write_codes(
        tmp_path / "sub-01/anat/sub-01_seg-brainseg_dseg.nii.gz", [[[0, 530]] * 2] * 2
    )
    write_codes(labels.with_name("sub-01_seg-tissue_dseg.nii.gz"), [[[0, 2]] * 2] * 2)
    LabelTable.packaged("brainseg").write(tmp_path / "seg-brainseg_dseg.tsv")
    adapter = find_adapter("brainseg")
    cases, _ = find_cases(adapter, tmp_path)
    found, _ = read_rating(cases["sub-01"].labels, adapter)
    assert np.unique(found.labels.voxels).tolist() == [0, 530]


# ---- grids


def test_another_grid_is_resampled_and_said_or_refused(tmp_path, small_head):
    voxels = np.where(np.isin(small_head.voxels, (2, 3, 41, 42)), small_head.voxels, 0)
    path = write_label_map(replace(small_head, voxels=voxels), tmp_path / "a.nii.gz")
    adapter = read_adapter("ultracortex")
    grid = phantom_grid((48, 56, 52), 4.0)
    found, note = read_rating(path, adapter, grid=grid)
    assert found.labels.grid == grid
    assert "resampled from 24 x 28 x 26 voxels of 8 x 8 x 8 mm to 48 x 56 x 52" in note
    coarse, fine = (LabelMap.volumes_mm3(m)[3] for m in (small_head, found.labels))
    assert fine == pytest.approx(coarse, rel=0.05)
    with pytest.raises(InputError, match=r"a.nii.gz: "):
        read_rating(path, adapter, grid=grid, on_other_grid="refuse")
    same, note = read_rating(path, adapter, grid=small_head.grid, on_other_grid="refuse")
    assert note == ""
    assert np.array_equal(same.labels.voxels, voxels)


def test_void_is_resampled_with_its_labels(tmp_path):
    codes = np.full((4, 4, 4), 2)
    codes[:2] = 80
    grid = Grid((8, 8, 8), np.eye(4))
    path = write_codes(tmp_path / "a.nii.gz", codes, Grid((4, 4, 4), np.diag([2, 2, 2, 1])))
    target = Grid((4, 4, 4), np.diag([2, 2, 2, 1])).with_voxel_size(1.0)
    found, _ = read_rating(path, find_adapter("freesurfer"), grid=target)
    assert found.void.shape == grid.shape
    assert found.void[:3].all()
    assert not found.void[5:].any()


def test_a_map_that_lies_elsewhere_is_refused(tmp_path):
    codes = np.full((4, 4, 4), 2)
    grid = Grid((4, 4, 4), np.eye(4)).crop((100, 0, 0), (4, 4, 4))
    adapter = read_adapter("ultracortex")
    path = write_codes(tmp_path / "a.nii.gz", codes)
    for choice in ("resample", "refuse"):
        with pytest.raises(InputError, match=r"a.nii.gz: "):
            read_rating(path, adapter, grid=grid, on_other_grid=choice)
    nowhere = tmp_path / "b.nii"
    file = nib.Nifti1Image(codes.astype(np.int16), None)
    file.header.set_sform(None, code=0)
    file.header.set_qform(None, code=0)
    nib.save(file, nowhere)
    with (
        pytest.warns(UserWarning, match="no orientation"),
        pytest.raises(InputError, match=r"b.nii: .*its header"),
    ):
        read_rating(nowhere, adapter, grid=grid)
    empty = write_codes(tmp_path / "c.nii.gz", codes * 0)
    assert not read_rating(empty, adapter, grid=grid)[0].labels.voxels.any()


def test_a_map_that_touches_the_references_box_is_read(tmp_path):
    codes = np.zeros((4, 4, 4), int)
    codes[3] = 2
    path = write_codes(tmp_path / "a.nii.gz", codes)
    grid = Grid((4, 4, 4), np.eye(4)).crop((3, 0, 0), (4, 4, 4))
    found, _ = read_rating(path, read_adapter("ultracortex"), grid=grid)
    assert np.count_nonzero(found.labels.voxels) == 16


def test_another_order_of_axes_is_the_same_grid(tmp_path, rng):
    codes = rng.choice([0, 2, 41, 80], (4, 5, 6))
    grid = Grid(codes.shape, np.diag([1.0, 2, 3, 1]))
    affine = grid.affine @ np.array([[0, -1, 0, 3], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
    turned = Grid((6, 4, 5), affine)
    as_is = write_codes(tmp_path / "a.nii.gz", codes, grid)
    moved = write_codes(tmp_path / "b.nii.gz", codes.transpose(2, 0, 1)[:, ::-1], turned)
    adapter = find_adapter("freesurfer")
    wanted, _ = read_rating(as_is, adapter)
    found, note = read_rating(moved, adapter, grid=grid, on_other_grid="refuse")
    assert note == ""
    assert found.labels.grid == grid
    assert np.array_equal(found.labels.voxels, wanted.labels.voxels)
    assert np.array_equal(found.void, wanted.void)
    assert found.raw_hash == wanted.raw_hash


# ---- what is kept of the file


def test_the_hash_is_that_of_the_file_whatever_is_made_of_it(tmp_path):
    codes = np.array([[[0, 1], [2, 7]], [[11, 13], [14, 17]]])
    grid = Grid((2, 2, 2), np.eye(4))
    path = write_codes(tmp_path / "a.nii.gz", codes, grid)
    found, _ = read_rating(path, read_adapter("meshnet"), grid=grid.with_voxel_size(0.5))
    assert found.raw_hash == voxel_hash(codes, grid)
    assert found.raw_hash != voxel_hash(found.labels.voxels, found.labels.grid)


def test_the_digest_follows_what_decides_how_a_map_is_read(tmp_path):
    path = write_codes(tmp_path / "sub-01/anat/sub-01_dseg.nii.gz", np.ones((2, 2, 2)))
    adapter, table = find_adapter("manual"), tmp_path / "dseg.tsv"
    digests = [meaning_digest(path, adapter)]
    for text in (
        "1\tLeft-Thalamus\n",
        "1\tRight-Thalamus\n",
        "1\tSpleen\n",
        "1\tLiver\n",
        "x\t\n",
    ):
        table.write_text("index\tname\n" + text)
        digests.append(meaning_digest(path, adapter))
    assert len(set(digests)) == 6
    table.write_text("index\tname\tcolor\n1\tLeft-Thalamus\t#ff0000\n")
    assert meaning_digest(path, adapter) == digests[1]
    for change in (
        {"sides": False},
        {"evaluable": ()},
        {"unlabelled": ("Brain-Stem",)},
        {"hippocampus_amygdala": "cortex"},
    ):
        assert meaning_digest(path, replace(adapter, **change)) != digests[1]


@pytest.mark.parametrize("code", [99999999999, -3, 2_000_000])
def test_a_code_beyond_any_table_is_unknown_and_takes_no_memory(tmp_path, code):
    path = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(np.full((2, 2, 2), code), np.eye(4), dtype=np.int64), path)
    with pytest.raises(InputError, match=rf"does not explain: {code} \(8 voxels\)"):
        read_rating(path, read_adapter("ultracortex"))
    grid = Grid((1, 1, 2), np.eye(4))
    labels, _ = translate(np.array([[[0, 2]]]), grid, {0: (0,), 2: (2,), code: (3,)})
    assert labels.voxels.ravel().tolist() == [0, 2]


def test_a_large_index_in_a_table_matters_only_where_it_is_used(tmp_path):
    path = write_codes(tmp_path / "sub-01/anat/sub-01_dseg.nii.gz", np.ones((2, 2, 2)))
    table = "index\tname\n1\tLeft-Thalamus\n99999\tRight-Thalamus\n"
    (tmp_path / "dseg.tsv").write_text(table)
    assert set(read_rating(path, find_adapter("manual"))[0].labels.voxels.ravel()) == {10}
    write_volume(np.full((2, 2, 2), 99999, np.int32), Grid((2, 2, 2), np.eye(4)), path)
    with pytest.raises(InputError, match=r"Right-Thalamus \(99999\).*Renumber"):
        read_rating(path, find_adapter("manual"))


# ---- finding


def reference_cases(root, *keys):
    """Cases of images on disk, as a reference has them."""
    cases = {}
    for key in keys:
        subject = key.split("_")[0].removeprefix("sub-")
        folder = root / f"sub-{subject}" / ("ses-1" if "_ses-1" in key else "") / "anat"
        image = write_codes(folder / f"{key}_T1w.nii.gz", np.ones((2, 2, 2)))
        cases[key] = Case(key, subject, "A", image, Path("truth.nii"))
    return cases


def test_a_renamed_copy_is_rated_under_the_keys_of_the_reference(tmp_path):
    reference = reference_cases(tmp_path / "bids", "sub-3_ses-1", "sub-20_ses-1")
    name = "sub-03/ses-1/anat/sub-03_ses-1_seg-mine_dseg.nii.gz"
    written = write_codes(tmp_path / "out" / name, np.ones((2, 2, 2)))
    found, notes = find_rated(find_adapter("mine"), tmp_path / "out", reference)
    case = found["sub-3_ses-1"]
    assert list(found) == ["sub-3_ses-1"]
    assert case.labels == written
    assert (case.subject, case.stratum) == ("3", "A")
    assert case.image == reference["sub-3_ses-1"].image
    assert notes[0] == "mine: sub-03_ses-1 is taken as sub-3_ses-1."
    assert notes[1].startswith("mine: no labels of sub-20_ses-1")


def test_ratings_without_a_reference_are_listed(tmp_path):
    reference = reference_cases(tmp_path / "bids", "sub-3")
    for label in ("3", "4"):
        write_codes(tmp_path / f"out/sub-{label}/anat/sub-{label}_dseg.nii.gz", np.ones((2, 2, 2)))
    found, notes = find_rated(find_adapter("mine"), tmp_path / "out", reference)
    assert list(found) == ["sub-3"]
    assert notes == ["mine: labels without a reference: sub-4."]
    _, notes = find_rated(
        find_adapter("mine"), tmp_path / "out", reference, all_reference_keys=["sub-04", "sub-3"]
    )
    assert notes == []


def test_a_tools_own_layout_is_found(tmp_path):
    reference = reference_cases(tmp_path / "bids", "sub-3_ses-1", "sub-20_ses-1")
    for name in ("sub-3_ses-1", "sub-020_ses-1"):
        path = tmp_path / "subjects" / name / "mri" / "aseg.mgz"
        write_codes(path.with_suffix(".nii"), np.ones((2, 2, 2))).rename(path)
    found, notes = find_rated(find_adapter("freesurfer"), tmp_path / "subjects", reference)
    assert [case.labels.parts[-3] for case in found.values()] == ["sub-3_ses-1", "sub-020_ses-1"]
    assert notes == ["freesurfer: sub-020 is taken as sub-20."]
    scans = {key: Scan.from_path(case.image) for key, case in reference.items()}
    cases, _ = tool_cases(find_adapter("freesurfer"), tmp_path / "subjects", scans)
    assert set(cases) == set(reference)


def test_a_tools_result_that_may_be_of_two_paddings_is_refused(tmp_path):
    reference = reference_cases(tmp_path / "bids", "sub-3")
    for name in ("sub-03", "sub-003"):
        write_codes(tmp_path / "fs" / name / "mri" / "aseg.nii", np.ones((2, 2, 2))).rename(
            tmp_path / "fs" / name / "mri" / "aseg.mgz"
        )
    with pytest.raises(InputError, match=r"sub-03.*sub-003.*both may be"):
        find_rated(find_adapter("freesurfer"), tmp_path / "fs", reference)


def test_a_padded_result_without_session_is_not_guessed(tmp_path):
    reference = reference_cases(tmp_path / "bids", "sub-3_ses-1")
    write_codes(tmp_path / "bids/sub-3/ses-2/anat/sub-3_ses-2_T1w.nii.gz", np.ones((2, 2, 2)))
    path = tmp_path / "fs" / "sub-03" / "mri" / "aseg.mgz"
    write_codes(path.with_suffix(".nii"), np.ones((2, 2, 2))).rename(path)
    found, notes = find_rated(find_adapter("freesurfer"), tmp_path / "fs", reference)
    assert found == {}
    assert notes[0].startswith("freesurfer: no labels of sub-3_ses-1")


# ---- real heads


@pytest.mark.shared_data
def test_manual_labels_of_oasis_are_read_whole(shared_data):
    adapter = find_adapter("oasis_manual")
    cases, notes = find_cases(adapter, shared_data / "malf_oasis_manual")
    assert len(cases) == 8
    assert not notes
    case = cases["sub-1000"]
    found, _ = read_rating(case.labels, adapter)
    brain = found.labels.voxels > 0
    assert 1.0e6 < np.count_nonzero(brain) * found.labels.grid.voxel_volume_mm3 < 1.7e6
    assert 0 < np.count_nonzero(found.void) < 5000
    # The vermis is in the middle: both halves of it have found their side.
    vermis = np.isin(read_label_map(case.labels, _codes(case.labels)).voxels, (71, 72, 73))
    assert set(np.unique(found.labels.voxels[vermis])) == {8, 47}


def _codes(path):
    """A table of all codes that there may be in the manual labels."""
    from brainseg_bids.anatomy.labels import Label

    return LabelTable([Label(code, str(code)) for code in range(300)])
