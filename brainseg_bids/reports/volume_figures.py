# SPDX-License-Identifier: Apache-2.0
"""Volumes of many participants as pictures."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from matplotlib.axes import Axes

from brainseg_bids.reports.canvas import BLUE, FAINT, FONT, INK, LINE, RED, Canvas
from brainseg_bids.reports.plots import axes_on


def draw_volumes(
    percents: Mapping[str, Mapping[str, float]], outliers: Mapping[str, Collection[str]]
) -> Canvas:
    """Draw how far each participant's volumes lie from the median, one line per structure.

    Parameters
    ----------
    percents : mapping of str to mapping of str to float
        For each structure, participant to per cent above (or below) the structure's median.
    outliers : mapping of str to collection of str
        For each structure, the participants to mark. They are named, and so are the lowest and
        the highest.
    """
    canvas = Canvas(1200, 70 + 26 * len(percents))
    axes = axes_on(canvas, 240, 15, 924, canvas.height - 65)
    values = [value for found in percents.values() for value in found.values()]
    # Beyond +-100 % the dot is an arrow at the edge: one failure must not flatten the rest.
    limit = float(np.clip(np.max(np.abs(values), initial=0) * 1.15, 10, 100))
    for line, (structure, found) in enumerate(percents.items()):
        axes.axhline(line, color=LINE, alpha=0.4, linewidth=1, zorder=0)
        _draw_dots(axes, line, found, outliers.get(structure, ()), limit)
    axes.axvline(0, color=FAINT, linewidth=1, zorder=0)
    axes.set(xlim=(-limit, limit), ylim=(len(percents) - 0.4, -0.6))
    axes.set_yticks(range(len(percents)), list(percents), **FONT)
    axes.set_xlabel("difference from the median (%)", color=INK, **FONT)
    return canvas


def _draw_dots(
    axes: Axes, line: int, found: Mapping[str, float], far: Collection[str], limit: float
) -> None:
    """One structure: a dot a participant, with the names of those that matter."""
    named = {*far, min(found, key=found.get), max(found, key=found.get)} if found else far
    for who, value in found.items():
        marker = "o" if abs(value) < limit else "<" if value < 0 else ">"
        at = float(np.clip(value, -limit * 0.99, limit * 0.99))
        color = RED if who in far else BLUE
        axes.plot(at, line, marker, color=color, markersize=5, alpha=0.85, markeredgewidth=0)
        if who in named:
            # Away from the crowd in the middle, unless there is no room.
            right = (at > 0) == (abs(at) < 0.8 * limit)
            axes.annotate(
                who,
                (at, line),
                xytext=(7 if right else -7, 0),
                fontsize=8,
                textcoords="offset points",
                color=INK if who in far else FAINT,
                va="center",
                ha="left" if right else "right",
                **FONT,
            )
