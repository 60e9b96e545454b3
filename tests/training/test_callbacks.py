# SPDX-License-Identifier: Apache-2.0
"""Beside the steps: average, time, signals, guard, log, validation, memory."""

from __future__ import annotations

import csv
import json
import logging
import os
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from brainseg_bids.nets.devices import MemoryMeter
from brainseg_bids.nets.memory_plan import MemoryPlan, TooLittleMemory
from brainseg_bids.programs import train
from brainseg_bids.synth.generator import Generator
from brainseg_bids.training import task as tasks
from brainseg_bids.training.callbacks import (
    CheckpointCallback,
    DecayByTime,
    GradientCheck,
    NotFinite,
    Stopped,
)
from brainseg_bids.training.data import PairStream, pair_seed
from brainseg_bids.training.deadline import MOST_STEPS, Deadline, TooShort
from brainseg_bids.training.fit import PairData, fit, make_generator, make_task
from brainseg_bids.training.losses import ChosenLoss
from brainseg_bids.training.processes import accelerator_for
from brainseg_bids.training.resume import steps_done
from brainseg_bids.training.validation import RealImage, middle_planes
from tests.phantom.head import phantom_head, phantom_image
from tests.training.tiny import FOUR, TINY, difference, read_state, tiny_head, write_inputs

HEADS = ([tiny_head()], [tiny_head((26, 28, 26))])


def rows(folder: Path, pattern: str = "log-from-*") -> list[dict[str, float]]:
    found = []
    for path in sorted(folder.glob(f"{pattern}/metrics.csv")):
        with path.open(newline="") as file:
            found += [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    return found


def at_render(monkeypatch, number: int, act) -> None:
    """Do something when the pair of this number is made."""
    original, count = Generator.render, iter(range(10**6))

    def render(*arguments):
        if next(count) == number:
            act()
        return original(*arguments)

    monkeypatch.setattr(Generator, "render", render)


# -- average, checkpoints, signals --------------------------------------------------------


def test_the_average_is_the_moving_average_of_the_weights(tmp_path):
    weights = []
    for step in (1, 2, 3):
        fit(TINY, *HEADS, tmp_path, until_step=step)
        checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
        weights.append(checkpoint["current_model_state"]["net.head.weight"])
    expected = 0.5 * (0.5 * weights[0] + 0.5 * weights[1]) + 0.5 * weights[2]
    torch.testing.assert_close(checkpoint["state_dict"]["net.head.weight"], expected)
    assert not torch.equal(weights[2], expected)


def test_checkpoints_are_made_by_time_too(tmp_path, monkeypatch):
    at_render(monkeypatch, 3, lambda: (_ for _ in ()).throw(RuntimeError("cut")))
    with pytest.raises(RuntimeError, match="cut"):
        fit(replace(TINY, validate_every=50), *HEADS, tmp_path, checkpoint_every_s=0.0)
    assert steps_done(tmp_path / "last.ckpt") == 3


SIGNALS = ("SIGTERM", "SIGUSR1", "SIGINT")


def interrupt(number, frame):
    """What whoever calls us may have a signal do."""
    raise KeyboardInterrupt


@pytest.fixture(params=[signal.SIG_DFL, interrupt], ids=["default", "handled"])
def handlers(request):
    """Handlers that training finds, whatever ran before; it has to leave them so."""
    numbers = [getattr(signal, name) for name in SIGNALS]
    before = [signal.signal(number, request.param) for number in numbers]
    yield
    left = [signal.getsignal(number) for number in numbers]
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)
    assert left == [request.param] * len(SIGNALS)


def test_signals_are_handled_as_before_when_training_is_done(handlers, tmp_path):
    # Three is no multiple of two: there is a validation after the last step.
    fit(replace(TINY, total_steps=3), *HEADS, tmp_path)
    assert steps_done(tmp_path / "last.ckpt") == 3


@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_ends_the_run_after_the_step_in_work(name, handlers, tmp_path, monkeypatch):
    at_render(monkeypatch, 5, lambda: os.kill(os.getpid(), getattr(signal, name)))
    with pytest.raises(Stopped) as stop:
        fit(replace(FOUR, validate_every=50), *HEADS, tmp_path)
    # The sixth pair is of the second step, whose eighth has to be made yet.
    assert (stop.value.step, stop.value.signal_name, stop.value.code) == (2, name, 75)
    assert steps_done(tmp_path / "last.ckpt") == 2


