# SPDX-License-Identifier: Apache-2.0
"""Optimisers: what Muon does to kernels, whom it leaves alone, and that its runs go on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from brainseg_bids.nets.architectures import build
from brainseg_bids.nets.spec import NetSpec
from brainseg_bids.training.fit import fit, make_task
from brainseg_bids.training.optimisers import OPTIMISERS, Muon, kernels_of, orthogonal
from brainseg_bids.training.plan import OPTIMIZERS, TrainPlan
from tests.training.tiny import TINY, difference, read_state, tiny_head

HEADS = [tiny_head()], [tiny_head((26, 28, 26))]
MUON = replace(TINY, optimizer="muon")


def test_a_recipe_may_name_every_optimiser_that_there_is():
    assert set(OPTIMIZERS) == set(OPTIMISERS)


@pytest.mark.parametrize("shape", [(12, 216), (216, 12), (16, 16)])
def test_orthogonalised_is_near_the_polar_factor_whatever_the_scale(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonal(1e-4 * matrix)
    torch.testing.assert_close(found, orthogonal(matrix), rtol=1e-3, atol=1e-4)
    assert float((found * (u @ v)).sum()) / min(shape) > 0.8  # singular values in its basis
    assert float(torch.linalg.matrix_norm(found, 2)) < 1.3


def test_muon_is_that_of_pytorch_for_a_kernel_seen_as_a_matrix():
    torch.manual_seed(0)
    kernel = torch.nn.Parameter(torch.randn(6, 4, 3, 3, 3))
    matrix = torch.nn.Parameter(kernel.detach().clone().flatten(1))
    ours = Muon([kernel], [], lr=1e-2, weight_decay=0.1)
    theirs = torch.optim.Muon([matrix], 1e-2, 0.1, adjust_lr_fn="match_rms_adamw")
    begin = matrix.detach().clone()
    for _ in range(3):
        kernel.grad = torch.randn_like(kernel)
        matrix.grad = kernel.grad.flatten(1).clone()
        ours.step()
        theirs.step()
    apart = (kernel.detach().flatten(1) - matrix.detach()).norm()
    assert float(apart / (matrix.detach() - begin).norm()) < 0.02  # theirs is in bfloat16


@pytest.mark.parametrize(
    ("spec", "left_out"),
    [
        (TINY.net, {"body.input_block.conv1.conv.weight"}),
        (
            NetSpec(
                "mednext", 43, 2, 8, {"width": 8, "blocks": [1, 1, 1], "expansion": [2, 2, 2]}
            ),
            None,
        ),
    ],
    ids=["dynunet", "mednext"],
)
def test_first_layer_head_and_depthwise_kernels_are_left_to_adamw(spec, left_out):
    net = build(spec)
    names = {id(weight): name for name, weight in net.named_parameters()}
    chosen = {names[id(one)] for one in kernels_of(net)}
    every = {name for name, weight in net.named_parameters() if weight.ndim == 5}
    assert chosen
    assert not any(name.startswith("head.") for name in chosen)
    if left_out:
        assert every - chosen == left_out | {"head.weight"}
    else:
        parameters = dict(net.named_parameters())
        assert all(parameters[name].shape[1] > 1 for name in chosen)


def test_what_is_no_kernel_moves_as_by_adamw():
    steps = {}
    for name in OPTIMISERS:
        task = make_task(replace(TINY, optimizer=name))
        torch.manual_seed(0)
        with torch.no_grad():
            for weight in task.net.parameters():
                weight.copy_(torch.randn_like(weight))
        optimizer = task.configure_optimizers()["optimizer"]
        for weight in task.net.parameters():
            weight.grad = torch.ones_like(weight)
        optimizer.step()
        steps[name] = task.net.weights()
    kernels = {id(one) for one in kernels_of(task.net)}
    for name, weight in task.net.named_parameters():
        same = torch.equal(steps["adamw"][name], steps["muon"][name])
        assert same != (id(weight) in kernels), name


def test_muon_learns_one_pair_by_heart():
    def loss_after(steps: int) -> float:
        torch.manual_seed(0)
        task = make_task(MUON)
        optimizer = task.configure_optimizers()["optimizer"]
        image = torch.randn(1, 1, 24, 24, 24)
        labels = (image[0] > 0).to(torch.uint8)
        for _ in range(steps + 1):
            optimizer.zero_grad()
            loss = task.loss(task.net, task.net.features(image), labels, [0])
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    assert loss_after(20) < 0.5 * loss_after(0)


def test_a_run_by_muon_that_was_stopped_has_the_weights_of_a_straight_one(tmp_path):
    fit(MUON, *HEADS, tmp_path / "straight", until_step=4)
    fit(MUON, *HEADS, tmp_path / "resumed", until_step=2)
    fit(MUON, *HEADS, tmp_path / "resumed", until_step=4)
    one, other = (read_state(tmp_path / d / "last.ckpt") for d in ("straight", "resumed"))
    assert any(name.endswith("/momentum") for name in one)
    assert difference(one, other) == 0


def test_a_run_of_before_there_was_a_choice_was_by_adamw():
    said = TINY.to_dict()
    del said["optimizer"]
    assert TrainPlan.from_dict(said).optimizer == "adamw"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"optimizer": "sgd"}, "unknown optimizer 'sgd'; known: adamw, muon"),
        ({"optimizer": "muon", "strategy": "fsdp"}, "strategy ddp"),
    ],
)
def test_an_optimiser_that_cannot_be_had_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        replace(TINY, **change)
