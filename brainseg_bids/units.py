# SPDX-License-Identifier: Apache-2.0
"""Quantities and lists in words."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence


def duration(seconds: float | None) -> str:
    """A time for a reader; empty for what is no number.

    Examples
    --------
    >>> duration(41.2), duration(719), duration(6000), duration(400_000), duration(None)
    ('41 s', '12 min', '1.7 h', '4.6 days', '')
    """
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return ""
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def listed(names: Sequence[str], most: int = 6) -> str:
    """Names, the first few of many.

    >>> listed(["a", "b"]), listed([str(n) for n in range(9)])
    ('a, b', '0, 1, 2, 3, 4, 5 and 3 more')
    """
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def natural_order(name: object) -> tuple[list[str | int], str]:
    """Sort key of names and paths, by which numbers in them count as numbers.

    >>> sorted(["sub-10", "sub-2", "sub-02", "sub-"], key=natural_order)
    ['sub-', 'sub-02', 'sub-2', 'sub-10']
    """
    parts = re.split(r"([0-9]+)", str(name))
    return [int(part) if k % 2 else part for k, part in enumerate(parts)], str(name)


def in_words(names: Sequence[str]) -> str:
    """All names in a sentence, each once; empty if there are none.

    >>> in_words(["T1w", "FLAIR", "T1w"]), in_words(["T1w", "T2w", "FLAIR"])
    ('T1w and FLAIR', 'T1w, T2w and FLAIR')
    """
    *first, last = dict.fromkeys(names) or [""]
    return f"{', '.join(first)} and {last}" if first else last
