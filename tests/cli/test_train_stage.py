# SPDX-License-Identifier: Apache-2.0
"""``--stages train`` from label maps to a model that segments, and on from where it stopped."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from brainseg_bids import lifetime
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.cli.parser import parse
from brainseg_bids.cli.run import run
from brainseg_bids.documents import InputError
from brainseg_bids.images import read_label_map, write_label_map, write_volume
from brainseg_bids.nets import memory
from brainseg_bids.nets.bundle import BundleError, ModelBundle
from brainseg_bids.programs import bundle, plan_memory
from brainseg_bids.stages import train_plan, train_process, train_run
from brainseg_bids.stages.train_job import JobPlan
from brainseg_bids.stages.train_maps import warn_of_seen
from brainseg_bids.stages.train_process import Tasks, find_tasks
from brainseg_bids.stages.train_real import check_real, write_real
from brainseg_bids.synth.recipe_files import read_space
from brainseg_bids.training.deadline import MOST_STEPS
from brainseg_bids.training.probe import StepCost
from tests.fakes import dataset
from tests.phantom.head import phantom_head, phantom_image
from tests.synth.priors import make_prior

FULLHEAD = LabelTable.packaged("fullhead")
TINY = """\
learning_rate = 1e-2
total_steps = 2
warmup_steps = 1
decay_steps = 1
per_label = 16
anywhere = 256
validate_every = 2
validation_pairs = 1
largest_patch_mm = [192, 192, 192]
"""
SIZES = {"01": 9.0, "02": 7.5, "03": 9.0}


def give_maps(root: Path, sizes: dict[str, float] = SIZES) -> Path:
    """Label maps of heads as stage headlabels leaves them, of any voxel sizes."""
    for subject, size in sizes.items():
        labels = phantom_head(tuple(round(n / size) for n in (200, 220, 210)), size)
        anat = root / f"sub-{subject}" / "anat"
        anat.mkdir(parents=True, exist_ok=True)
        write_label_map(labels, anat / f"sub-{subject}_seg-fullhead_dseg.nii.gz")
    FULLHEAD.write(root / "seg-fullhead_dseg.tsv")
    said = {"Name": "Heads", "BIDSVersion": "1.10.1", "DatasetType": "derivative"}
    (root / "dataset_description.json").write_text(json.dumps(said | {"License": "CC0"}))
    return root


def give_prior(root: Path, prior) -> None:
    (root / "priors").mkdir(parents=True)
    prior.write(root / "priors")


def write_checkpoint(path: Path, *, step: int) -> None:
    """As much of one as says how far a run is."""
    torch.save({"global_step": step, "state_dict": {}}, path)


class Stage:
    """The command with its folders; call it with further arguments, get exit code and log."""

    def __init__(self, root: Path) -> None:
        self.root, self.maps, self.out = root, root / "maps", root / "out"
        root.joinpath("tiny.toml").write_text(TINY)

    @property
    def model(self) -> Path:
        return self.out / "derivatives" / "model-tiny"

    @property
    def training(self) -> Path:
        return self.model / "training"

    def __call__(self, *arguments) -> tuple[int, str]:
        code = run(
            parse([
                str(self.maps), str(self.out), "group", "--stages", "train", "--name", "tiny",
                "--recipe", str(self.root / "tiny.toml"), "--target-voxel-size", "8",
                "--device", "cpu", "--nprocs", "1", "-w", str(self.root / "work"),
                *map(str, arguments),
            ])
        )  # fmt: skip
        logs = self.out.glob("logs/*/brainseg.log")
        return code, max(logs, key=lambda path: path.stat().st_mtime_ns).read_text()


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """With maps; nothing is measured, which would take seconds."""
    cost = StepCost(3600.0, 0.1)
    monkeypatch.setattr("brainseg_bids.training.probe.probe_step", lambda *_, **__: cost)
    give_maps(tmp_path / "maps")
    return Stage(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run from one end to the other: maps of mixed voxel sizes to a bundle."""
    stage = Stage(tmp_path_factory.mktemp("stage"))
    give_maps(stage.maps)
    with pytest.MonkeyPatch.context() as patch:  # tests of the probe are with the probe
        patch.setattr(
            "brainseg_bids.training.probe.probe_step", lambda *_, **__: StepCost(1.0, 0.1)
        )
        code, log = stage()
    assert code == 0, log
    return stage, log


# -- the whole way ------------------------------------------------------------------------


def test_label_maps_become_a_bundle_with_card_report_and_all_that_made_them(trained):
    stage, log = trained
    made = ModelBundle.read(stage.model / "bundle")
    assert (made.name, made.voxel_size_mm, made.contrasts) == (
        "tiny",
        8.0,
        ("T1w", "T2w", "FLAIR"),
    )
    job = json.loads((stage.training / "job.json").read_text())
    assert [Path(path).name[:6] for path in job["heads"]] == ["sub-01", "sub-02"]
    assert [Path(path).name[:6] for path in job["validation"]] == ["sub-03"]
    assert {said["digest"] for said in job["maps"].values()} <= set(made.seen)
    assert "sub-02_seg-fullhead_dseg.nii.gz | 7.5" in made.card
    assert "CC0" in made.card
    memory = json.loads((stage.training / "memory.json").read_text())
    assert memory["plans"][-1]["probed_gib"] > 0
    assert (stage.training / "last.ckpt").is_file()
    assert (stage.out / "train_tiny.html").stat().st_size > 10_000
    assert f"participant --model {stage.model / 'bundle'}" in log
    assert "step 2 of" in (stage.training / "log.txt").read_text()
    # Two maps, two steps: nobody should use it unseen.
    assert log.strip().splitlines()[-1].endswith("1 to look at: model tiny")
    assert "2 label maps" in " ".join(job["to_look_at"])
    assert "2 label maps" in made.card
    dataset.assert_valid_bids(stage.out)


