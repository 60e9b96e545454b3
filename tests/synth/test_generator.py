# SPDX-License-Identifier: Apache-2.0
"""The generator renders what the recipe says, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import Label, LabelTable
from brainseg_bids.synth.deform import flow
from brainseg_bids.synth.generator import Generator, LabelVolume
from brainseg_bids.synth.interpolate import cubic_matrix, linear_matrix
from brainseg_bids.synth.recipe import (
    Bias,
    Deformation,
    Noise,
    Ratio,
    Recipe,
    Resolution,
    Tissue,
    View,
)
from brainseg_bids.synth.space import RecipeSpace
from tests.phantom.head import INTENSITY, phantom_grid, phantom_head

VOXEL_MM = 4.0


def plain_recipe(**changes) -> Recipe:
    """Nothing moves, nothing blurs, no noise; every label one grey value."""
    tissues = {}
    for label in LabelTable.packaged("fullhead"):
        name = label.name.removeprefix("Left-").removeprefix("Right-")
        tissues[label.name] = Tissue((float(INTENSITY.get(name, 60)),), (0.0,))
    native = Resolution((VOXEL_MM,) * 3, (VOXEL_MM,) * 3)
    return replace(Recipe(tissues=tissues, resolution=native), **changes)


@pytest.fixture(scope="module")
def ready(head) -> LabelVolume:
    return LabelVolume.from_label_map(head)


def generator(shape=(48, 56, 52), crosswalk=None) -> Generator:
    return Generator(
        crosswalk or Crosswalk.packaged("fullhead", "brainseg"),
        LabelTable.packaged("fullhead"),
        shape=shape,
        voxel_size_mm=VOXEL_MM,
    )


def centred(ready: LabelVolume, shape) -> tuple[float, float, float]:
    """Centre fractions that put the crop on the middle of the label map's own box."""
    low, high = ready.box_vox
    middle = (np.array(ready.indices.shape) - 1) / 2
    return tuple((middle - low) / (high - low))


def target_codes(pair) -> np.ndarray:
    return LabelTable.packaged("brainseg").codes[pair.labels.numpy()]


@pytest.mark.parametrize("name", ["agnostic", "t1w"])
def test_the_same_recipe_gives_the_same_pair_bit_for_bit(ready, name):
    recipe = RecipeSpace.packaged(name).draw(np.random.default_rng(5))
    first, again = (generator().render(ready, recipe) for _ in range(2))
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.labels, again.labels)


def test_threads_do_not_change_the_pair(ready):
    recipe = RecipeSpace.packaged("agnostic").draw(np.random.default_rng(6))
    before = torch.get_num_threads()
    pairs = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        pairs.append(generator().render(ready, recipe))
    torch.set_num_threads(before)
    assert torch.equal(pairs[0].labels, pairs[1].labels)
    torch.testing.assert_close(pairs[0].image, pairs[1].image, atol=1e-4, rtol=0)


def test_a_recipe_that_does_nothing_gives_the_label_map_back(ready, head):
    recipe = plain_recipe(deformation=Deformation(center_frac=centred(ready, head.grid.shape)))
    pair = generator().render(ready, recipe)
    expected = Crosswalk.packaged("fullhead", "brainseg").codes(head.voxels)
    np.testing.assert_array_equal(target_codes(pair), expected)


def test_grey_values_are_those_of_the_recipe_up_to_the_final_scaling(ready, head):
    recipe = plain_recipe(deformation=Deformation(center_frac=centred(ready, head.grid.shape)))
    image = generator().render(ready, recipe).image[0].numpy()
    grey = {
        name: np.unique(image[head.voxels == head.table[name].index])
        for name in ("Left-Thalamus", "Left-Putamen", "Left-Cerebral-White-Matter", "CSF")
    }
    assert all(len(values) == 1 for values in grey.values())
    ratio = (grey["Left-Thalamus"] - grey["CSF"]) / (
        grey["Left-Cerebral-White-Matter"] - grey["CSF"]
    )
    assert ratio[0] == pytest.approx((115 - 35) / (145 - 35), abs=1e-3)


def test_painted_noise_has_the_recipes_mean_and_spread(ready, head):
    tissues = plain_recipe().tissues | {
        "Left-Cerebral-White-Matter": Tissue((100.0,), (7.0,)),
        "Background": Tissue((0.0,), (0.0,)),
        "Unknown": Tissue((0.0,), (0.0,)),
        "Skin": Tissue((255.0,), (0.0,)),
        "Other-Tissues": Tissue((255.0,), (0.0,)),
    }
    recipe = plain_recipe(
        tissues=tissues, deformation=Deformation(center_frac=centred(ready, head.grid.shape))
    )
    image = 255 * generator().render(ready, recipe).image[0].numpy()
    values = image[head.voxels == 2]
    n = len(values)
    assert values.mean() == pytest.approx(100, abs=4 * 7 / np.sqrt(n))
    assert values.std() == pytest.approx(7, abs=4 * 7 / np.sqrt(2 * n))