@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize(
    ("module", "hook"),
    [(GradientCheck, "setup"), (PairData, "train_dataloader")],
    ids=["setting-up", "about-to-begin"],
)
def test_a_signal_before_the_first_step_stops_at_once(
    module, hook, name, handlers, tmp_path, monkeypatch
):
    fit(TINY, *HEADS, tmp_path, until_step=2)
    before = (tmp_path / "last.ckpt").read_bytes()
    with monkeypatch.context() as patch:
        number = getattr(signal, name)
        patch.setattr(module, hook, lambda *_, **__: os.kill(os.getpid(), number))
        with pytest.raises(Stopped) as stop:
            fit(TINY, *HEADS, tmp_path, until_step=4)
    assert (stop.value.step, stop.value.signal_name, stop.value.code) == (2, name, 75)
    assert (tmp_path / "last.ckpt").read_bytes() == before


def test_a_signal_that_only_lightning_hears_is_no_success(tmp_path, monkeypatch):
    monkeypatch.setattr(CheckpointCallback, "SIGNALS", ())
    at_render(monkeypatch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(Stopped) as stop:
            fit(TINY, *HEADS, tmp_path)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (stop.value.step, stop.value.code) == (2, 75)


@pytest.mark.parametrize("name", SIGNALS)
def test_what_was_trained_to_the_end_is_looked_at_whatever_is_sent(
    name, handlers, tmp_path, monkeypatch
):
    # Pairs: two steps, a validation, a third step, the validation after it.
    at_render(monkeypatch, 5, lambda: os.kill(os.getpid(), getattr(signal, name)))
    fit(replace(TINY, total_steps=3, validation_pairs=2), *HEADS, tmp_path)
    assert [row["step"] for row in rows(tmp_path) if "dice_brain" in row] == [2, 3]


def test_a_signal_ends_a_validation_for_its_step_is_saved(tmp_path, monkeypatch):
    # The third pair is the first held-out one, after step 2.
    at_render(monkeypatch, 2, lambda: os.kill(os.getpid(), signal.SIGUSR1))
    with pytest.raises(Stopped) as stop:
        fit(replace(TINY, validation_pairs=3), *HEADS, tmp_path)
    assert (stop.value.step, stop.value.signal_name) == (2, "SIGUSR1")
    assert steps_done(tmp_path / "last.ckpt") == 2
    assert not any("dice_brain" in row for row in rows(tmp_path))


# -- guard --------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_leaves_its_pairs_to_be_made_again(tmp_path, monkeypatch, capsys):
    arguments = write_inputs(tmp_path, FOUR)
    original, bad = ChosenLoss.__call__, pair_seed(2, 3)

    def loss(self, net, features, labels, seeds):
        value = original(self, net, features, labels, seeds)
        return value * float("inf") if bad in seeds else value

    monkeypatch.setattr(ChosenLoss, "__call__", loss)
    assert train.main(arguments) == 1
    said = capsys.readouterr().err
    path = tmp_path / "out" / "bad-step-000002.json"
    assert said.count("\n") == 1
    assert f"loss is inf at step 2; its pairs are in {path}" in said
    assert steps_done(tmp_path / "out" / "last.ckpt") == 2
    told = json.loads(path.read_text())
    assert [pair["place"] for pair in told["pairs"]] == [2, 3]
    assert told["pairs"][0]["head_file"] == str(tmp_path / "learn.nii.gz")

    assert train.main(["--replay", str(path)]) == 0
    assert "image finite" in capsys.readouterr().out
    made = np.load(tmp_path / "out" / "bad-step-000002_place-3.npz")
    stream = PairStream(HEADS[0], [(_space("t1w"), 1.0)], make_generator(FOUR), seed=FOUR.seed)
    which, recipe = stream.draw(2, 3)
    pair = make_generator(FOUR).render(HEADS[0][which], recipe)
    np.testing.assert_array_equal(made["image"], pair.image[0].numpy())
    np.testing.assert_array_equal(made["labels"], pair.labels.numpy())


def _space(name: str):
    from brainseg_bids.synth.recipe_files import read_space

    return read_space(name)


def test_a_gradient_that_is_no_number_is_stopped_before_it_spoils_the_weights(
    tmp_path, monkeypatch
):
    original = tasks.SegmentationTask.training_step

    def step(self, batch):
        loss = original(self, batch)
        if batch["step"] == 2:
            loss.register_hook(lambda slope: slope * float("nan"))
        return loss

    monkeypatch.setattr(tasks.SegmentationTask, "training_step", step)
    with pytest.raises(NotFinite, match=r"step 2"):
        fit(TINY, *HEADS, tmp_path)
    state = read_state(tmp_path / "last.ckpt")
    assert all(torch.isfinite(tensor).all() for tensor in state.values())
    assert json.loads((tmp_path / "bad-step-000002.json").read_text())["gradient_norm"] == "nan"


# -- log and validation -------------------------------------------------------------------


@pytest.fixture(scope="module")
def looked_at(tmp_path_factory) -> Path:
    """Two steps, with a real image whose reference has the skin and one thalamus only."""
    folder = tmp_path_factory.mktemp("looked-at")
    labels = phantom_head((26, 28, 26), 8.0)
    image = phantom_image(labels, np.random.default_rng(1)).astype(np.float32)
    generator = make_generator(TINY)
    from brainseg_bids.anatomy.crosswalk import Crosswalk

    reference = Crosswalk.packaged("fullhead", "brainseg").translate(labels)
    kept = [reference.table[name].index for name in ("Skin", "Left-Thalamus")]
    voxels = np.where(np.isin(reference.voxels, kept), reference.voxels, 0)
    real = RealImage("phantom", image, labels.grid, replace(reference, voxels=voxels))
    assert reference.table == generator.target
    fit(replace(TINY, validation_pairs=3), *HEADS, folder, until_step=2, real=[real])
    return folder


def test_the_log_has_loss_rate_speed_waiting_and_memory(looked_at):
    row = next(row for row in rows(looked_at) if "loss" in row)
    named = {"step", "loss", "lr", "pairs_per_s", "voxels_per_s", "waiting_frac", "memory_gib"}
    assert set(row) == named
    assert row["voxels_per_s"] == pytest.approx(24**3 * row["pairs_per_s"])
    assert 0 < row["waiting_frac"] < 1
    assert row["lr"] == pytest.approx(TINY.learning_rate)
    assert list(looked_at.glob("log-from-0/events.out.tfevents*"))


def test_validation_gives_dice_of_pairs_and_of_what_a_real_reference_has(looked_at):
    row = next(row for row in rows(looked_at) if "dice_brain" in row)
    assert row["step"] == 2
    real = {name for name in row if name.startswith("real/")}
    assert real == {
        "real/phantom/dice_brain",
        "real/phantom/dice/Skin",
        "real/phantom/dice/Left-Thalamus",
    }
    assert row["real/phantom/dice_brain"] == row["real/phantom/dice/Left-Thalamus"]
    assert "dice/Right-Thalamus" in row


def test_a_validation_leaves_a_sample_of_the_first_pair(looked_at):
    sample = np.load(looked_at / "samples" / "step-000002.npz")
    assert {name: sample[name].dtype.name for name in sample} == {
        "image": "float16",
        "truth": "uint8",
        "found": "uint8",
    }
    stream = PairStream(HEADS[1], [(_space("t1w"), 1.0)], make_generator(TINY), seed=1_000_006)
    which, recipe = stream.draw(0)
    pair = make_generator(TINY).render(HEADS[1][which], recipe)
    np.testing.assert_array_equal(sample["truth"], middle_planes(pair.labels.numpy()))
    assert sample["truth"].any()
    assert sample["found"].shape == sample["image"].shape == (3, 24, 24)


def test_planes_of_uneven_patches_are_padded_to_one_shape():
    volume = np.arange(1, 2 * 4 * 6 + 1, dtype=np.uint8).reshape(2, 4, 6)
    axial, coronal, sagittal = middle_planes(volume)
    np.testing.assert_array_equal(axial[:2, :4], volume[:, :, 3])
    np.testing.assert_array_equal(coronal[:2, :6], volume[:, 2, :])
    np.testing.assert_array_equal(sagittal[:4, :6], volume[1])
    assert not axial[2:].any()
    assert not coronal[2:].any()


def test_a_line_now_and_then_says_how_long_it_will_take(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("brainseg_bids.training.progress.LINE_EVERY_S", 0.0)
    with caplog.at_level(logging.INFO, "brainseg"):
        fit(replace(TINY, validate_every=50), *HEADS, tmp_path, until_step=2)
    lines = [line for line in caplog.messages if "s/step" in line]
    assert len(lines) == 2
    assert lines[1].startswith("step 2 of 5000: loss ")
    assert lines[1].endswith(" left")


def test_validation_ranks_scores_in_float32_as_inference_does():
    task = make_task(TINY)
    features = torch.rand(1, 8, 12, 12, 12).bfloat16()
    with torch.no_grad():
        task.net.head.weight.mul_(0.1)
        task.net.head.bias.fill_(10.0)  # where bfloat16's next number is 10.0625
        expected = task.net.scores(features.float()).max(1).indices[0]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = task._class_indices(features)
    assert torch.equal(found.long(), expected)


# -- memory -------------------------------------------------------------------------------

MEMORY = MemoryPlan(
    patch_vox=(24, 24, 24),
    batch=2,
    accumulate=2,
    precision="32-true",
    checkpointing=False,
    offload=False,
    compile=False,
    budget_gib=1.0,
    predicted_gib=0.5,
    device="cpu",
    reason="test",
)


def write_memory(path: Path) -> Path:
    path.write_text(json.dumps({"device": {}, "plans": [json.loads(MEMORY.to_json())]}))
    return path


def runs_out(monkeypatch, too_much) -> None:
    """Memory runs out in the third step for batches that are too much."""
    original = tasks.SegmentationTask.training_step

    def step(self, batch):
        if batch["step"] >= 2 and too_much(batch["image"]):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return original(self, batch)

    monkeypatch.setattr(tasks.SegmentationTask, "training_step", step)


def test_when_memory_runs_out_a_smaller_plan_goes_on_from_the_last_checkpoint(
    tmp_path, monkeypatch, caplog
):
    memory = write_memory(tmp_path / "memory.json")
    smaller = replace(MEMORY, batch=1, accumulate=4, predicted_gib=0.3)
    monkeypatch.setattr("brainseg_bids.training.fit.smaller", lambda *_, **__: smaller)
    runs_out(monkeypatch, lambda image: len(image) > 1)
    with caplog.at_level(logging.INFO, "brainseg"):
        fit(FOUR, *HEADS, tmp_path / "run", until_step=4, memory=memory)
    assert "memory ran out" in caplog.text
    plans = json.loads(memory.read_text())["plans"]
    assert [plan["batch"] for plan in plans] == [2, 1]
    assert all(plan["used_gib"] >= 0 for plan in plans)
    assert sorted(p.name for p in (tmp_path / "run").glob("log-*")) == ["log-from-0", "log-from-2"]
    monkeypatch.undo()
    fit(FOUR, *HEADS, tmp_path / "straight", until_step=4)
    one, other = (read_state(tmp_path / d / "last.ckpt") for d in ("run", "straight"))
    assert difference(one, other) < 1e-5


def test_memory_for_no_plan_at_all_is_said(tmp_path, monkeypatch):
    memory = write_memory(tmp_path / "memory.json")

    def none_left(*_, **__):
        raise TooLittleMemory("nothing fits")

    monkeypatch.setattr("brainseg_bids.training.fit.smaller", none_left)
    runs_out(monkeypatch, lambda _: True)
    with pytest.raises(TooLittleMemory, match="nothing fits"):
        fit(FOUR, *HEADS, tmp_path / "run", memory=memory)
    assert steps_done(tmp_path / "run" / "last.ckpt") == 2


def test_other_errors_are_not_taken_for_a_lack_of_memory(tmp_path, monkeypatch):
    memory = write_memory(tmp_path / "memory.json")
    at_render(monkeypatch, 3, lambda: (_ for _ in ()).throw(RuntimeError("another")))
    with pytest.raises(RuntimeError, match="another"):
        fit(FOUR, *HEADS, tmp_path / "run", memory=memory)
    assert len(json.loads(memory.read_text())["plans"]) == 1


def test_what_a_parent_process_took_is_not_memory_of_training(monkeypatch):
    meter = MemoryMeter(torch.device("cpu"))
    # Linux lets a process's count begin at its parent's.
    monkeypatch.setattr("resource.getrusage", lambda _: SimpleNamespace(ru_maxrss=2**40))
    kept = torch.ones(2**25)  # an eighth of a GiB
    assert 0.1 < meter.peak_gib() < 1.0
    assert kept[0] == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device would be hidden")
def test_memory_planned_for_the_cpu_keeps_training_there():
    assert accelerator_for(MEMORY) == "cpu"
    assert accelerator_for(replace(MEMORY, device="mps")) == accelerator_for(None) == "auto"


@pytest.mark.parametrize(
    "change", [{"checkpointing": True}, {"offload": True}], ids=["checkpointing", "offload"]
)
def test_what_saves_memory_does_not_change_the_weights(change, tmp_path):
    fit(TINY, *HEADS, tmp_path / "plain", until_step=2)
    fit(replace(TINY, **change), *HEADS, tmp_path / "saving", until_step=2)
    one, other = (read_state(tmp_path / d / "last.ckpt") for d in ("plain", "saving"))
    assert difference(one, other) < 1e-6


@pytest.mark.parametrize("change", [{"loss": "dense"}, {"precision": "bf16-mixed"}], ids=str)
def test_losses_and_precisions_train(change, tmp_path):
    fit(replace(TINY, **change), *HEADS, tmp_path, until_step=2)
    assert all(np.isfinite(row["loss"]) for row in rows(tmp_path) if "loss" in row)


@dataclass(frozen=True)
class Looks(Deadline):
    """Time enough for so many looks at the clock, then for none."""

    looks: int = 1

    def left_s(self) -> float:
        object.__setattr__(self, "looks", self.looks - 1)
        return 1000.0 if self.looks >= 0 else 1.0


def test_a_run_by_time_ends_in_order_with_the_rate_flat_and_can_be_gone_on_with(tmp_path):
    plan = replace(TINY, total_steps=MOST_STEPS, decay_steps=1, validate_every=50)
    # One look before the first step, one after each.
    task = fit(plan, *HEADS, tmp_path, deadline=Looks(9.0, time.time(), looks=3))
    assert steps_done(tmp_path / "last.ckpt") == 3
    found = rows(tmp_path)
    assert [row["step"] for row in found if "dice_brain" in row] == [3]
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert all(torch.equal(w, saved["state_dict"][n]) for n, w in task.state_dict().items())
    assert saved["lr_schedulers"][0]["_last_lr"] == [plan.learning_rate]
    assert json.loads((tmp_path / "plan.json").read_text())["total_steps"] == 3
    fit(plan, *HEADS, tmp_path, deadline=Looks(9.0, time.time(), looks=2))
    straight = replace(plan, total_steps=5)
    fit(straight, *HEADS, tmp_path / "straight")
    states = [read_state(folder / "last.ckpt") for folder in (tmp_path, tmp_path / "straight")]
    assert difference(*states) == 0


def test_a_run_by_time_foresees_its_last_validation(tmp_path):
    checkpoints = CheckpointCallback(
        tmp_path, {}, done=1, every_steps=9, every_s=9.0, deadline=Looks(9.0, 0.0, looks=4)
    )
    trainer, plan = SimpleNamespace(world_size=1), replace(TINY, validation_pairs=4)
    checkpoints.step_began_s = time.monotonic() - 100
    assert not checkpoints._no_time_left(trainer, plan)  # 100 + 4 x 100 + 15 < 1000
    checkpoints.validation_s = 450.0
    assert not checkpoints._no_time_left(trainer, plan)
    checkpoints.step = 9  # one validation now, one at the end: 450 + 100 + 450 + 15 > 1000
    assert checkpoints._no_time_left(trainer, plan)
    checkpoints.step, checkpoints.validation_s = 1, 900.0
    assert checkpoints._no_time_left(trainer, plan)
    checkpoints.deadline = None
    assert not checkpoints._no_time_left(trainer, plan)


@pytest.mark.input(
    "training",
    "`--minutes` that are over before the first step, or leave no time for the bundle",
    "refused; the message says how many would do",
    2,
)
@pytest.mark.parametrize("left_s", [-70, 10])
def test_too_little_time_for_a_step_is_said(tmp_path, left_s):
    deadline = Deadline(0.5, time.time() - 30 + left_s)
    with pytest.raises(TooShort, match=r"--minutes 0\.5: .*Give"):
        fit(TINY, *HEADS, tmp_path, deadline=deadline)
    assert not (tmp_path / "last.ckpt").exists()


@pytest.mark.input(
    "training",
    "a clock that is set while `--minutes` run",
    "neither ends nor prolongs the run",
    0,
)
def test_a_clock_that_is_set_neither_ends_nor_prolongs_a_run(monkeypatch):
    now_s = time.time()
    deadline = Deadline(5.0, now_s - 60)
    for set_s in (now_s - 7200, now_s + 7200):
        monkeypatch.setattr(time, "time", lambda set_s=set_s: set_s)
        assert deadline.left_s() == pytest.approx(240, abs=10)


@pytest.mark.parametrize("pair", [2, 3], ids=["last-step", "last-validation"])
def test_a_run_by_time_that_is_over_is_looked_at_whatever_is_sent(
    pair, handlers, tmp_path, monkeypatch
):
    # Pairs: three steps, then the last validation.
    at_render(monkeypatch, pair, lambda: os.kill(os.getpid(), signal.SIGTERM))
    plan = replace(TINY, total_steps=MOST_STEPS, decay_steps=1, validate_every=50)
    fit(plan, *HEADS, tmp_path, deadline=Looks(9.0, time.time(), looks=3))
    assert [row["step"] for row in rows(tmp_path) if "dice_brain" in row] == [3]
    assert json.loads((tmp_path / "plan.json").read_text())["total_steps"] == 3


def test_what_is_kept_at_the_end_has_been_judged(tmp_path):
    # Three is no multiple of the interval of two.
    fit(replace(TINY, total_steps=3), *HEADS, tmp_path)
    assert [row["step"] for row in rows(tmp_path) if "dice_brain" in row] == [2, 3]
    assert (tmp_path / "samples" / "step-000003.npz").is_file()


@dataclass(frozen=True)
class Clock(Deadline):
    """Says one after the other what time is left, the last one for ever."""

    left: tuple[float, ...] = ()

    def left_s(self) -> float:
        now, *later = self.left
        object.__setattr__(self, "left", tuple(later) or self.left)
        return now


def test_the_rate_falls_to_zero_over_the_last_part_of_the_time():
    # Of 1000 s the last 500 s fall; 15 s come on top, for what follows the last step.
    deadline = Clock(9.0, 0.0, 0.5, left=(1015.0, 900.0, 515.0, 265.0, 15.0, 1.0))
    checkpoints = SimpleNamespace(ending_s=lambda *_: 15.0)
    task = make_task(TINY)
    optimizer = task.configure_optimizers()["optimizer"]
    trainer = SimpleNamespace(
        strategy=SimpleNamespace(broadcast=lambda one: one),
        optimizers=[optimizer],
        global_step=TINY.warmup_steps,
    )
    decay = DecayByTime(deadline, checkpoints)
    decay.on_train_start(trainer, task)
    rates = []
    for _ in range(5):
        decay.on_train_batch_start(trainer, task)
        rates.append(optimizer.param_groups[0]["lr"] / TINY.learning_rate)
    assert rates == [1.0, 1.0, 0.5, 0.0, 0.0]


def test_a_run_by_time_whose_rate_fell_goes_on_at_the_full_rate(tmp_path, monkeypatch):
    plan = replace(TINY, total_steps=MOST_STEPS, decay_steps=1, validate_every=50, warmup_steps=1)
    used = []
    original = torch.optim.AdamW.step

    def step(self, closure):
        used.append(self.param_groups[0]["lr"] / plan.learning_rate)
        return original(self, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)

    def rates_of(*left: float) -> list[float]:
        used.clear()
        fit(plan, *HEADS, tmp_path, deadline=Clock(9.0, time.time(), 0.5, left=left))
        return list(used)

    # Is it too late; what falls; then before and after each step. Ending takes 15 s.
    assert rates_of(1000.0, 1000.0, 900.0, 900.0, 265.0, 1.0) == pytest.approx([1, 0.5], rel=0.02)
    assert steps_done(tmp_path / "last.ckpt") == 2
    assert rates_of(1000.0, 1000.0, 900.0, 1.0) == [1]
    assert steps_done(tmp_path / "last.ckpt") == 3
