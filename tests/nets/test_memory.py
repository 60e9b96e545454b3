# SPDX-License-Identifier: Apache-2.0
"""Memory of a step is foretold, and the best step that fits is chosen."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch.nn import functional

from brainseg_bids.nets import memory
from brainseg_bids.nets.architectures import build
from brainseg_bids.nets.devices import find_device
from brainseg_bids.nets.memory import patches_of, plan_memory, smaller
from brainseg_bids.nets.memory_plan import (
    ALLOWANCES,
    GIB,
    Device,
    MemoryPlan,
    TooLittleMemory,
    budget_of,
)
from brainseg_bids.nets.memory_prediction import Step, predict_gib
from brainseg_bids.nets.memory_tracker import MemoryTracker
from brainseg_bids.nets.spec import NetSpec

SPEC = NetSpec("unet", 5, 1, 8, {"widths": [8, 16, 16]})
CARD = Device("cuda", "a card", 24.0, 20.0, shared=False, bf16=True)
APU = replace(CARD, shared=True)


def entropy(net, features, labels):
    return functional.cross_entropy(net.scores(features).float(), labels.long())


def middling(net, features, labels):
    """A loss that takes next to nothing, so that the body's memory is seen."""
    return features.mean()


def predict(patch=(64, 64, 64), **options):
    return predict_gib(SPEC, patch, loss=entropy, **{"precision": "32-true"} | options)


def plan(budget_gib, **options):
    """Plan for what is left of a budget when the process has its own."""
    device = options.pop("device", CARD)
    return plan_memory(
        SPEC,
        loss=entropy,
        device=device,
        budget_gib=budget_gib + ALLOWANCES[device.kind].context_gib,
        **{"largest_vox": (96, 96, 96), "multiple": 32} | options,
    )


def test_a_ledger_counts_each_storage_while_it_lives():
    start = torch.ones(1000)
    with MemoryTracker() as ledger:
        view = (start + 1)[:10]
        assert ledger.live["device"] == 4000
        more = view.clone()
        assert ledger.live["device"] == 4040
        del view
        assert ledger.live["device"] == 40
    assert (ledger.peak, len(more)) == (4040, 10)


def test_a_ledger_counts_what_waits_for_the_backward_pass():
    weight = torch.ones(1000, requires_grad=True)
    with MemoryTracker() as ledger:
        loss = (weight * 2).exp().sum()
        assert ledger.live["device"] == 4000 + 4  # the exponential, for its own gradient
        loss.backward()
        assert ledger.peak >= 8000


def real_peak_gib(spec, patch, *, precision, checkpointing):
    """Highest sum of storages of a step that computes."""
    step = Step.of(
        build(spec), entropy, precision=precision, checkpointing=checkpointing, many=False
    )
    image, labels = torch.rand(1, 1, *patch), torch.zeros(1, *patch, dtype=torch.uint8)
    step.run(image, labels)
    with MemoryTracker() as ledger:
        step.net.zero_grad(set_to_none=False)
        ledger.enter([image, labels, *step.average])
        for weight in step.net.parameters():
            ledger.enter([weight, weight.grad, *step.optimiser.state[weight].values()])
        step.learn(image, labels)
    return ledger.peak / GIB


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_step_without_values_takes_what_a_real_step_takes(precision, checkpointing):
    options = {"precision": precision, "checkpointing": checkpointing}
    real_gib = real_peak_gib(SPEC, (32, 32, 32), **options)
    found = predict((32, 32, 32), **options)
    assert found.total - found.kernels == pytest.approx(real_gib, rel=0.03)


def test_parts_add_up_and_weights_are_counted():
    found = predict()
    parameters = sum(p.numel() for p in build(SPEC).parameters())
    assert found.weights == pytest.approx(4 * parameters / GIB)
    assert (found.optimiser, found.gradients) == (2 * found.weights, found.weights)
    parts = (found.gradients, found.optimiser, found.average, found.activations, found.kernels)
    assert found.total == pytest.approx(found.weights + sum(parts))


def test_what_saves_memory_is_foretold_to_save_it():
    plain = predict(device_kind="cuda")
    assert predict(device_kind="cuda", precision="bf16-mixed").total < plain.total
    assert predict(device_kind="cuda", checkpointing=True).activations < plain.activations
    assert predict(device_kind="cuda", batch=2).activations > 1.8 * plain.activations
    offloaded = predict(device_kind="cuda", offload=True)
    assert offloaded.activations < 0.7 * plain.activations
    assert offloaded.host > 0.3 * plain.activations


def test_offloading_saves_nothing_where_memory_is_one():
    assert (
        predict(device_kind="cuda", offload=True, shared=True).total
        > predict(device_kind="cuda", shared=True).total
    )


def test_norms_of_gpus_are_float32_under_autocast():
    spec = NetSpec("segresnet", 5, 1, 8, {"width": 8, "blocks_down": [1, 1]})
    needs = [
        predict_gib(spec, (64,) * 3, loss=entropy, precision="bf16-mixed", device_kind=kind)
        for kind in ("cpu", "cuda")
    ]
    assert needs[1].activations > 1.2 * needs[0].activations


@pytest.mark.parametrize(
    ("options", "words"),
    [({"precision": "16"}, "precision '16'"), ({"device_kind": "tpu"}, "device 'tpu'")],
)
def test_what_is_not_known_is_refused(options, words):
    with pytest.raises(ValueError, match=f"unknown {words}; known"):
        predict(**options)


def test_patches_grow_to_what_holds_a_head():
    assert patches_of(16, (48, 40, 64)) == [(32, 32, 32), (48, 48, 48), (48, 48, 64)]
    assert patches_of(32, (10, 40, 10)) == [(32, 64, 32)]


