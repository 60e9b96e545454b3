# SPDX-License-Identifier: Apache-2.0
"""The mean of several models has the mean of their weights, and has seen what all have seen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from benchmarks.mean_model import mean_model
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.nets.architectures import build
from brainseg_bids.nets.bundle import WEIGHTS, ModelBundle, write_bundle
from brainseg_bids.nets.spec import NetSpec

TABLE = LabelTable.packaged("brainseg")


def tiny(path: Path, seen: str, *, features: int = 2) -> ModelBundle:
    spec = NetSpec("meshnet", n_labels=len(TABLE), features=features)
    return write_bundle(
        path,
        name=path.name,
        net=build(spec),
        table=TABLE,
        voxel_size_mm=1.0,
        patch_vox=(32, 32, 32),
        contrasts=("T1w",),
        card=f"# {path.name}\n",
        training={"plan": {"seed": 1}, "steps": 3},
        seen={seen},
    )


def test_weights_are_averaged_and_all_that_was_seen_is_kept(tmp_path):
    first, second = tiny(tmp_path / "first", "a" * 64), tiny(tmp_path / "second", "b" * 64)
    mean = mean_model([first, second], "mean", tmp_path / "mean")
    one, two, found = (load_file(m.path / WEIGHTS) for m in (first, second, mean))
    for key, weight in found.items():
        expected = (one[key].float() + two[key].float()) / 2
        assert weight.float().numpy() == pytest.approx(expected.numpy(), rel=2e-3, abs=1e-6)
    assert any(not one[key].equal(two[key]) for key in one)
    assert mean.seen == {"a" * 64, "b" * 64}
    assert (mean.name, mean.card) == ("mean", second.card)
    training = json.loads((mean.path / "bundle.json").read_text())["training"]
    assert training["mean_of"] == [first.digest, second.digest]


def test_models_of_other_networks_or_a_single_one_are_refused(tmp_path):
    first, other = tiny(tmp_path / "first", "a" * 64), tiny(tmp_path / "o", "b" * 64, features=3)
    with pytest.raises(ValueError, match=r"first: network differ"):
        mean_model([first, other], "mean", tmp_path / "mean")
    with pytest.raises(ValueError, match="two models"):
        mean_model([first], "mean", tmp_path / "mean")
    assert not (tmp_path / "mean").exists()
    with pytest.raises(ValueError, match="o: exists already"):
        mean_model([first, first], "mean", other.path)
    assert ModelBundle.read(other.path).digest == other.digest
