# SPDX-License-Identifier: Apache-2.0
"""What is run, what is reused, and why."""

import hashlib
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from brainseg_bids import files
from brainseg_bids.bids.names import Scan, sidecar
from brainseg_bids.stages.jobs import RUN, describe_plans, fingerprint, is_unchanged
from brainseg_bids.stages.segment import metadata, model_for
from tests.fakes import dataset


def leave_results(plans, output_dir):
    """Files as a run leaves them; what is in the images does not matter to a plan."""
    for plan in plans:
        for scan in plan.scans:
            described = metadata(scan, output_dir=output_dir)
            for name, path in scan.outputs.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"result")
                if name in described:
                    sidecar(path).write_text(json.dumps(described[name]))


@pytest.fixture
def done(plans, tmp_path):
    leave_results(plans(), tmp_path / "out")
    return plans


def reasons(plans):
    return {scan.scan.title: scan.reason for plan in plans for scan in plan.scans}


def to_run(plans):
    return [scan.scan.title for plan in plans for scan in plan.to_run]


def test_without_results_everything_is_run(plans):
    assert len(to_run(plans())) == 3
    assert set(reasons(plans()).values()) == {"no results yet"}


def test_finished_results_are_reused_and_said_to_be(done):
    assert to_run(done()) == []
    assert all(line.endswith("reused") for line in describe_plans(done()))


def test_another_time_stamp_on_the_same_content_changes_nothing(done, data):
    for image in data.rglob("*.nii.gz"):
        os.utime(image, (0, 0))
    assert to_run(done()) == []


@pytest.mark.input(
    "runs", "an image whose time stamp lies thousands of years away", "segmented as any other", 0
)
def test_a_time_stamp_that_no_calendar_has_is_left_out(data, monkeypatch):
    image = data / "sub-01" / "anat" / "sub-01_T2w.nii.gz"
    usual, stat = fingerprint(image, known={}), image.stat()
    fields = {name: getattr(stat, name) for name in dir(stat) if name.startswith("st_")}
    odd = SimpleNamespace(**fields | {"st_mtime": 1e12})  # ext4 would not keep it
    monkeypatch.setattr(Path, "stat", lambda self, **_: odd)
    found = fingerprint(image, known={})
    assert "InputModified" in usual.keys() - found.keys()
    assert found["InputSHA256"] == usual["InputSHA256"]


def test_an_input_that_changed_is_run_again_and_only_that(done, data):
    dataset.write_image(data / "sub-01" / "anat" / "sub-01_T2w.nii.gz", seed=99)
    assert to_run(done()) == ["sub-01 T2w"]
    assert "input has changed" in reasons(done())["sub-01 T2w"]


@pytest.fixture
def settled(monkeypatch):
    """Files count as written long ago."""
    monkeypatch.setattr(files, "FRESH_S", -1.0)
    yield monkeypatch
    time.sleep(0.02)


def test_an_unchanged_input_is_not_read_again(settled, done, data):
    settled.setattr(hashlib, "file_digest", lambda *_: pytest.fail("was read"))
    assert to_run(done()) == []


def test_an_input_that_was_just_written_is_read_again(done, data, monkeypatch):
    read = []
    digest = hashlib.file_digest
    monkeypatch.setattr(files, "FRESH_S", 3600.0)
    monkeypatch.setattr(
        hashlib, "file_digest", lambda file, kind: read.append(file) or digest(file, kind)
    )
    assert to_run(done()) == []
    assert read


def write_in_place(path, content):
    with path.open("r+b") as file:
        file.write(content)


def replace_file(path, content):
    other = path.with_name("other")
    other.write_bytes(content)
    other.rename(path)


