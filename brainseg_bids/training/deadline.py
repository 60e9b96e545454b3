# SPDX-License-Identifier: Apache-2.0
"""``Deadline``: when a training run ends by itself. Nothing heavy is imported here."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

MOST_STEPS = 1_000_000
"""Steps of a run whose end is a time: more than any has taken."""
MOST_MINUTES = 366 * 24 * 60
ENDING_S = 15.0
"""Bundle and page, after the last validation."""


class TooShort(ValueError):
    """The time is over before a step is done; the message says what would do."""


@dataclass(frozen=True)
class Deadline:
    """When a run ends by itself.

    Parameters
    ----------
    minutes : float
        After the command began; the whole command shall have ended by then.
    began_s : float
        `time.time` when it did.
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

    def __post_init__(self) -> None:
        check_minutes(self.minutes)

    def left_s(self) -> float:
        """Time that is left, negative if none is."""
        return self.began_s + 60 * self.minutes - time.time()

    def too_short(self) -> TooShort:
        """What to raise where a step should begin and no time is left."""
        took_s = time.time() - self.began_s
        enough = math.ceil(1.2 * (took_s + 2 * ENDING_S) / 60) + 1
        return TooShort(
            f"--minutes {self.minutes:g}: too short for one step, since {took_s:.0f} s had gone "
            f"when the first could begin. Give {enough} or more."
        )


def check_minutes(minutes: float) -> float:
    """The same number if a run can be that long.

    Raises
    ------
    ValueError
        If it is not above 0 (as not a number is not), or more than `MOST_MINUTES`.
    """
    if not 0 < minutes <= MOST_MINUTES:
        raise ValueError(f"--minutes {minutes:g}: give a number above 0, at most {MOST_MINUTES}.")
    return minutes


def planned_steps(total_steps: int | None) -> int | None:
    """Steps of a plan, None if its end is a time.

    >>> planned_steps(800), planned_steps(MOST_STEPS)
    (800, None)
    """
    return None if total_steps == MOST_STEPS else total_steps
