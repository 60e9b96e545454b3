# SPDX-License-Identifier: Apache-2.0
"""One table of tests over every architecture."""

from __future__ import annotations

import pytest
import torch

from brainseg_bids.nets.architectures import ARCHITECTURES, NetSpec, build, pack, unpack

SMALL = {
    "segresnet": {"width": 8, "blocks_down": [1, 1, 1]},
    "dynunet": {"widths": [8, 16, 24]},
    "unet": {"widths": [8, 16, 24]},
    "resenc_unet": {"widths": [8, 16, 24], "blocks": [1, 1, 1]},
}


@pytest.fixture(params=sorted(ARCHITECTURES))
def spec(request) -> NetSpec:
    return NetSpec(request.param, n_labels=5, stem=2, features=8, options=SMALL[request.param])


def test_every_architecture_has_small_options_here():
    assert set(SMALL) == set(ARCHITECTURES)


def test_scores_have_a_channel_per_label_on_the_images_voxels(spec):
    scores = build(spec)(torch.randn(1, 1, 32, 16, 24))
    assert scores.shape == (1, 5, 32, 16, 24)


def test_gradients_reach_every_parameter(spec):
    net = build(spec)
    net(torch.randn(1, 1, 16, 16, 16)).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


def test_no_weight_is_stored_twice(spec):
    weights = build(spec).weights()
    pointers = [tensor.data_ptr() for tensor in weights.values() if tensor.numel()]
    assert len(pointers) == len(set(pointers))


def test_scores_at_chosen_voxels_equal_those_of_the_whole(spec):
    torch.manual_seed(0)
    net = build(spec).eval()
    with torch.no_grad():
        features = net.features(torch.randn(1, 1, 16, 32, 16))
        everywhere = net.scores(features)[0]
        voxels = torch.stack([torch.randint(n, (300,)) for n in (16, 32, 16)], dim=1)
        chosen = net.scores_at(features, voxels)
    x, y, z = voxels.T
    torch.testing.assert_close(chosen, everywhere[:, x, y, z].T, atol=1e-5, rtol=1e-4)


def test_a_spec_survives_json(spec):
    assert NetSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize("stem", [1, 2, 3])
def test_packing_loses_nothing_and_keeps_neighbours_together(stem):
    image = torch.arange(6 * 6 * 12.0).view(1, 1, 6, 6, 12)
    cells = pack(image, stem)
    assert torch.equal(unpack(cells, stem), image)
    assert set(cells[0, :, 0, 0, 0].tolist()) == set(
        image[0, 0, :stem, :stem, :stem].flatten().tolist()
    )


def test_an_unknown_architecture_is_refused_with_the_known_ones():
    with pytest.raises(
        ValueError, match="unknown architecture 'vnet'; known: dynunet, resenc_unet"
    ):
        build(NetSpec("vnet", 3))
