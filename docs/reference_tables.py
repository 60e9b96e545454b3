# SPDX-License-Identifier: Apache-2.0
"""Tables of the reference pages, written from the code: flags, labels, names of outputs, recipes.

``python docs/reference_tables.py`` writes them between ``<!-- made from the code: KIND NAME -->``
and ``<!-- end -->``, so that pages can be read in a clone and cannot say what the program does not
do: tests/test_docs.py compares them with the code.
"""

from __future__ import annotations

import csv
import inspect
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path

import brainseg_bids
from brainseg_bids.bids.names import ContrastNames, HeadNames, OutputNames, ParcelNames, Scan, ToolNames
from brainseg_bids.cli.parser import build_parser
from brainseg_bids.evaluation.agreement import Agreement
from brainseg_bids.evaluation.bland_altman import BlandAltman
from brainseg_bids.evaluation.comparison import Comparison
from brainseg_bids.evaluation.ranking import Rank
from brainseg_bids.evaluation.scores import Judged
from brainseg_bids.evaluation.summary import Missing, Summary
from brainseg_bids.exit_codes import MEANINGS

DATA = Path(brainseg_bids.__file__).parent / "data"
REFERENCE = Path(__file__).parent / "reference"
BLOCK = re.compile(r"(<!-- made from the code: ([\w-]+) ?(\w*) -->\n).*?(<!-- end -->)", re.DOTALL)


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(header), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    """Text as a cell of a Markdown table takes it.

    >>> _cell("a | <b>")
    'a \\\\| &lt;b>'
    """
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def command_line(_: str) -> str:
    """Every argument of ``brainseg``, a section for each group."""
    parts = []
    for group in build_parser()._action_groups:
        actions = [action for action in group._group_actions if action.help]
        title = {"options": "general"}.get(group.title, group.title)
        if actions:
            table = _table(["argument", "meaning"], [_flag(action) for action in actions])
            parts.append(f"## {title[0].upper() + title[1:]}\n\n{table}")
    return "\n\n".join(parts)


def _flag(action) -> list[str]:
    flags = action.option_strings or [action.dest]
    value = ""
    if action.choices and action.metavar is None:
        value = "{" + ", ".join(map(str, action.choices)) + "}"
    elif action.option_strings and action.nargs != 0:
        value = action.metavar or action.dest.upper()
    many = " …" if action.nargs == "+" else ""
    shown = ", ".join(f"`{flag}`" for flag in flags) + (f" {_cell(value)}{many}" if value else "")
    return [shown, _cell(action.help.replace("%%", "%"))]


def exit_codes(_: str) -> str:
    """What ``brainseg`` ends with."""
    return _table(["code", "meaning"], ([str(code), text] for code, text in MEANINGS.items()))


