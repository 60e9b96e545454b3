# SPDX-License-Identifier: Apache-2.0
"""Training learns, and an interrupted run goes on as if nothing had been."""

from __future__ import annotations

from dataclasses import replace

import lightning
import numpy as np
import pytest
import torch

from brainseg_bids.nets.architectures import ARCHITECTURES
from brainseg_bids.nets.memory_plan import PRECISIONS
from brainseg_bids.nets.spec import NetSpec
from brainseg_bids.synth.generator import LabelVolume
from brainseg_bids.synth.space import RecipeSpace
from brainseg_bids.training.data import PairStream
from brainseg_bids.training.fit import _precision_of, averaged_net, fit, make_generator, make_task
from brainseg_bids.training.losses import (
    choose_voxels,
    chosen_cross_entropy,
    chosen_dice_loss,
)
from brainseg_bids.training.plan import TrainPlan
from brainseg_bids.training.resume import steps_done
from brainseg_bids.training.task import task_of
from tests.nets.test_architectures import smallest_patch, tiny
from tests.training.tiny import TINY, difference, read_state

PLAN = replace(
    TINY,
    net=NetSpec("dynunet", 43, 2, 12, {"widths": [12, 16, 24]}),
    patch_vox=(32, 32, 32),
    voxel_size_mm=6.0,
    total_steps=4,
    per_label=64,
    anywhere=1024,
)


@pytest.fixture(scope="module")
def ready(head) -> LabelVolume:
    return LabelVolume.from_label_map(head)


def weights_of(task) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in task.net.parameters()])


def test_the_pair_of_a_step_depends_on_seed_index_and_step_only(ready):
    spaces = [(RecipeSpace.packaged("t1w"), 1.0), (RecipeSpace.packaged("agnostic"), 1.0)]

    def stream(**options):
        return PairStream([ready, ready], spaces, make_generator(PLAN), **{"seed": 1} | options)

    straight = [pair["image"] for pair in stream(stop_step=4)]
    resumed = [pair["image"] for pair in stream(start_step=2, stop_step=4)]
    assert torch.equal(straight[2], resumed[0])
    assert torch.equal(straight[3], resumed[1])
    assert stream().draw(5) == stream().draw(5, index=0) != stream().draw(5, index=1)
    names = {stream().draw(step)[1].space for step in range(40)}
    assert names == {"t1w", "agnostic"}


def test_rare_labels_are_chosen_as_often_as_common_ones():
    labels = torch.zeros(40, 40, 40, dtype=torch.uint8)
    labels[:20] = 1
    labels[0, :10, :10] = 2
    voxels, log_odds = choose_voxels(labels, n_labels=4, per_label=20, anywhere=1000, seed=0)
    chosen = labels[voxels[:, 0], voxels[:, 1], voxels[:, 2]]
    counts = torch.bincount(chosen.int(), minlength=4)
    assert 20 <= counts[2] < 30  # 100 of 64,000 voxels, yet 20 of 1060
    assert counts[3] == 0
    assert log_odds[2] > 2
    assert log_odds[3] == 0


def test_bare_scores_are_calibrated_to_true_frequencies():
    # Scores free, image without information: the best constant scores are the log frequencies.
    labels = torch.zeros(30, 30, 30, dtype=torch.uint8)
    labels[:3] = 1
    labels[29, :9, :] = 2
    scores = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.Adam([scores], lr=0.1)
    for step in range(300):
        voxels, log_odds = choose_voxels(
            labels, n_labels=3, per_label=400, anywhere=500, seed=step
        )
        truth = labels[voxels[:, 0], voxels[:, 1], voxels[:, 2]]
        loss = chosen_cross_entropy(scores.expand(len(truth), 3), truth, log_odds)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    frequency = torch.bincount(labels.flatten().int()) / labels.numel()
    torch.testing.assert_close(scores.softmax(0), frequency, atol=0.02, rtol=0)


def test_dice_of_chosen_voxels_estimates_that_of_all():
    torch.manual_seed(0)
    labels = torch.zeros(40, 40, 40, dtype=torch.uint8)
    labels[:12] = 1
    labels[0, :20, :20] = 2
    scores = torch.randn(64_000, 3) + 2 * torch.nn.functional.one_hot(labels.flatten().long(), 3)
    predicted = scores.softmax(1)
    truth = torch.nn.functional.one_hot(labels.flatten().long(), 3)
    dense = 1 - (2 * (predicted * truth).sum(0) / (predicted + truth).sum(0)).mean()
    everything = chosen_dice_loss(scores, labels.flatten(), torch.zeros(3))
    torch.testing.assert_close(everything, dense)
    voxels, log_odds = choose_voxels(labels, n_labels=3, per_label=400, anywhere=6000, seed=1)
    rows = (voxels[:, 0] * 40 + voxels[:, 1]) * 40 + voxels[:, 2]
    estimate = chosen_dice_loss(scores[rows], labels.flatten()[rows], log_odds)
    assert estimate == pytest.approx(float(dense), abs=0.02)


