# SPDX-License-Identifier: Apache-2.0
"""Summary tables over subjects and raters, in which every value has its sample size.

Subjects are the sampling unit: several images of a subject are averaged first. The methods follow
Metrics Reloaded (Maier-Hein, Reinke et al., Nature Methods 21, 2024);
`docs/explanation/evaluation.md` gives the reasons.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from brainseg_bids.evaluation.bland_altman import limits_of_agreement
from brainseg_bids.evaluation.bootstrap import (
    Bootstrap,
    Draws,
    Interval,
    mean_interval,
    subject_means,
)
from brainseg_bids.evaluation.comparison import compare_raters
from brainseg_bids.evaluation.ranking import rank_stability
from brainseg_bids.evaluation.scores import (
    NO_ROW,
    STATUSES,
    Judged,
    Metric,
    Row,
    Scores,
    TableLine,
    judge,
    metric,
    read_scores,
    structures_of_mean,
)
from brainseg_bids.units import natural_order

__all__ = ["Missing", "Summary", "find_missing", "headline", "judged", "summarise", "tables"]

HEADLINE_METRICS = ("dice", "assd_mm", "hd95_mm")
"""Metrics by which raters are compared and ranked, in addition to NSD."""


@dataclass(frozen=True)
class Summary(TableLine):
    """One metric of one rater, summarised over subjects.

    Parameters
    ----------
    reference, rater, stratum, name, metric : str
        ``stratum`` is "all" for all images. ``name`` is a structure, or "mean of n structures".
    n_structures, n_subjects, n_images : int
        Number of structures, subjects and images with a value.
    n_both, n_reference_only, n_prediction_only, n_neither, n_no_row : int
        Number of structures in images by status, over all images of the rater.
    n_left_out : int
        Number of these for which the metric is not defined; they are not part of the mean.
    mean : float or None
        Mean over subjects. This and all following values are None if there is no value.
    low, high : float or None
        Interval of the mean; None with a reason in ``note``.
    median, q1, q3 : float or None
        Median and quartiles over subjects.
    worst : float or None
        Worst value of an image.
    worst_image : str
        Image with the worst value; of several, the first in order of subjects.
    note : str
        Reason why values are missing.
    """

    reference: str
    rater: str
    stratum: str
    name: str
    metric: str
    n_structures: int
    n_subjects: int
    n_images: int
    n_both: int
    n_reference_only: int
    n_prediction_only: int
    n_neither: int
    n_no_row: int
    n_left_out: int
    mean: float | None
    low: float | None
    high: float | None
    median: float | None
    q1: float | None
    q3: float | None
    worst: float | None
    worst_image: str
    note: str


def summarise(
    rows: Sequence[Row],
    *,
    metrics: Collection[str] | None = None,
    bootstrap: Bootstrap | None = None,
) -> list[Summary]:
    """Summary over subjects for each rater, structure, metric and stratum.

    Parameters
    ----------
    rows : sequence of mapping
        See `scores.read_scores`.
    metrics : collection of str, optional
        Default: all columns that are metrics.
    bootstrap : Bootstrap, optional

    Raises
    ------
    ValueError
        If rows contradict each other, or a value is missing although it is defined.

    Examples
    --------
    >>> row = {"reference": "manual", "rater": "ours", "name": "Thalamus", "status": "both"}
    >>> rows = [
    ...     row | {"image": f"sub-{k}", "subject": f"sub-{k}", "dice": 0.8 + k / 100}
    ...     for k in range(11)
    ... ]
    >>> [line] = summarise(rows)
    >>> line.n_subjects, round(line.mean, 2), line.worst_image
    (11, 0.85, 'sub-0')
    """
    draws = Draws(bootstrap or Bootstrap())
    return [
        _summary(part, stratum, rater, [name], wanted, draws, name)
        for scores in read_scores(rows)
        for stratum, part in scores.by_stratum()
        for rater in part.raters
        for name in part.names
        for wanted in _metrics(scores, metrics)
        if (_statuses(part, rater, [name]) != NO_ROW).any()
    ]


def headline(
    rows: Sequence[Row],
    *,
    metrics: Collection[str] | None = None,
    structures: Collection[str] | None = None,
    known: Mapping[str, Collection[str]] | None = None,
    bootstrap: Bootstrap | None = None,
) -> list[Summary]:
    """Mean over structures in each image, then over the images of a subject, then over subjects.

    Only structures that the reference and all raters have are used, see `judged`. Each rater is
    summarised over all of its images, so values of raters with different images are not
    comparable. To compare raters on common images, use `comparison.compare_raters` and
    `ranking.rank_stability`.

    Parameters
    ----------
    rows, metrics, bootstrap
        As in `summarise`.
    structures, known
        As in `scores.judge`.
    """
    draws = Draws(bootstrap or Bootstrap())
    result = []
    for scores in read_scores(rows):
        ((title, names),) = structures_of_mean(scores, structures, known).items()
        result += [
            _summary(part, stratum, rater, names, wanted, draws, title)
            for stratum, part in scores.by_stratum()
            for rater in part.raters
            for wanted in _metrics(scores, metrics)
            if names and (_statuses(part, rater, names) != NO_ROW).any()
        ]
    return result


def judged(
    rows: Sequence[Row],
    *,
    structures: Collection[str] | None = None,
    known: Mapping[str, Collection[str]] | None = None,
) -> list[Judged]:
    """Structures of the mean over structures, with reasons for exclusion; see `scores.judge`."""
    return [
        one
        for scores in read_scores(rows)
        for one in judge(scores, structures=structures, known=known)
    ]


def _metrics(scores: Scores, metrics: Collection[str] | None) -> list[Metric]:
    """Rules of the metrics that are asked for."""
    return [metric(name) for name in (scores.metrics if metrics is None else metrics)]


def _statuses(scores: Scores, rater: str, names: Sequence[str]) -> np.ndarray:
    """(images, names) status, of images that the rater has."""
    status = scores.status[scores.raters.index(rater)]
    return status[(status != NO_ROW).any(axis=1)][:, scores.indices_of(names)]


def _summary(
    scores: Scores,
    stratum: str,
    rater: str,
    names: Sequence[str],
    wanted: Metric,
    draws: Draws,
    title: str,
) -> Summary:
    """Numbers of one line."""
    status = _statuses(scores, rater, names)
    cells = scores.values(wanted)[scores.raters.index(rater)][:, scores.indices_of(names)]
    kept = np.isfinite(cells).any(axis=1)
    subjects = [subject for subject, keep in zip(scores.subjects, kept, strict=True) if keep]
    images = [image for image, keep in zip(scores.images, kept, strict=True) if keep]
    values = np.nanmean(cells[kept], axis=1)
    both, first, second, neither, no_row = (
        int((status == code).sum()) for code in (*range(len(STATUSES)), NO_ROW)
    )
    left_out = status.size - int(np.isfinite(cells).sum())
    n_subjects = len(set(subjects))
    where = (scores.reference, rater, stratum, title, wanted.name)
    n = (len(names), n_subjects, len(images), both, first, second, neither, no_row, left_out)
    return Summary(*where, *n, *_spread(values, subjects, images, wanted, draws))


def _spread(
    values: np.ndarray,
    subjects: Sequence[str],
    images: Sequence[str],
    wanted: Metric,
    draws: Draws,
) -> tuple[Any, ...]:
    """Fields of a `Summary` from ``mean`` to ``note``."""
    if not len(values):
        return (*[None] * 7, "", "nothing is left to average")
    means = subject_means(values, subjects)
    interval: Interval = mean_interval(values, subjects, draws)
    q1, median, q3 = (float(q) for q in np.quantile(means, [0.25, 0.5, 0.75]))
    worst = int(np.argmax(wanted.cost(values)))
    centre = (float(means.mean()), interval.low, interval.high, median, q1, q3)
    return (*centre, float(values[worst]), images[worst], interval.note)


@dataclass(frozen=True)
class Missing(TableLine):
    """An image or structure that could not be compared.

    Parameters
    ----------
    kind : str
        "reference without prediction", "prediction without reference" or "no row of the
        structure".
    reference, rater, image : str
    name : str
        Structure; empty for a whole image.
    """

    kind: str
    reference: str
    rater: str
    image: str
    name: str = ""


def find_missing(
    rows: Sequence[Row],
    *,
    references: Mapping[str, Collection[str]] | None = None,
    raters: Mapping[str, Collection[str]] | None = None,
) -> list[Missing]:
    """Images that only the reference or only a rater has, and structures without a row.

    Parameters
    ----------
    rows : sequence of mapping
    references, raters : mapping of name to images, optional
        Images of each reference and each rater. Default for ``references``: the images on which
        any rater was compared. Default for ``raters``: the images with rows, so that predictions
        without reference are not found.

    Examples
    --------
    >>> gone = find_missing([], references={"manual": ["sub-1"]}, raters={"ours": ["sub-2"]})
    >>> [(one.kind, one.image) for one in gone]
    [('reference without prediction', 'sub-1'), ('prediction without reference', 'sub-2')]
    """
    scores = {one.reference: one for one in read_scores(rows)}
    wanted = {
        name: sorted(set(images), key=natural_order) for name, images in (references or {}).items()
    }
    wanted = {name: list(one.images) for name, one in scores.items()} | wanted
    compared = {
        (name, rater): _images_with_rows(one, rater)
        for name, one in scores.items()
        for rater in one.raters
    }
    everyone = sorted({rater for _, rater in compared} | set(raters or {}))
    result = []
    for name in sorted(wanted):
        for rater in everyone:
            has = set((raters or {}).get(rater, compared.get((name, rater), ())))
            result += [
                Missing("reference without prediction", name, rater, image)
                for image in wanted[name]
                if image not in has
            ]
            result += [
                Missing("prediction without reference", name, rater, image)
                for image in sorted(has - set(wanted[name]), key=natural_order)
            ]
    return result + [gap for one in scores.values() for gap in _gaps(one)]


def _images_with_rows(scores: Scores, rater: str) -> list[str]:
    """Images that a rater was compared on."""
    seen = (scores.status[scores.raters.index(rater)] != NO_ROW).any(axis=1)
    return [image for image, one in zip(scores.images, seen, strict=True) if one]


def _gaps(scores: Scores) -> list[Missing]:
    """Structures without a row in images where the rater has others."""
    here = scores.status != NO_ROW
    gaps = here.any(axis=2)[:, :, None] & here.any(axis=1)[:, None, :] & ~here
    return [
        Missing(
            "no row of the structure",
            scores.reference,
            scores.raters[rater],
            scores.images[image],
            scores.names[name],
        )
        for rater, image, name in np.argwhere(gaps)
    ]


def tables(
    rows: Sequence[Row],
    *,
    structures: Collection[str] | None = None,
    known: Mapping[str, Collection[str]] | None = None,
    references: Mapping[str, Collection[str]] | None = None,
    raters: Mapping[str, Collection[str]] | None = None,
    bootstrap: Bootstrap | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """All tables of an evaluation as lists of rows.

    Parameters
    ----------
    rows, structures, known, references, raters, bootstrap
        As in `headline` and `find_missing`.

    Returns
    -------
    dict of str to list of dict
        Rows of ``headline``, ``structures``, ``judged``, ``comparisons``, ``ranks``,
        ``bland_altman`` and ``missing``.
    """
    draw = bootstrap or Bootstrap()
    by_reference = [set(scores.metrics) for scores in read_scores(rows)]
    columns = set.intersection(*by_reference) if by_reference else set()
    fair = [m for m in HEADLINE_METRICS if m in columns]
    fair += sorted(m for m in columns if m.startswith("nsd_"))
    results: dict[str, Sequence[TableLine]] = {
        "headline": headline(rows, structures=structures, known=known, bootstrap=draw),
        "structures": summarise(rows, bootstrap=draw),
        "judged": judged(rows, structures=structures, known=known),
        "comparisons": compare_raters(
            rows, metrics=fair, structures=structures, known=known, bootstrap=draw
        ),
        "ranks": rank_stability(
            rows, metrics=fair, structures=structures, known=known, bootstrap=draw
        ),
        "bland_altman": limits_of_agreement(rows),
        "missing": find_missing(rows, references=references, raters=raters),
    }
    return {name: [line.row() for line in lines] for name, lines in results.items()}


def common_structures(rows: Sequence[Row], sideless: Collection[str]) -> set[str] | None:
    """Structures to average over if some raters have no sides; None (single labels) otherwise.

    ``Thalamus`` is a label of raters without sides, and a group of two labels of raters with
    sides.

    Parameters
    ----------
    rows : sequence of mapping
    sideless : collection of str
        Raters without left and right labels.
    """
    every: dict[str, set[str]] = {}
    merged: set[str] = set()
    for row in rows:
        rater, name = str(row["rater"]), str(row["name"])
        every.setdefault(rater, set()).add(name)
        if rater in sideless and row["index"] is not None:
            merged.add(name)
    return set.intersection(merged, *every.values()) if merged else None
