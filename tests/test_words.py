# SPDX-License-Identifier: Apache-2.0
"""The words of the field, not those of an earlier version of this app."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.test_layers import PACKAGE

DOCS = Path(__file__).parents[1] / "docs"
ROOT = DOCS.parent
PAGES = sorted(
    [
        *(p for p in DOCS.rglob("*.md") if not p.relative_to(DOCS).parts[0].startswith("_")),
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(PACKAGE / "data").rglob("*.md"),
    ]
)

INSTEAD = {
    "told|said|foretold|reckoned": "message, log, predicted, computed",
    "borrow(ed|s|ing)?": "imputed",
    "grain": "correlated texture",
    "dial(s|led)?": "prior weight",
    "could not be had": "not available, not fetched, not tested",
    "ours": "this app, this model",
    "anew": "again",
    "thrift|ledger|wish": "low-memory fallback, memory tracker, memory request",
    "doubts?|barred": "quality warnings, excluded",
    "sheets?|strips": "canvas, slice row",
    "leveling|levelling|leveled": "volume calibration",
    "looked at|at hand": "inspected, available",
    "half a cell": "half a block",
    "mended|mends": "corrected",
    "gone on with|goes on": "resumed, continues",
}
"""Words that readers of pages do not meet, and what stands in their place."""
OLD_WORD = re.compile(rf"\b({'|'.join(INSTEAD)})\b", re.IGNORECASE)
ORDINARY = re.compile(r"(can(not)?|could) be told from|strips as large a share", re.IGNORECASE)
CODE = re.compile(r"^```.*?^```|`[^`\n]*`|\]\([^)\n]*\)", re.DOTALL | re.MULTILINE)

OLD_NAMES = {"certificate", "dial", "dialled", "foretold", "ledger", "leveling", "membership"}
OLD_NAMES |= {"borrow", "borrowed", "grains", "heard", "keeper", "thrift", "wish"}
OLD_NAMES |= {"faults", "hollows", "likeness", "pieces", "places", "strays", "telling", "walls"}
OLD_NAMES_OF_TYPES = {"Average", "Examination", "Feed", "Guard", "HowToRun", "Journal", "Share"}


def old_words(text: str) -> list[str]:
    """Old words of a page, code and addresses left out."""
    prose = ORDINARY.sub("", CODE.sub("", text))
    return [match[0].lower() for match in OLD_WORD.finditer(prose)]


def words_of(name: str) -> set[str]:
    """Words of an identifier, in snake case or camel case."""
    return set(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().split("_"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_has_the_words_of_the_field(page):
    assert old_words(page.read_text(encoding="utf-8")) == []


def test_public_names_have_the_words_of_the_field():
    names = {
        f"{path.relative_to(PACKAGE)}: {node.name}": node
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    }
    old = [
        where
        for where, node in names.items()
        if words_of(node.name) & OLD_NAMES or node.name in OLD_NAMES_OF_TYPES
    ]
    assert len(names) > 1000
    assert old == []


def test_an_old_word_would_be_seen():
    assert old_words("What it said.\n\n`told` and [a page](dial.md)\n") == ["said"]
    assert old_words("Tissue cannot be told from air; the label is borrowed.") == ["borrowed"]
    assert words_of("BorrowedLabel") & OLD_NAMES
