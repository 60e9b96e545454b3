# SPDX-License-Identifier: Apache-2.0
"""A page that compares the volumes of many participants."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from markupsafe import Markup

from brainseg_bids.anatomy.cohort import FEWEST, OUTLIER_Z, Cohort, Outlier, Presence, robust_z
from brainseg_bids.anatomy.intracranial import NAME
from brainseg_bids.reports import page, tables
from brainseg_bids.reports.ratings import RATINGS, latest
from brainseg_bids.reports.tables import linked
from brainseg_bids.reports.volume_figures import draw_volumes
from brainseg_bids.reports.volume_table import anatomical

NAMED = 12
"""More subjects than this are counted in a line, and named in a fold."""
INSIDE_COLOR = "#555555"
PER_TABLE = 6
"""Participants beside each other in the table of all volumes."""
NO_OUTLIER = f"No volume is more than {OUTLIER_Z} robust standard deviations from its median."


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

    A participant whose table has no row of a structure is left out of that structure's line.
    """
    found: dict[str, dict[str, float]] = {}
    about: dict[str, dict] = {}
    for who, rows in volumes.items():
        for row in anatomical(rows):
            found.setdefault(row["name"], {})[who] = row["volume_mm3"]
            about.setdefault(row["name"], row)
    return [
        _spread(str(row["name"]), row["group"], row["color"], found[row["name"]])
        for row in anatomical(list(about.values()))
    ]


def _spread(name: str, group: str, color: str, volumes_mm3: dict[str, float]) -> Spread:
    values = np.array(list(volumes_mm3.values()))
    low, median, high = map(float, np.percentile(values, [25, 50, 75]))
    z = dict(zip(volumes_mm3, robust_z(values).tolist(), strict=True))
    return Spread(name, group, color, volumes_mm3, median, low, high, z)


def _inside(intracranial: Mapping[str, Mapping]) -> list[Spread]:
    """The inside of the skull over participants who have its volume; none if nobody has."""
    known = {
        who: row["volume_mm3"]
        for who, row in intracranial.items()
        if row["volume_mm3"] is not None
    }
    return [_spread(NAME, NAME, INSIDE_COLOR, known)] if known else []


def write_group_page(
    path: Path,
    *,
    title: str,
    volumes: Mapping[str, Sequence[dict]],
    intracranial: Mapping[str, Mapping] | None = None,
    version: str,
    cohort: Cohort | None = None,
    to_review: Mapping[str, Sequence[str]] | None = None,
    ratings: Sequence[Mapping[str, str]] = (),
    doubts: Sequence[str] = (),
) -> Path:
    """Write volumes over participants as one self-contained HTML file, whole or not at all.

    Parameters
    ----------
    path : Path
        HTML file.
    title : str
        E.g. the dataset's name.
    volumes : mapping of str to sequence of dict
        Participant (or image) to rows of a volume table.
    intracranial : mapping of str to mapping, optional
        The same to the row of the inside of the skull.
    version : str
        Of this software.
    cohort : Cohort, optional
        Head label maps side by side: who lacks what, and whose volumes are far from the rest.
        ``volumes`` may then be empty. Labels that a map lacks do not count as volumes of 0: tools
        have different ones, and not every head has each.
    to_review : mapping of str to sequence of str, optional
        What cannot be right about which of the participants' results.
    ratings : sequence of mapping
        Rows of `brainseg_bids.reports.ratings.read_ratings`.
    doubts : sequence of str
        As of `brainseg_bids.stages.origins.doubts`.
    """
    pages = {one.name for one in Path(path).parent.glob("sub-*.html")}
    if cohort:
        volumes = {
            who: [row for row in rows if float(row["volume_mm3"]) > 0]
            for who, rows in volumes.items()
        }
    items = [f"{who}: {'; '.join(found)}" for who, found in (to_review or {}).items()]
    return page.write_page(
        path,
        page.box("Look at this before using the numbers", doubts, kind="warn") if doubts else "",
        page.box(f"{len(items)} to look at before the volumes are used", items, kind="warn")
        if items
        else "",
        _ratings(ratings, pages) if ratings else "",
        _cohort(cohort, pages) if cohort else "",
        _volumes(volumes, intracranial or {}, pages, beside_heads=cohort is not None)
        if volumes or not cohort
        else "",
        title=title,
        name=f"{title}: brainseg volumes",
        version=version,
    )


