# SPDX-License-Identifier: Apache-2.0
"""What is unlabelled inside the head gets tissue, air or its neighbour, and nothing else does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from brainseg_bids.anatomy.cavities import fill_cavities
from brainseg_bids.anatomy.completion import Completed, _without_thin_layers, complete
from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.head_outline import CoarseGrid, otsu_threshold
from brainseg_bids.anatomy.rules import MergeRules
from tests.phantom.head import phantom_grid, phantom_head, phantom_image

RULES = MergeRules.packaged()
FINE = phantom_grid((96, 112, 104), 2.0)


@pytest.fixture(scope="module")
def fine():
    return phantom_head(grid=FINE)


@pytest.fixture(scope="module")
def picture(fine):
    return phantom_image(fine, np.random.default_rng(3))


def ball(grid: Grid, centre, radius_mm: float) -> np.ndarray:
    world = np.einsum("ij,jxyz->ixyz", grid.affine[:3, :3], np.indices(grid.shape))
    world += grid.affine[:3, 3][:, None, None, None]
    return sum((w - c) ** 2 for w, c in zip(world, centre, strict=True)) <= radius_mm**2


def enclosed(voxels: np.ndarray) -> int:
    """0-voxels without a way out, found with another library than the code's."""
    return int((ndimage.binary_fill_holes(voxels != 0) & (voxels == 0)).sum())


def completed(labels, *, image=None) -> tuple[np.ndarray, Completed]:
    voxels = np.array(labels, dtype=np.int16)
    return voxels, complete(voxels, FINE, RULES, image=image)


def test_a_finished_head_stays_as_it_is(fine, picture):
    for image in (None, picture):
        voxels, done = completed(fine.voxels, image=image)
        np.testing.assert_array_equal(voxels, fine.voxels)
        assert (done.tissue, done.air, done.nearest, done.holes_after) == (0, 0, 0, 0)


def test_a_dark_cavity_is_air_and_a_bright_one_is_tissue(fine, picture):
    sinus, muscle = ball(FINE, (0, 84, -20), 6), ball(FINE, (0, -86, -10), 5)
    labels = np.where(sinus | muscle, 0, fine.voxels)
    image = np.where(sinus, 4, np.where(muscle, 110, picture)).astype(np.float32)
    voxels, done = completed(labels, image=image)
    assert (voxels[ball(FINE, (0, 84, -20), 4)] == 501).mean() > 0.9
    assert (voxels[ball(FINE, (0, -86, -10), 3)] == 507).mean() > 0.9
    assert done.holes_before == (sinus | muscle).sum()
    assert enclosed(voxels) == 0


def test_without_an_image_a_cavity_outside_the_brain_is_air(fine):
    labels = np.where(ball(FINE, (0, 84, -20), 6), 0, fine.voxels)
    voxels, done = completed(labels)
    assert (voxels[labels == 0] == np.where(fine.voxels == 0, 0, 501)[labels == 0]).all()
    assert done.air
    assert not done.tissue


def test_there_is_no_air_in_the_brain(fine, picture):
    labels = np.where(ball(FINE, (34, 0, 30), 8), 0, fine.voxels)
    for image in (None, picture):
        voxels, done = completed(labels, image=image)
        assert set(np.unique(voxels[labels != fine.voxels])) <= set(np.unique(fine.voxels)) - {0}
        assert done.air == 0


