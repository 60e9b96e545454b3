# SPDX-License-Identifier: Apache-2.0
"""A dataset, a stand-in model, and plans for them."""

import pytest

from brainseg_bids.bids.inputs import find_subjects
from brainseg_bids.nets.bundle import ModelBundle
from brainseg_bids.stages.base import ExecutionOptions
from brainseg_bids.stages.segment import Model, plan_segment
from tests.fakes import dataset


@pytest.fixture(scope="session", autouse=True)
def _impatient(impatient_workflows) -> None:
    """For every test of this folder."""


@pytest.fixture
def data(tmp_path):
    return dataset.write_dataset(
        tmp_path / "data", "sub-01_T1w", "sub-01_T2w", "sub-02_ses-A_acq-x_run-1_T1w"
    )


@pytest.fixture
def model(tmp_path):
    bundle = ModelBundle.read(dataset.write_bundle(tmp_path / "model"))
    names = tuple(label.name for label in bundle.table)
    return Model(bundle.path, bundle.name, bundle.digest, bundle.contrasts, names)


@pytest.fixture
def plans(data, model, tmp_path):
    """Plans of both participants; ``plans(probseg=True)`` wants probabilities too."""

    def make(*labels, models=(model,), **options):
        return [
            plan_segment(
                subject, bids_dir=data, output_dir=tmp_path / "out", models=models, **options
            )
            for subject in find_subjects(data, labels or ["01", "02"])
        ]

    return make


@pytest.fixture
def how(model, tmp_path):
    return ExecutionOptions(
        output_dir=tmp_path / "out",
        tables=dict.fromkeys(("brainseg", "fullhead"), model.path / "labels.tsv"),
        program=dataset.PREDICT,
    )  # fmt: skip
