# SPDX-License-Identifier: Apache-2.0
"""The command that trains: what it takes, what it says, and its exit codes."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.images import write_label_map, write_volume
from brainseg_bids.nets.architectures import build
from brainseg_bids.nets.bundle import write_bundle
from brainseg_bids.programs import train
from brainseg_bids.training.fit import averaged_net, fit, make_generator
from brainseg_bids.training.processes import is_first_process
from tests.phantom.head import phantom_head, phantom_image
from tests.training.tiny import FOUR, TINY, tiny_head, write_inputs

SHORT = replace(TINY, total_steps=2, warmup_steps=1)


def said_in_a_line(capsys, code: int, arguments: list[str]) -> str:
    assert train.main(arguments) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if "ERROR" in line]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"strategy": "fsdp"}, "strategy fsdp needs GPUs; on a CPU take ddp"),
        ({"nodes": 2}, "2 nodes: start one process per accelerator with srun --ntasks=2"),
        ({"batch": 0}, "batch is 0"),
        ({"strategy": "magic"}, "unknown strategy 'magic'; known: auto, ddp, fsdp"),
        ({"loss": "none"}, "unknown loss 'none'; known: chosen, dense"),
        ({"net": 7}, "plan.json: this is not a TrainPlan in JSON"),
        ({"spaces": {"t9w": 1.0}}, "no recipe space 't9w'"),
    ],
    ids=str,
)
def test_what_cannot_run_is_said_in_a_line(change, words, tmp_path, capsys):
    arguments = write_inputs(tmp_path, SHORT)
    plan = json.loads(SHORT.to_json()) | change
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    assert words in said_in_a_line(capsys, 2, arguments)


def test_a_label_map_that_is_not_there_is_said(tmp_path, capsys):
    arguments = write_inputs(tmp_path, SHORT)
    (tmp_path / "held.nii.gz").unlink()
    assert "held.nii.gz" in said_in_a_line(capsys, 2, arguments)
    assert not (tmp_path / "out").exists()


def test_without_a_plan_there_is_nothing_to_do(capsys):
    with pytest.raises(SystemExit) as end:
        train.main(["--out", "somewhere"])
    assert end.value.code == 2
    assert "required: --plan" in capsys.readouterr().err


def test_a_refused_run_does_not_count_its_maps_as_seen(tmp_path, capsys):
    arguments = write_inputs(tmp_path, SHORT)
    assert train.main(arguments) == 0
    before = (tmp_path / "out" / "seen.json").read_text()
    write_label_map(phantom_head((22, 28, 26), 8.0), tmp_path / "learn.nii.gz")
    said = said_in_a_line(capsys, 2, arguments)
    assert "label_maps: number 1" in said
    assert (tmp_path / "out" / "seen.json").read_text() == before


@pytest.mark.parametrize(
    ("writer", "file"),
    [
        ("lightning.pytorch.loggers.CSVLogger.log_metrics", "metrics.csv"),
        ("brainseg_bids.programs.train.write_text", "seen.json"),
    ],
)
def test_a_file_that_cannot_be_written_is_no_bad_input(
    tmp_path, capsys, monkeypatch, writer, file
):
    def full(*_):
        raise OSError(28, "No space left on device", file)

    monkeypatch.setattr(writer, full)
    said = said_in_a_line(capsys, 1, write_inputs(tmp_path, SHORT))
    assert file in said
    assert "make room" in said


# -- starting from another model ----------------------------------------------------------


def other_model(folder: Path) -> Path:
    """A bundle whose table lacks most labels."""
    table = LabelTable.packaged("brainseg").subset([0, 2, 41])
    torch.manual_seed(5)
    write_bundle(
        folder,
        name="other",
        net=build(replace(TINY.net, n_labels=3)),
        table=table,
        voxel_size_mm=8.0,
        patch_vox=(24, 24, 24),
        contrasts=("T1w",),
        card="A card.",
        training={},
        seen=["abc"],
    )
    return folder


def test_training_starts_from_a_model_with_other_labels_and_says_what_was_taken(tmp_path, caplog):
    arguments = [*write_inputs(tmp_path, SHORT), "--start-from", str(other_model(tmp_path / "m"))]
    with caplog.at_level(logging.INFO, "brainseg"):
        assert train.main(arguments) == 0
    assert "3 of 43" in caplog.text
    assert "abc" in json.loads((tmp_path / "out" / "seen.json").read_text())


def test_training_starts_from_a_checkpoint_with_its_averaged_weights(tmp_path, monkeypatch):
    fit(SHORT, [tiny_head()], [tiny_head()], tmp_path / "before")
    begun = []
    monkeypatch.setattr(
        "brainseg_bids.training.fit.fit", lambda *_, start_from, **__: begun.append(start_from)
    )
    last = tmp_path / "before" / "last.ckpt"
    assert train.main([*write_inputs(tmp_path, SHORT), "--start-from", str(last)]) == 0
    expected = averaged_net(SHORT, last).weights()
    found = begun[0].weights()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_model_that_does_not_exist_or_fit_is_said(tmp_path, capsys):
    arguments = [*write_inputs(tmp_path, SHORT), "--start-from"]
    assert "no model" in said_in_a_line(capsys, 2, [*arguments, "nowhere"])
    wide = replace(TINY.net, options={"widths": [20, 20, 20]})
    (tmp_path / "plan.json").write_text(replace(SHORT, net=wide).to_json())
    said = said_in_a_line(capsys, 2, [*arguments, str(other_model(tmp_path / "m"))])
    assert "start from" in said


# -- real images --------------------------------------------------------------------------


def write_real(folder: Path, **entry) -> Path:
    labels = phantom_head((26, 28, 26), 8.0)
    write_volume(phantom_image(labels, np.random.default_rng(1)), labels.grid, folder / "i.nii.gz")
    write_label_map(labels, folder / "full.nii.gz")
    reference = Crosswalk.packaged("fullhead", "brainseg").translate(labels)
    write_label_map(reference, folder / "reference.nii.gz")
    listed = {"name": "one", "image": str(folder / "i.nii.gz")} | entry
    (folder / "real.json").write_text(json.dumps([listed]))
    return folder / "real.json"


def test_references_of_real_images_come_in_either_table(tmp_path):
    generator = make_generator(TINY)
    found = []
    for name, table in (("full", "fullhead"), ("reference", "brainseg")):
        path = write_real(tmp_path, labels=str(tmp_path / f"{name}.nii.gz"), table=table)
        found += train.read_real(path, generator)
    assert [one.labels.table for one in found] == [generator.target] * 2
    np.testing.assert_array_equal(found[0].labels.voxels, found[1].labels.voxels)


def test_a_reference_on_another_grid_is_refused(tmp_path, capsys):
    arguments = write_inputs(tmp_path, SHORT)
    path = write_real(tmp_path, labels=str(tmp_path / "learn.nii.gz"))
    said = said_in_a_line(capsys, 2, [*arguments, "--real", str(path)])
    assert "learn.nii.gz" in said


def test_a_list_without_names_is_no_list_of_real_images(tmp_path, capsys):
    (tmp_path / "real.json").write_text('[{"image": "a"}]')
    arguments = [*write_inputs(tmp_path, SHORT), "--real", str(tmp_path / "real.json")]
    assert "real.json" in said_in_a_line(capsys, 2, arguments)


# -- Slurm --------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch) -> list[list[str]]:
    """What Slurm was asked."""
    found: list[list[str]] = []
    monkeypatch.setattr(train.subprocess, "run", lambda command, **_: found.append(command))
    return found


def test_a_job_goes_back_to_the_queue_only_if_its_script_wishes_so(asked):
    assert not train.requeue({"SLURM_JOB_ID": "42"})
    assert not train.requeue({"BRAINSEG_REQUEUE": "1"})
    assert asked == []
    wish = {"SLURM_JOB_ID": "44", "BRAINSEG_REQUEUE": "1"}
    assert train.requeue(wish)
    assert train.requeue(wish | {"SLURM_ARRAY_JOB_ID": "42", "SLURM_ARRAY_TASK_ID": "3"})
    assert asked == [["scontrol", "requeue", "44"], ["scontrol", "requeue", "42_3"]]


def test_a_cancelled_job_stays_cancelled(tmp_path, monkeypatch, asked):
    from brainseg_bids.training.callbacks import Stopped

    monkeypatch.setenv("SLURM_JOB_ID", "42")
    monkeypatch.setenv("BRAINSEG_REQUEUE", "1")
    for name, requests in (("SIGTERM", 0), ("SIGUSR1", 1)):

        def stop(*_, signal_name=name, **__):
            raise Stopped(3, signal_name)

        monkeypatch.setattr("brainseg_bids.training.fit.fit", stop)
        assert train.main(write_inputs(tmp_path, SHORT)) == 75
        assert len(asked) == requests


def test_slurm_that_does_not_answer_is_no_failure(monkeypatch, caplog):
    monkeypatch.setenv("PATH", "/nowhere")
    assert not train.requeue({"SLURM_JOB_ID": "42", "BRAINSEG_REQUEUE": "1"})
    assert "not requeued" in caplog.text


@pytest.mark.parametrize(
    ("environ", "first"),
    [
        ({}, True),
        ({"LOCAL_RANK": "0", "NODE_RANK": "0"}, True),
        ({"LOCAL_RANK": "1", "NODE_RANK": "0"}, False),
        ({"RANK": "4", "LOCAL_RANK": "0"}, False),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "4"}, False),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "0"}, True),
        # A job's script that starts its processes itself has a SLURM_PROCID, too.
        ({"SLURM_PROCID": "0", "LOCAL_RANK": "1"}, False),
    ],
    ids=str,
)
def test_one_process_speaks_for_all(environ, first):
    assert is_first_process(environ) == first


def test_four_pairs_a_step_are_said(tmp_path, caplog):
    plan = replace(FOUR, total_steps=1)
    with caplog.at_level(logging.INFO, "brainseg"):
        assert train.main(write_inputs(tmp_path, plan)) == 0
    assert "4 pairs" in caplog.text
