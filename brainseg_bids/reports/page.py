# SPDX-License-Identifier: Apache-2.0
"""HTML pages that open anywhere: one file, no script, nothing fetched."""

from __future__ import annotations

import base64
import math
import re
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from brainseg_bids.reports.groups import BRAIN, CSF, GROUPS, group_of_row, plain_name
from brainseg_bids.volumes import whole_or_nothing

_COLOR = re.compile(r"#[0-9a-fA-F]{6}")


@dataclass(frozen=True)
class ScanReport:
    """What the page says about one segmented image.

    Parameters
    ----------
    title : str
        Heading, e.g. ``T1w, session 1``.
    source : str
        The image that was segmented.
    figure : Path
        PNG; it is copied into the page. A missing file is said in its place.
    volumes : list of dict
        Rows with ``index``, ``name``, ``hemisphere``, ``color``, ``volume_mm3``; the
        background may be among them and is left out. An optional ``mapping`` (code of the BIDS
        standard label table) groups structures of tables that are not packaged.
    facts : dict of str to str
        Shown in the given order, e.g. time, memory, device, model, voxel size. What is called
        ``Model`` is repeated in the summary.
    warnings : list of str
    outputs : list of str
        Files that were written.
    """

    title: str
    source: str
    figure: Path
    volumes: list[dict]
    facts: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Asymmetry:
    """One structure on both sides.

    Parameters
    ----------
    name : str
        Without the side.
    group : str
    left_mm3, right_mm3 : float or None
        None where the table has no row for that side.
    percent : float or None
        ``100 (L - R) / ((L + R) / 2)``: positive where the left is larger, ±200 where one side
        is empty; None where a side is missing or both are empty.
    """

    name: str
    group: str
    left_mm3: float | None
    right_mm3: float | None
    percent: float | None


def asymmetries(rows: list[dict]) -> list[Asymmetry]:
    """Pair left and right rows that share a name but for the side, in anatomical order.

    >>> rows = [{"index": 10, "name": "Left-Thalamus", "hemisphere": "left", "volume_mm3": 110},
    ...     {"index": 49, "name": "Right-Thalamus", "hemisphere": "right", "volume_mm3": 90}]
    >>> asymmetries(rows)
    [Asymmetry(name='Thalamus', group='Brain', left_mm3=110.0, right_mm3=90.0, percent=20.0)]
    """
    pairs: dict[tuple[str, str], dict[str, float]] = {}
    for row in anatomical(rows):
        if row["hemisphere"] in ("left", "right"):
            pair = pairs.setdefault((plain_name(str(row["name"])), group_of_row(row)), {})
            pair[row["hemisphere"]] = float(row["volume_mm3"])
    found = []
    for (name, group), pair in pairs.items():
        left, right = pair.get("left"), pair.get("right")
        percent = None
        if left is not None and right is not None and left + right > 0:
            percent = 100 * (left - right) / ((left + right) / 2)
        found.append(Asymmetry(name, group, left, right, percent))
    return found


def write_page(
    path: Path,
    *,
    subject: str,
    scans: list[ScanReport],
    settings: str,
    errors: list[str],
    methods: str,
    version: str,
) -> Path:
    """Write one subject's report as a single HTML file, whole or not at all.

    Figures are embedded; the page has no script, asks the network for nothing (its own content
    policy forbids it), follows the reader's light or dark setting, and prints. Whatever is
    passed in is escaped.

    Parameters
    ----------
    path : Path
        HTML file.
    subject : str
        Participant label, without ``sub-``.
    scans : list of ScanReport
        In the order of the page; may be empty when everything failed.
    settings : str
        TOML text.
    errors : list of str
        One per thing that failed; line breaks are kept.
    methods : str
        Boilerplate; blank lines separate paragraphs.
    version : str
        Of this software.
    """
    return render_page(
        path,
        "report.html.j2",
        subject=subject.removeprefix("sub-"),
        scans=[_scan(scan) for scan in scans],
        n_warnings=sum(len(scan.warnings) for scan in scans),
        settings=settings,
        errors=errors,
        methods=_paragraphs(methods),
        version=version,
    )


def render_page(path: Path, template: str, **content: object) -> Path:
    """Fill a packaged template and write it, whole or not at all; everything is escaped."""
    written = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    text = _environment().get_template(template).render(written=written, **content)
    path = Path(path)
    with whole_or_nothing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _scan(scan: ScanReport) -> dict:
    """What the template needs of one scan."""
    rows = anatomical(scan.volumes)
    pairs = asymmetries(rows)
    groups = []
    for name in GROUPS:
        members = [row for row in rows if row["group"] == name]
        if members:
            total = math.fsum(row["volume_mm3"] for row in members)
            groups.append({"name": name, "rows": members, "total_mm3": total})
    totals = {group["name"]: group["total_mm3"] for group in groups}
    return {
        "title": scan.title,
        "source": scan.source,
        "figure": embedded(Path(scan.figure)),
        "groups": groups,
        "brain_mm3": totals.get(BRAIN),
        "csf_mm3": totals.get(CSF),
        "asymmetries": pairs,
        # One bar scale for all structures; 20 % at least, so that small differences look small.
        "widest_percent": max([20.0, *(abs(p.percent) for p in pairs if p.percent is not None)]),
        "model": next((v for k, v in scan.facts.items() if k.strip().lower() == "model"), None),
        "facts": scan.facts,
        "warnings": scan.warnings,
        "outputs": scan.outputs,
    }


def anatomical(rows: list[dict]) -> list[dict]:
    """Rows without background, sorted by group; left and right of a structure are neighbours."""
    cleaned = [
        {
            **row,
            "index": int(row["index"]),
            "volume_mm3": float(row["volume_mm3"]),
            "hemisphere": str(row.get("hemisphere") or "none"),
            "color": row["color"] if _COLOR.fullmatch(str(row.get("color"))) else "#808080",
            "group": group_of_row(row),
        }
        for row in rows
        if int(row["index"]) != 0
    ]
    first: dict[tuple[str, str], int] = {}
    for row in cleaned:
        key = (row["group"], plain_name(str(row["name"])))
        first[key] = min(row["index"], first.get(key, row["index"]))
    return sorted(
        cleaned,
        key=lambda row: (
            GROUPS.index(row["group"]),
            first[row["group"], plain_name(str(row["name"]))],
            row["hemisphere"],
            row["index"],
        ),
    )


def embedded(figure: Path) -> str | None:
    """Data URI of a PNG, None if there is no such file."""
    if not figure.is_file():
        return None
    return "data:image/png;base64," + base64.b64encode(figure.read_bytes()).decode("ascii")


def _paragraphs(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]


def _ml(volume_mm3: float | None) -> str:
    return "n/a" if volume_mm3 is None else f"{volume_mm3 / 1000:,.2f}"


def _mm3(volume_mm3: float | None) -> str:
    return "n/a" if volume_mm3 is None else f"{volume_mm3:,.0f}"


def _percent(value: float | None) -> str:
    return "n/a" if value is None else f"{value:+.1f}".replace("-", "−")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("brainseg_bids", "data"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"ml": _ml, "mm3": _mm3, "percent": _percent}
    return environment
