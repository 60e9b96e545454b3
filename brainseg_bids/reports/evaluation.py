# SPDX-License-Identifier: Apache-2.0
"""A page that says how well raters agree with a reference, how sure that is, and where not."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.evaluation.bland_altman import limits_of_agreement
from brainseg_bids.evaluation.bootstrap import Bootstrap
from brainseg_bids.evaluation.scores import ALL, Row, Scores, read_scores
from brainseg_bids.evaluation.summary import Missing
from brainseg_bids.evaluation.summary import tables as all_tables
from brainseg_bids.reports import evaluation_gaps as gaps
from brainseg_bids.reports import evaluation_tables as texts
from brainseg_bids.reports import page
from brainseg_bids.reports.evaluation_figures import (
    draw_bland_altman,
    draw_headline,
    draw_structures,
)
from brainseg_bids.reports.evaluation_sections import Sections
from brainseg_bids.units import natural_order


@dataclass(frozen=True)
class WorstCase:
    """A structure in an image on which a rater does badly.

    Parameters
    ----------
    image, rater, structure : str
    dice : float
    figure : Path, optional
        PNG of `brainseg_bids.reports.evaluation_cases.draw_case`. A file that is not there is
        said in its place.
    """

    image: str
    rater: str
    structure: str
    dice: float
    figure: Path | None = None


@dataclass(frozen=True)
class SourceNote:
    """What is to be known of a reference or a rater: what its adapter says.

    Parameters
    ----------
    name : str
    role : str
        E.g. ``reference``.
    citation, licence : str
    judged : tuple of str
        Structures that can be judged; empty if all.
    notes : tuple of str
        E.g. what is not labelled, and what was found on reading the files.
    """

    name: str
    role: str = ""
    citation: str = ""
    licence: str = ""
    judged: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def find_worst(
    rows: Sequence[Row], reference: str, *, n_cases: int = 6, names: Collection[str] | None = None
) -> list[WorstCase]:
    """Cases to look at: far below what is usual for their structure, one for each image and rater.

    Sorted by how far Dice lies below the median of its structure over all images and raters, so
    that thin structures, whose Dice is low everywhere, do not fill the list.

    Parameters
    ----------
    rows : sequence of mapping
        See `brainseg_bids.evaluation.scores.read_scores`.
    reference : str
    n_cases : int
    names : collection of str, optional
        Structures to look at; by default all.

    Returns
    -------
    list of WorstCase
        Without figures, worst first.

    Examples
    --------
    >>> row = {"reference": "manual", "rater": "ours", "name": "Thalamus", "status": "both"}
    >>> rows = [row | {"image": f"sub-{k}", "subject": f"sub-{k}", "dice": k / 10} for k in (9, 5)]
    >>> find_worst(rows, "manual", n_cases=1)
    [WorstCase(image='sub-5', rater='ours', structure='Thalamus', dice=0.5, figure=None)]
    """
    chosen = [
        row
        for row in rows
        if row["reference"] == reference
        and row["status"] != "neither"
        and (names is None or row["name"] in names)
    ]
    by_name: dict[str, list[float]] = {}
    for row in chosen:
        by_name.setdefault(str(row["name"]), []).append(float(row["dice"]))
    usual = {name: float(np.median(values)) for name, values in by_name.items()}
    worst: dict[tuple[str, str], tuple] = {}
    for row in chosen:
        dice, name = float(row["dice"]), str(row["name"])
        image, rater = str(row["image"]), str(row["rater"])
        bad = (dice - usual[name], dice, image, rater, name)
        worst[image, rater] = min(bad, worst.get((image, rater), bad))
    return [
        WorstCase(image, rater, name, dice)
        for _, dice, image, rater, name in sorted(worst.values())[:n_cases]
    ]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a page about one reference is made of.

    Parameters
    ----------
    title : str
    rows : sequence of mapping
        See `brainseg_bids.evaluation.scores.read_scores`. Rows of other references are left out.
    reference : str
    raters : sequence of str
        In the order of the page; one without rows is said to have none.
    worst : sequence of WorstCase
        Lowest Dice first on the page, whatever their order; cases with one picture share it.
    missing : sequence of Missing
        What could not be compared; of other references left out.
    notes : sequence of SourceNote
        Citation, licence and what is not judged, of reference and raters.
    methods : str
        With citations; blank lines separate paragraphs. See `methods_text`.
    version : str
        Of this software.
    leaks : collection of (str, str)
        Rater and image: raters that were trained, fitted or chosen on images they are judged on.
    failures : sequence of str
        One line for each image that could not be read or compared.
    tables : mapping of str to sequence of dict, optional
        What `brainseg_bids.evaluation.summary.tables` gave for these rows, so that page and
        files have the same numbers; computed if it is not given.
    bootstrap : Bootstrap
        How the intervals were made, and how they are made if ``tables`` is not given.
    """

    title: str
    rows: Sequence[Row]
    reference: str
    raters: Sequence[str]
    worst: Sequence[WorstCase]
    missing: Sequence[Missing]
    notes: Sequence[SourceNote]
    methods: str
    version: str
    leaks: Collection[tuple[str, str]] = ()
    failures: Sequence[str] = ()
    tables: Mapping[str, Sequence[Mapping]] | None = None
    bootstrap: Bootstrap = field(default_factory=Bootstrap)


