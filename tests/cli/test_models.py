# SPDX-License-Identifier: Apache-2.0
"""Which models a run shares its images out among."""

from pathlib import Path

import pytest

from brainseg_bids.bids.names import Scan
from brainseg_bids.nets.bundle import DEFAULT_MODEL, DEFAULT_MODELS, BundleError
from brainseg_bids.settings import Settings
from brainseg_bids.stages.models import models_of
from brainseg_bids.stages.segment import model_for
from tests.fakes import dataset


def names(**choice):
    models, _ = models_of(Settings(Path("/in"), Path("/out"), **choice))
    return tuple(model.name for model in models)


def test_unless_one_is_named_the_packaged_models_share_the_images():
    assert names() == DEFAULT_MODELS


@pytest.mark.parametrize(
    ("suffix", "voxel_size_mm", "expected"),
    [
        ("T1w", 1.0, "head-1mm"),
        ("UNIT1", 0.95, "head-1mm"),
        ("T1w", 0.7, "head-0.8mm"),
        ("UNIT1", 0.6, "head-0.8mm"),
        ("FLAIR", 1.0, "head-flair"),
        ("T2w", 0.6, "head-flair"),
        ("PDw", 0.6, "head-0.8mm"),
    ],
)
def test_contrast_and_voxels_decide_which_packaged_model_it_is(
    tmp_path, suffix, voxel_size_mm, expected
):
    image = dataset.write_image(tmp_path / f"sub-1_{suffix}.nii.gz", voxel_size_mm=voxel_size_mm)
    models, _ = models_of(Settings(Path("/in"), Path("/out")))
    assert model_for(Scan.from_path(image), models).name == expected


def test_the_packaged_models_have_the_same_labels():
    # One table in the derivative's root explains the codes of all results.
    models, table = models_of(Settings(Path("/in"), Path("/out")))
    assert {model.label_names for model in models} == {tuple(label.name for label in table)}


def test_a_named_model_takes_all(tmp_path):
    assert names(model=str(dataset.write_bundle(tmp_path / "own", name="own"))) == ("own",)


def test_an_ensemble_begins_with_one_model_whatever_the_voxels(tmp_path):
    other = str(dataset.write_bundle(tmp_path / "other"))
    assert names(ensemble=(other,)) == (DEFAULT_MODEL,)


def test_a_model_that_is_not_there_is_refused():
    with pytest.raises(BundleError, match="no model"):
        names(model="nowhere")