def test_training_learns_a_phantom(ready, tmp_path):
    plan = replace(PLAN, total_steps=60, decay_steps=20, validate_every=60, ema_decay=0.9)
    fit(plan, [ready], [ready], tmp_path)
    log = np.genfromtxt(tmp_path / "log-from-0" / "metrics.csv", delimiter=",", names=True)
    loss = log["loss"][~np.isnan(log["loss"])]
    assert loss[-1] < loss[0]
    net = averaged_net(plan, tmp_path / "last.ckpt").eval()
    pair = next(
        iter(
            PairStream(
                [ready], [(RecipeSpace.packaged("t1w"), 1.0)], make_generator(plan), seed=99
            )
        )
    )
    with torch.no_grad():
        found = net(pair["image"]).max(1).indices[0]
    head = pair["labels"] > 0
    dice = 2 * ((found > 0) & head).sum() / ((found > 0).sum() + head.sum())
    assert dice > 0.7


def test_a_resumed_run_ends_where_a_straight_one_does(ready, tmp_path):
    straight = fit(PLAN, [ready], [ready], tmp_path / "straight")
    # Three is no multiple of the checkpoint's interval.
    fit(PLAN, [ready], [ready], tmp_path / "stopped", until_step=3)
    assert steps_done(tmp_path / "stopped" / "last.ckpt") == 3
    resumed = fit(PLAN, [ready], [ready], tmp_path / "stopped")
    torch.testing.assert_close(weights_of(resumed), weights_of(straight), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("loss", ["chosen", "dense"])
@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_every_architecture_trains_on_the_phantom_and_goes_on_bit_by_bit(
    architecture, loss, ready, tmp_path
):
    net = tiny(architecture, n_labels=43)
    own = {"net": net, "loss": loss, "precision": "bf16-mixed", "total_steps": 4}
    plan = replace(TINY, **own, patch_vox=smallest_patch(net))
    fit(plan, [ready], [ready], tmp_path / "straight")
    fit(plan, [ready], [ready], tmp_path / "stopped", until_step=3)
    fit(plan, [ready], [ready], tmp_path / "stopped")
    one, other = (read_state(tmp_path / d / "last.ckpt") for d in ("straight", "stopped"))
    assert difference(one, other) == 0
    begun = make_task(plan).net.weights()
    learned = {
        name for name, was in begun.items() if not torch.equal(one[f"state_dict/net.{name}"], was)
    }
    kernels = {name for name, was in begun.items() if was.ndim > 1}
    assert kernels <= learned
    assert all(torch.isfinite(tensor).all() for tensor in one.values())


def test_a_loss_that_is_no_number_names_its_step(ready, tmp_path):
    plan = replace(PLAN, learning_rate=1e20, total_steps=30, validate_every=30, ema_decay=0.0)
    with pytest.raises(FloatingPointError, match=r"at step \d+"):
        fit(plan, [ready], [ready], tmp_path)


def test_the_learning_rate_may_be_full_from_the_first_step_on():
    assert make_task(replace(PLAN, warmup_steps=0)).rate_at(0) == 1


def test_a_plan_survives_json():
    assert TrainPlan.from_json(PLAN.to_json()) == PLAN


@pytest.mark.parametrize("last_axis", [42, 61, 122])
def test_training_and_inference_scale_intensities_alike(rng, last_axis):
    from brainseg_bids.anatomy.intensity import rescale
    from brainseg_bids.synth.generator import _finish

    image = torch.from_numpy(rng.gamma(2, 50, (40, 41, last_axis))).float()
    everywhere = tuple(slice(0, n) for n in image.shape)
    assert torch.equal(_finish(image, None, everywhere, 1.0), rescale(image))


def test_a_precision_that_no_trainer_knows_is_refused():
    assert [_precision_of(replace(TINY, precision=p)) for p in PRECISIONS] == list(PRECISIONS)
    with pytest.raises(ValueError, match="bf16-mixed, 32-true"):
        _precision_of(replace(TINY, precision="64-true"))


def test_callbacks_take_no_other_module_for_ours():
    with pytest.raises(TypeError, match="LightningModule"):
        task_of(lightning.LightningModule())