def test_the_largest_patch_that_fits_is_chosen():
    enough_gib = predict((64, 64, 64), precision="bf16-mixed", device_kind="cuda").total
    found = plan(enough_gib * 1.01, voxel_size_mm=2.0)
    assert (found.patch_vox, found.precision) == ((64, 64, 64), "bf16-mixed")
    assert (found.checkpointing, found.offload) == (False, False)
    assert found.predicted_gib == pytest.approx(enough_gib)
    assert plan(100).patch_vox == (96, 96, 96)
    assert plan(100).reason == "holds a whole head"


def test_leaner_settings_are_for_patches_that_would_be_poor():
    spec = NetSpec("segresnet", 5, 1, 8, {"width": 8, "blocks_down": [1, 2]})
    known = {"loss": middling, "device": CARD, "largest_vox": (96,) * 3, "multiple": 32}
    need = {"precision": "bf16-mixed", "device_kind": "cuda", "loss": middling}
    room_gib = predict_gib(spec, (64,) * 3, **need).total + ALLOWANCES["cuda"].context_gib + 0.01
    found = plan_memory(spec, budget_gib=room_gib, **known)
    assert found.patch_vox == (96, 96, 96)
    assert found.checkpointing or found.offload
    assert "below 96 mm" in found.reason
    coarse = plan_memory(spec, budget_gib=room_gib, voxel_size_mm=2.0, **known)
    assert (coarse.patch_vox, coarse.checkpointing) == ((64, 64, 64), False)
    shared = plan_memory(spec, budget_gib=room_gib, **known | {"device": APU})
    assert not shared.offload


def test_pairs_that_do_not_fit_are_accumulated():
    two_gib = predict((96,) * 3, precision="bf16-mixed", device_kind="cuda", batch=2).total
    found = plan(two_gib * 1.1, batch_wanted=4)
    assert (found.batch, found.accumulate) == (2, 2)


def test_a_wanted_precision_is_kept_and_half_is_for_who_can():
    assert plan(100, precision="32-true").precision == "32-true"
    assert plan(100, device=replace(CARD, bf16=False)).precision == "32-true"


def test_too_little_memory_says_what_would_fit():
    with pytest.raises(TooLittleMemory, match=r"smallest patch") as caught:
        plan(0.01)
    need_gib = float(str(caught.value).split("needs ")[1].split(" GiB")[0])
    context_gib = ALLOWANCES["cuda"].context_gib
    assert plan(need_gib - context_gib).predicted_gib <= need_gib - context_gib
    with pytest.raises(TooLittleMemory):
        plan(need_gib - 0.11 - context_gib)


def test_a_smaller_plan_has_fewer_pairs_at_a_time_and_then_a_smaller_patch():
    first = plan(100, batch_wanted=2, largest_vox=(64, 64, 64))
    second = smaller(first, SPEC, loss=entropy)
    assert (second.batch, second.accumulate, second.patch_vox) == (1, 2, first.patch_vox)
    leanest = replace(second, checkpointing=True, offload=True)
    third = smaller(leanest, SPEC, loss=entropy)
    assert (third.batch, third.accumulate) == (1, 2)
    assert max(third.patch_vox) < 64
    needs = [first.predicted_gib, second.predicted_gib, third.predicted_gib]
    assert all(after <= 0.85 * before for before, after in pairwise(needs))


def test_there_is_no_plan_below_the_smallest_patch():
    least = replace(plan(100), patch_vox=(8, 8, 8), checkpointing=True, offload=True)
    with pytest.raises(TooLittleMemory, match="8 x 8"):
        smaller(least, SPEC, loss=entropy)


def test_a_plan_survives_json_and_says_itself_in_a_line():
    found = replace(plan(100), checkpointing=True, probed_gib=1.25)
    assert MemoryPlan.from_json(found.to_json()) == found
    line = found.describe()
    assert "96 x 96 x 96" in line
    assert "checkpointing" in line
    assert "1.2 probed" in line
    assert "\n" not in line


def test_without_a_budget_a_share_of_what_is_free_is_taken():
    assert budget_of(CARD) > budget_of(APU)
    assert budget_of(APU) == pytest.approx(14.0)


def test_a_cpu_is_always_found_and_a_limit_is_kept():
    found = find_device("cpu", host_free_gib=1.5)
    assert (found.kind, found.free_gib, found.shared) == ("cpu", 1.5, True)
    assert find_device("cpu").free_gib <= find_device("cpu").total_gib
    with pytest.raises(ValueError, match="unknown device"):
        find_device("tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is such a device")
def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="no cuda device"):
        find_device("cuda")


def test_an_integrated_gpu_is_counted_once(monkeypatch):
    class Integrated:
        name = "an APU"
        is_integrated = 1

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Integrated)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (60 * GIB, 64 * GIB))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    found = find_device(host_free_gib=2.0)
    assert (found.kind, found.shared, found.free_gib) == ("cuda", True, 2.0)


@pytest.mark.input(
    "training",
    "recipe whose wanted pairs do not fit at once",
    "fewer at a time, accumulated; the first number that does not fit ends the search",
    0,
)
@pytest.mark.parametrize(("room", "most", "tries"), [(5.0, 5, [2, 3, 4, 5, 6]), (1.5, 1, [2])])
def test_more_pairs_are_tried_only_until_they_do_not_fit(monkeypatch, room, most, tries):
    tried = []

    def predict(self, patch, batch, lean):
        tried.append(batch)
        return float(batch)

    monkeypatch.setattr(memory._Search, "predict", predict)
    search = memory._Search(None, None, "32-true", "cpu", True, 1)
    assert search.most_pairs((32, 32, 32), 240, memory.MemorySaving(), room) == most
    assert tried == tries
