# SPDX-License-Identifier: Apache-2.0
"""Registration: its command line, and what ANTs itself makes of the phantom."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.anatomy.resample import resample_labels
from brainseg_bids.images import read_label_map, write_label_map, write_mask, write_volume
from brainseg_bids.interfaces.register import (
    REGISTER,
    Register,
    RegistrationError,
    Resample,
    missing_reason,
)
from brainseg_bids.programs import register
from tests.phantom.head import phantom_grid, phantom_head, phantom_image

QUICK = register.KINDS[0]


@pytest.fixture
def files(tmp_path, head, head_image):
    """The phantom as template; a turned, smaller, oblique copy of it as image."""
    angle = np.deg2rad(12)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    turn[:3, :3] *= 0.93
    turn[:3, 3] = [6, -9, 4]
    source = phantom_head(grid=phantom_grid((54, 62, 58), 3.6))
    # Left-right is the first axis in the template and the last in the image, seen from the right.
    voxels = source.voxels.transpose(2, 1, 0)[:, :, ::-1]
    swap = np.zeros((4, 4))
    swap[2, 0] = swap[1, 1] = swap[3, 3] = 1
    swap[0, 2], swap[0, 3] = -1, source.grid.shape[0] - 1
    moved = LabelMap(
        np.ascontiguousarray(voxels),
        Grid(voxels.shape, turn @ source.grid.affine @ swap),
        source.table,
    )
    image = phantom_image(moved, np.random.default_rng(8))
    write_volume(head_image, head.grid, tmp_path / "a template.nii.gz")
    write_mask(head.brain_mask(), head.grid, tmp_path / "template_mask.nii.gz")
    write_volume(image, moved.grid, tmp_path / "image.nii.gz")
    write_mask(moved.brain_mask(), moved.grid, tmp_path / "image_mask.nii.gz")
    write_label_map(moved, tmp_path / "labels.nii.gz")
    moved.table.write(tmp_path / "labels.tsv")
    return tmp_path


def inputs(files):
    return {
        "moving": str(files / "image.nii.gz"),
        "moving_mask": str(files / "image_mask.nii.gz"),
        "fixed": str(files / "a template.nii.gz"),
        "fixed_mask": str(files / "template_mask.nii.gz"),
        "grids": [str(files / "a template.nii.gz"), str(files / "image.nii.gz")],
        "kind": QUICK,
    }


def test_the_command_line_is_what_the_program_reads(files):
    words = Register(**inputs(files), threads=3).cmdline
    shell, *argv = shlex.split(words)
    assert shell == "exec"  # no shell in between, which would outlive whoever has started it
    assert tuple(argv[: len(REGISTER)]) == REGISTER
    options = register.parse(argv[len(REGISTER) :])
    assert str(options.fixed) == str(files / "a template.nii.gz")
    assert [str(path) for path in options.places] == ["places0.npy", "places1.npy"]
    assert (options.kind, options.threads) == (QUICK, 3)


def test_a_killed_or_failed_registration_is_told_in_one_line(files, monkeypatch):
    monkeypatch.chdir(files)
    kill = [sys.executable, "-c", f"import os; os.kill(os.getpid(), {signal.SIGKILL})"]
    with pytest.raises(RegistrationError, match="was killed"):
        Register(program=kill, **inputs(files)).run()
    fail = [sys.executable, "-c", "import sys; sys.exit('brainseg: ERROR: the reason.')"]
    with pytest.raises(RegistrationError, match=r"^the reason\.$"):
        Register(program=fail, **inputs(files)).run()


def test_without_antspyx_the_program_says_what_to_install(files):
    hide = "import sys; sys.modules['ants'] = None; "
    run = "from brainseg_bids.programs.register import main; sys.exit(main(sys.argv[1:]))"
    argv = ["--fixed", "a", "--moving", "b", "--forward", "c", "--backward", "d", "--report", "e"]
    done = subprocess.run(
        [sys.executable, "-c", hide + run, *argv],
        capture_output=True,
        text=True,
        cwd=Path(register.__file__).parents[2],
    )
    assert done.returncode == 127
    assert "pip install 'brainseg-bids[spaces]'" in done.stderr


def test_another_environment_is_not_asked_for_antspyx(monkeypatch):
    monkeypatch.setattr("brainseg_bids.interfaces.register.find_spec", lambda _: None)
    assert missing_reason(("/opt/ants/bin/python", "-m", "brainseg_bids.programs.register")) == ""
    assert "antspyx" in missing_reason()


def test_pulled_files_lie_on_the_grid_they_were_asked_for(files, head, monkeypatch):
    monkeypatch.chdir(files)
    places = np.full((3, *head.grid.shape), 20.0, np.float32)
    places[:, 0] = register.OUTSIDE
    np.save(files / "places.npy", places)
    done = Resample(
        image=str(files / "image.nii.gz"),
        labels=str(files / "labels.nii.gz"),
        table=str(files / "labels.tsv"),
        grid=str(files / "a template.nii.gz"),
        places=[str(files / "places.npy")],
    ).run()
    table = LabelTable.packaged("fullhead")
    resampled = read_label_map(done.outputs.labels, table)
    source = read_label_map(files / "labels.nii.gz", table)
    assert resampled.grid.is_close(head.grid)
    assert set(np.unique(resampled.voxels[1:])) == {source.voxels[20, 20, 20]}
    assert not resampled.voxels[0].any()


@pytest.mark.slow
def test_ants_brings_the_phantom_back_to_where_it_was(files, head):
    """Registered by image and mask alone, labels of both must meet; and both ways are inverse."""
    pytest.importorskip("ants", reason="needs antspyx (pip install 'brainseg-bids[spaces]')")
    argv = []
    for name, value in inputs(files).items():
        flag = "grid" if name == "grids" else name.replace("_", "-")
        argv += [f"--{flag}", *(value if isinstance(value, list) else [value])]
    names = ("forward.h5", "backward.h5", "report.json")
    for name in names:
        argv += [f"--{name.split('.')[0]}", str(files / name)]
    argv += ["--places", str(files / "here.npy"), str(files / "own.npy"), "--threads", "1"]
    done = subprocess.run(
        [*REGISTER, *argv],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    said = json.loads((files / "report.json").read_text())
    assert (said["DrivenBy"], said["Registration"]) == ("brains", QUICK)
    source = read_label_map(files / "labels.nii.gz", head.table)
    resampled = resample_labels(source, np.load(files / "here.npy"), head.grid)
    for names_, lowest in (
        (("Left-Cerebral-White-Matter", "Right-Cerebral-White-Matter"), 0.95),
        (("Left-Thalamus", "Right-Putamen"), 0.8),
        (("Bone-Cortical",), 0.7),  # outside the mask nothing pulls
    ):
        for name in names_:
            ours = resampled.voxels == head.table[name].index
            true = head.voxels == head.table[name].index
            dice = 2 * (ours & true).sum() / (ours.sum() + true.sum())
            assert dice > lowest, (name, dice)
    import ants

    grid = head.grid
    backward = register.places_of(files / "backward.h5", grid, source.grid, ants)
    middle = tuple(n // 2 for n in source.grid.shape)
    there = backward[(slice(None), *middle)]
    again = np.load(files / "here.npy")[(slice(None), *np.rint(there).astype(int))]
    assert np.abs(again - middle).max() < 1.5