def label_table(name: str) -> str:
    """A table of ``data/labels`` with its colours."""
    with (DATA / "labels" / f"{name}.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    header = ["code", "name", "colour", "BIDS tissue", "side", "mirror", "notes"]
    cells = [
        [
            row["index"], _cell(row["name"]), f"`{row['color']}`", row["mapping"],
            row["hemisphere"], "" if row["mirror"] == row["index"] else row["mirror"],
            "" if row["notes"] == "n/a" else _cell(row["notes"]),
        ]
        for row in rows
    ]  # fmt: skip
    return _table(header, cells)


OUTPUTS: dict[str, tuple[Callable[[Scan], object], dict[str, str]]] = {
    "segment": (
        OutputNames.of,
        {
            "labels": "all labels, on the image's own grid",
            "tissue": "BIDS' standard tissue codes",
            "mask": "brain with ventricles",
            "volumes": "[volumes](../explanation/volumes.md) in mm³, [confidence](../explanation/confidence.md)",
            "probseg": "probability of each label, 4D; the JSON lists the order of labels",
            "entropy": "entropy of these probabilities in bits: 0 where one label is certain",
            "figure": "overlays of the page",
            "viewer": "[viewer](../how-to/look.md): interactive, image and labels",
        },
    ),
    "headlabels": (
        HeadNames.of,
        {
            "labels": "merged map of the whole head",
            "top_codes": "codes of the four most probable labels of each voxel, 4D",
            "top_weights": "their probabilities",
            "volumes": "[volumes](../explanation/volumes.md) in mm³",
            "merge": "voxels that each rule changed, conflicts between tools, holes",
            "figure": "overlays of the page",
            "viewer": "[viewer](../how-to/look.md): interactive, image and labels",
        },
    ),
    "tool": (
        lambda scan: ToolNames.of(scan, "samseg"),
        {
            "labels": "its map, in its own codes and grid",
            "top_codes": "codes of the four most probable labels",
            "top_weights": "their probabilities",
        },
    ),
    "parcels": (
        lambda scan: ParcelNames.of(scan, "fastsurfer"),
        {
            "labels": "its parcels, on the image's own grid, in FreeSurfer's codes",
            "volumes": "their volumes in mm³",
            "figure": "overlays of the page",
        },
    ),
    "contrast": (
        lambda scan: ContrastNames.of(scan, "fullhead"),
        {
            "statistics": "of each label: location, scale, mixture, correlated texture, fit; in the JSON "
            "noise, field, resolution, histograms",
            "figure": "figure of the page",
        },
    ),
}
"""How names are made, and what each file is."""


def outputs_of(stage: str) -> str:
    """Names of a stage's files for ``sub-01_T1w``.

    Raises
    ------
    ValueError
        If a file has no word, or a word no file.
    """
    make, about = OUTPUTS[stage]
    names = make(Scan.from_path("sub-01_T1w.nii.gz"))
    known = [field.name for field in fields(names)]
    if set(about) != set(known):
        raise ValueError(f"outputs of {stage} are {', '.join(known)}; said: {', '.join(about)}")
    rows = [[f"`{getattr(names, name).as_posix()}`", about[name]] for name in known]
    return _table(["file", "content"], rows)


def toml_files(folder: str) -> str:
    """All TOML files of a folder of the package's data, and how each begins."""
    rows = []
    for path in sorted((DATA / folder).glob("*.toml")):
        comment = path.read_text(encoding="utf-8").partition("\n\n")[0]
        lines = [line.removeprefix("# ") for line in comment.splitlines() if line.startswith("#")]
        about = re.match(r".*?[.:](?=\s|$)|.*", " ".join(lines))[0].rstrip(".:")
        link = os.path.relpath(path, REFERENCE)
        rows.append([f"[{path.stem}]({link})", _cell(about)])
    return _table(["recipe", "content"], rows)


EVALUATION = {
    "agreement": (Agreement, ("reference_topology", "predicted_topology")),
    "summary": (Summary, ()),
    "comparisons": (Comparison, ()),
    "ranks": (Rank, ()),
    "bland_altman": (BlandAltman, ("points",)),
    "judged": (Judged, ()),
    "missing": (Missing, ()),
}
"""Class of the lines of each table of stage ``evaluate``, and fields that are no columns."""
COLUMN_NAMES = {"nsd": "nsd_..mm", "chances": "p_rank_1, ..."}
USUAL_COLUMNS = {
    "reference": "the reference",
    "rater": "who is compared with it",
    "stratum": "`all` images, or one of the reference's strata",
    "name": "structure, or the mean over structures",
    "image": "entities of the image",
    "metric": "column of `agreement.tsv` that is summarised",
}
"""What columns are that docstrings take for known."""


def columns_of(table: str) -> str:
    """Columns of a table of stage ``evaluate``, as the docstring of its class tells them.

    Raises
    ------
    ValueError
        If it says nothing of a column.
    """
    line, no_columns = EVALUATION[table]
    about = _parameters(inspect.getdoc(line) or "")
    if table == "agreement":
        for name in ("volume_error_mm3", "volume_error_frac"):
            about[name,] = inspect.getdoc(getattr(line, name.removesuffix("_frac")))
    known = {name for names in about for name in names}
    if lacking := {field.name for field in fields(line)} - known:
        raise ValueError(f"{table}: nothing is said of {', '.join(sorted(lacking))}")
    rows = [
        [", ".join(f"`{COLUMN_NAMES.get(name, name)}`" for name in names), _column(names, text)]
        for names, text in about.items()
        if not set(names) & set(no_columns)
    ]
    return _table(["column", "meaning"], rows)


def _column(names: tuple[str, ...], text: str) -> str:
    """Meaning of some columns; of what the docstring does not tell, the usual."""
    if text:
        return re.sub(r"\b(None|NaN)\b", "`n/a`", _cell(text.replace("``", "`")))
    usual = [USUAL_COLUMNS[name] for name in names]
    if len(names) == 1:
        return f"{usual[0].capitalize()}."
    return "; ".join(f"`{name}`: {what}" for name, what in zip(names, usual, strict=True)) + "."


def _parameters(docstring: str) -> dict[tuple[str, ...], str]:
    """Names of the parameters in a numpydoc docstring and what is said of them.

    >>> _parameters("X.\\n\\nParameters\\n----------\\na, b : int\\n    Two\\n    numbers.\\nc : str")
    {('a', 'b'): 'Two numbers.', ('c',): ''}
    """
    found: dict[tuple[str, ...], str] = {}
    section = docstring.partition("Parameters\n----------\n")[2]
    for block in re.split(r"\n(?=\S)", re.split(r"\n\n?(?=\S[^\n]*\n-{4,})", section)[0]):
        head, _, text = block.partition("\n")
        names, colon, _ = head.partition(" : ")
        if colon:
            found[tuple(names.split(", "))] = " ".join(text.split())
    return found


KINDS = {
    "columns-of": columns_of,
    "command-line": command_line,
    "exit-codes": exit_codes,
    "label-table": label_table,
    "outputs-of": outputs_of,
    "toml-files": toml_files,
}


def filled(page: str) -> str:
    """A page with every block written anew."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{KINDS[found[2]](found[3])}\n\n{found[4]}", page)


def main() -> None:
    """Write all pages of the reference."""
    for path in sorted(REFERENCE.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        path.write_text(filled(text), encoding="utf-8")


if __name__ == "__main__":
    main()
