# SPDX-License-Identifier: Apache-2.0
"""A page that compares the volumes of many participants."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from brainseg_bids.anatomy.cohort import FEWEST, OUTLIER_Z, Cohort, Outlier, Presence, robust_z
from brainseg_bids.reports.figures import draw_volumes
from brainseg_bids.reports.html import embedded, render_page
from brainseg_bids.reports.volume_table import anatomical


@dataclass(frozen=True)
class Spread:
    """One structure over participants.

    Parameters
    ----------
    name, group, color : str
    volumes_mm3 : dict of str to float
        By participant.
    median_mm3, low_mm3, high_mm3 : float
        Median and quartiles.
    z : dict of str to float
        Robust z by participant, see `brainseg_bids.anatomy.cohort.robust_z`.
    """

    name: str
    group: str
    color: str
    volumes_mm3: dict[str, float]
    median_mm3: float
    low_mm3: float
    high_mm3: float
    z: dict[str, float]

    @property
    def outliers(self) -> dict[str, float]:
        """Participants with ``|z| > OUTLIER_Z``, farthest first; none if there are few."""
        if len(self.z) < FEWEST:
            return {}
        far = [(who, z) for who, z in self.z.items() if abs(z) > OUTLIER_Z]
        return dict(sorted(far, key=lambda item: -abs(item[1])))


def spreads(volumes: dict[str, list[dict]]) -> list[Spread]:
    """Each structure over participants, in anatomical order; see `write_group_page`.

    A participant who lacks a structure is left out of that structure's line.
    """
    found: dict[str, dict[str, float]] = {}
    about: dict[str, dict] = {}
    for who, rows in volumes.items():
        for row in anatomical(rows):
            found.setdefault(row["name"], {})[who] = row["volume_mm3"]
            about.setdefault(row["name"], row)
    result = []
    for row in anatomical(list(about.values())):
        by_participant = found[row["name"]]
        values = np.array(list(by_participant.values()))
        low, median, high = np.percentile(values, [25, 50, 75])
        z = dict(zip(by_participant, robust_z(values).tolist(), strict=True))
        result.append(
            Spread(
                str(row["name"]),
                row["group"],
                row["color"],
                by_participant,
                float(median),
                float(low),
                float(high),
                z,
            )
        )
    return result


def write_group_page(
    path: Path,
    *,
    title: str,
    volumes: dict[str, list[dict]],
    version: str,
    cohort: Cohort | None = None,
    to_look_at: Mapping[str, list[str]] | None = None,
) -> Path:
    """Write volumes over participants as one self-contained HTML file, whole or not at all.

    Parameters
    ----------
    path : Path
        HTML file.
    title : str
        E.g. the dataset's name.
    volumes : dict of str to list of dict
        Participant (or scan) to rows as in `brainseg_bids.reports.page.ScanReport`.
    version : str
        Of this software.
    cohort : Cohort, optional
        Head label maps side by side: who lacks what, and whose volumes are far from the rest.
        ``volumes`` may then be empty.
    to_look_at : mapping of str to list of str, optional
        What cannot be right about which of the participants' results.
    """
    lines = spreads(volumes)
    pages = {page.name for page in Path(path).parent.glob("sub-*.html")}
    figure = None
    if len(volumes) > 1:
        with tempfile.TemporaryDirectory() as folder:
            percents = {
                line.name: {
                    who: 100 * (volume / line.median_mm3 - 1)
                    for who, volume in line.volumes_mm3.items()
                }
                for line in lines
                if line.median_mm3 > 0
            }
            outliers = {line.name: set(line.outliers) for line in lines}
            figure = embedded(draw_volumes(percents, outliers, Path(folder) / "volumes.png"))
    suspects = {
        who: [line.name for line in lines if who in line.outliers]
        for who in volumes
        if any(who in line.outliers for line in lines)
    }
    return render_page(
        path,
        "group.html.j2",
        title=title,
        participants=list(volumes),
        lines=lines,
        figure=figure,
        cohort=None if cohort is None else _cohort(cohort) | {"pages": pages},
        pages=pages,
        to_look_at=to_look_at or {},
        suspects=dict(sorted(suspects.items(), key=lambda item: -len(item[1]))),
        outlier_z=OUTLIER_Z,
        fewest=FEWEST,
        version=version,
    )


_NAMED = 12
"""More subjects than this are counted in a line, and named in a fold."""


def _cohort(cohort: Cohort) -> dict:
    """What the template needs of a cohort."""
    lines = [_presence(line, cohort) for line in cohort.presence]
    by_subject: dict[str, list[Outlier]] = {}
    for outlier in cohort.outliers:  # farthest first: so are the subjects
        by_subject.setdefault(outlier.subject, []).append(outlier)
    return {
        "subjects": cohort.subjects,
        "missing": cohort.missing,
        "strange": cohort.strange,
        "outliers": by_subject,
        "n_outliers": len(cohort.outliers),
        "enough": len(cohort.subjects) >= FEWEST,
        # Core structures that somebody lacks come first, then what most heads have.
        "partial": sorted(
            (line for line in lines if 0 < line["n"] < len(cohort.subjects)),
            key=lambda line: (not line["core"], -line["n"]),
        ),
        "everywhere": [line for line in lines if line["n"] == len(cohort.subjects)],
        "nowhere": [line for line in lines if not line["n"]],
    }


def _presence(line: Presence, cohort: Cohort) -> dict:
    few_lack = len(line.lacks) <= len(line.has)
    listed = line.lacks if few_lack else line.has
    several = len(line.structure.codes) > 1
    return {
        "name": line.structure.name,
        "core": line.structure.core,
        "reason": line.structure.reason,
        "color": cohort.table[line.structure.codes[0]].color,
        "n": len(line.has),
        "percent": 100 * len(line.has) / max(len(cohort.subjects), 1),
        "listed": "Missing in" if few_lack else "Only in",
        "first": listed[:_NAMED],
        "rest": listed[_NAMED:],
        "codes": [
            f"{code} {cohort.table[code].name}: {n}" for code, n in line.by_code.items() if n
        ]
        if several
        else [],
    }
