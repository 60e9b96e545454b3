# SPDX-License-Identifier: Apache-2.0
"""Tables of an evaluation as text: what `evaluation.summary.tables` gives, put for the eye."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.evaluation.scores import ALL
from brainseg_bids.reports.evaluation_figures import metric_title, rater_colors

HEADLINE = re.compile(r"mean of \d+ structures")
DEFINITIONS = {
    "surface": "surface (through the corners of voxels, by area, as in surface-distance)",
    "voxel": "voxel (voxels that lack one of six neighbours, by number, as in MONAI)",
}
"""Of surfaces, in words."""
MAIN_METRICS = ("dice", "assd_mm", "hd95_mm")
SIGNIFICANT = 0.05
NA = "n/a"
GREY = "#808080"  # of what no table has a colour for
_NO_NUMBER = {"text": NA, "interval": ""}
_NAMED = 12
"""More images than this are counted in a line, and named in a fold."""

Line = Mapping[str, object]


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

    def rater(self, name: object) -> dict:
        """Name, colour and leak mark of a rater."""
        color = rater_colors(self.raters).get(str(name), GREY)
        return {"name": str(name), "color": color, "leaky": name in self.leaky}


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
    line: Line, column: str, keys: tuple[str, str, str], *, sign: bool = False
) -> dict[str, str]:
    """A number and its interval, empty if it has none.

    >>> between({"mean": 0.9, "low": 0.88, "high": 0.92}, "dice", ("mean", "low", "high"))
    {'text': '0.900', 'interval': '[0.880, 0.920]'}
    """
    middle, low, high = (number(line[key], column, sign=sign) for key in keys)
    return {"text": middle, "interval": "" if NA in (low, high) else f"[{low}, {high}]"}


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


def _by(lines: Iterable[Line], *keys: str) -> dict[tuple, Line]:
    return {tuple(line[key] for key in keys): line for line in lines}


def _in_order(strata: Collection[str]) -> list[str]:
    """All together first, then strata by name."""
    return [*([ALL] if ALL in strata else []), *sorted(set(strata) - {ALL})]


def _stratum(name: str, n: int) -> str:
    return name if name != ALL else ("all images" if n > 1 else "")


# -- league -------------------------------------------------------------------------------


def league(tables: Mapping[str, Sequence[Line]], style: Style) -> list[dict]:
    """A block for each stratum, a row for each rater, a cell for each metric.

    What is best by the common images is marked; see `brainseg_bids.evaluation.ranking`.
    """
    lines = _by(tables["headline"], "stratum", "rater", "metric")
    ranks = _by(filter(is_headline, tables["ranks"]), "stratum", "rater", "metric")
    strata = _in_order({stratum for stratum, _, _ in lines})
    blocks = []
    for stratum in strata:
        rows = []
        for rater in style.raters:
            own = {m: lines.get((stratum, rater, m)) for m in style.metrics}
            some = next((line for line in own.values() if line is not None), None)
            if some is None:
                continue
            rows.append(
                style.rater(rater)
                | _counts(some)
                | {
                    "cells": [
                        _cell(own[m], ranks.get((stratum, rater, m))) for m in style.metrics
                    ],
                    "ranks": [
                        chances_text(rank) if rank else NA
                        for m in style.metrics
                        for rank in [ranks.get((stratum, rater, m))]
                    ],
                }
            )
        firm = [_firm(ranks, stratum, m) for m in style.metrics]
        has_ranks = any(key[0] == stratum for key in ranks)
        blocks.append(
            {"name": _stratum(stratum, len(strata)), "rows": rows, "firm": firm,
             "has_ranks": has_ranks}
        )  # fmt: skip
    return blocks


def _counts(line: Line) -> dict:
    return {
        "n_subjects": line["n_subjects"],
        "n_images": line["n_images"],
        "n_missed": line["n_reference_only"],
        "n_extra": line["n_prediction_only"],
        "n_no_row": line["n_no_row"],
    }


def _cell(line: Line | None, rank: Line | None) -> dict:
    if line is None:
        return _NO_NUMBER | {"best": False, "left_out": 0}
    return between(line, str(line["metric"]), ("mean", "low", "high")) | {
        "best": rank is not None and rank["rank"] == 1,
        "left_out": line["n_left_out"],
    }


def _firm(ranks: Mapping[tuple, Line], stratum: str, metric_name: str) -> str:
    """How often the order is the same, and Kendall's tau."""
    for (where, _, what), line in ranks.items():
        if (where, what) == (stratum, metric_name) and line["same_order"] is not None:
            tau = line["kendall_tau"]
            words = f"{100 * float(line['same_order']):.0f} %"
            return words if tau is None else f"{words}, τ {float(tau):.2f}"
    return NA


