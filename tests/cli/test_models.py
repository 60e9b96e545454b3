# SPDX-License-Identifier: Apache-2.0
"""Which models a run shares its images out among."""

from pathlib import Path

import pytest

from brainseg_bids.cli.stages import models_of
from brainseg_bids.nets.bundle import DEFAULT_MODEL, DEFAULT_MODELS, BundleError
from brainseg_bids.settings import Settings
from tests.fakes import dataset


def names(**choice):
    models, _ = models_of(Settings(Path("/in"), Path("/out"), **choice))
    return tuple(model.name for model in models)


def test_unless_one_is_named_the_packaged_models_share_the_images():
    assert names() == DEFAULT_MODELS


def test_voxel_sizes_are_those_of_the_bundles():
    models, _ = models_of(Settings(Path("/in"), Path("/out")))
    assert [model.voxel_size_mm for model in models] == sorted(
        (model.voxel_size_mm for model in models), reverse=True
    )


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
    with pytest.raises(BundleError, match="no model of that name"):
        names(model="nowhere")
