# SPDX-License-Identifier: Apache-2.0
"""Pooling finds what the images have in common, and what they do not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.contrast import joint
from brainseg_bids.contrast.measured import Component, LabelStatistics, NoiseLaw
from brainseg_bids.contrast.pool import air, pool
from brainseg_bids.contrast.weighted import weighted_deviation, weighted_median
from tests.contrast.made_up import T1, TABLE, both_sides, cohort, image_of, one_each

WHITE, GREY = "Left-Cerebral-White-Matter", "Left-Cerebral-Cortex"


def pooled(statistics, subjects=None, **given):
    subjects = one_each(statistics) if subjects is None else subjects
    return pool(statistics, name="T1w", table=TABLE, subjects=subjects, **given)


def two_sided_correlation(names, rng) -> np.ndarray:
    """Half of the brain goes up where the other half goes down, so no gain can be mistaken."""
    brain = np.array([TABLE[name].is_brain for name in names])
    sign = np.where(np.arange(len(names)) // 2 % 2 == 0, 1.0, -1.0)
    loading = sign * rng.uniform(0.5, 0.95, len(names)) * np.where(brain, 1.0, 0.7)
    matrix = np.outer(loading, loading)
    np.fill_diagonal(matrix, 1.0)
    return matrix


def part(prior, names) -> np.ndarray:
    order = list(prior.labels)
    at = [order.index(name) for name in names]
    return prior.correlation[np.ix_(at, at)]


def draws(prior, count=4000) -> dict[str, np.ndarray]:
    mean = [label.mean for label in prior.labels.values()]
    sd = np.array([label.mean_sd for label in prior.labels.values()])
    covariance = prior.correlation * np.outer(sd, sd)
    drawn = np.random.default_rng(0).multivariate_normal(mean, covariance, count)
    return dict(zip(prior.labels, drawn.T, strict=True))


def test_means_spreads_and_correlations_of_many_heads_with_any_gain_are_found(rng):
    names = list(both_sides())
    truth = two_sided_correlation(names, rng)
    statistics, _, _ = cohort(300, rng, sd_frac=0.08, correlation=truth)
    prior = pooled(statistics)
    ratios = np.array([prior[name].mean / both_sides()[name] for name in names])
    # Only ratios matter; a standard error is 0.08 / sqrt(300) = 0.0046.
    assert np.abs(ratios / np.median(ratios) - 1).max() < 4 * 0.0046
    spreads = [prior[name].mean_sd / prior[name].mean for name in names[1:]]
    assert np.median(spreads) == pytest.approx(0.08, rel=0.05)
    upper = np.triu_indices(len(names), 1)
    assert np.corrcoef(part(prior, names)[upper], truth[upper])[0, 1] > 0.95
    assert prior.n_images == prior.n_subjects == 300
    assert not prior.warnings


def test_the_99_5th_percentile_of_a_usual_head_is_255(rng):
    heads = {f"sub-{i}": image_of(both_sides(), gain=g) for i, g in enumerate((0.1, 3.0, 900.0))}
    prior = pooled(heads)
    assert prior[WHITE].mean == pytest.approx(T1["Cerebral-White-Matter"])
    assert prior.head_low == pytest.approx(2.0)
    brighter = {name: image_of(both_sides(), gain=2.0, high=510.0) for name in heads}
    assert pooled(brighter)[WHITE].mean == pytest.approx(80.0)


def test_one_subject_is_enough_and_gives_the_widest_spread(rng):
    one = pooled({"sub-1_T1w": image_of(both_sides(), gain=7.0)})
    assert one[WHITE].mean == pytest.approx(160.0)
    assert one[WHITE].mean_sd == pytest.approx(np.hypot(0.12 * 160, 5.0))
    assert np.linalg.eigvalsh(one.correlation)[0] > 0
    alike = {f"sub-{i}_T1w": image_of(both_sides()) for i in range(4)}
    assert pooled(alike)[WHITE].mean_sd < 0.5 * one[WHITE].mean_sd
    drawn = draws(one)
    assert (drawn[WHITE] > drawn[GREY]).mean() > 0.99


def test_several_images_of_a_subject_count_as_one_subject(rng):
    statistics, _, _ = cohort(4, rng)
    twice = statistics | {f"{image}_again": found for image, found in statistics.items()}
    subjects = {image: image.split("_")[0] for image in twice}
    once, both = pooled(statistics), pooled(twice, subjects)
    assert both.n_images == 8
    assert both.n_subjects == 4
    assert both[WHITE].mean_sd == pytest.approx(once[WHITE].mean_sd)
    np.testing.assert_allclose(both.correlation, once.correlation, atol=1e-9)
    as_if_eight = pooled(twice, {image: image for image in twice})
    assert as_if_eight[WHITE].mean_sd != pytest.approx(once[WHITE].mean_sd, rel=0.01)


def test_a_subject_with_many_images_does_not_outvote_the_others():
    bright = both_sides() | {"Skin": 200.0}
    statistics = {f"sub-9_run-{i}_T1w": image_of(bright) for i in range(9)}
    statistics |= {f"sub-{i}_T1w": image_of(both_sides()) for i in range(4)}
    prior = pooled(statistics, {image: image.split("_")[0] for image in statistics})
    assert abs(prior["Skin"].mean - T1["Skin"]) < 0.3 * (200 - T1["Skin"])


def test_white_stays_above_grey_where_it_always_is(rng):
    means = both_sides() | {"Left-Pallidum": 140.0, "Right-Pallidum": 140.0}
    names = list(means)
    # Everything in the head goes up and down together, so small differences are reliable.
    together = np.full((len(names), len(names)), 0.97)
    np.fill_diagonal(together, 1.0)
    statistics, locations, _ = cohort(40, rng, correlation=together, means=means)
    at = [names.index(name) for name in (WHITE, "Left-Pallidum", "Left-Putamen", GREY)]
    assert np.all(np.diff(locations[:, at], axis=1) < 0)
    drawn = draws(pooled(statistics))
    for high, low in ((WHITE, GREY), (WHITE, "Left-Pallidum"), ("Left-Pallidum", "Left-Putamen")):
        assert (drawn[high] > drawn[low]).mean() > 0.99


def test_a_label_that_some_images_lack_shifts_no_other(rng):
    statistics, _, _ = cohort(12, rng)
    whole = pooled(statistics)

    def without(found):
        return replace(found, labels={k: v for k, v in found.labels.items() if k != "Skin"})

    fewer = {i: without(f) if n % 3 else f for n, (i, f) in enumerate(statistics.items())}
    prior = pooled(fewer)
    assert prior["Skin"].images == 4
    assert prior["Skin"].source == "measured"
    for name in both_sides():
        if name != "Skin":
            assert prior[name].mean == pytest.approx(whole[name].mean, rel=1e-3)
            assert prior[name].mean_sd == pytest.approx(whole[name].mean_sd, rel=0.05)
    assert np.linalg.eigvalsh(prior.correlation)[0] > 0


def test_gaps_are_filled_by_what_the_other_labels_say(rng):
    z = rng.standard_normal((200, 1)) + 0.3 * rng.standard_normal((200, 3))
    truth = np.corrcoef(z.T)
    z[rng.random((200, 3)) < 0.4] = np.nan
    z = z[np.isfinite(z).any(axis=1)]
    labels = [TABLE[name] for name in ("Skin", "Artery", "Eyes")]
    law = joint.fit(
        100 + 10 * z, np.ones(len(z)), labels=labels, target=joint.typical_correlation(labels)
    )
    assert np.abs(law.correlation - truth).max() < 0.06
    assert np.abs(law.mean - 100).max() < 3


def test_labels_that_no_image_has_are_imputed_from_the_most_alike():
    found = {k: v for k, v in both_sides().items() if not k.startswith("Right-Putamen")}
    prior = pooled({"sub-1_T1w": image_of(found)})
    assert list(prior.labels) == [label.name for label in TABLE]
    assert prior["Right-Putamen"].source == "imputed from Left-Putamen"
    assert prior["Right-Putamen"].mean_sd == prior["Left-Putamen"].mean_sd
    assert prior["Right-Putamen"].index == TABLE["Right-Putamen"].index
    assert prior["CC_Central"].source == "imputed from Left-Cerebral-White-Matter"
    assert prior["Fluid-Inside-Eyes"].source == "imputed from Eyes"
    assert prior["Fluid-Inside-Eyes"].mean_sd > prior["Eyes"].mean_sd
    assert prior["Air-Internal"].source == "imputed from Unknown"
    assert prior["Mucosa"].images == 0
    assert prior["Mucosa"].source in ("imputed from Skin", "imputed from Other-Tissues")
    order = list(prior.labels)
    pair = prior.correlation[order.index("Right-Putamen"), order.index("Left-Putamen")]
    assert pair == pytest.approx(0.95)
    assert np.linalg.eigvalsh(prior.correlation)[0] > 0


@pytest.mark.parametrize(
    ("receiver", "measured", "donor"),
    [
        ("Left-choroid-plexus-lateral-ventricle", "Left-choroid-plexus", "Left-choroid-plexus"),
        ("Optic-Nerve", "Right-Cerebral-White-Matter", "Left-Cerebral-White-Matter"),
        ("Spinal-Cord", "Brain-Stem", "Brain-Stem"),
        ("Vein", "Mucosa", "Other-Tissues"),
        ("Extra-Cerebral-CSF", "Left-Inf-Lat-Vent", "CSF"),
        ("Skull", "Artery", "Bone-Cortical"),
    ],
)
def test_the_donor_is_the_nearest_tissue_and_not_just_any(receiver, measured, donor):
    prior = pooled({"a": image_of(both_sides() | {measured: 50.0})})
    assert prior[receiver].source == f"imputed from {donor}"


def test_what_an_image_imputed_itself_is_not_taken_for_measured():
    one = image_of(both_sides())
    skin = replace(one["Skin"], location=1.0, source="imputed from Other-Tissues")
    prior = pooled({"a": replace(one, labels=one.labels | {"Skin": skin}), "b": one, "c": one})
    assert prior["Skin"].images == 2
    assert prior["Skin"].mean == pytest.approx(T1["Skin"])


def test_air_that_no_map_has_follows_the_noise_law():
    found = {k: v for k, v in both_sides().items() if k != "Unknown"}
    prior = pooled({"a": image_of(found, gain=5.0, noise=NoiseLaw("rician", 4.0))})
    assert prior["Unknown"].source == "noise law"
    assert prior["Unknown"].mean == pytest.approx(4.0 * np.sqrt(np.pi / 2))
    assert prior["Unknown"].sd.median == pytest.approx(4.0 * np.sqrt(2 - np.pi / 2))
    clean = pooled({"a": image_of(found, noise=NoiseLaw("none", 0.0))})
    assert clean["Unknown"].mean == 0
    assert clean["Unknown"].mean_sd < 1e-3


@pytest.mark.parametrize(("kind", "channels"), [("rician", 1), ("chi", 6)])
def test_the_law_of_air_is_that_of_simulated_coils(kind, channels):
    rng = np.random.default_rng(1)
    parts = rng.normal(0, 3.0, (2 * channels, 200_000))
    seen = np.sqrt((parts**2).sum(axis=0))
    mean, sd = air(NoiseLaw(kind, 3.0, channels=channels))
    assert mean == pytest.approx(seen.mean(), rel=0.01)
    assert sd == pytest.approx(seen.std(), rel=0.01)


def test_the_law_of_air_in_ratio_images_is_that_of_two_noisy_inversions():
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(2, 200_000)) + 1j * rng.normal(size=(2, 200_000))
    ratio = (first.conj() * second).real / (abs(first) ** 2 + abs(second) ** 2)
    mean, sd = air(NoiseLaw("ratio", 0.01))
    assert mean == pytest.approx(ratio.mean(), abs=0.005)
    assert sd == pytest.approx(ratio.std(), rel=0.01)
    assert np.histogram(ratio, 5, (-0.5, 0.5))[0] == pytest.approx(40_000, rel=0.03)


@pytest.mark.parametrize(("low", "high"), [(-0.5, 0.5), (0.0, 4095.0), (0.0, 1.0)])
def test_ratio_images_have_fixed_units_however_they_are_stored(low, high):
    span = high - low
    uni = {name: low + (0.05 + 0.9 * at / 200) * span for name, at in both_sides().items()}
    found = image_of(uni, noise=NoiseLaw("ratio", 0.02))
    found = replace(
        found,
        head_low=low + 0.03 * span,
        head_high=low + 0.96 * span,
        edges=tuple(np.linspace(low, high, 5)),
    )
    prior = pooled({"a": found, "b": found})
    assert prior.is_ratio
    assert prior[WHITE].mean == pytest.approx(255 * (0.05 + 0.9 * 160 / 200))
    assert prior.noise.sigma.median == pytest.approx(0.02)
    assert prior.head_low == pytest.approx(0.03 * 255)


def test_ratio_images_have_no_factor_of_their_own():
    def uni(shift):
        values = {name: -0.5 + at / 255 + shift for name, at in both_sides().items()}
        image = image_of(values, noise=NoiseLaw("ratio", 0.02))
        return replace(image, head_low=-0.5, head_high=0.45, edges=(-0.5, 0.5))

    prior = pooled({"a": uni(0.0), "b": uni(0.0), "c": uni(0.04)})
    assert prior[WHITE].mean == pytest.approx(160 + 255 * 0.04 / 3, abs=1.5)


def test_an_image_of_the_other_kind_is_left_out_and_named():
    magnitude = image_of(both_sides())
    ratio = image_of(both_sides(), noise=NoiseLaw("ratio", 0.02))
    prior = pooled({"a": magnitude, "b": magnitude, "odd": ratio})
    assert prior.n_images == 2
    assert any(warning.startswith("odd was left out") for warning in prior.warnings)
    with pytest.raises(ValueError, match="two contrasts"):
        pooled({"a": magnitude, "odd": ratio})


def test_an_image_whose_segmentation_failed_is_named_and_hardly_counts(rng):
    statistics, _, names = cohort(10, rng)
    shuffled = dict(zip(names, rng.permutation(list(both_sides().values())), strict=True))
    failed = pooled(statistics | {"sub-bad_T1w": image_of(shuffled)})
    clean = pooled(statistics)
    assert [warning.split(":")[0] for warning in failed.warnings] == ["sub-bad_T1w"]
    for name in names:
        assert failed[name].mean == pytest.approx(clean[name].mean, rel=0.06, abs=1.5)
    wide = np.median([failed[name].mean_sd / clean[name].mean_sd for name in names])
    assert wide < 2


def test_one_bad_label_does_not_condemn_its_image(rng):
    statistics, _, _ = cohort(20, rng)
    image, found = next(iter(statistics.items()))
    skin = replace(found["Skin"], location=5 * found["Skin"].location)
    prior = pooled(statistics | {image: replace(found, labels=found.labels | {"Skin": skin})})
    assert not prior.warnings
    assert prior["Skin"].mean == pytest.approx(T1["Skin"], rel=0.08)


def test_the_order_of_the_images_does_not_matter(rng):
    statistics, _, _ = cohort(7, rng)
    turned = dict(reversed(statistics.items()))
    assert pooled(turned).digest == pooled(statistics).digest


def test_spreads_within_an_image_are_lognormal_and_tissue_has_no_noise(rng):
    scales = np.exp(rng.normal(np.log(12.0), 0.3, 200))
    statistics = {}
    for i, scale in enumerate(scales):
        found = image_of(both_sides(), noise=NoiseLaw("rician", 6.0))
        white = replace(found[WHITE], scale=float(np.hypot(scale, 6.0)))
        statistics[f"sub-{i}"] = replace(found, labels=found.labels | {WHITE: white})
    prior = pooled(statistics)
    assert prior[WHITE].sd.median == pytest.approx(np.median(np.hypot(scales, 6.0)))
    assert prior[WHITE].tissue_sd.median == pytest.approx(np.median(scales), rel=0.01)
    assert prior[WHITE].tissue_sd.log_sd == pytest.approx(0.3, rel=0.15)
    assert prior["Unknown"].tissue_sd is None


def test_the_usual_mixture_is_that_of_most_images_in_units_of_the_scale():
    def image(gain, parts):
        found = image_of(both_sides(), gain=gain)
        mixture = tuple(Component(w, gain * m, gain * s) for w, m, s in parts)
        skin = replace(found["Skin"], location=gain * 100, scale=gain * 40, components=mixture)
        return replace(found, labels=found.labels | {"Skin": skin})

    two = [(0.3, 160.0, 20.0), (0.7, 80.0, 10.0)]
    prior = pooled({"a": image(1, two), "b": image(9, two), "c": image(2, [(1, 100.0, 40.0)])})
    assert prior["Skin"].components == (Component(0.7, -0.5, 0.25), Component(0.3, 1.5, 0.5))
    assert prior[WHITE].components == (Component(1.0, 0.0, 1.0),)


def test_noise_bias_and_point_spread_are_pooled_and_never_without_spread():
    prior = pooled({f"sub-{i}": image_of(both_sides(), gain=1 + i) for i in range(40)})
    assert prior.noise.kinds == {"rician": pytest.approx(1.0)}
    assert prior.noise.sigma.median == pytest.approx(3.0)
    assert prior.bias_log_sd.median == pytest.approx(0.2)
    assert [axis.median for axis in prior.fwhm_mm] == pytest.approx([1.2, 1.1, 1.0])
    spreads = [prior.noise.sigma, prior.bias_log_sd, prior.bias_smoothness_mm, *prior.fwhm_mm]
    assert all(0.05 <= spread.log_sd <= 0.2 for spread in spreads)


def test_noise_that_no_image_tells_is_assumed_and_said():
    prior = pooled({"a": image_of(both_sides(), noise=NoiseLaw("none", 0.0))})
    assert prior.noise.sigma.median > 0
    assert any("noise" in warning for warning in prior.warnings)


def test_a_stripped_brain_is_pooled_like_a_head():
    brain = {name: at for name, at in both_sides().items() if TABLE[name].is_brain}
    prior = pooled({"a": image_of(brain), "b": image_of(brain, gain=4.0)})
    assert prior["Skin"].images == 0
    assert prior["Skin"].source.startswith("imputed from ")
    assert np.linalg.eigvalsh(prior.correlation)[0] > 0


def test_a_table_of_seven_tissues_is_pooled_too():
    table = LabelTable.packaged("tissue")
    found = image_of({"White Matter": 160.0, "Cortical Gray Matter": 90.0})
    prior = pool({"a": replace(found, table="tissue")}, name="x", table=table, subjects={"a": "1"})
    prior.check_table(table)
    assert prior["Brainstem"].source == "imputed from White Matter"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"table": "tissue"}, "another label table"),
        ({"labels": {"Nose": LabelStatistics(1, 1, 1.0, 1.0, 1.0, 1.0)}}, "Nose"),
        ({"labels": {}}, "no label was measured"),
    ],
)
def test_statistics_that_do_not_fit_are_refused_in_one_line(change, message):
    found = image_of(both_sides())
    with pytest.raises(ValueError, match=message) as caught:
        pooled({"sub-1_T1w": replace(found, **change)})
    assert str(caught.value).startswith("sub-1_T1w: ")
    assert "\n" not in str(caught.value)


@pytest.mark.input(
    "results",
    "priors of thick slices along different axes, or of other voxels that differ 1.5-fold",
    "pooled; a warning in JSON, log and page names two of them",
    0,
)
def test_images_of_unlike_voxels_are_told():
    one = image_of(both_sides())
    axial, sagittal, finer = (
        replace(one, voxel_size_mm=size) for size in ((0.5, 0.5, 5), (5, 0.5, 0.5), (0.4, 0.5, 5))
    )
    (told,) = [w for w in pooled({"a": axial, "s": sagittal}).warnings if "unlike voxels" in w]
    assert "0.5 x 0.5 x 5 mm (a) and 5 x 0.5 x 0.5 mm (s)" in told
    assert not any("unlike" in w for w in pooled({"a": axial, "f": finer}).warnings)


def test_no_images_and_an_image_of_nobody_are_refused():
    with pytest.raises(ValueError, match="no images"):
        pooled({})
    with pytest.raises(ValueError, match="subject is not given"):
        pooled({"a": image_of(both_sides())}, {})


def test_a_weighted_median_is_that_of_repeated_values(rng):
    values, repeats = rng.normal(size=(9, 3)), rng.integers(1, 5, 9)
    expected = np.median(np.repeat(values, repeats, axis=0), axis=0)
    np.testing.assert_allclose(weighted_median(values, repeats.astype(float)), expected)


def standardised(found, mean=100.0, sd=30.0):
    """Statistics of an image whose mean was subtracted."""
    labels = {
        name: replace(
            label, location=(label.location - mean) / sd, median=(label.median - mean) / sd
        )
        for name, label in found.labels.items()
    }
    high = (found.head_high - mean) / sd
    return replace(found, labels=labels, head_low=-mean / sd, head_high=high)


def test_an_image_whose_zero_means_nothing_is_left_out_and_named():
    one = image_of(both_sides())
    whole = {"a": one, "b": one, "c": one}
    prior = pooled(whole | {"odd": standardised(one)})
    assert prior.digest == pooled(whole).digest
    (warning,) = prior.warnings
    assert warning.startswith("odd was left out: ")
    assert "before normalisation" in warning
    assert [image["image"] for image in prior.images] == ["a", "b", "c"]


def test_images_whose_zero_means_nothing_are_refused_when_there_are_no_others():
    odd = standardised(image_of(both_sides()))
    with pytest.raises(ValueError, match=r"before normalisation") as caught:
        pooled({"odd": odd, "or": odd})
    assert "\n" not in str(caught.value)


def test_a_dark_label_that_lost_its_neighbours_share_may_be_below_zero():
    one = image_of(both_sides())
    name = "Left-Lateral-Ventricle"
    dark = replace(one[name], location=-4.0, median=3.0)
    prior = pooled({"a": replace(one, labels=one.labels | {name: dark}), "b": one})
    assert prior.n_images == 2


def test_the_range_that_was_measured_counts_and_not_the_labels():
    # Without noise, fat and vessels, labels do not reach as far as the image does.
    means = {}
    for top in (1000.0, 4095.0):
        stored = {name: 0.4 * top * at / 160 for name, at in both_sides().items()}
        found = image_of(stored, noise=NoiseLaw("ratio", 0.02, low=0.0, high=top), high=0.45 * top)
        means[top] = pooled({"a": found})[WHITE].mean
    assert means[1000.0] == means[4095.0] == pytest.approx(0.4 * 255)


def test_provenance_has_no_images_that_were_left_out():
    magnitude = image_of(both_sides())
    statistics = {"a": magnitude, "b": magnitude, "odd": image_of(both_sides(), noise=RATIO)}
    said = [{"image": f"bids:{name}", "name": name} for name in statistics]
    kept = pooled(statistics, images=said).images
    assert [image["name"] for image in kept] == ["a", "b"]
    bare = [{"image": name} for name in statistics]
    assert [image["image"] for image in pooled(statistics, images=bare).images] == ["a", "b"]


RATIO = NoiseLaw("ratio", 0.02, low=0.0, high=255.0)


def test_the_share_of_masked_images_and_the_level_of_their_air_are_pooled():
    masked = replace(RATIO, masked_share=0.9)
    dark = image_of(both_sides() | {"Unknown": 5.0}, noise=masked)
    noisy = image_of(both_sides() | {"Unknown": 127.0}, noise=RATIO)
    prior = pooled({"a": dark, "b": dark, "c": dark, "d": noisy})
    assert prior.noise.masked == pytest.approx(0.75)
    assert prior.noise.masked_level == pytest.approx(5.0)
    assert pooled({"a": noisy}).noise.masked == 0
    law = NoiseLaw("gaussian", 3.0, masked_share=1.0)
    magnitude = pooled({"a": image_of(both_sides(), noise=law)}).noise
    assert (magnitude.masked, magnitude.masked_level) == (1.0, 0.0)


def test_a_weighted_deviation_is_that_of_rows_repeated(rng):
    values = rng.normal(5, 2, (300, 2))
    weights = rng.integers(1, 4, 300)
    repeated = np.repeat(values, weights, axis=0)
    expected = 1.4826 * np.median(np.abs(repeated - np.median(repeated, axis=0)), axis=0)
    np.testing.assert_allclose(weighted_deviation(values, weights.astype(float)), expected)
    np.testing.assert_allclose(expected, 2, rtol=0.2)
