# SPDX-License-Identifier: Apache-2.0
"""Plausibility of a label map: volumes, side ratios and fractions outside of known limits.

Limits are in ``data/labels/plausible.tsv``, each with its source. They are wide: a value beyond
them is almost always a failed segmentation. A brain that is cut by the field of view is reported
once, and its volumes are not checked.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np

from brainseg_bids.anatomy.cleaning import fit_sagittal_plane
from brainseg_bids.anatomy.cohort import structures
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.anatomy.stripped import brain_and_fluid, is_stripped
from brainseg_bids.units import listed

TABLE = resources.files("brainseg_bids") / "data" / "labels" / "plausible.tsv"
MEASURES = ("ml", "share", "ratio", "dice", "count")
HEAD_MAPPINGS = (4, 5)
"""BIDS standard codes of bone and soft tissue. Veins and nerves may remain after
skull-stripping."""
CUT_MM2, CUT_PER_MM = 1500.0, 900.0
"""Area of brain on the first or last plane of an image, at least and per mm of thickness, from
which the brain is cut. The pole of a whole brain with a radius of 70 mm has 440 mm² per mm."""


@dataclass(frozen=True)
class Limit:
    """One line of ``plausible.tsv``.

    Parameters
    ----------
    structure : str
        Name of the structure without its side, or of another quantity.
    measure : {"ml", "share", "ratio", "dice", "count"}
        Volume of one side in ml; fraction of the labelled head; larger side divided by smaller
        side; Dice; number.
    low, high : float
        Smallest and largest plausible value.
    source : str
        Publication or data of the limits.
    """

    structure: str
    measure: str
    low: float
    high: float
    source: str

    def holds(self, value: float) -> bool:
        """Whether a value lies within the limits."""
        return self.low <= value <= self.high


@cache
def limits() -> dict[tuple[str, str], Limit]:
    """All limits by structure and measure.

    >>> limits()["Hippocampus", "ml"].holds(3.2)
    True
    """
    found: dict[tuple[str, str], Limit] = {}
    with TABLE.open(encoding="utf-8") as file:
        for number, row in enumerate(csv.DictReader(file, delimiter="\t"), start=2):
            key = row["structure"], row["measure"]
            if key in found or row["measure"] not in MEASURES or not row["source"]:
                raise ValueError(f"{TABLE}, line {number}: one line per structure and measure")
            found[key] = Limit(*key, float(row["low"]), float(row["high"]), row["source"])
    return found


def implausible(labels: LabelMap, image: np.ndarray | None = None) -> list[str]:
    """Sentences about implausible properties of a label map; empty if there are none.

    Parameters
    ----------
    labels : LabelMap
        With any label table; labels that are not in the package's tables are not checked.
    image : (X, Y, Z) float, optional
        The segmented image, to find out whether it is skull-stripped and whether padding hides
        the end of the field of view. Without it, a map without bone and soft tissue counts as
        skull-stripped.

    Examples
    --------
    >>> from brainseg_bids.anatomy.grid import Grid
    >>> table, grid = LabelTable.packaged("brainseg"), Grid((40, 40, 40), np.eye(4))
    >>> voxels = np.zeros((40, 40, 40), int); voxels[18:22, 18:22, 18:22] = 2
    >>> implausible(LabelMap(voxels, grid, table))
    ['brain of 0.064 ml, expected 600 to 2200 ml']
    >>> implausible(LabelMap(0 * voxels, grid, table))
    ['no brain was found']
    """
    table = _known(labels.table)
    volume_ml = {code: mm3 / 1000 for code, mm3 in labels.volumes_mm3().items()}
    brain_codes = [label.index for label in table if label.is_brain]
    brain_ml = sum(volume_ml[code] for code in brain_codes)
    if not brain_ml:
        return ["no brain was found"]
    stripped = image is not None and is_stripped(image, brain_and_fluid(labels), labels.grid)
    head_ml = sum(volume_ml[label.index] for label in table if label.mapping in HEAD_MAPPINGS)
    whole_head = not stripped if image is not None else head_ml > 0
    found = list(_swapped(labels))
    if stripped:
        found += _head_of_stripped(volume_ml, table)
    if cut := _cut(labels, image, table):
        too_large = brain_ml > limits()["Brain", "ml"].high  # and a part of it is missing
        return [*found, cut, *([_brain_size(brain_ml)] if too_large else [])]
    return [*found, *implausible_volumes(volume_ml, table, whole_head=whole_head)]


def _known(table: LabelTable) -> LabelTable:
    """Labels of a table that the packaged one of the whole head knows by the same code."""
    packaged = LabelTable.packaged("fullhead")
    return table.subset([label.index for label in table if label.index in packaged])


def _swapped(labels: LabelMap) -> Iterator[str]:
    grid = labels.grid
    voxels = np.ascontiguousarray(grid.array_to_ras(labels.voxels))
    plane = fit_sagittal_plane(voxels, labels.table, grid.to_ras())
    if plane is not None and plane.tilt_deg > 90:
        yield (
            "left and right look swapped: left labels lie on the world's right. Check the "
            "image's orientation"
        )


def _head_of_stripped(volume_ml: dict[int, float], table: LabelTable) -> Iterator[str]:
    limit = limits()["Head of a stripped image", "ml"]
    parts = {
        label.name: volume_ml[label.index] for label in table if label.mapping in HEAD_MAPPINGS
    }
    total_ml = sum(parts.values())
    if not limit.holds(total_ml):
        most = sorted((name for name in parts if parts[name] > 0), key=lambda name: -parts[name])
        shown = listed([f"{name} {volume_words(parts[name])}" for name in most])
        yield (
            f"the image is skull-stripped, but {volume_words(total_ml)} are labelled as head: "
            f"{shown}. Do not use these labels"
        )


def _cut(labels: LabelMap, image: np.ndarray | None, table: LabelTable) -> str:
    """A sentence if the field of view ends inside the brain; the stem ends somewhere anyway."""
    codes = [lab.index for lab in table if lab.is_brain and lab.name != "Brain-Stem"]
    for axis in range(3):
        sizes = labels.grid.voxel_size_mm
        least_mm2 = cut_mm2(sizes[axis])
        pixel_mm2 = labels.grid.voxel_volume_mm3 / sizes[axis]
        for plane in ends_of(image, labels.voxels.shape, axis):
            here = np.isin(np.take(labels.voxels, plane, axis), codes)
            if np.count_nonzero(here) * pixel_mm2 >= least_mm2:
                return (
                    "the brain is cut by the edge of the image: its volumes are incomplete and "
                    "were not checked"
                )
    return ""


def cut_mm2(thickness_mm: float) -> float:
    """Area in mm² on the first or last plane of an image from which a structure counts as cut.

    Parameters
    ----------
    thickness_mm : float
        Voxel size across the plane.
    """
    return max(CUT_MM2, CUT_PER_MM * thickness_mm)


def ends_of(image: np.ndarray | None, shape: tuple[int, ...], axis: int) -> tuple[int, int]:
    """Index of the first and last plane along an axis, without constant planes of the image.

    Parameters
    ----------
    image : (X, Y, Z) float or None
        None: all planes count.
    shape : tuple of 3 int
    axis : int
    """
    if image is None:
        return 0, shape[axis] - 1
    others = tuple(a for a in range(3) if a != axis)
    used = np.flatnonzero(image.min(axis=others) < image.max(axis=others))
    return (int(used[0]), int(used[-1])) if len(used) else (0, shape[axis] - 1)


def implausible_volumes(
    volume_ml: Mapping[int, float], table: LabelTable, *, whole_head: bool
) -> list[str]:
    """Sentences about implausible volumes, missing structures and unequal sides of a whole brain.

    Parameters
    ----------
    volume_ml : mapping of int to float
        Volume by code of ``table``; codes that are left out have volume 0.
    table : LabelTable
    whole_head : bool
        Whether bone and soft tissue are expected.
    """
    volume_ml = {label.index: volume_ml.get(label.index, 0.0) for label in table}
    brain_ml = sum(volume_ml[label.index] for label in table if label.is_brain)
    head_ml = sum(volume_ml[label.index] for label in table if label.mapping in HEAD_MAPPINGS)
    if not limits()["Brain", "ml"].holds(brain_ml):  # what it is made of is no better
        return [_brain_size(brain_ml)]
    found = []
    share = limits()["Brain in head", "share"]
    if whole_head and head_ml and not share.holds(brain_ml / (brain_ml + head_ml)):
        found.append(
            f"brain and the head around it do not fit in size: {volume_words(brain_ml)} and "
            f"{volume_words(head_ml)}. Is a part of the head missing, or labelled as brain?"
        )
    missing, beyond = [], []
    by_side: dict[str, list[float]] = {}
    for structure in structures(table):
        name = structure.name.removeprefix("Left-").removeprefix("Right-")
        limit = limits().get((name, "ml"))
        is_head = table[structure.codes[0]].mapping in HEAD_MAPPINGS
        if limit is None or (is_head and not whole_head):
            continue
        own_ml = sum(volume_ml[code] for code in structure.codes)
        by_side.setdefault(name, []).append(own_ml)
        if own_ml == 0 and limit.low > 0:
            missing.append(structure.name)
        elif not limit.holds(own_ml):
            beyond.append(
                f"{structure.name} {volume_words(own_ml)} ({limit.low:g} to {limit.high:g})"
            )
    unlike = [
        f"{name} {volume_words(min(sides))} and {volume_words(max(sides))}"
        for name, sides in by_side.items()
        if (limit := limits().get((name, "ratio")))
        and len(sides) == 2
        and min(sides) > 0
        and not limit.holds(max(sides) / min(sides))
    ]
    kinds = {
        "missing": missing,
        "implausible volumes (expected range)": beyond,
        "left and right too different": unlike,
    }
    return found + [f"{what}: {listed(names)}" for what, names in kinds.items() if names]


def _brain_size(brain_ml: float) -> str:
    brain, infant = limits()["Brain", "ml"], limits()["Infant brain", "ml"]
    text = f"brain of {volume_words(brain_ml)}, expected {brain.low:g} to {brain.high:g} ml"
    return text + (" (infants have less)" if infant.holds(brain_ml) else "")


def implausible_model(brain_dice: float | None, n_maps: int | None) -> list[str]:
    """Sentences about why a trained model cannot be relied on; empty if there is no reason.

    Parameters
    ----------
    brain_dice : float or None
        Mean Dice over brain structures on synthetic pairs of held-out maps; None or NaN if it was
        not measured.
    n_maps : int or None
        Number of label maps of the training; None if it is not known.

    Examples
    --------
    >>> implausible_model(0.001, 14)
    ['held-out Dice of the brain is 0.001: it has learned nothing']
    >>> implausible_model(0.77, 14)
    []
    """
    dice, maps = (
        limits()["Held-out Dice of the brain", "dice"],
        limits()["Label maps learned from", "count"],
    )
    found = []
    if brain_dice is not None and brain_dice < dice.low:  # NaN is not
        found.append(f"held-out Dice of the brain is {brain_dice:.3f}: it has learned nothing")
    if n_maps is not None and not maps.holds(n_maps):
        found.append(
            f"trained on {n_maps} label map{'s' * (n_maps != 1)}, fewer than {maps.low:g}: it may "
            "not generalise to other heads"
        )
    return found


def volume_words(volume: float) -> str:
    """Volume in ml as text, with two digits below 100 ml.

    >>> volume_words(0.0644), volume_words(15.32), volume_words(1263.2)
    ('0.064 ml', '15 ml', '1263 ml')
    """
    return f"{volume:.0f} ml" if volume >= 100 else f"{volume:.2g} ml"