# -- ratings ------------------------------------------------------------------------------


def _ratings(rows: Sequence[Mapping[str, str]], pages: Collection[str]) -> Markup:
    """How many are good, which are not, and what was said of all of them."""
    rated = latest(rows)
    counts = [f"{list(rated.values()).count(word)} {word}" for word in RATINGS]
    bad = [linked(image, pages) for image, rating in rated.items() if rating == "bad"]
    outdated = sum(row["is_current"] == "no" for row in rows)
    frame = pd.DataFrame(
        [
            {
                "Image": linked(row["image"], pages),
                "Rating": row["rating"] if row["is_current"] == "yes" else f"{row['rating']} †",
                "Artefacts and errors": row["artefacts"],
                "Comment": row["comment"],
                "Rater": row["rater"],
                "On": row["rated_on"],
            }
            for row in rows
        ]
    )
    return page.section(
        "ratings",
        page.heading("Ratings", level=2, stay=True),
        page.text(f"{page.plural(len(rated), 'segmentation')} rated: {', '.join(counts)}."),
        page.box("Rated bad", bad, kind="bad") if bad else "",
        page.fold("All ratings", tables.html_table(frame)),
        page.text(
            "Of several raters the worst counts, of several ratings by one rater the last. Each "
            "rating without a name counts as another rater. "
            + f"† {page.plural(outdated, 'rating')} of labels that have been made again since: "
            "not counted." * bool(outdated),
            faint=True,
        ),
    )


# -- volumes ------------------------------------------------------------------------------


def _volumes(
    volumes: Mapping[str, Sequence[dict]],
    intracranial: Mapping[str, Mapping],
    pages: Collection[str],
    *,
    beside_heads: bool,
) -> Markup:
    structures = spreads(volumes)
    lines = [*_inside(intracranial), *structures]
    return page.blocks(
        page.heading("Volumes", level=2, stay=True) if beside_heads else "",
        page.text(
            f"Volumes of {len(structures)} structures in "
            f"{page.plural(len(volumes), 'segmentation')}."
        ),
        _no_volume(intracranial, pages),
        _suspects(lines, volumes, pages),
        _differences(lines) if len(volumes) > 1 else "",
        _shares(structures, volumes),
        page.heading("Structures", level=2, stay=True),
        _structures(lines, pages),
        page.text("Robust z: 0.6745 · (volume − median) / median absolute deviation.", faint=True),
        page.fold("All volumes (ml)", *_all_volumes(lines, list(volumes), pages)),
    )


def _no_volume(intracranial: Mapping[str, Mapping], pages: Collection[str]) -> Markup:
    """Who has no intracranial volume, and why."""
    items = [
        Markup("{}: {}").format(linked(who, pages), row["note"])
        for who, row in intracranial.items()
        if row["note"]
    ]
    return page.box("No intracranial volume", items) if items else Markup()


def _suspects(lines: Sequence[Spread], volumes: Collection[str], pages: Collection[str]) -> Markup:
    """Whose volumes are far from the others', most of them first."""
    if len(volumes) < FEWEST:
        return page.box(f"With fewer than {FEWEST} segmentations no one is called an outlier.")
    found = {who: [line.name for line in lines if who in line.outliers] for who in volumes}
    found = dict(sorted(found.items(), key=lambda item: -len(item[1])))
    items = [
        Markup("{}: {}").format(linked(who, pages), ", ".join(names))
        for who, names in found.items()
        if names
    ]
    if not items:
        return page.box(NO_OUTLIER)
    note = (
        f"More than {OUTLIER_Z} robust standard deviations from the median. Far away may be a "
        "failure, or a person who is different."
    )
    return page.box("Look at these pictures again", items, kind="warn", note=note)


