# SPDX-License-Identifier: Apache-2.0
"""Memory set aside for a segmentation is what it takes."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.bids.names import Scan
from brainseg_bids.images import write_volume
from brainseg_bids.machine import cpu_has_bf16
from brainseg_bids.nets.architectures import build
from brainseg_bids.nets.bundle import ModelBundle, write_bundle
from brainseg_bids.nets.spec import NetSpec
from brainseg_bids.resources import Footprint, segmentation_gib
from brainseg_bids.stages import models
from tests.fakes import dataset
from tests.phantom.head import phantom_grid, phantom_head, phantom_image

NET = Footprint("dynunet", 43, 2, 24, 24, 1.5, (96, 128, 112))


def gib(shape=(256, 256, 256), mm=1.0, nets=(NET,), **options):
    return segmentation_gib(shape, (mm,) * 3, nets, half=True, **options)


@pytest.mark.slow
@pytest.mark.parametrize(("stem", "size"), [(2, 1.2), (1, 2.5)])
def test_predicted_memory_is_within_a_quarter_of_what_a_phantom_takes(tmp_path, stem, size):
    torch.manual_seed(0)
    bundle = write_bundle(
        tmp_path / "raw", name="raw", table=LabelTable.packaged("brainseg"), voxel_size_mm=2.0,
        net=build(NetSpec("dynunet", 43, stem, 16, {"widths": [16, 16, 16]})),
        patch_vox=(48, 48, 48), contrasts=("T1w",), card="# raw\n", training={},
    )  # fmt: skip
    shape = tuple(int(n / size) for n in (170, 200, 180))
    labels = phantom_head(grid=phantom_grid(shape, size))
    image = write_volume(
        phantom_image(labels, np.random.default_rng(0)), labels.grid, tmp_path / "T1w.nii.gz"
    )
    command = [
        sys.executable, "-m", "brainseg_bids.programs.segment", "--image", image, "--model",
        tmp_path / "raw", "--labels", tmp_path / "dseg.nii.gz", "--report",
        tmp_path / "report.json", "--device", "cpu", "--threads", "1",
    ]  # fmt: skip
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    measured = json.loads((tmp_path / "report.json").read_text())["metadata"]["PeakMemoryGiB"]
    predicted = segmentation_gib(shape, (size,) * 3, [Footprint.of(bundle)])
    assert predicted == pytest.approx(measured, rel=0.25)


def test_memory_grows_with_voxels_labels_windows_flips_and_members():
    base = gib()
    more_labels = Footprint("dynunet", 86, 2, 24, 24, 1.5, (96, 128, 112))
    packed_less = Footprint("dynunet", 43, 1, 24, 24, 1.5, (96, 128, 112))
    finer = Footprint("dynunet", 43, 2, 24, 24, 0.7, (96, 128, 112))
    for other in (more_labels, packed_less, finer):
        assert gib(nets=(other,)) > base + 0.02
    assert gib(shape=(512, 512, 512), mm=0.5) > 2 * base
    assert gib(flips=True) > base + 0.02
    assert gib(nets=(NET, NET)) > base + 0.02
    assert segmentation_gib((256,) * 3, (1.0,) * 3, (NET,), half=False) > base


def test_twice_as_many_rows_along_the_first_axis_cost_no_more_sums():
    # Only what is read and written grows.
    longer = gib(shape=(512, 256, 256)) - gib()
    wider = gib(shape=(256, 256, 512)) - gib()
    assert longer < 0.8 * wider


def test_a_model_or_an_image_that_tells_nothing_gets_the_usual_memory(tmp_path):
    bundle = ModelBundle.read(dataset.write_bundle(tmp_path / "model"))
    assert Footprint.of(bundle) is None
    image = dataset.write_image(tmp_path / "sub-01_T1w.nii.gz")
    unknown = models.Model(bundle.path, "x", "d", (), ())
    known = models.Model(bundle.path, "x", "d", (), (), footprint=NET)
    scan = Scan.from_path(image)
    assert models.predicted_gib(scan, [known], False) < models.SEGMENT_GIB
    assert models.predicted_gib(scan, [known, unknown], False) == models.SEGMENT_GIB
    image.write_bytes(b"no image")
    assert models.predicted_gib(scan, [known], False) == models.SEGMENT_GIB


def test_processors_are_asked_for_half_precision(tmp_path):
    (tmp_path / "new").write_text("flags : sse avx512_bf16 amx\n")
    (tmp_path / "old").write_text("flags : sse avx2\n")
    assert cpu_has_bf16(tmp_path / "new")
    assert not cpu_has_bf16(tmp_path / "old")
    assert not cpu_has_bf16(tmp_path / "none")
