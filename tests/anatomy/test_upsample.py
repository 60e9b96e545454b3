# SPDX-License-Identifier: Apache-2.0
"""Label maps on other grids: nothing is invented, moved, swapped or wrapped."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainseg_bids.anatomy import upsample, upsample_kernels
from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import Label, LabelTable
from brainseg_bids.anatomy.membership import Membership
from brainseg_bids.anatomy.upsample import regrid, regrid_membership
from tests.phantom.head import phantom_grid

TABLE = LabelTable([Label(n, f"Label-{n}") for n in range(6)], name="six")
TURNS = list(product(permutations(range(3)), product((1, -1), repeat=3)))
BOTH = pytest.mark.parametrize("numba", [True, False], ids=["numba", "numpy"])


@pytest.fixture
def without_numba(monkeypatch):
    monkeypatch.setattr(upsample.kernels, "HAS_NUMBA", False)


def rotation(rx, ry, rz) -> np.ndarray:
    x = np.array([[1, 0, 0], [0, np.cos(rx), -np.sin(rx)], [0, np.sin(rx), np.cos(rx)]])
    y = np.array([[np.cos(ry), 0, np.sin(ry)], [0, 1, 0], [-np.sin(ry), 0, np.cos(ry)]])
    z = np.array([[np.cos(rz), -np.sin(rz), 0], [np.sin(rz), np.cos(rz), 0], [0, 0, 1]])
    return x @ y @ z


def oblique_grid(shape, sizes, angles=(0.2, -0.15, 0.3), center=(3, -2, 5)) -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = rotation(*angles) @ np.diag(sizes)
    affine[:3, 3] = np.array(center) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, affine)


def turned(labels: LabelMap, order, signs) -> LabelMap:
    """The same voxels at the same places, stored along other axes."""
    voxels = labels.voxels.transpose(order)[tuple(slice(None, None, s) for s in signs)]
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1
    for new, (old, sign) in enumerate(zip(order, signs, strict=True)):
        matrix[old, new] = sign
        matrix[old, 3] = 0 if sign > 0 else labels.grid.shape[old] - 1
    grid = Grid(voxels.shape, labels.grid.affine @ matrix)
    return LabelMap(np.ascontiguousarray(voxels), grid, labels.table)


def random_map(seed=1, shape=(9, 8, 7), grid=None) -> LabelMap:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 6, [-(-n // 3) for n in shape])
    blocks = np.kron(coarse, np.ones((3, 3, 3), int))[tuple(slice(n) for n in shape)]
    noise = rng.random(shape) < 0.1
    voxels = np.where(noise, rng.integers(0, 6, shape), blocks).astype(np.int16)
    return LabelMap(voxels, grid or oblique_grid(shape, (1, 1.5, 2)), TABLE)


def dense_truth(labels: LabelMap, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """One-hot, trilinear, arg-max by scipy; and the margin between the first two."""
    from scipy.ndimage import map_coordinates

    matrix = np.linalg.inv(labels.grid.affine) @ grid.affine
    at = np.einsum("ab,bxyz->axyz", matrix[:3, :3], np.indices(grid.shape))
    at += matrix[:3, 3, None, None, None]
    scores = np.stack(
        [
            map_coordinates((labels.voxels == code) * 1.0, at, order=1, mode="nearest")
            for code in range(6)
        ]
    )
    limits = np.array(labels.grid.shape)[:, None, None, None] - 0.5
    outside = ((at < -0.5) | (at > limits)).any(0)
    best = np.where(outside, 0, scores.argmax(0))
    top = np.sort(scores, axis=0)
    return best, np.where(outside, 1, top[-1] - top[-2])


def centroids_mm(labels: LabelMap) -> dict[int, np.ndarray]:
    affine = labels.grid.affine
    return {
        int(code): affine[:3, :3] @ np.argwhere(labels.voxels == code).mean(0) + affine[:3, 3]
        for code in np.unique(labels.voxels)
    }


@pytest.mark.parametrize(
    "grid",
    [
        oblique_grid((12, 11, 10), (0.8, 0.7, 1.1), (0.5, 0.1, -0.4)),
        oblique_grid((12, 11, 10), (0.5, 0.5, 0.5)),
        oblique_grid((20, 20, 20), (1, 1, 1), (0, 0, 0), (0, 0, 0)),
    ],
    ids=["oblique", "finer", "larger field of view"],
)
@BOTH
def test_every_voxel_gets_the_label_with_the_largest_linear_weight(grid, numba, monkeypatch):
    monkeypatch.setattr(upsample.kernels, "HAS_NUMBA", numba and upsample_kernels.HAS_NUMBA)
    labels = random_map()
    best, margin = dense_truth(labels, grid)
    clear = margin > 0.003  # positions are rounded to 1/4096 voxel
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(regrid(labels, grid).voxels[clear], best[clear])


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 99),
    st.tuples(*[st.floats(-0.7, 0.7)] * 3),
    st.tuples(*[st.sampled_from([0.4, 0.5, 2 / 3, 0.8, 1.0, 1.5, 2.0, 3.3])] * 3),
)
def test_with_and_without_numba_the_labels_are_the_same(seed, angles, sizes):
    if not upsample_kernels.HAS_NUMBA:
        pytest.skip("numba is not installed")
    labels = random_map(seed, grid=oblique_grid((9, 8, 7), (1, 1, 1), (0, 0, 0)))
    grid = oblique_grid((7, 9, 8), sizes, angles)
    fast = regrid(labels, grid).voxels
    membership = two_labels(labels, seed)
    fast_m = regrid_membership(membership, grid)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upsample.kernels, "HAS_NUMBA", False)
        np.testing.assert_array_equal(fast, regrid(labels, grid).voxels)
        slow_m = regrid_membership(membership, grid)
    np.testing.assert_array_equal(fast_m.codes, slow_m.codes)
    np.testing.assert_array_equal(fast_m.weights, slow_m.weights)


@pytest.mark.parametrize(("order", "signs"), TURNS)
def test_turned_axes_are_copied_voxel_by_voxel(order, signs):
    labels = random_map()
    other = turned(labels, order, signs)
    np.testing.assert_array_equal(regrid(other, labels.grid).voxels, labels.voxels)
    np.testing.assert_array_equal(regrid(labels, other.grid).voxels, other.voxels)


@pytest.mark.parametrize(("order", "signs"), TURNS[::5])
def test_las_ras_and_oblique_copies_of_a_head_regrid_identically(order, signs):
    """Defect S1: shapes were compared, affines ignored."""
    target = oblique_grid((13, 12, 14), (0.7, 0.8, 0.9), (0.1, 0.4, -0.2))
    for grid in (oblique_grid((9, 8, 7), (1, 1.5, 2)), phantom_grid((9, 8, 7), 1.5)):
        labels = random_map(grid=grid)
        expected = regrid(labels, target).voxels
        assert len(np.unique(expected)) == 6
        other = turned(labels, order, signs)
        np.testing.assert_array_equal(regrid(other, target).voxels, expected)


def test_crops_and_pads_by_whole_voxels_are_copies(head):
    grid = head.grid.crop((-3, 5, 2), (60, 30, 50))
    moved = regrid(head, grid).voxels
    np.testing.assert_array_equal(moved[3:51, :30, :50], head.voxels[:, 5:35, 2:52])
    assert not moved[:3].any()
    assert not moved[51:].any()


def test_a_grid_beside_the_head_is_empty(head):
    for step in (1.0, 0.3):
        affine = np.diag([step, step, step, 1.0])
        affine[:3, 3] = 5000
        assert not regrid(head, Grid((5, 5, 5), affine)).voxels.any()


def balls(seed=0, grid=None) -> LabelMap:
    """Five balls of 5 to 7 mm at any place, 1 mm voxels."""
    rng = np.random.default_rng(seed)
    grid = grid or phantom_grid((50, 36, 34), 1.0)
    world = np.einsum("ab,bxyz->axyz", grid.affine[:3, :3], np.indices(grid.shape))
    world += grid.affine[:3, 3, None, None, None]
    voxels = np.zeros(grid.shape, np.int16)
    for code, place in zip(range(1, 6), product((-16, 0, 16), (-9, 9)), strict=False):
        middle = np.array([*place, 0]) + rng.uniform(-1, 1, 3)
        away = np.linalg.norm(world - middle[:, None, None, None], axis=0)
        voxels[away <= rng.uniform(5, 7)] = code
    return LabelMap(voxels, grid, TABLE)


@BOTH
@pytest.mark.parametrize("size_mm", [0.5, 0.6, 0.7, 0.8])
def test_centroids_volumes_and_extent_stay_in_the_world(numba, size_mm, monkeypatch):
    """Defects S2 and S3: positions were rounded down, and the old affine was written."""
    monkeypatch.setattr(upsample.kernels, "HAS_NUMBA", numba and upsample_kernels.HAS_NUMBA)
    labels = balls()
    fine = regrid(labels, labels.grid.with_voxel_size(size_mm))
    assert fine.grid.extent_mm == pytest.approx(labels.grid.extent_mm, abs=size_mm)
    before, after = centroids_mm(labels), centroids_mm(fine)
    assert before.keys() == after.keys()
    moved = np.array([after[code] - place for code, place in before.items()])
    np.testing.assert_allclose(moved.mean(0), 0, atol=0.02 if size_mm == 0.5 else 0.06)
    # A ball of a few hundred voxels that are no fraction of the source's is itself uneven.
    np.testing.assert_allclose(moved, 0, atol=0.02 if size_mm == 0.5 else 0.2)
    for code in range(1, 6):
        assert fine.volumes_mm3()[code] == pytest.approx(labels.volumes_mm3()[code], rel=0.04)


def test_left_and_right_never_swap_on_an_oblique_grid(head):
    fine = regrid(head, oblique_grid((90, 110, 100), (2, 2.2, 2.1), (0.3, 0.2, -0.25), (0, 0, 0)))
    places = centroids_mm(fine)
    for label in head.table:
        if label.index in places and label.hemisphere != "none":
            assert (places[label.index][0] < 0) == (label.hemisphere == "left"), label.name


@BOTH
def test_a_label_at_the_edge_does_not_reach_the_opposite_face(numba, monkeypatch):
    """Defect S12: a Fourier filter wrapped around."""
    monkeypatch.setattr(upsample.kernels, "HAS_NUMBA", numba and upsample_kernels.HAS_NUMBA)
    voxels = np.zeros((6, 6, 6), np.int16)
    voxels[0] = 3
    labels = LabelMap(voxels, phantom_grid((6, 6, 6), 1.0), TABLE)
    for size in (0.5, 0.4, 1 / 3):
        fine = regrid(labels, labels.grid.with_voxel_size(size))
        places = fine.grid.affine[0, 0] * np.arange(fine.grid.shape[0]) + fine.grid.affine[0, 3]
        there = (fine.voxels == 3).any((1, 2))
        assert there[(places > -3) & (places < -2.01)].all()
        assert not there[places > -1.99].any()


def test_a_coarser_voxel_gets_the_majority_of_its_volume():
    voxels = np.zeros((6, 6, 6), np.int16)
    voxels[:2, :2, :2] = 2
    voxels[0, 0, :2] = 1
    voxels[2:4, :2, :2] = [[[3, 3], [3, 4]], [[3, 4], [4, 3]]]
    labels = LabelMap(voxels, phantom_grid((6, 6, 6), 1.0), TABLE)
    coarse = regrid(labels, labels.grid.with_voxel_size(2.0))
    assert coarse.voxels[:2, 0, 0].tolist() == [2, 3]
    assert np.count_nonzero(coarse.voxels) == 2


@BOTH
def test_ties_favour_no_label(numba, monkeypatch):
    """At a factor of 1.5 every other boundary lies in the middle of a target voxel."""
    monkeypatch.setattr(upsample.kernels, "HAS_NUMBA", numba and upsample_kernels.HAS_NUMBA)
    voxels = np.zeros((4, 5, 5), np.int16)
    voxels[[0, 3]], voxels[[1, 2]] = 1, 4
    labels = LabelMap(voxels, phantom_grid((4, 5, 5), 1.0), TABLE)
    fine = regrid(labels, labels.grid.with_voxel_size((2 / 3, 1, 1)))
    assert fine.volumes_mm3()[1] == pytest.approx(labels.volumes_mm3()[1])
    turned_places = labels.grid.affine @ np.diag([-2 / 3, 1, 1, 1])
    turned_places[0, 3] = -fine.grid.affine[0, 3]
    mirrored = regrid(labels, Grid(fine.grid.shape, turned_places))
    assert mirrored.volumes_mm3() == pytest.approx(fine.volumes_mm3())


def two_labels(labels: LabelMap, seed: int) -> Membership:
    rng = np.random.default_rng(seed)
    weights = np.empty((2, *labels.grid.shape), np.uint8)
    weights[0] = rng.integers(128, 256, labels.grid.shape)
    weights[1] = 255 - weights[0]
    second = (labels.voxels + rng.integers(1, 6, labels.grid.shape)) % 6
    codes = np.stack([labels.voxels, np.where(weights[1] > 0, second, 0)]).astype(np.int16)
    return Membership(codes, weights, labels.grid, labels.table)


@BOTH
def test_a_certain_membership_regrids_to_the_same_labels(head, numba, monkeypatch):
    monkeypatch.setattr(upsample.kernels, "HAS_NUMBA", numba and upsample_kernels.HAS_NUMBA)
    grid = oblique_grid((20, 24, 22), (4, 3, 5))
    hard = regrid(head, grid)
    soft = regrid_membership(Membership.certain(head, k=3), grid)
    np.testing.assert_array_equal(soft.codes[0], hard.voxels)
    total = soft.weights.sum(0, dtype=int)
    assert total.max() <= 257
    assert (total[(soft.codes[1:] == 0).all(0)] >= 254).all()
    assert (np.diff(soft.weights.astype(int), axis=0) <= 0).all()
    assert not soft.codes[1:][soft.weights[1:] == 0].any()


def test_a_membership_interpolates_its_weights():
    voxels = np.array([1, 2], np.int16).reshape(2, 1, 1)
    labels = LabelMap(voxels, Grid((2, 1, 1), np.eye(4)), TABLE)
    soft = Membership.certain(labels, k=2)
    fine = regrid_membership(
        soft, soft.grid.crop((0, 0, 0), (5, 1, 1)).with_voxel_size((0.5, 1, 1))
    )
    assert fine.codes[0, :, 0, 0].tolist()[:4] == [1, 1, 2, 2]
    assert fine.weights[:, 1, 0, 0].tolist() == [191, 64]
    assert fine.codes[:, 1, 0, 0].tolist() == [1, 2]
    assert fine.codes[0, 4:, 0, 0].tolist() == [0] * 6
    assert (fine.weights[0, 4:] == 255).all()


def test_a_turned_membership_is_a_copy():
    labels = random_map()
    soft = two_labels(labels, 3)
    other = turned(labels, (2, 0, 1), (-1, 1, -1))
    there = regrid_membership(soft, other.grid)
    np.testing.assert_array_equal(there.codes[0], other.voxels)
    back = regrid_membership(there, labels.grid)
    np.testing.assert_array_equal(back.codes, soft.codes)
    np.testing.assert_array_equal(back.weights, soft.weights)
