# SPDX-License-Identifier: Apache-2.0
"""Directives whose content is the code's own: flags, label tables, output names, TOML files.

So a page cannot say what the program does not do.
"""

from __future__ import annotations

import csv
from dataclasses import fields
from html import escape
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive

import brainseg_bids
from brainseg_bids.bids.names import ContrastNames, HeadNames, OutputNames, Scan, ToolNames
from brainseg_bids.cli.parser import build_parser

DATA = Path(brainseg_bids.__file__).parent / "data"


def _table(header: list[str], rows: list[list[str]]) -> nodes.raw:
    """HTML; cells are HTML already."""
    head = "".join(f"<th>{cell}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{c}</td>' for c in row)}</tr>" for row in rows)
    text = f'<div class="table-wrapper"><table class="docutils"><thead><tr>{head}</tr></thead>'
    return nodes.raw("", f"{text}<tbody>{body}</tbody></table></div>", format="html")


def _code(text: str) -> str:
    return f'<code class="docutils literal">{escape(text)}</code>'


class CommandLine(Directive):
    """Every argument of ``brainseg``, a section for each group."""

    def run(self) -> list[nodes.Node]:
        parser = build_parser()
        parts = []
        for group in parser._action_groups:
            actions = [action for action in group._group_actions if action.help]
            if not actions:
                continue
            title = {"options": "general"}.get(group.title, group.title)
            section = nodes.section(ids=[nodes.make_id(f"flags-{title}")])
            section += nodes.title(text=title[0].upper() + title[1:])
            section += _table(["argument", "what"], [self._row(action) for action in actions])
            parts.append(section)
        return parts

    @staticmethod
    def _row(action) -> list[str]:
        flags = action.option_strings or [action.dest]
        value = ""
        if action.choices and action.metavar is None:
            value = "{" + ",".join(map(str, action.choices)) + "}"
        elif action.option_strings and action.nargs != 0:
            value = action.metavar or action.dest.upper()
        many = " …" if action.nargs == "+" else ""
        shown = "<br>".join(map(_code, flags))
        return [
            shown + (f" <em>{escape(value)}{many}</em>" if value else ""),
            escape(action.help.replace("%%", "%")),
        ]


class ExitCodes(Directive):
    """The end of ``brainseg --help``."""

    def run(self) -> list[nodes.Node]:
        text = build_parser().epilog
        return [nodes.literal_block(text, text, language="text")]


class LabelTableOf(Directive):
    """A table of ``data/labels`` with its colours."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        path = DATA / "labels" / f"{self.arguments[0]}.tsv"
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        header = ["", "code", "name", "BIDS tissue", "side", "mirror", "notes"]
        cells = [
            [
                f'<span class="swatch" style="background:{escape(row["color"])}" '
                f'title="{escape(row["color"])}"></span>',
                row["index"], escape(row["name"]), row["mapping"], row["hemisphere"],
                "" if row["mirror"] == row["index"] else row["mirror"],
                "" if row["notes"] == "n/a" else escape(row["notes"]),
            ]
            for row in rows
        ]  # fmt: skip
        return [_table(header, cells)]


NAMES = {
    "segment": lambda scan: OutputNames.of(scan),
    "headlabels": lambda scan: HeadNames.of(scan),
    "tool": lambda scan: ToolNames.of(scan, "samseg"),
    "contrast": lambda scan: ContrastNames.of(scan, "fullhead"),
}


class OutputsOf(Directive):
    """Names of a stage's files for ``sub-01_T1w``; the body says ``field: what it is``.

    A field without a word, or a word without a field, is an error: names come from the code.
    """

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        names = NAMES[self.arguments[0]](Scan.from_path("sub-01_T1w.nii.gz"))
        said = dict(line.split(": ", 1) for line in self.content if line.strip())
        known = [field.name for field in fields(names)]
        if set(said) != set(known):
            raise self.error(f"outputs are {', '.join(known)}; the page names {', '.join(said)}")
        rows = [[_code(getattr(names, name).as_posix()), escape(said[name])] for name in known]
        return [_table(["file", "what"], rows)]


class TomlFiles(Directive):
    """All TOML files of a folder of the package's data, each in a section of its own."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        parts = []
        for path in sorted((DATA / self.arguments[0]).glob("*.toml")):
            section = nodes.section(ids=[nodes.make_id(f"{self.arguments[0]}-{path.stem}")])
            section += nodes.title(text=path.stem)
            text = path.read_text(encoding="utf-8")
            section += nodes.literal_block(text, text, language="toml")
            parts.append(section)
        return parts


def setup(app) -> dict:
    """For Sphinx."""
    for name, directive in {
        "command-line": CommandLine, "exit-codes": ExitCodes, "label-table": LabelTableOf,
        "outputs-of": OutputsOf, "toml-files": TomlFiles,
    }.items():  # fmt: skip
        app.add_directive(name, directive)
    return {"parallel_read_safe": True}
