# SPDX-License-Identifier: Apache-2.0
"""Recipe spaces: every effect has its range, its switch and its place in the digest."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from scipy.stats import kstest

from brainseg_bids.synth.classes import TissueSpace
from brainseg_bids.synth.effect_spaces import KINDS, TISSUE_KINDS
from brainseg_bids.synth.recipe import Recipe, View
from brainseg_bids.synth.recipe_files import read_space
from brainseg_bids.synth.space import EFFECTS, RecipeSpace
from brainseg_bids.synth.streams import Streams
from tests.synth.switches import is_off

SEVEN_T = RecipeSpace.packaged("agnostic7t")
SMALL = replace(SEVEN_T, tissues=SEVEN_T.tissues[:3])
"""Few classes, so that many recipes take no time."""


def recipes(space: RecipeSpace, n: int, seed: int = 0) -> list[Recipe]:
    rng = np.random.default_rng(seed)
    return [space.draw(rng) for _ in range(n)]


def test_the_older_spaces_have_nothing_of_the_new_effects():
    new = ("transmit", "ratio", "susceptibility", "motion", "gibbs")
    for name in ("agnostic", "t1w", "t2w", "flair"):
        for recipe in recipes(RecipeSpace.packaged(name), 5):
            assert all(is_off(effect, recipe) for effect in new)
            assert recipe.texture.grain_frac == 0
            assert recipe.noise.channels == 1
            assert (recipe.view.low_mm, recipe.view.high_mm) == (View().low_mm, View().high_mm)


def test_7_tesla_shows_every_effect_within_its_range():
    drawn = recipes(SMALL, 400)
    for effect in EFFECTS:
        if effect != "texture":
            assert any(not is_off(effect, recipe) for recipe in drawn), effect
    for recipe in drawn:
        transmit, motion = recipe.transmit, recipe.motion
        if transmit.sequence != "none":
            assert 1.0 <= transmit.center <= 1.4
            assert 0.45 <= transmit.edge <= 0.95
            assert (transmit.sequence == "mp2rage") == (recipe.ratio.noise_frac > 0)
        assert recipe.ratio.noise_frac == 0 or 0.01 <= recipe.ratio.noise_frac <= 0.08
        assert recipe.noise.sd_frac == 0 or recipe.ratio.noise_frac == 0
        assert recipe.noise.channels in (1, 2, 3, 4)
        assert 0 <= recipe.susceptibility.echo_time_ms <= 6
        assert list(motion.times_frac) == sorted(motion.times_frac)
        assert len(motion.times_frac) == len(motion.rotations_deg) == len(motion.translations_mm)
        assert len(motion.times_frac) <= 4
        assert np.abs([*motion.rotations_deg, (0, 0, 0)]).max() <= 1.5
        assert all(0.65 <= kept <= 1 for kept in recipe.gibbs.kept_frac)
        assert 0 <= recipe.texture.grain_frac <= 0.5
        cut = [face for face in (*recipe.view.low_mm, *recipe.view.high_mm) if abs(face) < 1000]
        assert len(cut) in (0, 2)
        assert all(50 <= abs(face) <= 110 for face in cut)


@pytest.mark.parametrize(
    ("share", "shows"),
    [
        (0.7, lambda recipe: recipe.transmit.sequence != "none"),
        (0.3, lambda recipe: recipe.ratio.noise_frac > 0),
        (0.2, lambda recipe: bool(recipe.motion.times_frac)),
        (0.2, lambda recipe: max(recipe.view.low_mm) > -1000),
        (0.1, lambda recipe: recipe.view.kept != "head"),
    ],
)
def test_effects_come_as_often_as_their_probability(share, shows):
    found = np.mean([shows(recipe) for recipe in recipes(SMALL, 500)])
    assert found == pytest.approx(share, abs=0.07)


@pytest.mark.parametrize("effect", EFFECTS)
def test_an_effect_switched_off_leaves_the_other_numbers_as_they_were(effect):
    components = replace(SMALL.tissues[1], components=2, component_spread=30.0)
    space = replace(SMALL, tissues=(SMALL.tissues[0], components))
    bare = space.without(effect)
    assert any(not is_off(effect, recipe) for recipe in recipes(space, 60))
    # Without a ratio an image has noise of its own, and another answer to the transmit field.
    follows = {"ratio": {"noise", "transmit", "ratio"}, "texture": {"texture", "tissues"}}
    changed = follows.get(effect, {effect})
    for full, less in zip(recipes(space, 60), recipes(bare, 60), strict=True):
        assert is_off(effect, less)
        for part in {item.name for item in fields(Recipe)} - changed:
            assert getattr(full, part) == getattr(less, part)


def test_an_unknown_effect_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'glow'; known: flip"):
        SMALL.without("glow")


def test_means_of_a_normal_law_share_a_part_and_are_clipped():
    classes = tuple(TissueSpace((name,), (100.0, 40.0), (5.0, 1.0)) for name in "ABC")
    space = RecipeSpace(classes, law="normal", shared_frac=0.8, widen=1.5)
    drawn = np.array([[r.tissues[n].mean[0] for n in "ABC"] for r in recipes(space, 1500)])
    assert kstest((drawn[:, 0] - 100) / 60, "norm").statistic < 0.06  # but for the clipped end
    assert drawn.min() == 0
    assert drawn.max() <= 300
    assert np.corrcoef(drawn.T)[0, 1] == pytest.approx(0.64, abs=0.06)


def test_streams_do_not_depend_on_one_another():
    drawn = [Streams(seed) for seed in range(2000)]
    pairs = np.array([[s.uniform("bias"), s.uniform("noise"), s.uniforms("noise", 2)[1]]
                      for s in drawn])  # fmt: skip
    assert np.abs(np.corrcoef(pairs.T)[np.triu_indices(3, 1)]).max() < 0.08
    assert all(kstest(column, "uniform").pvalue > 1e-3 for column in pairs.T)
    assert len({s.seed("bias") for s in drawn}) == len(drawn)


def numbers_of(group, prefix=()):
    """Path of every number of a space."""
    for item in fields(group):
        value = getattr(group, item.name)
        if hasattr(value, "__dataclass_fields__"):
            yield from numbers_of(value, (*prefix, item.name))
        elif isinstance(value, float) or (
            isinstance(value, tuple) and value and isinstance(value[0], int | float)
        ):
            yield (*prefix, item.name)


@pytest.mark.parametrize("path", list(numbers_of(SMALL)), ids=".".join)
def test_the_digest_changes_with_every_number(path):
    group = SMALL if len(path) == 1 else getattr(SMALL, path[0])
    value = getattr(group, path[-1])
    if isinstance(value, tuple):
        step = 0.001 if isinstance(value[1], float) else 1
        other = (value[0], value[1] - step if value[1] > value[0] else value[1] + step)
    else:
        other = value + 0.001 if value < 0.5 else value - 0.001
    change = {path[-1]: other}
    changed = SMALL.changed(change if len(path) == 1 else {path[0]: change})
    assert changed.digest != SMALL.digest
    assert changed.changed({"name": "another"}).digest == changed.digest


def test_every_number_of_a_space_and_of_its_classes_has_bounds():
    assert {".".join(path) for path in numbers_of(SEVEN_T)} <= set(KINDS)
    assert {item.name for item in fields(TissueSpace)} == set(TISSUE_KINDS)


def test_the_digest_knows_the_classes():
    assert replace(SMALL, tissues=SMALL.tissues[:2]).digest != SMALL.digest
    brighter = replace(SMALL.tissues[0], mean=(8.5, 7.5))
    assert replace(SMALL, tissues=(brighter, *SMALL.tissues[1:])).digest != SMALL.digest


ONE_CLASS = "[[tissues]]\nlabels = ['Skin']\nmean = [100, 10]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[gibbs]\nq = 0.5", "'gibbs.q' is not a setting .*kept_frac, p"),
        ("gibbs = 0.5", "'gibbs' is a group of settings"),
        ("[motion]\np = 1.5", "motion.p is 1.5: give a number from 0 to 1"),
        ("flip_p = -0.1", "flip_p is -0.1"),
        ("bias_log_sd = 0.3", r"bias_log_sd is 0.3: give \[low, high\]"),
        ("bias_log_sd = [0.3, 0.1]", r"bias_log_sd is .*: give \[low, high\]"),
        ("[motion]\nmoves = [0, 2]", "motion.moves .* whole number from 1"),
        ("noise_channels = [1.0, 2.0]", "noise_channels .* whole number from 1"),
        ('gamma_log_sd = "big"', "gamma_log_sd is 'big'"),
        ('law = "cauchy"', "law is 'cauchy': give uniform or normal"),
        ('[transmit]\nsequences = ["flash"]', "transmit.sequences .*mprage"),
        ("[transmit]\nsequences = []", "transmit.sequences"),
        pytest.param(
            "bias_log_sd = [0.1, nan]",
            r"bias_log_sd\[2\] is nan",
            marks=pytest.mark.input(
                "training",
                "recipe space with NaN, infinite or out-of-range numbers",
                "refused by file and key",
                2,
            ),
        ),
        ("widen = inf", "widen is inf"),
        ("scaling = [0.0, 1.0]", "scaling .* from 0.1 to 10"),
        pytest.param(
            "bias_node_spacing_mm = 0.001",
            "bias_node_spacing_mm is 0.001: give a number from 1",
            marks=pytest.mark.input(
                "training",
                "recipe space with voxels or nodes 0.001 mm apart",
                "refused by file and key, before memory is taken",
                2,
            ),
        ),
        ("resolution_isotropic_mm = [0.001, 1.0]", "resolution_isotropic_mm .* from 0.1"),
        ("resolution_slice_mm = [1e-9, 1e-9]", "resolution_slice_mm"),
        pytest.param(
            "flip_p = " + "[" * 5000 + "]" * 5000,
            "mine.toml: .*nested",
            marks=pytest.mark.input(
                "training", "recipe with thousands of levels", "refused in one line", 2
            ),
        ),
        ("flip_p = " + "1" * 5000, "mine.toml: .*64 bits"),
        pytest.param(
            'base = "mine.toml"',
            "base leads back",
            marks=pytest.mark.input(
                "training", "recipe space whose `base` is itself", "refused by file", 2
            ),
        ),
        ("base = 3", "base is 3"),
        ("tissues = 3", r"write \[\[tissues\]\]"),
        ("[[tissues]]\nlabels = ['Skin']", "has no mean"),
        (f"{ONE_CLASS}\nsd = [5, -1]", r"class 1 of \[\[tissues\]\]: sd"),
        (f"{ONE_CLASS}\nsd = [5, 1]\ncolour = 1", "colour"),
        (f"{ONE_CLASS}\nsd = [5, 1]\ncomponents = 2.5", "components is 2.5"),
        ("tissues = [", "not valid TOML"),
        pytest.param(
            f"{ONE_CLASS.replace('Skin', 'Skinn')}\nsd = [5, 1]",
            "Skinn of .* is in no class of base",
            marks=pytest.mark.input(
                "training",
                "recipe space with a class of a label that its `base` does not have",
                "refused by file and label",
                2,
            ),
        ),
        ('base = "t9w"', "no recipe space 't9w'"),
    ],
)
def test_a_recipe_file_that_cannot_be_used_says_why_in_one_line(tmp_path, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(text if "base" in text else f'base = "agnostic"\n{text}\n')
    with pytest.raises(ValueError, match=message) as caught:
        read_space(str(path))
    assert "\n" not in str(caught.value)


def test_a_recipe_file_that_is_not_there_or_has_no_classes_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.toml: "):
        read_space(str(tmp_path / "gone.toml"))
    (tmp_path / "empty.toml").write_text("flip_p = 0.5\n")
    with pytest.raises(ValueError, match="classes are missing"):
        read_space(str(tmp_path / "empty.toml"))


def test_a_recipe_file_may_say_only_what_differs_from_another(tmp_path):
    (tmp_path / "first.toml").write_text('base = "agnostic"\nflip_p = 0.0\n[motion]\np = 0.5\n')
    (tmp_path / "second.toml").write_text('base = "first.toml"\n[motion]\nmoves = [2, 2]\n')
    space = read_space(str(tmp_path / "second.toml"))
    assert (space.name, space.flip_p, space.motion.p, space.motion.moves) == (
        "second",
        0,
        0.5,
        (2, 2),
    )
    assert space.tissues == RecipeSpace.packaged("agnostic").tissues


def test_a_label_may_leave_the_class_that_it_has_in_the_base(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'base = "t1w"\n[[tissues]]\nlabels = ["Left-Caudate", "Skin"]\n'
        "mean = [110, 9]\nsd = [8, 2]\n"
    )
    space, base = read_space(str(path)), RecipeSpace.packaged("t1w")
    labels = [label for tissue in space.tissues for label in tissue.labels]
    assert sorted(labels) == sorted(label for tissue in base.tissues for label in tissue.labels)
    assert space.tissues[-1].labels == ("Left-Caudate", "Skin")
    assert len(space.tissues) == len(base.tissues)  # the class of skin alone is gone
    drawn = recipes(space, 20)
    means = {
        name: [recipe.tissues[name].mean for recipe in drawn]
        for name in ("Left-Caudate", "Skin", "Right-Caudate", "Left-Cerebral-Cortex")
    }
    assert means["Left-Caudate"] == means["Skin"] != means["Right-Caudate"]
    assert means["Right-Caudate"] == means["Left-Cerebral-Cortex"]


def test_mp2rage_shows_what_its_signal_equations_say():
    drawn = recipes(RecipeSpace.packaged("mp2rage7t"), 300)
    names = ("Left-Cerebral-White-Matter", "Left-Cerebral-Cortex", "Left-Lateral-Ventricle")
    white, grey, csf = np.array([[r.tissues[n].mean[0] for n in names] for r in drawn]).T
    assert (white > grey).mean() > 0.99
    assert (grey > csf).mean() > 0.99
    assert all(r.ratio.noise_frac > 0 for r in drawn)
    assert {r.transmit.sequence for r in drawn} == {"none", "mp2rage"}


@pytest.mark.input(
    "training",
    "recipe space with a label in two classes",
    "refused; the line names the label",
    2,
)
def test_a_label_in_two_classes_is_refused():
    twice = (SMALL.tissues[0], SMALL.tissues[0])
    with pytest.raises(ValueError, match=SMALL.tissues[0].labels[0]):
        replace(SMALL, tissues=twice)


@pytest.mark.parametrize("name", ["Unknown", "Background"])
def test_background_is_noisy_whichever_name_a_class_gives_it(name):
    air = TissueSpace((name,), (7.0, 1.0), (2.0, 1.0))
    space = replace(
        SMALL, tissues=(air,), background_dark_p=0.0, background_noisy_mean=(240.0, 250.0)
    )
    assert all(one.tissues[name].mean[0] >= 240 for one in recipes(space, 5))
