# SPDX-License-Identifier: Apache-2.0
"""The prediction program: notes on coarse voxels, and probabilities that belong to labels."""

from __future__ import annotations

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.evaluation.calibration import BINS
from brainseg_bids.evaluation.confidence import ConfidenceCalibration
from brainseg_bids.images import write_volume
from brainseg_bids.nets.architectures import build
from brainseg_bids.nets.bundle import add_confidence, write_bundle
from brainseg_bids.nets.spec import NetSpec
from brainseg_bids.programs.segment import main
from tests.fakes import dataset
from tests.made_nifti import write_nifti
from tests.phantom.head import phantom_grid, phantom_head, phantom_image


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A network that was never trained, for the way things go, not for what it says."""
    return dataset.write_untrained_bundle(
        tmp_path_factory.mktemp("model") / "raw", voxel_size_mm=1.5
    )


def run(model, folder, sizes, *more):
    shape = tuple(int(110 / size) + 1 for size in sizes)
    labels = phantom_head(grid=phantom_grid(shape, sizes))
    image = write_volume(
        phantom_image(labels, np.random.default_rng(0)), labels.grid, folder / "T1w.nii.gz"
    )
    code = main([
        "--image", str(image), "--model", str(model), "--labels", str(folder / "dseg.nii.gz"),
        "--report", str(folder / "report.json"), "--device", "cpu", *more,
    ])  # fmt: skip
    assert code == 0
    return json.loads((folder / "report.json").read_text())


@pytest.mark.parametrize(
    ("sizes", "coarse"), [((1.5, 1.5, 1.5), False), ((1.5, 1.5, 2.0), True), ((2, 2, 8), True)]
)
def test_voxels_coarser_than_the_models_are_told_and_still_done(model, tmp_path, sizes, coarse):
    notes = run(model, tmp_path, sizes)["metadata"]["Warnings"]
    assert any("coarser than the model's 1.5 mm" in note for note in notes) == coarse


def test_doubts_about_the_header_reach_the_report_and_labels_lie_on_the_file(model, tmp_path):
    affine_um = np.diag([4000.0, 4000, 4000, 1])
    labels = phantom_head(grid=phantom_grid((28, 28, 28), 4.0))
    picture = phantom_image(labels, np.random.default_rng(0))
    image = write_nifti(
        tmp_path / "T1w.nii", picture, sform=affine_um, xyzt_units=3, pixdim=(3200, 3200, 3200)
    )
    code = main([
        "--image", str(image), "--model", str(model), "--labels", str(tmp_path / "dseg.nii.gz"),
        "--probseg", str(tmp_path / "probseg.nii.gz"), "--report", str(tmp_path / "report.json"),
    ])  # fmt: skip
    assert code == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["metadata"]["InputVoxelSizeMm"] == [4, 4, 4]
    (contradiction,) = [
        note for note in report["metadata"]["Warnings"] if "contradicts itself" in note
    ]
    assert "64 mm3" in contradiction
    assert any("microns" in note for note in report["metadata"]["Warnings"])
    for name in ("dseg", "probseg"):
        written = nib.load(tmp_path / f"{name}.nii.gz")
        assert written.header.get_xyzt_units()[0] == "micron"
        np.testing.assert_allclose(written.affine, affine_um)


def test_labels_are_the_largest_of_the_probabilities(model, tmp_path):
    run(model, tmp_path, (2, 2, 2), "--probseg", str(tmp_path / "probseg.nii.gz"))
    labels = np.asarray(nib.load(tmp_path / "dseg.nii.gz").dataobj)
    file = nib.load(tmp_path / "probseg.nii.gz")
    probabilities = np.asarray(file.dataobj)
    codes = LabelTable.packaged("brainseg").codes
    assert probabilities.shape == (*labels.shape, len(codes))
    np.testing.assert_allclose(file.affine, nib.load(tmp_path / "T1w.nii.gz").affine)
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=len(codes) / 255 / 2)
    largest = probabilities.max(-1)
    said = np.take_along_axis(probabilities, np.searchsorted(codes, labels)[..., None], -1)[..., 0]
    assert (largest - said).max() <= 1 / 255 + 1e-6  # bytes: ties are possible


def test_entropy_is_that_of_the_probabilities_and_confidence_is_reported(model, tmp_path):
    files = {name: tmp_path / f"{name}.nii.gz" for name in ("probseg", "entropy")}
    arguments = [text for name, path in files.items() for text in (f"--{name}", str(path))]
    report = run(model, tmp_path, (2, 2, 2), *arguments)
    probabilities, entropy = (np.asarray(nib.load(path).dataobj) for path in files.values())
    assert entropy.ndim == 3
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = -np.nan_to_num(probabilities * np.log2(probabilities)).sum(-1)
    assert entropy.max() > 1
    np.testing.assert_allclose(entropy, expected, atol=0.4)  # bytes of both
    assert report["metadata"]["ConfidenceCalibrated"] is False  # nobody has calibrated it
    found = report["confidence"]
    assert all(0 < row["confidence"] < 1 and row["threshold"] is None for row in found)
    labels = np.asarray(nib.load(tmp_path / "dseg.nii.gz").dataobj)
    assert {row["index"] for row in found} == set(np.unique(labels).tolist()) - {0}


def calibrated(model, folder):
    """A copy of the model with a calibration that believes little and flags much."""
    n_labels = len(LabelTable.packaged("brainseg"))
    calibration = ConfidenceCalibration(
        np.full((n_labels, BINS), 0.5),
        np.ones(n_labels),
        threshold=np.full(n_labels, 0.9),
        usual_dice=np.ones(n_labels),
    )
    path = shutil.copytree(model, folder / "calibrated")
    text = calibration.to_json(LabelTable.packaged("brainseg"))
    return add_confidence(path, text).path


def test_a_calibration_holds_for_its_model_with_flips_alone(model, further, tmp_path):
    path = calibrated(model, tmp_path)
    report = run(path, tmp_path, (3, 3, 3), "--test-time-flips")
    assert report["metadata"]["ConfidenceCalibrated"]
    assert all(row["confidence"] < row["threshold"] == 0.9 for row in report["confidence"])
    for more in ((), ("--test-time-flips", "--ensemble", str(further))):
        report = run(path, tmp_path, (3, 3, 3), *more)
        assert not report["metadata"]["ConfidenceCalibrated"]


def test_a_damaged_calibration_is_refused_before_anything_is_done(model, tmp_path, capsys):
    path = add_confidence(shutil.copytree(model, tmp_path / "bad"), '{"format": 1}').path
    image = tmp_path / "x.nii.gz"
    write_volume(np.arange(729.0).reshape(9, 9, 9), phantom_grid((9, 9, 9), 9.0), image)
    arguments = ["--labels", tmp_path / "d.nii.gz", "--report", tmp_path / "r.json"]
    line = refused(["--image", image, "--model", path, *arguments], capsys)
    assert "bad" in line
    assert "confidence.json" in line


def test_a_full_disk_is_told_before_probabilities_are_made(model, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(AssertionError):
        run(model, tmp_path, (2, 2, 2), "--probseg", str(tmp_path / "probseg.nii.gz"))
    assert "No space left on device" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["T1w.nii.gz"]


@pytest.fixture(scope="module")
def further(tmp_path_factory):
    """Another network with the same labels, on other voxels and other cells."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("model") / "further"
    write_bundle(
        path, name="further", net=build(NetSpec("unet", 43, 1, 8, {"widths": [8, 16]})),
        table=LabelTable.packaged("brainseg"), voxel_size_mm=3.0, patch_vox=(32, 32, 32),
        contrasts=("T1w",), card="# further\n", training={},
    )  # fmt: skip
    return path


