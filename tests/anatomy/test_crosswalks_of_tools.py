# SPDX-License-Identifier: Apache-2.0
"""The crosswalk of a tool is its declared list of codes."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import brainseg_bids
from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import Label, LabelTable, UnknownLabelError
from brainseg_bids.images import read_label_map

FOLDER = Path(brainseg_bids.__file__).parent / "data" / "crosswalks"
TOOLS = sorted(path.stem.partition("_to_")[0] for path in FOLDER.glob("*_to_fullhead.tsv"))
BRAIN = {2, 3, 4, 5, 7, 8, 10, 11, 12, 13, 17, 18, 26, 28}
"""Left structures that every brain tool knows, in FreeSurfer's codes."""


def test_the_tools_are_those_we_have_files_for():
    assert TOOLS == [
        "charm", "fastsurfer", "freesurfer", "fullhead", "gouhfi", "model", "samseg", "synthseg",
    ]  # fmt: skip


@pytest.mark.parametrize("tool", TOOLS)
def test_every_code_has_a_name_and_a_reason(tool):
    crosswalk = Crosswalk.packaged(tool, "fullhead")
    assert set(crosswalk.names) == set(crosswalk.reasons) == set(crosswalk.pairs)
    assert all(len(reason) > 3 for reason in crosswalk.reasons.values())
    assert 0 in crosswalk.pairs
    assert crosswalk.pairs[0] == 0


@pytest.mark.parametrize("tool", TOOLS)
def test_every_tool_knows_both_sides_of_the_brain(tool):
    crosswalk = Crosswalk.packaged(tool, "fullhead")
    said = set(crosswalk.pairs.values())
    assert said >= BRAIN | {crosswalk.target[code].mirror for code in BRAIN} | {14, 15, 16}


@pytest.mark.parametrize("tool", TOOLS)
def test_the_source_table_has_sides_and_mirrors_that_fit_its_names(tool, tmp_path):
    crosswalk = Crosswalk.packaged(tool, "fullhead")
    table = crosswalk.source_table()
    assert {label.index for label in table} == set(crosswalk.pairs)
    assert table.name == tool
    for label in table:
        if label.name.startswith(("Left-", "ctx-lh-")):
            assert label.hemisphere == "left"
        if label.name.startswith(("Right-", "ctx-rh-")):
            assert label.hemisphere == "right"
        if label.mirror != label.index:
            assert {label.hemisphere, table[label.mirror].hemisphere} == {"left", "right"}
    assert LabelTable.read(table.write(tmp_path / "t.tsv"), name=tool) == table


OWN_CODES = {"gouhfi"}
"""Tools that count their labels; all others write FreeSurfer's codes."""
CHANGED = {
    "charm": {517: 0, 520: 24},
    "fullhead": {517: 0, 520: 24},
    "fastsurfer": {},
    "freesurfer": {},
    "model": {},
    "samseg": {},
    "synthseg": {},
}
"""Codes that become another one, beside parcels of the cortex (1000 to 1035, 2000 to 2035)."""
OTHER_NAMES = {
    ("charm", 0): "Unknown",
    ("charm", 24): "CSF",
    ("charm", 517): "Unknown",
    ("charm", 520): "CSF",
    ("fullhead", 517): "Unknown",
    ("fullhead", 520): "CSF",
    ("model", 0): "Unknown",
    ("model", 507): "Other-Tissues",
    ("model", 530): "Optic-Nerve",
}
"""Lines whose two names are not one: what the target is called."""


def faults(tool: str, crosswalk: Crosswalk) -> list[str]:
    """Lines of a tool's table that say another structure, side or code than they should."""
    found = []
    for code, target in crosswalk.pairs.items():
        name, meant = crosswalk.names[code], crosswalk.target[target].name
        parcel = code in range(1000, 1036) or code in range(2000, 2036)
        if plain(name) != plain(meant) and OTHER_NAMES.get((tool, code)) != meant:
            found.append(f"{code} {name} becomes {target} {meant}")
        elif parcel and target != (3 if code < 2000 else 42):
            found.append(f"{code} {name} becomes {target}")
        elif tool not in OWN_CODES and not parcel and target != CHANGED[tool].get(code, code):
            found.append(f"{code} becomes {target}")
    return found


def plain(name: str) -> str:
    """Side and structure of a label's name; parcels are cortex.

    >>> plain("ctx-lh-cuneus"), plain("Soft_Nonbrain_Tissue")
    ('left-cerebral-cortex', 'soft-nonbrain-tissue')
    """
    for start, side in (("ctx-lh-", "left"), ("ctx-rh-", "right")):
        if name.startswith(start):
            return f"{side}-cerebral-cortex"
    return name.lower().replace("_", "-")


