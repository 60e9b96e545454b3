# SPDX-License-Identifier: Apache-2.0
"""The page of inputs is what the tests say."""

from __future__ import annotations

import pytest

from tests.inputs_table import PAGE, page, rows


def test_the_page_of_inputs_is_written_from_the_tests():
    assert PAGE.read_text(encoding="utf-8") == page(rows()), "run python -m tests.inputs_table"


def test_every_line_names_one_input():
    given = [(row.kind, row.given) for row in rows()]
    assert len(given) == len(set(given))


def test_a_mark_of_an_unknown_section_is_refused(tmp_path):
    mark = "@pytest.mark.input('weather', 'rain', 'an umbrella', 0)"
    (tmp_path / "test_one.py").write_text(f"import pytest\n{mark}\ndef test_a(): ...\n")
    with pytest.raises(ValueError, match="weather"):
        rows(tmp_path)