def _differences(lines: Sequence[Spread]) -> Markup:
    percents = {
        line.name: {
            who: 100 * (volume / line.median_mm3 - 1) for who, volume in line.volumes_mm3.items()
        }
        for line in lines
        if line.median_mm3 > 0
    }
    return page.figure(
        draw_volumes(percents, {line.name: set(line.outliers) for line in lines}).png(),
        "Difference of each volume from the structure's median, one dot per segmentation",
        caption="The lowest and the highest of each structure are named, outliers in red.",
    )


def _shares(lines: Sequence[Spread], volumes: Mapping[str, Sequence[dict]]) -> Markup:
    """The same as shares of the inside of the skull, which takes out how large a head is."""
    percents: dict[str, dict[str, float]] = {}
    for who, rows in volumes.items():
        for row in rows:
            if (percent := row.get("percent_of_intracranial")) is not None:
                percents.setdefault(row["name"], {})[who] = percent
    shared = [
        _spread(line.name, line.group, line.color, percents[line.name])
        for line in lines
        if len(percents.get(line.name, {})) > 1
    ]
    if not shared:
        return Markup()
    return page.blocks(
        page.heading("In percent of the intracranial volume"),
        _differences(shared),
    )


def _structures(lines: Sequence[Spread], pages: Collection[str]) -> Markup:
    frame = pd.DataFrame(
        [
            {
                "Structure": tables.swatch(line.color, line.name),
                "n": len(line.volumes_mm3),
                "Median (ml)": tables.ml(line.median_mm3),
                "Quartiles (ml)": f"{tables.ml(line.low_mm3)} – {tables.ml(line.high_mm3)}",
                "Outliers (robust z)": Markup(", ").join(
                    Markup("{} ({})").format(linked(who, pages), tables.percent(z))
                    for who, z in line.outliers.items()
                ),
            }
            for line in lines
        ]
    )
    return tables.html_table(
        frame,
        numbers=("n", "Median (ml)", "Quartiles (ml)"),
        css={"Structure": "name"},
        groups=[line.group for line in lines],
    )


def _all_volumes(
    lines: Sequence[Spread], participants: Sequence[str], pages: Collection[str]
) -> list[Markup]:
    found = []
    for start in range(0, len(participants), PER_TABLE):
        part = participants[start : start + PER_TABLE]
        frame = pd.DataFrame(
            [
                [line.name, *(tables.ml(line.volumes_mm3.get(who)) for who in part)]
                for line in lines
            ],
            columns=["Structure", *(linked(who, pages) for who in part)],
        )
        css = {"Structure": "name"} | dict.fromkeys(frame.columns[1:], "n fold")
        found.append(tables.html_table(frame, css=css))
    return found


# -- heads side by side -------------------------------------------------------------------


def _cohort(cohort: Cohort, pages: Collection[str]) -> Markup:
    """Who lacks which structure, and whose volumes are far from the other heads'."""
    n = len(cohort.subjects)
    # Core structures that somebody lacks come first, then what most heads have.
    partial = sorted(
        (line for line in cohort.presence if 0 < len(line.has) < n),
        key=lambda line: (not line.structure.core, -len(line.has)),
    )
    return page.section(
        "cohort",
        page.heading("Head label maps", level=2, stay=True),
        page.text(f"{page.plural(n, 'head')} side by side."),
        _missing(cohort, pages),
        _strange(cohort, pages),
        _outliers(cohort, pages),
        *(
            [page.heading("In some heads only"), _presence(partial, cohort, pages)]
            if partial
            else []
        ),
        *(
            page.fold(f"{page.plural(len(lines), 'structure')} in {where}",
                      _presence(lines, cohort, pages))
            for where, lines in (
                ("all heads", [line for line in cohort.presence if len(line.has) == n]),
                ("no head", [line for line in cohort.presence if not line.has]),
            )
            if lines
        ),
    )  # fmt: skip


