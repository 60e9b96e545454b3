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
from brainseg_bids.anatomy.resample import resample_image, resample_labels
from brainseg_bids.documents import InputError
from brainseg_bids.images import read_label_map, write_label_map, write_mask, write_volume
from brainseg_bids.interfaces.register import (
    REGISTER,
    Register,
    RegistrationError,
    Resample,
    missing_reason,
)
from brainseg_bids.programs import register
from brainseg_bids.transforms import read_transform, source_coordinates
from tests.fakes.transforms import write_composite
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
        "kind": QUICK,
    }


def test_the_command_line_is_what_the_program_reads(files):
    words = Register(**inputs(files), threads=3).cmdline
    shell, *argv = shlex.split(words)
    assert shell == "exec"  # no shell in between, which would outlive whoever has started it
    assert tuple(argv[: len(REGISTER)]) == REGISTER
    options = register.parse(argv[len(REGISTER) :])
    assert str(options.fixed) == str(files / "a template.nii.gz")
    assert options.forward.name == "forward.h5"
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
    assert "pip install antspyx" in done.stderr


def test_another_environment_is_not_asked_for_antspyx(monkeypatch):
    monkeypatch.setattr("brainseg_bids.interfaces.register.find_spec", lambda _: None)
    assert missing_reason(("/opt/ants/bin/python", "-m", "brainseg_bids.programs.register")) == ""
    assert "antspyx" in missing_reason()


def resampled_through(files, affine, **more):
    write_composite(files / "there.h5", affine)
    return Resample(
        image=str(files / "image.nii.gz"),
        labels=str(files / "labels.nii.gz"),
        table=str(files / "labels.tsv"),
        grid=str(files / "a template.nii.gz"),
        transforms=[str(files / "there.h5")],
        **more,
    ).run()


def test_resampled_files_lie_on_the_grid_they_were_asked_for(files, head, monkeypatch):
    monkeypatch.chdir(files)
    source = read_label_map(files / "labels.nii.gz", head.table)
    to_middle = np.diag([1e-6, 1e-6, 1e-6, 1])  # all points of the template come from one voxel
    to_middle[:3, 3] = source.grid.affine[:3] @ [20, 20, 20, 1]
    done = resampled_through(files, to_middle)
    resampled = read_label_map(done.outputs.labels, head.table)
    assert resampled.grid.is_close(head.grid)
    assert set(np.unique(resampled.voxels)) == {source.voxels[20, 20, 20]}
    assert json.loads(Path(done.outputs.report).read_text()) == {}


def test_a_transform_that_leads_elsewhere_is_to_be_looked_at(files, monkeypatch):
    monkeypatch.chdir(files)
    brain, away = str(files / "template_mask.nii.gz"), np.eye(4)
    away[2, 3] = 60
    done = resampled_through(files, away, brain=brain)
    said = json.loads(Path(done.outputs.report).read_text())
    assert said["BrainDice"] < 0.5
    assert str(said["BrainDice"]) in said["ToLookAt"][0]
    write_mask(
        np.arange(8).reshape(2, 2, 2) > 3, Grid((2, 2, 2), np.eye(4)), files / "small.nii.gz"
    )
    with pytest.raises(InputError, match=r"small.nii.gz: lies on another grid"):
        resampled_through(files, np.eye(4), brain=str(files / "small.nii.gz"))


@pytest.mark.slow
def test_ants_brings_the_phantom_back_to_where_it_was(files, head):
    """Registered by image and mask alone, labels of both must meet; and both ways are inverse."""
    pytest.importorskip("ants", reason="needs antspyx")
    argv = ["--threads", "1"]
    for name, value in inputs(files).items():
        argv += [f"--{name.replace('_', '-')}", value]
    for name in ("forward.h5", "backward.h5", "report.json"):
        argv += [f"--{name.split('.')[0]}", str(files / name)]
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
    forward, backward = (read_transform(files / f"{way}.h5") for way in ("forward", "backward"))
    here = source_coordinates([forward], source.grid, head.grid)
    resampled = resample_labels(source, here, head.grid)
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
    middle = tuple(n // 2 for n in source.grid.shape)
    there = source_coordinates([backward], head.grid, source.grid)[(slice(None), *middle)]
    again = here[(slice(None), *np.rint(there).astype(int))]
    assert np.abs(again - middle).max() < 1.5
    for way, labels, end in (("forward", source, head.grid), ("backward", head, source.grid)):
        for target in (end, end.with_voxel_size(2.9)):  # also between the field's voxels
            assert_as_ants(files / f"{way}.h5", labels, target)


def assert_as_ants(path, labels, target):
    """Labels equal in 99.9 % of voxels, images within 1e-3 of their range, beside ANTs itself."""
    import ants

    start = labels.grid

    image = phantom_image(labels, np.random.default_rng(3)).astype(np.float32)
    frame = register.as_ants(np.zeros(target.shape), target, ants)
    theirs, their_labels = (
        ants.apply_transforms(
            frame, register.as_ants(voxels, start, ants), [str(path)], interpolator=how
        ).numpy()
        for voxels, how in ((image, "linear"), (labels.voxels, "genericLabel"))
    )
    coordinates = source_coordinates([read_transform(path)], start, target)
    ours = resample_image(image, coordinates, target)
    assert np.abs(ours - theirs).max() <= 1e-3 * np.ptp(image)
    equal = resample_labels(labels, coordinates, target).voxels == their_labels
    assert equal.mean() > 0.999
