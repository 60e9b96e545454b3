# SPDX-License-Identifier: Apache-2.0
"""Decision rule of the prior-weight experiment, fixed before the experiment is run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from brainseg_bids.evaluation.bootstrap import Bootstrap, Draws, Interval, mean_interval
from brainseg_bids.evaluation.scores import TableLine

FEWEST_SEEDS = 5
"""Bootstrap intervals of four values miss the true mean more than once in ten times."""

RULE = (
    "Two prior weights are trained with the same seeds. For each seed, the difference of their "
    "mean accuracy (higher is better), setting minus baseline, is computed on images of the "
    "contrast and on images of other contrasts. Better: the whole interval on the contrast lies "
    "above the margin, and the whole interval off the contrast lies above minus the margin. "
    "Worse: one of the intervals lies wholly below minus the margin. In all other cases, and with "
    "fewer than five seeds: no difference shown. The margin is the smallest difference that "
    "matters, chosen before the run."
)
EARLIER_WORDINGS = frozenset({"569f8904ca63f819f1d5f9efae7e9f0cde2d96310dcf35b4e4f2299c92f7b2c6"})
"""SHA-256 of earlier wordings of `RULE`, all of the same rule."""


@dataclass(frozen=True)
class Decision(TableLine):
    """Result of the decision rule.

    Parameters
    ----------
    verdict : {"better", "worse", "no difference shown"}
    reason : str
    margin : float
        Smallest difference that matters.
    n_seeds : int
    on_mean, off_mean : float or None
        Mean paired difference on and off the contrast, higher is better; None if not measured.
    on_low, on_high, off_low, off_high : float or None
        Bootstrap intervals over seeds.
    rule, interval : str
        Description of the rule and of the intervals.
    """

    verdict: str
    reason: str
    margin: float
    n_seeds: int
    on_mean: float
    on_low: float | None
    on_high: float | None
    off_mean: float | None
    off_low: float | None
    off_high: float | None
    rule: str
    interval: str


def decide(
    on_contrast: Sequence[float] | np.ndarray,
    off_contrast: Sequence[float] | np.ndarray | None,
    *,
    margin: float,
    bootstrap: Bootstrap | None = None,
) -> Decision:
    """Decision by `RULE` from paired differences.

    Parameters
    ----------
    on_contrast, off_contrast : (seeds,) or (seeds, subjects) float
        Setting minus baseline of an accuracy such as the mean Dice. It is averaged over subjects,
        because seeds are the sampling unit. ``off_contrast`` may be None if there are no other
        contrasts: then only the first half of the rule is applied.
    margin : float
        Smallest difference that matters, above 0, in the units of the differences.
    bootstrap : Bootstrap, optional

    Returns
    -------
    Decision

    Raises
    ------
    ValueError
        If the margin is not positive, a difference is not finite, or the numbers of seeds differ.

    Examples
    --------
    >>> decide([0.02, 0.03, 0.02, 0.025, 0.03], [0.0, 0.001, -0.001, 0, 0], margin=0.005).verdict
    'better'
    >>> decide([0.02, 0.03], [0.0, 0.001], margin=0.005).reason
    '2 seeds: fewer than 5 show nothing'
    """
    settings = bootstrap or Bootstrap()
    if not (np.isfinite(margin) and margin > 0):
        raise ValueError(f"the margin is the smallest difference that matters, got {margin}")
    on = _by_seed(on_contrast, "on")
    off = None if off_contrast is None else _by_seed(off_contrast, "off")
    if off is not None and len(off) != len(on):
        raise ValueError(f"{len(on)} seeds on the contrast, {len(off)} off it: pair them")
    draws = Draws(settings)
    on_ends = mean_interval(on, range(len(on)), draws)
    off_ends = Interval(None, None) if off is None else mean_interval(off, range(len(off)), draws)
    verdict, reason = _verdict(on_ends, None if off is None else off_ends, margin, len(on))
    return Decision(
        verdict,
        reason,
        float(margin),
        len(on),
        float(on.mean()),
        on_ends.low,
        on_ends.high,
        None if off is None else float(off.mean()),
        off_ends.low,
        off_ends.high,
        RULE,
        settings.description,
    )


def is_rule(text: str) -> bool:
    """Whether a text is `RULE`, in the present or in an earlier wording.

    >>> is_rule(RULE), is_rule("Always better.")
    (True, False)
    """
    return text == RULE or hashlib.sha256(text.encode()).hexdigest() in EARLIER_WORDINGS


def _by_seed(differences: Sequence[float] | np.ndarray, where: str) -> np.ndarray:
    """(seeds,) float: subjects averaged."""
    values = np.asarray(differences, dtype=float)
    if values.ndim not in (1, 2) or not values.size or not np.isfinite(values).all():
        raise ValueError(f"differences {where} contrast: finite, (seeds,) or (seeds, subjects)")
    return values if values.ndim == 1 else values.mean(axis=1)


def _verdict(on: Interval, off: Interval | None, margin: float, n_seeds: int) -> tuple[str, str]:
    """Verdict and reason by `RULE`."""
    if n_seeds < FEWEST_SEEDS:
        reason = f"{n_seeds} seeds: fewer than {FEWEST_SEEDS} show nothing"
        return "no difference shown", reason
    on_low, on_high = _ends(on)
    off_ends = None if off is None else _ends(off)
    harmed = ["on"] if on_high < -margin else []
    if off_ends is not None and off_ends[1] < -margin:
        harmed.append("off")
    if harmed:
        return "worse", f"{' and '.join(harmed)} contrast below -{margin:g}"
    if on_low <= margin:
        return "no difference shown", f"on contrast not above {margin:g}"
    if off_ends is not None and off_ends[0] <= -margin:
        return "no difference shown", f"on contrast above {margin:g}, off contrast in doubt"
    off_text = "off contrast not measured" if off is None else f"off contrast above -{margin:g}"
    return "better", f"on contrast above {margin:g}, {off_text}"


def _ends(interval: Interval) -> tuple[float, float]:
    if interval.low is None or interval.high is None:
        raise ValueError(interval.note)
    return interval.low, interval.high
