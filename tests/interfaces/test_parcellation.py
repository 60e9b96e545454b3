# SPDX-License-Identifier: Apache-2.0
"""Parcels of the cortex: which tools give some, and where they come to lie."""

import nibabel as nib
import numpy as np
import pytest

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable, UnknownLabelError
from brainseg_bids.documents import InputError
from brainseg_bids.images import read_label_map, write_label_map
from brainseg_bids.interfaces.headlabels import read_labels
from brainseg_bids.interfaces.parcellation import (
    Parcellation,
    has_parcels,
    parcel_codes,
    parcel_table,
)
from brainseg_bids.interfaces.tools import find_tool, tool_names

GIVE = {
    "brainchop104": 68, "fastsurfer": 68, "freesurfer": 70, "gouhfi": 62, "synthseg": 68,
}  # fmt: skip


def test_tools_give_the_parcels_that_their_tables_name():
    found = {name: len(codes) for name in tool_names() if (codes := parcel_codes(find_tool(name)))}
    assert found == GIVE


@pytest.mark.parametrize("name", GIVE)
def test_a_parcel_keeps_its_side_and_its_name(name):
    tool, table = find_tool(name), LabelTable.packaged("parcellation")
    names, target = tool.crosswalk().names, tool.crosswalk()
    for code, parcel in parcel_codes(tool).items():
        assert table[parcel].name == names[code]
        assert target.target[target.pairs[code]].hemisphere == table[parcel].hemisphere
        assert table[table[parcel].mirror].name == names[code].replace(
            *(("-lh-", "-rh-") if "-lh-" in names[code] else ("-rh-", "-lh-"))
        )
    assert set(parcel_table(tool).codes) == {0, *parcel_codes(tool).values()}


@pytest.fixture
def parcelled(tmp_path, monkeypatch):
    """A function that saves FastSurfer's codes on a conformed grid and brings them to an image."""
    monkeypatch.chdir(tmp_path)
    conformed = np.array([[-1, 0, 0, 10], [0, 0, 1, -5], [0, -1, 0, 8], [0, 0, 0, 1.0]])

    def run(codes, image_affine, shape):
        nib.save(nib.MGHImage(codes.astype(np.int32), conformed), tmp_path / "aparc.mgz")
        image = nib.Nifti1Image(np.zeros(shape, np.uint8), image_affine)
        nib.save(image, tmp_path / "sub-01_T1w.nii.gz")
        made = Parcellation(
            image=str(tmp_path / "sub-01_T1w.nii.gz"),
            tool="fastsurfer",
            labels=str(tmp_path / "aparc.mgz"),
        ).run()
        table = LabelTable.packaged("parcellation")
        return read_label_map(made.outputs.labels, table), Grid(codes.shape, conformed)

    return run


@pytest.fixture
def codes():
    made = np.full((12, 10, 14), 2)
    made[3:6, 2:7, 4:9] = 1022
    made[7:10, 2:7, 4:9] = 2022
    made[6, 2:7, 4:9] = 17
    return made


def test_parcels_lie_on_the_image_and_nothing_else_is_left(parcelled, codes):
    ras = np.array([[1, 0, 0, -1], [0, 1, 0, -5], [0, 0, 1, -1], [0, 0, 0, 1.0]])
    made, own = parcelled(codes, ras, (12, 14, 10))
    assert made.grid.is_close(Grid((12, 14, 10), ras))
    assert np.array_equal(np.unique(made.voxels), [0, 1022, 2022])
    for code in (1022, 2022):
        at = np.argwhere(codes == code).mean(axis=0)
        there = np.argwhere(made.voxels == code).mean(axis=0)
        assert np.allclose(own.affine[:3] @ [*at, 1], made.grid.affine[:3] @ [*there, 1])
        assert np.count_nonzero(made.voxels == code) == np.count_nonzero(codes == code)


def test_finer_images_keep_the_volumes(parcelled, codes):
    half = np.array([[0.5, 0, 0, -1], [0, 0.5, 0, -5], [0, 0, 0.5, -1], [0, 0, 0, 1.0]])
    made, _ = parcelled(codes, half, (24, 28, 20))
    assert made.volumes_mm3()[1022] == pytest.approx(np.count_nonzero(codes == 1022), rel=0.15)


def test_a_code_that_the_tool_does_not_know_is_an_error(parcelled, codes):
    codes[0, 0, 0] = 1099
    with pytest.raises(UnknownLabelError, match="1099"):
        parcelled(codes, np.eye(4), (12, 14, 10))


def test_a_map_without_parcels_has_none(tmp_path):
    for codes, found in ((np.full((4, 4, 4), 3), False), (np.full((4, 4, 4), 1005), True)):
        nib.save(nib.MGHImage(codes.astype(np.int32), np.eye(4)), tmp_path / "aseg.mgz")
        assert has_parcels(find_tool("freesurfer"), tmp_path / "aseg.mgz") == found


def test_a_map_without_sides_does_not_stand_for_itself(head, tmp_path):
    path = write_label_map(
        LabelMap(np.full(head.grid.shape, 2, np.int16), head.grid, head.table),
        tmp_path / "sub-01_brainchop.nii.gz",
    )
    with pytest.raises(InputError, match=r"sub-01_brainchop.*headlabels"):
        read_labels(head.grid, tool="brainchop", labels=str(path))
