# SPDX-License-Identifier: Apache-2.0
"""Which label maps a model learns from, who is held out, and how recipes are put together."""

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.bids.head_maps import (
    HeadMap,
    choose_maps,
    find_head_maps,
    hold_out,
    median_voxel_size_mm,
)
from brainseg_bids.bids.names import STRUCTURAL
from brainseg_bids.documents import InputError
from brainseg_bids.images import write_label_map
from brainseg_bids.programs.map_cache import read_facts
from brainseg_bids.training.job_changes import differences
from brainseg_bids.training.recipe import ABOUT_SPACES, KEYS, TrainRecipe
from brainseg_bids.training.spaces import Spaces, choose_spaces, voxel_size_of
from brainseg_bids.training.targets import absent_labels, find_target
from tests.phantom.head import phantom_head

FULLHEAD, BRAINSEG = LabelTable.packaged("fullhead"), LabelTable.packaged("brainseg")
SMALL = phantom_head(shape=(20, 24, 22), voxel_size_mm=9.0)
DEFAULT = TrainRecipe.packaged("default")


def give(root: Path, *names: str, labels=SMALL, table=FULLHEAD) -> Path:
    """Label maps of these names in a derivative, and the table of their codes."""
    root.mkdir(parents=True, exist_ok=True)
    for name in names:
        subject = name.split("_")[0]
        folder = root / subject / "anat"
        folder.mkdir(parents=True, exist_ok=True)
        write_label_map(labels, folder / f"{name}_dseg.nii.gz")
    if table is not None:
        seg = "seg-fullhead_" if any("seg-fullhead" in name for name in names) else ""
        table.write(root / f"{seg}dseg.tsv")
    return root


def head_maps(*sizes_mm: float, subject: str = "01") -> list[HeadMap]:
    return [
        HeadMap(Path(f"sub-{subject}_res-{n}_dseg.nii"), subject, (size,) * 3)
        for n, size in enumerate(sizes_mm)
    ]


# -- label maps ---------------------------------------------------------------------------


def test_merged_maps_are_found_at_all_voxel_sizes_and_ranks_are_no_maps(tmp_path):
    root = give(
        tmp_path,
        "sub-01_seg-fullhead",
        "sub-01_seg-fullhead_res-2mm",
        "sub-01_seg-fullhead_desc-top4",
        "sub-01_seg-samseg",
        "sub-02_ses-A_seg-fullhead",
    )
    found = [one.path.name for one in find_head_maps(root)]
    assert found == [
        "sub-01_seg-fullhead_dseg.nii.gz",
        "sub-01_seg-fullhead_res-2mm_dseg.nii.gz",
        "sub-02_ses-A_seg-fullhead_dseg.nii.gz",
    ]
    assert find_head_maps(root)[0].head == find_head_maps(root)[1].head


def test_participants_and_sessions_that_were_not_asked_for_are_left_out(tmp_path):
    root = give(tmp_path, *(f"sub-01_ses-{s}_seg-fullhead" for s in "AB"), "sub-02_seg-fullhead")
    assert {one.subject for one in find_head_maps(root, ["02"])} == {"02"}
    names = [one.path.name for one in find_head_maps(root, (), ["B"])]
    assert names == ["sub-01_ses-B_seg-fullhead_dseg.nii.gz", "sub-02_seg-fullhead_dseg.nii.gz"]
    with pytest.raises(InputError, match=r"participant 09.*01"):
        find_head_maps(root, ["01", "09"])


def test_plain_maps_are_taken_if_their_table_means_what_ours_does(tmp_path):
    root = give(tmp_path, "sub-01", "sub-02")
    assert [one.subject for one in find_head_maps(root)] == ["01", "02"]


@pytest.mark.input(
    "training", "label maps without a dseg.tsv that says what their codes mean", "refused", 2
)
def test_a_plain_map_without_a_table_is_refused(tmp_path):
    root = give(tmp_path, "sub-01", table=None)
    with pytest.raises(InputError, match=r"sub-01_dseg.nii.gz: "):
        find_head_maps(root)


@pytest.mark.input(
    "training",
    "a dseg.tsv that means something else by a code than table fullhead",
    "refused; the line names the code and both names",
    2,
)
def test_a_table_that_calls_a_code_otherwise_is_refused_with_code_and_both_names(tmp_path):
    root = give(tmp_path, "sub-01", table=None)
    (root / "dseg.tsv").write_text("index\tname\n0\tBackground\n10\tRight-Kidney\n999\tMoon\n")
    with pytest.raises(InputError, match=r"code 10 .*Left-Thalamus"):
        find_head_maps(root)


