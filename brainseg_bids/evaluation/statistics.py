# SPDX-License-Identifier: Apache-2.0
"""Tests of paired differences: Wilcoxon's signed ranks, effect sizes, Holm's correction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import stats

from brainseg_bids.evaluation.bootstrap import Interval

FEWEST_PAIRS = 6
"""With five pairs the smallest two-sided p is 2/32, which is never below 0.05."""
DECIMALS = 12
"""Differences are rounded to this number of decimals before ranking, so that 0.3 - 0.2 and 0.2 -
0.1 are tied."""


@dataclass(frozen=True)
class SignedRank:
    """Result of Wilcoxon's signed-rank test.

    Parameters
    ----------
    n, n_zero : int
        Number of pairs, and of pairs without a difference.
    positive, negative : float
        Sums of ranks of the positive and negative differences.
    p : float or None
        Two-sided, exact; None if there are too few pairs.
    rank_biserial : float
        Matched-pairs rank-biserial correlation, (positive - negative) / (positive + negative),
        from -1 to 1 (Kerby, Comprehensive Psychology 3, 2014). 0 if all differences are zero.
    note : str
        Reason why there is no p.
    """

    n: int
    n_zero: int
    positive: float
    negative: float
    p: float | None
    rank_biserial: float
    note: str = ""


def signed_rank(differences: np.ndarray) -> SignedRank:
    """Wilcoxon's signed-rank test (Biometrics Bulletin 1, 1945).

    Differences of zero are ranked with the others and then dropped (Pratt, Journal of the
    American Statistical Association 54, 1959). Ties get the mean of their ranks. p is computed
    from the distribution over all assignments of signs to these ranks. It is exact for any number
    of pairs, also with ties and zeros.

    Parameters
    ----------
    differences : (n,) float
        Independent differences, one for each subject.

    Examples
    --------
    >>> test = signed_rank(np.array([1.0, 2.0, 3.0, 4.0, 5.0, -0.5]))
    >>> test.positive, test.negative, test.p
    (20.0, 1.0, 0.0625)
    >>> signed_rank(np.ones(4)).note
    '4 pairs: with fewer than 6 no two-sided p is below 0.05'
    """
    differences = np.round(np.asarray(differences, dtype=float), DECIMALS)
    ranks = stats.rankdata(np.abs(differences))
    positive = float(ranks[differences > 0].sum())
    negative = float(ranks[differences < 0].sum())
    total = positive + negative
    n, n_zero = len(differences), int((differences == 0).sum())
    effect = (positive - negative) / total if total else 0.0
    if n < FEWEST_PAIRS:
        note = f"{n} pairs: with fewer than {FEWEST_PAIRS} no two-sided p is below 0.05"
        return SignedRank(n, n_zero, positive, negative, None, effect, note)
    chances = sign_chances(ranks[differences != 0])
    tail = chances[: round(2 * min(positive, negative)) + 1].sum()
    return SignedRank(n, n_zero, positive, negative, float(min(1, 2 * tail)), effect)


def sign_chances(ranks: np.ndarray) -> np.ndarray:
    """Distribution of the sum of positive ranks if both signs are equally probable.

    Parameters
    ----------
    ranks : (n,) float
        Multiples of one half.

    Returns
    -------
    (2 * sum + 1,) float
        Element k is the probability of the sum k / 2.

    Examples
    --------
    >>> sign_chances(np.array([1.0, 2.0]))
    array([0.25, 0.  , 0.25, 0.  , 0.25, 0.  , 0.25])
    """
    return _sign_chances(tuple(np.sort(np.round(2 * ranks).astype(int)).tolist()))


@lru_cache(maxsize=8)
def _sign_chances(doubled: tuple[int, ...]) -> np.ndarray:
    """`sign_chances` of doubled ranks in ascending order: those of untied pairs are the same."""
    chances = np.ones(1)
    for step in doubled:
        longer = np.zeros(len(chances) + step)
        longer[: len(chances)] = chances
        longer[step:] += chances
        chances = longer / 2
    chances.setflags(write=False)
    return chances


def hodges_lehmann(differences: np.ndarray, level: float = 0.95) -> tuple[float, Interval]:
    """Hodges-Lehmann estimate of a shift, and its distribution-free interval.

    The estimate is the median of the means of all pairs of differences. The interval contains the
    shifts that the signed-rank test does not reject at ``1 - level`` (Hodges and Lehmann, Annals
    of Mathematical Statistics 34, 1963; Hollander, Wolfe and Chicken, Nonparametric Statistical
    Methods, 3rd edition, 2014, section 3.3). Its coverage is at least ``level``.

    Parameters
    ----------
    differences : (n,) float
        At least one.
    level : float

    Examples
    --------
    >>> hodges_lehmann(np.array([1.0, 2.0, 3.0, 4.0, 5.0, 12.0]))
    (3.5, Interval(low=1.0, high=12.0, note=''))
    """
    differences = np.asarray(differences, dtype=float)
    first, second = np.triu_indices(len(differences))
    walsh = np.sort((differences[first] + differences[second]) / 2)
    below = np.cumsum(sign_chances(np.arange(1.0, len(differences) + 1))[::2])
    place = int(np.searchsorted(below, (1 - level) / 2 + 1e-12, side="right"))
    if place == 0:
        note = f"{len(differences)} pairs: no interval of {100 * level:g} %"
        return float(np.median(walsh)), Interval(None, None, note)
    ends = float(walsh[place - 1]), float(walsh[-place])
    return float(np.median(walsh)), Interval(*ends)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p values corrected by Holm's step-down procedure; tests without a p are not counted.

    Holm, Scandinavian Journal of Statistics 6, 1979.

    Examples
    --------
    >>> holm([0.01, None, 0.04, 0.03])
    [0.03, None, 0.06, 0.06]
    """
    tested = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for before, (p, place) in enumerate(tested):
        highest = max(highest, min(1.0, (len(tested) - before) * p))
        adjusted[place] = highest
    return adjusted
