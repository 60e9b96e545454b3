# SPDX-License-Identifier: Apache-2.0
"""What is measured in images of known truth is that truth."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.contrast import compare, draw_means, make_truth
from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import Label, LabelTable
from brainseg_bids.contrast.measured import ContrastStatistics
from brainseg_bids.contrast.statistics import measure
from tests.phantom.head import phantom_head, phantom_image

THIN = ("Skin", "Other-Tissues")
"""Shells of 3 mm: one and a half voxels of the phantom, all of them partial volume."""


def thickened(labels: LabelMap) -> LabelMap:
    """The phantom with its thin shells made one."""
    voxels = labels.voxels.copy()
    voxels[voxels == labels.table["Other-Tissues"].index] = labels.table["Skin"].index
    return LabelMap(voxels, labels.grid, labels.table)


@pytest.fixture(scope="module")
def fine_head() -> LabelMap:
    return thickened(phantom_head(shape=(84, 100, 94), voxel_size_mm=2.3))


@pytest.fixture(scope="module")
def truth(fine_head):
    rng = np.random.default_rng(5)
    means = draw_means(fine_head, rng) | {"Unknown": 0.0}
    return make_truth(fine_head, means, rng, node_spacing_mm=90.0)


@pytest.fixture(scope="module")
def measured(truth) -> ContrastStatistics:
    return measure(truth.image, truth.labels)


@pytest.fixture(scope="module")
def errors(truth, measured):
    return compare(truth, measured)


def test_means_of_labels_are_found_within_one_percent_of_their_range(errors):
    assert errors["labels"] == 16
    assert errors["mean_rms"] < 1.0
    assert errors["mean_worst"] < 2.5
    assert errors["r"] > 0.999


def test_spreads_are_found_within_five_percent(errors):
    assert errors["spread_median"] < 5.0
    assert errors["spread_rms"] < 5.0


def test_a_field_of_forty_percent_is_found_within_three_percent(truth, measured, errors):
    head = truth.labels.voxels > 0
    assert np.ptp(np.exp(truth.log_field[head])) > 0.6
    assert errors["field_rmse"] < 3.0
    assert measured.bias.log_sd == pytest.approx(truth.log_field[head].std(), rel=0.1)
    assert measured.bias.smoothness_mm == pytest.approx(90, rel=0.4)


def test_the_field_stays_sane_outside_the_head(measured):
    assert np.abs(measured.bias.array()).max() < 1.0


def test_noise_is_found_in_the_air(truth, measured):
    assert measured.noise.kind == "rician"
    assert measured.noise.sigma == pytest.approx(truth.sigma, rel=0.03)
    assert measured.noise.fit < 0.03


@pytest.mark.input(
    "intensities", "contrast of an image padded by a fill value", "measured without; warning", 0
)
def test_noise_is_not_looked_for_in_what_a_fill_value_pads():
    head = phantom_head()
    image = phantom_image(head, np.random.default_rng(0))
    image[head.voxels == 0] = 0
    padded = image.copy()
    padded[:3] = -32768
    plain, found = measure(image, head), measure(padded, head)
    assert found.noise.sigma == pytest.approx(plain.noise.sigma, rel=0.02)
    assert (found.head_low, found.head_high) == (plain.head_low, plain.head_high)
    assert any("-32768" in note for note in found.warnings)


def test_statistics_survive_json(measured):
    assert ContrastStatistics.from_json(measured.to_json()) == measured
    said = json.loads(measured.to_json())
    said["bias"]["spectrum"] = [[83.2, 1.0]]  # of an earlier version
    assert ContrastStatistics.from_json(json.dumps(said)) == measured


def test_histograms_hold_the_interior(measured):
    label = measured["Left-Cerebral-White-Matter"]
    assert len(label.histogram) == len(measured.edges) - 1
    assert sum(label.histogram) == pytest.approx(label.interior_voxels, rel=0.01)
    middle = (np.array(measured.edges[1:]) + measured.edges[:-1]) / 2
    assert np.average(middle, weights=label.histogram) == pytest.approx(label.location, rel=0.02)


def test_class_means_of_a_series_correlate_with_the_truth():
    labels = phantom_head(shape=(56, 66, 62), voxel_size_mm=3.4)
    pairs: dict[str, list[tuple[float, float]]] = {}
    for seed in range(4):
        rng = np.random.default_rng(seed)
        truth = make_truth(labels, draw_means(labels, rng) | {"Unknown": 0.0}, rng)
        for name, label in measure(truth.image, truth.labels).labels.items():
            if label.source == "measured" and name not in ("Unknown", *THIN):
                pairs.setdefault(name, []).append((truth.means[name], label.location))
    r = {n: np.corrcoef(np.transpose(p))[0, 1] for n, p in pairs.items() if len(p) == 4}
    assert len(r) >= 8
    assert min(r.values()) >= 0.95


def test_mp2rage_is_known_by_its_background(fine_head):
    rng = np.random.default_rng(8)
    means = draw_means(fine_head, rng, -0.4, 0.45) | {"Unknown": 0.0}
    truth = make_truth(fine_head, means, rng, kind="ratio", field=0.0, sigma=0.03, sd_frac=0.03)
    statistics = measure(truth.image, truth.labels)
    assert statistics.noise.kind == "ratio"
    assert statistics.noise.fit < 0.02  # uniform, as the ratio of two noises is
    assert 0.01 < statistics.noise.sigma < 0.06
    assert statistics.bias.log_sd == 0
    errors = compare(truth, statistics)
    assert errors["mean_rms"] < 1.0
    assert errors["spread_rms"] < 6.0


def test_axes_on_disk_do_not_matter(head, head_image):
    turned_voxels = np.ascontiguousarray(head.voxels.transpose(2, 0, 1)[:, ::-1])
    affine = head.grid.affine[:, [2, 0, 1, 3]].copy()
    affine[:, 3] += affine[:, 1] * (head.voxels.shape[0] - 1)
    affine[:, 1] *= -1
    turned = LabelMap(turned_voxels, Grid(turned_voxels.shape, affine), head.table)
    image = np.ascontiguousarray(head_image.transpose(2, 0, 1)[:, ::-1])
    one, other = measure(head_image, head), measure(image, turned)
    assert one.voxel_size_mm == other.voxel_size_mm
    for name in one.labels:
        assert one[name].location == pytest.approx(other[name].location)
    np.testing.assert_allclose(one.bias.array(), other.bias.array(), atol=1e-4)


def test_a_label_without_an_inside_is_imputed_from_its_mirror(head, head_image):
    voxels = head.voxels.copy()
    left = np.flatnonzero(voxels == head.table["Left-Cerebellum-Cortex"].index)
    voxels.flat[left[2:]] = head.table["Left-Cerebral-White-Matter"].index
    statistics = measure(head_image, LabelMap(voxels, head.grid, head.table))
    label, donor = statistics["Left-Cerebellum-Cortex"], statistics["Right-Cerebellum-Cortex"]
    assert label.source == "imputed from Right-Cerebellum-Cortex"
    assert (label.location, label.scale) == (donor.location, donor.scale)
    assert (label.voxels, label.histogram) == (2, ())
    assert donor.source == "measured"
    assert any("Left-Cerebellum-Cortex" in warning for warning in statistics.warnings)


def test_without_a_mirror_the_most_similar_of_the_same_tissue_lends(head, head_image):
    voxels, table = head.voxels.copy(), head.table
    voxels[tuple(np.argwhere(voxels == table["CSF"].index)[100])] = table["3rd-Ventricle"].index
    statistics = measure(head_image, LabelMap(voxels, head.grid, table))
    assert statistics["3rd-Ventricle"].source == "imputed from CSF"
    assert statistics["3rd-Ventricle"].scale == statistics["CSF"].scale


def test_masked_background_leaves_the_noise_to_the_tissue(head, head_image):
    image = np.where(head.voxels > 0, head_image, 0)
    statistics = measure(image, head)
    assert statistics.noise.kind == "gaussian"
    assert statistics.noise.voxels == 0
    assert statistics.noise.sigma == pytest.approx(4.0, rel=0.1)
    assert statistics["Unknown"].scale == 0
    assert any("background is constant" in warning for warning in statistics.warnings)


def test_an_image_without_noise_is_said_to_have_none(head):
    image = phantom_image(head, np.random.default_rng(0), noise_sd=0.0)
    assert measure(image, head).noise.kind == "none"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda image: image - 60, "% of the voxels are negative"),
        (lambda image: np.minimum(image, 120), "have the highest value, 120"),
        (lambda image: np.where(image > 140, 32767, np.rint(image)), "maximum of an integer type"),
        (lambda image: np.rint(image / 40), "different values"),
        (lambda image: np.where(image > 150, np.nan, image), "NaN or infinite"),
        (lambda image: np.roll(np.where(image > 12, image, 0), 24, 0), "partly outside"),
    ],
)
def test_doubts_are_told(head, head_image, change, sentence):
    statistics = measure(change(head_image), head)
    assert any(sentence in warning for warning in statistics.warnings)
    locations = [label.location for label in statistics.labels.values()]
    assert np.isfinite(locations).all()


def brain_of(head: LabelMap) -> np.ndarray:
    return np.isin(head.voxels, [label.index for label in head.table if label.is_brain])


@pytest.mark.input(
    "results",
    "a skull-stripped image without metadata, with bone and skin in its label map",
    "contrast: the brain only is measured; log, JSON and page say so",
    0,
)
def test_of_a_stripped_image_the_brain_alone_is_measured(head, head_image):
    bare = np.where(brain_of(head), head_image, 0)
    found, whole = measure(bare, head), measure(head_image, head)
    assert found.stripped
    assert not whole.stripped
    assert {name for name in found.labels if name != "Unknown"} == {
        name for name in whole.labels if head.table[name].is_brain
    }
    (said,) = [warning for warning in found.warnings if "skull-stripped" in warning]
    assert "Bone-Cortical" in said
    for name in ("Left-Cerebral-White-Matter", "Right-Cerebral-White-Matter"):
        assert found[name].location == pytest.approx(whole[name].location, rel=0.02)
    # What a whole head lacks is not missing in a brain.
    (lacks,) = [warning for warning in found.warnings if "lacks" in warning]
    assert "Eyes" not in lacks


@pytest.mark.parametrize(
    ("said", "bare", "words"),
    [
        pytest.param(
            False, True, "is false",
            marks=pytest.mark.input(
                "metadata", "SkullStripped false, the image shows no head",
                "the image is believed; warning", 0,
            ),
        ),
        pytest.param(
            True, False, "is true",
            marks=pytest.mark.input(
                "metadata", "SkullStripped true, the image shows a head",
                "the brain alone is measured; warning", 0,
            ),
        ),
        (True, True, "the brain alone is measured"),
    ],
)  # fmt: skip
def test_metadata_that_contradict_the_image_are_told(head, head_image, said, bare, words):
    image = np.where(brain_of(head), head_image, 0) if bare else head_image
    found = measure(image, head, stripped=said)
    assert found.stripped
    assert "Skin" not in found.labels
    assert any(words in warning for warning in found.warnings)


def test_a_map_without_brain_of_an_image_that_is_said_to_be_stripped_is_refused(head, head_image):
    bone = replace(head, voxels=np.where(brain_of(head), 0, head.voxels))
    with pytest.raises(ValueError, match="SkullStripped"):
        measure(head_image, bone, stripped=True)


def test_core_labels_that_are_missing_are_named(head, head_image):
    assert any(
        "lacks" in warning and "Left-Caudate" in warning
        for warning in measure(head_image, head).warnings
    )


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.full((48, 56, 52), 7.0), "every voxel of the image is 7"),
        (np.full((48, 56, 52), np.nan), "no finite voxel"),
        (np.zeros((4, 5, 6)), "bring both to one grid"),
    ],
)
def test_images_that_cannot_be_measured_are_refused_in_one_line(head, image, words):
    with pytest.raises(ValueError, match=words) as error:
        measure(image, head)
    assert "\n" not in str(error.value)


def test_an_unknown_kind_and_an_empty_label_map_are_refused(head, head_image):
    with pytest.raises(ValueError, match="magnitude, ratio"):
        measure(head_image, head, kind="t1")
    empty = LabelMap(np.zeros_like(head.voxels), head.grid, head.table)
    with pytest.raises(ValueError, match="no voxel"):
        measure(head_image, empty)


@pytest.mark.shared_data
@pytest.mark.slow
def test_a_real_head_has_white_matter_brighter_than_grey(shared_data):
    from brainseg_bids.images import read_label_map, read_volume

    names = ("Air", "Scalp", "Skull", "CSF", "Grey", "White", "Cavities")
    table = LabelTable([Label(n, name) for n, name in enumerate(names)], name="colin27")
    image, _ = read_volume(shared_data / "colin27" / "ch2.nii.gz")
    labels = read_label_map(shared_data / "colin27" / "colin27_v3_on_ch2_grid_seg.nii.gz", table)
    statistics = measure(image, labels)
    order = [statistics[name].location for name in ("Skull", "CSF", "Grey", "White")]
    assert order == sorted(order)
    assert statistics["White"].scale < 6
    assert all(1.0 <= width < 3.0 for width in statistics.fwhm_mm)
    assert math.isfinite(statistics.bias.smoothness_mm)


@pytest.fixture(scope="module")
def uni(head) -> np.ndarray:
    """UNI of the phantom: uniform noise in the air, little in the head."""
    rng = np.random.default_rng(3)
    image = (phantom_image(head, rng, noise_sd=2.0) / 255).clip(0, 1) - 0.5
    return np.where(head.voxels == 0, rng.uniform(-0.5, 0.5, image.shape), image)


def test_the_share_of_masked_air_is_kept(head, head_image, uni):
    image = np.where(head.voxels > 0, head_image, 0)
    assert measure(image, head).noise.masked_share == 1
    whole = measure(head_image, head).noise
    assert (whole.masked_share, whole.is_masked) == (0, False)
    # Denoised: dark, but not constant.
    dark = np.random.default_rng(0).uniform(-0.5, -0.45, uni.shape)
    denoised = measure(np.where(head.voxels == 0, dark, uni), head, kind="ratio")
    assert denoised.noise.is_masked
    assert denoised["Unknown"].location == pytest.approx(-0.475, abs=0.005)
    assert not measure(uni, head, kind="ratio").noise.is_masked


@pytest.mark.parametrize(
    ("low", "high"),
    [(0, 1), (-1, 1), (0, 255), (0, 1000), (0, 4095), (-2048, 2047), (0, 10000)],
)
def test_a_ratio_is_the_same_however_it_is_stored(head, uni, low, high):
    def stored(bottom, top):
        return measure(bottom + (uni + 0.5) * (top - bottom), head, kind="ratio")

    one, other = stored(-0.5, 0.5), stored(low, high)
    assert (one.noise.low, one.noise.high) == (-0.5, 0.5)
    assert (other.noise.low, other.noise.high) == (low, high)
    assert other.noise.sigma == pytest.approx(one.noise.sigma, rel=1e-3)
    assert not any("a ratio" in warning for warning in other.warnings)


def test_an_unusual_range_of_a_ratio_is_told(head, uni):
    found = measure(1500 * (uni + 0.5), head, kind="ratio")
    assert found.noise.high == pytest.approx(1500, rel=0.01)
    assert any("unusual range" in warning for warning in found.warnings)


def test_noise_of_a_ratio_is_not_taken_for_a_magnitudes():
    # At a location of half its spread, Rician noise would be half as much again.
    table = LabelTable([Label(0, "Background"), Label(7, "Ball")], name="demo")
    away = np.linalg.norm(np.indices((40, 40, 40)) - 19.5, axis=0)
    ball = LabelMap((away < 14).astype(np.int16) * 7, Grid((40,) * 3, np.eye(4)), table)
    rng = np.random.default_rng(0)
    image = np.where(
        away < 14, rng.normal(0, 0.02, away.shape), rng.uniform(-0.5, 0.5, away.shape)
    )
    assert measure(image, ball, kind="ratio").noise.sigma == pytest.approx(0.02, rel=0.05)


def test_a_head_without_intensities_above_zero_is_refused_unless_it_is_a_ratio(head, head_image):
    dark = head_image - head_image.max() - 1
    with pytest.raises(ValueError, match=r"before normalisation") as error:
        measure(dark, head)
    assert "\n" not in str(error.value)
    assert measure(dark / 1000, head, kind="ratio").noise.kind == "ratio"
