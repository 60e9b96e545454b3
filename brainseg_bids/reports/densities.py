# SPDX-License-Identifier: Apache-2.0
"""Histograms of tissues and the curves that describe them, drawn on a dark canvas."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from brainseg_bids.anatomy.labels import Label, LabelTable
from brainseg_bids.contrast.measured import Component, ContrastStatistics, LabelStatistics
from brainseg_bids.reports.canvas import FAINT

BACKGROUND_CLASS = "Background"


@dataclass(frozen=True)
class IntensityComparison:
    """One label (or class) in real heads and in synthetic ones.

    Parameters
    ----------
    label : str
    distances : mapping of str to float
        Energy distance to the real heads by method, in units of ``edges``.
    edges : sequence of float
        n + 1 edges of the histograms' bins; empty if there are none to draw.
    real : sequence of float
        Counts of the real heads, n.
    synthetic : mapping of str to sequence of float
        Counts by method, n each.
    """

    label: str
    distances: Mapping[str, float]
    edges: Sequence[float] = ()
    real: Sequence[float] = ()
    synthetic: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def nearest(self) -> str | None:
        """Method with the smallest distance, None if none is known.

        >>> IntensityComparison("CSF", {"fitted": 0.5, "agnostic": 9.0}).nearest
        'fitted'
        """
        known = {method: value for method, value in self.distances.items() if math.isfinite(value)}
        return min(known, key=known.__getitem__) if known else None


@dataclass(frozen=True)
class TissueClass:
    """Labels that a picture puts together.

    Parameters
    ----------
    name : str
    mappings : frozenset of int
        Codes of the BIDS standard label table.
    sample : tuple of str
        Whose colour stands for the class: the first of these that a table has, else the
        table's first label of the class.
    """

    name: str
    mappings: frozenset[int]
    sample: tuple[str, ...] = ()


CLASSES = (
    TissueClass("White matter", frozenset({2}), ("Left-Cerebral-White-Matter",)),
    TissueClass("Cortex", frozenset({1, 8}), ("Left-Cerebral-Cortex",)),
    TissueClass("Deep grey matter", frozenset({9}), ("Left-Caudate",)),
    TissueClass("CSF", frozenset({3}), ("Cortical-CSF", "Left-Lateral-Ventricle")),
    TissueClass("Bone", frozenset({4}), ("Bone-Cortical",)),
    TissueClass("Soft tissue", frozenset({5}), ("Other-Tissues",)),
    TissueClass(BACKGROUND_CLASS, frozenset()),
)
"""In the order of the pictures. Cerebellar cortex, brainstem, ... have their dots alone."""

_OUTSIDE = ("Unknown", "Background")


def class_labels(table: LabelTable, tissue: TissueClass) -> list[Label]:
    """Labels of a table that belong to a class; the background's are those outside the head.

    >>> table = LabelTable.packaged("fullhead")
    >>> [label.name for label in class_labels(table, CLASSES[-1])]
    ['Unknown', 'Background']
    """
    if tissue.name == BACKGROUND_CLASS:
        return [label for label in table if not label.index or label.name in _OUTSIDE]
    return [label for label in table if label.index and label.mapping in tissue.mappings]


def class_color(table: LabelTable, tissue: TissueClass) -> str:
    """Colour of a class, from the table, light enough for a dark canvas.

    >>> table = LabelTable.packaged("fullhead")
    >>> class_color(table, CLASSES[0]), class_color(table, CLASSES[-1])
    ('#f5f5f5', '#9aa0a6')
    """
    members = class_labels(table, tissue)
    if tissue.name == BACKGROUND_CLASS or not members:
        return FAINT
    named = [table[name] for name in tissue.sample if name in table]
    return readable((named or members)[0].color)


def readable(color: str) -> str:
    """The colour, mixed with white until it stands out from a dark canvas.

    >>> readable("#f5f5f5"), readable("#000000")
    ('#f5f5f5', '#737373')
    """
    rgb = np.array([int(color[at : at + 2], 16) for at in (1, 3, 5)], dtype=float)
    luminance = rgb @ (0.2126, 0.7152, 0.0722)
    least = 115.0
    share = 0.0 if luminance >= least else (least - luminance) / (255 - luminance)
    mixed = np.rint(rgb + share * (255 - rgb)).astype(int)
    return "#" + "".join(f"{value:02x}" for value in mixed)


# -- numbers ------------------------------------------------------------------------------


def pooled_counts(
    statistics: ContrastStatistics, names: Iterable[str]
) -> tuple[np.ndarray, list[LabelStatistics]]:
    """Histograms of labels added up, (n,) float, and the labels that had one."""
    n = max(len(statistics.edges) - 1, 0)
    found = [
        statistics[name]
        for name in names
        if name in statistics.labels and n and len(statistics[name].histogram) == n
    ]
    found = [label for label in found if sum(label.histogram)]
    total = np.zeros(n)
    for label in found:
        total += label.histogram
    return total, found


def density(counts: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Share of the counts per unit of intensity, (n,); zeros if there are none.

    >>> density(np.array([1, 3]), np.array([0.0, 1, 3])).tolist()
    [0.25, 0.375]
    """
    counts, widths = np.asarray(counts, dtype=float), np.diff(edges)
    total = counts.sum()
    return counts / (total * widths) if total > 0 else np.zeros(len(counts))


def rebinned(counts: np.ndarray, edges: np.ndarray, onto: np.ndarray) -> np.ndarray:
    """Counts in other bins; within a bin they are spread evenly.

    >>> rebinned(np.array([4.0, 8]), np.array([0.0, 2, 4]), np.array([1.0, 3, 9])).tolist()
    [6.0, 4.0]
    """
    below = np.concatenate([[0.0], np.cumsum(counts)])
    return np.diff(np.interp(onto, edges, below))


def normal(at: np.ndarray, mean: float, sd: float) -> np.ndarray:
    """Normal density; a spread of zero is taken as a very small one."""
    sd = max(float(sd), 1e-9)
    return np.exp(-0.5 * ((at - mean) / sd) ** 2) / (sd * np.sqrt(2 * np.pi))


def parts(label: LabelStatistics) -> tuple[Component, ...]:
    """The Gaussians of a label; one if no mixture was fitted."""
    return label.components or (Component(1.0, label.location, label.scale),)


def in_bins(curve, edges: np.ndarray) -> np.ndarray:
    """Mean of a density over each bin, (n,): a curve narrower than a bin keeps its area.

    ``curve`` maps intensities (m,) to densities (m,).
    """
    edges = np.asarray(edges, dtype=float)
    inner = (np.arange(8) + 0.5) / 8
    at = edges[:-1, None] + np.diff(edges)[:, None] * inner
    return curve(at.ravel()).reshape(at.shape).mean(axis=1)


def quantile_range(
    histograms: Sequence[np.ndarray], edges: Sequence[np.ndarray], tail: float = 0.001
) -> tuple[float, float] | None:
    """From the lowest to the highest intensity but for a tail at both ends; None if empty."""
    lows, highs = [], []
    for counts, borders in zip(histograms, edges, strict=True):
        total = np.sum(counts)
        if total > 0:
            below = np.concatenate([[0.0], np.cumsum(counts)]) / total
            lows.append(float(np.interp(tail, below, borders)))
            highs.append(float(np.interp(1 - tail, below, borders)))
    if not lows or max(highs) <= min(lows):
        return None
    return min(lows), max(highs)