def write_evaluation_page(path: Path, evidence: Evidence) -> Path:
    """Write an evaluation against one reference as a single HTML file, whole or not at all.

    Plots are drawn here and embedded, as are the pictures of the worst cases; the page has no
    script and asks the network for nothing. Whatever is passed in is escaped.

    Raises
    ------
    ValueError
        If rows contradict each other, or are of a rater that is not in the list.
    """
    reference, raters = evidence.reference, evidence.raters
    own = [row for row in evidence.rows if row["reference"] == reference]
    with_rows = {str(row["rater"]) for row in own}
    if strange := sorted(with_rows - set(raters)):
        raise ValueError(f"{path}: rows of rater {', '.join(strange)}, which is not in the list")
    tables = evidence.tables
    if tables is None:
        tables = all_tables(own, bootstrap=evidence.bootstrap)
    scores = next(iter(read_scores(own)), None)
    only = _only_stratum(scores)
    if only:
        scores = replace(scores, strata=("",) * len(scores.images))
    tables = _own_lines(tables, reference, only)
    names = () if scores is None else scores.names
    style = _style(evidence, scores, names)
    lacking = gaps.Gaps(
        failures=evidence.failures,
        silent=[rater for rater in raters if rater not in with_rows],
        missing=texts.missing(m.row() for m in evidence.missing if m.reference == reference),
        lone=texts.lone(own, style),
    )
    numbers = Sections(
        tables=tables,
        style=style,
        names=names,
        n_subjects=0 if scores is None else len(set(scores.subjects)),
        interval=evidence.bootstrap.description,
        definition=_definition(own),
        figures=_figures(scores, tables, style, own),
    )
    facts = _facts(reference, raters, scores, only)
    return page.write_page(
        path,
        gaps.summary(facts, _leaks(evidence.leaks), numbers.n_subjects, lacking),
        numbers.league(),
        numbers.pairs(),
        gaps.worst(_worst(evidence.worst, style)),
        numbers.structures(),
        numbers.volumes(),
        lacking.section(),
        gaps.sources(evidence.notes),
        page.methods_section(evidence.methods, stay=True),
        title=evidence.title,
        name=f"{evidence.title}: brainseg evaluation",
        version=evidence.version,
    )


def _style(evidence: Evidence, scores: Scores | None, names: Sequence[str]) -> texts.Style:
    return texts.Style(
        raters=tuple(evidence.raters),
        metrics=texts.chosen_metrics(() if scores is None else scores.metrics),
        leaky=frozenset(rater for rater, _ in evidence.leaks),
        swatches=texts.structure_colors(names, LabelTable.packaged("fullhead")),
    )


def _only_stratum(scores: Scores | None) -> str:
    """Stratum of all images, which is no use to show beside all; empty if there are several."""
    strata = set() if scores is None else set(scores.strata)
    return strata.pop() if len(strata) == 1 else ""


def _own_lines(
    tables: Mapping[str, Sequence[Mapping]], reference: str, only: str
) -> dict[str, list[Mapping]]:
    """Lines of one reference; its only stratum, which all images are of, is not told apart."""
    return {
        name: [
            line
            for line in lines
            if line["reference"] == reference and not (only and line.get("stratum") == only)
        ]
        for name, lines in tables.items()
    }


def _facts(
    reference: str, raters: Sequence[str], scores: Scores | None, only: str
) -> dict[str, str]:
    facts = {"Reference": reference, "Raters": ", ".join(raters) or "none"}
    if scores is not None:
        strata = sorted(set(scores.strata) - {""})
        facts |= {
            "Subjects": str(len(set(scores.subjects))),
            "Images": str(len(scores.images)),
            "Structures": str(len(scores.names)),
            "Strata": ", ".join(f"{s} ({scores.strata.count(s)})" for s in strata)
            or only
            or "none",
        }
    return facts


def _definition(rows: Sequence[Row]) -> str:
    """Of surfaces, in words; `read_scores` has refused rows that mix two."""
    given = next((str(row["definition"]) for row in rows if row.get("definition")), "")
    return texts.DEFINITIONS.get(given, given or "not stated")


def _leaks(leaks: Collection[tuple[str, str]]) -> dict[str, list[str]]:
    """Images by rater."""
    images: dict[str, list[str]] = {}
    for rater, image in sorted(set(leaks), key=lambda leak: list(map(natural_order, leak))):
        images.setdefault(rater, []).append(image)
    return images


