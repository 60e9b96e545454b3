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
        "brainchop", "brainchop104", "charm", "fastsurfer", "freesurfer", "fullhead", "gouhfi",
        "model", "samseg", "siam", "supersynth", "synthseg",
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
    said = set(crosswalk.pairs.values()).union(*crosswalk.among.values())
    lacking = {28, 60} if tool == "supersynth" else set()  # its own nuclei become these
    assert said | lacking >= BRAIN | {crosswalk.target[code].mirror for code in BRAIN} | {
        14,
        15,
        16,
    }


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


OWN_CODES = {"brainchop", "brainchop104", "gouhfi", "siam"}
"""Tools that count their labels; all others write FreeSurfer's codes."""
CHANGED = {
    "charm": {517: 0, 520: 24},
    "fullhead": {517: 0, 520: 24},
    "fastsurfer": {},
    "freesurfer": {},
    "model": {},
    "samseg": {},
    "supersynth": {
        **{
            code: code - 400
            for code in (901, 902, 906, 907, 908, 909, 911, 912, 914, 915, 916, 930)
        },
        99: 77,
        819: 28,
        820: 60,
        821: 2,
        822: 41,
        843: 28,
        844: 60,
        865: 81,
        866: 82,
        869: 81,
        870: 82,
    },
    "synthseg": {},
}
"""Codes that become another one, beside parcels of the cortex."""
OTHER_NAMES = {
    ("brainchop", "Inferior-Lateral-Ventricle"): "Left-Inf-Lat-Vent",
    ("charm", 0): "Unknown",
    ("charm", 24): "CSF",
    ("charm", 517): "Unknown",
    ("charm", 520): "CSF",
    ("fullhead", 517): "Unknown",
    ("fullhead", 520): "CSF",
    ("model", 0): "Unknown",
    ("model", 507): "Other-Tissues",
    ("model", 530): "Optic-Nerve",
    ("siam", "background"): "Unknown",
    ("siam", "GM"): "Left-Cerebral-Cortex",
    ("siam", "WM"): "Left-Cerebral-White-Matter",
    ("siam", "CSFv"): "Left-Lateral-Ventricle",
    ("siam", "cerGM"): "Left-Cerebellum-Cortex",
    ("siam", "Thal"): "Left-Thalamus",
    ("siam", "Pal"): "Left-Pallidum",
    ("siam", "Put"): "Left-Putamen",
    ("siam", "Caud"): "Left-Caudate",
    ("siam", "Accu"): "Left-Accumbens-area",
    ("siam", "Amyg"): "Left-Amygdala",
    ("siam", "Hippo"): "Left-Hippocampus",
    ("siam", "Dura"): "CSF",
    ("siam", "vascular"): "Unknown",
    ("siam", "Head"): "Soft-Nonbrain-Tissue",
    ("siam", "Anomalies"): "Left-Lesion",
    ("supersynth", "Lesion"): "WM-hypointensities",
    ("supersynth", "Left-HypoThal-noMB"): "Left-VentralDC",
    ("supersynth", "Right-HypoThal-noMB"): "Right-VentralDC",
    ("supersynth", "Left-Fornix"): "Left-Cerebral-White-Matter",
    ("supersynth", "Right-Fornix"): "Right-Cerebral-White-Matter",
    ("supersynth", "Left-MammillaryBody"): "Left-VentralDC",
    ("supersynth", "Right-MammillaryBody"): "Right-VentralDC",
    ("supersynth", "Left-Basal-Forebrain"): "Left-non-WM-hypointensities",
    ("supersynth", "Right-Basal-Forebrain"): "Right-non-WM-hypointensities",
    ("supersynth", "Left-SeptalNuc"): "Left-non-WM-hypointensities",
    ("supersynth", "Right-SeptalNuc"): "Right-non-WM-hypointensities",
}
"""Lines, by code or by name, whose two names are not one: what the target is called."""


def errors(tool: str, crosswalk: Crosswalk) -> list[str]:
    """Lines of a tool's table that say another structure, side or code than they should."""
    found = []
    for code, target in crosswalk.pairs.items():
        name, meant = crosswalk.names[code], crosswalk.target[target].name
        parcel = name.startswith("ctx-")
        others = [OTHER_NAMES.get((tool, key)) for key in (code, name)]
        one_of_two = plain(f"Left-{name}") == plain(meant) and code in crosswalk.among
        if plain(name) != plain(meant) and not one_of_two and meant not in others:
            found.append(f"{code} {name} becomes {target} {meant}")
        elif parcel and target != (3 if "-lh-" in name else 42):
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
    assert errors(tool, crosswalk) == []
    used = {code for name, code in OTHER_NAMES if name == tool} | set(CHANGED.get(tool, ()))
    assert used <= {*crosswalk.pairs, *crosswalk.names.values()}  # no exception is left over


@pytest.mark.parametrize("tool", TOOLS)
def test_two_neighbouring_lines_that_were_swapped_would_be_seen(tool):
    made = Crosswalk.packaged(tool, "fullhead")
    by_target = {target: code for code, target in made.pairs.items()}
    codes = list(by_target.values())
    for one, other in pairwise(codes):
        pairs = made.pairs | {one: made.pairs[other], other: made.pairs[one]}
        assert errors(tool, Crosswalk(pairs, made.target, names=made.names)), (one, other)
        names = made.names | {one: made.names[other], other: made.names[one]}
        swapped = Crosswalk(made.pairs, made.target, names=names, among=made.among)
        assert errors(tool, swapped), (one, other)


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


def test_what_a_tool_does_not_tell_apart_are_counterparts_or_one_tissue():
    for tool in ("brainchop", "siam"):
        walk = Crosswalk.packaged(tool, "fullhead")
        for code, among in walk.among.items():
            sides = {walk.target[one].hemisphere for one in among}
            assert sides >= {"left", "right"}
            assert {walk.target[one].mirror for one in among} == among
            assert len({walk.target[one].mapping for one in among} - {10}) == 1, code
            assert walk.source_table()[code].hemisphere == "none"
    walk = Crosswalk.packaged("gouhfi", "fullhead")
    assert [walk.names[code] for code in (101, 162)] == [
        "ctx-lh-caudalanteriorcingulate", "ctx-rh-insula",
    ]  # fmt: skip


def test_a_target_is_exact_for_all_of_a_sources_codes_or_for_none():
    target = LabelTable.packaged("fullhead")
    with pytest.raises(ValueError, match="source code"):
        Crosswalk({1: 3, 2: 3}, target, among={1: frozenset({3, 42})})
    with pytest.raises(ValueError, match="source code 1"):
        Crosswalk({1: 3}, target, among={1: frozenset({42})})


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
