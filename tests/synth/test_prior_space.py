# SPDX-License-Identifier: Apache-2.0
"""The prior weight: exactly agnostic at 0, exactly the prior at 1, straight in between."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import kstest

from brainseg_bids.anatomy.labels import Label, LabelTable
from brainseg_bids.contrast.measured import Component
from brainseg_bids.contrast.prior import Spread
from brainseg_bids.synth.classes import TissueSpace
from brainseg_bids.synth.prior_space import WHITE_SIGNAL, PriorSpace
from brainseg_bids.synth.prior_tissues import MeasuredNoise, between_tissues, ratio_slope
from brainseg_bids.synth.ratio import second_inversion
from brainseg_bids.synth.recipe import Noise, Recipe, Tissue
from brainseg_bids.synth.recipe_files import read_space, write_prior_space, write_space
from brainseg_bids.synth.resolution import AcquiredVoxels
from brainseg_bids.synth.space import EFFECTS, RecipeSpace
from brainseg_bids.synth.texture import correlated_noise
from brainseg_bids.synth.view import Crop
from tests.synth.priors import CSF, GREY, MEANS, SHARED, WHITE, make_prior
from tests.synth.switches import is_off

BY_CHANCE_P = 1e-3
"""Tests of laws with fixed seeds: a dozen of them pass unless something is wrong."""

SEVEN = LabelTable(
    [
        Label(0, "Unknown"),
        Label(1, WHITE, mapping=2),
        Label(2, GREY, mapping=8),
        Label(3, CSF, mapping=3),
        Label(4, "Left-Caudate", mapping=9),
        Label(5, "Left-Putamen", mapping=9),
        Label(6, "Skin", mapping=5),
    ],
    name="seven",
)
"""Few labels, so that hundreds of recipes take no time."""

PAIRED = ("Left-Caudate", "Left-Putamen")

AGNOSTIC = replace(
    RecipeSpace.packaged("agnostic"),
    tissues=(
        TissueSpace(("Unknown",), (7.5, 7.5), (2.5, 2.5)),
        *(TissueSpace((n,), (125.0, 125.0), (15.0, 15.0)) for n in (WHITE, GREY, CSF, "Skin")),
        TissueSpace(PAIRED, (125.0, 125.0), (15.0, 15.0)),
    ),
)


def recipes(space, n: int, seed: int = 0) -> list[Recipe]:
    rng = np.random.default_rng(seed)
    return [space.draw(rng) for _ in range(n)]


def means(drawn: list[Recipe], *names: str) -> np.ndarray:
    """(n_recipes, n_names)"""
    return np.array([[recipe.tissues[name].mean[0] for name in names] for recipe in drawn])


def weighted(kappa: float, **options) -> PriorSpace:
    """For pairs of 3 mm, so that nothing is lost to their blur."""
    return PriorSpace(AGNOSTIC, make_prior(SEVEN, **options), kappa).at(3.0)


@pytest.mark.parametrize("name", ["agnostic", "agnostic7t", "t1w", "mp2rage7t"])
def test_at_0_every_recipe_is_the_agnostic_one(name):
    agnostic = RecipeSpace.packaged(name)
    space = PriorSpace(agnostic, make_prior(kinds={"rician": 0.5, "ratio": 0.5}), 0.0)
    for seed in range(20):
        ours, theirs = (s.draw(np.random.default_rng(seed)) for s in (space, agnostic))
        tissues = {label: theirs.tissues[label] for label in ours.tissues}
        assert ours == replace(theirs, space=space.name, tissues=tissues)


def test_agnostic_means_are_uniform_and_alike_only_within_a_group():
    drawn = means(recipes(weighted(0.0), 800), WHITE, GREY, *PAIRED)
    for column in drawn.T:
        assert kstest(column, "uniform", args=(0, 250)).pvalue > BY_CHANCE_P
    correlation = np.corrcoef(drawn.T)
    assert (drawn[:, 2] == drawn[:, 3]).all()
    assert np.abs(correlation[:2, 2]).max() < 0.15
    assert abs(correlation[0, 1]) < 0.15


def test_at_1_means_spreads_and_their_correlation_are_the_priors():
    space = weighted(1.0, sigma=1e-6)
    drawn = recipes(space, 600)
    names = (WHITE, GREY, CSF, "Skin", *PAIRED)
    found = means(drawn, *names)
    for column, name in zip(found.T, names, strict=True):
        prior = space.prior[name]
        assert kstest(column, "norm", args=(prior.mean, prior.mean_sd)).pvalue > BY_CHANCE_P
    correlation = np.corrcoef(found.T)[np.triu_indices(len(names), 1)]
    assert np.abs(correlation - SHARED).max() < 0.03
    log_sd = np.log([recipe.tissues[WHITE].sd[0] / 8 for recipe in drawn])
    assert kstest(log_sd, "norm", args=(0, 0.2)).pvalue > BY_CHANCE_P


def test_at_1_field_noise_and_resolution_are_the_priors_and_gamma_is_none():
    drawn = recipes(weighted(1.0, sigma=4.0), 300)
    measured = {
        "bias": ([r.bias.log_sd for r in drawn], Spread(0.15, 0.3)),
        "smoothness": ([r.bias.node_spacing_mm for r in drawn], Spread(70.0, 0.2)),
        "noise": ([r.noise.sd for r in drawn], Spread(4.0, 0.2)),
        "resolution": ([r.resolution.thickness_mm[2] for r in drawn], Spread(1.4, 0.05)),
    }
    for name, (values, law) in measured.items():
        z = np.log(np.array(values) / law.median) / law.log_sd
        assert kstest(z, "norm").pvalue > BY_CHANCE_P, name
    assert {r.resolution.voxel_size_mm for r in drawn} == {(1.0, 1.0, 1.2)}
    assert {r.gamma for r in drawn} == {1.0}
    assert {r.texture.grain_frac for r in drawn} == {0.2}


def test_white_matter_stays_above_grey_at_1_but_not_at_0():
    share = {}
    for kappa in (0.0, 1.0):
        white, grey = means(recipes(weighted(kappa), 300), WHITE, GREY).T
        share[kappa] = (white > grey).mean()
    assert share[1.0] == 1.0
    assert 0.4 < share[0.0] < 0.6


def test_images_come_nearer_to_the_prior_with_every_rise_of_the_weight():
    def features(kappa: float, seed: int) -> np.ndarray:
        drawn = recipes(weighted(kappa, sigma=1e-6), 250, seed)
        rest = [[100 * r.bias.log_sd, 50 * np.log(r.gamma), r.tissues[WHITE].sd[0]] for r in drawn]
        return np.hstack([means(drawn, WHITE, GREY, CSF, "Skin"), rest])

    def energy_distance(a: np.ndarray, b: np.ndarray) -> float:
        return 2 * cdist(a, b).mean() - cdist(a, a).mean() - cdist(b, b).mean()

    target = features(1.0, 99)
    distances = [energy_distance(features(k, 1), target) for k in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert (np.diff(distances) < 0).all()
    assert distances[-1] < 0.02 * distances[0]


def test_between_the_ends_the_law_is_moved_not_mixed():
    # The quantiles of one label at 0.5 are the means of those at both ends.
    ends = [np.sort(means(recipes(weighted(k, sigma=1e-6), 500), GREY)[:, 0]) for k in (0.0, 1.0)]
    between = np.sort(means(recipes(weighted(0.5, sigma=1e-6), 500), GREY)[:, 0])
    assert np.abs(between - (ends[0] + ends[1]) / 2)[25:-25].max() < 10


def test_labels_that_always_go_together_need_no_definite_matrix():
    prior = replace(make_prior(SEVEN, sigma=1e-6), correlation=np.ones((7, 7)))
    drawn = means(recipes(PriorSpace(AGNOSTIC, prior, 1.0), 50), WHITE, GREY)
    z = (drawn - [180, 120]) / [0.08 * 180, 0.08 * 120]
    assert np.abs(z[:, 0] - z[:, 1]).max() < 1e-2


@pytest.mark.parametrize("kappa", [-0.1, 1.01, float("nan")])
def test_a_dial_beyond_its_ends_is_refused(kappa, tmp_path):
    with pytest.raises(ValueError, match=r"kappa is"):
        weighted(kappa)
    with pytest.raises(ValueError, match=r"kappa is"):
        write_prior_space(tmp_path / "d.toml", "prior.json", kappa)


def test_measured_spread_is_painted_spread_and_noise_together():
    # 8 measured = 6.24 painted and 5 of noise
    space = PriorSpace(AGNOSTIC, fixed_prior(5.0), 1.0).at(3.0)
    tissue = recipes(space, 1)[0].tissues[GREY]
    assert tissue.sd[0] == pytest.approx(np.sqrt(8**2 - 5**2), rel=1e-3)
    # The tissue's own spread, where the prior knows it, counts instead.
    known = fixed_prior(5.0)
    known.labels[GREY] = replace(known[GREY], tissue_sd=Spread(3.0, 0.0))
    tissue = recipes(replace(space, prior=known), 1)[0].tissues[GREY]
    assert tissue.sd[0] == pytest.approx(3.0)


def fixed_prior(sigma: float, **options):
    """A prior of images that are all alike."""
    prior = make_prior(SEVEN, sigma=sigma, **options)
    labels = {
        name: replace(label, mean_sd=0.0, sd=Spread(label.sd.median, 0.0))
        for name, label in prior.labels.items()
    }
    return replace(prior, labels=labels, noise=replace(prior.noise, sigma=Spread(sigma, 0.0)))


def test_air_that_was_all_noise_is_painted_dark_and_gets_its_brightness_back(rng):
    sigma = 6.0
    measured = np.hypot(*rng.normal(0, sigma, (2, 20_000)))
    noise = MeasuredNoise(sigma)
    mean, sd = noise.removed(measured.mean(), measured.std(), noise.variance(measured.mean()))
    real, imaginary = rng.normal(0, sigma, (2, 20_000))
    again = np.hypot(real + mean, imaginary)
    assert mean < 0.2 * sigma
    assert sd < 0.1 * sigma
    assert again.mean() == pytest.approx(measured.mean(), rel=0.02)


def test_a_prior_without_background_noise_paints_all_it_measured():
    space = PriorSpace(AGNOSTIC, fixed_prior(5.0, kinds={"none": 1.0}), 1.0).at(3.0)
    recipe = recipes(space, 1)[0]
    assert recipe.noise == Noise()
    assert recipe.tissues[GREY].sd[0] == pytest.approx(8.0)


@pytest.mark.parametrize("voxel_size_mm", [0.7, 1.0, 2.0])
def test_what_blur_takes_of_a_spread_is_painted_on_top(voxel_size_mm):
    prior = fixed_prior(1e-6)
    prior = replace(prior, fwhm_mm=(Spread(1.6, 0.0),) * 3, voxel_size_mm=(1.0, 1.0, 1.0))
    prior.labels.update({n: replace(p, grain_frac=0.0) for n, p in prior.labels.items()})
    recipe = recipes(PriorSpace(AGNOSTIC, prior, 1.0).at(voxel_size_mm), 1)[0]
    crop = Crop((40, 40, 40), voxel_size_mm)
    painted = 100 + recipe.tissues[GREY].sd[0] * correlated_noise(recipe.texture, crop, 5)(0, 40)
    voxels = AcquiredVoxels.of(crop.shape, recipe.resolution, voxel_size_mm=voxel_size_mm)
    assert float(voxels.sample(painted).std()) == pytest.approx(8.0, rel=0.03)


def test_a_prior_of_ratios_draws_ratios_as_often_as_the_dial_says():
    prior = replace(make_prior(SEVEN, kinds={"ratio": 1.0}, sigma=0.02), name="UNIT1")
    shares = {}
    for kappa in (0.0, 0.5, 1.0):
        drawn = recipes(PriorSpace(AGNOSTIC, prior, kappa), 300)
        assert all(recipe.noise == Noise() for recipe in drawn if recipe.ratio.noise_frac > 0)
        shares[kappa] = np.mean([recipe.ratio.noise_frac > 0 for recipe in drawn])
    assert shares[0.0] == 0
    assert shares[0.5] == pytest.approx(0.5, abs=0.09)
    assert shares[1.0] == 1
    expected = 0.02 * WHITE_SIGNAL / ratio_slope(MEANS[WHITE] / 255 - 0.5)
    found = np.median([recipe.ratio.noise_frac for recipe in drawn])
    assert found == pytest.approx(expected, rel=0.05)


def test_noise_of_a_ratio_grows_by_its_slope(rng):
    uni, noise_frac = 0.2, 0.01
    first = (1 - np.sqrt(1 - 4 * uni**2)) / (2 * uni)
    one, two = (
        value + noise_frac * (rng.normal(size=50_000) + 1j * rng.normal(size=50_000))
        for value in (first, 1.0)
    )
    ratio = (one.conj() * two).real / (abs(one) ** 2 + abs(two) ** 2)
    assert ratio.std() == pytest.approx(noise_frac * ratio_slope(uni), rel=0.03)
    table = LabelTable.packaged("fullhead")
    rank = [label.name for label in table].index(WHITE)
    assert float(second_inversion(table)[rank]) == pytest.approx(WHITE_SIGNAL, abs=0.05)


def test_the_transmit_field_fades_as_the_measured_field_takes_over():
    agnostic = AGNOSTIC.changed({"transmit": {"p": 1.0}})
    for kappa, share in ((0.0, 1.0), (0.5, 0.5), (1.0, 0.0)):
        drawn = recipes(PriorSpace(agnostic, make_prior(SEVEN), kappa), 200)
        found = np.mean([recipe.transmit.sequence != "none" for recipe in drawn])
        assert found == pytest.approx(share, abs=0.1)


def test_geometry_and_view_are_the_agnostic_ones_whatever_the_dial_says():
    agnostic = AGNOSTIC.changed({"field_of_view": {"p": 0.5}, "cut_p": 0.5, "motion": {"p": 0.5}})
    spaces = [PriorSpace(agnostic, make_prior(SEVEN), kappa) for kappa in (0.0, 0.3, 1.0)]
    for seed in range(20):
        drawn = [space.draw(np.random.default_rng(seed)) for space in spaces]
        for part in ("flip", "deformation", "view", "motion", "paint_seed"):
            assert len({repr(getattr(recipe, part)) for recipe in drawn}) == 1


def test_a_prior_of_skull_stripped_images_draws_them_stripped():
    space = weighted(1.0, metadata={"SkullStripped": True})
    assert all(recipe.view.kept != "head" for recipe in recipes(space, 20))
    assert all(recipe.view.kept == "head" for recipe in recipes(space.without("view"), 20))


@pytest.mark.parametrize("effect", EFFECTS)
def test_every_effect_can_be_switched_off_and_leaves_the_others_alone(effect):
    agnostic = RecipeSpace.packaged("agnostic7t")
    agnostic = replace(agnostic, tissues=AGNOSTIC.tissues)
    two = (Component(0.5, -1.0, 0.5), Component(0.5, 1.0, 0.5))
    prior = make_prior(SEVEN, components={"Skin": two}, kinds={"rician": 0.6, "ratio": 0.4})
    with_all = PriorSpace(agnostic, prior, 0.5)
    without = with_all.without(effect)
    on = False
    for seed in range(40):
        full, bare = (s.draw(np.random.default_rng(seed)) for s in (with_all, without))
        on = on or not is_off(effect, full)
        assert is_off(effect, bare)
        for other in {"flip", "deformation", "bias", "motion", "gibbs", "view"} - {effect}:
            assert getattr(full, other) == getattr(bare, other)
    assert on
    with pytest.raises(ValueError, match="'glow'; known: flip"):
        with_all.without("glow")


def test_components_move_to_components_and_keep_their_shares():
    fitted = Tissue((40.0, 160.0), (5.0, 9.0), (0.25, 0.75))
    agnostic = Tissue((120.0, 60.0), (10.0, 10.0))  # bright first, half each
    between = between_tissues(agnostic, fitted, 0.5)
    assert sum(between.weight) == pytest.approx(1)
    mean = np.dot(between.mean, between.weight)
    assert mean == pytest.approx((90 + 130) / 2)
    # In the agnostic order: what was bright first stays in front.
    assert between.mean == (140.0, 50.0, 110.0)
    assert between_tissues(agnostic, fitted, 0.0) == agnostic
    assert between_tissues(agnostic, fitted, 1.0) == fitted


def test_components_of_the_prior_are_drawn_at_1():
    two = (Component(0.3, -1.0, 0.5), Component(0.7, 3 / 7, 0.8))
    tissue = recipes(weighted(1.0, sigma=1e-6, components={"Skin": two}), 1)[0].tissues["Skin"]
    assert sorted(tissue.weight) == pytest.approx([0.3, 0.7])
    dark, bright = sorted(zip(tissue.mean, tissue.sd, strict=True))
    assert bright[1] / dark[1] == pytest.approx(1.6)
    assert dark[0] < bright[0]


def test_recipes_are_the_same_on_every_run_and_json_keeps_them():
    agnostic = RecipeSpace.packaged("agnostic7t")
    for kappa in (0.0, 0.4, 1.0):
        first, again = (PriorSpace(agnostic, make_prior(), kappa) for _ in range(2))
        for one, other in zip(recipes(first, 5, 3), recipes(again, 5, 3), strict=True):
            assert one == other
            assert Recipe.from_json(one.to_json()) == one
    # Numbers that may not drift from one version to the next unless `space.DRAWING` is raised.
    one = recipes(weighted(0.5), 1, seed=11)[0]
    assert one.bias.log_sd == pytest.approx(0.368386, abs=1e-6)
    assert one.tissues[WHITE].mean[0] == pytest.approx(112.0970, abs=1e-4)


def test_the_digest_changes_with_every_number_and_not_with_the_name():
    space = weighted(0.5)
    assert space.digest == replace(space, name="other").digest
    prior = replace(space.prior, bias_log_sd=Spread(0.16, 0.3))
    others = [
        replace(space, prior_weight=0.51),
        replace(space, agnostic=replace(AGNOSTIC, gamma_log_sd=0.4)),
        replace(space, prior=prior),
        space.without("gibbs"),
        space.at(0.7),
    ]
    assert len({space.digest for space in (space, *others)}) == 6


def test_a_prior_for_another_table_or_without_a_label_is_refused_by_name():
    table = LabelTable.packaged("fullhead")
    with pytest.raises(ValueError, match=r"another label table.*seven"):
        PriorSpace(RecipeSpace.packaged("agnostic"), make_prior(SEVEN), 0.5).covers(table)
    prior = make_prior(SEVEN)
    del prior.labels["Skin"]
    correlation = prior.correlation[:6, :6]
    with pytest.raises(ValueError, match="Skin"):
        PriorSpace(AGNOSTIC, replace(prior, correlation=correlation), 0.5).covers(SEVEN)
    with pytest.raises(ValueError, match="6 x 6"):
        PriorSpace(AGNOSTIC, prior, 0.5)
    bare = replace(AGNOSTIC, tissues=AGNOSTIC.tissues[:-1])
    with pytest.raises(ValueError, match="Left-Caudate, Left-Putamen"):
        PriorSpace(bare, make_prior(SEVEN), 0.5)


def test_a_prior_space_is_written_read_and_changed_by_further_keys(tmp_path):
    (tmp_path / "priors").mkdir()
    (tmp_path / "spaces").mkdir()
    path = make_prior().write(tmp_path / "priors")
    written = write_prior_space(tmp_path / "spaces" / "half.toml", path, 0.5)
    space = read_space(str(written))
    assert (space.name, space.prior_weight, space.prior.name) == ("half", 0.5, "T1w")
    assert space.agnostic.digest == RecipeSpace.packaged("agnostic").digest
    again = PriorSpace(RecipeSpace.packaged("agnostic"), make_prior(), 0.5)
    assert space.digest == again.digest
    space.covers(LabelTable.packaged("fullhead"))
    written.write_text(written.read_text() + "flip_p = 0.0\n[gibbs]\np = 1.0\n")
    changed = read_space(str(written)).agnostic
    assert (changed.flip_p, changed.gibbs.p) == (0.0, 1.0)
    written.write_text(written.read_text() + "q = 1.0\n")
    with pytest.raises(ValueError, match=r"half\.toml: 'gibbs\.q'"):
        read_space(str(written))


@pytest.mark.parametrize("name", ["agnostic", "agnostic7t", "t1w", "mp2rage7t"])
def test_a_space_that_is_written_depends_on_no_other_file(tmp_path, name):
    space = RecipeSpace.packaged(name)
    path = write_space(tmp_path / "own.toml", space)
    assert "base =" not in path.read_text()
    assert RecipeSpace.read(path).digest == space.digest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('prior = "gone.json"', "the prior .*gone.json is not there"),
        ('prior = "p.json"\nkappa = "half"', "kappa is 'half'"),
        ('prior = "p.json"\nkappa = 2', "bad.toml: kappa is 2"),
    ],
)
def test_a_dial_file_that_cannot_be_used_says_why(tmp_path, text, message):
    path = make_prior().write(tmp_path)
    path.rename(tmp_path / "p.json")
    path.with_suffix(".tsv").rename(tmp_path / "p.tsv")
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_space(str(tmp_path / "bad.toml"))
    assert "\n" not in str(caught.value)
    assert json.loads((tmp_path / "p.json").read_text())


def masked_prior(share: float, **options):
    prior = make_prior(SEVEN, **options)
    return replace(prior, noise=replace(prior.noise, masked=share, masked_level=51.0))


def test_air_is_masked_as_often_as_the_dial_and_the_prior_say():
    shares = {}
    for kappa in (0.0, 0.5, 1.0):
        space = PriorSpace(AGNOSTIC, masked_prior(0.6), kappa)
        drawn = recipes(space, 300)
        shares[kappa] = np.mean([recipe.view.air_masked for recipe in drawn])
        assert {recipe.view.air_level for recipe in drawn} == {0.0}
        assert not any(recipe.view.air_masked for recipe in recipes(space.without("view"), 20))
    assert shares[0.0] == 0
    assert shares[0.5] == pytest.approx(0.3, abs=0.08)
    assert shares[1.0] == pytest.approx(0.6, abs=0.08)


def test_the_level_of_a_ratios_masked_air_is_in_painted_units():
    prior = masked_prior(1.0, kinds={"ratio": 1.0}, sigma=0.02)
    (recipe,) = recipes(PriorSpace(AGNOSTIC, prior, 1.0), 1)
    assert recipe.view.air_level == pytest.approx(51.0)
    agnostic = AGNOSTIC.changed({"ratio": {"p": 1.0}})
    (recipe,) = recipes(PriorSpace(agnostic, prior, 0.9), 1)
    if recipe.view.air_masked:
        span = recipe.ratio.high - recipe.ratio.low
        assert recipe.view.air_level == pytest.approx(recipe.ratio.low + 0.2 * span)
    assert Recipe.from_json(recipe.to_json()) == recipe


@pytest.mark.parametrize("said", ["true", "0.5", 1.2, -1, float("nan"), [True]])
def test_a_share_of_stripped_images_that_is_none_is_refused_by_name(said):
    with pytest.raises(ValueError, match="T1w: SkullStripped") as caught:
        weighted(0.5, metadata={"SkullStripped": said})
    assert "\n" not in str(caught.value)


def test_a_share_of_stripped_images_is_drawn_as_often():
    drawn = recipes(weighted(1.0, metadata={"SkullStripped": 0.25}), 300)
    share = np.mean([recipe.view.kept != "head" for recipe in drawn])
    assert share == pytest.approx(0.25, abs=0.08)