def test_a_pinhole_takes_the_label_around_it(fine):
    labels = fine.voxels.copy()
    x, y, _ = (n // 2 for n in FINE.shape)
    skull = np.flatnonzero(fine.voxels[x, y] == 515)[-1]
    labels[x, y, skull] = 0
    voxels, done = completed(labels)
    assert voxels[x, y, skull] == 515
    assert done.nearest == 1


def test_head_beyond_the_labels_is_tissue_in_the_maps_own_words(fine, picture):
    below = np.arange(FINE.shape[2]) < 24  # the atlas ends here, as SAMSEG's does above the chin
    for soft, words in ((507, 507), (258, 258)):
        labels = np.where(fine.voxels == 507, soft, fine.voxels)
        labels = np.where(below, 0, labels)
        voxels, done = completed(labels, image=picture)
        lost = below & np.isin(fine.voxels, (511, 507))
        assert (voxels[lost] == words).mean() > 0.9
        assert (voxels[below & (fine.voxels == 0)] == 0).mean() > 0.98
        assert done.tissue > 0


def unlabelled_neck(fine, picture) -> tuple[np.ndarray, np.ndarray]:
    """The head as a tool leaves it whose atlas ends above the neck, and a bright neck."""
    below = np.arange(FINE.shape[2]) < 24
    return (
        np.where(below, 0, fine.voxels),
        np.where(below & (fine.voxels > 0), 110, picture).astype(np.float32),
    )


@pytest.mark.parametrize(("size", "air"), [((3, 3, 2), False), ((5, 2, 2), True)])
def test_dark_spots_in_unlabelled_tissue_are_air_from_150_mm3_on(fine, picture, size, air):
    labels, image = unlabelled_neck(fine, picture)  # voxels of 8 mm3
    spot = tuple(slice(a, a + n) for a, n in zip((46, 55, 17), size, strict=True))
    image[spot] = 4
    voxels, _ = completed(labels, image=image)
    assert set(np.unique(voxels[spot]).tolist()) == {501 if air else 507}


@pytest.mark.parametrize(("share", "code"), [(0.28, 501), (0.42, 507)])
def test_tissue_is_brighter_than_a_third_of_the_way_to_otsus_threshold(fine, picture, share, code):
    labels, image = unlabelled_neck(fine, picture)
    patch = ball(FINE, (0, 0, -68), 7)
    dark = float(np.median(picture[fine.voxels == 0]))
    otsu = otsu_threshold(CoarseGrid.of(FINE, 2.5).mean(image))
    image[patch] = dark + share * (otsu - dark)
    voxels, _ = completed(labels, image=image)
    assert (voxels[ball(FINE, (0, 0, -68), 4)] == code).all()


def test_nostrils_are_air_and_the_air_around_the_head_is_not(fine):
    canal = ball(FINE, (0, 84, -20), 5)
    line = (np.abs(np.indices(FINE.shape)[0] - 47.5) < 2) & (np.indices(FINE.shape)[1] > 95)
    canal |= line & (np.abs(np.indices(FINE.shape)[2] - 41) < 2)
    labels = np.where(canal, 0, fine.voxels)
    assert enclosed(labels) == 0  # it opens to the outside
    voxels, _ = completed(labels)
    assert (voxels[ball(FINE, (0, 84, -20), 3)] == 501).all()
    assert (voxels[fine.voxels == 0] == 0).all()


def test_noise_around_the_head_is_not_head(fine, picture):
    """MP2RAGE's ratio image has a background as bright as the brain."""
    noise = np.random.default_rng(1).uniform(0, 200, FINE.shape)
    image = np.where(fine.voxels == 0, noise, picture)
    voxels, done = completed(fine.voxels, image=image)
    np.testing.assert_array_equal(voxels, fine.voxels)
    assert any("cannot be distinguished in the image" in flag for flag in done.flags)


def test_a_ghost_of_the_head_is_not_head(fine, picture):
    """Seen in a real head: noise above the scalp, dimmer than tissue, joined with it."""
    image = picture.copy()
    above = ball(FINE, (0, 0, 100), 25) & (fine.voxels == 0)
    image[above] = 25  # tissue has 85 to 150, the level that tells it from air is below 20
    voxels, done = completed(fine.voxels, image=image)
    # One layer beside the scalp may count as tissue: smoothed, it is as bright as half a scalp.
    ghost = above & ~ndimage.binary_dilation(fine.voxels != 0)
    assert ghost.sum() > 1000
    assert not voxels[ghost].any()
    assert not done.flags


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_an_image_without_contrast_is_left_aside(fine, value):
    labels = np.where(ball(FINE, (0, 84, -20), 6), 0, fine.voxels)
    voxels, done = completed(labels, image=np.full(FINE.shape, value, np.float32))
    assert enclosed(voxels) == 0
    assert len(done.flags) == 1


def test_a_removed_face_stays_removed(fine, picture):
    face = (np.indices(FINE.shape)[1] > 90) & (np.indices(FINE.shape)[2] < 40)
    labels = np.where(face, 0, fine.voxels)
    voxels, done = completed(labels, image=np.where(face, 0, picture))
    assert (voxels[face] == 0).mean() > 0.97
    assert done.holes_after == 0


def test_an_airway_cut_by_the_field_of_view_is_air(fine):
    low = 20  # the head is cut at this plane
    labels = np.where(ball(FINE, (0, 10, -60), 12), 0, fine.voxels)[..., low:]
    grid = FINE.crop((0, 0, low), (*FINE.shape[:2], FINE.shape[2] - low))
    voxels = np.ascontiguousarray(labels, dtype=np.int16)
    complete(voxels, grid, RULES)
    airway = ball(grid, (0, 10, -60), 9)
    assert (voxels[airway] == 501).all()


def test_an_empty_map_is_flagged_and_left():
    voxels, done = completed(np.zeros(FINE.shape))
    assert not voxels.any()
    assert "voxel is labelled" in done.flags[0]


def test_a_label_at_the_border_does_not_reach_the_opposite_one():
    voxels = np.zeros(FINE.shape, dtype=np.int16)
    voxels[0] = 515
    voxels[0, 50, 50] = 0
    complete(voxels, FINE, RULES)
    assert not voxels[1:].any()


small = phantom_grid((24, 28, 26), 8.0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 0.6))
def test_no_hole_is_left_whatever_is_missing(seed, share):
    rng = np.random.default_rng(seed)
    labels = phantom_head(grid=small)
    voxels = np.where(rng.random(small.shape) < share, 0, labels.voxels).astype(np.int16)
    image = phantom_image(labels, rng) if seed % 2 else None
    present = set(np.unique(voxels).tolist())
    done = complete(voxels, small, RULES, image=image)
    assert enclosed(voxels) == done.holes_after == 0
    assert set(np.unique(voxels).tolist()) <= present | {501, 507}