def _missing(cohort: Cohort, pages: Collection[str]) -> Markup:
    if not cohort.missing:
        return page.box("No head lacks a core structure.")
    note = (
        "Every head has these. A tool may have failed, or the image does not show the whole head."
    )
    items = _by_subject(cohort.missing, ", ", pages)
    return page.box("Core structures are missing", items, kind="bad", note=note)


def _strange(cohort: Cohort, pages: Collection[str]) -> Markup:
    if not cohort.unusable:
        return Markup()
    items = _by_subject(cohort.unusable, "; ", pages)
    return page.box("Volumes that could not be used", items, kind="bad")


def _outliers(cohort: Cohort, pages: Collection[str]) -> Markup:
    if len(cohort.subjects) < FEWEST:
        return page.box(f"With fewer than {FEWEST} heads no one is called an outlier.")
    found: dict[str, list[Markup]] = {}
    for one in cohort.outliers:  # farthest first: so are the subjects
        found.setdefault(one.subject, []).append(_outlier(one))
    if not found:
        return page.box(NO_OUTLIER)
    note = (
        f"More than {OUTLIER_Z} robust standard deviations from the median of the heads that "
        "have the label. Far away may be a failure, or a person who is different."
    )
    items = _by_subject(found, ", ", pages)
    return page.box("Volumes far from the other heads'", items, kind="warn", note=note)


def _outlier(one: Outlier) -> Markup:
    return Markup("{} {} ml (median {}, z&nbsp;{})").format(
        one.name, tables.ml(one.volume_mm3), tables.ml(one.median_mm3), tables.percent(one.z)
    )


def _by_subject(
    words: Mapping[str, Sequence[str]], between: str, pages: Collection[str]
) -> list[Markup]:
    return [
        Markup("{}: {}").format(linked(who, pages), Markup(between).join(found))
        for who, found in words.items()
    ]


def _presence(lines: Sequence[Presence], cohort: Cohort, pages: Collection[str]) -> Markup:
    """Which structures how many heads have, and who."""
    n = len(cohort.subjects)
    frame = pd.DataFrame(
        [
            {
                "Structure": tables.swatch(
                    cohort.table[line.structure.codes[0]].color, line.structure.name
                ),
                "Kind": tables.strong("core", far=len(line.has) < n)
                if line.structure.core
                else "optional",
                "In": f"{len(line.has)} of {n}",
                "Share": tables.share_bar(len(line.has) / max(n, 1)),
                "Who": _who(line, cohort, pages),
                "Why it may be so": line.structure.reason,
            }
            for line in lines
        ]
    )
    css = {"Structure": "name", "Why it may be so": "why faint"}
    return tables.html_table(frame, numbers=("In",), css=css)


def _who(line: Presence, cohort: Cohort, pages: Collection[str]) -> Markup:
    """Those who have a structure, or those who lack it, whichever are fewer."""
    few_lack = len(line.lacks) <= len(line.has)
    listed = line.lacks if few_lack else line.has
    if not listed or not line.has:
        words = tables.faint("all" if line.has else "none")
    else:
        first, rest = (
            Markup(", ").join(linked(who, pages) for who in part)
            for part in (listed[:NAMED], listed[NAMED:])
        )
        label = tables.faint("Missing in" if few_lack else "Only in")
        words = Markup("{} {}").format(label, first)
        if rest:
            more = Markup(' <details class="more"><summary>and {} more</summary>{}</details>')
            words += more.format(len(listed) - NAMED, rest)
    codes = [f"{code} {cohort.table[code].name}: {n}" for code, n in line.by_code.items() if n]
    if len(line.structure.codes) > 1 and codes:
        words += Markup("<br/>{}").format(tables.faint(", ".join(codes)))
    return words