def test_an_empty_folder_says_what_to_do_and_a_dataset_where_its_maps_are(tmp_path):
    with pytest.raises(InputError, match="--stages headlabels first"):
        find_head_maps(tmp_path)
    give(tmp_path / "derivatives" / "brainseg", "sub-01_seg-fullhead")
    with pytest.raises(InputError, match=f"Did you mean {tmp_path}/derivatives/brainseg"):
        find_head_maps(tmp_path)


@pytest.mark.input(
    "training",
    "label maps of a head in its own and in a standard space",
    "only the one in its own space is learned from; the log says how many are left out",
    0,
)
def test_a_head_is_not_learned_from_once_more_in_a_standard_space(tmp_path):
    root = give(
        tmp_path,
        "sub-01_seg-fullhead",
        "sub-01_space-MNI152NLin2009cAsym_seg-fullhead",
        "sub-01_space-T2w_seg-fullhead",
        "sub-02_space-MNI152NLin2009cAsym_seg-fullhead",
    )
    assert [one.path.name for one in find_head_maps(root)] == [
        "sub-01_seg-fullhead_dseg.nii.gz",
        "sub-01_space-T2w_seg-fullhead_dseg.nii.gz",
        "sub-02_space-MNI152NLin2009cAsym_seg-fullhead_dseg.nii.gz",
    ]


@pytest.mark.input(
    "training",
    "a label map as .nii and as .nii.gz",
    "refused; the line names both files",
    2,
)
def test_two_files_of_one_map_are_refused(tmp_path):
    root = give(tmp_path, "sub-01_seg-fullhead", "sub-02_seg-fullhead")
    write_label_map(SMALL, root / "sub-01" / "anat" / "sub-01_seg-fullhead_dseg.nii")
    with pytest.raises(InputError, match=r"sub-01_seg-fullhead_dseg.nii and .*dseg.nii.gz"):
        find_head_maps(root)


def test_of_a_head_the_coarsest_map_is_taken_that_is_fine_enough():
    maps = head_maps(0.5, 0.8, 1.0)
    assert choose_maps(maps, 0.8)[0].size_mm == pytest.approx(0.8)
    assert choose_maps(maps, 2.0)[0].size_mm == pytest.approx(1.0)
    assert choose_maps(maps, 0.4)[0].size_mm == pytest.approx(0.5)
    assert len(choose_maps([*maps, *head_maps(1.0, subject="02")], 0.8)) == 2


def test_the_usual_voxel_size_is_the_median_over_heads_not_over_maps():
    maps = head_maps(0.5, 1.0, 1.2) + head_maps(0.8, subject="02") + head_maps(1.0, subject="03")
    assert median_voxel_size_mm(maps) == 0.8


def test_nobody_is_learned_from_and_held_out():
    maps = [one for n in range(9) for one in head_maps(1.0, subject=f"{n:02}") * 2]
    assert hold_out(maps) == {"07"}
    assert hold_out(maps, ["01", "03"]) == {"01", "03"}


@pytest.mark.parametrize(
    ("subjects", "wanted", "said"),
    [
        (["01"], [], "only sub-01 has label maps"),
        (["01", "02"], ["03"], "--validation-label 03: there is no label map"),
        (["01", "02"], ["01", "02"], "nobody is left to learn from"),
    ],
)
def test_a_split_that_leaves_nothing_is_refused(subjects, wanted, said):
    maps = [one for subject in subjects for one in head_maps(1.0, subject=subject)]
    with pytest.raises(InputError, match=said):
        hold_out(maps, wanted)


@pytest.mark.input(
    "training",
    "label maps that are cut off, have an unknown code, or are all background",
    "each is named with its error before the training",
    2,
)
def test_every_map_that_cannot_be_used_is_named_with_its_fault(tmp_path):
    strange = phantom_head(shape=(20, 24, 22), voxel_size_mm=9.0)
    root = give(tmp_path, "sub-01_seg-fullhead", "sub-02_seg-fullhead", labels=strange)
    for subject, code in (("03", 999), ("04", 0)):
        voxels = strange.voxels.copy() if code else np.zeros_like(strange.voxels)
        voxels[10, 10, 10] = code
        folder = root / f"sub-{subject}" / "anat"
        folder.mkdir(parents=True)
        image = nib.Nifti1Image(voxels, strange.grid.affine)
        nib.save(image, folder / f"sub-{subject}_seg-fullhead_dseg.nii.gz")
    broken = root / "sub-02" / "anat" / "sub-02_seg-fullhead_dseg.nii.gz"
    broken.write_bytes(broken.read_bytes()[:600])
    maps = [HeadMap(p, p.name[4:6], (9.0,) * 3) for p in sorted(root.glob("sub-*/anat/*.nii.gz"))]
    facts, errors = read_facts(maps, BRAINSEG)
    assert [path.name[:6] for path in facts] == ["sub-01"]
    assert "sub-02" in errors[0]
    assert "cannot be read" in errors[0]
    assert "999 (1 voxel)" in errors[1]
    assert "sub-04" in errors[2]
    assert "voxel is background" in errors[2]


