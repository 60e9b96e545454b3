# SPDX-License-Identifier: Apache-2.0
"""Results get their names only when they are whole."""

import errno
import json
import shutil

import pytest

from brainseg_bids.files import sha256
from brainseg_bids.interfaces import sinks
from brainseg_bids.interfaces.sinks import SaveDerivative, SaveError


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "work" / "dseg.nii.gz"
    path.parent.mkdir()
    path.write_bytes(b"labels" * 1000)
    return path


def test_the_file_and_its_json_are_written(source, tmp_path):
    result = tmp_path / "report.json"
    of_the_run = {"SegmentationSeconds": 3.0, "Warnings": ["w"]}
    result.write_text(json.dumps({"model": "m", "metadata": of_the_run}))
    path = tmp_path / "out" / "sub-01" / "sub-01_seg-x_dseg.nii.gz"
    SaveDerivative(
        in_file=source, path=str(path), metadata={"Sources": ["a"]}, result=result
    ).run()
    assert path.read_bytes() == source.read_bytes()
    beside = json.loads((path.parent / "sub-01_seg-x_dseg.json").read_text())
    assert beside["Sources"] == ["a"]
    assert of_the_run.items() <= beside.items()
    assert "model" not in beside


def test_without_metadata_there_is_no_json(source, tmp_path):
    path = tmp_path / "out" / "figure.png"
    SaveDerivative(in_file=source, path=str(path)).run()
    assert [p.name for p in path.parent.iterdir()] == ["figure.png"]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(
            "content",
            marks=pytest.mark.input(
                "runs",
                "an image that is replaced while it is segmented",
                "nothing is saved; run it again",
                1,
            ),
        ),
        "permissions",
        "gone",
    ],
)
def test_nothing_is_saved_of_an_image_that_was_replaced_meanwhile(source, tmp_path, change):
    image, path = tmp_path / "sub-01_T1w.nii", tmp_path / "out" / "sub-01_dseg.nii.gz"
    image.write_bytes(b"planned")
    planned = {"InputState": "as planned", "InputSHA256": sha256(image)}
    save = SaveDerivative(in_file=source, path=str(path), metadata=planned, source=str(image))
    {
        "content": lambda: image.write_bytes(b"another"),
        "permissions": lambda: image.chmod(0o600),
        "gone": image.unlink,
    }[change]()
    if change == "content":
        with pytest.raises(SaveError, match=r"sub-01_T1w.nii: .*again"):
            save.run()
    else:
        save.run()
    assert path.exists() == (change != "content")


def test_a_full_disk_leaves_nothing_and_keeps_what_was_there(source, tmp_path, monkeypatch):
    path = tmp_path / "out" / "sub-01_dseg.nii.gz"
    path.parent.mkdir()
    path.write_bytes(b"from an earlier run")

    def fill(source, target):
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", fill)
    with pytest.raises(SaveError, match=r"sub-01_dseg.nii.gz: "):
        SaveDerivative(in_file=source, path=str(path), metadata={}).run()
    assert [p.name for p in path.parent.iterdir()] == ["sub-01_dseg.nii.gz"]
    assert path.read_bytes() == b"from an earlier run"


def test_nothing_of_an_earlier_run_stands_beside_a_newer_file(source, tmp_path, monkeypatch):
    path = tmp_path / "out" / "sub-01_dseg.nii.gz"
    beside = path.with_name("sub-01_dseg.json")
    path.parent.mkdir()
    path.write_bytes(b"from an earlier run")
    beside.write_text("{}")
    copy = shutil.copyfile

    def fill(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", fill)
    figure = path.with_name("figure.png")
    figure.write_bytes(b"of the earlier run")
    save = SaveDerivative(in_file=source, path=str(path), metadata={}, outdated=[str(figure)])
    with pytest.raises(SaveError):
        save.run()
    assert beside.exists()  # what belongs to the file that is still there
    assert figure.exists()
    monkeypatch.setattr(shutil, "copyfile", copy)
    monkeypatch.setattr(sinks, "write_json", fill)  # or the process is killed there
    with pytest.raises(SaveError):
        save.run()
    assert path.read_bytes() == source.read_bytes()
    assert not beside.exists()
    assert not figure.exists()
