# SPDX-License-Identifier: Apache-2.0
"""Stages ``contrast``, ``priors`` and ``synth`` from one end to the other."""

import csv
import json
import os

import nibabel as nib
import numpy as np
import pytest

from brainseg_bids.contrast.measured import ContrastStatistics
from brainseg_bids.contrast.prior import ContrastPrior
from brainseg_bids.images import write_label_map, write_volume
from tests.fakes import dataset
from tests.phantom.head import INTENSITY, phantom_head, phantom_image

HEAD = phantom_head()
NAMES = ("sub-01_T1w", "sub-02_T1w", "sub-03_T1w")


def give_heads(root, *names: str) -> tuple[str, ...]:
    """Phantom heads as a dataset, and their maps; arguments that take the maps."""
    data = dataset.write_dataset(root / "data", *names)
    maps = root / "maps"
    maps.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        path = data / name.split("_")[0] / "anat" / f"{name}.nii.gz"
        image = phantom_image(HEAD, np.random.default_rng(number)) * (1 + 0.1 * number)
        write_volume(image.astype(np.float32), HEAD.grid, path)
        path.with_suffix("").with_suffix(".json").write_text('{"MagneticFieldStrength": 7}')
        write_label_map(HEAD, maps / f"{name.split('_')[0]}.nii.gz")
    return ("-d", f"fullhead={maps}")


@pytest.fixture(scope="module")
def finished(lasting_app):
    given = give_heads(lasting_app.root, *NAMES)
    return lasting_app("--stages", "contrast", *given)


@pytest.fixture(scope="module")
def pooled(finished, lasting_app):
    return lasting_app("--stages", "priors", level="group")


def anat(done, ending: str, subject: str = "01"):
    return done.output / f"sub-{subject}" / "anat" / f"sub-{subject}_seg-fullhead_{ending}"


