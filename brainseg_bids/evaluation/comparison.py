# SPDX-License-Identifier: Apache-2.0
"""Paired comparison of two raters, on the same structures of the same images."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from brainseg_bids.evaluation.bootstrap import Bootstrap, Draws, mean_interval, subject_means
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
from brainseg_bids.evaluation.statistics import hodges_lehmann, holm, signed_rank


@dataclass(frozen=True)
class Comparison(TableLine):
    """Paired differences of two raters, first minus second.

    Parameters
    ----------
    reference, stratum, name, metric, first, second : str
        Metrics that are best at 0 are compared by absolute value: ``|volume_error_frac|``.
    n_subjects, n_images : int
        Number of subjects and images with values of both raters.
    n_left_out : int
        Number of structures in images that are left out: not both raters have a value.
    n_zero : int
        Number of subjects without a difference.
    mean_difference, low, high : float or None
        Mean over subjects, with its bootstrap interval.
    median_difference : float or None
        Median over subjects.
    hodges_lehmann, hodges_lehmann_low, hodges_lehmann_high : float or None
        Hodges-Lehmann estimate of the shift, and its interval, which match the signed-rank test.
    rank_biserial : float or None
        Effect size from -1 to 1, with the sign of the difference.
    p, p_holm : float or None
        p of Wilcoxon's signed-rank test, exact and two-sided; the same, corrected by Holm's method
        within its family.
    family : str
        Family of tests that are corrected together.
    n_tests : int
        Number of tests with a p in this family.
    favours : str
        Rater with the better metric by the Hodges-Lehmann estimate, whether significant or not;
        empty if neither.
    note : str
        Reason why values are missing.
    """

    reference: str
    stratum: str
    name: str
    metric: str
    first: str
    second: str
    n_subjects: int
    n_images: int
    n_left_out: int
    n_zero: int
    mean_difference: float | None
    low: float | None
    high: float | None
    median_difference: float | None
    hodges_lehmann: float | None
    hodges_lehmann_low: float | None
    hodges_lehmann_high: float | None
    rank_biserial: float | None
    p: float | None
    p_holm: float | None
    family: str
    n_tests: int
    favours: str
    note: str


def compare_raters(
    rows: Sequence[Row],
    *,
    metrics: Collection[str] = ("dice",),
    structures: Collection[str] | None = None,
    known: Mapping[str, Collection[str]] | None = None,
    bootstrap: Bootstrap | None = None,
) -> list[Comparison]:
    """Paired comparisons of raters, for the mean over structures and for each structure.

    Holm's correction is over all pairs and structures of a reference, metric and stratum. Means
    over structures are a family of their own, since they are the primary outcome.

    Parameters
    ----------
    rows : sequence of mapping
        See `scores.read_scores`.
    metrics : collection of str
    structures, known
        Structures of the mean, see `scores.judge`. Single structures are compared if both raters
        have them.
    bootstrap : Bootstrap, optional

    Raises
    ------
    ValueError
        If rows contradict each other.
    """
    draws = Draws(bootstrap or Bootstrap())
    wanted_metrics, result = [metric(name) for name in metrics], []
    for scores in read_scores(rows):
        mean = structures_of_mean(scores, structures, known)
        for stratum, part in scores.by_stratum():
            for wanted in wanted_metrics:
                about = _Question(part, stratum, wanted, draws)
                result += about.family(mean)
                result += about.family({name: [name] for name in part.names})
    return result


@dataclass(frozen=True)
class _Question:
    """One metric in one stratum."""

    scores: Scores
    stratum: str
    metric: Metric
    draws: Draws

    def family(self, groups: Mapping[str, Sequence[str]]) -> list[Comparison]:
        """All pairs on all groups of structures, p adjusted together."""
        values = self.metric.size(self.scores.values(self.metric))
        tested = [
            one
            for title, names in groups.items()
            for first, second in combinations(self.scores.raters, 2)
            if names and (one := self._compare(values, first, second, title, names)) is not None
        ]
        adjusted = holm([one.p for one in tested])
        n_tests = sum(p is not None for p in adjusted)
        what = "single structures" if len(groups) > 1 else next(iter(groups), "")
        family = f"{self.scores.reference}, {self.stratum}, {self.metric.compared_name}: {what}"
        return [
            replace(one, p_holm=p, family=family, n_tests=n_tests)
            for one, p in zip(tested, adjusted, strict=True)
        ]

    def _compare(
        self, values: np.ndarray, first: str, second: str, title: str, names: Sequence[str]
    ) -> Comparison | None:
        """One pair on one group of structures; None if one of them has no row of it."""
        both = [self.scores.raters.index(first), self.scores.raters.index(second)]
        here = (self.scores.status[both] != NO_ROW)[:, :, self.scores.indices_of(names)]
        if not here.any(axis=(1, 2)).all():
            return None
        one, other = values[both][:, :, self.scores.indices_of(names)]
        cells = one - other
        kept = np.isfinite(cells).any(axis=1)
        subjects = [s for s, keep in zip(self.scores.subjects, kept, strict=True) if keep]
        left_out = int((here.any(axis=0) & ~np.isfinite(cells)).sum())
        n = (len(set(subjects)), int(kept.sum()), left_out)
        place = (self.scores.reference, self.stratum, title, self.metric.compared_name)
        numbers = self._numbers(np.nanmean(cells[kept], axis=1), subjects, first, second)
        return Comparison(*place, first, second, *n, *numbers)

    def _numbers(
        self, values: np.ndarray, subjects: Sequence[str], first: str, second: str
    ) -> tuple[Any, ...]:
        """Fields of a `Comparison` from ``n_zero`` to ``note``."""
        if not len(values):
            return (0, *[None] * 10, "", 0, "", "no image has a number of both")
        differences = subject_means(values, subjects)
        interval = mean_interval(values, subjects, self.draws)
        test = signed_rank(differences)
        shift, ends = hodges_lehmann(differences, self.draws.settings.level)
        gain = shift if self.metric.better == "higher" else -shift
        favours = first if gain > 0 else second if gain < 0 else ""
        notes = dict.fromkeys(note for note in (interval.note, test.note, ends.note) if note)
        mean = (float(differences.mean()), interval.low, interval.high)
        ranks = (float(np.median(differences)), shift, ends.low, ends.high, test.rank_biserial)
        return (
            test.n_zero,
            *mean,
            *ranks,
            test.p,
            None,
            "",
            0,
            favours,
            "; ".join(notes),
        )
