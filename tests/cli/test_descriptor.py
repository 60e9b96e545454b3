# SPDX-License-Identifier: Apache-2.0
"""The Boutiques descriptor: accepted by ``bosh``, and what it makes of an invocation is parsed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from brainseg_bids.cli.descriptor import descriptor
from brainseg_bids.cli.parser import parse
from brainseg_bids.options import declared
from brainseg_bids.settings import Settings
from tests.fakes import dataset


def bosh(*words):
    pytest.importorskip("boutiques", reason="pip install boutiques")
    code = "import sys; sys.argv[0] = 'bosh'; from boutiques.bosh import bosh; sys.exit(bosh())"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "brainseg.json"
    path.write_text(json.dumps(descriptor()))
    return path


def test_every_option_is_in_it_once():
    ids = [one["id"] for one in descriptor()["inputs"]]
    assert len(ids) == len(set(ids)) == len(list(declared(Settings)))
    grouped = [name for group in descriptor()["groups"] for name in group["members"]]
    assert sorted(grouped) == sorted(ids)


def test_bosh_accepts_it(written):
    code, said = bosh("validate", str(written))
    assert code == 0, said
    assert "OK" in said


def test_boutiques_own_schema_accepts_it():
    jsonschema = pytest.importorskip("jsonschema")
    boutiques = pytest.importorskip("boutiques", reason="pip install boutiques")
    schema = f"{boutiques.__path__[0]}/schema/descriptor.schema.json"
    with open(schema) as file:
        rules = json.load(file)
    check = jsonschema.validators.validator_for(rules)(rules)
    assert list(check.iter_errors(descriptor())) == []
    assert list(check.iter_errors(descriptor() | {"inputs": "none"})) != []


def test_the_command_that_bosh_makes_is_the_one_that_was_meant(written, tmp_path):
    data = dataset.write_dataset(tmp_path / "data", "sub-01_T1w", "sub-02_T1w")
    wanted = {
        "bids_dir": str(data), "output_dir": str(tmp_path / "out"),
        "analysis_level": "participant", "participant_label": ["01", "02"],
        "stages": ["segment", "upsample"], "target_voxel_size_mm": [0.5, 0.5, 1.0],
        "memory_gb": "8G", "nprocs": 3, "no_test_time_flips": True, "probseg": True,
    }  # fmt: skip
    invocation = tmp_path / "invocation.json"
    invocation.write_text(json.dumps(wanted))
    code, said = bosh("exec", "simulate", str(written), "-i", str(invocation))
    assert code == 0, said
    (line,) = [line for line in said.splitlines() if line.startswith("brainseg ")]
    got = parse(line.split()[1:])
    assert got.participant_label == ("01", "02")
    assert got.target_voxel_size_mm == (0.5, 0.5, 1.0)
    assert (got.memory_gb, got.nprocs, got.test_time_flips, got.probseg) == (8.0, 3, False, True)