def test_a_label_that_no_map_has_is_told(trained):
    stage, log = trained
    (line,) = [line for line in log.splitlines() if "are in no map to learn from" in line]
    assert "WARNING" in line
    assert "Left-Caudate" in line
    card = ModelBundle.read(stage.model / "bundle").card
    (line,) = [line for line in card.splitlines() if "Labels that no label map had" in line]
    assert "Left-Caudate" in line
    assert "Left-Thalamus" not in line
    assert "In no map that was learned from" in (stage.out / "train_tiny.html").read_text()


@pytest.mark.slow
def test_the_bundle_segments_an_image(trained, tmp_path):
    stage, _ = trained
    head = phantom_head((24, 28, 26), 8.0)
    data = dataset.write_dataset(tmp_path / "data", "sub-09_T1w")
    image = phantom_image(head, np.random.default_rng(0))
    write_volume(image, head.grid, data / "sub-09" / "anat" / "sub-09_T1w.nii.gz")
    arguments = [data, tmp_path / "out", "participant", "--model", stage.model / "bundle"]
    arguments += ["--nprocs", "1", "--device", "cpu", "-w", tmp_path / "work"]
    assert run(parse([str(word) for word in arguments])) == 0
    path = tmp_path / "out" / "sub-09" / "anat" / "sub-09_seg-brainseg_dseg.nii.gz"
    assert read_label_map(path, LabelTable.packaged("brainseg")).grid.is_close(head.grid)


@pytest.mark.slow
def test_more_steps_go_on_from_the_checkpoint_and_the_same_steps_do_nothing(trained):
    stage, _ = trained
    checkpoint = (stage.training / "last.ckpt").stat().st_mtime_ns
    code, log = stage()
    assert code == 0, log
    assert "all 2 steps" in log
    assert (stage.training / "last.ckpt").stat().st_mtime_ns == checkpoint
    before = {path: path.read_bytes() for path in stage.training.glob("*.json")}
    code, log = stage("--steps", "1")
    assert code == 0, log
    assert "2 steps" in log
    assert before == {path: path.read_bytes() for path in stage.training.glob("*.json")}
    recipe = stage.root / "tiny.toml"  # nothing of warming up is said: it would be scaled
    recipe.write_text(recipe.read_text().replace("warmup_steps = 1\n", ""))
    code, log = stage("--steps", "4")
    recipe.write_text(TINY)
    assert code == 0, log
    assert "step 2 of" in log
    said = json.loads((stage.model / "bundle" / "bundle.json").read_text())
    assert said["training"]["steps"] == 4
    assert (stage.training / "log-from-2" / "metrics.csv").is_file()


def test_other_steps_are_reckoned_from_what_was_asked_for(stage):
    recipe = stage.root / "long.toml"
    keys = ("total_steps", "decay_steps", "validate_every")
    recipe.write_text(
        TINY.replace("total_steps = 2", "total_steps = 4300")
        .replace("decay_steps = 1\n", "")
        .replace("validate_every = 2\n", "")
    )

    def planned(*arguments) -> dict:
        code, log = stage("--recipe", recipe, "--plan-only", *arguments)
        assert code == 0, log
        path = stage.training / ("plan-wanted.json" if begun else "plan.json")
        plan = json.loads(path.read_text())
        return {key: plan[key] for key in (*keys, "ema_decay")}

    begun = False
    full = planned()
    assert full == {
        "total_steps": 4300, "decay_steps": 1300, "validate_every": 200, "ema_decay": 0.995
    }  # fmt: skip
    short = planned("--steps", "2")
    assert short == {"total_steps": 2, "decay_steps": 1, "validate_every": 2, "ema_decay": 0.0}
    begun = True
    write_checkpoint(stage.training / "last.ckpt", step=2)
    recipe.write_text("")  # what is not said stays as it was
    assert planned() == short
    assert planned("--steps", "4300") == full
    assert planned() == full
    assert planned("--steps", "2") == short


@pytest.mark.input(
    "training",
    "a run continued after its recipe and the recipe spaces beside it moved",
    "it is resumed: content decides; a space of another content is refused by name",
    0,
)
def test_a_run_goes_on_after_its_recipe_has_moved(stage):
    before, after = stage.root / "before", stage.root / "after"
    before.mkdir()
    (before / "tiny.toml").write_text(f'{TINY}[spaces]\nt1w = 1.0\n"own.toml" = 2.0\n')
    (before / "own.toml").write_text('base = "t1w"\nflip_p = 0.25\n')
    code, log = stage("--recipe", before / "tiny.toml", "--plan-only")
    assert code == 0, log
    write_checkpoint(stage.training / "last.ckpt", step=1)
    before.rename(after)
    code, log = stage("--recipe", after / "tiny.toml", "--plan-only")
    assert code == 0, log
    plan = json.loads((stage.training / "plan-wanted.json").read_text())
    assert plan["spaces"] == {"t1w": 1.0, str(after / "own.toml"): 2.0}
    (after / "own.toml").write_text('base = "t1w"\nflip_p = 0.75\n')
    code, log = stage("--recipe", after / "tiny.toml", "--plan-only")
    assert code == 2
    assert f"content of recipe space {after / 'own.toml'}" in log