def test_labels_that_no_map_has_are_named(tmp_path):
    root = give(tmp_path, "sub-01_seg-fullhead")
    facts, _ = read_facts(find_head_maps(root), BRAINSEG)
    absent = absent_labels(facts.values(), BRAINSEG)
    assert "Left-Caudate" in absent
    assert not {"Left-Thalamus", "Skin", "Background"} & set(absent)


@pytest.mark.input(
    "training",
    "a label map whose content was not fetched (git-annex)",
    "refused with the command that gets it",
    2,
)
def test_a_file_that_was_not_fetched_says_how_to_get_it(tmp_path):
    root = give(tmp_path, "sub-01_seg-fullhead")
    link = root / "sub-01" / "anat" / "sub-01_ses-B_seg-fullhead_dseg.nii.gz"
    link.symlink_to("../../.git/annex/objects/nowhere.nii.gz")
    with pytest.raises(InputError, match=r"Fetch it .*sub-01_ses-B"):
        find_head_maps(root)


# -- recipes ------------------------------------------------------------------------------


def test_recipes_say_what_a_train_plan_has():
    from brainseg_bids.training.plan import TrainPlan

    of_the_plan = set(KEYS) - set(ABOUT_SPACES)
    assert of_the_plan <= {item.name for item in fields(TrainPlan)}
    for name in ("default", "cpu"):
        needed = of_the_plan - {"validation_space", "voxel_size_mm"}
        assert needed <= set(TrainRecipe.packaged(name).values)


def test_each_number_of_a_packaged_recipe_has_its_reason():
    import brainseg_bids

    folder = Path(brainseg_bids.__file__).parent / "data" / "training"
    for path in sorted(folder.glob("*.toml")):
        lines = path.read_text().partition("[spaces]")[0].splitlines()
        for before, line in itertools.pairwise(lines):
            key = line.partition(" = ")[0]
            if key in KEYS:
                assert before.startswith("#"), f"{path.name}: {line}"


