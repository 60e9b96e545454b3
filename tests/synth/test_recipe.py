# SPDX-License-Identifier: Apache-2.0
"""Recipes: all randomness is drawn once, and written down."""

from __future__ import annotations

import json

import numpy as np
import pytest

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.synth.recipe import Recipe, Tissue
from brainseg_bids.synth.recipe_files import read_space
from brainseg_bids.synth.space import RecipeSpace

SPACES = ["agnostic", "agnostic7t", "flair", "mp2rage7t", "t1w", "t1w7t", "t2w"]


@pytest.mark.parametrize("name", SPACES)
def test_the_same_seed_draws_the_same_recipe_and_json_keeps_it(name):
    space = RecipeSpace.packaged(name)
    first, again = (space.draw(np.random.default_rng(7)) for _ in range(2))
    assert first == again
    assert Recipe.from_json(first.to_json()) == first
    assert space.draw(np.random.default_rng(8)) != first


@pytest.mark.parametrize("name", SPACES)
def test_a_packaged_space_has_intensities_for_every_label(name):
    space, table = RecipeSpace.packaged(name), LabelTable.packaged("fullhead")
    space.covers(table)
    assert set(space.draw(np.random.default_rng(0)).tissues) >= {label.name for label in table}


def test_a_label_without_intensity_is_named():
    space = RecipeSpace.packaged("t1w")
    bare = RecipeSpace(tissues=tuple(t for t in space.tissues if "Left-Thalamus" not in t.labels))
    with pytest.raises(ValueError, match="Left-Thalamus, Right-Thalamus"):
        bare.covers(LabelTable.packaged("fullhead"))


def test_agnostic_draws_stay_in_synthsegs_ranges(rng):
    space = RecipeSpace.packaged("agnostic")
    for _ in range(200):
        recipe = space.draw(rng)
        assert all(abs(angle) <= 15 for angle in recipe.deformation.rotation_deg)
        assert all(0.8 <= scale <= 1.2 for scale in recipe.deformation.scaling)
        assert 0 <= recipe.deformation.velocity_sd_mm <= 4
        assert 0 <= recipe.bias.log_sd <= 0.7
        assert all(1 <= size <= 8 for size in recipe.resolution.voxel_size_mm)
        thalamus = recipe.tissues["Left-Thalamus"]
        assert 0 <= thalamus.mean[0] <= 250
        assert 0 <= thalamus.sd[0] <= 30


def test_agnostic_draws_the_sides_apart_and_t1w_together(rng):
    agnostic, t1w = (RecipeSpace.packaged(name).draw(rng) for name in ("agnostic", "t1w"))
    assert agnostic.tissues["Left-Thalamus"] != agnostic.tissues["Right-Thalamus"]
    assert t1w.tissues["Left-Thalamus"] == t1w.tissues["Right-Thalamus"]


def test_t1w_recipes_show_white_matter_brighter_than_grey_and_csf(rng):
    space = RecipeSpace.packaged("t1w")
    means = []
    for _ in range(300):
        tissues = space.draw(rng).tissues
        means.append(
            [
                tissues[n].mean[0]
                for n in (
                    "Left-Cerebral-White-Matter",
                    "Left-Cerebral-Cortex",
                    "Left-Lateral-Ventricle",
                )
            ]
        )
    white, grey, csf = np.array(means).T
    assert (white > grey).mean() > 0.95
    assert (grey > csf).mean() > 0.95
    # centres are the published ones (0-255 scale)
    assert white.mean() == pytest.approx(160.3, abs=6)
    assert grey.mean() == pytest.approx(96.3, abs=4)


def test_a_recipe_file_with_a_wrong_key_is_refused_by_name(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'gama_log_sd = 0.1\n[[tissues]]\nlabels = ["Skin"]\nmean = [1.0, 1.0]\nsd = [1.0, 0.0]\n'
    )
    with pytest.raises(ValueError, match=r"mine\.toml: 'gama_log_sd'"):
        read_space(str(path))
    path.write_text(path.read_text().replace("gama", "gamma"))
    assert read_space(str(path)).name == "mine"


def test_an_unknown_space_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="known: agnostic"):
        read_space("t9w")


def test_t2w_and_flair_recipes_have_the_signs_of_their_contrasts(rng):
    for name, csf_is_bright in (("t2w", True), ("flair", False)):
        tissues = RecipeSpace.packaged(name).draw(rng).tissues
        csf = tissues["Left-Lateral-Ventricle"].mean[0]
        grey = tissues["Left-Cerebral-Cortex"].mean[0]
        white = tissues["Left-Cerebral-White-Matter"].mean[0]
        assert (csf > grey) == csf_is_bright
        assert grey > white - 10


def test_a_recipe_that_was_written_before_air_could_be_masked_is_read(rng):
    recipe = RecipeSpace.packaged("t1w").draw(rng)
    raw = json.loads(recipe.to_json())
    del raw["view"]["air_masked"], raw["view"]["air_level"]
    assert Recipe.from_json(json.dumps(raw)) == recipe


@pytest.mark.parametrize(
    ("change", "named"),
    [
        pytest.param(
            {"bias": {"log_sd": "x"}},
            "bias: log_sd is 'x'",
            marks=pytest.mark.input(
                "training",
                "recipe of a pair with other types, keys or nodes 0.001 mm apart",
                "refused by key",
                2,
            ),
        ),
        ({"bias": {"node_spacing_mm": 0.001}}, "bias: node_spacing_mm is 0.001"),
        ({"bias": 3}, "bias is 3: give an object"),
        ({"bias": {"colour": 3}}, "bias: unknown key colour"),
        ({"colour": 3}, "unknown key colour"),
        ({"gamma": [1]}, r"gamma is \[1\]"),
        ({"flip": 1}, "flip is 1"),
        ({"resolution": {"voxel_size_mm": [0.001, 1, 1]}}, "voxel_size_mm"),
        ({"motion": {"rotations_deg": [[1, 2]]}}, "rotations_deg"),
        ({"tissues": 3}, "tissues is 3"),
        ({"tissues": {"Skin": {"mean": [1], "sd": []}}}, "Skin: give as many sd as mean"),
        ({"tissues": {"Skin": {"mean": [1e9], "sd": [1]}}}, "tissues has Skin"),
    ],
)
def test_a_recipe_of_other_kinds_is_refused_by_key(change, named):
    text = json.dumps(json.loads(Recipe({"Skin": Tissue((90.0,), (5.0,))}).to_json()) | change)
    with pytest.raises(ValueError, match=named) as caught:
        Recipe.from_json(text)
    assert "\n" not in str(caught.value)
