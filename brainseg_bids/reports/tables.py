# SPDX-License-Identifier: Apache-2.0
"""Tables as TSV and as HTML, and how their cells are written."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd
from markupsafe import Markup, escape

from brainseg_bids.files import whole_or_nothing

# -- TSV ----------------------------------------------------------------------------------


def write_tsv(path: Path, rows: Sequence[Mapping]) -> Path:
    """Write a table whole or not at all; columns are those of all rows, in order.

    Without rows there are no columns either: nothing is written, and a table of an earlier run is
    removed.

    Parameters
    ----------
    path : Path
    rows : sequence of mapping
        Written as `cell_text`.
    """
    frame = pd.DataFrame(rows, dtype=object)
    if frame.columns.empty:
        path.unlink(missing_ok=True)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_or_nothing(path) as temporary:
        write_rows(temporary, frame.columns, frame.map(cell_text))
    return path


def write_rows(path: Path, columns: Collection[str], rows: object) -> Path:
    """Write rows (sequences, mappings or a DataFrame) as their cells are."""
    frame = pd.DataFrame(rows, columns=list(columns), dtype=object)
    frame.to_csv(path, sep="\t", index=False, lineterminator="\n", encoding="utf-8")
    return path


def cell_text(value: object) -> str:
    """A value as all tables of a group write it: decimals without exponent, or ``n/a``.

    Six significant digits, and of large numbers three decimals.

    >>> [cell_text(value) for value in (1234567.89125, 0.000012345678, 2.0, 0.0, -0.0, 3, True)]
    ['1234567.891', '0.0000123457', '2', '0', '0', '3', 'true']
    >>> cell_text(None), cell_text(""), cell_text(float("nan")), cell_text(float("inf"))
    ('n/a', 'n/a', 'n/a', 'inf')
    """
    if value is None or value == "" or value != value:
        return "n/a"
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, float) or math.isinf(value):
        return str(value)
    digits = 5 - math.floor(math.log10(abs(value))) if value else 0
    text = f"{value:.{max(digits, 3)}f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


# -- HTML ---------------------------------------------------------------------------------


def html_table(
    frame: pd.DataFrame,
    *,
    numbers: Collection[str] = (),
    css: Mapping[str, str] | None = None,
    groups: Sequence[str] | None = None,
    totals: pd.DataFrame | None = None,
    last: Iterable[Sequence[object]] = (),
) -> Markup:
    """A table whose headings are the columns' names; cells are escaped unless they are `Markup`.

    Parameters
    ----------
    frame : DataFrame
        Cells as they are shown.
    numbers : collection of str
        Columns that are aligned at the right.
    css : mapping of str to str, optional
        Classes of other columns: ``name`` and ``why`` of texts, ``n faint``, ``n fold``.
    groups : sequence of str, optional
        Group of each row; a line with its name stands above the rows of a group.
    totals : DataFrame, optional
        Cells of such a line by group; its columns are among the last ones of ``frame``.
    last : iterable of sequences
        Lines at the end, such as a mean over rows.
    """
    classes = dict.fromkeys(numbers, "n") | dict(css or {})
    columns = [(name, classes.get(name, "")) for name in frame.columns]
    by_group: dict[str, list[tuple]] = {}
    names = [""] * len(frame) if groups is None else groups
    for group, row in zip(names, frame.itertuples(index=False, name=None), strict=True):
        by_group.setdefault(group, []).append(row)
    bodies = []
    for group, rows in by_group.items():
        cells = [] if totals is None else list(totals.loc[group])
        bodies.append(_body(group, columns, cells, rows))
    bodies.append(
        Markup("<tbody>{}</tbody>").format(
            Markup("").join(_line(columns, cells, "th", ' class="group"') for cells in last)
        )
        if last
        else ""
    )
    head = _line([(name, css.split(" faint")[0]) for name, css in columns], frame.columns, "th")
    return Markup('<div class="wide"><table>\n<thead>{}</thead>\n{}</table></div>').format(
        head, Markup("\n").join(bodies)
    )


def _body(group: str, columns: list, totals: Sequence[object], rows: list[tuple]) -> Markup:
    lines = [_line(columns, row, "td") for row in rows]
    if group:
        cells = Markup("").join(Markup('<th class="n">{}</th>').format(one) for one in totals)
        head = Markup('<tr class="group"><th colspan="{}" scope="rowgroup">{}</th>{}</tr>')
        lines.insert(0, head.format(len(columns) - len(totals), group, cells))
    return Markup("<tbody>\n{}\n</tbody>").format(Markup("\n").join(lines))


def _line(columns: list, cells: Iterable[object], tag: str, css: str = "") -> Markup:
    """One row; only names and classes of our own stand outside of the cells."""
    parts = [f"<tr{css}>"]
    for (_, kind), cell in zip(columns, cells, strict=True):
        name = f' class="{kind}"' if kind else ""
        parts.append(f"<{tag}{name}>{escape(cell)}</{tag}>")
    return Markup("".join([*parts, "</tr>"]))


# -- Markdown -----------------------------------------------------------------------------


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; bars and line breaks within a cell are escaped."""
    first, *others = [f"| {' | '.join(map(_markdown_cell, row))} |" for row in (heads, *rows)]
    rule = "| --- |" + " --- |" * (len(heads) - 1)
    return "\n".join([first, rule, *others])


