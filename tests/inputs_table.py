# SPDX-License-Identifier: Apache-2.0
"""Writes ``docs/explanation/inputs.md``: what comes in, what happens, which test holds it.

A test says of itself ``@pytest.mark.input(kind, given, happens, exit_code)``, four literals; a
parametrised case says it in ``pytest.param(..., marks=pytest.mark.input(...))``, in the decorator
or in a list above the test. ``python -m tests.inputs_table`` writes the page.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "explanation" / "inputs.md"
KINDS = {
    "intensities": "Intensities",
    "geometry": "Geometry",
    "files": "Image files",
    "names": "Names and datasets",
    "metadata": "Metadata, filters and other files from outside",
    "results": "Results that are implausible",
    "runs": "Runs, disks, signals and streams",
    "training": "Training, recipes and models",
}
"""Sections of the page, in this order."""
HEAD = """# Odd and broken input

The tables list inputs, what happens with them, and the test that checks it.
`python -m tests.inputs_table` writes this page from the tests. The usual exit codes:

| exit code | meaning |
| --- | --- |
| 0 | finished; a warning, if one is listed, is in the log and on the page |
| 1 | this image failed, the others continue |
| 2 | refused before anything runs |

Other codes are explained in their row.
"""


class Row(NamedTuple):
    """One line of the table."""

    kind: str
    given: str
    happens: str
    exit_code: int
    test: str


def rows(folder: Path = TESTS) -> list[Row]:
    """Every marked test, in the order of the sections, of files and of lines.

    Raises
    ------
    ValueError
        If a mark is not four literals, or names a section that is not in `KINDS`.
    """
    found = [row for path in sorted(folder.rglob("test_*.py")) for row in _rows_of(path, folder)]
    return sorted(found, key=lambda row: list(KINDS).index(row.kind))


def _rows_of(path: Path, folder: Path) -> Iterator[Row]:
    where = path.relative_to(folder.parent)
    for part in ast.parse(path.read_text(encoding="utf-8")).body:
        test = f"{where}::{part.name}" if isinstance(part, ast.FunctionDef) else str(where)
        for node in ast.walk(part):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.input"):
                continue
            try:
                kind, given, happens, exit_code = (ast.literal_eval(arg) for arg in node.args)
            except ValueError as error:
                raise ValueError(f"{where}:{node.lineno}: give four literals") from error
            if kind not in KINDS:
                raise ValueError(f"{where}:{node.lineno}: no section {kind!r}")
            yield Row(kind, given, happens, exit_code, test)


def _cell(text: str) -> str:
    """Text as a cell of a Markdown table takes it, also in code."""
    return text.replace("|", "\\|")


def page(found: list[Row]) -> str:
    """The page as Markdown."""
    parts = [HEAD]
    for kind, title in KINDS.items():
        lines = [
            f"| {_cell(row.given)} | {_cell(row.happens)} | {row.exit_code} | `{row.test}` |"
            for row in found
            if row.kind == kind
        ]
        if lines:
            head = "| given | what happens | exit code | test |\n| --- | --- | --- | --- |"
            parts.append(f"## {title}\n\n{head}\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(rows()), encoding="utf-8")
    print(f"{PAGE}: {len(rows())} inputs")