@pytest.mark.parametrize("tool", TOOLS)
def test_every_line_keeps_side_structure_and_code(tool):
    crosswalk = Crosswalk.packaged(tool, "fullhead")
    assert faults(tool, crosswalk) == []
    used = {code for name, code in OTHER_NAMES if name == tool} | set(CHANGED.get(tool, ()))
    assert used <= set(crosswalk.pairs)  # no exception is left over


@pytest.mark.parametrize("tool", TOOLS)
def test_two_neighbouring_lines_that_were_swapped_would_be_seen(tool):
    made = Crosswalk.packaged(tool, "fullhead")
    by_target = {target: code for code, target in made.pairs.items()}
    codes = list(by_target.values())
    for one, other in pairwise(codes):
        pairs = made.pairs | {one: made.pairs[other], other: made.pairs[one]}
        assert faults(tool, Crosswalk(pairs, made.target, names=made.names)), (one, other)
        names = made.names | {one: made.names[other], other: made.names[one]}
        assert faults(tool, Crosswalk(made.pairs, made.target, names=names)), (one, other)


def test_parcels_are_each_others_mirror_although_their_target_is_one():
    table = Crosswalk.packaged("freesurfer", "fullhead").source_table()
    assert table[1022].mirror == 2022
    assert table[2022].name == "ctx-rh-postcentral"
    assert table[251].mirror == 251


def test_a_side_without_counterpart_is_its_own_mirror():
    table = Crosswalk.packaged("charm", "fullhead").source_table()
    assert (table[29].name, table[29].mirror) == ("Left-undetermined", 29)


def test_gouhfi_counts_its_labels():
    crosswalk = Crosswalk.packaged("gouhfi", "fullhead")
    assert [crosswalk.pairs[code] for code in (1, 16, 20, 26, 35)] == [2, 24, 41, 49, 77]
    with pytest.raises(UnknownLabelError, match="41"):  # FreeSurfer's codes are not its own
        crosswalk.codes(np.array([41]))


def test_charms_air_and_fluid_follow_one_convention():
    pairs = Crosswalk.packaged("charm", "fullhead").pairs
    assert (pairs[517], pairs[520], pairs[24], pairs[501]) == (0, 24, 24, 501)


def test_samsegs_lumped_classes_stay_what_they_are():
    pairs = Crosswalk.packaged("samseg", "fullhead").pairs
    assert {code: pairs[code] for code in (165, 258, 259)} == {165: 165, 258: 258, 259: 259}
    assert len(pairs) == 44


def test_our_models_labels_are_all_there():
    model = Crosswalk.packaged("model", "fullhead").source_table()
    assert {label.index for label in model} == set(LabelTable.packaged("brainseg").codes)
    assert all(Crosswalk.packaged("model", "fullhead").pairs[c.index] == c.index for c in model)


def test_without_names_labels_are_called_after_their_target():
    target = LabelTable([Label(0, "Air"), Label(3, "Cortex")])
    table = Crosswalk({0: 0, 3: 3, 7: 3}, target, name="old_to_new").source_table()
    assert [label.name for label in table] == ["Air", "Cortex", "Cortex-7"]
    assert table.name == "old"


def test_mirrors_that_are_not_mutual_are_none():
    target = LabelTable(
        [
            Label(1, "Left-A", hemisphere="left", mirror=2),
            Label(2, "Right-A", hemisphere="right", mirror=1),
        ]
    )
    names = {5: "Left-X", 6: "Right-X", 7: "Left-Y"}
    table = Crosswalk({5: 1, 6: 1, 7: 1}, target, names=names).source_table()
    assert [label.mirror for label in table] == [5, 6, 7]


def test_a_file_without_names_is_still_read(tmp_path):
    path = tmp_path / "c.tsv"
    path.write_text("source\ttarget\treason\n2\t2\tsame\n")
    assert Crosswalk.read(path, LabelTable.packaged("fullhead")).names == {}


def test_the_phantom_survives_every_identity(head):
    made = Crosswalk.packaged("fullhead", "fullhead").translate(head)
    assert np.array_equal(made.voxels, head.voxels)


@pytest.mark.shared_data
def test_synthsegs_training_maps_are_heads_in_our_codes(shared_data):
    crosswalk = Crosswalk.packaged("fullhead", "fullhead")
    for path in sorted((shared_data / "synthseg_training_labels").glob("*.nii.gz"))[:2]:
        labels = read_label_map(path, crosswalk.source_table())
        made = crosswalk.translate(LabelMap(labels.voxels, labels.grid, labels.table))
        assert (made.voxels > 0).mean() > 0.1