def _markdown_cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


# -- cells --------------------------------------------------------------------------------


def ml(volume_mm3: float | None) -> str:
    """Millilitres of a volume.

    >>> ml(7300.0), ml(None)
    ('7.30', 'n/a')
    """
    return "n/a" if volume_mm3 is None or volume_mm3 != volume_mm3 else f"{volume_mm3 / 1000:,.2f}"


def mm3(volume_mm3: float | None) -> str:
    """Cubic millimetres of a volume.

    >>> mm3(7300.4), mm3(None)
    ('7,300', 'n/a')
    """
    return "n/a" if volume_mm3 is None or volume_mm3 != volume_mm3 else f"{volume_mm3:,.0f}"


def percent(value: float | None) -> str:
    """A number with its sign and one decimal.

    >>> percent(8.57), percent(-4.2), percent(None)
    ('+8.6', '−4.2', 'n/a')
    """
    return "n/a" if value is None or value != value else f"{value:+.1f}".replace("-", "−")


def faint(words: object) -> Markup:
    """What matters less."""
    return Markup('<span class="faint">{}</span>').format(words)


def strong(words: object, *, far: bool = False) -> Markup:
    """What matters more; ``far`` in red."""
    return Markup('<strong class="far">{}</strong>' if far else "<strong>{}</strong>").format(
        words
    )


def swatch(color: str, name: object) -> Markup:
    """A label's name behind its colour."""
    return Markup('<span class="swatch" style="background-color: {}"></span>{}').format(
        color, name
    )


def share_bar(share: float, *, low: bool = False) -> Markup:
    """A bar from 0 to 1."""
    kind = "low" if low else ""
    return Markup('<span class="dice"><i class="{}" style="width: {:.1f}%"></i></span>').format(
        kind, 100 * share
    )


def side_bar(value: float, widest: float) -> Markup:
    """A bar to the left of the middle for values above 0, else to the right."""
    side = "left" if value > 0 else "right"
    return Markup('<span class="bar"><i class="{}" style="width: {:.1f}%"></i></span>').format(
        side, 50 * abs(value) / widest
    )


def linked(who: str, pages: Collection[str]) -> Markup | str:
    """What an image or its results are called, linked to the participant's page if there is one.

    >>> str(linked("sub-01 ses-A T1w", {"sub-01.html"})), linked("sub-02", {"sub-01.html"})
    ('<a href="sub-01.html">sub-01 ses-A T1w</a>', 'sub-02')
    """
    page = f"{re.split('[ _]', who)[0]}.html"
    return Markup('<a href="{}">{}</a>').format(page, who) if page in pages else who
