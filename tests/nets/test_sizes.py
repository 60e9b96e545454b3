# SPDX-License-Identifier: Apache-2.0
"""Networks by size: what they cost, and that they see the same millimetres on every grid."""

from __future__ import annotations

import pytest
import torch

from brainseg_bids.nets.architectures import ARCHITECTURES, build
from brainseg_bids.nets.sizes import MOST_LEVELS, SIZES, default_spec, patch_multiple
from brainseg_bids.nets.spec import NetSpec

MILLIONS = {
    ("dynunet", "small"): 3.167,
    ("dynunet", "medium"): 10.977,
    ("dynunet", "large"): 16.546,
    ("mednext", "small"): 1.423,
    ("mednext", "medium"): 9.582,
    ("mednext", "large"): 61.730,
    ("meshnet", "small"): 0.110,
    ("meshnet", "medium"): 0.400,
    ("meshnet", "large"): 0.225,
    ("resenc_unet", "small"): 14.585,
    ("resenc_unet", "medium"): 44.450,
    ("resenc_unet", "large"): 62.812,
    ("segresnet", "small"): 4.715,
    ("segresnet", "medium"): 18.817,
    ("segresnet", "large"): 82.640,
    ("swin_unetr", "small"): 3.948,
    ("swin_unetr", "medium"): 15.640,
    ("swin_unetr", "large"): 62.190,
    ("unet", "small"): 4.816,
    ("unet", "medium"): 19.115,
    ("unet", "large"): 44.606,
}
"""Weights at 1 mm with 54 labels, in millions."""

VOXEL_SIZES_MM = (0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.2, 1.5, 2.0, 3.0)
U_NETS = sorted(set(ARCHITECTURES) - {"swin_unetr", "meshnet"})


def of(architecture: str, size: str, voxel_size_mm: float = 1.0) -> NetSpec:
    return default_spec(architecture, size, n_labels=54, voxel_size_mm=voxel_size_mm)


def smallest_patch(spec: NetSpec) -> tuple[int, int, int]:
    multiple = patch_multiple(spec)
    return (3 * multiple, 2 * multiple, multiple)


@pytest.mark.parametrize(("architecture", "size"), sorted(MILLIONS))
def test_a_network_has_the_weights_that_the_table_says(architecture, size):
    with torch.device("meta"):
        net = build(of(architecture, size))
    millions = sum(p.numel() for p in net.parameters()) / 1e6
    assert millions == pytest.approx(MILLIONS[architecture, size], abs=5e-4)


def test_the_table_has_every_architecture_and_size():
    assert set(MILLIONS) == {(a, s) for a in ARCHITECTURES for s in SIZES}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_patches_of_any_multiple_give_scores_of_every_voxel(architecture, size):
    for voxel_size_mm in (0.5, 1.5) if size == "small" else (0.7,):
        spec = of(architecture, size, voxel_size_mm)
        with torch.device("meta"):
            net = build(spec)
        shape = smallest_patch(spec)
        with torch.no_grad():
            assert net(torch.empty(1, 1, *shape, device="meta")).shape == (1, 54, *shape)


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_gradients_of_small_networks_reach_every_kernel(architecture):
    torch.manual_seed(0)
    spec = of(architecture, "small")
    net = build(spec)
    edge = max(patch_multiple(spec), 16)
    features = net.features(torch.randn(1, 1, 2 * edge, edge, edge))
    net.scores(features).square().mean().backward()
    kernels = [(name, p) for name, p in net.named_parameters() if p.ndim > 1]
    assert [name for name, p in kernels if p.grad is None or not p.grad.abs().max() > 0] == []


@pytest.mark.parametrize("voxel_size_mm", VOXEL_SIZES_MM)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("architecture", U_NETS)
def test_the_deepest_cell_of_a_u_net_has_about_18_mm(architecture, size, voxel_size_mm):
    spec = of(architecture, size, voxel_size_mm)
    deepest_mm = patch_multiple(spec) * voxel_size_mm
    capped = patch_multiple(spec) == spec.block_size * 2 ** (MOST_LEVELS.get(architecture, 6) - 1)
    assert (5 if capped else 12.7) <= deepest_mm <= 25.5


@pytest.mark.parametrize("size", SIZES)
def test_a_meshnet_reaches_as_far_in_mm_on_every_grid(size):
    for voxel_size_mm in VOXEL_SIZES_MM:
        spec = of("meshnet", size, voxel_size_mm)
        farthest_mm = max(spec.options["dilations"]) * spec.block_size * voxel_size_mm
        assert 12.7 <= farthest_mm <= 25.5
        assert patch_multiple(spec) == spec.block_size


def test_finer_voxels_get_another_level():
    deep = [len(of("dynunet", "large", mm).options["widths"]) for mm in (2.0, 1.0, 0.5)]
    assert deep == [4, 5, 6]


def test_only_large_networks_and_coarse_grids_work_on_voxels():
    sizes = {
        mm: [of("unet", size, mm).block_size for size in SIZES] for mm in (0.5, 1.0, 1.2, 2.0)
    }
    assert sizes == {0.5: [2, 2, 1], 1.0: [2, 2, 1], 1.2: [2, 1, 1], 2.0: [1, 1, 1]}


def test_large_resenc_has_nnunets_numbers_at_half_a_millimetre():
    options = of("resenc_unet", "large", 0.5).options
    assert options == {
        "widths": [32, 64, 128, 256, 320, 320],
        "blocks": [1, 3, 4, 6, 6, 6],
    }


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_the_multiple_of_a_spec_without_options_is_that_of_its_defaults(architecture):
    spec = NetSpec(architecture, 3, block_size=1, features=8)
    with torch.device("meta"):
        net = build(spec)
    shape = smallest_patch(spec) if architecture != "meshnet" else (9, 7, 5)
    with torch.no_grad():
        assert net(torch.empty(1, 1, *shape, device="meta")).shape == (1, 3, *shape)


@pytest.mark.parametrize("architecture", U_NETS)
def test_half_a_multiple_is_no_patch(architecture):
    spec = of(architecture, "small")
    with torch.device("meta"):
        net = build(spec)
    half = patch_multiple(spec) // 2
    with pytest.raises(RuntimeError):
        net(torch.empty(1, 1, 3 * half, 4 * half, 4 * half, device="meta"))


def test_an_odd_word_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'huge'; known: small"):
        of("dynunet", "huge")
    with pytest.raises(ValueError, match="'vnet'; known: dynunet"):
        of("vnet", "small")


@pytest.mark.parametrize("voxel_size_mm", [0.0, -1.0, float("nan"), float("inf")])
def test_a_voxel_size_that_is_none_is_refused(voxel_size_mm):
    with pytest.raises(ValueError, match="voxel size"):
        of("dynunet", "small", voxel_size_mm)