@pytest.mark.input(
    "training",
    "a run continued after the file moved that its recipe names as `agnostic`, or without it",
    "it is resumed with the copy in its folder; another content is refused",
    0,
)
def test_a_run_has_a_copy_of_its_agnostic_space(stage):
    give_prior(stage.maps, make_prior(name="T2w7T", metadata={"Suffix": "T2w"}))
    before, after = stage.root / "before", stage.root / "after"
    before.mkdir()
    (before / "tiny.toml").write_text(f'{TINY}agnostic = "own.toml"\n')
    (before / "own.toml").write_text('base = "below.toml"\nflip_p = 0.25\n')
    (before / "below.toml").write_text('base = "agnostic"\n[gibbs]\np = 0.125\n')
    planned = ("--plan-only", "--kappa", "0.5", "--recipe")
    code, log = stage(*planned, before / "tiny.toml")
    assert code == 0, log
    space_file = "contrast-T2w7T_kappa-0.5.toml"
    begun = read_space(str(stage.training / space_file))
    assert (begun.agnostic.flip_p, begun.agnostic.gibbs.p) == (0.25, 0.125)
    write_checkpoint(stage.training / "last.ckpt", step=1)
    left = stage.training / f".job.{'a' * 32}.json"  # of a process that was killed long ago
    left.write_text("half")
    os.utime(left, (0, 0))
    before.rename(after)
    stage.out.rename(stage.root / "moved")
    stage.out = stage.root / "moved"
    assert read_space(str(stage.training / space_file)).digest == begun.digest
    for recipe in (after / "tiny.toml", stage.root / "tiny.toml"):  # the second does not say it
        code, log = stage(*planned, recipe)
        assert code == 0, log
    assert not (stage.training / left.name).exists()
    (after / "own.toml").write_text('base = "below.toml"\nflip_p = 0.75\n')
    code, log = stage(*planned, after / "tiny.toml")
    assert code == 2
    assert f"content of recipe space {space_file}" in log


def test_a_run_by_time_has_no_last_step_and_without_it_the_recipe_counts_again(stage):
    def planned(*arguments) -> tuple[int, int]:
        code, log = stage("--plan-only", *arguments)
        assert code == 0, log
        plan = json.loads(next(stage.training.glob(name)).read_text())
        return plan["total_steps"], plan["decay_steps"], plan["warmup_steps"]

    name = "plan.json"
    assert planned("--minutes", "5", "--steps", "40") == (40, 1, 1)
    assert planned("--minutes", "5") == (MOST_STEPS, 1, 1)
    write_checkpoint(stage.training / "last.ckpt", step=2)
    name = "plan-wanted.json"
    assert planned("--minutes", "5") == (MOST_STEPS, 1, 1)
    assert planned() == (2, 1, 1)
    assert json.loads((stage.training / "job.json").read_text())["minutes"] == 0


@pytest.mark.parametrize(
    ("decay_steps", "total_steps", "steps", "share"),
    [(30, 100, 0, 0.3), (300, 100, 0, 1.0), (30, 100, 50, 0.0), (1, 100, 0, 0.0)],
)
def test_the_rate_falls_over_as_large_a_part_of_the_time_as_of_the_steps(
    decay_steps, total_steps, steps, share
):
    job = SimpleNamespace(asked={"decay_steps": decay_steps, "total_steps": total_steps})
    settings = SimpleNamespace(minutes=5.0, steps=steps)
    assert JobPlan.decay_share(job, settings) == share


@pytest.mark.input(
    "training",
    "a run continued with another seed, recipe, network or split",
    "refused, naming what changed; nothing is lost",
    2,
)
def test_changed_settings_are_refused_by_name_and_nothing_is_lost(trained, tmp_path):
    stage, _ = trained
    before = {path: path.read_bytes() for path in stage.training.glob("*.json")}
    recipe = tmp_path / "other.toml"
    recipe.write_text(TINY.replace("learning_rate = 1e-2", "learning_rate = 5e-3"))
    for arguments, said in (
        (("--seed", "7"), "seed 1 (now 7)"),
        (("--target-voxel-size", "9"), "voxel_size_mm 8.0 (now 9.0)"),
        (("--architecture", "unet"), "architecture dynunet (now unet)"),
        (("--validation-label", "01"), "held out or no longer (sub-01_"),
        (("--recipe", recipe), "learning_rate 0.01 (now 0.005)"),
    ):
        code, log = stage(*arguments)
        assert code == 2
        (line,) = [line for line in log.splitlines() if "ERROR" in line]
        assert said in line
        assert "with --name" in line
    assert before == {path: path.read_bytes() for path in stage.training.glob("*.json")}


def test_an_unfinished_model_can_be_bundled_by_hand(trained, capsys):
    stage, _ = trained
    out = stage.root / "early"
    assert bundle.main(["--run", str(stage.training), "--out", str(out)]) == 0
    assert ModelBundle.read(out).name == "tiny"
    assert not list(stage.root.glob(".early*"))
    assert bundle.main(["--run", str(stage.root)]) == 2
    assert "no such file" in capsys.readouterr().err


