# SPDX-License-Identifier: Apache-2.0
"""Labels come back on the image's own grid, whatever that is."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
import torch
from torch import nn

from brainseg_bids.anatomy.fill import without_fill
from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.intensity import rescale
from brainseg_bids.anatomy.labels import Label, LabelTable
from brainseg_bids.images import read_volume
from brainseg_bids.inference.predict import segment
from brainseg_bids.inference.views import head_box
from brainseg_bids.nets.architectures import depth_to_space, space_to_depth
from tests.phantom.head import phantom_grid, phantom_head, phantom_image

TABLE = LabelTable(
    [Label(0, "Background"), Label(2, "Dark"), Label(7, "Bright", mirror=7)], name="shades"
)


class ShadeNet(nn.Module):
    """Stands in for a trained network: label by grey value, through a linear head."""

    class spec:
        block_size = 2
        n_labels = 3

    def features(self, image):
        return space_to_depth(image, 2)

    def scores(self, features):
        grey = depth_to_space(features, 2)
        return torch.cat([4 - 40 * grey, torch.zeros_like(grey), 40 * grey - 24], dim=1)


def run(image, grid, *, voxel_size_mm=4.0, window=(24, 24, 24), **options):
    return segment(
        image, grid, ShadeNet(), TABLE, voxel_size_mm=voxel_size_mm, window_vox=window, **options
    )


@pytest.fixture(scope="module")
def picture():
    labels = phantom_head((40, 48, 44), 4.0)
    return phantom_image(labels, np.random.default_rng(1), noise_sd=2.0), labels.grid


@pytest.mark.parametrize("value", [-32768, -1024, 32767])
def test_fill_values_do_not_move_labels_and_are_noted(picture, value):
    image, grid = picture
    given, notes = image.copy(), []
    given[0], given[-1] = value, value
    found = run(given, grid, note=notes.append)
    # The noise in these planes no longer counts, nor does it in the scale.
    assert (found.voxels == run(image, grid).voxels).mean() > 0.999
    (note,) = notes
    assert f"fill value {value:g}" in note


def test_an_ordinary_image_is_passed_on_untouched(picture, monkeypatch):
    image, grid = picture
    notes = []
    plain = run(image, grid, note=notes.append)
    assert notes == []
    monkeypatch.setattr("brainseg_bids.inference.predict.without_fill", lambda given: (given, []))
    np.testing.assert_array_equal(run(image, grid).voxels, plain.voxels)


def test_wrapped_integers_are_noted(picture):
    image, grid = picture
    notes = []
    bright = np.rint(image * (32768 / np.quantile(image, 0.97))).astype(np.int64)
    run(bright.astype(np.int16).astype(np.float32), grid, note=notes.append)
    (note,) = notes
    assert "unsigned 16-bit" in note


def expected_codes(image):
    """What ShadeNet says of each voxel when nothing is resampled."""
    low, high = np.quantile(image.ravel()[::61], [0.005, 0.995])
    grey = np.clip((image - low) / (high - low), 0, 1)
    return np.where(grey < 0.1, 0, np.where(grey > 0.6, 7, 2))


def test_on_the_networks_own_grid_nothing_is_interpolated(picture):
    image, grid = picture
    labels = run(image, grid)
    agree = (labels.voxels == expected_codes(image)).mean()
    assert labels.grid == grid
    assert agree > 0.995  # grey scaling is measured in the head's box only


@pytest.mark.input(
    "geometry",
    "the same image in any of the 48 orders and directions of axes",
    "the same labels, voxel for voxel",
    0,
)
@pytest.mark.parametrize(
    ("order", "signs"), list(product(permutations(range(3)), product((1, -1), repeat=3)))
)
def test_turned_copies_of_an_image_give_the_same_labels_turned_back(picture, order, signs):
    image, grid = picture
    affine = grid.affine[:, [*order, 3]].copy()
    for axis, sign in enumerate(signs):
        if sign < 0:
            affine[:3, 3] += affine[:3, axis] * (grid.shape[order[axis]] - 1)
            affine[:, axis] *= -1
    flips = tuple(slice(None, None, sign) for sign in signs)
    turned = run(image.transpose(order)[flips], Grid(tuple(grid.shape[a] for a in order), affine))
    back = turned.voxels[flips].transpose(np.argsort(order))
    np.testing.assert_array_equal(back, run(image, grid).voxels)


@pytest.mark.input(
    "geometry",
    "voxels of any size and ratio of edges, such as 1.5 x 3 x 8 mm",
    "done on the image's own grid; thick slices get a warning",
    0,
)
@pytest.mark.parametrize(
    "sizes", [(2.0, 2.0, 2.0), (1.5, 3.0, 8.0), (4.0, 4.0, 10.0), (3.1, 2.7, 5.2)]
)
def test_any_voxel_size_gives_the_same_anatomy(sizes):
    shape = tuple(int(np.ceil(n / size)) for n, size in zip((160, 196, 180), sizes, strict=True))
    labels = phantom_head(grid=phantom_grid(shape, sizes))
    found = run(
        phantom_image(labels, np.random.default_rng(1), noise_sd=1.0),
        labels.grid,
        voxel_size_mm=2.0,
        window=(48, 48, 48),
    )
    assert found.voxels.shape == shape
    volume_ml = found.volumes_mm3()[7] / 1000
    truth_ml = (
        sum(
            v
            for code, v in labels.volumes_mm3().items()
            if code in (2, 41, 16, 511, 10, 49, 507, 12, 51)
        )
        / 1000
    )
    assert volume_ml == pytest.approx(truth_ml, rel=0.35 if max(sizes) > 5 else 0.15)


def rotated(degrees):
    a = np.deg2rad(degrees)
    return np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])


TILTED = [
    pytest.param(
        rotated(20),
        id="oblique",
        marks=pytest.mark.input("geometry", "an oblique image", "done on its own grid", 0),
    ),
    pytest.param(rotated(45), id="halfway between two axes"),
    pytest.param(
        np.array([[1, 0.2, 0], [0, 1, 0], [0.1, 0, 1]]),
        id="sheared",
        marks=pytest.mark.input("geometry", "a sheared image", "done on its own grid", 0),
    ),
]


@pytest.mark.parametrize("turn", TILTED)
def test_an_oblique_image_keeps_its_affine(turn):
    affine = phantom_grid((60, 60, 60), 3.5).affine.copy()
    affine[:3] = turn @ affine[:3]
    grid = Grid((60, 60, 60), affine)
    labels = phantom_head(grid=grid)
    found = run(phantom_image(labels, np.random.default_rng(0), noise_sd=1.0), grid)
    assert found.grid == grid
    inside = np.isin(labels.voxels, (2, 41))
    assert (found.voxels[inside] == 7).mean() > 0.9


@pytest.mark.input("geometry", "voxels of 0.5 x 0.5 x 6 mm", "done on the image's own grid", 0)
def test_thin_voxels_in_thick_slices_give_the_same_anatomy():
    thick, thin = (
        phantom_head(grid=phantom_grid(shape, sizes))
        for shape, sizes in (((100, 100, 24), (0.5, 0.5, 6.0)), ((25, 25, 72), (2.0, 2.0, 2.0)))
    )
    found = [
        run(
            phantom_image(labels, np.random.default_rng(1), noise_sd=1.0),
            labels.grid,
            voxel_size_mm=2.0,
        )
        for labels in (thick, thin)
    ]
    assert found[0].grid == thick.grid
    bright = [labels.volumes_mm3()[7] for labels in found]
    assert bright[0] == pytest.approx(bright[1], rel=0.1)


def test_labels_come_through_probabilities_not_by_nearest_neighbour():
    # A plane from dark to bright across slanted cells of 4 mm, read at 1 mm.
    grid = phantom_grid((96, 96, 96), 1.0)
    x, y, _ = np.indices(grid.shape)
    image = (x - 0.4 * y).astype(np.float32)
    found = run(image, grid, voxel_size_mm=4.0).voxels[:, 20:76, 48]
    edges = (found == 7).argmax(0)
    assert np.polyfit(np.arange(len(edges)), edges, 1)[0] == pytest.approx(0.4, abs=0.02)
    # Nearest-neighbour would put every border on a multiple of 4 voxels and jump by 4.
    assert np.abs(np.diff(edges)).max() == 1


@pytest.mark.input(
    "geometry", "sizes that are prime, or smaller than the network's patch", "done", 0
)
def test_an_image_smaller_than_the_window_is_done():
    labels = phantom_head((13, 17, 19), 12.0)
    image = phantom_image(labels, np.random.default_rng(0))
    found = run(image, labels.grid, voxel_size_mm=12.0, window=(32, 32, 32))
    assert found.voxels.shape == image.shape
    assert (found.voxels > 0).sum() > 100


def test_told_probabilities_are_those_behind_the_labels(picture):
    image, grid = picture
    told = np.zeros((*grid.to_ras().shape, 3), np.float32)
    told[..., 0] = 1

    def keep(plane, rows, columns, probabilities):
        told[plane, rows, columns] = probabilities.permute(1, 2, 0).numpy()

    labels = run(image, grid, voxel_size_mm=3.0, on_probabilities=keep)
    np.testing.assert_allclose(told.sum(-1), 1, atol=1e-5)
    ranks = TABLE.positions()[grid.array_to_ras(labels.voxels)]
    np.testing.assert_array_equal(told.argmax(-1), ranks)


def test_the_head_box_leaves_air_away_and_keeps_the_head(rng):
    image = torch.zeros(100, 100, 100)
    image[30:70, 25:80, 40:90] = 100
    image += torch.from_numpy(rng.normal(0, 2, image.shape)).float().abs()
    box = head_box(image, voxel_size_mm=1.0, multiple=2)
    for part, (low, high) in zip(box, ((30, 70), (25, 80), (40, 90)), strict=True):
        assert low - 18 <= part.start <= low
        assert high <= part.stop <= high + 18
        assert (part.stop - part.start) % 2 == 0


def test_a_head_that_fills_the_image_is_seen_whole():
    image = torch.rand(30, 32, 34) * 10 + 100
    box = head_box(image, voxel_size_mm=4.0, multiple=2)
    assert [(part.start, part.stop) for part in box] == [(0, 30), (0, 32), (0, 34)]


@pytest.mark.parametrize(
    ("shape", "voxel_mm", "network_mm"),
    [
        ((40, 40, 40), 1.0, 1.5),
        ((43, 31, 29), 1.0, 1.0),
        ((80, 63, 50), 0.5, 1.5),
        ((2, 40, 3), 0.7, 1.5),
    ],
)
def test_the_last_planes_are_labelled_too(shape, voxel_mm, network_mm):
    # Bright everywhere but for a dark stripe, so that there is something to scale by.
    image = np.full(shape, 100.0, np.float32)
    image[:, shape[1] // 2] = 0
    found = run(image, phantom_grid(shape, voxel_mm), voxel_size_mm=network_mm)
    for axis in range(3):
        for end in (0, -1):
            plane = np.delete(found.voxels, np.s_[shape[1] // 2 - 3 : shape[1] // 2 + 4], axis=1)
            assert (np.take(plane, end, axis) == 7).all()


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
def test_the_unit_of_grey_values_does_not_matter(picture, unit):
    image, grid = picture
    np.testing.assert_array_equal(
        run(image * np.float32(unit), grid).voxels, run(image, grid).voxels
    )


def scaled_box(image):
    """What a network of 1 mm sees of an image of 1 mm."""
    cleaned, fills = without_fill(image)
    seen = torch.from_numpy(np.ascontiguousarray(cleaned))
    box = head_box(seen, voxel_size_mm=1.0, multiple=2)
    return box, rescale(seen[box]).numpy(), fills


@pytest.mark.shared_data
@pytest.mark.slow
def test_a_network_sees_the_same_of_a_real_head_whatever_fills_the_surroundings(shared_data):
    image, _ = read_volume(shared_data / "mne_sample_ecog" / "T1.mgz")
    box, plain, fills = scaled_box(image)
    assert fills == []
    planes = 4 * image
    forms = {
        value: np.concatenate([np.full_like(planes[:1], value), planes[1:]])
        for value in (-32768, -1024, 32767)
    }
    forms["UNI"] = np.where(image == 0, 0, image / 255 - np.float32(0.5))
    for form, given in forms.items():
        its_box, seen, fills = scaled_box(given)
        assert len(fills) == 1, form
        assert its_box == box, form
        np.testing.assert_allclose(seen, plain, atol=0.01, err_msg=str(form))


@pytest.mark.parametrize("voxel_size_mm", [4.0, 3.1, 5.0])
def test_the_way_to_the_network_and_back_prefers_no_side(picture, voxel_size_mm):
    """What differs between a head and its mirror image is the network's doing, not the way's."""
    image, grid = picture
    plain = run(image, grid, voxel_size_mm=voxel_size_mm).voxels == 7
    mirrored = run(image[::-1].copy(), grid, voxel_size_mm=voxel_size_mm).voxels[::-1] == 7
    # Nor are labels moved: a head one voxel to the right has its labels one voxel to the right.
    moved = run(np.roll(image, 1, axis=0), grid, voxel_size_mm=voxel_size_mm).voxels == 7
    for same in (mirrored, np.roll(moved, -1, axis=0)):
        assert same.sum() == pytest.approx(plain.sum(), rel=0.01)
        # Half a voxel is what a way out of line with the grid would make of it.
        assert np.argwhere(same)[:, 0].mean() == pytest.approx(
            np.argwhere(plain)[:, 0].mean(), abs=0.05
        )
        assert (same != plain).mean() < 0.04
