# SPDX-License-Identifier: Apache-2.0
"""Rolling windows give the labels of the plain way; flips and ensembles are true means."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.intensity import rescale
from brainseg_bids.anatomy.labels import Label, LabelTable
from brainseg_bids.inference import predict, views
from brainseg_bids.inference.planes import averaged, taps_of
from brainseg_bids.inference.predict import segment
from brainseg_bids.inference.views import Member
from brainseg_bids.inference.windows import window_starts, window_weights
from brainseg_bids.nets.architectures import build, depth_to_space, space_to_depth
from brainseg_bids.nets.devices import has_fast_bf16
from brainseg_bids.nets.spec import NetSpec
from tests.phantom.head import phantom_grid, phantom_head, phantom_image

SIDES = LabelTable(
    [
        Label(0, "Background"),
        Label(2, "Left-Rise", hemisphere="left", mirror=41),
        Label(7, "Middle"),
        Label(41, "Right-Rise", hemisphere="right", mirror=2),
    ],
    name="sides",
)


def small_net(block_size, *, seed=0):
    """Weights at random, but scores that differ from place to place."""
    torch.manual_seed(seed)
    net = build(NetSpec("dynunet", len(SIDES), block_size, 8, {"widths": [8, 8, 16]})).eval()
    with torch.no_grad():
        net.head.weight *= 8
    return net


@pytest.fixture(scope="module")
def head():
    labels = phantom_head((40, 48, 44), 4.0)
    return phantom_image(labels, np.random.default_rng(1), noise_sd=2.0), labels.grid


class Told:
    """Probabilities as they were told, on the grid turned towards RAS."""

    def __init__(self, grid, table=SIDES):
        self.values = np.zeros((*grid.to_ras().shape, len(table)), np.float32)
        self.values[..., 0] = 1

    def __call__(self, plane, rows, columns, probabilities):
        self.values[plane, rows, columns] = probabilities.permute(1, 2, 0).numpy()


def look_at(image, grid, net, **options):
    """Labels and probabilities."""
    told = Told(grid)
    given = {"voxel_size_mm": 4.0, "window_vox": (24, 24, 24)} | options
    return segment(image, grid, net, SIDES, on_probabilities=told, **given), told.values


def plain_ranks(image, net, window, overlap_frac):
    """Every score of every voxel in one float64 volume; zeros around what is too small."""
    block_size, shape = net.spec.block_size, image.shape
    canvas = torch.zeros([max(n, w) for n, w in zip(shape, window, strict=True)])
    low = [
        (c - n) // 2 // block_size * block_size for c, n in zip(canvas.shape, shape, strict=True)
    ]
    inner = tuple(slice(a, a + n) for a, n in zip(low, shape, strict=True))
    canvas[inner] = image
    weights = window_weights(tuple(w // block_size for w in window)).double()
    for axis in range(3):
        weights = weights.repeat_interleave(block_size, axis)
    total = torch.zeros(net.spec.n_labels, *canvas.shape, dtype=torch.float64)
    starts = [
        window_starts(n, w, overlap_frac=overlap_frac, step=block_size)
        for n, w in zip(canvas.shape, window, strict=True)
    ]
    for place in product(*starts):
        here = tuple(slice(s, s + w) for s, w in zip(place, window, strict=True))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=has_fast_bf16("cpu")):
            features = net.features(canvas[here][None, None])
        total[(slice(None), *here)] += net.scores(features.float())[0].double() * weights
    # The sum of weights is the same for all labels: dividing by it changes no winner.
    return total[(slice(None), *inner)].argmax(0).numpy()


@pytest.mark.parametrize("block_size", [1, 2])
@pytest.mark.parametrize(
    ("shape", "window", "overlap_frac"),
    [
        ((48, 40, 36), (16, 16, 16), 0.25),
        ((52, 20, 30), (16, 24, 16), 0.5),
        ((10, 44, 14), (16, 16, 24), 0.25),
        ((12, 14, 10), (32, 32, 32), 0.25),
    ],
)
def test_rolling_windows_give_the_labels_of_full_score_volumes(
    block_size, shape, window, overlap_frac
):
    net = small_net(block_size)
    rng = np.random.default_rng(3)
    image = (rng.random(shape) * 10 + 100).astype(np.float32)  # no air: nothing is cropped
    with torch.inference_mode():
        expected = plain_ranks(rescale(torch.from_numpy(image)), net, window, overlap_frac)
    found = segment(
        image, phantom_grid(shape, 2.0), net, SIDES, voxel_size_mm=2.0, window_vox=window,
        overlap_frac=overlap_frac,
    )  # fmt: skip
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(found.voxels, SIDES.codes[expected])


class SlopeNet(nn.Module):
    """Left where it gets brighter towards the right, right where it gets darker."""

    def __init__(self, block_size):
        super().__init__()
        self.spec = NetSpec("dynunet", len(SIDES), block_size)

    def features(self, image):
        slope = torch.zeros_like(image)
        slope[:, :, 1:-1] = image[:, :, 2:] - image[:, :, :-2]
        return torch.cat(
            [
                space_to_depth(image, self.spec.block_size),
                space_to_depth(slope, self.spec.block_size),
            ],
            dim=1,
        )

    def scores(self, features):
        grey, slope = (
            depth_to_space(half, self.spec.block_size) for half in features.chunk(2, dim=1)
        )
        return torch.cat([2 - 40 * grey, 90 * slope, 0 * grey + 1, -90 * slope], dim=1)


@pytest.mark.parametrize("block_size", [1, 2])
def test_the_mirrored_view_is_turned_back_to_the_voxel_and_sides_are_swapped(head, block_size):
    # What the network says depends on every single voxel, and on left and right.
    image, grid = head
    image = image + np.random.default_rng(2).normal(0, 20, image.shape).astype(np.float32)
    options = {"window_vox": (64, 64, 64)}
    alone, alone_told = look_at(image, grid, SlopeNet(block_size), **options)
    both, both_told = look_at(image, grid, SlopeNet(block_size), flips=True, **options)
    assert set(np.unique(alone.voxels)) == {0, 2, 7, 41}
    np.testing.assert_allclose(both_told, alone_told, atol=1e-6)
    assert (both.voxels == alone.voxels).mean() > 0.9999


def test_with_flips_and_without_cells_a_mirrored_head_gives_mirrored_labels(monkeypatch):
    monkeypatch.setattr(views, "has_fast_bf16", lambda device: False)
    rng = np.random.default_rng(5)
    # Cut off at both ends, where grey values are scaled by.
    image = 100 + rng.normal(0, 4, (32, 24, 24)).clip(-5, 5).astype(np.float32)
    grid = phantom_grid(image.shape, 4.0)
    options = {"flips": True, "window_vox": (32, 24, 24)}
    _, told = look_at(image, grid, small_net(1), **options)
    _, turned = look_at(image[::-1].copy(), grid, small_net(1), **options)
    np.testing.assert_allclose(turned[::-1][..., [0, 3, 2, 1]], told, atol=1e-4)


@pytest.mark.parametrize("block_size", [1, 2, 4])
def test_flips_average_with_the_mirrored_image_in_cells_half_a_cell_off(block_size, monkeypatch):
    monkeypatch.setattr(views, "has_fast_bf16", lambda device: False)
    rng = np.random.default_rng(5)
    # Cut off at both ends, where grey values are scaled by.
    image = 100 + rng.normal(0, 4, (32, 32, 32)).clip(-5, 5).astype(np.float32)
    net = small_net(block_size)
    window = {"window_vox": (32, 32, 32)}
    _, told = look_at(image, phantom_grid(image.shape, 4.0), net, flips=True, **window)
    _, once = look_at(image, phantom_grid(image.shape, 4.0), net, **window)
    early = block_size // 2
    larger = np.pad(image, early, constant_values=95)[::-1].copy()  # what is scaled to 0
    _, turned = look_at(larger, phantom_grid(larger.shape, 4.0), net, **window)
    turned = turned[tuple(slice(early, n - early) for n in turned.shape[:3])][::-1]
    np.testing.assert_allclose(told, (once + turned[..., [0, 3, 2, 1]]) / 2, atol=1e-4)
    assert np.abs(once - told).max() > 0.05  # the mirrored view does count


def test_a_network_twice_is_that_network_alone(head):
    image, grid = head
    net = small_net(2)
    alone, alone_told = look_at(image, grid, net)
    twice, twice_told = look_at(image, grid, net, others=[Member(net, 4.0, (24, 24, 24))])
    np.testing.assert_array_equal(twice.voxels, alone.voxels)
    np.testing.assert_allclose(twice_told, alone_told, atol=1e-6)


MEMBERS = [(2, 3.0, (24, 24, 24)), (1, 4.0, (16, 24, 32)), (2, 5.5, (32, 32, 32))]


def test_an_ensemble_says_the_mean_of_what_its_members_say_alone(head):
    image, grid = head
    nets = [Member(small_net(block_size, seed=seed), mm, window)
            for seed, (block_size, mm, window) in enumerate(MEMBERS)]  # fmt: skip
    alone = [
        look_at(
            image, grid, member.net, voxel_size_mm=member.voxel_size_mm,
            window_vox=member.window_vox,
        )[1]
        for member in nets
    ]  # fmt: skip

    def together(order):
        first, *others = (nets[k] for k in order)
        return look_at(
            image, grid, first.net, voxel_size_mm=first.voxel_size_mm,
            window_vox=first.window_vox, others=others,
        )  # fmt: skip

    labels, told = together((0, 1, 2))
    np.testing.assert_allclose(told, np.mean(alone, axis=0), atol=1e-6)
    np.testing.assert_array_equal(
        SIDES.positions()[grid.array_to_ras(labels.voxels)], told.argmax(-1)
    )
    other_labels, other_told = together((2, 0, 1))
    np.testing.assert_allclose(other_told, told, atol=1e-6)
    assert (other_labels.voxels == labels.voxels).mean() > 0.9999


def test_a_member_that_sees_air_only_says_background():
    planes = [
        (4, slice(2, 5), slice(0, 4), torch.full((2, 3, 4), 0.5)),
        (4, slice(3, 7), slice(1, 3), torch.tensor([0.0, 1.0])[:, None, None].expand(2, 4, 2)),
    ]
    ((number, rows, columns, mean),) = averaged([iter([plane]) for plane in planes])
    assert (number, rows, columns) == (4, slice(2, 7), slice(0, 4))
    torch.testing.assert_close(mean.sum(0), torch.ones(5, 4))
    assert mean[1].tolist()[0] == [0.25] * 4  # one says half, the other nothing
    assert mean[1].tolist()[1] == [0.25, 0.75, 0.75, 0.25]
    assert mean[1].tolist()[4] == [0, 0.5, 0.5, 0]


def test_planes_that_one_view_does_not_have_are_half_background():
    has = (7, slice(0, 2), slice(0, 2), torch.tensor([0.0, 1.0])[:, None, None].expand(2, 2, 2))
    later = (9, *has[1:])
    said = list(averaged([iter([has, later]), iter([later])]))
    assert [plane[0] for plane in said] == [7, 9]
    assert said[0][3][1].unique().tolist() == [0.5]
    assert said[1][3][1].unique().tolist() == [1.0]


def test_what_is_left_counts_windows_and_planes_of_all_views(head, monkeypatch):
    image, grid = head
    clock = iter(range(10_000))
    monkeypatch.setattr(predict.time, "monotonic", lambda: float(next(clock)))
    told = []
    look_at(
        image, grid, small_net(2), flips=True, others=[Member(small_net(1), 6.0, (24, 24, 24))],
        progress=told.append,
    )  # fmt: skip
    # Every window and every plane takes a second; all planes are known once one is done.
    assert told[-1] == pytest.approx(0)
    last = told[-5:]
    assert last == pytest.approx([4, 3, 2, 1, 0])
    at = len(told) // 2
    assert abs(told[at] - (len(told) - 1 - at)) < 0.35 * len(told)


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_full_accelerator_gets_smaller_windows_then_sums_in_main_memory(device, monkeypatch):
    tried, notes, emptied = [], [], []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))

    def look(saving):
        tried.append((saving.shrink, saving.keep_on))
        if len(tried) < 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        return torch.ones(1)

    assert predict._within_memory(look, device, notes.append) == 1
    assert tried == [(1, ""), (2, ""), (2, "cpu")]
    assert len(emptied) == 2
    assert len(notes) == 2
    assert "main memory" in notes[1]


@pytest.mark.parametrize(
    ("device", "message", "tries"),
    [("cuda", "CUDA out of memory", 4), ("cpu", "out of memory", 1), ("cuda", "a fault", 1)],
)
def test_what_more_saving_cannot_help_is_an_error(device, message, tries):
    tried = []

    def look(saving):
        tried.append(saving)
        raise RuntimeError(message)

    with pytest.raises(RuntimeError, match=message):
        predict._within_memory(look, device, lambda text: None)
    assert len(tried) == tries


def test_smaller_windows_fit_the_network_and_label_the_whole_image(head):
    image, grid = head
    net = small_net(2)
    member = Member(net, 4.0, (48, 64, 40))
    assert predict._smaller_window(member, 1) == (48, 64, 40)
    assert predict._smaller_window(member, 2) == (24, 32, 16)
    assert predict._smaller_window(member, 4) == (16, 16, 16)
    turned = torch.from_numpy(np.ascontiguousarray(grid.array_to_ras(image)))
    view = views.view_of(turned, grid.to_ras(), member, "cpu")
    saving = predict._MemorySaving("cpu", 2, "cpu")
    with torch.inference_mode():
        (stream,) = predict._streams([view], turned.shape, saving, 0.25, lambda *_: None)
        planes = [values for _, _, _, values in stream]
    box = tuple(part.stop - part.start for part in view.box)
    assert len(planes) == box[0]
    assert {tuple(plane.shape) for plane in planes} == {(len(SIDES), *box[1:])}


@pytest.mark.parametrize("size_mm", [0.7, 1.0, 3.0])
def test_a_ramp_keeps_its_place_at_another_voxel_size(size_mm):
    affine = np.diag([1.0, 1.5, 2.0, 1.0])
    affine[:3, 3] = -7, 3, 0
    ras = Grid((30, 24, 20), affine)
    work = ras.with_voxel_size(size_mm)
    offsets = views.axis_offsets(ras, work)
    for axis in range(3):
        ramp_mm = ras.affine[axis, 3] + ras.affine[axis, axis] * np.arange(ras.shape[axis])
        shape = [-1 if a == axis else 1 for a in range(3)]
        image = torch.from_numpy(ramp_mm).float().view(shape)
        small = views.resample_axis(image, axis, work.shape[axis], *offsets[axis])
        expected_mm = work.affine[axis, 3] + size_mm * np.arange(work.shape[axis])
        inside = slice(3, -3)  # beyond the last centres the border voxel is taken
        # Wider triangles are off by a share of a voxel where weights are cut.
        off_mm = 0.01 if size_mm <= 1 else 0.1
        np.testing.assert_allclose(small.flatten()[inside], expected_mm[inside], atol=off_mm)


def test_probabilities_are_taken_from_the_place_of_the_voxel():
    offset, box, lead = (-0.4, 0.5), slice(4, 30), 2
    view = views.View(Member(None, 0.5, (8, 8, 8)), None, (box,) * 3, [offset] * 3, None, lead)
    taps = taps_of(view, (20, 20, 20), "cpu")
    for inside, low, weight in taps:
        at = (low - lead + box.start + weight).numpy() * offset[1] + offset[0]
        voxels = np.arange(inside.start, inside.stop)
        assert (inside.start, inside.stop) == (2, 15)  # those with their centre in the box
        np.testing.assert_allclose(at, voxels.clip(1.6, 14.1), atol=1e-5)
    gone = replace(view, box=(slice(100, 120),) * 3)
    assert taps_of(gone, (20, 20, 20), "cpu") is None