@pytest.mark.input(
    "training",
    "a run whose `plan.json` or `seen.json` is damaged, or is of another network, is bundled",
    "one line that names the file; no bundle is made",
    2,
)
@pytest.mark.parametrize(
    ("name", "change", "named"),
    [
        ("plan.json", lambda text: "", "plan.json"),
        ("plan.json", lambda text: '{"net": 1}', "plan.json"),
        ("plan.json", lambda text: text.replace('"features": ', '"features": 1'), "last.ckpt"),
        ("seen.json", lambda text: text[:-3], "seen.json"),
    ],
)
def test_what_cannot_be_bundled_is_named(trained, tmp_path, capsys, name, change, named):
    stage, _ = trained
    run = shutil.copytree(stage.training, tmp_path / "training")
    text = change((run / name).read_text())
    assert text != (run / name).read_text()
    (run / name).write_text(text)
    assert bundle.main(["--run", str(run), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(run / named) in line
    assert not (tmp_path / "out").exists()


@pytest.mark.input(
    "training",
    "a disk that is full when the model is bundled",
    "one line; the previous bundle and the checkpoint are unchanged",
    1,
)
def test_a_full_disk_leaves_the_bundle_that_there_was(trained):
    stage, _ = trained
    out = stage.root / "kept"
    before = bundle.bundle_run(stage.training, out=out).digest
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(BundleError, match=r"File too large"):
            bundle.bundle_run(stage.training, out=out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert ModelBundle.read(out).digest == before
    assert not list(stage.root.glob(".kept*"))


@pytest.mark.input(
    "training",
    "brainseg-bids that is updated while a model trains",
    "one line; the checkpoint is kept, and the line says how to make its model",
    1,
)
def test_a_package_that_changed_during_training_is_one_line(tmp_path, monkeypatch, caplog):
    def replaced(run):
        raise ImportError("cannot import name 'table' from 'brainseg_bids.reports'")

    monkeypatch.setattr(train_run, "bundle_run", replaced)
    job = SimpleNamespace(training=tmp_path / "model-mine" / "training")
    assert train_run._conclude(job, page=None) == 1
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    said = record.getMessage()
    assert "was changed" in said
    assert f"brainseg_bids.programs.bundle --run {job.training}" in said


def test_bundling_can_level_volumes_and_tells_nobody_where_files_were(trained, capsys):
    stage, _ = trained
    plain, leveled = (stage.root / name for name in ("plain", "leveled"))
    assert bundle.main(["--run", str(stage.training), "--out", str(plain)]) == 0
    arguments = ["--run", str(stage.training), "--out", str(leveled), "--level-volumes", "2"]
    assert bundle.main(arguments) == 0
    weights, other = (load_file(folder / "weights.safetensors") for folder in (plain, leveled))
    assert [name for name in weights if not weights[name].equal(other[name])] == ["head.bias"]
    manifest, card = ((leveled / name).read_text() for name in ("bundle.json", "README.md"))
    assert json.loads(manifest)["training"]["leveled"]["pairs"] == 2
    assert "2 synthetic pairs" in card
    for text in (manifest, card):
        assert "group --stages train" in text
        assert str(stage.root) not in text
    for name, word in (("bundle.json", "leveled"), ("README.md", "calibrated")):
        assert word not in (plain / name).read_text()
    assert bundle.main([*arguments[:-1], "-3"]) == 2
    assert "-3 pairs" in capsys.readouterr().err


# -- plans --------------------------------------------------------------------------------


def test_plan_only_prints_and_stores_the_plan_and_trains_nothing(stage):
    give_prior(stage.maps, make_prior(name="T2w7T", metadata={"Suffix": "T2w"}))
    code, log = stage("--plan-only", "--kappa", "0.5", "--precision", "fp32")
    assert code == 0, log
    plan = json.loads((stage.training / "plan.json").read_text())
    space_file = "contrast-T2w7T_kappa-0.5.toml"
    assert plan["spaces"] == {space_file: 1.0}
    assert plan["precision"] == "32-true"
    assert plan["patch_vox"] == [24, 24, 24]
    space = read_space(str(stage.training / space_file))
    assert (space.prior_weight, space.agnostic.center_frac) == (0.5, (0.35, 0.65))
    assert "prior T2w7T" in log
    assert "24 x 24 x 24 voxels of 8 mm" in log
    assert "2.0 h" in log
    job = json.loads((stage.training / "job.json").read_text())
    assert job["contrasts"] == ["T2w"]
    assert job["spaces"][space_file]["digest"] == space.at(8.0).digest
    assert job["command"].endswith("--precision fp32 --plan-only")
    assert not (stage.training / "last.ckpt").exists()
    assert stage("--plan-only", "--kappa", "0.5")[0] == 0
    plans = json.loads((stage.training / "memory.json").read_text())["plans"]
    assert len(plans) == 1, "a plan that was only looked at was not given up"


def test_a_probe_that_took_too_much_leads_to_a_smaller_plan(monkeypatch, caplog):
    from brainseg_bids.nets.memory_plan import Device, MemoryPlan

    device = Device("cpu", "CPU", 8.0, 8.0, shared=True, bf16=True)
    plan = MemoryPlan((64,) * 3, 1, 1, "32-true", False, False, False, 2.0, 1.9, "cpu", "fits")
    less = dataclasses.replace(plan, patch_vox=(32,) * 3)
    took = iter([None, StepCost(1.0, 99.0), StepCost(1.0, 0.1)])
    monkeypatch.setattr("brainseg_bids.training.probe.probe_step", lambda *_, **__: next(took))
    monkeypatch.setattr("brainseg_bids.nets.memory.smaller", lambda *_, **__: less)
    loss = {"loss": "dense", "per_label": 1, "anywhere": 1, "dice_weight": 1.0}
    request = plan_memory.MemoryRequest("unet", "", 1.0, (9.0,) * 3, "cpu", 2.0, "", loss, {})
    caplog.set_level("INFO", logger="brainseg")
    plans = plan_memory._probed(request, None, plan, device)
    assert [one.probed_gib for one in plans] == [None, 99.0, 0.1]
    assert [one.patch_vox[0] for one in plans] == [64, 32, 32]
    assert "a smaller plan" in caplog.text
    took = iter([StepCost(1.0, 99.0)] * plan_memory.TRIES)
    with pytest.raises(InputError, match=r"2.0 GiB.*--net-size small"):
        plan_memory._probed(request, None, plan, device)


def test_the_time_of_what_is_left_is_that_of_the_steps_so_far(tmp_path, monkeypatch):
    plan = {"total_steps": 4000, "batch": 1, "accumulate": 2, "devices": 1, "nodes": 1}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    pace = SimpleNamespace(finite=lambda: SimpleNamespace(values=np.array([0.1, 0.2, 0.9])))
    job = SimpleNamespace(folder=tmp_path, training=tmp_path)
    monkeypatch.setattr(
        "brainseg_bids.reports.training_log.read_job",
        lambda folder: SimpleNamespace(log={"pairs_per_s": pace}),
    )
    said = train_plan.expected_time(job, tmp_path / "plan.json", SimpleNamespace(), done=400)
    assert said == "time: 10.0 h: 3600 steps of 10.0 s, as so far"


@pytest.mark.parametrize(("batch", "tried"), [(2, [2]), (256, [4])])
def test_a_step_of_many_pairs_is_timed_with_few(tmp_path, monkeypatch, batch, tried):
    memory = {"device": {"kind": "cuda"}, "plans": [in_force(batch, probed_gib=1.0)]}
    plan = memory["plans"][0] | {"total_steps": 10, "devices": 1, "net": SPEC, "nodes": 1}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    (tmp_path / "memory.json").write_text(json.dumps(memory))
    job, pairs = SimpleNamespace(folder=tmp_path, training=tmp_path), []

    def probe_step(spec, memory, loss, **_):
        pairs.append(memory.batch)
        return StepCost(0.5 * memory.batch, 1.0)

    monkeypatch.setattr("brainseg_bids.training.probe.probe_step", probe_step)
    settings = SimpleNamespace(nprocs=1)
    said = train_plan.expected_time(job, tmp_path / "plan.json", settings)
    assert f"10 steps of {0.5 * batch:.1f} s" in said
    assert pairs == tried
    # The step whose memory was to be measured took too long: no other one is tried.
    memory["plans"] = [in_force(batch, probed_gib=None)]
    (tmp_path / "memory.json").write_text(json.dumps(memory))
    assert "not known" in train_plan.expected_time(job, tmp_path / "plan.json", settings)
    assert pairs == tried


SPEC = {"architecture": "unet", "n_labels": 2, "stem": 1, "features": 8, "options": {}}


def in_force(batch, *, probed_gib) -> dict:
    """A memory plan as JSON has it."""
    from brainseg_bids.nets.memory_plan import MemoryPlan

    plan = MemoryPlan(
        (32,) * 3, batch, 1, "32-true", False, False, False, 2.0, 1.0, "cuda", "fits", probed_gib
    )
    return json.loads(plan.to_json())


def test_the_plan_can_be_made_in_a_process_of_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "brainseg_bids.training.probe.probe_step", lambda *_, **__: StepCost(1.0, 0.1)
    )
    loss = {"loss": "chosen", "per_label": 8, "anywhere": 64, "dice_weight": 0.0}
    plan = loss | {"target_table": "brainseg", "devices": 2}
    request = plan_memory.MemoryRequest(
        "unet", "small", 8.0, (200.0,) * 3, "cpu", 4.0, "", plan, {}
    )
    wanted, made = tmp_path / "request.json", tmp_path / "planned.json"
    wanted.write_text(request.to_json())
    assert plan_memory.main([str(wanted), str(made)]) == 0
    planned = json.loads(made.read_text())
    assert planned["plan"]["net"]["architecture"] == "unet"
    # Two processes on one CPU share its memory.
    assert planned["memory"]["plans"][-1]["budget_gib"] == 2.0
    wanted.write_text(dataclasses.replace(request, architecture="vnet").to_json())
    assert plan_memory.main([str(wanted), str(made)]) == 2
    assert "'vnet'" in capsys.readouterr().err


def test_what_was_predicted_is_kept_for_the_next_run(tmp_path, monkeypatch):
    loss = {"loss": "chosen", "per_label": 8, "anywhere": 64, "dice_weight": 0.0}
    plan = loss | {"target_table": "brainseg", "devices": 1}
    request = plan_memory.MemoryRequest(
        "unet", "small", 8.0, (200.0,) * 3, "cpu", 4.0, "", plan, {}, cache=str(tmp_path)
    )
    monkeypatch.setattr(
        "brainseg_bids.training.probe.probe_step", lambda *_, **__: StepCost(1.0, 0.1)
    )
    asked, original = [], memory.predict_gib

    def predict_gib(*arguments, **step):
        asked.append(step)
        return original(*arguments, **step)

    monkeypatch.setattr(memory, "predict_gib", predict_gib)
    planned = plan_memory.plan_memory_of(request)
    assert asked
    asked.clear()
    again = plan_memory.plan_memory_of(request)
    assert asked == []
    assert again[0] == planned[0]
    assert again[1]["plans"] == planned[1]["plans"]
    other = dataclasses.replace(request, plan=plan | {"per_label": 9})
    plan_memory.plan_memory_of(other)
    assert asked, "another loss was taken for the same"
    for path in tmp_path.glob("probe_*.json"):
        path.write_text("damaged")
    asked.clear()
    assert plan_memory.plan_memory_of(request)[0] == planned[0]
    assert asked, "a damaged prediction was used"


def test_what_watches_over_training_loads_nothing_that_it_does_not_need_at_once():
    heavy = "numba", "matplotlib", "monai", "pandas", "lightning"
    program = (
        "import sys; from brainseg_bids.stages import train_run; "
        f"print(*({set(heavy)!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == [], done.stderr


def test_other_devices_learn_from_as_many_pairs():
    last = {"batch": 2, "accumulate": 1, "precision": "bf16-mixed", "reason": "fits"}
    old = {"batch": 2, "accumulate": 1, "devices": 4, "nodes": 1}
    before = {"plans": [last]}
    now = train_plan._as_before(old, {"devices": 1, "nodes": 1}, "", before)
    assert (now["plans"][-1]["batch"], now["plans"][-1]["accumulate"]) == (2, 4)
    assert train_plan._as_before(old, {"devices": 4, "nodes": 1}, "", before) == before


# -- refusals -----------------------------------------------------------------------------


def refused(stage, *arguments) -> str:
    code, log = stage(*arguments)
    lines = [line for line in log.splitlines() if " ERROR: " in line]
    assert code == 2, log
    assert not (stage.training / "last.ckpt").exists()
    return lines[-1]


@pytest.mark.input(
    "training",
    "label maps of one participant only",
    "refused: no participant would be left for validation",
    2,
)
def test_one_participant_is_not_enough(stage):
    assert "validate on" in refused(stage, "--participant-label", "01")


@pytest.mark.input(
    "training",
    "the same head under two participants, one of them held out",
    "warning that names both label maps",
    0,
)
def test_a_copy_of_a_head_and_thick_slices_are_told(stage):
    path = stage.maps / "sub-02" / "anat" / "sub-02_seg-fullhead_dseg.nii.gz"
    image = nib.load(path)
    thick = np.asarray(image.dataobj)[:, :, ::3]
    nib.save(nib.Nifti1Image(thick, image.affine @ np.diag([1, 1, 3, 1])), path)
    code, log = stage("--plan-only", "--target-voxel-size", "9")
    assert code == 0, log
    assert "sub-03_seg-fullhead_dseg.nii.gz: has the same voxels as sub-01" in log
    assert "1 of 3 label maps are coarser than 9 mm (sub-02" in log


@pytest.mark.input(
    "training",
    "recipe that names the file of a contrast prior as a space",
    "the model is meant for the prior's contrast, not for any",
    0,
)
def test_a_recipe_with_the_file_of_a_prior_is_for_its_contrast(stage):
    give_prior(stage.root, make_prior(name="mine", metadata={"Suffix": "T2w"}))
    file = stage.root / "priors" / "contrast-mine_recipe.toml"
    file.write_text('prior = "contrast-mine_prior.json"\n')
    with (stage.root / "tiny.toml").open("a") as recipe:
        recipe.write('[spaces]\n"priors/contrast-mine_recipe.toml" = 1\n')
    code, log = stage("--plan-only")
    assert code == 0, log
    assert json.loads((stage.training / "job.json").read_text())["contrasts"] == ["T2w"]


@pytest.mark.input(
    "training",
    "--start-from a model that learned from a held-out label map",
    "warning that names the map",
    0,
)
def test_a_held_out_head_that_the_first_model_learned_from_is_told(tmp_path, caplog):
    maps = {
        "sub-1": {"digest": "a", "held_out": False},
        "sub-2": {"digest": "b", "held_out": True},
    }
    (tmp_path / "bundle.json").write_text(json.dumps({"training": {"maps": maps}}))
    start = SimpleNamespace(path=tmp_path, name="first", seen=frozenset("ab"))
    warn_of_seen(start, [("sub-2_dseg.nii.gz", "b"), ("sub-3_dseg.nii.gz", "c")])
    assert not caplog.records
    warn_of_seen(start, [("sub-1_dseg.nii.gz", "a")])
    assert "sub-1_dseg.nii.gz" in caplog.text
    assert "--validation-label" in caplog.text


@pytest.mark.input(
    "training",
    "recipe that says what concerns a contrast prior only, without one",
    "a warning names the key",
    0,
)
def test_keys_of_a_prior_without_one_are_told(stage):
    with (stage.root / "tiny.toml").open("a") as file:
        file.write("center_frac = [0.4, 0.6]\n")
    code, log = stage("--plan-only")
    assert code == 0, log
    assert "center_frac has no effect" in log
    with pytest.raises(SystemExit):
        stage("--steps", MOST_STEPS)


@pytest.mark.input(
    "training",
    "recipe whose `validation_space` is not there",
    "refused before memory is planned; the line names it",
    2,
)
@pytest.mark.parametrize("name", ["nowhere", "prior"])
def test_a_validation_space_that_is_not_there_is_refused_at_once(stage, name):
    with (stage.root / "tiny.toml").open("a") as file:
        file.write(f'validation_space = "{name}"\n')
    assert name in refused(stage)
    assert not (stage.training / "plan.json").exists()


def test_an_unknown_code_is_named_with_its_file_and_the_others_are_looked_at_too(stage):
    for subject in ("01", "03"):
        path = stage.maps / f"sub-{subject}" / "anat" / f"sub-{subject}_seg-fullhead_dseg.nii.gz"
        image = nib.load(path)
        voxels = np.asarray(image.dataobj).copy()
        voxels[5, 5, 5] = 999
        nib.save(nib.Nifti1Image(voxels, image.affine), path)
    assert "2 of 3" in refused(stage)
    log = max(stage.out.glob("logs/*/brainseg.log")).read_text()
    assert log.count("999 (1 voxel)") == 2


@pytest.mark.input(
    "training", "a memory budget that no plan fits", "refused; the line says what would fit", 2
)
def test_too_little_memory_says_what_would_do(stage):
    line = refused(stage, "--memory-budget", "1M")
    assert "GiB" in line
    assert "Traceback" not in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--architecture", "vnet"), "unknown architecture 'vnet'"),
        (("--prior", "T1w"), "--stages priors first"),
        (("--kappa", "0.5"), "the prior weight needs a contrast prior"),
        (("--start-from", "nowhere"), "--start-from nowhere: no model of that name"),
        (("--recipe", "nowhere.toml"), "nowhere.toml: there is no such file"),
        (("--validate-on", "."), "say where the labels of these images are"),
        (("--nodes", "2"), "several nodes need a Slurm job"),
        (("--minutes", "0.001"), "--minutes 0.001: too short for one step"),
    ],
)
def test_what_cannot_be_is_one_line(stage, monkeypatch, arguments, said):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert said in refused(stage, *arguments)


def test_a_folder_that_cannot_be_written_is_named(stage):
    stage.out.mkdir()
    (stage.out / "derivatives").write_text("a file")
    code, _ = stage()
    assert code == 1


@pytest.mark.input(
    "training", "two runs that train the same model at a time", "the second is refused", 2
)
def test_two_processes_do_not_train_in_one_folder(stage):
    with train_process.alone(stage.training):
        assert "another process" in refused(stage)


@pytest.mark.input(
    "training",
    "a checkpoint without the job.json that says of what",
    "refused; nothing is touched",
    2,
)
def test_a_checkpoint_that_nothing_is_known_of_is_left_alone(stage):
    stage.training.mkdir(parents=True)
    (stage.training / "last.ckpt").write_bytes(b"weights")
    code, log = stage()
    assert code == 2
    assert "job.json" in log
    assert (stage.training / "last.ckpt").read_bytes() == b"weights"


# -- how training ends --------------------------------------------------------------------


@pytest.fixture
def ends(tmp_path, caplog):
    """Run a program instead of training; its exit code as ours, and what was said."""
    job = SimpleNamespace(training=tmp_path, checkpoint=tmp_path / "last.ckpt", name="tiny")
    settings = SimpleNamespace(device="cpu")

    def end(program: str) -> tuple[int, str]:
        caplog.set_level("INFO", logger="brainseg")
        argv = [sys.executable, "-c", program]
        with train_process.alone(tmp_path) as lock:
            ended = train_process.watch(argv, tmp_path, tmp_path / "log.txt", settings, lock)
        return train_run._explain(job, ended), caplog.text

    return end


VALIDATES = """\
import pathlib, sys, time
print("2026-11-24 03:24:05,621 step 2 of 4, 1 s: dice_brain 0.5", flush=True)
until_s = time.monotonic() + 10
while not pathlib.Path("page.html").exists() and time.monotonic() < until_s:
    time.sleep(0.01)
sys.exit(75 if pathlib.Path("page.html").exists() else 1)
"""


@pytest.fixture
def watched(tmp_path):
    """Run a program instead of training, with a page; exit code."""
    job = SimpleNamespace(training=tmp_path, folder=tmp_path, name="tiny")
    page = train_run._Page(job, SimpleNamespace(output_dir=tmp_path))
    settings = SimpleNamespace(device="cpu")

    def run_watched(program: str) -> int:
        argv = [sys.executable, "-c", program]
        log_path = tmp_path / "log.txt"
        code = train_process.watch(
            argv, tmp_path, log_path, settings, on_validation=page.renew
        ).code
        page.finish()
        return code

    return run_watched


@pytest.mark.input(
    "training", "a training that runs, and one that was stopped",
    "the page is written at each validation and after the stop", 75,
)  # fmt: skip
def test_the_page_is_written_while_training_runs_and_after_a_stop(watched, tmp_path, monkeypatch):
    written = []

    def write(job_dir, path, *, title):
        written.append(path.name)
        (tmp_path / "page.html").touch()
        return path

    monkeypatch.setattr("brainseg_bids.reports.training.write_training_page", write)
    assert watched(VALIDATES) == 75
    assert written == ["train_tiny.html"] * 2


def test_a_page_that_cannot_be_written_harms_no_training(watched, caplog, monkeypatch):
    def write(job_dir, path, *, title):
        raise RuntimeError("a picture could not be drawn")

    monkeypatch.setattr("brainseg_bids.reports.training.write_training_page", write)
    assert watched(VALIDATES.replace("< until_s", "< 0").replace("1)", "0)")) == 0
    assert "train_tiny.html" in caplog.text
    assert "could not be" in caplog.text


def test_what_training_says_goes_to_the_console_and_into_its_log(ends, tmp_path):
    code, said = ends("print('2026-11-24 03:24:05,621 step 2 of 4')")
    assert code == 0
    assert "step 2 of" in said
    assert "2026-11-24 03:24:05,621 step 2" in (tmp_path / "log.txt").read_text()


@pytest.mark.input(
    "training",
    "a training process killed for its memory",
    "an error that names the last saved step; the same command resumes",
    1,
)
def test_a_killed_run_is_a_failure_that_goes_on(ends):
    code, said = ends("import os; os.kill(os.getpid(), 9)")
    assert code == 1
    assert "SIGKILL" in said
    assert "same command again" in said


def test_bad_input_keeps_its_words_and_its_code(ends):
    code, said = ends(
        "import sys; print('train: ERROR: sub-01: too small', file=sys.stderr); sys.exit(2)"
    )
    assert code == 2
    assert "ERROR" in said
    assert "sub-01: too small" in said


def test_another_failure_says_where_the_reason_is(ends, tmp_path):
    code, said = ends("raise RuntimeError('strange')")
    assert code == 1
    assert str(tmp_path / "log.txt") in said
    assert "RuntimeError: strange" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_is_handed_on_and_the_code_handed_back(ends, tmp_path, name):
    ready, before = tmp_path / "ready", signal.getsignal(getattr(signal, name))
    program = (
        "import pathlib, signal, sys, time\n"
        f"signal.signal(signal.{name}, lambda *_: sys.exit(75))\n"
        f"pathlib.Path({str(ready)!r}).touch()\n"
        "time.sleep(30)\n"
    )

    def send() -> None:
        while not ready.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), getattr(signal, name))

    threading.Thread(target=send).start()
    code, said = ends(program)
    assert code == 75
    assert "same command again" in said
    assert signal.getsignal(getattr(signal, name)) == before