def point_elsewhere(path, content):
    other = path.parents[3] / "elsewhere"
    other.write_bytes(content)
    path.unlink()
    path.symlink_to(other)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(
            write_in_place,
            marks=pytest.mark.input(
                "runs",
                "an image that was overwritten with one of the same size and time stamp",
                "segmented again",
                0,
            ),
        ),
        pytest.param(
            replace_file,
            marks=pytest.mark.input(
                "runs",
                "an image that another file of the same size and time stamp was moved over",
                "segmented again",
                0,
            ),
        ),
        pytest.param(
            point_elsewhere,
            marks=pytest.mark.input(
                "runs",
                "a link to an image that now leads to another of the same size and time stamp",
                "segmented again",
                0,
            ),
        ),
    ],
)
def test_another_image_of_the_same_size_and_time_is_another_image(settled, done, data, change):
    path = data / "sub-01" / "anat" / "sub-01_T2w.nii.gz"
    content, stat = bytearray(path.read_bytes()), path.stat()
    content[-5] ^= 1
    time.sleep(0.02)  # clocks of file systems tick slowly
    change(path, bytes(content))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    assert to_run(done()) == ["sub-01 T2w"]


def test_an_image_of_another_dataset_is_never_taken_for_known(settled, data, tmp_path):
    mine, theirs = (tmp_path / name / "sub-01_T1w.nii" for name in ("a", "b"))
    for path in (mine, theirs):
        path.parent.mkdir()
    mine.write_bytes(b"mine")
    os.link(mine, theirs)  # even inode and times are the same
    known = fingerprint(mine, known={})
    assert fingerprint(mine, known=known | {"InputSHA256": "known"})["InputSHA256"] == "known"
    assert fingerprint(theirs, known=known | {"InputSHA256": "known"})["InputSHA256"] != "known"


def test_another_model_is_run(done, model):
    plans = done(models=[replace(model, digest="f" * 64)])
    assert len(to_run(plans)) == 3
    assert "another model" in reasons(plans)["sub-01 T1w"]


@pytest.mark.parametrize("before", ["alone", "flips", "ensemble", "other"])
@pytest.mark.parametrize("now", ["alone", "flips", "ensemble", "other"])
def test_results_of_another_ensemble_or_other_flips_are_not_reused(
    plans, model, tmp_path, before, now
):
    further = replace(model, name="further", digest="e" * 64)
    options = {
        "alone": {},
        "flips": {"flips": True},
        "ensemble": {"ensemble": (further,)},
        "other": {"ensemble": (replace(further, digest="f" * 64),)},
    }
    leave_results(plans(**options[before]), tmp_path / "out")
    again = plans(**options[now])
    assert len(to_run(again)) == (0 if before == now else 3)
    assert all(scan.has_results == (before == now) for plan in again for scan in plan.scans)
    if before != now:
        word = "mirror" if {before, now} == {"flips", "alone"} else "another ensemble"
        assert word in reasons(again)["sub-01 T1w"]


def test_the_json_of_an_ensemble_names_every_model_and_that_of_one_says_nothing_new(
    plans, model, tmp_path
):
    further = replace(model, name="further", digest="e" * 64)
    (scan, _) = plans("01", ensemble=(further,), flips=True)[0].scans
    said = metadata(scan, output_dir=tmp_path / "out")["labels"]
    assert said["Ensemble"] == [{"ModelName": "further", "ModelDigest": "e" * 64}]
    assert said["TestTimeFlips"] is True
    assert "fake, further" in said["Description"]
    (alone, _) = plans("01")[0].scans
    said = metadata(alone, output_dir=tmp_path / "out")["labels"]
    assert not {"Ensemble", "TestTimeFlips"} & set(said)


def scan_of(folder, suffix="T1w", voxel_size_mm=1.0):
    image = folder / f"sub-01_{suffix}.nii.gz"
    affine = np.diag([*np.broadcast_to(voxel_size_mm, 3), 1.0])
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), affine), image)
    return Scan.from_path(image)


@pytest.mark.parametrize(
    ("voxel_size_mm", "expected"),
    [(0.6, 0.7), (0.8, 0.7), (0.85, 1.0), (1.0, 1.0), (2.0, 1.0), ((0.5, 0.5, 3.0), 1.0)],
)
def test_an_image_gets_the_model_that_is_nearest_to_its_longest_edge(
    model, tmp_path, voxel_size_mm, expected
):
    models = [replace(model, voxel_size_mm=size) for size in (1.0, 0.7)]
    scan = scan_of(tmp_path, voxel_size_mm=voxel_size_mm)
    assert model_for(scan, models).voxel_size_mm == expected


