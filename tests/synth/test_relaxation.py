# SPDX-License-Identifier: Apache-2.0
"""Every label has relaxation times, at any field strength, from a table with sources."""

from __future__ import annotations

import csv
from importlib import resources

import pytest

from brainseg_bids.anatomy.labels import LabelTable, UnknownLabelError
from brainseg_bids.synth.relaxation import relaxation, relaxation_of


@pytest.mark.parametrize("name", ["fullhead", "brainseg", "tissue"])
@pytest.mark.parametrize("field_t", [1.5, 3.0, 7.0, 9.4])
def test_every_label_of_every_table_has_times(name, field_t):
    table = LabelTable.packaged(name)
    tissue = relaxation(table, field_t)
    assert tissue.t1_s.shape == (len(table),)
    assert (tissue.t1_s > 0.05).all()
    assert (tissue.t1_s < 5).all()
    assert (tissue.t2star_ms > 0).all()
    assert ((tissue.proton_density >= 0) & (tissue.proton_density <= 1)).all()


def test_what_bids_calls_background_has_no_protons_and_the_rest_has():
    table = LabelTable.packaged("fullhead")
    density = relaxation(table, 7.0).proton_density
    for label, value in zip(table, density, strict=True):
        assert (value == 0) == (label.mapping == 0), label.name


def test_both_sides_are_alike():
    table = LabelTable.packaged("fullhead")
    for label in table:
        assert relaxation_of(label.name, 7.0) == relaxation_of(table[label.mirror].name, 7.0)


def test_a_name_without_a_line_is_an_error():
    with pytest.raises(UnknownLabelError, match="Left-Kneecap"):
        relaxation_of("Left-Kneecap", 7.0)


def test_a_field_in_millitesla_is_refused():
    with pytest.raises(ValueError, match="tesla"):
        relaxation_of("Vein", 7000)


def test_measured_fields_are_met_and_those_between_follow_a_power_of_the_field():
    times = {field_t: relaxation_of("Left-Caudate", field_t).t1_s for field_t in (3, 4.5, 6.75, 7)}
    assert (times[3], times[7]) == (1.395, 1.684)
    assert times[4.5] / times[3] == pytest.approx(times[6.75] / times[4.5])
    assert times[3] < times[4.5] < times[6.75] < times[7]


def test_the_power_law_comes_near_rooneys_for_white_and_grey_matter_beyond_the_table():
    for name, law in (("Left-Cerebral-White-Matter", (0.583, 0.382)),
                      ("Left-Cerebral-Cortex", (0.857, 0.376))):  # fmt: skip
        expected = law[0] * 9.4 ** law[1]
        assert relaxation_of(name, 9.4).t1_s == pytest.approx(expected, rel=0.1)


def test_csf_is_the_same_at_every_field():
    assert relaxation_of("CSF", 1.5).t1_s == relaxation_of("CSF", 9.4).t1_s == 4.33


def test_one_measured_field_goes_on_with_the_third_root():
    muscle = relaxation_of("Rectus-Muscles", 7.0).t1_s
    assert muscle == pytest.approx(1.42 * (7 / 3) ** (1 / 3))


def test_every_line_names_its_source_and_says_what_is_our_own_choice():
    source = resources.files("brainseg_bids") / "data" / "relaxation.tsv"
    with source.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            said = row["source"]
            assert "our choice" in said or "et al." in said or row["tissue"] == "air", row
