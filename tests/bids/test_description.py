# SPDX-License-Identifier: Apache-2.0
"""What the derivative says about itself."""

import json

import pytest

from brainseg_bids import __version__
from brainseg_bids.anatomy.labels import Label, LabelTable
from brainseg_bids.bids.description import (
    write_description,
    write_label_tables,
    write_model_description,
)
from brainseg_bids.documents import InputError
from tests.fakes.dataset import assert_valid_bids, write_bundle, write_dataset


def test_the_description_names_the_software_and_where_the_data_came_from(tmp_path):
    data = write_dataset(tmp_path / "data", "sub-01_T1w")
    output = data / "derivatives" / "brainseg"
    output.mkdir(parents=True)
    description = json.loads(write_description(data, output).read_text())
    assert description["DatasetType"] == "derivative"
    assert description["GeneratedBy"][0]["Version"] == __version__
    assert description["DatasetLinks"] == {"raw": "../.."}
    assert "Phantoms" in description["Name"]


def test_a_broken_description_of_the_input_is_no_obstacle(tmp_path):
    (tmp_path / "dataset_description.json").write_text("[1, ")
    (tmp_path / "out").mkdir()
    assert write_description(tmp_path, tmp_path / "out").is_file()


def test_label_tables_are_written_once_and_other_labels_are_refused(tmp_path):
    table = LabelTable.packaged("brainseg")
    paths = write_label_tables(tmp_path, {"brainseg": table})
    assert LabelTable.read(paths["brainseg"]) == table
    write_label_tables(tmp_path, {"brainseg": table})
    other = LabelTable([Label(0, "Background"), Label(2, "Something-Else")])
    with pytest.raises(InputError, match="another output_dir"):
        write_label_tables(tmp_path, {"brainseg": other})
    assert LabelTable.read(paths["brainseg"]) == table


def test_names_with_odd_characters_survive_in_the_label_table(tmp_path):
    table = LabelTable([Label(0, "Background"), Label(2, "Ää \"x\" <b>\t&; 'y' 名")])
    paths = write_label_tables(tmp_path, {"brainseg": table})
    assert LabelTable.read(paths["brainseg"]) == table


def test_the_folder_of_a_trained_model_is_a_dataset(tmp_path):
    write_bundle(tmp_path / "bundle")
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "seen.json").write_text("[]")
    write_model_description(tmp_path, "mine")
    assert "Model mine" in (tmp_path / "README.md").read_text()
    assert_valid_bids(tmp_path)


@pytest.mark.parametrize(("given", "kept"), [("10.1/x", None), ("doi:10.1/x", "doi:10.1/x")])
def test_a_doi_is_kept_in_the_form_that_bids_wants(tmp_path, given, kept):
    raw, output = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    (raw / "dataset_description.json").write_text(json.dumps({"DatasetDOI": given}))
    description = json.loads(write_description(raw, output).read_text())
    assert description["SourceDatasets"][0].get("DOI") == kept
