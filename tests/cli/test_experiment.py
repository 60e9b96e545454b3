# SPDX-License-Identifier: Apache-2.0
"""The prior-weight experiment from plan to report, with a net and a head of toy size."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.cli import experiment
from brainseg_bids.files import sha256
from brainseg_bids.images import write_label_map, write_volume
from brainseg_bids.programs import experiment as runs
from brainseg_bids.training.plan import TrainPlan
from brainseg_bids.training.resume import steps_done
from tests.phantom.head import phantom_head, phantom_image
from tests.synth.priors import make_prior
from tests.training.test_training import PLAN

TINY = replace(PLAN, patch_vox=(24, 24, 24), voxel_size_mm=8.0, validation_pairs=1)
STEPS = "4"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """Two heads, an image of the second, a prior and a small plan."""
    folder = tmp_path_factory.mktemp("inputs")
    for name, shape in (("learn", (24, 28, 26)), ("held", (26, 28, 26))):
        labels = phantom_head(shape, 8.0)
        write_label_map(labels, folder / f"{name}.nii.gz")
    image = phantom_image(labels, np.random.default_rng(1))
    write_volume(image, labels.grid, folder / "held_T1w.nii.gz")
    make_prior().write(folder)
    (folder / "tiny.json").write_text(TINY.to_json())
    return folder


def arguments(inputs: Path, folder: Path, **changes) -> list[str]:
    given = {
        "prior": [inputs / "contrast-T1w_prior.json"],
        "maps": [inputs / "learn.nii.gz"],
        "validation": [inputs / "held.nii.gz"],
        "steps": [STEPS],
        "seeds": [1, 2],
        "kappa": [0, 1],
        "plan": [inputs / "tiny.json"],
        "pairs": [1],
        "off": ["agnostic", "t2w"],
    } | changes
    options = [str(word) for key, values in given.items() for word in (f"--{key}", *values)]
    return ["plan", str(folder), *options]


def scores(folder: Path) -> dict[str, list]:
    return {
        path.parent.name: json.loads(path.read_text())["scores"]
        for path in sorted(folder.glob("*/result.json"))
    }


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory) -> Path:
    """An experiment that was run in one go."""
    folder = tmp_path_factory.mktemp("experiment") / "exp"
    real = {"image": [inputs / "held_T1w.nii.gz"], "labels": [inputs / "held.nii.gz"]}
    assert experiment.main(arguments(inputs, folder, **real)) == 0
    assert experiment.main(["run", str(folder), "--threads", "1"]) == 0
    return folder


def test_the_plan_holds_rule_digests_and_a_folder_per_run(finished, inputs):
    plan = json.loads((finished / "experiment.json").read_text())
    assert plan["decision"]["rule"].startswith("Training for contrast T1w beats")
    assert plan["decision"]["margin"] == 0.01
    assert plan["planned"].startswith("20")
    assert plan["prior"]["sha256"] == make_prior().digest
    assert plan["maps"][0]["sha256"] == sha256(inputs / "learn.nii.gz")
    assert plan["on_space"] == plan["kappa_spaces"]["1"] != plan["kappa_spaces"]["0"]
    own = finished / "kappa-1_seed-2"
    train = TrainPlan.from_json((own / "plan.json").read_text())
    assert (train.seed, train.total_steps) == (2, int(STEPS))
    assert list(train.spaces) == [str((own / "space.toml").resolve())]
    assert "kappa = 1.0" in (own / "space.toml").read_text()


def test_runs_are_measured_on_the_same_images_and_differ(finished):
    found = scores(finished)
    assert list(found) == [f"kappa-{k}_seed-{s}" for k in (0, 1) for s in (1, 2)]
    measured = [[(s["where"], s["space"], s["case"]) for s in own] for own in found.values()]
    assert all(one == measured[0] for one in measured)
    assert [where for where, _, _ in measured[0]] == ["on", "off", "off", "real"]
    structures = [[sorted(s["dice"]) for s in own] for own in found.values()]
    assert all(one == structures[0] for one in structures)
    assert len({json.dumps(own) for own in found.values()}) == 4


def test_an_interrupted_run_ends_where_a_straight_one_does(finished, tmp_path, monkeypatch):
    folder = tmp_path / "exp"
    shutil.copytree(finished, folder)
    own = folder / "kappa-1_seed-1"
    for name in ("result.json", "last.ckpt"):
        (own / name).unlink()
    original = runs.fit
    monkeypatch.setattr(runs, "fit", lambda *values: original(*values, until_step=int(STEPS) - 1))
    assert experiment.main(["run", str(folder)]) == 1
    assert steps_done(own / "last.ckpt") == int(STEPS) - 1
    assert "step 3 of" in (own / "failure.txt").read_text()
    monkeypatch.setattr(runs, "fit", original)
    assert experiment.main(["run", str(folder)]) == 0
    assert not (own / "failure.txt").exists()
    before, after = scores(finished)[own.name], scores(folder)[own.name]
    other_seed = scores(finished)["kappa-1_seed-2"]
    for one, other, another in zip(before, after, other_seed, strict=True):
        assert other["dice"] == pytest.approx(one["dice"], abs=1e-5)
        assert another["dice"] != pytest.approx(one["dice"], abs=1e-3)


def test_a_finished_run_is_not_repeated(finished, monkeypatch):
    monkeypatch.setattr(runs, "fit", lambda *_: pytest.fail("trained again"))
    before = {path: path.stat().st_mtime_ns for path in finished.glob("*/result.json")}
    assert experiment.main(["run", str(finished)]) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_failed_run_is_named_and_the_others_go_on(finished, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "exp"
    shutil.copytree(finished, folder)
    for name in ("kappa-0_seed-1", "kappa-1_seed-1"):
        (folder / name / "result.json").unlink()
    (folder / "kappa-0_seed-1" / "last.ckpt").write_bytes(b"damaged")
    assert experiment.main(["run", str(folder)]) == 1
    assert "kappa-0_seed-1" in capsys.readouterr().err
    assert sorted(scores(folder)) == ["kappa-0_seed-2", "kappa-1_seed-1", "kappa-1_seed-2"]
    assert experiment.main(["report", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "1 of 4" in said
    assert "thesis" not in json.loads((folder / "report.json").read_text())


def test_a_task_of_an_array_does_its_own_run_only(finished, tmp_path, monkeypatch):
    folder = tmp_path / "exp"
    shutil.copytree(finished, folder)
    for path in folder.glob("*/result.json"):
        path.unlink()
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert experiment.main(["run", str(folder)]) == 0
    assert list(scores(folder)) == ["kappa-0_seed-2"]
    assert experiment.main(["run", str(folder), "--only", "1"]) == 0
    assert sorted(scores(folder)) == ["kappa-0_seed-2", "kappa-1_seed-1"]
    assert experiment.main(["run", str(folder), "--only", "4"]) == 2


def test_a_run_in_work_elsewhere_is_left_to_it(finished, tmp_path):
    folder = tmp_path / "exp"
    shutil.copytree(finished, folder)
    own = folder / "kappa-0_seed-1"
    (own / "result.json").unlink()
    with runs._locked(own) as ours:
        assert ours
        assert experiment.main(["run", str(folder)]) == 0
    assert not (own / "result.json").exists()


def test_the_report_says_how_much_may_be_said(finished, capsys):
    assert experiment.main(["report", str(finished)]) == 0
    assert "2 seeds" in capsys.readouterr().out
    page = (finished / "report.md").read_text()
    for words in (
        "no difference shown",
        "| kappa | on: T1w | off: all | off: agnostic |",
        "n = 2",
    ):
        assert words in page
    with (finished / "report.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert {(row["kappa"], row["where"], row["space"]) for row in rows} >= {
        ("0", "off", "all"),
        ("1", "real", "real"),
    }
    with (finished / "report_differences.tsv").open(newline="") as file:
        assert {row["kappa"] for row in csv.DictReader(file, delimiter="\t")} == {"1"}
    assert (finished / "report.png").stat().st_size > 1000
    assert json.loads((finished / "report.json").read_text())["thesis"]["n_seeds"] == 2


def test_a_plan_is_never_overwritten_by_another(finished, inputs, capsys):
    before = (finished / "experiment.json").read_text()
    real = {"image": [inputs / "held_T1w.nii.gz"], "labels": [inputs / "held.nii.gz"]}
    assert experiment.main(arguments(inputs, finished, margin=[0.001], **real)) == 2
    assert "another experiment" in capsys.readouterr().err
    assert experiment.main(arguments(inputs, finished, **real)) == 0
    assert (finished / "experiment.json").read_text() == before


def test_a_map_that_was_changed_since_stops_the_experiment(inputs, tmp_path, capsys):
    copies = tmp_path / "inputs"
    shutil.copytree(inputs, copies)
    folder = tmp_path / "exp"
    assert experiment.main(arguments(copies, folder)) == 0
    shutil.copy(copies / "held.nii.gz", copies / "learn.nii.gz")
    assert experiment.main(["run", str(folder)]) == 2
    assert "learn.nii.gz:" in capsys.readouterr().err
    assert not list(folder.glob("*/last.ckpt"))


def test_a_prior_that_is_pooled_again_elsewhere_does_not_matter_but_its_copy_does(
    inputs, tmp_path, capsys
):
    copies = tmp_path / "inputs"
    shutil.copytree(inputs, copies)
    folder = tmp_path / "exp"
    assert experiment.main(arguments(copies, folder)) == 0
    runner = runs.ExperimentRunner(runs.read_plan(folder), folder)
    make_prior(sigma=9.0).write(copies)
    runner.check()
    make_prior(sigma=9.0).write(folder)
    assert experiment.main(["run", str(folder)]) == 2
    assert "was changed" in capsys.readouterr().err


def test_runs_of_a_plan_that_was_removed_are_not_taken_over(finished, inputs, tmp_path, capsys):
    folder = tmp_path / "exp"
    shutil.copytree(finished, folder)
    (folder / "experiment.json").unlink()
    assert experiment.main(arguments(inputs, folder)) == 2
    assert "another experiment" in capsys.readouterr().err


def broken(inputs: Path, tmp_path: Path) -> dict[str, tuple[dict, str]]:
    """Bad input and words of the line about it."""
    make_prior(LabelTable.packaged("brainseg")).write(tmp_path)
    tmp_path.joinpath("odd.json").write_text('{"net": 1}')
    gone = inputs / "gone.nii.gz"
    seen = ({"sha256": sha256(inputs / "held_T1w.nii.gz")},)
    replace(make_prior(name="T2w"), images=seen).write(tmp_path)
    labels = phantom_head((26, 28, 26), 8.0)
    skin = np.where(labels.voxels > 0, labels.table["Skin"].index, 0)
    write_label_map(replace(labels, voxels=skin), tmp_path / "skin.nii.gz")
    odd = np.where(labels.voxels > 0, labels.table["CC_Central"].index, 0)
    write_label_map(replace(labels, voxels=odd), tmp_path / "odd.nii.gz")
    real = {"image": [inputs / "held_T1w.nii.gz"], "labels": [inputs / "held.nii.gz"]}
    return {
        "table": ({"prior": [tmp_path / "contrast-T1w_prior.json"]}, "another label table"),
        "no prior": ({"prior": [tmp_path / "none.json"]}, "not a contrast prior"),
        "none held out": ({"validation": []}, "no label maps are held out"),
        "kappa": ({"kappa": [0, 1.5]}, "kappa is 1.5"),
        "missing": ({"maps": [gone]}, "gone.nii.gz: there is no such file"),
        "both": ({"validation": [inputs / "learn.nii.gz"]}, "the same map is among"),
        "plan": ({"plan": [tmp_path / "odd.json"]}, "not a TrainPlan"),
        "space": ({"off": ["t9w"]}, "no recipe space 't9w'"),
        "no brain": ({"maps": [tmp_path / "skin.nii.gz"]}, "no structure of the brain"),
        "code": (real | {"labels": [tmp_path / "odd.nii.gz"]}, "no translation for code"),
        "steps": ({"steps": [0]}, "at least one step"),
        "pairing": ({"image": real["image"]}, "one --labels for each --image"),
        "grid": (real | {"labels": [inputs / "learn.nii.gz"]}, "lies on another grid"),
        "seen": (real | {"prior": [tmp_path / "contrast-T2w_prior.json"]}, "was measured in"),
    }


def test_bad_input_gets_a_line_and_leaves_nothing(inputs, tmp_path, capsys):
    for name, (changes, words) in broken(inputs, tmp_path).items():
        folder = tmp_path / name
        assert experiment.main(arguments(inputs, folder, **changes)) == 2, name
        lines = [x for x in capsys.readouterr().err.splitlines() if "ERROR" in x]
        assert len(lines) == 1
        assert words in lines[0], name
        assert not folder.exists(), name


def test_an_experiment_that_is_not_planned_cannot_be_run(tmp_path, capsys):
    for verb in ("run", "report", "slurm"):
        assert experiment.main([verb, str(tmp_path)]) == 2
        assert "no experiment" in capsys.readouterr().err


def test_the_slurm_script_submits_an_array_and_a_report_after_it(finished, tmp_path, capsys):
    capsys.readouterr()
    assert experiment.main(["slurm", str(finished), "--sbatch=--gres=gpu:1"]) == 0
    script = tmp_path / "submit.sh"
    script.write_text(capsys.readouterr().out)
    stand_in = tmp_path / "bin" / "sbatch"
    stand_in.parent.mkdir()
    stand_in.write_text(
        f'#!/bin/bash\necho "$@" >> {tmp_path}/said\ncat >> {tmp_path}/said\necho "42;cluster"\n'
    )
    stand_in.chmod(0o755)
    path = f"{stand_in.parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["bash", str(script)], check=True, env={"PATH": path}, capture_output=True)
    said = (tmp_path / "said").read_text().splitlines()
    for line in ("--parsable", "#SBATCH --array=0-3", "#SBATCH --requeue"):
        assert line in said
    assert said.index("#SBATCH --gres=gpu:1") < said.index("--dependency=afterany:42")
    assert any('--only "$SLURM_ARRAY_TASK_ID"' in line for line in said)
    assert said[-1].endswith(f"experiment report {finished.resolve()}")
