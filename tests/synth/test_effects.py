# SPDX-License-Identifier: Apache-2.0
"""Each effect is nothing when it is off, and does what its formula says when it is on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import interpolate, ndimage, special, stats

from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.labels import Label, LabelTable
from brainseg_bids.synth.deform import rotation
from brainseg_bids.synth.generator import Generator, LabelVolume
from brainseg_bids.synth.gibbs import truncate
from brainseg_bids.synth.intensity import LEVELS, LEVELS_PER_SD, tissue_lookup, tissues
from brainseg_bids.synth.motion import move
from brainseg_bids.synth.noise import magnitude
from brainseg_bids.synth.receive import receive
from brainseg_bids.synth.recipe import (
    Bias,
    Deformation,
    Gibbs,
    Motion,
    Noise,
    Ratio,
    Recipe,
    Resolution,
    Susceptibility,
    Texture,
    Tissue,
    Transmit,
    View,
)
from brainseg_bids.synth.shading import air_loss, flip_angles
from brainseg_bids.synth.texture import correlated_noise
from brainseg_bids.synth.transmit import transmit_response
from brainseg_bids.synth.view import Crop, field_of_view, out_of_view
from tests.phantom.head import INTENSITY

TABLE = LabelTable.packaged("fullhead")
VOXEL_MM = 4.0
SHAPE = (48, 56, 52)
STILL = (0.0, 0.0, 0.0)
TWO_MOVES = Motion((0.3, 0.7), ((2.0, -1.0, 3.0), (1.0, 2.0, -2.0)), ((1, -2, 2), (-2, 1, 1)))

EFFECTS = {
    "texture": Texture(seed=3),
    "grain": Texture(grain_mm=8.0, grain_frac=0.6, grain_seed=3),
    "receive": Bias(0.4, 60.0, 5),
    "mprage": Transmit("mprage", 1.2, 0.5, 0.1, seed=6),
    "mp2rage": Transmit("mp2rage", 1.2, 0.5, 0.1, seed=6),
    "ratio": Ratio(0.05, 0.0, 200.0, 7),
    "susceptibility": Susceptibility(4.0),
    "motion": TWO_MOVES,
    "gibbs": Gibbs((0.7, 0.8, 0.6)),
    "resolution": Resolution((4.0, 9.0, 4.0), (4.0, 9.0, 4.0)),
    "rician": Noise(0.05, 8),
    "chi": Noise(0.03, 8, 16),
}
FIELD = {"grain": "texture", "receive": "bias", "mprage": "transmit", "mp2rage": "transmit"}
FIELD |= {"rician": "noise", "chi": "noise"}


def recipe_with(*names: str, **changes) -> Recipe:
    """Painted phantom with these effects; two components in each label if there is texture."""
    tissues = {}
    for label in TABLE:
        mean = float(INTENSITY.get(label.name.removeprefix("Left-").removeprefix("Right-"), 60))
        if "texture" in names:
            tissues[label.name] = Tissue((mean, mean + 20), (3.0, 6.0), (0.7, 0.3))
        else:
            tissues[label.name] = Tissue((mean,), (4.0,))
    native = Resolution((VOXEL_MM,) * 3, (VOXEL_MM,) * 3)
    fields = {FIELD.get(name, name): EFFECTS[name] for name in names}
    return Recipe(**{"tissues": tissues, "resolution": native, "paint_seed": 1} | fields | changes)


@pytest.fixture(scope="module")
def ready(head) -> LabelVolume:
    return LabelVolume.from_label_map(head)


@pytest.fixture(scope="module")
def generator() -> Generator:
    return Generator(
        Crosswalk.packaged("fullhead", "brainseg"), TABLE, shape=SHAPE, voxel_size_mm=VOXEL_MM
    )


def painted(layer, ranks: torch.Tensor, value: float) -> np.ndarray:
    """What a layer makes of an image of one value."""
    image = torch.full(ranks.shape, value)
    layer(image, ranks.int(), 0, len(image))
    return image.numpy()


# Off, on, and nothing but the image


def test_what_is_off_hands_the_same_image_on(ready):
    image, crop = torch.rand(9, 8, 7), Crop((9, 8, 7), 1.0)
    ranks = torch.zeros(9, 8, 7, dtype=torch.uint8)
    assert move(image, Motion(), crop) is image
    assert truncate(image, Gibbs()) is image
    assert torch.equal(magnitude(image, Noise(), scale=1.0), image)
    assert receive(Bias(), crop) is None
    assert flip_angles(Transmit(), Ratio(), TABLE, crop, brain_mm=STILL) is None
    assert air_loss(Susceptibility(), ranks, TABLE, crop) is None
    assert out_of_view(View(), ranks, TABLE, crop) is None
    assert torch.equal(
        correlated_noise(Texture(), crop, 4)(0, 9),
        correlated_noise(Texture(seed=9), crop, 4)(0, 9),
    )


@pytest.mark.parametrize("name", EFFECTS)
def test_an_effect_changes_the_image_and_never_the_labels(ready, generator, name):
    plain, changed = (generator.render(ready, recipe_with(*n)) for n in ((), (name,)))
    assert torch.equal(plain.labels, changed.labels)
    assert (plain.image - changed.image).abs().mean() > 1e-3
    assert torch.isfinite(changed.image).all()
    assert changed.image.min() >= 0
    assert changed.image.max() <= 1


MAGNITUDE = ("texture", "receive", "mprage", "susceptibility", "motion", "gibbs", "chi")
UNI = ("grain", "receive", "mp2rage", "susceptibility", "motion", "gibbs", "resolution", "ratio")


@pytest.mark.parametrize("names", [MAGNITUDE, UNI])
def test_all_effects_together_give_the_same_pair_again_with_one_thread_or_two(
    ready, generator, names
):
    recipe = recipe_with(
        *names,
        view=View("brain+csf", (0.0, 0.6, -0.8), 50.0, (-60.0,) * 3, (60.0,) * 3),
        deformation=Deformation((4.0, 3.0, 2.0), velocity_sd_mm=2.0, seed=4),
        gamma=1.2,
    )
    before, pairs = torch.get_num_threads(), []
    for threads in (1, 1, 2):
        torch.set_num_threads(threads)
        pairs.append(generator.render(ready, recipe))
    torch.set_num_threads(before)
    for pair in pairs[1:]:
        assert torch.equal(pairs[0].image, pair.image)
        assert torch.equal(pairs[0].labels, pair.labels)


# Tissues and texture


def test_components_have_their_weights_of_a_standard_normal_field():
    tissues = {label.name: Tissue((1.0,), (0.0,)) for label in TABLE}
    tissues["Skin"] = Tissue((1.0, 2.0, 3.0), (0.1, 0.2, 0.3), (6.0, 3.0, 1.0))
    tissues["CSF"] = Tissue((5.0, 7.0), (0.0, 0.0))
    lookup, levels = tissue_lookup(Recipe(tissues), TABLE)
    lookup = lookup.view(len(TABLE), levels)
    edges = (np.arange(1, LEVELS) - LEVELS / 2) / LEVELS_PER_SD
    share = np.diff([0.0, *special.ndtr(edges), 1.0])
    rank = {label.name: rank for rank, label in enumerate(TABLE)}
    skin = lookup[rank["Skin"]].real.numpy()
    assert [share[skin == k].sum() for k in (1, 2, 3)] == pytest.approx([0.6, 0.3, 0.1], abs=0.007)
    assert share[lookup[rank["CSF"]].real.numpy() == 5].sum() == pytest.approx(0.5, abs=0.007)
    assert set(lookup[rank["Artery"]].tolist()) == {1 + 0j}
    spread = lookup[rank["Skin"]].imag.numpy()
    assert spread[skin == 3] == pytest.approx(0.3)


def test_shares_of_components_are_found_again_in_the_image(ready, generator):
    tissues = {label.name: Tissue((10.0, 20.0, 40.0), (0.0,) * 3, (5, 3, 2)) for label in TABLE}
    recipe = recipe_with(tissues=tissues, texture=Texture(scale_mm=12.0, seed=2))
    image = generator.render(ready, recipe).image
    found = [float((image == value).float().mean()) for value in image.unique()]
    assert found == pytest.approx([0.5, 0.3, 0.2], abs=0.02)


def test_patches_are_as_large_as_their_scale_says(ready, generator):
    tissues = {label.name: Tissue((0.0, 1.0), (0.0, 0.0)) for label in TABLE}
    for scale_mm in (8.0, 32.0):
        recipe = recipe_with(tissues=tissues, texture=Texture(scale_mm=scale_mm))
        image = generator.render(ready, recipe).image[0]
        # A field of cubic B-splines correlates as the B-spline of degree seven falls off.
        spline = interpolate.BSpline.basis_element(np.arange(-4, 5))
        correlation = spline(VOXEL_MM / scale_mm) / spline(0)
        same = float((image[1:] == image[:-1]).float().mean())
        assert same == pytest.approx(0.5 + np.arcsin(correlation) / np.pi, abs=0.01)


@pytest.mark.parametrize(
    "tissue",
    [Tissue((1.0, 2.0), (0.0,)), Tissue((1.0,), (0.0,), (0.0,)), Tissue((1.0,), (0.0,), (1, 1))],
)
def test_components_that_do_not_add_up_are_refused_by_the_labels_name(tissue):
    tissues = {label.name: Tissue((1.0,), (0.0,)) for label in TABLE} | {"Skin": tissue}
    with pytest.raises(ValueError, match="Skin: "):
        tissue_lookup(Recipe(tissues), TABLE)


def test_grain_keeps_a_spread_of_one_and_correlates_as_much_as_its_share():
    crop = Crop((56, 56, 56), 1.0)

    def lag_one(frac: float) -> float:
        noise = correlated_noise(Texture(grain_mm=2.5, grain_frac=frac, grain_seed=1), crop, 2)(
            0, 56
        ).numpy()
        assert noise.std() == pytest.approx(1, abs=0.02)
        assert abs(noise.mean()) < 0.05
        return float(np.corrcoef(noise[1:].ravel(), noise[:-1].ravel())[0, 1])

    whole = lag_one(1.0)
    assert whole > 0.7
    assert lag_one(0.4) == pytest.approx(0.4 * whole, abs=0.02)
    assert abs(lag_one(0.0)) < 0.02


# Fields


def test_every_voxel_of_the_receive_field_has_the_recipes_log_spread():
    crop = Crop((12, 10, 8), 10.0)
    ranks = torch.zeros(crop.shape, dtype=torch.uint8)
    logs = [np.log(painted(receive(Bias(0.3, 40.0, s), crop), ranks, 1.0)) for s in range(300)]
    assert np.std(logs, axis=0) == pytest.approx(np.full(crop.shape, 0.3), abs=0.06)
    assert np.std(logs) == pytest.approx(0.3, rel=0.03)


@pytest.mark.parametrize(("sequence", "unit"), [("mprage", 100.0), ("mp2rage", 200.0)])
def test_labels_answer_the_transmit_field_with_their_own_coefficients(sequence, unit):
    names = ("Left-Cerebral-White-Matter", "CSF")
    rank = {label.name: r for r, label in enumerate(TABLE)}
    ranks = torch.tensor([rank[n] for n in names], dtype=torch.uint8).view(2, 1, 1).repeat(1, 3, 3)
    transmit, crop = Transmit(sequence, center=0.7, edge=0.7), Crop((2, 3, 3), 1.0)
    layer = flip_angles(transmit, Ratio(low=-50.0, high=150.0), TABLE, crop, brain_mm=STILL)
    found = painted(layer, ranks, 100.0)[:, 1, 1]
    a0, a1, a2 = transmit_response(transmit, TABLE)[[rank[n] for n in names]].numpy().T
    answer = unit * (a0 + a1 * -0.3 + a2 * 0.09)
    assert found == pytest.approx(answer if sequence == "mprage" else 100 + answer, rel=1e-4)
    assert found[0] != pytest.approx(found[1], rel=0.01)


def test_signal_is_lost_beside_air_and_not_far_from_it():
    ranks = torch.full((32, 32, 32), list(TABLE.codes).index(2), dtype=torch.uint8)
    ranks[14:19, 14:19, 14:19] = list(TABLE.codes).index(501)  # Air-Internal
    crop = Crop((32, 32, 32), 3.0)
    left = painted(air_loss(Susceptibility(6.0), ranks, TABLE, crop), ranks, 1.0)
    assert left[16, 16, 20] < 0.7
    assert left[0].min() > 0.95
    shorter = painted(air_loss(Susceptibility(1.0), ranks, TABLE, crop), ranks, 1.0)
    assert shorter.mean() > left.mean()
    assert ((left >= 0) & (left <= 1)).all()


def test_the_middle_of_the_head_is_found_wherever_the_crop_lies(ready, generator):
    where = Deformation((9.0, -6.0, 7.0), (0.7, 0.8, 0.75), center_frac=(0.6, 0.45, 0.4))
    for flip in (False, True):
        recipe = recipe_with(deformation=where, flip=flip)
        crop = generator._crop(ready, recipe)
        # The phantom's scalp is an ellipsoid about the middle of the head.
        inside = generator._deform(ready, recipe).numpy() > 0
        middle = (np.array(ndimage.center_of_mass(inside)) - (np.array(SHAPE) - 1) / 2) * VOXEL_MM
        assert crop.center_mm == pytest.approx(tuple(middle), abs=1.5)
        assert np.abs(middle).max() > 8


# Motion


def mixed(poses: list[np.ndarray], pose_of_line: np.ndarray, axis: int) -> np.ndarray:
    """Lines of k-space, each from the image of its pose, plainly."""
    order = np.fft.ifftshift(pose_of_line)
    total = 0
    for number, image in enumerate(poses):
        lines = (order == number).astype(float)
        lines = lines.reshape([-1 if a == axis else 1 for a in range(3)])
        total = total + np.fft.fft(image, axis=axis) * lines
    return np.abs(np.fft.ifft(total, axis=axis))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shape", [(16, 18, 20), (15, 17, 19)])
def test_shifts_are_those_of_lines_taken_from_the_rolled_image(rng, axis, shape):
    image = rng.random(shape).astype(np.float32)
    motion = Motion((0.25, 0.8), ((1.0, 2.0, -1.0), (0.0, -3.0, 1.0)), (STILL,) * 2, axis)
    n = shape[axis]
    lines = np.searchsorted((0.25, 0.8), (np.arange(n) + 0.5) / n, side="right")
    # The middle is read after the first move, so that the others are relative to that pose.
    poses = [np.roll(image, s, (0, 1, 2)) for s in ((-1, -2, 1), (0, 0, 0), (-1, -5, 2))]
    found = move(torch.from_numpy(image), motion, Crop(shape, 1.0)).numpy()
    assert found == pytest.approx(mixed(poses, lines, axis), abs=1e-4)


def blobs(places: np.ndarray) -> np.ndarray:
    """Smooth image at (3, ...) places in mm from the middle."""
    image = 0
    for center, width in (((10, 0, 4), 6), ((-6, 9, -8), 5), ((0, -12, 2), 7)):
        offset = places - np.reshape(center, (3, 1, 1, 1))
        image = image + np.exp(-0.5 * (offset**2).sum(0) / width**2)
    return image.astype(np.float32)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_turns_are_those_of_the_head(axis):
    crop = Crop((40, 36, 38), 2.0, center_mm=(2.0, -1.0, 3.0))
    places = np.stack(np.meshgrid(*[a.numpy() for a in crop.axes_mm()], indexing="ij"))
    angles, shift = (4.0, -6.0, 5.0), (1.3, -0.7, 0.4)
    turned = np.einsum(
        "ij,jxyz->ixyz", rotation(angles).T, places - np.reshape(shift, (3, 1, 1, 1))
    )
    n = crop.shape[axis]
    lines = ((np.arange(n) + 0.5) / n >= 0.53).astype(int)
    expected = mixed([blobs(places), blobs(turned)], lines, axis)
    motion = Motion((0.53,), (shift,), (angles,), axis)
    found = move(torch.from_numpy(blobs(places)), motion, crop).numpy()
    assert found == pytest.approx(expected, abs=0.02)
    assert np.abs(expected - blobs(places)).max() > 0.06


def test_motion_keeps_energy_and_a_late_move_matters_least(ready, generator):
    image = generator.render(ready, recipe_with()).image[0]
    crop = Crop(SHAPE, VOXEL_MM)
    moved = move(image, TWO_MOVES, crop)
    assert float((moved**2).mean()) == pytest.approx(float((image**2).mean()), rel=0.01)
    changes = [
        float((move(image, replace(TWO_MOVES, times_frac=(t, 0.99)), crop) - image).abs().mean())
        for t in (0.55, 0.75, 0.95)
    ]
    assert changes == sorted(changes, reverse=True)


def test_moves_that_lead_nowhere_change_nothing(rng):
    image = torch.from_numpy(rng.random((12, 13, 14), dtype=np.float32))
    for motion in (
        Motion((0.3, 0.6), (STILL,) * 2, (STILL,) * 2, 2),
        Motion((0.0,), ((5.0, 0.0, 0.0),), ((3.0, 0.0, 0.0),)),  # before the first line
    ):
        found = move(image, motion, Crop((12, 13, 14), 1.0))
        torch.testing.assert_close(found, image, atol=1e-5, rtol=0)


def test_moves_that_do_not_belong_together_are_refused():
    image, crop = torch.rand(4, 4, 4), Crop((4, 4, 4), 1.0)
    with pytest.raises(ValueError, match="each move"):
        move(image, Motion((0.3,), (STILL,)), crop)
    with pytest.raises(ValueError, match="have to rise"):
        move(image, Motion((0.7, 0.3), (STILL,) * 2, (STILL,) * 2), crop)


# Gibbs, noise, ratio


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_edge_overshoots_by_nine_per_cent_and_rings_at_its_period(axis):
    edge = torch.zeros(3, 3, 512).transpose(2, axis).contiguous()
    edge.narrow(axis, 256, 256).fill_(1.0)
    kept = [1.0, 1.0, 1.0]
    kept[axis] = 1 / 16
    line = (
        truncate(edge, Gibbs(tuple(kept)))
        .narrow((axis + 1) % 3, 1, 1)
        .mean([a for a in range(3) if a != axis])
    )
    assert float(line.max() - 1) == pytest.approx(0.0895, abs=0.004)
    assert float(-line.min()) == pytest.approx(0.0895, abs=0.004)
    assert float(line.mean()) == pytest.approx(0.5, abs=1e-4)
    above = line[256:420].numpy() - 1
    peaks = np.flatnonzero((above[1:-1] > above[:-2]) & (above[1:-1] > above[2:]))
    assert np.diff(peaks).mean() == pytest.approx(2 * 16, rel=0.1)


def test_truncating_twice_is_truncating_once_and_frequencies_in_k_space_stay():
    wave = torch.cos(torch.pi / 40 * 6 * (torch.arange(40) + 0.5)).view(40, 1, 1)
    gibbs = Gibbs((0.5, 1.0, 1.0))
    torch.testing.assert_close(truncate(wave, gibbs), wave, atol=1e-5, rtol=0)
    noisy = torch.randn(40, 5, 5, generator=torch.Generator().manual_seed(1))
    once = truncate(noisy, gibbs)
    torch.testing.assert_close(truncate(once, gibbs), once, atol=1e-5, rtol=0)
    assert float(once.var() / noisy.var()) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("kept", [0.0, -0.1, 1.2])
def test_impossible_shares_of_k_space_are_refused(kept):
    with pytest.raises(ValueError, match="share of k-space"):
        truncate(torch.rand(4, 4, 4), Gibbs((1.0, kept, 1.0)))


@pytest.mark.parametrize("channels", [1, 2, 8, 32])
@pytest.mark.parametrize("signal", [0.0, 1.0, 6.0])
def test_noise_follows_the_non_central_chi_law(channels, signal):
    sd = 0.8
    image = torch.full((24, 24, 24), signal)
    found = magnitude(image, Noise(0.4, 5, channels), scale=2.0).numpy().ravel() / sd
    degrees, power = 2 * channels, (signal / sd) ** 2
    law = stats.ncx2(degrees, power) if power else stats.chi2(degrees)
    assert stats.kstest(found**2, law.cdf).pvalue > 1e-3
    if channels == 1:
        assert found.mean() == pytest.approx(stats.rice(signal / sd).mean(), rel=0.01)


def test_a_ratio_shows_no_receive_field_and_its_air_is_uniform(ready, generator):
    names = ("ratio", "receive")
    deformation = Deformation(center_frac=(0.5, 0.5, 0.5))
    pairs = [
        generator.render(ready, recipe_with(*n, deformation=deformation))
        for n in (("ratio",), names)
    ]
    white = pairs[0].labels == list(LabelTable.packaged("brainseg").codes).index(2)
    with_field, without = (float(pair.image[0][white].mean()) for pair in pairs)
    assert with_field == pytest.approx(without, abs=0.01)
    corner = pairs[0].image[0, :, :6, :6].flatten().numpy()
    assert stats.kstest(corner, "uniform").statistic < 0.04


# View


def test_outside_of_the_field_of_view_there_is_nothing_whatever_the_noise(ready, generator):
    view = View(low_mm=(-300.0, -300.0, -40.0), high_mm=(50.0, 300.0, 300.0))
    recipe = recipe_with("rician", view=view, deformation=Deformation(center_frac=(0.5,) * 3))
    plain, pair = (generator.render(ready, r) for r in (replace(recipe, view=View()), recipe))
    crop = generator._crop(ready, recipe)
    x_mm, _, z_mm = (axis.numpy() for axis in crop.axes_mm())
    assert not pair.image[0][x_mm > 50].any()
    assert not pair.image[0][:, :, z_mm < -40].any()
    assert not pair.labels[x_mm > 50].any()
    box = field_of_view(view, crop)
    assert torch.equal(pair.labels[box], plain.labels[box])
    inside = pair.image[0][box]
    assert (inside > 0).float().mean() > 0.97
    # Scaled by what is in view, as an image with this field of view is at inference.
    assert float(torch.quantile(inside, 0.99)) == pytest.approx(1.0, abs=0.05)


def test_stripped_and_cut_voxels_are_zero_whatever_the_noise(ready, generator):
    view = View(kept="brain", cut_normal=(0.0, 1.0, 0.0), cut_mm=30.0)
    pair = generator.render(ready, recipe_with("rician", "resolution", view=view))
    hidden = pair.labels == 0
    assert hidden.any()
    assert not pair.image[0][hidden].any()
    assert (pair.image[0][~hidden] > 0).float().mean() > 0.9


def test_labels_of_several_components_are_not_painted_without_a_texture():
    table = LabelTable([Label(0, "Background"), Label(2, "Two")])
    two = Tissue((10.0, 90.0), (1.0, 1.0), (0.5, 0.5))
    recipe = Recipe({"Background": Tissue((0.0,), (0.0,)), "Two": two})
    noise, cpu = (lambda start, stop: torch.zeros(stop - start, 2, 2)), torch.device("cpu")
    paint_tissues = tissues(recipe, table, level=None, noise=noise, device=cpu)
    with pytest.raises(ValueError, match="texture"):
        paint_tissues(torch.zeros(2, 2, 2), torch.ones(2, 2, 2, dtype=torch.int32), 0, 2)
