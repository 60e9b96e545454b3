# SPDX-License-Identifier: Apache-2.0
"""What is pooled of images, and what is said about them."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from brainseg_bids.files import sha256
from brainseg_bids.stages.measured import Measured, find_measured, outdated, warn_of_outdated
from brainseg_bids.stages.pooling import (
    make_priors,
    mixed,
    read_priors,
    stripped_images,
    write_page,
)
from tests.contrast.made_up import TABLE, both_sides, image_of


def statistics_file(output_dir: Path, name: str, voxels: str, **more) -> None:
    """Contrast statistics of a T1w image as the participant level leaves them."""
    path = output_dir / "sub-1" / "anat" / f"{name}_seg-brainseg_desc-contrast_morph.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    said = {"Statistics": asdict(image_of(both_sides())), "VoxelHash": voxels}
    path.write_text(json.dumps(said | {"Contrast": {"Suffix": "T1w"}} | more))


@pytest.mark.input(
    "results",
    "contrast statistics of the same image under two names",
    "priors: pooled once; a warning names both",
    0,
)
def test_a_copy_of_an_image_does_not_count_as_another_participant(tmp_path, caplog):
    for name, voxels in {"sub-1": "a", "sub-2": "a", "sub-3": "b"}.items():
        statistics_file(tmp_path, name, voxels)
    assert [one.image for one in find_measured(tmp_path)] == ["sub-1", "sub-3"]
    assert "sub-2: has the same voxels as sub-1" in caplog.text


@pytest.mark.input(
    "results",
    "contrast statistics whose label map was made again since",
    "priors: not pooled; a warning names the map",
    0,
)
def test_statistics_of_an_earlier_label_map_are_not_pooled(tmp_path, caplog):
    labels = tmp_path / "labels.nii.gz"
    labels.write_bytes(b"first")
    said = {"LabelsOf": "bids::labels.nii.gz", "LabelsSHA256": sha256(labels)}
    statistics_file(tmp_path, "sub-1", "a", **said)
    statistics_file(tmp_path, "sub-2", "b")
    found = find_measured(tmp_path, bids_dir=tmp_path)
    assert [one.image for one in found] == ["sub-1", "sub-2"]
    labels.write_bytes(b"second")
    found = find_measured(tmp_path, bids_dir=tmp_path)
    assert [one.image for one in found] == ["sub-2"]
    assert f"{labels} has changed" in caplog.text


@pytest.mark.input(
    "results",
    "priors of T1w and T2w images together (--contrast-by without Suffix)",
    "pooled; JSON, log and page name the images of each, the prior is of the most frequent",
    0,
)
def test_a_prior_of_several_suffixes_is_told(tmp_path, monkeypatch):
    group = measured(False, False, False)
    t2w = {"Contrast": {"Suffix": "T2w", "VoxelSizeMm": 1.0}}
    group = [replace(group[0], metadata=group[0].metadata | t2w), *group[1:]]
    monkeypatch.setattr("brainseg_bids.stages.pooling.find_measured", lambda *_, **__: group)
    (made,) = make_priors(tmp_path, bids_dir=tmp_path, keys=()).values()
    assert made[0].metadata["Suffix"] == "T1w"
    (told,) = [note for note in made[0].warnings if "several suffixes" in note]
    assert "1 T2w (sub-0); 2 T1w (sub-1, sub-2)" in told
    by = [{"LabelsTool": tool} for tool in ("model", "fullhead", "model")]
    mixed_up = [replace(x, metadata=x.metadata | y) for x, y in zip(group[1:], by, strict=False)]
    assert mixed(mixed_up) == [note for note in mixed(mixed_up) if "1 model (sub-1)" in note]
    assert len(mixed(mixed_up)) == 1


def measured(*stripped: bool) -> list[Measured]:
    """Statistics of one image of each participant; stripped ones have the brain alone."""
    brain = {name: at for name, at in both_sides().items() if TABLE[name].is_brain}
    return [
        Measured(
            f"sub-{n}",
            str(n),
            replace(image_of(brain if bare else both_sides()), stripped=bare),
            {"Input": f"bids::sub-{n}.nii.gz", "Contrast": {"Suffix": "T1w"}},
        )
        for n, bare in enumerate(stripped)
    ]


@pytest.mark.parametrize(
    ("stripped", "words"),
    [
        ((False, False), ""),
        ((True, False, False), "1 of 3 images are skull-stripped"),
        ((True, True), "All images are skull-stripped"),
    ],
)
def test_stripped_images_are_named(stripped, words):
    notes = stripped_images(measured(*stripped))
    assert [words in note for note in notes] == [True] * bool(words)


@pytest.mark.input(
    "results",
    "priors of whole heads and stripped brains together",
    "stripped ones count for brain classes only; share and names in JSON, log and page",
    0,
)
def test_a_stripped_image_lends_nothing_to_bone_and_skin(tmp_path, monkeypatch):
    group = measured(True, False, False)
    monkeypatch.setattr("brainseg_bids.stages.pooling.find_measured", lambda *_, **__: group)
    (made,) = make_priors(tmp_path, bids_dir=tmp_path, keys=("Suffix",)).values()
    prior = made[0]
    assert prior.metadata["SkullStripped"] == pytest.approx(1 / 3)
    assert prior["Skin"].images == prior["Bone-Cortical"].images == 2
    assert prior["Left-Thalamus"].images == 3
    assert [image["stripped"] for image in prior.images] == [True, False, False]
    assert any("skull-stripped" in warning for warning in prior.warnings)


def change_labels(root: Path) -> None:
    (root / "labels.nii.gz").write_bytes(b"second")


def measure_again(root: Path) -> None:
    path = next(root.glob("sub-*/anat/sub-1_*.json"))
    statistics = asdict(image_of(both_sides(), gain=2))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"Statistics": statistics}))


def remove_statistics(root: Path) -> None:
    next(root.glob("sub-*/anat/sub-1_*.json")).unlink()


def other_version(root: Path) -> None:
    """The prior as if an earlier version had pooled it."""
    path = root / "priors" / "contrast-T1w_prior.json"
    said = json.loads(path.read_text())
    said["Metadata"]["BrainsegVersion"] = "0.0.1"
    path.write_text(json.dumps(said))


@pytest.mark.input(
    "results",
    "a prior of an earlier run whose images, labels, statistics or version are others by now",
    "a warning names it in priors, synth and train, and on the page",
    0,
)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda root: None, ""),
        (lambda root: (root / "sub-1.nii.gz").write_bytes(b"other"), "sub-1.nii.gz has changed"),
        (lambda root: (root / "sub-1.nii.gz").unlink(), "sub-1.nii.gz is not there"),
        (change_labels, "labels.nii.gz has changed"),
        (measure_again, "sub-1: it was measured again"),
        (remove_statistics, "sub-1: its statistics are no longer there"),
        (other_version, "version 0.0.1"),
    ],
)
def test_a_prior_that_its_images_no_longer_give_is_named(tmp_path, caplog, change, words):
    image, labels = tmp_path / "sub-1.nii.gz", tmp_path / "labels.nii.gz"
    image.write_bytes(b"image")
    labels.write_bytes(b"first")
    said = {
        "Input": "bids:raw:sub-1.nii.gz",
        "InputSHA256": sha256(image),
        "LabelsOf": "bids::labels.nii.gz",
        "LabelsSHA256": sha256(labels),
    }
    statistics_file(tmp_path, "sub-1", "a", **said)
    statistics_file(tmp_path, "sub-2", "b", Input="bids::sub-2.nii.gz")
    make_priors(tmp_path, bids_dir=tmp_path, keys=("Suffix",))
    change(tmp_path)
    priors = [prior for _, prior in read_priors(tmp_path).values()]
    found = outdated(priors, tmp_path, bids_dir=tmp_path)
    page = write_page(tmp_path, "Heads", bids_dir=tmp_path).read_text()
    assert list(found) == ["T1w"] * bool(words)
    assert words in found.get("T1w", "")
    assert ("This prior is outdated" in page) == bool(words)
    warn_of_outdated(priors, tmp_path, bids_dir=tmp_path)
    assert ("remove priors/contrast-T1w_" in caplog.text) == bool(words)


def test_a_prior_without_its_statistics_beside_it_is_taken_as_it_is(tmp_path):
    statistics_file(tmp_path, "sub-1", "a")
    make_priors(tmp_path, bids_dir=tmp_path, keys=("Suffix",))
    priors = [prior for _, prior in read_priors(tmp_path).values()]
    assert outdated(priors, tmp_path / "elsewhere") == {}


@pytest.mark.input(
    "results",
    "a copy of a prior under another file name",
    "a prior of that name; the page shows both",
    0,
)
def test_a_copy_of_a_prior_is_called_as_its_file(tmp_path, monkeypatch):
    group = measured(False)
    monkeypatch.setattr("brainseg_bids.stages.pooling.find_measured", lambda *_, **__: group)
    make_priors(tmp_path, bids_dir=tmp_path, keys=("Suffix",))
    for end in ("json", "tsv"):
        path = tmp_path / "priors" / f"contrast-T1w_prior.{end}"
        shutil.copy(path, path.with_name(f"contrast-before_prior.{end}"))
    found = read_priors(tmp_path)
    assert {name: prior.name for name, (_, prior) in found.items()} == {
        "T1w": "T1w",
        "before": "before",
    }
    page = write_page(tmp_path, "Heads").read_text()
    assert "before" in page
