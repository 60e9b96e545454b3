# SPDX-License-Identifier: Apache-2.0
"""Tables as TSV and as HTML."""

from __future__ import annotations

import pandas as pd
from markupsafe import Markup

from brainseg_bids.reports.tables import html_table, write_rows, write_tsv


def test_tables_have_one_number_format(tmp_path):
    rows = [{"a": 1234567.25, "b": 1}, {"b": 2, "c": 1e-7, "d": False}, {"a": float("nan")}]
    assert write_tsv(tmp_path / "t.tsv", rows).read_text().splitlines() == [
        "a\tb\tc\td",
        "1234567.25\t1\tn/a\tn/a",
        "n/a\t2\t0.0000001\tfalse",
        "n/a\tn/a\tn/a\tn/a",
    ]


def test_cells_that_have_their_text_are_written_as_they_are(tmp_path):
    rows = [(1, 'a "b"', 0.1 + 0.2), (2, "c\td", 0)]
    path = write_rows(tmp_path / "t.tsv", ("n", "name", "mm3"), rows)
    assert path.read_bytes() == (
        b'n\tname\tmm3\n1\t"a ""b"""\t0.30000000000000004\n2\t"c\td"\t0\n'
    )


def test_a_table_without_rows_is_not_written_and_an_earlier_one_goes(tmp_path):
    path = write_tsv(tmp_path / "t.tsv", [{"a": 1}])
    assert path.is_file()
    assert not write_tsv(path, []).exists()
    assert not write_tsv(tmp_path / "none" / "t.tsv", []).exists()


def test_rows_of_a_group_stand_under_its_name_and_totals():
    frame = pd.DataFrame({"Structure": ["a", "<b>", Markup("<i>c</i>")], "ml": ["1", "2", "3"]})
    totals = pd.DataFrame({"ml": ["3", "4"]}, index=["one", "two"])
    table = html_table(frame, numbers=("ml",), groups=["one", "one", "two"], totals=totals)
    assert '<th colspan="1" scope="rowgroup">one</th><th class="n">3</th>' in table
    assert "<td>&lt;b&gt;</td>" in table
    assert "<td><i>c</i></td>" in table
    assert table.index("one") < table.index("<td>a</td>") < table.index("two")
