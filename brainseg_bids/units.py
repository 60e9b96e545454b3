# SPDX-License-Identifier: Apache-2.0
"""Quantities in words."""

from __future__ import annotations

import math


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
