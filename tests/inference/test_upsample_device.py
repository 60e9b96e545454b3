# SPDX-License-Identifier: Apache-2.0
"""On a device the labels are those of the processor's engine, to the last voxel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from brainseg_bids.anatomy import interpolation, upsample
from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import Label, LabelTable
from brainseg_bids.anatomy.posteriors import TopPosteriors
from brainseg_bids.inference import upsample_device, upsample_lookup
from brainseg_bids.inference.upsample_device import upsample_on, upsample_posteriors_on
from tests.anatomy.test_upsample import TABLE, oblique_grid, random_map, turned, two_labels
from tests.phantom.head import phantom_grid

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU here")
ON = pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_gpu])]
)
SIZES = [0.5, 0.6, 0.7, 0.8, 1 / 3, 1.0, (0.5, 1.0, 2.0), (0.3, 0.9, 0.5)]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def assert_same(labels: LabelMap, grid, device: str, **how) -> None:
    found = upsample_on(labels, grid, device=device, **how)
    expected = upsample.upsample(labels, grid, **how)
    assert found.grid == expected.grid
    assert found.table == expected.table
    assert found.voxels.dtype == np.int16
    np.testing.assert_array_equal(found.voxels, expected.voxels)


@ON
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 99),
    kernel=st.sampled_from(["fitted", "linear", "lossless"]),
    size_mm=st.sampled_from(SIZES),
    keep_thin=st.booleans(),
    smoothing_mm=st.sampled_from([0.0, 0.4]),
    oblique=st.booleans(),
)
def test_labels_are_the_processors_for_every_kernel_grid_and_setting(
    device, seed, kernel, size_mm, keep_thin, smoothing_mm, oblique
):
    labels = random_map(seed, grid=phantom_grid((9, 8, 7), 1.0))
    grid = labels.grid.with_voxel_size(size_mm)
    if oblique:
        grid, keep_thin = oblique_grid((9, 10, 8), np.broadcast_to(size_mm, 3)), False
        kernel = "fitted" if kernel == "lossless" else kernel
    if np.max(size_mm) > 1 and (kernel == "lossless" or keep_thin):
        return
    how = {"kernel": kernel, "keep_thin": keep_thin, "smoothing_mm": smoothing_mm}
    assert_same(labels, grid, device, **how)


@ON
@pytest.mark.parametrize("kernel", ["fitted", "linear", "lossless"])
@pytest.mark.parametrize("size_mm", [2.0, 2.9])
def test_a_head_is_the_same_on_a_device(head, device, kernel, size_mm):
    assert_same(head, size_mm, device, kernel=kernel)


@ON
@pytest.mark.parametrize("kernel", ["fitted", "linear", "lossless"])
def test_part_of_a_head_on_turned_axes_is_the_same(device, kernel):
    labels = turned(random_map(3, grid=phantom_grid((9, 8, 7), 1.0)), (2, 0, 1), (-1, 1, -1))
    grid = random_map(3, grid=phantom_grid((9, 8, 7), 1.0)).grid.with_voxel_size(0.5)
    for start, shape in (((4, 3, 5), (8, 9, 6)), ((-4, -3, 2), (30, 15, 20))):
        assert_same(labels, grid.crop(start, shape), device, kernel=kernel)


@ON
def test_a_grid_beside_the_head_is_empty(device, head):
    affine = np.diag([0.5, 0.5, 0.5, 1.0])
    affine[:3, 3] = 5000
    assert not upsample_on(head, Grid((5, 5, 5), affine), device=device).voxels.any()


@ON
@pytest.mark.parametrize("grid", [0.5, 0.7, oblique_grid((12, 9, 8), (0.5, 0.6, 0.7))])
def test_a_map_without_borders_is_copied(device, grid):
    labels = LabelMap(np.full((7, 6, 5), 3, np.int16), phantom_grid((7, 6, 5), 1.0), TABLE)
    assert_same(labels, grid, device)
    soft = TopPosteriors.certain(labels)
    found = upsample_posteriors_on(soft, grid, device=device).voxels
    np.testing.assert_array_equal(found, upsample.upsample_posteriors(soft, grid).voxels)


@ON
@pytest.mark.parametrize("order", ["cubic", "linear"])
@pytest.mark.parametrize("k", [1, 2])
def test_probabilities_give_the_processors_labels(device, order, k):
    labels = random_map()
    soft = two_labels(labels, 5) if k == 2 else TopPosteriors.certain(labels)
    grids = (
        labels.grid.with_voxel_size(0.6),
        oblique_grid((9, 8, 9), (0.5, 3, 0.7)),
        oblique_grid((20, 20, 20), (1, 1, 1), (0, 0, 0), (0, 0, 0)),
    )
    for grid in grids:
        found = upsample_posteriors_on(soft, grid, device=device, order=order)
        expected = upsample.upsample_posteriors(soft, grid, order=order)
        np.testing.assert_array_equal(found.voxels, expected.voxels)


@ON
def test_slabs_and_shares_change_nothing(device, head, monkeypatch):
    soft = TopPosteriors.certain(head, k=2)
    grid = oblique_grid((10, 12, 11), (8, 6, 10))
    whole = [
        upsample_on(head, 2.2, device=device),
        upsample_on(head, grid, device=device),
        upsample_posteriors_on(soft, grid, device=device),
    ]
    monkeypatch.setattr(upsample_device, "SLAB_VOXELS", 100_000)
    monkeypatch.setattr(upsample_device, "ROTATED_VOXELS", 2_000)
    for module in (upsample_device, upsample_lookup):
        monkeypatch.setattr(module, "ENTRIES", dict.fromkeys(("cpu", "cuda"), 100_000))
    parts = [
        upsample_on(head, 2.2, device=device),
        upsample_on(head, grid, device=device),
        upsample_posteriors_on(soft, grid, device=device),
    ]
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(one.voxels, other.voxels)


def test_progress_runs_from_none_to_all(head):
    for grid in (2.0, oblique_grid((40, 50, 60), (4, 4, 4))):
        seen = []
        upsample_on(head, grid, device="cpu", progress=lambda *step: seen.append(step))  # noqa: B023
        total = seen[0][1]
        assert seen == [(n, total) for n in range(total + 1)]


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["fitted", "linear", "lossless"]),
    st.floats(0.3, 3.0),
    st.sampled_from([0.0, 0.3, 0.9]),
)
def test_sums_over_two_axes_are_whole_numbers_that_float32_holds(kernel, step, sigma):
    profile, reach = interpolation.kernel_profile(kernel, step, sigma)
    one = 1024 if kernel == "linear" else 512
    axis = upsample._axis(20, round(20 / step), step, (step - 1) / 2, profile, reach, one)
    assert np.abs(axis.weights).sum(1).max() ** 2 < 2**24


def test_another_kind_of_device_is_refused(head):
    with pytest.raises(ValueError, match="'mps'"):
        upsample_on(head, 2.0, device="mps")


def test_a_gpu_that_is_not_there_is_one_clear_line(head, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="none here"):
        upsample_on(head, 2.0, device="cuda")


def test_a_device_that_is_full_says_what_to_do(head, monkeypatch):
    def full(self, *args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(upsample_device._Band, "slab", full)
    with pytest.raises(MemoryError, match="use device"):
        upsample_on(head, 2.0, device="cpu")


def blocks(seed: int, n: int) -> LabelMap:
    """53 labels in ragged blocks."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 53, [-(-n // 8)] * 3).astype(np.int16)
    voxels = np.kron(coarse, np.ones((8, 8, 8), np.int16))[:n, :n, :n]
    places = rng.integers(0, n, (3, n**3 // 200))
    voxels[tuple(places)] = rng.integers(0, 53, places.shape[1])
    table = LabelTable([Label(code, f"Label-{code}") for code in range(53)])
    return LabelMap(np.ascontiguousarray(voxels), phantom_grid((n, n, n), 1.0), table)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("kernel", ["fitted", "linear", "lossless"])
def test_a_whole_head_takes_less_than_eight_tenths_of_a_gigabyte_of_a_gpu(kernel):
    labels = blocks(1, 256)
    torch.cuda.reset_peak_memory_stats()
    upsample_on(labels, 0.5, device="cuda", kernel=kernel)
    assert torch.cuda.max_memory_allocated() < 0.8e9


@pytest.mark.gpu
@needs_gpu
def test_shortened_factors_on_a_gpu_change_nothing(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    assert_same(blocks(2, 64), 0.5, "cuda")