def test_an_image_that_cannot_be_read_gets_the_first_model(model, tmp_path):
    (tmp_path / "sub-01_T1w.nii.gz").write_bytes(b"no image")
    models = [replace(model, voxel_size_mm=size) for size in (1.0, 0.7)]
    assert model_for(Scan.from_path(tmp_path / "sub-01_T1w.nii.gz"), models) is models[0]


@pytest.mark.parametrize(
    ("suffix", "voxel_size_mm", "expected"),
    [
        ("T1w", 0.7, "fine"),
        ("T1w", 1.0, "usual"),
        ("FLAIR", 0.7, "flair"),  # its contrast goes before its voxels
        ("FLAIR", 1.0, "flair"),
        ("PDw", 0.7, "fine"),  # nobody's contrast
    ],
)
def test_a_model_for_the_contrast_goes_before_one_for_the_voxels(
    model, tmp_path, suffix, voxel_size_mm, expected
):
    models = [
        replace(model, name=name, contrasts=contrasts, voxel_size_mm=size)
        for name, contrasts, size in (
            ("usual", ("T1w", "UNIT1"), 1.0),
            ("fine", ("T1w", "UNIT1"), 0.7),
            ("flair", ("FLAIR",), 1.0),
        )
    ]
    assert model_for(scan_of(tmp_path, suffix, voxel_size_mm), models).name == expected


def test_results_name_the_model_that_the_image_got(plans, model, tmp_path):
    fine = replace(model, name="fine", digest="e" * 64, voxel_size_mm=4.0)  # as the images
    (scan, _) = plans("01", models=(model, fine))[0].scans
    assert scan.model is fine
    said = metadata(scan, output_dir=tmp_path / "out")["labels"]
    assert (said["ModelName"], said["ModelDigest"]) == ("fine", "e" * 64)
    assert "by model fine." in said["Description"]


def test_another_version_is_run(done, monkeypatch):
    monkeypatch.setattr("brainseg_bids.stages.segment.__version__", "99")
    assert "another version" in reasons(done())["sub-01 T1w"]


@pytest.mark.parametrize("name", ["labels", "tissue", "mask", "volumes", "figure"])
def test_any_missing_output_is_made_again(done, name):
    done()[0].scans[0].outputs[name].unlink()
    assert to_run(done()) == ["sub-01 T1w"]


@pytest.mark.parametrize("damage", [lambda p: p.unlink(), lambda p: p.write_text('{"Model')])
def test_a_result_whose_json_is_missing_or_cut_does_not_count(done, damage):
    damage(sidecar(done()[0].scans[0].outputs["mask"]))
    assert to_run(done()) == ["sub-01 T1w"]


def test_probabilities_wanted_later_are_made(done):
    assert to_run(done()) == []
    assert len(to_run(done(probseg=True))) == 3


def test_an_input_that_cannot_be_read_is_a_fault(plans, data, monkeypatch):
    from brainseg_bids.stages import segment as module

    def refuse(path, **_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module, "fingerprint", refuse)
    (first, _) = plans()
    assert not first.scans
    assert "Permission denied" in first.errors["sub-01 T1w"]


def test_names_of_workflows_are_unique_and_allowed(plans):
    for plan in plans():
        names = [plan.name, *(scan.name for scan in plan.scans)]
        assert len(set(names)) == len(names)
        assert all(name.isidentifier() for name in names)


def test_the_json_names_source_model_and_reference(plans, model, tmp_path):
    (scan, _) = plans("01")[0].scans
    described = metadata(scan, output_dir=tmp_path / "out")
    assert described["labels"]["Sources"] == ["bids:raw:sub-01/anat/sub-01_T1w.nii.gz"]
    assert described["labels"]["ModelDigest"] == model.digest
    assert described["mask"]["Type"] == "Brain"
    own = "bids::sub-01/anat/sub-01_seg-brainseg_dseg.nii.gz"
    assert described["tissue"]["Sources"] == described["volumes"]["Sources"] == [own]
    assert scan.action == RUN


def test_results_of_an_image_that_has_changed_or_gone_are_not_found_again(tmp_path):
    image = tmp_path / "sub-01_T1w.nii.gz"
    image.write_bytes(b"one")
    metadata = fingerprint(image, known={})
    assert is_unchanged(image, metadata)
    image.write_bytes(b"two")
    assert not is_unchanged(image, metadata)
    image.unlink()
    assert not is_unchanged(image, metadata)
