# SPDX-License-Identifier: Apache-2.0
"""One table of tests over every architecture."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.nets.architectures import (
    ARCHITECTURES,
    PackedNet,
    build,
    depth_to_space,
    space_to_depth,
)
from brainseg_bids.nets.bundle import (
    DEFAULT_MODEL,
    ModelBundle,
    find_bundle,
    write_bundle,
)
from brainseg_bids.nets.sizes import patch_multiple
from brainseg_bids.nets.spec import NetSpec
from tests.phantom.head import phantom_head, phantom_image

TINY = {
    "segresnet": {"width": 8, "blocks_down": [1, 1, 1]},
    "dynunet": {"widths": [8, 16, 24]},
    "unet": {"widths": [8, 16, 24]},
    "resenc_unet": {"widths": [8, 16, 24], "blocks": [1, 1, 1]},
    "mednext": {"width": 8, "blocks": [1, 1, 2], "expansion": [2, 3, 2]},
    "swin_unetr": {"width": 12, "depths": [2, 1, 1, 1], "heads": [1, 1, 2, 2]},
    "meshnet": {"width": 8, "dilations": [1, 2, 4, 2, 1]},
}
STEM = dict.fromkeys(TINY, 2) | {"swin_unetr": 1}


def tiny(architecture: str, n_labels: int = 5) -> NetSpec:
    options = TINY[architecture]
    return NetSpec(architecture, n_labels, STEM[architecture], features=8, options=options)


def smallest_patch(spec: NetSpec) -> tuple[int, int, int]:
    """As small as a patch can be, but never below 16 voxels."""
    edge = max(patch_multiple(spec), 16)
    return (2 * edge, edge, edge)


@pytest.fixture(params=sorted(ARCHITECTURES))
def spec(request) -> NetSpec:
    return tiny(request.param)


def test_every_architecture_has_tiny_options_here():
    assert set(TINY) == set(ARCHITECTURES)


def test_scores_have_a_channel_per_label_on_the_images_voxels(spec):
    shape = smallest_patch(spec)
    with torch.no_grad():
        assert build(spec)(torch.randn(1, 1, *shape)).shape == (1, 5, *shape)


def test_gradients_reach_every_parameter(spec):
    torch.manual_seed(0)
    net = build(spec)
    net(torch.randn(1, 1, *smallest_patch(spec))).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []
    # A bias before a normalisation has none to speak of; kernels always have.
    kernels = [(name, p) for name, p in net.named_parameters() if p.ndim > 1]
    assert [name for name, p in kernels if not p.grad.abs().max() > 0] == []


def test_no_weight_is_stored_twice(spec):
    weights = build(spec).weights()
    pointers = [tensor.data_ptr() for tensor in weights.values() if tensor.numel()]
    assert len(pointers) == len(set(pointers))


def test_weights_are_floats_since_averages_and_half_precision_spoil_integers(spec):
    assert {tensor.dtype for tensor in build(spec).weights().values()} == {torch.float32}


def test_scores_at_chosen_voxels_equal_those_of_the_whole(spec):
    torch.manual_seed(0)
    net, shape = build(spec).eval(), smallest_patch(spec)
    with torch.no_grad():
        features = net.features(torch.randn(1, 1, *shape))
        everywhere = net.scores(features)[0]
        voxels = torch.stack([torch.randint(n, (300,)) for n in shape], dim=1)
        chosen = net.scores_at(features, voxels)
    x, y, z = voxels.T
    torch.testing.assert_close(chosen, everywhere[:, x, y, z].T, atol=1e-5, rtol=1e-4)


def test_a_spec_survives_json(spec):
    assert NetSpec.from_json(spec.to_json()) == spec


def test_three_steps_on_the_phantom_lower_the_loss(spec):
    torch.manual_seed(0)
    head = phantom_head(smallest_patch(spec), voxel_size_mm=6.0)
    image = phantom_image(head, np.random.default_rng(0))
    present, ranks = np.unique(head.voxels, return_inverse=True)
    truth = torch.from_numpy(ranks.reshape(image.shape)).long()[None]
    seen = torch.from_numpy(image / image.max()).float()[None, None]
    net = build(tiny(spec.architecture, n_labels=len(present)))
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(4):
        loss = functional.cross_entropy(net(seen), truth)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert losses[3] < 0.97 * losses[0]


def test_weights_come_back_from_a_bundle(spec, tmp_path):
    torch.manual_seed(0)
    net = build(tiny(spec.architecture, n_labels=43)).eval()
    bundle = write_bundle(
        tmp_path / "mine",
        name="mine",
        net=net,
        table=LabelTable.packaged("brainseg"),
        voxel_size_mm=1.0,
        patch_vox=(32, 32, 32),
        contrasts=("T1w",),
        card="# mine\n",
        training={"steps": 3},
    )
    again = ModelBundle.read(bundle.path).load()
    assert again.spec == net.spec
    for name, weight in again.weights().items():
        torch.testing.assert_close(weight, net.weights()[name].half().float(), atol=0, rtol=0)
    image = torch.rand(1, 1, *smallest_patch(spec))
    with torch.no_grad():
        torch.testing.assert_close(again(image), net(image), atol=2e-2, rtol=2e-2)


def test_a_moving_average_of_a_standing_network_is_that_network():
    torch.manual_seed(0)
    net = build(tiny("swin_unetr")).eval()
    mean = AveragedModel(net, avg_fn=get_ema_avg_fn(0.9995), use_buffers=True)
    for _ in range(3):
        mean.update_parameters(net)
    image = torch.rand(1, 1, *smallest_patch(net.spec))
    with torch.no_grad():
        torch.testing.assert_close(mean.module.eval()(image), net(image), atol=1e-4, rtol=1e-4)


def test_a_network_can_be_made_without_memory(spec):
    with torch.device("meta"):
        net = build(spec)
    assert {p.device.type for p in net.parameters()} == {"meta"}
    shape = smallest_patch(spec)
    assert net(torch.empty(1, 1, *shape, device="meta")).shape == (1, 5, *shape)


def test_a_copy_of_a_network_says_the_same(spec):
    torch.manual_seed(0)
    net = build(spec).eval()
    image = torch.rand(1, 1, *smallest_patch(spec))
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(net)(image), net(image))


@pytest.mark.parametrize(
    ("text", "n_weights"),
    [
        (
            '{"architecture": "dynunet", "n_labels": 43, "stem": 2, "features": 24, '
            '"options": {"widths": [24, 48, 96, 192]}}',
            3164912,
        ),
        ('{"architecture": "segresnet", "n_labels": 5}', 18804360),
        ('{"architecture": "unet", "n_labels": 5}', 3718421),
        ('{"architecture": "resenc_unet", "n_labels": 5}', 7130600),
    ],
)
def test_old_specs_still_make_the_networks_they_made(text, n_weights):
    with torch.device("meta"):
        net = build(NetSpec.from_json(text))
    assert sum(p.numel() for p in net.parameters()) == n_weights


def test_the_packaged_model_is_loaded():
    net = ModelBundle.read(find_bundle(DEFAULT_MODEL)).load()
    assert isinstance(net, PackedNet)
    assert all(weight.isfinite().all() for weight in net.weights().values())


@pytest.mark.parametrize("block_size", [1, 2, 3])
def test_packing_loses_nothing_and_keeps_neighbours_together(block_size):
    image = torch.arange(6 * 6 * 12.0).view(1, 1, 6, 6, 12)
    blocks = space_to_depth(image, block_size)
    assert torch.equal(depth_to_space(blocks, block_size), image)
    assert set(blocks[0, :, 0, 0, 0].tolist()) == set(
        image[0, 0, :block_size, :block_size, :block_size].flatten().tolist()
    )


def test_an_unknown_architecture_is_refused_with_the_known_ones():
    with pytest.raises(
        ValueError,
        match="'vnet'; known: dynunet",
    ):
        build(NetSpec("vnet", 3))


def test_a_missing_library_of_swin_unetr_is_named_when_the_network_is_made(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install einops"):
        build(tiny("swin_unetr"))
