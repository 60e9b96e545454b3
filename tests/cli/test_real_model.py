# SPDX-License-Identifier: Apache-2.0
"""The app with the packaged model, on phantom heads."""

import json
import time

import nibabel as nib
import numpy as np
import pytest

from brainseg_bids.__main__ import main
from brainseg_bids.cli.demo import write_demo
from brainseg_bids.images import write_volume
from brainseg_bids.nets.bundle import packaged_models
from tests.fakes import dataset
from tests.phantom.head import phantom_grid, phantom_head, phantom_image

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not packaged_models(), reason="no model is packaged yet"),
]


def put(root, label, voxel_size_mm, shape):
    """A participant with a phantom's T1w."""
    grid = phantom_grid(shape, voxel_size_mm)
    image = phantom_image(phantom_head(grid=grid), np.random.default_rng(3))
    path = root / f"sub-{label}" / "anat" / f"sub-{label}_T1w.nii.gz"
    path.parent.mkdir(parents=True)
    return write_volume(image, grid, path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("real")
    data = dataset.write_dataset(root / "data")
    put(data, "iso", 3.0, (48, 56, 52))
    put(data, "thick", (2.0, 2.0, 8.0), (64, 64, 18))
    (data / "sub-bad" / "anat").mkdir(parents=True)
    (data / "sub-bad" / "anat" / "sub-bad_T1w.nii.gz").write_bytes(b"no image")
    arguments = [data, root / "out", "participant", "-w", root / "work", "--probseg"]
    began_s = time.monotonic()
    code = main([str(argument) for argument in arguments])
    return code, data, root / "out", time.monotonic() - began_s


def test_the_app_segments_what_it_can_and_says_what_it_cannot(finished):
    code, _, output, _ = finished
    assert code == 1
    (log,) = [path.read_text() for path in output.glob("logs/*/brainseg.log")]
    assert "sub-bad T1w: failed" in log
    assert "cannot be read" in log
    assert "1 of 3" in log


def test_labels_are_on_the_grid_of_the_image_and_find_a_head(finished):
    _, data, output, _ = finished
    image = nib.load(data / "sub-iso" / "anat" / "sub-iso_T1w.nii.gz")
    folder = output / "sub-iso" / "anat"
    labels = nib.load(folder / "sub-iso_seg-brainseg_dseg.nii.gz")
    assert labels.shape == image.shape
    assert np.allclose(labels.affine, image.affine)
    assert len(np.unique(np.asanyarray(labels.dataobj))) > 3
    probabilities = nib.load(folder / "sub-iso_seg-brainseg_probseg.nii.gz")
    names = json.loads((folder / "sub-iso_seg-brainseg_probseg.json").read_text())["LabelMap"]
    assert probabilities.shape == (*image.shape, len(names))


def test_thick_slices_are_done_with_a_warning(finished):
    _, _, output, _ = finished
    folder = output / "sub-thick" / "anat"
    beside = json.loads((folder / "sub-thick_seg-brainseg_dseg.json").read_text())
    assert any("coarser than the model's" in warning for warning in beside["Warnings"])
    assert "coarser than the model" in (output / "sub-thick.html").read_text()


def test_the_result_passes_the_bids_validator(finished):
    dataset.assert_valid_bids(finished[2])


def test_the_demo_dataset_is_valid_and_holds_a_head_sized_image(tmp_path):
    image = write_demo(tmp_path / "demo")
    dataset.assert_valid_bids(tmp_path / "demo")
    assert nib.load(image).shape == (197, 233, 189)