# -- pairs of raters ----------------------------------------------------------------------


def headline_pairs(lines: Sequence[Line], style: Style) -> list[dict]:
    """For each stratum, a block of paired comparisons for each metric: means over structures."""
    chosen = [line for line in lines if is_headline(line)]
    strata = _in_order({str(line["stratum"]) for line in chosen})
    return [
        {
            "name": _stratum(stratum, len(strata)),
            "blocks": [
                {
                    "name": metric_title(column),
                    "rows": [
                        _pair(line, style)
                        for line in chosen
                        if (line["stratum"], line["metric"]) == (stratum, column)
                    ],
                }
                for column in dict.fromkeys(
                    str(line["metric"]) for line in chosen if line["stratum"] == stratum
                )
            ],
        }
        for stratum in strata
    ]


def structure_pairs(lines: Sequence[Line], style: Style) -> list[dict]:
    """A block of paired comparisons for each structure: Dice, all images."""
    by_name: dict[str, list[dict]] = {}
    for line in lines:
        if not is_headline(line) and (line["stratum"], line["metric"]) == (ALL, "dice"):
            by_name.setdefault(str(line["name"]), []).append(_pair(line, style))
    return [{"name": name, "rows": rows} for name, rows in by_name.items()]


def _pair(line: Line, style: Style) -> dict:
    """Row of two raters against each other."""
    column = str(line["metric"])
    interval = ("mean_difference", "low", "high")
    shift = ("hodges_lehmann", "hodges_lehmann_low", "hodges_lehmann_high")
    adjusted = line["p_holm"]
    return {
        "first": style.rater(line["first"]),
        "second": style.rater(line["second"]),
        "n_subjects": line["n_subjects"],
        "difference": between(line, column, interval, sign=True),
        "shift": between(line, column, shift, sign=True),
        "effect": number(line["rank_biserial"], "rank_biserial", sign=True),
        "p": p_text(line["p"]),
        "p_holm": p_text(adjusted),
        "firm": adjusted is not None and float(adjusted) < SIGNIFICANT,
        "favours": line["favours"] or "neither",
    }


# -- structures ---------------------------------------------------------------------------


def structures(lines: Sequence[Line], style: Style, names: Sequence[str]) -> list[dict]:
    """For each stratum, a block for each structure with a row for each rater."""
    every = _by(lines, "stratum", "name", "rater", "metric")
    strata = _in_order({stratum for stratum, *_ in every})
    result = []
    for stratum in strata:
        blocks = []
        for name in names:
            rows = [
                row
                for rater in style.raters
                for row in [_structure_row(every, (stratum, name, rater), style)]
                if row
            ]
            if rows:
                color = style.swatches.get(name, GREY)
                blocks.append({"name": name, "color": color, "rows": rows})
        result.append({"name": _stratum(stratum, len(strata)), "blocks": blocks})
    return result