def test_a_flip_is_the_mirror_image_with_sides_swapped(head):
    grid = phantom_grid()
    lopsided = head.voxels.copy()
    lopsided[30:34, 20:24, 30:34] = 26  # Left-Accumbens-area, on the right side
    lopsided = LabelMap(lopsided, grid, head.table)
    ready = LabelVolume.from_label_map(lopsided)
    where = Deformation(center_frac=centred(ready, grid.shape))
    plain = target_codes(generator().render(ready, plain_recipe(deformation=where)))
    flipped = target_codes(generator().render(ready, plain_recipe(deformation=where, flip=True)))
    mirrored = LabelMap(plain, grid, LabelTable.packaged("brainseg")).mirrored().voxels
    np.testing.assert_array_equal(flipped, mirrored)
    assert (flipped == 58).sum() == (plain == 26).sum() > 0


def test_axis_order_of_the_label_map_does_not_matter(head, ready):
    order, recipe = (2, 0, 1), RecipeSpace.packaged("t1w").draw(np.random.default_rng(2))
    affine = head.grid.affine[:, [*order, 3]].copy()
    affine[:, 1] *= -1
    affine[:3, 3] -= affine[:3, 1] * (head.grid.shape[order[1]] - 1)
    turned = LabelMap(
        np.ascontiguousarray(np.flip(head.voxels.transpose(order), 1)),
        type(head.grid)(tuple(head.grid.shape[a] for a in order), affine),
        head.table,
    )
    again = LabelVolume.from_label_map(turned)
    assert torch.equal(again.indices, ready.indices)
    first, second = (generator().render(h, recipe) for h in (ready, again))
    assert torch.equal(first.image, second.image)


def test_beyond_the_map_is_background_and_nothing_wraps(ready):
    recipe = plain_recipe(
        deformation=Deformation(center_frac=(0.5, 0.5, 0.5), scaling=(0.4, 0.4, 0.4))
    )
    pair = generator().render(ready, recipe)
    border = pair.labels.clone()
    border[8:-8, 8:-8, 8:-8] = 0
    assert border.sum() == 0
    assert pair.labels.sum() > 0


def test_scaling_scales_volumes_by_its_cube(ready, head):
    codes = [
        target_codes(
            generator().render(
                ready,
                plain_recipe(
                    deformation=Deformation(
                        center_frac=centred(ready, head.grid.shape), scaling=(s,) * 3
                    )
                ),
            )
        )
        for s in (1.0, 0.8)
    ]
    brain = [np.isin(c, (2, 41)).sum() for c in codes]
    assert brain[1] / brain[0] == pytest.approx(0.8**3, rel=0.04)


def test_a_stripped_view_hides_head_from_image_and_labels(ready, head):
    where = Deformation(center_frac=centred(ready, head.grid.shape))
    for kept, csf in (("brain", False), ("brain+csf", True)):
        pair = generator().render(ready, plain_recipe(deformation=where, view=View(kept=kept)))
        codes = target_codes(pair)
        assert not np.isin(codes, (507, 511, 515)).any()
        assert (codes == 24).any() == csf
        assert {2, 10, 16, 4} <= set(np.unique(codes))
        assert pair.image[0][pair.labels == 0].max() == 0


def test_a_cut_removes_what_lies_beyond_its_plane(ready, head):
    where = Deformation(center_frac=centred(ready, head.grid.shape))
    view = View(cut_normal=(0.0, 1.0, 0.0), cut_mm=40.0)
    cut = generator().render(ready, plain_recipe(deformation=where, view=view)).labels
    full = generator().render(ready, plain_recipe(deformation=where)).labels
    y_mm = head.grid.affine[1, 1] * np.arange(56) + head.grid.affine[1, 3]
    assert cut[:, y_mm > 44].sum() == 0
    assert torch.equal(cut[:, y_mm < 36], full[:, y_mm < 36])


def test_labels_stay_sharp_and_true_whatever_happens_to_the_image(ready, head):
    where = Deformation(center_frac=centred(ready, head.grid.shape))
    blurred = plain_recipe(
        deformation=where,
        resolution=Resolution((4.0, 12.0, 4.0), (4.0, 12.0, 4.0)),
        noise=Noise(0.1, 3),
        bias=Bias(0.5, 60, 4),
        gamma=1.4,
    )
    plain = generator().render(ready, plain_recipe(deformation=where))
    changed = generator().render(ready, blurred)
    assert torch.equal(plain.labels, changed.labels)
    assert not torch.equal(plain.image, changed.image)


