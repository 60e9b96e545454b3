# SPDX-License-Identifier: Apache-2.0
"""Stability of a ranking of raters, by bootstrap over subjects."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from brainseg_bids.evaluation.bootstrap import Bootstrap, Draws, subject_means
from brainseg_bids.evaluation.scores import (
    NO_ROW,
    Metric,
    Row,
    Scores,
    TableLine,
    metric,
    read_scores,
    structures_of_mean,
)

DECIMALS = 12
"""Means are rounded to this number of decimals before ranking, so that equal raters are tied."""


@dataclass(frozen=True)
class Rank(TableLine):
    """Rank of one rater by its mean, and the stability of this rank.

    Parameters
    ----------
    reference, stratum, name, metric, rater : str
    n_raters, n_subjects, n_images : int
        Number of raters, and of the subjects and images for which all raters have a value.
    n_left_out : int
        Number of structures in images that are left out: not all raters have a value.
    mean : float
        Mean over subjects.
    rank : int
        1 is best; tied raters share the better rank.
    chances : tuple of float or None
        Fraction of bootstrap samples in which the rater has each rank, from rank 1; None with
        fewer than two subjects.
    mean_rank : float or None
        Mean over bootstrap samples.
    kendall_tau : float or None
        Mean over bootstrap samples of tau-b between the ranking of the sample and that of all
        subjects; the same for all raters. Also None if all raters are tied.
    same_winner, same_order : float or None
        Fraction of bootstrap samples with the same best raters, and with the same ranks of all.
    note : str
        Reason why values are missing.
    """

    reference: str
    stratum: str
    name: str
    metric: str
    rater: str
    n_raters: int
    n_subjects: int
    n_images: int
    n_left_out: int
    mean: float
    rank: int
    chances: tuple[float, ...] | None
    mean_rank: float | None
    kendall_tau: float | None
    same_winner: float | None
    same_order: float | None
    note: str

    def row(self) -> dict[str, int | float | str | None]:
        """Row of a table: values by column, with chances in ``p_rank_1`` and following."""
        row = dict(vars(self))
        chances = row.pop("chances") or (None,) * self.n_raters
        return row | {f"p_rank_{k + 1}": chance for k, chance in enumerate(chances)}


def rank_stability(
    rows: Sequence[Row],
    *,
    metrics: Collection[str] = ("dice",),
    structures: Collection[str] | None = None,
    known: Mapping[str, Collection[str]] | None = None,
    bootstrap: Bootstrap | None = None,
) -> list[Rank]:
    """Ranks of raters by their mean, with their stability over bootstrap samples of subjects.

    Raters are compared on images and structures for which all have a value, and on the same
    subjects in each sample (Wiesenfarth et al., Scientific Reports 11, 2021). Distances ignore
    structures that were missed: rank by overlap or NSD as well.

    Parameters
    ----------
    rows : sequence of mapping
        See `scores.read_scores`.
    metrics : collection of str
    structures, known
        Structures of the mean, see `scores.judge`. Each single structure is ranked as well.
    bootstrap : Bootstrap, optional

    Returns
    -------
    list of Rank
        Best first. Structures are left out that fewer than two raters have, or none in common.
    """
    draws, result = Draws(bootstrap or Bootstrap()), []
    wanted_metrics = [metric(name) for name in metrics]
    for scores in read_scores(rows):
        groups = structures_of_mean(scores, structures, known)
        groups |= {name: [name] for name in scores.names}
        result += [
            rank
            for stratum, part in scores.by_stratum()
            for wanted in wanted_metrics
            for title, names in groups.items()
            for rank in _ranks(part, (scores.reference, stratum, title), names, wanted, draws)
        ]
    return result


def _ranks(
    scores: Scores, place: tuple[str, str, str], names: Sequence[str], wanted: Metric, draws: Draws
) -> list[Rank]:
    """Raters on one group of structures."""
    here = (scores.status != NO_ROW)[:, :, scores.indices_of(names)]
    raters = [k for k, has in enumerate(here.any(axis=(1, 2))) if has]
    cells = scores.values(wanted)[raters][:, :, scores.indices_of(names)]
    cells = wanted.size(np.where(np.isfinite(cells).all(axis=0), cells, np.nan))
    kept = np.isfinite(cells).any(axis=(0, 2))
    if len(raters) < 2 or not kept.any():
        return []
    values = np.nanmean(cells[:, kept], axis=2)
    subjects = [s for s, keep in zip(scores.subjects, kept, strict=True) if keep]
    left_out = int((here.any(axis=0) & ~np.isfinite(cells[0])).sum())
    n = (len(raters), len(set(subjects)), len(subjects), left_out)
    means = np.array([subject_means(one, subjects).mean() for one in values])
    ranks = ranks_of(wanted.cost(means)[None])[0]
    firmness = _firmness(values, subjects, ranks, wanted, draws)
    return [
        Rank(
            *place,
            wanted.compared_name,
            scores.raters[raters[k]],
            *n,
            float(means[k]),
            int(ranks[k]),
            *firmness[k],
        )
        for k in np.argsort(ranks, kind="stable")
    ]


def _firmness(
    values: np.ndarray, subjects: Sequence[str], ranks: np.ndarray, wanted: Metric, draws: Draws
) -> list[tuple[Any, ...]]:
    """Fields of `Rank` from ``chances`` to ``note``, for each rater."""
    if len(set(subjects)) < 2:
        return [(None,) * 5 + ("1 subject: no draws",)] * len(ranks)
    drawn = ranks_of(wanted.cost(draws.weights(subjects) @ values.T))
    chances = (drawn[:, :, None] == np.arange(1, len(ranks) + 1)).mean(axis=0)
    taus = kendall_taus(drawn, ranks)
    tau = float(np.nanmean(taus)) if np.isfinite(taus).any() else None
    same_winner = float(((drawn == 1) == (ranks == 1)).all(axis=1).mean())
    same_order = float((drawn == ranks).all(axis=1).mean())
    return [
        (tuple(chances[k].tolist()), float(drawn[:, k].mean()), tau, same_winner, same_order, "")
        for k in range(len(ranks))
    ]


def ranks_of(costs: np.ndarray) -> np.ndarray:
    """Ranks along the last axis, (draws, raters) int: 1 plus the number of lower costs.

    Parameters
    ----------
    costs : (draws, raters) float

    Examples
    --------
    >>> ranks_of(np.array([[0.3, 0.1, 0.1]]))
    array([[3, 1, 1]])
    """
    costs = np.round(costs, DECIMALS)
    return 1 + (costs[:, None, :] < costs[:, :, None]).sum(axis=2)


def kendall_taus(drawn: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Kendall's tau-b of each row with one ranking (Biometrika 33, 1945).

    Parameters
    ----------
    drawn : (draws, raters) int
    ranks : (raters,) int

    Returns
    -------
    (draws,) float
        NaN if all raters are tied.

    Examples
    --------
    >>> kendall_taus(np.array([[1, 2, 3], [3, 2, 1]]), np.array([1, 2, 3]))
    array([ 1., -1.])
    """
    first, second = np.triu_indices(len(ranks), 1)
    here, there = (np.sign(r[..., first] - r[..., second]) for r in (drawn, ranks))
    untied = (here != 0).sum(axis=1) * float((there != 0).sum())
    scale = np.where(untied > 0, np.sqrt(untied), np.nan)
    return (here * there).sum(axis=1) / scale