def test_an_ensemble_is_the_same_whoever_is_named_first_and_is_told(model, further, tmp_path):
    maps = []
    for number, (first, other) in enumerate([(model, further), (further, model)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        facts = run(first, folder, (3, 3, 3), "--ensemble", str(other), "--test-time-flips")
        maps.append(np.asarray(nib.load(folder / "dseg.nii.gz").dataobj))
        assert facts["model"] == first.name
        assert [member["model"] for member in facts["ensemble"]] == [other.name]
        assert facts["test_time_flips"] is True
    np.testing.assert_array_equal(*maps)
    (tmp_path / "alone").mkdir()
    alone = run(model, tmp_path / "alone", (3, 3, 3))
    assert alone["ensemble"] == []
    assert alone["test_time_flips"] is False
    labels = np.asarray(nib.load(tmp_path / "alone" / "dseg.nii.gz").dataobj)
    assert (labels != maps[0]).mean() > 0.001


def refused(arguments, capsys):
    """One line on stderr with exit code 1."""
    assert main(list(map(str, arguments))) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("kind", ["other labels", "twice", "none"])
def test_an_ensemble_that_cannot_be_is_refused_in_one_line(model, tmp_path, capsys, kind):
    labels = phantom_head((12, 12, 12), 12.0)
    image = write_volume(
        phantom_image(labels, np.random.default_rng(0)), labels.grid, tmp_path / "T1w.nii.gz"
    )
    other = dataset.write_bundle(tmp_path / "tissues", table=LabelTable.packaged("tissue"))
    given = {"other labels": other, "twice": model, "none": tmp_path / "nowhere"}[kind]
    line = refused(
        ["--image", image, "--model", model, "--ensemble", given,
         "--labels", tmp_path / "a.nii.gz", "--report", tmp_path / "a.json"], capsys,
    )  # fmt: skip
    expected = {"other labels": "labels are not those of model raw", "twice": "twice",
                "none": "no model of that name"}  # fmt: skip
    assert expected[kind] in line
    assert str(given) in line
    assert not (tmp_path / "a.nii.gz").exists()


def test_the_app_refuses_an_ensemble_with_other_labels_before_it_begins(app):
    app.images("sub-01_T1w")
    other = dataset.write_bundle(app.root / "tissues", table=LabelTable.packaged("tissue"))
    done = app("--ensemble", other)
    assert done.code == 2
    assert "model fake" in done.said