def test_several_nodes_are_started_by_srun(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    two, alone = SimpleNamespace(nodes=2), Tasks(0, 1, Path())
    started = train_process.launcher(two, 4, alone)
    assert started[:4] == ["/usr/bin/srun", "--nodes=2", "--ntasks=8", "--ntasks-per-node=4"]
    assert train_process.launcher(two, 4, Tasks(0, 8, Path())) == []  # srun has done it
    monkeypatch.delenv("SLURM_JOB_ID")
    with pytest.raises(InputError, match="--nodes 2"):
        train_process.launcher(two, 4, alone)


def test_of_several_tasks_the_first_decides_and_the_others_run_what_it_says(tmp_path, monkeypatch):
    for name, value in (("PROCID", "1"), ("STEP_NUM_TASKS", "2"), ("JOB_ID", "7")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setattr("brainseg_bids.stages.train_process.LOOK_EVERY_S", 0.01)
    settings = SimpleNamespace(output_dir=tmp_path, device="cpu")
    tasks = find_tasks(os.environ, tmp_path / "logs")
    first = dataclasses.replace(tasks, rank=0)
    assert tasks.call == first.call
    tasks.broadcast({"code": 1})  # only the first one is heard
    argv = [sys.executable, "-c", "import sys; print('here'); sys.exit(75)"]
    later = threading.Timer(0.1, first.broadcast, [{"argv": argv, "folder": str(tmp_path)}])
    later.start()
    assert train_run.train(settings) == 75
    assert "here" in (tmp_path / "log-task-1.txt").read_text()
    tasks.call.unlink()
    first.broadcast({"code": 2})
    assert train_run.train(settings) == 2
    with pytest.raises(InputError, match="--devices 4"):
        first.check(4, 1)


def test_a_signal_while_the_first_task_plans_is_told_to_the_others(monkeypatch, tmp_path):
    for name, value in (("PROCID", "0"), ("STEP_NUM_TASKS", "2"), ("JOB_ID", "7")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    told = []

    def plan(*_):
        lifetime._end(signal.SIGUSR1, None)

    monkeypatch.setattr(train_run, "_train", plan)
    monkeypatch.setattr(lifetime.os, "_exit", lambda code: told.append(code))
    kept = {number: signal.getsignal(number) for number in lifetime.CODES}
    train_run.train(SimpleNamespace(output_dir=tmp_path, minutes=0.0))
    for number, handler in kept.items():
        signal.signal(number, handler)
    assert told == [75]
    (call,) = tmp_path.glob("logs/train_7_*.json")
    assert json.loads(call.read_text()) == {"code": 75}


# -- real images --------------------------------------------------------------------------


def test_real_images_are_listed_with_labels_in_our_codes(tmp_path):
    head = phantom_head((24, 28, 26), 8.0)
    data = dataset.write_dataset(tmp_path / "data", "sub-1_T1w", "sub-2_T1w")
    reference = give_maps(tmp_path / "reference", {"01": 8.0, "07": 8.0})
    image = phantom_image(head, np.random.default_rng(0))
    write_volume(image, head.grid, data / "sub-1" / "anat" / "sub-1_T1w.nii.gz")
    settings = SimpleNamespace(
        validate_on=data, references={"manual": str(reference)}, stages=("train",)
    )
    check_real(settings)
    (entry,) = json.loads(write_real(settings, tmp_path).read_text())
    assert entry["name"] == "sub-01"
    assert entry["image"].endswith("sub-1_T1w.nii.gz")
    labels = read_label_map(entry["labels"], LabelTable.packaged(entry["table"]))
    assert labels.grid.is_close(head.grid)
    codes = {FULLHEAD[name].index for name in ("Left-Thalamus", "Right-Putamen")}
    assert codes <= set(np.unique(labels.voxels))


def test_images_without_labels_and_labels_without_images_are_refused(tmp_path):
    data = dataset.write_dataset(tmp_path / "data", "sub-05_T1w")
    reference = give_maps(tmp_path / "reference", {"01": 9.0})
    settings = SimpleNamespace(
        validate_on=data, references={"manual": str(reference)}, stages=("train",)
    )
    with pytest.raises(InputError, match="labels of manual"):
        write_real(settings, tmp_path)
    settings.validate_on = None
    with pytest.raises(InputError, match="--validate-on BIDS_DIR"):
        check_real(settings)
    assert write_real(settings, tmp_path) is None