@settings(deadline=None)
@given(st.integers(1, 60), st.floats(0.4, 6), st.floats(1, 4))
def test_no_voxel_lies_on_a_border_between_cells(n, size_mm, coarse_mm):
    coarse = CoarseGrid.of(Grid((n, 1, 1), np.diag([size_mm, 1, 1, 1])), coarse_mm)
    cells = coarse.cells_of(0, 0, n)
    np.testing.assert_array_equal(cells[::-1], coarse.shape[0] - 1 - cells)
    assert cells[0] == 0
    assert cells[-1] == coarse.shape[0] - 1
    field = np.random.default_rng(n).random((n, 1, 1))
    assert coarse.mean(field).mean() == pytest.approx(field.mean(), rel=1e-4)


def test_cavities_are_filled_and_bays_are_not():
    mask = np.ones((5, 5, 5), dtype=bool)
    mask[2, 2, 2] = mask[0, 0, 0] = False
    filled = fill_cavities(mask)
    assert filled[2, 2, 2]
    assert not filled[0, 0, 0]


def test_otsu_parts_two_humps(rng):
    image = np.concatenate([rng.normal(10, 2, 5000), rng.normal(100, 10, 3000)])
    assert 18 < otsu_threshold(image) < 75
    assert otsu_threshold(np.zeros(10)) == 0


def test_bright_layers_along_a_wall_are_partial_volume_only_if_thin():
    bright = np.zeros((24, 24, 24), bool)
    bright[3:5] = True  # 1 mm along a wall
    bright[10:20, 4:20, 4:20] = True
    kept = _without_thin_layers(bright, Grid(bright.shape, np.diag([0.5, 0.5, 0.5, 1])))
    assert not kept[:8].any()
    assert kept[12:18, 8:16, 8:16].all()
    coarse = _without_thin_layers(bright, Grid(bright.shape, np.diag([3.0, 3, 3, 1])))
    np.testing.assert_array_equal(coarse, bright)
