# SPDX-License-Identifier: Apache-2.0
"""Labels as SimNIBS' tissues, read back as its ``meshmesh`` reads them."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import Label, LabelTable
from brainseg_bids.documents import InputError
from brainseg_bids.images import write_label_map
from brainseg_bids.interfaces.simnibs_export import SimnibsExport

TURNED = np.array([[0, 0.1, 0.98, -70], [-1.1, 0, 0, 90], [0, 0.98, -0.1, -80], [0, 0, 0, 1.0]])
CHARM = {
    1: {2, 7, 16, 41, 46, 28, 60, 13, 52, 77, 85, 29, 512, 530},
    2: {3, 8, 10, 11, 12, 17, 18, 26, 42, 47, 49, 50, 51, 53, 54, 58, 80},
    3: {4, 5, 14, 15, 24, 30, 31, 43, 44, 62, 63, 72, 520},
    5: {511, 507, 509},
    6: {506},
    7: {515},
    8: {516},
    9: {502, 514},
    10: {508},
    0: {0, 501, 517},
}
"""Which of charm's labels it makes which tissue of (its atlas' settings); air goes last."""


@pytest.fixture
def export(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(labels: LabelMap):
        labels.table.write(tmp_path / "dseg.tsv")
        path = write_label_map(labels, tmp_path / "sub-01_dseg.nii.gz")
        made = SimnibsExport(labels=str(path), table=str(tmp_path / "dseg.tsv")).run()
        return nib.load(made.outputs.tissues)

    return run


def test_tissues_are_those_that_charm_makes_of_its_own_labels():
    walk = Crosswalk.packaged("fullhead", "simnibs")
    theirs = Crosswalk.packaged("charm", "fullhead")
    assert set().union(*CHARM.values()) == set(theirs.pairs)
    for tissue, codes in CHARM.items():
        assert {walk.pairs[theirs.pairs[code]] for code in codes} == {tissue}


def test_every_label_of_the_ontology_has_a_tissue_of_its_kind():
    walk, table = Crosswalk.packaged("fullhead", "simnibs"), LabelTable.packaged("fullhead")
    assert set(walk.pairs) == set(table.codes)
    assert all(walk.names[label.index] == label.name for label in table)
    kinds = {2: {1}, 10: {1}, 3: {3}, 8: {2}, 11: {2}, 4: {4, 7, 8}, 9: {1, 2}}
    for label in table:  # pallidum is white matter there, small vessels are fluid
        tissue = walk.pairs[label.index]
        odd = label.name.endswith("-vessel")
        assert odd or tissue in kinds.get(label.mapping, {0, 1, 5, 6, 9, 10}), label.name
        assert walk.pairs[label.mirror] == tissue


def test_meshmesh_finds_every_voxel_in_its_place(head, export):
    labels = LabelMap(head.voxels, Grid(head.grid.shape, TURNED), head.table)
    file = export(labels)
    walk = Crosswalk.packaged("fullhead", "simnibs")
    assert np.allclose(file.get_qform(), TURNED, atol=1e-3)  # it reads no sform
    read = np.squeeze(file.get_fdata().astype(np.uint16))
    assert np.array_equal(read, walk.codes(head.voxels))
    assert {1, 2, 3, 5, 7} <= set(np.unique(read)) <= set(walk.target.codes)


def test_a_file_in_other_units_becomes_one_in_mm(head, export):
    grid = replace(head.grid, file_unit="micron")
    file = export(LabelMap(head.voxels, grid, head.table))
    assert np.allclose(file.affine, head.grid.affine, atol=1e-3)
    assert file.header.get_xyzt_units()[0] == "mm"


def test_a_sheared_grid_is_refused(head, export):
    affine = head.grid.affine.copy()
    affine[0, 1] = 0.3
    with pytest.raises(InputError, match="sheared"):
        export(LabelMap(head.voxels, Grid(head.grid.shape, affine), head.table))


@pytest.mark.parametrize(("gone", "word"), [((511, 507), "scalp"), ((515,), "bone")])
def test_a_map_without_a_head_is_refused(gone, word, head, export):
    voxels = np.where(np.isin(head.voxels, gone), 0, head.voxels)
    with pytest.raises(InputError, match=rf"sub-01_dseg.*no {word}"):
        export(LabelMap(voxels, head.grid, head.table))


def test_a_label_without_a_tissue_is_named_unless_no_voxel_has_it(head, export):
    other = Label(900, "Implant", "#123456")
    table = LabelTable([*head.table, other], name="mine")
    export(LabelMap(head.voxels, head.grid, table))
    voxels = head.voxels.copy()
    voxels[20, 20, 20] = 900
    with pytest.raises(InputError, match=r"sub-01_dseg.*900 Implant"):
        export(LabelMap(voxels, head.grid, table))


def test_labels_are_known_by_their_names_not_their_codes(head, export):
    codes = {label.index: 32000 - label.index if label.index else 0 for label in head.table}
    table = LabelTable(
        [
            replace(label, index=codes[label.index], mirror=codes[label.mirror])
            for label in head.table
        ]
    )
    lookup = np.zeros(int(head.table.codes[-1]) + 1, dtype=np.int16)
    for old, new in codes.items():
        lookup[old] = new
    made = export(LabelMap(lookup[head.voxels], head.grid, table))
    walk = Crosswalk.packaged("fullhead", "simnibs")
    assert np.array_equal(np.asanyarray(made.dataobj), walk.codes(head.voxels))
