# SPDX-License-Identifier: Apache-2.0
"""Labels in FreeSurfer's format."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.images import write_label_map, write_mgz
from brainseg_bids.interfaces.freesurfer_export import FreeSurferExport, freesurfer_labels

OBLIQUE = np.array([[0, 0.1, 0.98, -70], [-1.1, 0, 0, 90], [0, 1.19, -0.08, -80], [0, 0, 0, 1.0]])


@pytest.fixture
def labels(head):
    """The phantom in codes of the network, on an oblique grid with uneven voxels."""
    own = Crosswalk.packaged("fullhead", "brainseg").translate(head)
    return LabelMap(own.voxels, Grid(head.grid.shape, OBLIQUE), own.table)


@pytest.fixture
def exported(labels, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_label_map(labels, tmp_path / "dseg.nii.gz")
    labels.table.write(tmp_path / "dseg.tsv")
    run = FreeSurferExport(labels=str(tmp_path / "dseg.nii.gz"), table=str(tmp_path / "dseg.tsv"))
    return run.run().outputs


def read_lut(path):
    """As FreeSurfer's programs do: code, name, four numbers; # begins a comment."""
    lines = Path(path).read_text().splitlines()
    rows = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    assert all(len(row) == 6 for row in rows)
    return {int(row[0]): (row[1], tuple(map(int, row[2:]))) for row in rows}


def test_the_head_reads_back_with_the_same_voxels_and_place(exported, labels):
    back = nib.load(exported.head)
    assert np.array_equal(np.asanyarray(back.dataobj), labels.voxels)
    assert np.allclose(back.affine, labels.grid.affine, atol=1e-4)
    assert back.get_data_dtype() == np.dtype(">i4")


def test_aseg_has_freesurfers_codes_alone_and_brain_voxels_are_those_of_the_head(exported, labels):
    aseg = np.asanyarray(nib.load(exported.aseg).dataobj)
    theirs = Crosswalk.packaged("freesurfer", "fullhead").source_table()
    ours = labels.table
    for code in np.unique(aseg):
        assert code == 0 or theirs[int(code)].name == ours[int(code)].name
    assert {511, 515} <= set(np.unique(labels.voxels))
    assert aseg.max() < 100
    kept = aseg != 0
    assert np.array_equal(aseg[kept], labels.voxels[kept])
    brain = [label.index for label in ours if label.is_brain]
    assert not (np.isin(labels.voxels, brain) & ~kept).any()


def test_colour_tables_name_every_code_of_their_volume(exported, labels):
    for volume, table in (("aseg", "aseg_colours"), ("head", "head_colours")):
        lut = read_lut(getattr(exported, table))
        codes = set(np.unique(np.asanyarray(nib.load(getattr(exported, volume)).dataobj)))
        assert codes <= set(lut)
        assert lut[0] == ("Unknown", (0, 0, 0, 0))
        assert lut[17] == ("Left-Hippocampus", (220, 216, 20, 0))
    assert read_lut(exported.head_colours)[511][0] == "Skin"
    assert 511 not in read_lut(exported.aseg_colours)


def test_every_label_of_the_brain_is_freesurfers():
    table = LabelTable.packaged("brainseg")
    codes = table.codes.reshape(-1, 1, 1).astype(np.int16)
    kept = freesurfer_labels(LabelMap(codes, Grid(codes.shape, np.eye(4)), table))
    lost = {label.name for label in table if label.index not in set(kept.voxels.ravel())}
    assert lost == {label.name for label in table if label.index > 500}


def test_a_sheared_grid_keeps_its_place(labels, tmp_path):
    sheared = OBLIQUE.copy()
    sheared[0, 0] = 0.3
    moved = LabelMap(labels.voxels, Grid(labels.grid.shape, sheared), labels.table)
    back = nib.load(write_mgz(moved, tmp_path / "head.mgz"))
    assert Grid(back.shape, back.affine).is_close(moved.grid, tolerance_mm=0.01)
