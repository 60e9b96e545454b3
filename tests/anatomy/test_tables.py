# SPDX-License-Identifier: Apache-2.0
"""The tables that come with the package agree with each other and with the field's codes."""

from __future__ import annotations

import numpy as np
import pytest

from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.labels import Label, LabelTable, UnknownLabelError
from brainseg_bids.nets.bundle import packaged_models

SYNTHSEG_STRUCTURES = {
    2,
    3,
    4,
    5,
    7,
    8,
    10,
    11,
    12,
    13,
    14,
    15,
    16,
    17,
    18,
    26,
    28,
    41,
    42,
    43,
    44,
    46,
    47,
    49,
    50,
    51,
    52,
    53,
    54,
    58,
    60,
}


@pytest.mark.parametrize("name", ["brainseg", "fullhead", "tissue"])
def test_a_packaged_table_survives_writing_and_reading(name, tmp_path):
    table = LabelTable.packaged(name)
    assert LabelTable.read(table.write(tmp_path / "t.tsv")) == table


def test_a_code_has_one_name_in_all_tables():
    """But for 0, and but for BIDS' tissues, which are codes of their own."""
    full = LabelTable.packaged("fullhead")
    tables = [LabelTable.packaged("brainseg")]
    tables += [LabelTable.read(path / "labels.tsv") for path in packaged_models().values()]
    assert {
        (label.index, label.name, full[label.index].name)
        for table in tables
        for label in table
        if label.index in full and label.index and label.name != full[label.index].name
    } == set()


def test_an_unknown_table_is_named_with_those_that_are_known():
    with pytest.raises(ValueError, match="'nope'; known: brainseg"):
        LabelTable.packaged("nope")


def test_the_model_says_the_structures_of_synthseg_csf_and_the_head():
    codes = set(LabelTable.packaged("brainseg").codes.tolist())
    assert codes >= SYNTHSEG_STRUCTURES | {0, 24}
    assert {502, 506, 507, 509, 511, 512, 514, 515, 516, 530} <= codes


def test_freesurfers_names_stand_beside_their_codes():
    table = LabelTable.packaged("fullhead")
    assert table["Left-Thalamus"].index == 10
    assert table["Right-Hippocampus"].index == 53
    assert table[515].name == "Bone-Cortical"
    for code in (136, 137, 163, 164, 25, 57, 30, 62, 72):
        assert code in table


def test_mirrors_are_mutual_and_change_the_side():
    other = {"left": "right", "right": "left", "none": "none"}
    for name in ("brainseg", "fullhead", "tissue"):
        table = LabelTable.packaged(name)
        for label in table:
            partner = table[label.mirror]
            assert partner.mirror == label.index
            assert partner.hemisphere == other[label.hemisphere]
            assert partner.name.replace("Right-", "Left-") == label.name.replace("Right-", "Left-")


def test_every_label_of_the_model_translates_to_itself():
    pairs = Crosswalk.packaged("fullhead", "brainseg").pairs
    for label in LabelTable.packaged("brainseg"):
        assert pairs[label.index] == label.index


def test_translation_keeps_left_left():
    full, crosswalk = LabelTable.packaged("fullhead"), Crosswalk.packaged("fullhead", "brainseg")
    for source, target in crosswalk.pairs.items():
        assert full[source].hemisphere == crosswalk.target[target].hemisphere
        assert crosswalk.pairs[full[source].mirror] == crosswalk.target[target].mirror


def test_every_translation_has_a_reason():
    for source, target in (("fullhead", "brainseg"), ("brainseg", "tissue")):
        crosswalk = Crosswalk.packaged(source, target)
        assert set(crosswalk.reasons) == set(crosswalk.pairs)
        assert all(len(reason) > 3 for reason in crosswalk.reasons.values())


def test_tissues_follow_the_mapping_column():
    table = LabelTable.packaged("brainseg")
    pairs = Crosswalk.packaged("brainseg", "tissue").pairs
    assert pairs == {label.index: label.mapping for label in table}


def test_repeated_codes_and_one_sided_mirrors_are_refused(tmp_path):
    with pytest.raises(ValueError, match="occurs twice"):
        LabelTable([Label(1, "A"), Label(1, "B")])
    with pytest.raises(ValueError, match="missing"):
        LabelTable([Label(1, "A", mirror=2), Label(2, "B")])
    bad = tmp_path / "bad.tsv"
    bad.write_text("index\tname\nx\tA\n")
    with pytest.raises(ValueError, match=r"bad\.tsv, line 2"):
        LabelTable.read(bad)
    bad.write_text("name\nA\n")
    with pytest.raises(ValueError, match="column 'index'"):
        LabelTable.read(bad)


def test_unknown_codes_are_counted_in_the_message():
    codes = np.array([2, 2, 99, 99, 99, -4])
    with pytest.raises(UnknownLabelError, match=r"-4 \(1 .*99 \(3"):
        LabelTable.packaged("brainseg").check(codes)
    with pytest.raises(UnknownLabelError, match=r"99 \(3 voxels\)"):
        Crosswalk.packaged("fullhead", "brainseg").codes(codes[:5])


def test_a_crosswalk_file_with_a_repeated_source_is_refused(tmp_path):
    path = tmp_path / "c.tsv"
    path.write_text("source\ttarget\treason\n2\t2\ta\n2\t3\tb\n")
    with pytest.raises(ValueError, match="line 3"):
        Crosswalk.read(path, LabelTable.packaged("brainseg"))


def test_a_subset_drops_the_mirror_of_a_lonely_side():
    table = LabelTable.packaged("brainseg").subset([0, 10, 2, 41])
    assert table[10].mirror == 10
    assert table[2].mirror == 41


@pytest.mark.parametrize("column", ["index", "name"])
def test_a_label_without_code_or_name_is_refused_with_its_line(column, tmp_path):
    path = tmp_path / "bad.tsv"
    row = {"index": "7", "name": "Cube"} | {column: ""}
    path.write_text(f"index\tname\n0\tBackground\n{row['index']}\t{row['name']}\n")
    with pytest.raises(ValueError, match=rf"bad\.tsv, line 3: no {column}"):
        LabelTable.read(path)


def test_colours_and_hashes_are_those_of_what_a_table_holds():
    assert Label(1, "A", "#ff8000").rgb == (1, 128 / 255, 0)
    one, other = LabelTable([Label(0, "A")]), LabelTable([Label(0, "A")], name="other")
    assert len({one, other, LabelTable([Label(0, "B")])}) == 2
