# SPDX-License-Identifier: Apache-2.0
"""What a network takes over from another: what fits, and rows of the head by name."""

from __future__ import annotations

import pytest
import torch

from brainseg_bids.anatomy.labels import Label, LabelTable
from brainseg_bids.nets.architectures import ARCHITECTURES, PackedNet, build
from brainseg_bids.nets.sizes import default_spec
from brainseg_bids.nets.spec import NetSpec
from brainseg_bids.nets.transfer import Transfer, transfer

SOURCE = LabelTable(
    [Label(0, "Background"), Label(3, "Cortex"), Label(9, "Skull"), Label(20, "Skin")],
    name="source",
)
OTHER = LabelTable(
    [Label(0, "Background"), Label(2, "Skin"), Label(5, "Eye"), Label(8, "Cortex"),
     Label(9, "Muscle")],
    name="other",
)  # fmt: skip
WIDTHS = {"widths": [8, 16, 24]}


def net_of(table: LabelTable, *, seed: int, architecture: str = "dynunet", block_size: int = 2,
           features: int = 8, options: dict = WIDTHS) -> PackedNet:  # fmt: skip
    torch.manual_seed(seed)
    return build(NetSpec(architecture, len(table), block_size, features, options)).eval()


@pytest.fixture
def source() -> PackedNet:
    return net_of(SOURCE, seed=1)


def scores(net: PackedNet, table: LabelTable) -> dict[str, torch.Tensor]:
    image = torch.rand(1, 1, 16, 16, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        found = net(image)[0]
    return {label.name: found[rank] for rank, label in enumerate(table)}


def test_the_same_table_gives_the_same_network(source):
    net = net_of(SOURCE, seed=5)
    done = transfer(net, SOURCE, source, SOURCE)
    assert all(torch.equal(w, source.weights()[k]) for k, w in net.weights().items())
    assert (done.fresh, done.labels_fresh) == ((), ())
    assert done.taken == len([name for name in net.weights() if name.startswith("body.")])


def test_labels_of_another_table_are_taken_by_name_wherever_their_code_is(source):
    net, untouched = net_of(OTHER, seed=5), net_of(OTHER, seed=5)
    done = transfer(net, OTHER, source, SOURCE)
    of_net, of_source = scores(net, OTHER), scores(source, SOURCE)
    for name in ("Background", "Skin", "Cortex"):
        assert torch.equal(of_net[name], of_source[name])
    assert done.labels_taken == ("Background", "Skin", "Cortex")
    assert done.labels_fresh == ("Eye", "Muscle")
    own, fresh = (n.head.weight.view(5, 8, -1) for n in (net, untouched))
    assert torch.equal(own[[2, 4]], fresh[[2, 4]])
    assert not torch.equal(own[1], fresh[1])


def test_the_background_is_taken_whatever_it_is_called(source):
    table = LabelTable([Label(0, "Unknown"), Label(1, "Eye")], name="plain")
    net = net_of(table, seed=5)
    done = transfer(net, table, source, SOURCE)
    assert (done.labels_taken, done.labels_fresh) == (("Unknown",), ("Eye",))
    assert torch.equal(scores(net, table)["Unknown"], scores(source, SOURCE)["Background"])


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_a_network_of_a_coarser_grid_is_a_start_for_a_finer_one(architecture):
    fine, coarse = (
        build(default_spec(architecture, "small", n_labels=4, voxel_size_mm=mm))
        for mm in (0.5, 1.0)
    )
    done = transfer(fine, SOURCE, coarse, SOURCE)
    assert done.taken > 0.3 * (done.taken + len(done.fresh))
    assert done.labels_fresh == ()


def test_the_source_is_left_as_it_was(source):
    before = {name: weight.clone() for name, weight in source.weights().items()}
    net = net_of(OTHER, seed=5)
    transfer(net, OTHER, source, SOURCE)
    with torch.no_grad():
        for weight in net.parameters():
            weight.zero_()
    assert all(torch.equal(weight, before[name]) for name, weight in source.weights().items())


def test_with_another_block_size_the_body_behind_the_first_layers_is_taken(source):
    net = net_of(OTHER, seed=5, block_size=1)
    done = transfer(net, OTHER, source, SOURCE)
    assert {name.split(".")[1] for name in done.fresh} == {"input_block"}
    assert 0 < len(done.fresh) < done.taken
    assert done.labels_taken == ()
    assert done.labels_fresh == ("Background", "Skin", "Eye", "Cortex", "Muscle")
    deepest = "body.bottleneck.conv1.conv.weight"
    assert torch.equal(net.weights()[deepest], source.weights()[deepest])


def test_other_features_leave_the_head_fresh(source):
    net = net_of(SOURCE, seed=5, features=12)
    done = transfer(net, SOURCE, source, SOURCE)
    assert done.labels_taken == ()
    assert all("output_block" in name for name in done.fresh)


@pytest.mark.parametrize(
    ("architecture", "options"),
    [("segresnet", {"width": 8, "blocks_down": [1, 1, 1]}), ("dynunet", {"widths": [10, 20, 30]})],
)
def test_a_start_that_hardly_fits_is_refused_and_changes_nothing(source, architecture, options):
    net = net_of(SOURCE, seed=5, architecture=architecture, options=options)
    before = {name: weight.clone() for name, weight in net.weights().items()}
    with pytest.raises(
        ValueError, match=rf"dynunet, block size 2.*shares 0 % of.*{architecture}, block size 2"
    ):
        transfer(net, SOURCE, source, SOURCE)
    assert all(torch.equal(weight, before[name]) for name, weight in net.weights().items())


def test_a_table_of_another_length_than_its_head_is_refused(source):
    with pytest.raises(ValueError, match=r"5 labels"):
        transfer(net_of(SOURCE, seed=5), OTHER, source, SOURCE)
    with pytest.raises(ValueError, match="5 labels"):
        transfer(net_of(SOURCE, seed=5), SOURCE, source, OTHER)


def test_many_new_labels_are_counted_not_listed():
    names = tuple(f"Part-{k}" for k in range(8))
    line = Transfer(3, ("body.a",), (), names).describe()
    assert line.startswith("3 of 4 tensors and 0 of 8 labels taken; new labels: Part-0, ")
    assert line.endswith("Part-4 and 3 more")
