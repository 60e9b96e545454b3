# SPDX-License-Identifier: Apache-2.0
"""A prior comes back from disk as it was, or not at all."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.contrast.pool import pool
from brainseg_bids.contrast.prior import ContrastPrior, Spread
from tests.contrast.made_up import TABLE, cohort, one_each


@pytest.fixture(scope="module")
def prior() -> ContrastPrior:
    statistics, _, _ = cohort(4, np.random.default_rng(5))
    return pool(
        statistics,
        name="T1w",
        table=TABLE,
        subjects=one_each(statistics),
        metadata={"MagneticFieldStrength": 7},
    )


def test_writing_and_reading_gives_the_same_prior_to_the_last_bit(prior, tmp_path):
    path = prior.write(tmp_path, brainseg_version="1.2.3")
    assert path.name == "contrast-T1w_prior.json"
    again = ContrastPrior.read(path)
    np.testing.assert_array_equal(again.correlation, prior.correlation)
    assert replace(again, correlation=None).__dict__ == replace(prior, correlation=None).__dict__
    assert again.digest == prior.digest


def test_the_table_has_a_row_for_every_label_that_people_can_read(prior, tmp_path):
    path = prior.write(tmp_path).with_suffix(".tsv")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [(int(row["index"]), row["name"]) for row in rows] == [
        (label.index, label.name) for label in TABLE
    ]
    assert all(cell not in ("", None) for row in rows for cell in row.values())
    skin = next(row for row in rows if row["name"] == "Skin")
    assert float(skin["mean"]) == prior["Skin"].mean
    assert skin["images"] == "4"
    assert skin["source"] == "measured"


def test_the_json_says_units_version_and_where_the_numbers_come_from(prior, tmp_path):
    raw = json.loads(prior.write(tmp_path, brainseg_version="1.2.3").read_text())
    assert raw["BrainsegVersion"] == "1.2.3"
    assert "255" in raw["Units"]
    assert raw["NumberOfSubjects"] == 4
    assert raw["Metadata"] == {"MagneticFieldStrength": 7}
    assert {"image", "subject"} <= set(raw["Images"][0])


def test_the_digest_is_of_the_numbers_and_not_of_the_file(prior, tmp_path):
    path = prior.write(tmp_path)
    raw = json.loads(path.read_text())
    raw["BrainsegVersion"] = "other"
    path.write_text(json.dumps(dict(reversed(raw.items())), indent=7))
    assert ContrastPrior.read(path).digest == prior.digest
    assert replace(prior, warnings=("x",), metadata=None, images=()).digest == prior.digest
    nudged = replace(prior, head_low=prior.head_low * (1 + 1e-15))
    assert nudged.digest == prior.digest


@pytest.mark.parametrize(
    "change",
    [
        {"head_low": 9.0},
        {"name": "T2w"},
        {"bias_log_sd": Spread(0.5, 0.2)},
        {"correlation": np.eye(len(TABLE))},
    ],
)
def test_another_number_is_another_digest(prior, change):
    assert replace(prior, **change).digest != prior.digest


def test_a_prior_is_refused_for_another_label_table(prior):
    prior.check_table(TABLE)
    with pytest.raises(ValueError, match="another label table") as caught:
        prior.check_table(LabelTable.packaged("tissue"))
    assert "--stages contrast priors" in str(caught.value)
    with pytest.raises(ValueError, match="Optic-Nerve"):
        prior.check_table(TABLE.subset([label.index for label in TABLE if label.index != 530]))


def _version(raw):
    return raw | {"PriorVersion": 99}


def _cut(raw):
    return raw | {"Correlation": raw["Correlation"][:-1]}


def _crooked(raw):
    matrix = np.array(raw["Correlation"])
    matrix[0, 1] = matrix[1, 0] = 5.0
    return raw | {"Correlation": matrix.tolist()}


def _no_noise(raw):
    return {key: value for key, value in raw.items() if key != "Noise"}


def _another_number(raw):
    return raw | {"HeadLow": 77.0}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_version, "version 99"),
        (_cut, "damaged"),
        (_crooked, "positive definite"),
        (_no_noise, "damaged"),
        (_another_number, "changed after it was written"),
        (lambda raw: [], "not a contrast prior"),
    ],
)
def test_a_damaged_json_file_is_refused_in_one_line(prior, tmp_path, damage, message):
    path = prior.write(tmp_path)
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=message) as caught:
        ContrastPrior.read(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace("mean_sd", "sd_mean", 1),
        lambda text: "",
        lambda text: text.replace("measured", "guessed", 1),
    ],
)
def test_a_damaged_table_is_refused_in_one_line(prior, tmp_path, damage):
    path = prior.write(tmp_path)
    table = path.with_suffix(".tsv")
    table.write_text(damage(table.read_text()))
    with pytest.raises(ValueError, match="priors") as caught:
        ContrastPrior.read(path)
    assert "\n" not in str(caught.value)


def test_missing_files_are_named(prior, tmp_path):
    with pytest.raises(ValueError, match=r"contrast-x_prior\.json"):
        ContrastPrior.read(tmp_path / "contrast-x_prior.json")
    path = prior.write(tmp_path)
    path.with_suffix(".tsv").unlink()
    with pytest.raises(ValueError, match=r"contrast-T1w_prior\.tsv: "):
        ContrastPrior.read(path)


def test_a_name_that_cannot_be_part_of_a_file_name_is_refused(prior, tmp_path):
    with pytest.raises(ValueError, match="letters, digits"):
        replace(prior, name="T1w/7T").write(tmp_path)


def test_masks_come_back_from_disk_and_count_in_the_digest_only_where_there_are_any(
    prior, tmp_path
):
    noise = replace(prior.noise, masked=0.6, masked_level=3.0)
    masked = replace(prior, noise=noise)
    path = masked.write(tmp_path)
    assert ContrastPrior.read(path).noise == noise
    assert masked.digest != prior.digest
    raw = json.loads(path.read_text())
    path.write_text(json.dumps(raw | {"Noise": raw["Noise"] | {"masked": 1.5}}))
    with pytest.raises(ValueError, match="share of masked"):
        ContrastPrior.read(path)
    # Files that were written before there was a mask have no such keys.
    assert "masked" not in json.loads(prior.write(tmp_path).read_text())["Noise"]


@pytest.mark.parametrize("fails_at", [".tsv", ".json"])
def test_files_that_cannot_be_written_whole_leave_the_old_ones(
    prior, tmp_path, monkeypatch, fails_at
):
    path = prior.write(tmp_path)
    write = type(path).write_text

    def fail(self, text, **how):
        if fails_at in self.name:
            write(self, text[: len(text) // 2], **how)
            raise OSError("disk full")
        return write(self, text, **how)

    monkeypatch.setattr(type(path), "write_text", fail)
    with pytest.raises(OSError, match="disk full"):
        replace(prior, head_low=9.0).write(tmp_path)
    assert ContrastPrior.read(path).digest == prior.digest
    assert len(list(tmp_path.iterdir())) == 2
