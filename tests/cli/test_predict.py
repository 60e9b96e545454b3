# SPDX-License-Identifier: Apache-2.0
"""The prediction program: notes on coarse voxels, and probabilities that belong to labels."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.cli.predict import main
from brainseg_bids.nets.architectures import NetSpec, build
from brainseg_bids.nets.bundle import write_bundle
from brainseg_bids.volumes import write_volume
from tests.phantom.head import phantom_grid, phantom_head, phantom_image


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A network that was never trained, for the way things go, not for what it says."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "raw"
    write_bundle(
        path, name="raw", net=build(NetSpec("dynunet", 43, 2, 8, {"widths": [8, 8, 8]})),
        table=LabelTable.packaged("brainseg"), voxel_size_mm=1.5, patch_vox=(48, 48, 48),
        contrasts=("T1w",), card="# raw\n", training={},
    )  # fmt: skip
    return path


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
    notes = run(model, tmp_path, sizes)["warnings"]
    assert any("coarser than the model's 1.5 mm" in note for note in notes) == coarse


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


def test_a_full_disk_is_told_before_probabilities_are_made(model, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(AssertionError):
        run(model, tmp_path, (2, 2, 2), "--probseg", str(tmp_path / "probseg.nii.gz"))
    assert "No space left on device" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["T1w.nii.gz"]
