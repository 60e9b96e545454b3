# SPDX-License-Identifier: Apache-2.0
"""Going on with a run: which settings may have changed, and what a full disk leaves."""

from __future__ import annotations

import logging
import resource
from dataclasses import replace
from importlib import resources

import pytest
import torch

from brainseg_bids.files import write_text
from brainseg_bids.training import task as tasks
from brainseg_bids.training.callbacks import CannotSave
from brainseg_bids.training.fit import fit
from brainseg_bids.training.plan import TrainPlan
from brainseg_bids.training.resume import ChangedSettings, settings_of, steps_done
from tests.training.tiny import FOUR, TINY, difference, read_state, tiny_head

LEARN, HELD = [tiny_head()], [tiny_head((26, 28, 26))]


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A folder in which two steps of `FOUR` were done."""
    folder = tmp_path_factory.mktemp("begun")
    fit(FOUR, LEARN, HELD, folder, until_step=2)
    return folder


def copy_of(begun, tmp_path):
    (tmp_path / "last.ckpt").write_bytes((begun / "last.ckpt").read_bytes())
    return tmp_path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"learning_rate": 0.5}, r"learning_rate was 0.01, is 0.5"),
        ({"optimizer": "muon"}, r"optimizer was adamw, is muon"),
        ({"seed": 4}, r"seed was 3, is 4"),
        ({"loss": "dense"}, r"loss was chosen, is dense"),
        ({"spaces": {"t2w": 1.0}}, r"spaces: what is in it is another"),
        ({"spaces": {"t1w": 2.0}}, r"spaces: what is in it is another"),
        ({"accumulate": 3}, r"pairs_per_step was 4, is 6"),
        ({"net": replace(FOUR.net, features=16)}, r"net features was 8, is 16"),
        ({"voxel_size_mm": 9.0, "per_label": 8}, r"voxel_size_mm was 8.0, is 9.0; per_label"),
    ],
)
def test_a_run_with_changed_settings_is_refused_and_says_which(begun, change, words):
    before = (begun / "last.ckpt").read_bytes()
    with pytest.raises(ChangedSettings, match=words):
        fit(replace(FOUR, **change), LEARN, HELD, begun)
    assert (begun / "last.ckpt").read_bytes() == before
    assert TrainPlan.from_json((begun / "plan.json").read_text()) == FOUR


@pytest.mark.parametrize(
    ("learn", "held", "words"),
    [
        (LEARN * 2, HELD, "label_maps were 1, are 2"),
        ([tiny_head((22, 28, 26))], HELD, "label_maps: number 1 is another"),
        (LEARN, LEARN, "validation_maps: number 1 is another"),
    ],
)
def test_a_run_with_other_label_maps_is_refused(begun, learn, held, words):
    with pytest.raises(ChangedSettings, match=words):
        fit(FOUR, learn, held, begun)


def test_how_a_step_is_computed_may_change_and_the_weights_stay_the_same(begun, tmp_path, caplog):
    fit(FOUR, LEARN, HELD, copy_of(begun, tmp_path), until_step=4)
    straight = read_state(tmp_path / "last.ckpt")
    copy_of(begun, tmp_path)
    changed = replace(FOUR, batch=1, accumulate=4, checkpointing=True, validate_every=3)
    with caplog.at_level(logging.INFO, "brainseg"):
        fit(changed, LEARN, HELD, tmp_path, until_step=4)
    assert "was 2, is" in caplog.text
    assert steps_done(tmp_path / "last.ckpt") == 4
    assert difference(read_state(tmp_path / "last.ckpt"), straight) < 1e-5


def test_more_steps_and_a_smaller_patch_may_be_asked_for(begun, tmp_path):
    longer = replace(FOUR, total_steps=6000, decay_steps=500, patch_vox=(16, 24, 16))
    fit(longer, LEARN, HELD, copy_of(begun, tmp_path), until_step=3)
    assert steps_done(tmp_path / "last.ckpt") == 3


def test_recipe_spaces_are_known_by_what_is_in_them(tmp_path):
    packaged = resources.files("brainseg_bids") / "data" / "recipes" / "t1w.toml"
    moved = tmp_path / "elsewhere.toml"
    moved.write_text(packaged.read_text())
    there = replace(TINY, spaces={str(moved): 1.0}, validation_space=str(moved))
    assert settings_of(there, LEARN, HELD) == settings_of(TINY, LEARN, HELD)


def test_dropout_drops_the_same_in_a_resumed_run(tmp_path, monkeypatch):
    original = tasks.build

    def build(spec):
        net = original(spec)
        net.body = torch.nn.Sequential(net.body, torch.nn.Dropout3d(0.5))
        return net

    monkeypatch.setattr(tasks, "build", build)
    fit(TINY, LEARN, HELD, tmp_path / "straight", until_step=3)
    fit(TINY, LEARN, HELD, tmp_path / "resumed", until_step=2)
    torch.rand(5)
    fit(TINY, LEARN, HELD, tmp_path / "resumed", until_step=3)
    one, other = (read_state(tmp_path / d / "last.ckpt") for d in ("straight", "resumed"))
    assert difference(one, other) == 0


def test_a_finished_run_is_not_gone_on_with(begun, caplog):
    before = (begun / "last.ckpt").read_bytes()
    with caplog.at_level(logging.INFO, "brainseg"):
        task = fit(FOUR, LEARN, HELD, begun, until_step=2)
    assert "2 steps" in caplog.text
    assert (begun / "last.ckpt").read_bytes() == before
    average = torch.load(begun / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(task.state_dict()[name], average[name]) for name in average)


@pytest.mark.input(
    "training",
    "a disk that is full when the checkpoint is written",
    "the previous checkpoint stays intact; the same command resumes from it",
    1,
)
def test_a_full_disk_is_said_and_the_checkpoint_before_goes_on(begun, tmp_path):
    copy_of(begun, tmp_path)
    before = (tmp_path / "last.ckpt").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(CannotSave, match=r"File too large"):
            fit(FOUR, LEARN, HELD, tmp_path, until_step=4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "last.ckpt").read_bytes() == before
    assert [path.name for path in tmp_path.glob("last*")] == ["last.ckpt"]
    fit(FOUR, LEARN, HELD, tmp_path, until_step=4)
    assert steps_done(tmp_path / "last.ckpt") == 4


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.input(
    "training",
    "a checkpoint that is empty, cut off, of another program, or has a bit of a weight flipped",
    "named, not used",
    2,
)
@pytest.mark.parametrize(
    "damage",
    [
        flip,
        lambda path: path.write_bytes(path.read_bytes()[:-50_000]),
        lambda path: path.write_bytes(b""),
        lambda path: torch.save({"weights": torch.zeros(3)}, path),
    ],
    ids=["bit", "cut", "empty", "other"],
)
def test_a_damaged_checkpoint_is_named(begun, tmp_path, damage):
    damage(copy_of(begun, tmp_path) / "last.ckpt")
    before = (tmp_path / "last.ckpt").read_bytes()
    with pytest.raises(ValueError, match=r"last.ckpt: .* Move it away"):
        fit(FOUR, LEARN, HELD, tmp_path)
    assert (tmp_path / "last.ckpt").read_bytes() == before


@pytest.mark.input(
    "training",
    "a checkpoint that one may not read, or that the disk does not give",
    "named with the reason; not to be thrown away",
    2,
)
def test_a_checkpoint_that_cannot_be_read_now_is_not_called_damaged(begun, tmp_path, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("zipfile.ZipFile", refused)
    with pytest.raises(ValueError, match=r"last.ckpt: .*Permission denied.*Check") as error:
        fit(FOUR, LEARN, HELD, copy_of(begun, tmp_path))
    assert "away" not in str(error.value)


def test_a_file_is_the_old_one_until_the_new_one_is_whole(tmp_path, monkeypatch):
    path = write_text(tmp_path / "plan.json", "old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_text(path, "new")
    assert path.read_text() == "old"


def test_other_steps_before_the_rate_falls_give_the_run_that_was_longer_from_the_first(tmp_path):
    short = replace(TINY, total_steps=5, decay_steps=2)
    long = replace(TINY, total_steps=8, decay_steps=3)
    fit(short, LEARN, HELD, tmp_path / "resumed", until_step=2)
    fit(long, LEARN, HELD, tmp_path / "resumed", until_step=6)
    fit(long, LEARN, HELD, tmp_path / "straight", until_step=6)
    one, other = (read_state(tmp_path / d / "last.ckpt") for d in ("straight", "resumed"))
    assert difference(one, other) == 0
    # Later it is another run, so that the line above says something.
    fit(short, LEARN, HELD, tmp_path / "late", until_step=5)
    fit(long, LEARN, HELD, tmp_path / "late", until_step=6)
    assert difference(one, read_state(tmp_path / "late" / "last.ckpt")) > 0