def test_a_users_recipe_changes_what_it_says_and_nothing_else(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('learning_rate = 1e-3\n[spaces]\nt1w = 1\n"own.toml" = 3\n')
    recipe = TrainRecipe.read(path, "cpu")
    packaged = TrainRecipe.packaged("cpu")
    assert recipe.values == packaged.values | {"learning_rate": 1e-3}
    assert recipe.spaces == {"t1w": 1.0, str(tmp_path / "own.toml"): 3.0}
    assert recipe.given == {"learning_rate", "spaces"}
    path.write_text('base = "default"\n')
    assert TrainRecipe.read(path, "cpu").values == DEFAULT.values


def test_a_recipe_may_be_based_on_another_file(tmp_path):
    (tmp_path / "lab").mkdir()
    lab = tmp_path / "lab" / "lab.toml"
    lab.write_text(
        'base = "default"\nbatch = 3\nagnostic = "any.toml"\n[spaces]\n"own.toml" = 1\n'
    )
    path = tmp_path / "mine.toml"
    path.write_text('base = "lab/lab.toml"\nlearning_rate = 1e-3\n')
    recipe = TrainRecipe.read(path, "cpu")
    own = {"batch": 3, "learning_rate": 1e-3, "agnostic": str(tmp_path / "lab" / "any.toml")}
    assert recipe.values == DEFAULT.values | own
    assert recipe.spaces == {str(tmp_path / "lab" / "own.toml"): 1.0}
    assert recipe.given == {*own, "spaces"}
    path.write_text('base = "lab/lab.toml"\n[spaces]\nt1w = 1\n')
    assert TrainRecipe.read(path, "cpu").spaces == {"t1w": 1.0}
    lab.write_text('base = "../mine.toml"\n')
    with pytest.raises(InputError, match=r"lab\.toml: base = \.\./mine\.toml: leads back"):
        TrainRecipe.read(path, "cpu")
    lab.write_text('base = "gpu"\n')
    with pytest.raises(InputError, match=r"lab\.toml: no training recipe"):
        TrainRecipe.read(path, "cpu")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("learning_rte = 1", "unknown key learning_rte. Known: base.*learning_rate"),
        ('batch = "two"', "batch is 'two': give a whole number"),
        ("batch = true", "give a whole number"),
        ("batch = 1.5", "give a whole number"),
        ("ema_decay = 0", "above 0"),
        pytest.param(
            "ema_decay = 2",
            "ema_decay is 2: .*below 1",
            marks=pytest.mark.input(
                "training", "recipe with `ema_decay = 2`", "refused by file and key", 2
            ),
        ),
        pytest.param(
            "learning_rate = nan",
            "learning_rate is nan",
            marks=pytest.mark.input(
                "training",
                "recipe with a learning rate that is NaN, infinite or 5",
                "refused by file and key",
                2,
            ),
        ),
        ("learning_rate = inf", "learning_rate is inf"),
        ("learning_rate = 5", "learning_rate is 5"),
        ("learning_rate = -1e-3", "learning_rate is -0.001"),
        pytest.param(
            "batch = 1000000",
            "batch is 1000000: give a whole number from 1 to 256",
            marks=pytest.mark.input(
                "training",
                "recipe with a patch or batch that can never fit, or voxels of 0.001 mm",
                "refused by file and key, before anything is tried",
                2,
            ),
        ),
        ("largest_patch_mm = [1e5, 100, 100]", "largest_patch_mm .*up to 500|from 10 to 500"),
        ("voxel_size_mm = 0.001", "voxel_size_mm is 0.001: give a number from 0.1 to 10 mm"),
        ("center_frac = [0.8, 0.2]", r"center_frac .*\[low, high\]"),
        ('loss = "focal"', "loss is 'focal': give chosen or dense"),
        ("total_steps = 12345678901234567890", "total_steps is beyond 64 bits"),
        ("total_steps = 1000000", "total_steps is 1000000"),  # what runs by time have
        ("contrasts = [1]", "contrasts has an item that is 1"),
        ("batch = " + "[" * 5000 + "]" * 5000, "nested"),
        ("[spaces]\nt1w = nan", "spaces.t1w is nan"),
        ("base = 3", "base is 3"),
        ("largest_patch_mm = [1, 2]", "give a list of 3"),
        ("[spaces]\nt1w = 0", "share above 0"),
        pytest.param(
            '[spaces]\n"a.toml" = 1\n"./a.toml" = 3',
            "has ./a.toml twice",
            marks=pytest.mark.input(
                "training", "recipe that names one recipe space twice", "refused by file", 2
            ),
        ),
        ("spaces = 3", "share above 0"),
        ('base = "gpu"', "no training recipe 'gpu'; known: default, cpu"),
        ("batch =", "not valid TOML"),
        ('base = "none.toml"', "base = none.toml: there is no such file"),
        pytest.param(
            'base = "mine.toml"',
            "base = mine.toml: leads back",
            marks=pytest.mark.input(
                "training", "recipe that is its own base", "refused by file", 2
            ),
        ),
    ],
)
def test_a_wrong_recipe_is_one_line_that_names_it(tmp_path, text, said):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=said) as error:
        TrainRecipe.read(path, "cpu")
    assert "\n" not in str(error.value)
    assert "mine.toml" in str(error.value)


