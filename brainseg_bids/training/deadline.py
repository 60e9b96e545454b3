# SPDX-License-Identifier: Apache-2.0
"""``Deadline``: time limit of a training run. No heavy library is imported here."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

MOST_STEPS = 1_000_000
"""Number of steps of runs with a deadline; all others have fewer."""
MOST_MINUTES = 366 * 24 * 60
ENDING_S = 15.0
"""Time for bundle and page after the last validation."""


class TooShort(ValueError):
    """The time limit ends before a step is done; the message gives the remedy."""


@dataclass(frozen=True)
class Deadline:
    """Time limit of a training run.

    Parameters
    ----------
    minutes : float
        Duration of the whole command.
    began_s : float
        `time.time` at the start of the command.
    decay_share : float
        Last part of the time for training, 0 to 1, in which the learning rate decays to zero.

    Raises
    ------
    ValueError
        If ``minutes`` is not a number above 0, or more than `MOST_MINUTES`.
    """

    minutes: float
    began_s: float
    decay_share: float = 0.0
    ends_s: float = field(init=False, repr=False)
    """End by `time.monotonic`, which goes on when the clock of the machine is set."""

    def __post_init__(self) -> None:
        check_minutes(self.minutes)
        left_s = self.began_s + 60 * self.minutes - time.time()
        object.__setattr__(self, "ends_s", time.monotonic() + left_s)

    def left_s(self) -> float:
        """Remaining time in seconds; negative after the deadline."""
        return self.ends_s - time.monotonic()

    def is_too_late(self) -> bool:
        """Whether not even what comes after the last step would be done in time."""
        return self.left_s() <= ENDING_S

    def too_short(self) -> TooShort:
        """Error for a run without time for a step, to be raised by the caller."""
        took_s = 60 * self.minutes - self.left_s()
        enough = math.ceil(1.2 * (took_s + 2 * ENDING_S) / 60) + 1
        return TooShort(
            f"--minutes {self.minutes:g}: too short for one step, since {took_s:.0f} s had gone "
            f"when the first could begin. Give {enough} or more."
        )


def check_minutes(minutes: float) -> float:
    """``minutes``, unchanged, if it is a valid duration of a run.

    Raises
    ------
    ValueError
        If it is NaN, not above 0, or more than `MOST_MINUTES`.
    """
    if not 0 < minutes <= MOST_MINUTES:
        raise ValueError(f"--minutes {minutes:g}: give a number above 0, at most {MOST_MINUTES}.")
    return minutes


def planned_steps(total_steps: int | None) -> int | None:
    """Number of steps of a plan, or None if it ends at a deadline.

    >>> planned_steps(800), planned_steps(MOST_STEPS)
    (800, None)
    """
    return None if total_steps == MOST_STEPS else total_steps