def test_images_lie_between_zero_and_one_and_are_finite(ready):
    for seed in range(6):
        for name in ("agnostic", "t1w"):
            pair = generator((40, 40, 32)).render(
                ready, RecipeSpace.packaged(name).draw(np.random.default_rng(seed))
            )
            assert torch.isfinite(pair.image).all()
            assert pair.image.min() >= 0
            assert pair.image.max() <= 1


def test_a_warp_can_be_undone():
    generator_ = torch.Generator().manual_seed(1)
    coarse = torch.randn(3, 4, 4, 4, generator=generator_) * 3
    velocity = torch.nn.functional.interpolate(
        coarse[None], size=(24, 24, 24), mode="trilinear", align_corners=True
    )[0]
    there, back = flow(velocity, spacing_mm=4.0), flow(-velocity, spacing_mm=4.0)
    grid = torch.stack(torch.meshgrid(*[torch.arange(24.0)] * 3, indexing="ij"))
    where = (grid + there / 4.0) / 23 * 2 - 1
    returned = torch.nn.functional.grid_sample(
        back[None],
        where.flip(0).permute(1, 2, 3, 0)[None],
        align_corners=True,
        padding_mode="border",
    )[0]
    left_mm = (there + returned)[:, 4:-4, 4:-4, 4:-4].abs().max()
    assert there.abs().max() > 3
    assert left_mm < 0.4  # a tenth of the nodes' spacing


def test_interpolation_matrices_are_partitions_of_one():
    for matrix in (
        linear_matrix(13, 5),
        linear_matrix(7, 3, positions=torch.tensor([-1.0, 0, 0.5, 1, 1.7, 2, 9])),
        cubic_matrix(9, 6, positions=torch.linspace(1, 4, 9)),
    ):
        torch.testing.assert_close(matrix.sum(1), torch.ones(len(matrix)))


def test_an_empty_label_map_is_refused():
    empty = LabelMap(
        np.zeros((5, 5, 5), int), phantom_grid((5, 5, 5)), LabelTable.packaged("fullhead")
    )
    with pytest.raises(ValueError, match="empty"):
        LabelVolume.from_label_map(empty)


def test_codes_without_translation_are_refused_by_name():
    labels = phantom_head((24, 28, 26), 8.0)
    voxels = labels.voxels.copy()
    voxels[0, 0, 0] = 77  # has no side, so it has no translation
    with pytest.raises(ValueError, match=r"77 \(1 voxel\)"):
        generator().check_codes(voxels, what="sub-01")


@pytest.mark.parametrize("kept", ["head", "brain"])
@pytest.mark.parametrize(
    ("effects", "level"),
    [
        ({"noise": Noise(0.1, 3)}, 0.0),
        ({"ratio": Ratio(0.1, low=0.0, high=255.0)}, 51.0),
    ],
)
def test_masked_air_is_constant_after_noise_and_labels_stay(ready, head, kept, effects, level):
    where = Deformation(center_frac=centred(ready, head.grid.shape))
    noisy = plain_recipe(deformation=where, view=View(kept=kept), **effects)
    view = View(kept=kept, air_masked=True, air_level=level)
    masked = generator().render(ready, replace(noisy, view=view))
    full = generator().render(ready, noisy)
    shown = np.array([kept == "head" or label.is_brain for label in head.table])
    outside = (head.voxels == 0) | ~shown[head.table.positions()[head.voxels]]
    air = np.unique(masked.image[0].numpy()[outside])
    assert len(air) == 1
    assert air[0] == 0 if level == 0 else 0 < air[0] < 0.4
    assert torch.equal(masked.labels, full.labels)
    assert masked.image[0].numpy()[~outside].std() > 0.1
    if kept == "head":
        assert full.image[0].numpy()[head.voxels == 0].std() > 0.02


def test_beyond_the_field_of_view_is_zero_whatever_the_masks_level(ready, head):
    view = View(air_masked=True, air_level=51.0, high_mm=(1000.0, 1000.0, 0.0))
    recipe = plain_recipe(view=view, ratio=Ratio(0.05, low=0.0, high=255.0))
    image = generator().render(ready, recipe).image[0]
    assert (image[:, :, -2:] == 0).all()
    assert (image[0, 0, :5] > 0).all()


@pytest.mark.parametrize(
    ("codes", "remedy"), [(range(1, 9), "code 0"), (range(300), "255 labels")]
)
def test_tables_that_class_indices_cannot_hold_are_refused(codes, remedy):
    table = LabelTable([Label(code, f"Label-{code}") for code in codes])
    same = Crosswalk({code: code for code in codes}, table, name="same")
    with pytest.raises(ValueError, match=remedy):
        Generator(same, table, shape=(16, 16, 16))


def test_a_head_moves_to_a_device_with_its_ventricles(ready):
    moved = ready.to("meta")
    assert (moved.indices.device.type, moved.ventricles.vectors.device.type) == ("meta", "meta")
    assert moved.ventricles.spacing_vox == ready.ventricles.spacing_vox
    assert ready.indices.device.type == "cpu"
