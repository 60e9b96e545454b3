# SPDX-License-Identifier: Apache-2.0
"""Cells of the tables of an evaluation: what `evaluation.summary.tables` gives, for the eye."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from markupsafe import Markup, escape

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.evaluation.scores import ALL
from brainseg_bids.reports import tables
from brainseg_bids.reports.evaluation_figures import rater_colors
from brainseg_bids.units import natural_order

HEADLINE = re.compile(r"mean of \d+ structures")
DEFINITIONS = {
    "surface": "surface (through the corners of voxels, by area, as in surface-distance)",
    "voxel": "voxel (voxels that lack one of six neighbours, by number, as in MONAI)",
}
"""Of surfaces, in words."""
MAIN_METRICS = ("dice", "assd_mm", "hd95_mm")
NA = "n/a"
GREY = "#808080"  # of what no table has a colour for

Line = Mapping[str, object]
Found = dict[tuple[str, str, str], list[str]]
"""Images by what is the matter with them, rater and structure."""


@dataclass(frozen=True)
class Style:
    """How raters and structures are shown.

    Parameters
    ----------
    raters : tuple of str
        In order.
    metrics : tuple of str
        Columns of the rows, in order.
    leaky : frozenset of str
        Raters that have seen images they are judged on.
    swatches : dict of str to str
        ``#rrggbb`` by structure.
    """

    raters: tuple[str, ...]
    metrics: tuple[str, ...]
    leaky: frozenset[str] = frozenset()
    swatches: Mapping[str, str] = field(default_factory=dict)

    def rater(self, name: object) -> Markup:
        """A rater behind its colour, marked if it has seen images that it is judged on."""
        shown = tables.swatch(rater_colors(self.raters).get(str(name), GREY), name)
        if name not in self.leaky:
            return shown
        seen = '<strong class="far" title="has seen images it is judged on">† seen</strong>'
        return Markup("{} {}").format(shown, Markup(seen))

    def swatch(self, structure: str) -> Markup:
        """A structure behind its colour."""
        return tables.swatch(self.swatches.get(structure, GREY), structure)


def chosen_metrics(columns: Iterable[str]) -> tuple[str, ...]:
    """Columns that the page shows, of those that there are.

    >>> chosen_metrics(["nsd_1mm", "iou", "nsd_0.6mm", "dice"])
    ('dice', 'nsd_0.6mm', 'nsd_1mm')
    """
    known = set(columns)
    nsd = sorted(
        (name for name in known if name.startswith("nsd_")),
        key=lambda name: float(name.removeprefix("nsd_").removesuffix("mm")),
    )
    return tuple(name for name in (*MAIN_METRICS, *nsd) if name in known)


def structure_colors(names: Iterable[str], table: LabelTable) -> dict[str, str]:
    """Colour of each structure by the label table: a label's own, a pair's that of the left one.

    >>> structure_colors(["Left-Thalamus", "Thalamus", "x"], LabelTable.packaged("fullhead"))
    {'Left-Thalamus': '#00760e', 'Thalamus': '#00760e', 'x': '#808080'}
    """
    return {
        name: next((table[one].color for one in (name, f"Left-{name}") if one in table), GREY)
        for name in names
    }


# -- numbers ------------------------------------------------------------------------------


def number(value: object, column: str, *, sign: bool = False) -> str:
    """A number of a column for the eye: shares to 3 places, mm to 2, volume errors in per cent.

    >>> number(0.91234, "dice"), number(-0.5, "assd_mm", sign=True), number(None, "dice")
    ('0.912', '−0.50', 'n/a')
    >>> number(0.1234, "|volume_error_frac|")
    '12.3 %'
    """
    if value is None or value != value:
        return NA
    bare = column.strip("|")
    scale, places, unit = 1.0, 3, ""
    if bare == "volume_error_frac":
        scale, places, unit = 100.0, 1, " %"
    elif bare.endswith("_mm3"):
        places = 0
    elif bare.endswith("_mm"):
        places = 2
    text = f"{scale * float(value):{'+' if sign else ''},.{places}f}"
    if not text.strip("+-0.,"):
        text = text.lstrip("+-")
    return text.replace("-", "−") + unit


def between(
    line: Line,
    column: str,
    keys: tuple[str, str, str],
    *,
    sign: bool = False,
    bold: bool = False,
    left_out: int = 0,
) -> Markup:
    """A number, how many were left out of it, and beneath it its interval if it has one.

    >>> str(between({"mean": 0.9, "low": 0.88, "high": 0.92}, "dice", ("mean", "low", "high")))
    '0.900<br/><span class="faint">[0.880, 0.920]</span>'
    """
    middle, low, high = (number(line[key], column, sign=sign) for key in keys)
    shown = tables.strong(middle) if bold else escape(middle)
    if left_out:
        shown += tables.faint(f" (−{left_out})")
    if NA not in (low, high):
        shown += Markup("<br/>{}").format(tables.faint(f"[{low}, {high}]"))
    return shown


def limits(low: object, high: object, column: str) -> str:
    """Two numbers of a column, the one to the other.

    >>> limits(-0.04, 0.1, "volume_error_frac"), limits(None, None, "volume_error_frac")
    ('−4.0 % to +10.0 %', 'n/a')
    """
    ends = [number(end, column, sign=True) for end in (low, high)]
    return NA if NA in ends else " to ".join(ends)


def p_text(value: object) -> str:
    """A p for the eye.

    >>> p_text(0.0312), p_text(2e-7), p_text(None)
    ('0.031', '<0.001', 'n/a')
    """
    if value is None or value != value:
        return NA
    return "<0.001" if float(value) < 0.001 else f"{float(value):.3f}"


def chances_text(line: Line) -> str:
    """Rank, and the chances of rank 1, 2, ... in per cent.

    >>> chances_text({"rank": 1, "n_raters": 2, "p_rank_1": 0.98, "p_rank_2": 0.02})
    '1 (98 / 2 %)'
    """
    chances = [line.get(f"p_rank_{k + 1}") for k in range(int(line["n_raters"]))]
    if None in chances:
        return str(line["rank"])
    return f"{line['rank']} ({' / '.join(f'{100 * float(p):.0f}' for p in chances)} %)"


def is_headline(line: Line) -> bool:
    """Whether a line is of the mean over structures."""
    return HEADLINE.fullmatch(str(line["name"])) is not None


def by(lines: Iterable[Line], *keys: str) -> dict[tuple, Line]:
    """Lines by their values of some columns."""
    return {tuple(line[key] for key in keys): line for line in lines}


def strata_titles(strata: Iterable[str]) -> dict[str, str]:
    """What each stratum is called: all together first, then by name.

    >>> strata_titles({"UNI", ALL}), strata_titles({ALL})
    ({'all': 'all images', 'UNI': 'UNI'}, {'all': ''})
    """
    found = sorted(set(strata), key=lambda name: (name != ALL, name))
    whole = "all images" if len(found) > 1 else ""
    return {name: whole if name == ALL else name for name in found}


# -- what is not there --------------------------------------------------------------------


def missing(lines: Iterable[Line]) -> Found:
    """Images without partner and structures without row."""
    return dict(sorted(_by_kind((line["kind"], line) for line in lines).items()))


def lone(rows: Iterable[Line], style: Style) -> Found:
    """Structures that one map alone has, by rater and structure."""
    kinds = {"reference only": "missed", "prediction only": "extra"}
    found = _by_kind((kinds[str(row["status"])], row) for row in rows if row["status"] in kinds)
    order = {rater: k for k, rater in enumerate(style.raters)}

    def place(key: tuple[str, str, str]) -> tuple:
        return key[0] != "missed", order.get(key[1], 99), -len(found[key]), key

    return {key: found[key] for key in sorted(found, key=place)}


def _by_kind(lines: Iterable[tuple[object, Line]]) -> Found:
    found: Found = {}
    for kind, line in lines:
        key = (str(kind), str(line["rater"]), str(line["name"]))
        found.setdefault(key, []).append(str(line["image"]))
    return {key: sorted(images, key=natural_order) for key, images in found.items()}