def _figures(
    scores: Scores | None,
    tables: Mapping[str, Sequence[Mapping]],
    style: texts.Style,
    rows: Sequence[Row],
) -> dict[str, bytes]:
    """PNG of each plot where there is something to draw."""
    figures: dict[str, bytes] = {}
    if scores is None or not style.metrics:
        return figures
    raters = [rater for rater in style.raters if rater in scores.raters]
    judged = [str(line["name"]) for line in tables["judged"] if line["used"]]
    if judged:
        drawn = draw_headline(scores, judged, style.metrics, raters)
        figures["headline"] = drawn.png()
    drawn = draw_structures(scores, scores.names, style.metrics[:2], raters, style.swatches)
    figures["structures"] = drawn.png()
    lines = limits_of_agreement(rows)
    lines = [one for one in lines if (one.unit, one.stratum) == ("percent", ALL)]
    figures["volumes"] = draw_bland_altman(lines, raters).png()
    return figures


def _worst(worst: Sequence[WorstCase], style: texts.Style) -> list[dict]:
    """Worst first; what is on one picture stands together."""
    entries: dict[object, dict] = {}
    for number, case in enumerate(sorted(worst, key=lambda case: case.dice)):
        key = number if case.figure is None else Path(case.figure)
        entry = entries.setdefault(
            key,
            {
                "image": case.image,
                "rater": case.rater,
                "shown_rater": style.rater(case.rater),
                "structures": [],
                "figure": None if case.figure is None else Path(case.figure),
            },
        )
        entry["structures"].append(f"{case.structure}: Dice {texts.number(case.dice, 'dice')}")
    return list(entries.values())


PROTOCOLS = {
    "label-restricted": "Protocol label-restricted: the reference's labels were judged over all "
    "voxels; what a rater calls other tissue counts as background.",
    "within-evaluable": "Protocol within-evaluable: voxels that the reference leaves unlabelled "
    "and any rater calls brain tissue that it does not label were left out, for all raters alike.",
}


def methods_text(definition: str, protocol: str, bootstrap: Bootstrap | None = None) -> str:
    """How numbers of the page are made, with citations.

    Parameters
    ----------
    definition : {"surface", "voxel"}
        Of surfaces, as in the rows.
    protocol : {"label-restricted", "within-evaluable"}
    bootstrap : Bootstrap, optional

    Examples
    --------
    >>> "Nikolov" in methods_text("surface", "label-restricted")
    True
    """
    draws = bootstrap or Bootstrap()
    surfaces = {
        "surface": "Surfaces pass through the corners of voxels and are weighted by their area, "
        "as in surface-distance (Nikolov et al., Journal of Medical Internet Research 23, 2021, "
        "e26151).",
        "voxel": "Surfaces are the voxels that lack one of six neighbours, each counted once, as "
        "in MONAI (Cardoso et al., arXiv 2211.02701, 2022).",
    }
    if definition not in surfaces:
        raise ValueError(f"no definition of surfaces {definition!r}; known: surface, voxel")
    return "\n\n".join(
        (
            "Label maps were compared structure by structure: overlap by Dice's coefficient "
            "(Ecology 26, 1945), distances between surfaces by their mean (ASSD) and their 95th "
            "percentile (HD95), and the share of both surfaces within a tolerance (NSD, Nikolov "
            f"et al., 2021). {surfaces[definition]} Numbers of the two usual definitions of "
            "surfaces differ and must not be mixed. Metrics were chosen after Metrics Reloaded "
            "(Maier-Hein, Reinke et al., Nature Methods 21, 2024).",
            "A structure that one map alone has counts with an overlap and NSD of 0 and has no "
            "distance; one that neither has is left out. Means over structures are of those "
            "that the reference and all raters know. Several images of a subject are averaged "
            f"first. In brackets: {draws.description}, subjects drawn with replacement, then "
            "their images (Efron and Tibshirani, An Introduction to the Bootstrap, 1993; Davison "
            "and Hinkley, Bootstrap Methods and their Application, 1997; Hesterberg, The "
            "American Statistician 69, 2015).",
            "Raters were compared on the images and structures that both have, by Wilcoxon's "
            "signed-rank test (Biometrics Bulletin 1, 1945), adjusted after Holm (Scandinavian "
            "Journal of Statistics 6, 1979), with the Hodges-Lehmann shift (Annals of "
            "Mathematical Statistics 34, 1963) and the matched-pairs rank-biserial correlation "
            "(Kerby, Comprehensive Psychology 3, 2014) as effect sizes. Chances of ranks are "
            "shares of bootstrap draws (Wiesenfarth et al., Scientific Reports 11, 2021). "
            "Volumes were compared after Bland and Altman (Lancet 327, 1986).",
            PROTOCOLS[protocol],
        )
    )
