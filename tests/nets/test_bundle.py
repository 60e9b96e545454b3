# SPDX-License-Identifier: Apache-2.0
"""A bundle is whole, or it is refused."""

from __future__ import annotations

import json

import pytest
import torch

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.nets.architectures import NetSpec, build
from brainseg_bids.nets.bundle import (
    DEFAULT_MODEL,
    BundleError,
    ModelBundle,
    find_bundle,
    packaged_models,
    write_bundle,
)


@pytest.fixture
def bundle(tmp_path) -> ModelBundle:
    torch.manual_seed(0)
    return write_bundle(
        tmp_path / "mine",
        name="mine",
        net=build(NetSpec("dynunet", 43, 2, 8, {"widths": [8, 16, 16]})),
        table=LabelTable.packaged("brainseg"),
        voxel_size_mm=4.0,
        patch_vox=(32, 32, 32),
        contrasts=("T1w",),
        card="# mine\n",
        training={},
    )


def test_what_is_written_is_read(bundle):
    again = ModelBundle.read(bundle.path)
    assert again == bundle
    assert again.table == LabelTable.packaged("brainseg")
    assert (again.voxel_size_mm, again.patch_vox, again.contrasts) == (4.0, (32, 32, 32), ("T1w",))


def test_a_loaded_network_says_what_the_saved_one_said(bundle):
    torch.manual_seed(0)
    net = build(NetSpec(**bundle.net)).eval()
    image = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(bundle.load()(image), net(image), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("name", ["weights.safetensors", "labels.tsv", "README.md"])
def test_a_changed_file_is_refused_by_name(bundle, name):
    with (bundle.path / name).open("ab") as file:
        file.write(b"\n")
    with pytest.raises(BundleError, match=f"{name} is not the file"):
        ModelBundle.read(bundle.path)


def test_a_missing_file_is_refused_by_name(bundle):
    (bundle.path / "labels.tsv").unlink()
    with pytest.raises(BundleError, match=r"labels\.tsv is missing"):
        ModelBundle.read(bundle.path)


def test_weights_of_another_network_are_refused(bundle):
    with pytest.raises(ValueError, match=r"another shape|names differ"):
        bundle.load().load_weights(
            build(NetSpec("dynunet", 43, 2, 8, {"widths": [8, 24, 16]})).weights()
        )
    with pytest.raises(ValueError, match="names differ"):
        bundle.load().load_weights({})


@pytest.mark.parametrize(
    ("value", "says"),
    [(7e4, r"reaches 7e\+04"), (float("nan"), "is not finite"), (float("-inf"), "is not finite")],
)
def test_a_weight_that_half_precision_cannot_hold_is_refused_and_nothing_is_written(
    tmp_path, value, says
):
    net = build(NetSpec("dynunet", 43, 2, 8, {"widths": [8, 16, 16]}))
    with torch.no_grad():
        net.head.bias[3] = value
    with pytest.raises(
        BundleError, match=rf"new: weight head\.bias {says}.*no bundle was written"
    ):
        write_bundle(
            tmp_path / "new",
            name="new",
            net=net,
            table=LabelTable.packaged("brainseg"),
            voxel_size_mm=4.0,
            patch_vox=(32, 32, 32),
            contrasts=("T1w",),
            card="",
            training={},
        )
    assert list(tmp_path.iterdir()) == []


def test_facts_of_the_training_are_kept_as_they_are(bundle, tmp_path):
    facts = {"plan": {"steps": 7, "spaces": {"t1w": 0.8}}, "maps": ["sub-01", "sub-02"]}
    written = write_bundle(
        tmp_path / "new",
        name="new",
        net=bundle.load(),
        table=bundle.table,
        voxel_size_mm=4.0,
        patch_vox=(32, 32, 32),
        contrasts=("T1w",),
        card="",
        training=facts,
    )
    assert json.loads((written.path / "bundle.json").read_text())["training"] == facts


def test_a_newer_format_is_refused_with_the_remedy(bundle):
    manifest = json.loads((bundle.path / "bundle.json").read_text())
    (bundle.path / "bundle.json").write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(BundleError, match="format 99 is not 1"):
        ModelBundle.read(bundle.path)


@pytest.mark.parametrize("text", ["[]", "{}", "not json", '{"format": 1, "sha256": {}}'])
def test_a_manifest_that_is_none_is_refused(bundle, text):
    (bundle.path / "bundle.json").write_text(text)
    with pytest.raises(BundleError, match=r"mine: "):
        ModelBundle.read(bundle.path)


def test_weights_that_the_manifest_leaves_out_are_refused(bundle):
    manifest = json.loads((bundle.path / "bundle.json").read_text())
    del manifest["sha256"]["weights.safetensors"]
    (bundle.path / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"says nothing of weights\.safetensors"):
        ModelBundle.read(bundle.path)


def test_a_model_is_found_by_path_or_refused_with_the_packaged_names(bundle):
    assert find_bundle(bundle.path) == bundle.path.resolve()
    with pytest.raises(BundleError, match="no-such-model"):
        find_bundle("no-such-model")


def test_the_default_model_comes_with_the_package():
    assert DEFAULT_MODEL in packaged_models()
    read = ModelBundle.read(find_bundle(DEFAULT_MODEL))
    assert read.table == LabelTable.packaged("brainseg")
    assert read.net["n_labels"] == len(read.table)
    assert (read.path / "weights.safetensors").stat().st_size < 25e6
    assert "must not" in read.card