def test_other_steps_keep_the_shares_of_warming_up_and_slowing_down():
    short = DEFAULT.with_steps(DEFAULT.values["total_steps"] // 10)
    for key in ("warmup_steps", "decay_steps"):
        assert short.values[key] == DEFAULT.values[key] // 10


@pytest.mark.input(
    "training",
    "recipe with another `total_steps` alone",
    "warm-up, decay and average are made to fit, as by --steps",
    0,
)
def test_a_recipes_own_steps_count_like_those_of_the_command_line(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("total_steps = 430\n")
    recipe = TrainRecipe.read(path, "cpu")
    assert recipe.values == TrainRecipe.packaged("cpu").with_steps(430).values
    assert recipe.values["decay_steps"] == 130
    assert recipe.slow_rate() == ""
    path.write_text("total_steps = 430\ndecay_steps = 1300\n")
    assert "decay_steps = 1300" in TrainRecipe.read(path, "cpu").slow_rate()


def test_the_prior_that_was_asked_for_comes_before_a_recipes_spaces(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[spaces]\nt2w = 1.0\n")
    own = TrainRecipe.read(path, "cpu")
    priors = {"A": "T1w", "B": "FLAIR"}
    assert choose_spaces(own, priors=priors)[0].shares == {"t2w": 1.0}
    chosen, why = choose_spaces(own, priors=priors, wanted="B")
    assert (chosen.shares, chosen.contrasts) == ({"prior": 1.0}, ("FLAIR",))
    assert "asked for" in why


def test_a_recipe_may_mix_the_prior_with_others(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[spaces]\nprior = 0.7\nt1w = 0.3\n")
    chosen, _ = choose_spaces(TrainRecipe.read(path, "cpu"), priors={"A": "T2w"})
    assert (chosen.prior, chosen.validation, chosen.contrasts) == ("A", "prior", ("T2w", "T1w"))


def test_a_recipe_space_of_a_prior_is_for_the_priors_contrast():
    name = "/data/contrast-mine_recipe.toml"
    recipe = TrainRecipe("cpu", {}, {name: 1.0, "t1w": 1.0}, frozenset({"spaces"}))
    every = {"priors": {}, "any_contrast": ("T1w", "T2w", "FLAIR")}
    assert choose_spaces(recipe, **every)[0].contrasts == ("T1w", "T2w", "FLAIR")
    own = choose_spaces(recipe, **every, of_files={name: "T2w"})[0]
    assert own.contrasts == ("T2w", "T1w")


def test_without_a_prior_the_packaged_recipe_draws_from_any_contrast():
    chosen, why = choose_spaces(DEFAULT, priors={}, any_contrast=STRUCTURAL)
    assert chosen == Spaces({"agnostic": 1.0}, "agnostic", chosen.contrasts)
    assert "FLAIR" in chosen.contrasts
    assert "no contrast prior" in why


@pytest.mark.parametrize(
    ("priors", "options", "said"),
    [
        ({"A": "T1w"}, {"wanted": "B"}, "--prior B: there is none. Known: A"),
        ({"A": "T1w", "B": "T1w"}, {}, "several contrast priors .A, B.: choose one with --prior"),
        ({}, {"weight_given": True}, "--kappa: the prior weight needs a contrast prior"),
    ],
)
def test_a_prior_that_cannot_be_chosen_says_how(priors, options, said):
    with pytest.raises(InputError, match=said):
        choose_spaces(DEFAULT, priors=priors, **options)


def test_voxels_come_from_the_flag_then_the_recipe_then_the_contrast_then_the_maps():
    usual_mm, cpu = 1.0, TrainRecipe.packaged("cpu")
    assert voxel_size_of((0.7,), cpu, (0.8,) * 3, usual_mm)[0] == 0.7
    assert voxel_size_of((), cpu, (0.8,) * 3, usual_mm)[0] == 1.5
    assert voxel_size_of((), DEFAULT, (0.8,) * 3, usual_mm)[0] == 0.8
    assert voxel_size_of((), DEFAULT, None, usual_mm)[0] == 1.0


def test_labels_to_learn_are_of_a_table_that_maps_can_be_brought_to():
    assert find_target("brainseg") == BRAINSEG
    with pytest.raises(InputError, match="'tissue'"):
        find_target("tissue")


# -- going on -----------------------------------------------------------------------------


def described(**other) -> dict:
    maps = {f"sub-{n}": {"digest": str(n), "held_out": n == 3} for n in range(4)}
    spaces = {"t1w": {"share": 1.0, "digest": "x"}}
    return {"seed": 1, "voxel_size_mm": 1.0, "maps": maps, "spaces": spaces} | other


def test_what_has_changed_since_a_run_began_is_named():
    before = described()
    assert differences(before, described()) == []
    other = described(
        voxel_size_mm=0.8,
        maps={
            "sub-1": {"digest": "other", "held_out": False},
            "sub-2": {"digest": "2", "held_out": True},
            "sub-3": {"digest": "3", "held_out": True},
            "sub-9": {"digest": "9", "held_out": False},
        },
        spaces={"t1w": {"share": 1.0, "digest": "y"}},
    )
    assert differences(before, other) == [
        "voxel_size_mm 1.0 (now 0.8)",
        "content of recipe space t1w",
        "label maps: 1 new (sub-9), 1 gone (sub-0), 1 changed (sub-1), 1 held out or no longer "
        "(sub-2)",
    ]


def test_a_run_may_be_gone_on_with_to_fewer_steps():
    def said(recipe):
        return {"recipe": {"values": recipe.values}}

    # Warming up is over; the job keeps it as it was.
    kept = replace(DEFAULT, given=frozenset({"warmup_steps"}))
    before, now = kept.with_steps(2000), kept.with_steps(500)
    assert now.values["ema_decay"] < before.values["ema_decay"]
    assert differences(said(before), said(now)) == []


def test_deciding_imports_neither_torch_nor_nipype():
    code = (
        "import sys, brainseg_bids.training.spaces, brainseg_bids.bids.head_maps\n"
        "print([m for m in ('torch', 'nipype', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
