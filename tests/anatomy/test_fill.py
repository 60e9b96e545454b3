# SPDX-License-Identifier: Apache-2.0
"""What is no image is told from what is: on both sides of every limit."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from brainseg_bids.anatomy.fill import (
    APART,
    FAR,
    FEWEST_SHARE,
    with_finite_background,
    without_fill,
    wrapped_share,
)
from brainseg_bids.anatomy.intensity import intensity_range
from tests.phantom.head import phantom_head, phantom_image


@pytest.fixture(scope="module")
def head():
    labels = phantom_head()
    # As scanners write them: whole numbers, some hundreds of them, noise in air.
    return np.rint(8 * phantom_image(labels, np.random.default_rng(3))), labels.voxels


def outer_planes(image, value):
    image = image.copy()
    image[0], image[-1] = value, value
    return image


def padded(image, value):
    """By a half, so that a third of the voxels is padding."""
    return np.pad(image, ((0, image.shape[0] // 2), (0, 0), (0, 0)), constant_values=value)


def scattered(image, value):
    """As a division by zero leaves it, in a tenth of the air."""
    image = image.copy()
    outside = np.flatnonzero(phantom_head().voxels == 0)
    image.reshape(-1)[np.random.default_rng(1).permutation(outside)[::10]] = value
    return image


def turned(image, value):
    """As registration leaves it: corners without image, mixed with it along their borders."""
    return ndimage.rotate(image, 15, reshape=False, order=1, cval=value)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(
            -32768,
            marks=pytest.mark.input(
                "intensities",
                "fill value -32768: outer planes, padding of a third, corners after registration",
                "left out of scaling and of the head's box; a warning names value and share",
                0,
            ),
        ),
        pytest.param(
            -1024,
            marks=pytest.mark.input(
                "intensities",
                "fill value -1024: outer planes, padding of a third, corners after registration",
                "left out of scaling and of the head's box; a warning names value and share",
                0,
            ),
        ),
        pytest.param(
            32767,
            marks=pytest.mark.input(
                "intensities",
                "fill value 32767, the type's maximum: outer planes, padding of a third",
                "left out of scaling and of the head's box; a warning names value and share",
                0,
            ),
        ),
        pytest.param(
            -3.4e38,
            marks=pytest.mark.input(
                "intensities",
                "fill value -3.4e38, the smallest float: outer planes, padding of a third",
                "left out of scaling and of the head's box; a warning names value and share",
                0,
            ),
        ),
    ],
)
@pytest.mark.parametrize("make", [outer_planes, padded, scattered])
def test_fill_is_found_and_becomes_air(head, make, value):
    image, _ = head
    given = make(image, value).astype(np.float32)
    cleaned, (fill,) = without_fill(given)
    share = np.mean(given == np.float32(value))
    assert fill.value == pytest.approx(value)
    assert fill.share == pytest.approx(share)
    assert f"{value:g}" in str(fill)
    assert f"{100 * share:.2g} %" in str(fill)
    kept = given != np.float32(value)
    np.testing.assert_array_equal(cleaned[kept], given[kept])
    assert np.ptp(cleaned[~kept]) == 0
    assert intensity_range(image).level(float(cleaned[~kept][0])) == pytest.approx(0, abs=0.01)
    # Files are read with the first axis fastest.
    again, found = without_fill(np.asfortranarray(given))
    np.testing.assert_array_equal(again, cleaned)
    assert found == [fill]


@pytest.mark.parametrize("value", [-32768, -1024])
def test_what_interpolation_has_mixed_with_a_fill_goes_with_it(head, value):
    image, _ = head
    cleaned, (fill,) = without_fill(turned(image, value))
    assert fill.value == value
    assert cleaned.min() >= 0
    expected = intensity_range(turned(image, 0))
    found = intensity_range(cleaned)
    assert expected.level(found.low) == pytest.approx(0, abs=0.01)
    assert expected.level(found.high) == pytest.approx(1, abs=0.01)


@pytest.mark.input(
    "intensities",
    "two fill values, -32768 in the first plane and 32767 in the last",
    "both are left out; a warning for each",
    0,
)
def test_several_fill_values_are_all_found(head):
    image, _ = head
    given = outer_planes(image, -32768)
    given[-1] = 32767
    cleaned, fills = without_fill(given)
    assert {fill.value for fill in fills} == {-32768, 32767}
    assert cleaned.max() == image[:-1].max()


def test_padding_below_a_black_background_is_the_fill_and_not_the_background(head):
    image = masked(head)
    cleaned, (fill,) = without_fill(padded(image, -1024))
    assert (fill.value, cleaned[-1, 0, 0]) == (-1024, 0)


def ratio(head):
    """A UNI image, -0.5..0.5."""
    image, labels = head
    return image / image.max() - 0.5, labels > 0


@pytest.mark.input(
    "intensities",
    "UNI image of -0.5..0.5 masked with 0, the middle of its range",
    "what surrounds the head counts as background; a warning names value and share",
    0,
)
@pytest.mark.parametrize("scale", [1.0, 4095.0])
def test_the_grey_middle_around_a_masked_ratio_image_is_background(head, scale):
    image, inside = ratio(head)
    given = np.where(inside, scale * image, 0)
    cleaned, (fill,) = without_fill(given)
    assert fill.value == 0
    assert fill.share == pytest.approx(1 - inside.mean(), abs=0.001)
    level = intensity_range(scale * image[inside][:, None]).level(float(cleaned[0, 0, 0]))
    assert level == pytest.approx(0, abs=0.02)
    np.testing.assert_array_equal(cleaned[inside & (image != 0)], given[inside & (image != 0)])


@pytest.mark.input(
    "intensities",
    "UNI image of 0..4095 masked with 2048, the middle of its range",
    "what surrounds the head counts as background; a warning names value and share",
    0,
)
def test_a_grey_middle_may_be_any_value(head):
    image, inside = ratio(head)
    given = np.where(inside, np.rint(4095 * (image + 0.5)), 2048)
    cleaned, (fill,) = without_fill(given)
    assert (fill.value, cleaned[0, 0, 0]) == (2048, 0)


def masked(head):
    image, labels = head
    return np.where(labels > 0, image, 0)


def stripped(head):
    image, labels = head
    brain = np.isin(labels, (2, 3, 10, 12, 41, 42, 49, 51))
    return np.where(brain, image, 0)


def defaced(head):
    image, _ = head
    image = image.copy()
    image[10:40, 40:, :26] = 0
    return image


def with_filled_face(head):
    image, _ = head
    image = image.copy()
    image[10:40, 40:, :26] = 1000
    return image


def saturated(head):
    image, labels = head
    image = masked((image, labels)).clip(0, np.quantile(image, 0.97))
    return np.roll(image, 30, axis=2)  # so that some of it is cut by the border


def standard_scores(head):
    image = stripped(head)
    inside = image[image > 0]
    return (image - inside.mean()) / inside.std()


def standardised(image):
    """Standard scores of all voxels: what was zero is a constant below the rest."""
    return (image - image.mean()) / image.std()


def drawing(head):
    _, labels = head
    return np.where(labels > 0, 100.0, 0) + np.where(labels == 2, 155.0, 0)


@pytest.mark.input(
    "intensities",
    "a stripped brain with -1024 around it",
    "the fill value becomes 0, as in other stripped images; a warning names value and share",
    0,
)
def test_a_fill_value_around_a_brain_becomes_zero(head):
    expected = stripped(head)
    cleaned, (fill,) = without_fill(np.where(expected > 0, expected, -1024))
    assert fill.value == -1024
    np.testing.assert_array_equal(cleaned, expected)


@pytest.mark.input(
    "intensities",
    "standard scores of a stripped brain with 0 around it, the middle of the range",
    "what surrounds the brain counts as background; a warning names value and share",
    0,
)
def test_zero_in_the_middle_of_standard_scores_is_background(head):
    image = stripped(head)
    given = np.where(image > 0, standard_scores(head), 0)
    cleaned, (fill,) = without_fill(given)
    assert fill.value == 0
    assert cleaned[0, 0, 0] < np.quantile(given[image > 0], 0.02)


ORDINARY = {
    "noise in air": lambda head: head[0],
    "air of zeros": masked,
    "stripped": stripped,
    "defaced": defaced,
    "filled face": with_filled_face,
    "bytes": lambda head: np.rint(masked(head) / 4).clip(0, 255),
    "saturated": saturated,
    "standard scores": standard_scores,
    "standard scores of a stripped image": lambda head: standardised(stripped(head)),
    "standard scores with air of zeros": lambda head: standardised(masked(head)),
    "-1 around the brain": lambda head: np.where(stripped(head) > 0, head[0], -1),
    "drawing": drawing,
    "drawing, inverted": lambda head: 255 - drawing(head),
    "two values": lambda head: (head[1] > 0).astype(float),
    "ringing": lambda head: masked(head) - np.where(head[1] == 0, abs(head[0] % 7 - 3), 0),
    "capsule": lambda head: np.where(np.indices(head[1].shape).max(0) < 4, 32767, head[0]),
    "noise around zero": lambda head: head[0] - 8 * 4 * (head[1] == 0),
    "few bits": lambda head: np.rint(head[0] / 40 - (head[1] == 0)),
    "no air": lambda head: head[0] + 3000,
}  # fmt: skip


@pytest.mark.input(
    "intensities",
    "air of zeros, stripped, defaced (face empty or filled), bytes, saturated vessels, drawings",
    "the same labels, byte for byte: no value is taken for a fill value",
    0,
)
@pytest.mark.parametrize("kind", ORDINARY)
def test_ordinary_images_are_left_as_they_are(head, kind):
    image = ORDINARY[kind](head)
    same, fills = without_fill(image)
    assert fills == []
    assert same is image
    assert wrapped_share(image) == 0


@pytest.mark.parametrize(("times", "n"), [(0.9, 0), (1.1, 1)])
def test_a_low_value_is_fill_if_it_is_farther_from_the_rest_than_air_from_the_head(head, times, n):
    image, _ = head
    window = intensity_range(image)
    value = window.low - times * APART * window.span
    assert len(without_fill(outer_planes(image, value))[1]) == n


@pytest.mark.parametrize(("times", "n"), [(0.9, 0), (1.1, 1)])
def test_a_high_value_is_fill_if_there_is_a_gap_below_it(head, times, n):
    image, _ = head
    value = image.max() + times * APART * intensity_range(image).span
    assert len(without_fill(scattered(image, value))[1]) == n


@pytest.mark.parametrize(("times", "n"), [(0.9, 0), (1.1, 1)])
def test_zero_is_fill_only_if_all_else_is_far_from_it(head, times, n):
    image, _ = head
    window = intensity_range(image)
    moved = image - window.low + times * FAR * window.span
    assert len(without_fill(scattered(moved, 0))[1]) == n


@pytest.mark.parametrize(("times", "n"), [(0.9, 0), (1.1, 1)])
def test_surroundings_are_background_if_they_would_count_as_head(head, times, n):
    image, labels = head
    inside = image[labels > 0]
    window = intensity_range(inside[:, None])
    value = window.low + times * APART * window.span
    assert len(without_fill(np.where(labels > 0, image, value))[1]) == n


@pytest.mark.parametrize(("times", "n"), [(0.5, 0), (2, 1)])
def test_a_few_voxels_are_no_fill(head, times, n):
    image = head[0].copy()
    image.reshape(-1)[: int(times * FEWEST_SHARE * image.size)] = -32768
    assert len(without_fill(image)[1]) == n


# -- wrapped integers ---------------------------------------------------------------------


def wrapped(image, labels, share):
    """As 16 bits keep it when that share of the head is too bright."""
    scale = 32768 / np.quantile(image[labels > 0], 1 - share)
    return np.rint(scale * image).astype(np.int64).astype(np.int16).astype(np.float32)


@pytest.mark.input(
    "intensities",
    "overflow of bright voxels to negative ones (16-bit integers)",
    "done, with a warning that says how many and to export the image again",
    0,
)
@pytest.mark.parametrize("share", [0.003, 0.03, 0.1])
def test_wrapped_integers_are_noticed(head, share):
    image, labels = head
    smooth = ndimage.gaussian_filter(image, 0.5)
    given = wrapped(smooth, labels, share)
    assert wrapped_share(given) == pytest.approx(share * np.mean(labels > 0), rel=0.05)
    assert wrapped_share(given / 100) == wrapped_share(given)
    assert without_fill(given)[1] == []
    black = np.where(labels > 0, given, 0)
    assert without_fill(black)[1] == []
    assert wrapped_share(black) == wrapped_share(given)


def test_negative_values_that_are_meant_are_not_wrapped(head, rng):
    image, inside = ratio(head)
    noise = rng.uniform(-0.5, 0.5, image.shape)
    assert wrapped_share(np.where(inside, image, noise)) == 0  # UNI with its noise in air
    assert wrapped_share(image) == 0
    spikes = head[0].copy()
    spikes[::9, ::9, ::9] = -32768
    assert wrapped_share(spikes) == 0


# -- voxels that are no numbers -----------------------------------------------------------


@pytest.mark.input(
    "intensities",
    "NaN or infinite voxels in the background: outer planes, all around the head, within air",
    "background",
    0,
)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_background_without_numbers_is_background(head, bad):
    image, labels = head
    lone = image.copy()
    lone[2, 2, 2] = bad
    for given in (outer_planes(image, bad), np.where(labels > 0, image, bad), lone):
        for order in "CF":
            filled = with_finite_background(np.array(given, order=order))
            assert np.isfinite(filled).all()
            finite = np.isfinite(given)
            np.testing.assert_array_equal(filled[finite], given[finite])
            level = intensity_range(image).level(float(filled[~finite].max()))
            assert level == pytest.approx(0, abs=0.02)


@pytest.mark.input(
    "intensities",
    "NaN or infinite voxels inside the head: one voxel, a hole, a lost slice",
    "refused: how many, and how to replace them",
    1,
)
@pytest.mark.parametrize(
    ("where", "n"),
    [
        ((24, 28, 30), 1),
        ((slice(20, 24), slice(20, 24), slice(30, 33)), 48),
        ((slice(None), 28), 48 * 52),
    ],
)
def test_holes_in_the_head_stay_an_error(head, where, n):
    given = outer_planes(head[0], np.nan)
    given[where] = np.nan
    with pytest.raises(ValueError, match=r"voxels inside") as caught:
        with_finite_background(given)
    assert int(str(caught.value).split()[0]) == pytest.approx(n, abs=2 * 52)


def test_finite_images_are_not_copied(head):
    assert with_finite_background(head[0]) is head[0]


# -- padding that looks like tissue ----------------------------------------------------------


@pytest.mark.input(
    "intensities",
    "outer planes at 255 in bytes whose head reaches 255 itself, or at a grey within the head",
    "left out of scaling and of the head's box; a warning names value and share",
    0,
)
@pytest.mark.parametrize("value", [255, 200, 128])
def test_planes_of_one_value_are_padding_also_within_the_range_of_the_head(head, value):
    image, _ = head
    given = np.clip(np.rint(image * (300 / image.max())), 0, 255).astype(np.float32)
    padded_head = outer_planes(given, value)
    cleaned, (fill,) = without_fill(padded_head)
    assert fill.value == value
    assert fill.share == pytest.approx(2 / len(given))
    np.testing.assert_array_equal(cleaned[1:-1], given[1:-1])
    assert intensity_range(given).level(float(cleaned[0, 0, 0])) == pytest.approx(0, abs=0.01)


@pytest.mark.input(
    "intensities",
    "an image whose zero was moved (air at 1000) with outer planes at 0",
    "the planes are left out of scaling and box; a warning names value and share",
    0,
)
@pytest.mark.parametrize("moved", [200, 1000, 4000])
def test_planes_at_zero_of_an_image_whose_zero_was_moved_are_padding(head, moved):
    given = (head[0] + moved).astype(np.float32)
    cleaned, fills = without_fill(outer_planes(given, 0))
    assert [fill.value for fill in fills] == [0]
    np.testing.assert_array_equal(cleaned[1:-1], given[1:-1])
    assert intensity_range(given).level(float(cleaned[0, 0, 0])) == pytest.approx(0, abs=0.01)


def test_planes_of_background_are_not_padding(head):
    given = head[0].astype(np.float32)
    level = float(np.rint(intensity_range(given).low))
    for value in (0.0, level):
        assert without_fill(outer_planes(given, value))[1] == []