def _structure_row(every: Mapping[tuple, Line], key: tuple, style: Style) -> dict | None:
    own = {m: every.get((*key, m)) for m in (*style.metrics, "volume_error_frac")}
    some = next((line for line in own.values() if line is not None), None)
    if some is None:
        return None
    dice, error = own.get("dice"), own["volume_error_frac"]
    return (
        style.rater(key[2])
        | _counts(some)
        | {
            "cells": [_cell(own[m], None) for m in style.metrics],
            "median": _NO_NUMBER if dice is None else _median(dice),
            "error": NA
            if error is None
            else number(error["mean"], "volume_error_frac", sign=True),
            "worst": number(dice["worst"], "dice") if dice and dice["worst_image"] else NA,
            "worst_image": dice["worst_image"] if dice else "",
        }
    )


def _median(line: Line) -> dict[str, str]:
    """Median and quartiles, which one subject does not have."""
    if line["n_subjects"] == 1:
        return _NO_NUMBER | {"text": number(line["median"], "dice")}
    return between(line, "dice", ("median", "q1", "q3"))


def volumes(lines: Sequence[Line], style: Style, names: Sequence[str]) -> list[dict]:
    """Bias and limits of agreement, of all images."""
    every = _by(lines, "stratum", "name", "rater", "unit")
    rows = []
    for name, rater in product(names, style.raters):
        mm3, percent = (every.get((ALL, name, rater, unit)) for unit in ("mm3", "percent"))
        if mm3 is None or percent is None:
            continue
        rows.append(
            style.rater(rater)
            | {
                "structure": name,
                "swatch": style.swatches.get(name, GREY),
                "n_subjects": mm3["n_subjects"],
                "left_out": sum(
                    int(mm3[f"n_{status}"])
                    for status in ("reference_only", "prediction_only", "neither")
                ),
                "bias": between(mm3, "_mm3", ("bias", "bias_low", "bias_high"), sign=True),
                "limits": _range(mm3["lower"], mm3["upper"], "_mm3"),
                "bias_percent": _percent(percent["bias"]),
                "limits_percent": NA
                if percent["lower"] is None
                else f"{_percent(percent['lower'])} to {_percent(percent['upper'])}",
                "slope_p": p_text(mm3["slope_p"]),
            }
        )
    return rows


def _range(low: object, high: object, column: str) -> str:
    ends = [number(end, column, sign=True) for end in (low, high)]
    return NA if NA in ends else " to ".join(ends)


def _percent(value: object) -> str:
    return NA if value is None else number(float(value) / 100, "volume_error_frac", sign=True)


# -- what is not there --------------------------------------------------------------------


def missing(lines: Iterable[Line]) -> list[dict]:
    """Images without partner and structures without row, counted and named."""
    by_key: dict[tuple[str, str, str], list[str]] = {}
    for line in lines:
        key = (str(line["kind"]), str(line["rater"]), str(line["name"]))
        by_key.setdefault(key, []).append(str(line["image"]))
    return [
        {"kind": kind, "rater": rater, "structure": name} | _listed(images)
        for (kind, rater, name), images in sorted(by_key.items())
    ]


def lone(rows: Iterable[Line], style: Style) -> list[dict]:
    """Structures that one map alone has, by rater and structure."""
    kinds = {"reference only": "missed", "prediction only": "extra"}
    by_key: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        if row["status"] in kinds:
            key = (kinds[str(row["status"])], str(row["rater"]), str(row["name"]))
            by_key.setdefault(key, []).append(str(row["image"]))
    order = {rater: k for k, rater in enumerate(style.raters)}
    keys = sorted(
        by_key, key=lambda k: (k[0] != "missed", order.get(k[1], 99), -len(by_key[k]), k)
    )
    return [
        {"kind": key[0], "rater": key[1], "structure": key[2]} | _listed(by_key[key])
        for key in keys
    ]


def _listed(images: Collection[str]) -> dict:
    ordered = sorted(images)
    return {"n": len(ordered), "first": ordered[:_NAMED], "rest": ordered[_NAMED:]}
