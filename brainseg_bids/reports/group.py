# SPDX-License-Identifier: Apache-2.0
"""A page that compares the volumes of many participants."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from brainseg_bids.reports.figures import draw_volumes
from brainseg_bids.reports.page import anatomical, embedded, render_page

OUTLIER_Z = 3.5
"""Iglewicz and Hoaglin 1993, *How to Detect and Handle Outliers*: beyond it, look again."""
FEWEST = 5
"""Below this number of participants no one is called an outlier."""


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
        Robust z by participant, see `robust_z`.
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


def robust_z(values: np.ndarray) -> np.ndarray:
    """Distance from the median in robust standard deviations, (n,) float.

    ``0.6745 (x - median) / MAD``. Where more than half of the values are equal the MAD is zero
    and the mean absolute deviation takes its place: ``(x - median) / (1.2533 meanAD)``.

    >>> robust_z(np.array([1.0, 2, 3, 4, 100])).round(2).tolist()
    [-1.35, -0.67, 0.0, 0.67, 65.43]
    """
    values = np.asarray(values, dtype=float)
    apart = values - np.median(values)
    scale = np.median(np.abs(apart)) / 0.6745
    if scale == 0:
        scale = 1.2533 * np.abs(apart).mean()
    return apart / scale if scale > 0 else np.zeros_like(values)


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
    path: Path, *, title: str, volumes: dict[str, list[dict]], version: str
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
    """
    lines = spreads(volumes)
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
        suspects=dict(sorted(suspects.items(), key=lambda item: -len(item[1]))),
        outlier_z=OUTLIER_Z,
        fewest=FEWEST,
        version=version,
    )
