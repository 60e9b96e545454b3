# SPDX-License-Identifier: Apache-2.0
"""Adapters, the files that they find, and how those of two raters are paired."""

from __future__ import annotations

import json
import os
import re

import numpy as np
import pytest

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.bids.adapters import Adapter, packaged_adapters, read_adapter
from brainseg_bids.bids.label_codes import (
    common_labels,
    find_label_table,
    read_names,
    read_targets,
)
from brainseg_bids.bids.matching import match_cases, partners
from brainseg_bids.bids.references import find_cases
from brainseg_bids.documents import InputError
from brainseg_bids.evaluation.ratings import named_structures
from brainseg_bids.images import write_volume

GRID = Grid((4, 4, 4), np.eye(4))
TWELVE = ("3", "9", "20", "29", "37", "44", "45", "46", "57", "69", "70", "73")


def put(path, value=2):
    """A tiny label map at a path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.zeros((4, 4, 4), np.int16)
    voxels[1:3] = value
    write_volume(voxels, GRID, path)
    return path


def ultracortex(root, subjects=TWELVE, *, labels_end=".nii", image_end=".nii"):
    """The layout of ds005216, without its data."""
    for label in subjects:
        name = f"sub-{label}_ses-1"
        put(root / f"derivatives/manual_segmentation/{name}_seg{labels_end}")
        image = put(root / f"sub-{label}/ses-1/anat/{name}_T1w{image_end}")
        said = {"ParllelAcquisitionTechnique": "GRAPPA", "MagneticFieldStrength": 9.4}
        image.with_name(f"{name}_T1w.json").write_text(json.dumps(said))
    (root / "CHANGES").write_text("1.1.0 2024-07-05\n  - Fixed.\n1.0.0 2024-06-03\n")
    return root


def adapter_file(folder, text):
    path = folder / "mine.toml"
    path.write_text(text)
    return path


GOOD = '[patterns]\nlabels = "{subject}.nii.gz"\n[labels.codes]\n1 = "Left-Thalamus"\n'


VERSION = "[version]\nfile = 'CHANGES'\nat_least = '{}'\nwhy = 'x'\n"


# ---- adapters


@pytest.mark.parametrize("name", packaged_adapters())
def test_every_packaged_adapter_is_complete(name):
    adapter = read_adapter(name)
    assert adapter.name == name
    assert adapter.citation
    assert adapter.licence
    assert adapter.labels[0] == (0,)
    assert set(adapter.strata) <= set(adapter.subjects)


def test_ultracortex_knows_its_subjects_labels_and_strata():
    adapter = read_adapter("ultracortex")
    assert adapter.subjects == TWELVE
    assert adapter.labels == {0: (0,), 2: (2,), 3: (3,), 41: (41,), 42: (42,)}
    assert {s for s, stratum in adapter.strata.items() if stratum == "MPRAGE"} == {
        "37",
        "45",
        "57",
    }
    assert set(adapter.strata) == set(TWELVE)
    assert len(adapter.evaluable) == 4
    assert {"Brain-Stem", "Left-Hippocampus", "Right-Cerebellum-Cortex"} <= set(adapter.unlabelled)
    assert not set(adapter.evaluable) & set(adapter.unlabelled)


def test_every_label_of_fullhead_has_a_common_meaning_that_is_its_own():
    common = common_labels()
    assert set(common) == {label.index for label in LabelTable.packaged("fullhead")}
    final = {code for targets in common.values() for code in targets}
    assert all(common[code] == (code,) for code in final)


def test_common_labels_keep_sides_mirrored():
    table, common = LabelTable.packaged("fullhead"), common_labels()
    for label in table:
        mirrored = tuple(table[code].mirror for code in common[label.index])
        assert set(common[label.mirror]) == set(mirrored), label.name


def test_a_structure_has_both_sides_or_none():
    table = LabelTable.packaged("fullhead")
    for structure in named_structures().values():
        members = {table[name].index for name in structure.members}
        assert {table[code].mirror for code in members} == members, structure.name
        assert all(common_labels()[code] == (code,) for code in members), structure.name


def test_meshnet_has_no_sides_and_codes_of_the_left():
    adapter = read_adapter("meshnet")
    table = LabelTable.packaged("fullhead")
    assert not adapter.sides
    assert sorted(adapter.labels) == list(range(18))
    assert "right" not in {table[t[0]].hemisphere for t in adapter.labels.values()}


def test_a_name_without_an_adapter_lists_those_there_are():
    with pytest.raises(InputError, match=r"ultracortex.*ends in .toml"):
        read_adapter("nobody")


def test_a_users_adapter_is_named_after_its_file(tmp_path):
    adapter = read_adapter(adapter_file(tmp_path, GOOD))
    assert adapter.name == "mine"
    assert adapter.labels == {1: (10,)}
    assert adapter.patterns == {"labels": ("{subject}.nii.gz",)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour = 1\n" + GOOD, r"unknown key 'colour'\. Known: citation"),
        (GOOD.replace("labels = ", "label = "), r"\[patterns\]: unknown key 'label'\. Known"),
        (GOOD + "[strata]\nA = 3\n", "strata has A, which is 3"),
        ("strata = 3\n" + GOOD, "strata is 3"),
        ("patterns = 3\n", "patterns is 3"),
        ("citation = 3\n" + GOOD, "citation is 3: give a text"),
        ("sides = 3\n" + GOOD, "true or false"),
        ("[patterns]\nlabels = 'a.nii'\n", r"\[labels\] is missing"),
        ("[patterns]\n[labels.codes]\n", "has no labels"),
        (GOOD + '[labels]\ntable = "a.tsv"\n', "needs exactly one of table, crosswalk, codes"),
        (GOOD.replace("[labels.codes]\n1 =", "[labels]\ntable = 'a.tsv'\ncrosswalk ="), "one of"),
        (GOOD.replace("{subject}", "{subj}"), r"has \{subj\}\. Known: id, subject"),
        (GOOD.replace("Left-Thalamus", "Thalamis"), "'Thalamis' is not a code or name"),
        (GOOD.replace("Left-Thalamus", "nearest 2"), "two of them"),
        (GOOD.replace("1 =", "one ="), "'one' is not a whole number"),
        ("evaluable = ['Brian']\n" + GOOD, "Brian: neither a label"),
        ("hippocampus_amygdala = 'maybe'\n" + GOOD, "give left out or cortex"),
        ("hippocampus_amygdala = 'cortex'\n" + GOOD, "no effect without unlabelled"),
        (GOOD + "[version]\nfile = 'CHANGES'\n", r"\[version\] needs"),
        (GOOD + VERSION.format("1.1"), "'1.1'. Write three numbers in quotes"),
        (GOOD + VERSION.format("new"), "'new'. Write three numbers"),
        (GOOD + VERSION.format("1.1.0").replace("'1.1.0'", "1.1"), "at_least is 1.1: give a text"),
        (GOOD + "[strata]\nall = ['3']\n", "called 'all'.*Rename"),
        (GOOD + "[strata]\nA = ['3']\nB = ['3']\n", "'3' is in two strata, A and B"),
        (GOOD.replace("{subject}", "{subject"), "brace without its partner"),
        (GOOD.replace("{subject}", "/data/{subject}"), "not a path below the dataset's folder"),
        (GOOD.replace("{subject}", "../{subject}"), "not a path below the dataset's folder"),
        (GOOD.replace("1 =", "99999999999 ="), "not a whole number from 0 to 32767"),
        (GOOD.replace("1 =", "'²' ="), "not a whole number from 0 to 32767"),
        (GOOD + "[misspelt]\na = 3\n", "misspelt has a, which is 3"),
        ("[[[", "not valid TOML"),
        ("[patterns]\nlabels = 'a.nii'\n[labels]\ntable = 'a.tsv'\n", "there is no such file"),
        ("[patterns]\nlabels = 'a.nii'\n[labels]\ncrosswalk = 'x'\n", "no crosswalk from 'x'"),
    ],
)
def test_a_faulty_adapter_is_refused_in_one_line(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as caught:
        read_adapter(adapter_file(tmp_path, text))
    assert "\n" not in str(caught.value).strip()


def test_a_code_that_is_twice_in_a_table_is_refused(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("source\ttarget\treason\n1\t2\tx\n1\t3\tx\n")
    with pytest.raises(InputError, match="source code 1"):
        read_targets(path)
    path.write_text("source\ttarget\n1\t2\n")
    with pytest.raises(InputError, match="'reason' is missing"):
        read_targets(path)


@pytest.mark.parametrize("read", [read_targets, read_names])
def test_a_table_that_is_no_text_or_no_file_is_refused_in_one_line(tmp_path, read):
    path = tmp_path / "dseg.tsv"
    path.mkdir()
    with pytest.raises(InputError, match=r"dseg.tsv: .*Give a"):
        read(path)
    path.rmdir()
    path.write_bytes(b"index\tname\n1\tCort\xe9x\n")
    with pytest.raises(InputError, match=r"dseg\.tsv: ") as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_a_field_without_end_in_a_table_is_refused(tmp_path):
    path = tmp_path / "dseg.tsv"
    path.write_text("index\tname\n1\t" + "x" * 200_000)
    with pytest.raises(InputError, match=r"UTF-8 with tabs"):
        read_names(path)


# ---- the tree of ds005216


def test_the_raw_tree_is_usable_as_it_is(tmp_path):
    cases, notes = find_cases(read_adapter("ultracortex"), ultracortex(tmp_path))
    assert list(cases) == [f"sub-{label}_ses-1" for label in TWELVE]
    case = cases["sub-37_ses-1"]
    assert (case.subject, case.stratum) == ("37", "MPRAGE")
    assert case.image == tmp_path / "sub-37/ses-1/anat/sub-37_ses-1_T1w.nii"
    assert [case.stratum for case in cases.values()].count("MP2RAGE") == 9
    assert notes == [
        "12 sidecars of images of ultracortex say ParllelAcquisitionTechnique; taken as "
        "ParallelAcquisitionTechnique."
    ]


def test_compressed_files_are_found_too_and_a_twin_is_said(tmp_path):
    root = ultracortex(tmp_path, labels_end=".nii.gz", image_end=".nii.gz")
    put(root / "derivatives/manual_segmentation/sub-9_ses-1_seg.nii")
    cases, notes = find_cases(read_adapter("ultracortex"), root)
    assert len(cases) == 12
    assert cases["sub-3_ses-1"].image.name == "sub-3_ses-1_T1w.nii.gz"
    assert cases["sub-9_ses-1"].labels.name == "sub-9_ses-1_seg.nii"
    assert any("sub-9_ses-1_seg.nii.gz" in note for note in notes)


def test_a_padded_copy_keeps_its_strata(tmp_path):
    cases, notes = find_cases(read_adapter("ultracortex"), ultracortex(tmp_path, ("003", "037")))
    assert [case.stratum for case in cases.values()] == ["MP2RAGE", "MPRAGE"]
    assert "sub-9, sub-20" in notes[0]


def test_an_early_version_and_an_unknown_one_are_said(tmp_path):
    root = ultracortex(tmp_path)
    (root / "CHANGES").write_text("1.0.1 2024-06-03\n  - Fix README duplicate\n")
    _, notes = find_cases(read_adapter("ultracortex"), root)
    assert any("1.0.1" in note and "sub-60 ses-2" in note for note in notes)
    (root / "CHANGES").unlink()
    _, notes = find_cases(read_adapter("ultracortex"), root)
    assert any("which version" in note for note in notes)


def test_subjects_that_are_missing_or_too_many_are_said(tmp_path):
    root = ultracortex(tmp_path, (*TWELVE[1:], "5"))
    cases, notes = find_cases(read_adapter("ultracortex"), root)
    assert "sub-5_ses-1" in cases
    assert cases["sub-5_ses-1"].stratum == ""
    assert any("sub-3, which" in note for note in notes)
    assert any("sub-5, which" in note for note in notes)


def test_content_that_is_not_fetched_is_said_with_the_command(tmp_path):
    root = ultracortex(tmp_path)
    labels = root / "derivatives/manual_segmentation/sub-3_ses-1_seg.nii"
    labels.unlink()
    os.symlink(".git/annex/objects/nothing", labels)
    image = root / "sub-9/ses-1/anat/sub-9_ses-1_T1w.nii"
    image.write_text("/annex/objects/SHA256E-s1--0.nii\n")
    (root / "sub-20/ses-1/anat/sub-20_ses-1_T1w.nii").unlink()
    cases, notes = find_cases(read_adapter("ultracortex"), root)
    assert "sub-3_ses-1" not in cases
    assert len(cases) == 11
    assert cases["sub-9_ses-1"].image is None
    assert cases["sub-20_ses-1"].image is None
    for path in (labels, image):
        # Which of the two programs, depends on what is installed.
        command = rf"(datalad|annex) get .*{re.escape(path.name)}"
        assert any(re.search(command, note) for note in notes)
    assert any("sub-20_ses-1_seg.nii:" in note for note in notes)


def test_a_folder_without_labels_says_what_was_expected(tmp_path):
    with pytest.raises(InputError, match="Expected: derivatives/manual_segmentation"):
        find_cases(read_adapter("ultracortex"), tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        find_cases(read_adapter("ultracortex"), tmp_path / "x")


@pytest.mark.shared_data
def test_the_real_names_of_ds005216_are_found(shared_data, tmp_path):
    skeleton = shared_data / "bids_skeletons" / "ds005216"
    for path in skeleton.rglob("*"):
        name = path.relative_to(skeleton)
        is_wanted = name.parts[0].startswith("sub-") or "segmentation" in name.as_posix()
        if is_wanted and path.name.endswith(".nii"):
            put(tmp_path / name)
        elif path.suffix == ".json" or path.name == "CHANGES":
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(path.read_bytes())
    cases, notes = find_cases(read_adapter("ultracortex"), tmp_path)
    assert [case.subject for case in cases.values()] == list(TWELVE)
    assert all(case.image is not None for case in cases.values())
    assert len(notes) == 1
    assert notes[0].startswith("12 sidecars")
    stratum = {"MP2RAGE": "MP2RAGE", "MP-RAGE": "MPRAGE"}
    for case in cases.values():
        said = json.loads(case.image.with_suffix(".json").read_text())
        assert stratum[said["PulseSequenceType"]] == case.stratum
    others, _ = find_cases(read_adapter("ultracortex_freesurfer"), tmp_path)
    assert list(others) == list(cases)


def test_empty_files_of_a_skeleton_are_notes(tmp_path):
    root = ultracortex(tmp_path)
    for path in root.rglob("*.nii"):
        path.write_bytes(b"")
    cases, notes = find_cases(read_adapter("ultracortex"), root)
    assert cases == {}
    assert sum("the file is empty" in note for note in notes) == 12


# ---- other layouts


def test_oasis_and_recon_all_layouts_are_found(tmp_path):
    put(tmp_path / "1000_glm.nii.gz")
    put(tmp_path / "1000_SS.nii.gz")
    cases, _ = find_cases(read_adapter("oasis_manual"), tmp_path)
    assert cases["sub-1000"].image.name == "1000_SS.nii.gz"
    for name in ("sub-3_ses-1", "bert", "fsaverage"):
        put(tmp_path / name / "mri" / "a.nii").rename(tmp_path / name / "mri" / "aseg.mgz")
    cases, notes = find_cases(read_adapter("freesurfer_aseg"), tmp_path)
    assert any("uses the segmented image instead" in note for note in notes)
    assert list(cases) == ["sub-3_ses-1", "sub-bert"]


def test_two_files_of_one_image_are_refused(tmp_path):
    adapter = adapter_file(tmp_path, GOOD.replace("{subject}", "*/{subject}_*"))
    put(tmp_path / "a" / "1_x.nii.gz")
    put(tmp_path / "a" / "1_y.nii.gz")
    with pytest.raises(InputError, match=r"1_x.nii.gz and .*1_y.nii.gz:"):
        find_cases(read_adapter(adapter), tmp_path)


def test_a_plain_derivative_is_found_by_its_names(tmp_path):
    anat = tmp_path / "sub-01" / "anat"
    put(anat / "sub-01_dseg.nii.gz")
    put(anat / "sub-01_acq-a_space-T2w_dseg.nii.gz")
    put(anat / "sub-01_res-0p5mm_dseg.nii.gz")
    put(anat / "sub-01_space-MNI152NLin2009cAsym_dseg.nii.gz")
    cases, notes = find_cases(Adapter("manual"), tmp_path)
    assert list(cases) == ["sub-01", "sub-01_acq-a_T2w"]
    assert len(notes) == 1
    assert "space MNI152NLin2009cAsym" in notes[0]


def test_of_several_segmentations_the_name_chooses(tmp_path):
    anat = tmp_path / "sub-01" / "anat"
    for seg in ("raterA", "raterB"):
        put(anat / f"sub-01_seg-{seg}_dseg.nii.gz")
    cases, _ = find_cases(Adapter("raterB"), tmp_path)
    assert cases["sub-01"].labels.name == "sub-01_seg-raterB_dseg.nii.gz"
    with pytest.raises(InputError, match=r"\(raterA, raterB\).*NAME=PATH"):
        find_cases(Adapter("manual"), tmp_path)


def test_one_segmentation_each_by_two_raters_is_not_one_rater(tmp_path):
    for subject, seg in (("01", "A"), ("02", "B")):
        put(tmp_path / f"sub-{subject}/anat/sub-{subject}_seg-{seg}_dseg.nii.gz")
    with pytest.raises(InputError, match=r"\(A, B\)"):
        find_cases(Adapter("manual"), tmp_path)
    assert list(find_cases(Adapter("B"), tmp_path)[0]) == ["sub-02"]


# ---- names of a derivative


def test_the_nearest_table_that_fits_explains_a_map(tmp_path):
    labels = put(tmp_path / "sub-01" / "anat" / "sub-01_seg-a_dseg.nii.gz")
    assert find_label_table(labels) is None
    for name in ("dseg.tsv", "seg-a_dseg.tsv", "seg-b_dseg.tsv", "space-x_seg-a_dseg.tsv"):
        (tmp_path / name).write_text("index\tname\n")
    assert find_label_table(labels).name == "seg-a_dseg.tsv"
    beside = labels.with_name("sub-01_seg-a_dseg.tsv")
    beside.write_text("index\tname\n")
    assert find_label_table(labels) == beside


def test_names_of_fullhead_brainseg_and_freesurfer_are_known(tmp_path):
    path = tmp_path / "dseg.tsv"
    names = ("Left-Thalamus", "Optic-Nerve", "ctx-lh-cuneus", "Spleen")
    path.write_text("index\tname\n" + "".join(f"{n}\t{name}\n" for n, name in enumerate(names, 1)))
    labels, unknown = read_names(path)
    assert labels == {1: (10,), 2: (530,), 3: (3,)}
    assert unknown == {4: "Spleen"}
    path.write_text("index\tlabel\n")
    with pytest.raises(InputError, match="'name' is missing"):
        read_names(path)


def test_an_index_that_is_twice_in_a_table_is_refused(tmp_path):
    path = tmp_path / "dseg.tsv"
    path.write_text("index\tname\n1\tLeft-Thalamus\n1\tSpleen\n")
    with pytest.raises(InputError, match=r"dseg\.tsv: index 1"):
        read_names(path)
    path.write_text("index\tname\n²\tLeft-Thalamus\n")
    with pytest.raises(InputError, match="'²'"):
        read_names(path)


def test_a_byte_order_mark_is_no_part_of_a_columns_name(tmp_path):
    path = tmp_path / "dseg.tsv"
    path.write_text("\ufeffindex\tname\n10\tLeft-Thalamus\n", encoding="utf-8")
    assert read_names(path)[0] == {10: (10,)}


# ---- matching


def test_a_renamed_copy_is_matched_with_or_without_padding():
    wanted = ["sub-3_ses-1", "sub-20_ses-1", "sub-9_ses-1"]
    found = match_cases(wanted, ["sub-03_ses-01", "sub-20_ses-1", "sub-009"], name="mine")
    assert found.pairs == {
        "sub-3_ses-1": "sub-03_ses-01",
        "sub-20_ses-1": "sub-20_ses-1",
        "sub-9_ses-1": "sub-009",
    }
    assert found.missing == found.extra == ()
    assert len(found.notes) == 2


def test_what_is_without_partner_is_listed_on_both_sides():
    found = match_cases(["sub-1", "sub-2"], ["sub-2", "sub-A", "sub-1_T2w"], name="mine")
    assert found.pairs == {"sub-2": "sub-2"}
    assert (found.missing, found.extra) == (("sub-1",), ("sub-A", "sub-1_T2w"))


def test_ambiguous_padding_names_both():
    with pytest.raises(InputError, match="sub-03 and sub-003"):
        match_cases(["sub-3"], ["sub-03", "sub-003"], name="mine")
    with pytest.raises(InputError, match=r"sub-003 .* sub-03"):
        match_cases(["sub-3", "sub-03"], ["sub-003"], name="mine")


def test_an_exact_name_wins_over_padded_ones():
    found = match_cases(["sub-3"], ["sub-03", "sub-3"], name="mine")
    assert found.pairs == {"sub-3": "sub-3"}
    assert found.extra == ("sub-03",)


def test_a_session_is_not_guessed_where_there_are_two():
    found = match_cases(["sub-3_ses-1", "sub-3_ses-2"], ["sub-3"], name="mine")
    assert found.pairs == {}
    found = match_cases(["sub-3_ses-1"], ["sub-3_ses-2"], name="mine")
    assert found.pairs == {}


def test_partners_of_images_nobody_asked_for_are_those_that_would_be_paired():
    there = ["sub-03", "sub-4_ses-2", "sub-5", "sub-05", "sub-6"]
    assert partners(["sub-3", "sub-4_ses-1", "sub-005"], there, name="mine") == {
        "sub-03",
        "sub-5",
        "sub-05",
    }