def test_each_image_is_measured_with_the_given_labels(finished):
    assert finished.code == 0, finished.log
    names = [name for name in finished.files if name.startswith("sub-02/")]
    assert names == [
        "sub-02/anat/sub-02_seg-fullhead_desc-contrast_morph.json",
        "sub-02/anat/sub-02_seg-fullhead_desc-contrast_morph.tsv",
        "sub-02/figures/sub-02_seg-fullhead_desc-contrast_morph.png",
    ]
    dataset.assert_valid_bids(finished.output)
    with anat(finished, "desc-contrast_morph.tsv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file, delimiter="\t")}
    for name in ("Left-Cerebral-White-Matter", "Right-Cerebral-Cortex", "Other-Tissues"):
        truth = INTENSITY[name.removeprefix("Left-").removeprefix("Right-")]
        assert float(rows[name]["location"]) == pytest.approx(truth, abs=4)


def test_the_json_holds_all_statistics_and_where_they_come_from(finished):
    said = json.loads(anat(finished, "desc-contrast_morph.json").read_text())
    found = ContrastStatistics.from_json(json.dumps(said["Statistics"]))
    assert found["Left-Thalamus"].voxels > 0
    assert said["Contrast"]["MagneticFieldStrength"] == 7
    assert said["LabelsOf"] == "bids:fullhead:sub-01.nii.gz"
    page = (finished.output / "sub-01.html").read_text()
    assert "bids:fullhead:sub-01.nii.gz" in page
    assert "Left-Thalamus" in page


def test_a_second_run_does_nothing(finished, lasting_app):
    again = lasting_app("--stages", "contrast", "-d", f"fullhead={lasting_app.root / 'maps'}")
    assert again.code == 0
    assert "reused" in again.log


def test_own_segmentations_are_used_if_there_is_nothing_else(app):
    give_heads(app.root, "sub-01_T1w")
    done = app("--stages", "segment", "contrast")
    assert done.code == 0, done.log
    name = "sub-01/anat/sub-01_seg-brainseg_desc-contrast_morph.json"
    assert json.loads((done.output / name).read_text())["LabelsTool"] == "model"


def test_an_image_without_labels_is_one_clear_line_and_the_others_go_on(app):
    given = give_heads(app.root, "sub-01_T1w", "sub-02_T1w")
    (app.root / "maps" / "sub-02.nii.gz").unlink()
    done = app("--stages", "contrast", *given)
    assert done.code == 1
    assert "no label map" in done.log
    assert "sub-02 T1w contrast" in done.log
    assert anat(done, "desc-contrast_morph.tsv").is_file()


def test_a_map_on_another_grid_is_resampled_and_said_so(app):
    given = give_heads(app.root, "sub-01_T1w")
    other = phantom_head(shape=(40, 50, 46), voxel_size_mm=4.6)
    write_label_map(other, app.root / "maps" / "sub-01.nii.gz")
    done = app("--stages", "contrast", *given)
    assert done.code == 0, done.log
    assert "it was resampled" in done.log


@pytest.mark.parametrize(
    ("values", "message"),
    [(7.0, "constant"), (np.nan, "NaN")],
)
def test_an_image_that_shows_nothing_is_refused(app, values, message):
    given = give_heads(app.root, "sub-01_T1w")
    path = app.root / "data" / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    write_volume(np.full(HEAD.grid.shape, values, np.float32), HEAD.grid, path)
    done = app("--stages", "contrast", *given)
    assert done.code == 1
    assert message in done.log
    assert not anat(done, "desc-contrast_morph.tsv").exists()


def test_unknown_labels_to_measure_with_are_refused(app):
    give_heads(app.root, "sub-01_T1w")
    done = app("--stages", "contrast", "--labels", "mine")
    assert done.code == 2
    assert "--labels mine" in done.log


def test_priors_are_pooled_by_contrast(pooled):
    assert pooled.code == 0, pooled.log
    prior = ContrastPrior.read(pooled.output / "priors" / "contrast-T1w+7T+4mm_prior.json")
    assert (prior.n_images, prior.n_subjects) == (3, 3)
    white, grey = prior["Left-Cerebral-White-Matter"], prior["Left-Cerebral-Cortex"]
    assert white.mean > grey.mean
    assert "contrast-T1w+7T+4mm_recipe.toml" in {
        path.name for path in (pooled.output / "priors").iterdir()
    }
    page = (pooled.output / "group_priors.html").read_text()
    assert "T1w+7T+4mm" in page


def test_what_one_contrast_is_can_be_said(pooled, lasting_app):
    done = lasting_app("--stages", "priors", "--contrast-by", "Suffix", level="group")
    assert done.code == 0, done.log
    assert (done.output / "priors" / "contrast-T1w_prior.json").is_file()
    wrong = lasting_app("--stages", "priors", "--contrast-by", "Colour", level="group")
    assert wrong.code == 2
    assert "--contrast-by Colour" in wrong.log


@pytest.mark.parametrize(
    ("stage", "before"),
    [("priors", "--stages segment contrast"), ("synth", "--stages priors")],
)
def test_a_stage_without_results_of_the_one_before_says_what_to_run(app, stage, before):
    app.images("sub-01_T1w")
    done = app("--stages", stage, level="group")
    assert done.code == 2
    assert before in done.log


def test_pairs_are_previewed_and_exported_and_can_be_made_again(pooled, lasting_app):
    given = ("-d", f"fullhead={lasting_app.root / 'maps'}", "--prior", "T1w+7T+4mm")
    done = lasting_app("--stages", "synth", *given, "--pairs", "2", level="group")
    assert done.code == 0, done.log
    root = done.output / "synth" / "contrast-T1w+7T+4mm_kappa-1"
    image = root / "sub-00001" / "anat" / "sub-00001_T1w.nii.gz"
    dataset.assert_valid_bids(root)
    dataset.assert_valid_bids(done.output)
    first = np.asanyarray(nib.load(image).dataobj)
    assert first.std() > 0.05
    image.unlink()
    left = image.with_name(f".sub-00001_T1w.{'a' * 32}.nii.gz")
    left.write_bytes(b"of a process that was killed long ago")
    os.utime(left, (0, 0))
    labels = root / "sub-00001" / "anat" / "sub-00001_seg-brainseg_dseg.nii.gz"
    before = np.asanyarray(nib.load(labels).dataobj)
    again = lasting_app("--stages", "synth", *given, "--pairs", "2", level="group")
    assert again.code == 0
    assert not left.exists()
    assert np.array_equal(np.asanyarray(nib.load(image).dataobj), first)
    assert np.array_equal(np.asanyarray(nib.load(labels).dataobj), before)


def test_the_dial_changes_what_is_drawn(pooled, lasting_app):
    given = ("-d", f"fullhead={lasting_app.root / 'maps'}", "--prior", "T1w+7T+4mm")
    done = lasting_app("--stages", "synth", *given, "--pairs", "1", "--kappa", "0", level="group")
    assert done.code == 0, done.log
    digests = set()
    for kappa in ("0", "1"):
        root = done.output / "synth" / f"contrast-T1w+7T+4mm_kappa-{kappa}"
        said = json.loads((root / "sub-00000" / "anat" / "sub-00000_T1w.json").read_text())
        digests.add(said["SpaceDigest"])
    assert len(digests) == 2


def test_pairs_of_another_origin_are_not_mixed(pooled, lasting_app):
    given = ("-d", f"fullhead={lasting_app.root / 'maps'}", "--prior", "T1w+7T+4mm")
    one = ("--stages", "synth", *given, "--pairs", "1", "--kappa", "0.25")
    assert lasting_app(*one, level="group").code == 0
    other = lasting_app(*one, "--seed", "9", level="group")
    assert other.code == 2
    assert "another seed" in other.log


def test_held_out_participants_lend_neither_statistics_nor_maps(pooled, lasting_app):
    given = ("-d", f"fullhead={lasting_app.root / 'maps'}", "--contrast-by", "Suffix")
    done = lasting_app(
        "--stages", "priors", "synth", *given, "--prior", "T1w", "--participant-label", "01", "02",
        level="group",
    )  # fmt: skip
    assert done.code == 0, done.log
    assert "2 label map(s)" in done.log
    prior = ContrastPrior.read(done.output / "priors" / "contrast-T1w_prior.json")
    assert {said["subject"] for said in prior.images} == {"01", "02"}


def test_damaged_statistics_are_made_again(finished, lasting_app):
    path = anat(finished, "desc-contrast_morph.json", "03")
    said = json.loads(path.read_text())
    path.write_text(json.dumps(said | {"Statistics": {"table": "fullhead"}}))
    given = ("-d", f"fullhead={lasting_app.root / 'maps'}", "--participant-label", "03")
    again = lasting_app("--stages", "contrast", *given)
    assert again.code == 0, again.log
    assert "statistics are damaged" in again.log
    assert "labels" in json.loads(path.read_text())["Statistics"]


def test_files_that_are_no_label_maps_are_not_taken_for_heads(pooled, lasting_app):
    folder = lasting_app.root / "derived"
    home = folder / "sub-01" / "anat"
    home.mkdir(parents=True)
    write_label_map(HEAD, home / "sub-01_seg-fullhead_dseg.nii.gz")
    write_volume(np.ones(HEAD.grid.shape, np.float32), HEAD.grid, home / "sub-01_T1w.nii.gz")
    done = lasting_app(
        "--stages", "synth", "-d", f"fullhead={folder}", "--prior", "T1w+7T+4mm", "--kappa", "0.3",
        level="group",
    )  # fmt: skip
    assert done.code == 0, done.log
    assert "1 label map(s)" in done.log
