# SPDX-License-Identifier: Apache-2.0
"""The comparison with rivals is fair: their weights, grids and labels arrive as they should."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from benchmarks import meshnet
from benchmarks.real_heads import STRUCTURES, TABLE, VOID, count, dice, read_targets, translate


@pytest.mark.parametrize("name", ["aseg", "oasis_manual", "meshnet"])
def test_every_target_of_a_crosswalk_is_a_label_or_says_what_else(name):
    for target in read_targets(f"{name}_to_brainseg.tsv").values():
        codes = target.split()[1:] if target.startswith("nearest") else [target]
        assert target == "void" or all(int(code) in TABLE for code in codes)


def test_manual_cortex_is_left_when_odd_and_right_when_even():
    targets = read_targets("oasis_manual_to_brainseg.tsv")
    cortex = {code: target for code, target in targets.items() if int(code) >= 100}
    assert len(cortex) == 108
    assert all(target == ("3" if int(code) % 2 else "42") for code, target in cortex.items())


def test_a_label_without_a_side_takes_that_of_its_neighbour():
    codes = np.zeros((9, 3, 3), dtype=int)
    codes[1:4], codes[4], codes[5:8] = 2, 251, 41
    codes[4, 0], codes[3, 1] = 77, 251
    found = translate(codes, {int(k): v for k, v in read_targets("aseg_to_brainseg.tsv").items()})
    assert set(np.unique(found)) == {0, 2, 41}
    assert found[3, 1, 1] == 2


def test_a_code_that_is_not_in_the_crosswalk_is_refused():
    with pytest.raises(ValueError, match=r"codes \[9999\]"):
        translate(np.array([0, 9999]), {0: "0", 2: "2"})


def test_void_voxels_count_for_nobody():
    reference = np.array([2, 2, VOID, 0, 41])
    counts = count(reference, np.array([2, 0, 2, 0, 2], dtype=np.int16))
    assert counts.sum() == 4
    assert dice(counts, STRUCTURES["Cerebral white matter"]) == pytest.approx(2 * 2 / (3 + 2))


def test_conforming_keeps_every_point_where_it_is(head, head_image):
    conformed, grid = meshnet.conform(head_image, head.grid)
    assert conformed.shape == (256, 256, 256)
    assert conformed.dtype == np.uint8
    assert grid.orientation() == ((0, -1), (2, 1), (1, -1))  # LIA
    back = meshnet.resample_labels(
        meshnet.resample(head.voxels, head.grid, grid, order=0), grid, head.grid
    )
    inside = head.voxels > 0
    assert (back == head.voxels)[inside].mean() > 0.95
    again, same = meshnet.conform(conformed.astype(np.float32), grid)
    assert same is grid
    assert np.array_equal(again, conformed)


def test_weights_of_a_tfjs_model_come_out_in_torch_order(tmp_path, rng):
    kernel = rng.normal(size=(3, 3, 3, 1, 2)).astype("<f4")
    bias = rng.normal(size=2).astype("<f4")
    layer = {"name": "conv", "dilation_rate": [2, 2, 2]}
    layers = [
        {"class_name": "InputLayer", "config": {"name": "input"}},
        {"class_name": "Conv3D", "config": layer},
        {"class_name": "Activation", "config": {"activation": "elu"}},
    ]
    entries = [
        {"name": "conv/kernel", "shape": [3, 3, 3, 1, 2]},
        {"name": "conv/bias", "shape": [2]},
    ]
    (tmp_path / "model.bin").write_bytes(kernel.tobytes() + bias.tobytes())
    (tmp_path / "model.json").write_text(
        json.dumps(
            {
                "modelTopology": {"model_config": {"config": {"layers": layers}}},
                "weightsManifest": [{"paths": ["model.bin"], "weights": entries}],
            }
        )
    )
    net = meshnet.MeshNet(tmp_path)
    image = torch.zeros(1, 1, 9, 9, 9)
    image[0, 0, 4, 4, 4] = 1
    out = net(image).detach().numpy()[0]
    # Cross-correlation: a single bright voxel shows the kernel reversed, spread by the dilation.
    shown = out[:, 2:7:2, 2:7:2, 2:7:2]
    expected = kernel[::-1, ::-1, ::-1, 0].transpose(3, 0, 1, 2) + bias[:, None, None, None]
    assert shown == pytest.approx(np.where(expected > 0, expected, np.expm1(expected)), abs=1e-6)


def test_leftover_weights_are_an_error(tmp_path):
    (tmp_path / "model.bin").write_bytes(np.zeros(3, dtype="<f4").tobytes())
    manifest = [{"paths": ["model.bin"], "weights": [{"name": "bias", "shape": [2]}]}]
    with pytest.raises(ValueError, match="1 weights"):
        meshnet._read_weights(tmp_path, manifest)


def test_only_the_largest_piece_stays():
    ranks = np.zeros((12, 6, 6), dtype=np.uint8)
    ranks[:5], ranks[8:9, 2, 2] = 3, 5
    kept = meshnet.largest_component(ranks)
    assert set(np.unique(kept)) == {0, 3}
    assert np.array_equal(kept[:5], ranks[:5])
