# SPDX-License-Identifier: Apache-2.0
"""A bundle is whole, or it is refused."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.nets.architectures import build
from brainseg_bids.nets.bundle import (
    DEFAULT_MODEL,
    BundleError,
    ModelBundle,
    add_confidence,
    find_bundle,
    packaged_models,
    write_bundle,
)
from brainseg_bids.nets.spec import NetSpec
from brainseg_bids.programs import check_model
from brainseg_bids.programs.bundle import _replacing


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
    net = build(NetSpec.from_dict(bundle.net)).eval()
    image = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(bundle.load()(image), net(image), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("name", ["weights.safetensors", "labels.tsv", "README.md"])
def test_a_changed_file_is_refused_by_name(bundle, name):
    with (bundle.path / name).open("ab") as file:
        file.write(b"\n")
    with pytest.raises(BundleError, match=f"{name} is not"):
        ModelBundle.read(bundle.path)


def test_a_file_that_may_not_be_read_is_named(bundle, monkeypatch):
    original = Path.read_bytes

    def refused(path):
        if path.name == "labels.tsv":
            raise PermissionError(13, "Permission denied")
        return original(path)

    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(BundleError, match=r"labels.tsv: .*Permission denied"):
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
    with pytest.raises(BundleError, match=rf"new: weight head\.bias {says}.*no bundle"):
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
    with pytest.raises(BundleError, match="format 99"):
        ModelBundle.read(bundle.path)


def test_confidence_is_part_of_the_bundle_and_of_its_digest(bundle):
    assert bundle.confidence == ""
    first, again = (add_confidence(bundle.path, text) for text in ("{}", '{"a": 1}'))
    assert (first.confidence, again.confidence) == ("{}", '{"a": 1}')
    assert len({bundle.digest, first.digest, again.digest}) == 3
    (bundle.path / "confidence.json").write_text("{}")
    with pytest.raises(BundleError, match=r"confidence\.json "):
        ModelBundle.read(bundle.path)


def test_interrupted_while_confidence_is_written_it_is_a_sound_bundle_without(bundle, monkeypatch):
    add_confidence(bundle.path, "{}")
    write_text = Path.write_text

    def full(path, *text, **options):
        if path.name == "confidence.json":
            path.write_bytes(b"ha")
            raise OSError(28, "No space left on device")
        return write_text(path, *text, **options)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        add_confidence(bundle.path, '{"a": 1}')
    assert ModelBundle.read(bundle.path).confidence == ""


@pytest.mark.parametrize("text", ["[]", "{}", "not json", '{"format": 1, "sha256": {}}'])
def test_a_manifest_that_is_none_is_refused(bundle, text):
    (bundle.path / "bundle.json").write_text(text)
    with pytest.raises(BundleError, match=r"mine: "):
        ModelBundle.read(bundle.path)


def test_weights_that_the_manifest_leaves_out_are_refused(bundle):
    manifest = json.loads((bundle.path / "bundle.json").read_text())
    del manifest["sha256"]["weights.safetensors"]
    (bundle.path / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"weights\.safetensors"):
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


def rewritten(bundle, *, labels: str | None = None, weights=None, **manifest):
    """The bundle with other content and digests that fit, as a wrong tool would leave it."""
    if labels is not None:
        (bundle.path / "labels.tsv").write_text(labels)
    if isinstance(weights, bytes):
        (bundle.path / "weights.safetensors").write_bytes(weights)
    elif weights is not None:
        save_file(weights, bundle.path / "weights.safetensors")
    path = bundle.path / "bundle.json"
    said = json.loads(path.read_text()) | manifest
    said["sha256"] = {
        name: hashlib.sha256((bundle.path / name).read_bytes()).hexdigest()
        for name in said["sha256"]
    }
    path.write_text(json.dumps(said))
    return bundle.path


HEADER = "index\tname\tcolor\n"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        pytest.param(
            {"contrasts": "T1w"},
            "contrasts is 'T1w': give a list",
            marks=pytest.mark.input(
                "training",
                "bundle whose `contrasts`, `name` or `net` is of another type",
                "this bundle is damaged, with file and key",
                2,
            ),
        ),
        ({"contrasts": [1]}, "contrasts has an item"),
        ({"name": ["x"]}, "name is"),
        ({"name": None}, "name is null"),
        ({"net": [1]}, "net is"),
        ({"net": {"architecture": "dynunet", "features": "many"}}, "net: features"),
        ({"net": {"architecture": "dynunet", "options": {"widths": [1e9]}}}, "options has widths"),
        ({"seen": 3}, "seen is 3"),
        ({"label_table": 3}, "label_table is 3"),
        ({"voxel_size_mm": 0}, "voxel_size_mm is 0"),
        ({"voxel_size_mm": "1"}, "voxel_size_mm is '1'"),
        pytest.param(
            {"patch_vox": [10_000, 10_000, 10_000]},
            "patch_vox",
            marks=pytest.mark.input(
                "training",
                "bundle with a patch of 10,000 voxels, of two edges, or of none of its network's",
                "this bundle is damaged, with file and key",
                2,
            ),
        ),
        ({"patch_vox": [512, 512, 512]}, "patch_vox is larger than a head"),
        ({"patch_vox": [32, 32]}, "give a list of 3"),
        ({"patch_vox": 32}, "give a list of 3"),
        pytest.param(
            {"labels": "code\tlabel\n0\tx\n"},
            "column 'index' is missing",
            marks=pytest.mark.input(
                "training",
                "bundle whose label table has a wrong header, no rows or no colours",
                "this bundle is damaged, with file and line",
                2,
            ),
        ),
        ({"labels": HEADER}, "no label"),
        ({"labels": f"{HEADER}0\tBackground\t#000000\n"}, "lacks the background .* all other"),
        ({"labels": f"{HEADER}0\tBackground\t#000000\n2\tWM\tgrue\n"}, "43"),
        ({"labels": f"{HEADER}0\tBackground\t#000000\nx\tWM\t#ffffff\n"}, "line 3"),
        ({"weights": b"none"}, "weights.safetensors cannot be read"),
        ({"weights": (2**60).to_bytes(8, "little") + b"{}"}, "weights.safetensors cannot be read"),
        pytest.param(
            {"weights": {"a": torch.tensor([1.0, float("nan")])}},
            "weight a is not finite",
            marks=pytest.mark.input(
                "training",
                "bundle with NaN weights, or weights of another network",
                "this bundle is damaged, with the weight",
                2,
            ),
        ),
    ],
)
def test_a_damaged_bundle_is_told_in_one_line_when_it_is_read(bundle, change, named):
    with pytest.raises(BundleError, match=named) as caught:
        ModelBundle.read(rewritten(bundle, **change))
    assert "damaged" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_colour_that_is_none_is_told(bundle):
    text = (bundle.path / "labels.tsv").read_text().replace("#", "", 1).replace("#", "zz", 1)
    with pytest.raises(BundleError, match="color of"):
        ModelBundle.read(rewritten(bundle, labels=text))


def test_a_manifest_that_is_no_json_is_told(bundle):
    for text in ("{", "[1]", '{"format": 1, "a": NaN}', "[" * 100_000, '{"name": "\\ud800"}'):
        (bundle.path / "bundle.json").write_text(text)
        with pytest.raises(BundleError, match=r"bundle\.json"):
            ModelBundle.read(bundle.path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"weights": {"a": torch.zeros(1)}}, "weights are of another network"),
        ({"net": {"architecture": "vnet", "n_labels": 43}}, "net cannot be built .*vnet"),
        ({"net": {"architecture": "dynunet", "n_labels": 43, "depth": 3}}, "net cannot be built"),
        (
            {"net": {"architecture": "dynunet", "n_labels": 43, "options": {"widths": []}}},
            "net cannot be built",
        ),
        ({"net": {"architecture": "dynunet", "n_labels": 43, "features": 16}}, "another network"),
        ({"patch_vox": [33, 32, 32]}, "multiples of 8"),
    ],
)
def test_weights_and_windows_are_checked_against_the_network(bundle, change, named):
    read = ModelBundle.read(rewritten(bundle, **change))
    with pytest.raises(BundleError, match=named) as caught:
        read.check_network()
    assert "\n" not in str(caught.value)


def test_a_whole_bundle_passes_its_check(bundle, capsys):
    bundle.check_network()
    assert check_model.main([str(bundle.path)]) == 0
    rewritten(bundle, weights={"a": torch.zeros(1)})
    assert check_model.main([str(bundle.path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "damaged" in line


def test_what_a_killed_process_left_beside_a_bundle_goes_with_the_next(tmp_path):
    old, young, other = (tmp_path / name for name in (".mine-0123", ".mine-4567", ".yours-89ab"))
    for folder in (old, young, other):
        folder.mkdir()
    os.utime(old, (0, 0))
    os.utime(other, (0, 0))
    with _replacing(tmp_path / "mine") as fresh:
        fresh.mkdir()
    assert sorted(tmp_path.iterdir()) == [young, other, tmp_path / "mine"]
