# SPDX-License-Identifier: Apache-2.0
"""The race of generators is run by whoever is there."""

import importlib.util

import pytest

from benchmarks import generator
from tests.phantom.head import phantom_head


@pytest.fixture
def without_rivals(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name in generator.MODULES.values() else find(name),
    )


def test_a_rival_that_is_not_installed_is_a_row_that_says_so(without_rivals, capsys):
    candidates = generator.contest(phantom_head(), 16, 1, slowest=True)
    absent = [name for name in candidates if not generator.is_installed(name)]
    assert len(absent) == 4
    ready = {k: (make(), 1) for k, (make, _) in candidates.items() if k not in absent}
    generator.report("16³", generator.measure(ready), absent)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + len(candidates)
    assert [row for row in rows if "not installed" in row] == rows[-4:]


def test_effects_are_reported_without_rivals(without_rivals, capsys, monkeypatch):
    few = {"nothing": {}, "gamma": {"gamma": 1.2}}
    monkeypatch.setattr(generator, "effects", lambda: few)
    monkeypatch.setattr(generator, "every_effect", lambda *, ratio: {})
    generator.report_effects(phantom_head(), 16, 1)
    said = capsys.readouterr().out
    assert "not installed" in said
    assert "nan" not in said
