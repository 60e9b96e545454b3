# SPDX-License-Identifier: Apache-2.0
"""Imputation of labels that were not measured, from similar labels.

The donor is the counterpart on the other side, or else a label of the same class or of a similar
tissue. `impute` works within one image, `imputations` over many.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from brainseg_bids.anatomy.labels import Label, LabelTable
from brainseg_bids.contrast.measured import Component, LabelStatistics

NEAREST = {
    0: (4, 3, 5, 6),
    1: (8, 9, 11, 10, 2),
    2: (10, 9, 11, 8),
    3: (6, 4, 9),
    4: (5, 3, 6),
    5: (6, 9, 8),
    6: (5, 9, 8),
    7: (2, 9, 8),
    8: (9, 11, 1, 10, 2),
    9: (8, 11, 1, 10, 2),
    10: (2, 9, 8),
    11: (8, 9, 1, 10, 2),
}
"""BIDS standard codes with the most similar intensities, most similar first."""


LIKE = {
    "Optic-Nerve": ("Optic-Chiasm", "Left-Cerebral-White-Matter", "Brain-Stem"),
    "Optic-Chiasm": ("Optic-Nerve",),
    "Spinal-Cord": ("Brain-Stem",),
    "Artery": ("Vein",),
    "Vein": ("Artery",),
    "Eyes": ("Fluid-Inside-Eyes", "CSF", "Left-Lateral-Ventricle"),
    "Fluid-Inside-Eyes": ("Eyes", "CSF", "Left-Lateral-Ventricle"),
    "Left-Lesion": ("WM-hypointensities", "Left-WM-hypointensities"),
    "Right-Lesion": ("WM-hypointensities", "Right-WM-hypointensities"),
}
"""Labels with similar intensities in another class: nerves and spinal cord are white matter, the
eye is a fluid, lesions resemble those of the other side. The first available label is the
donor."""
NO_CLASS = 6
"""BIDS standard code of non-brain structures, from eyes to arteries, which says nothing about
intensities."""


@dataclass(frozen=True)
class Imputation:
    """Donor of the statistics of a label that was not measured.

    Parameters
    ----------
    donor : str
        Name of a measured label.
    similarity : float
        Correlation of the label's location with that of the donor.
    widen : float
        Factor on the donor's spread over images.
    """

    donor: str
    similarity: float
    widen: float


MIRROR, CLASS, KIND = (0.95, 1.0), (0.8, 1.5), (0.6, 2.0)
"""Correlation and widening for donors: counterpart, same class, other class."""


def imputations(table: LabelTable, images: Mapping[str, int]) -> dict[str, Imputation]:
    """Donor of every label of ``table`` that was not measured, by name.

    The donor is, in this order: the counterpart on the other side; a label that is listed as
    similar in `LIKE`; a label of the same class in the BIDS standard table; a label of the nearest
    class (`NEAREST`). Within a class it is the label with the most similar name, then of the same
    side, then the one measured in most images.

    Parameters
    ----------
    table : LabelTable
    images : mapping of str to int
        Number of images in which each measured label was found.

    Examples
    --------
    >>> table = LabelTable.packaged("fullhead")
    >>> found = imputations(table, {"Left-Putamen": 3, "Eyes": 3, "Skin": 3, "Unknown": 3})
    >>> [found[name].donor for name in ("Right-Putamen", "Fluid-Inside-Eyes", "Mucosa")]
    ['Left-Putamen', 'Eyes', 'Skin']
    """
    measured = [label for label in table if label.name in images]
    return {
        label.name: _imputation(label, table, measured, images)
        for label in table
        if label.name not in images
    }


def _imputation(
    label: Label, table: LabelTable, measured: list[Label], images: Mapping[str, int]
) -> Imputation:
    mirror = table[label.mirror].name
    if mirror in images:
        return Imputation(mirror, *MIRROR)
    for name in LIKE.get(label.name, ()):
        if name in images:
            return Imputation(name, *CLASS)
    for mapping in (label.mapping, *NEAREST.get(label.mapping, ())):
        same = [other for other in measured if other.mapping == mapping]
        if mapping == NO_CLASS:
            words = set(_words(label.name))
            same = [other for other in same if words & set(_words(other.name))]
        if same:
            donor = _most_alike(label, same, images)
            return Imputation(donor, *(CLASS if mapping == label.mapping else KIND))
    tissue = [other for other in measured if other.mapping] or measured
    return Imputation(_most_alike(label, tissue, images), *KIND)


def _most_alike(label: Label, others: list[Label], images: Mapping[str, int]) -> str:
    def dissimilarity(other: Label) -> tuple[Any, ...]:
        first, second = _words(label.name), _words(other.name)
        differ = [a != b for a, b in zip(first, second, strict=False)]
        begin = differ.index(True) if True in differ else len(differ)
        side = other.hemisphere != label.hemisphere
        return (-begin, -len(set(first) & set(second)), side, -images[other.name], other.index)

    return min(others, key=dissimilarity).name


def _words(name: str) -> list[str]:
    """Words of a label's name but its side.

    >>> _words("Left-choroid-plexus")
    ['choroid', 'plexus']
    """
    return [word for word in re.split("[-_ ]", name.lower()) if word not in ("left", "right")]


def impute(
    named: dict[str, LabelStatistics], table: LabelTable
) -> tuple[dict[str, LabelStatistics], list[str]]:
    """Statistics of all labels of an image; those that were not measured come from a donor.

    The donor is the counterpart on the other side, or else the label of the same class in the
    BIDS standard table with the most similar median.

    Returns
    -------
    labels : dict of str to LabelStatistics
    alone : list of str
        Labels without a donor: median and MAD of all their voxels are used.
    """
    measured = {name for name, s in named.items() if math.isfinite(s.location)}
    out: dict[str, LabelStatistics] = {}
    alone: list[str] = []
    for name, own in named.items():
        if name in measured:
            out[name] = own
            continue
        label = table[name]
        donor: str | None = table[label.mirror].name
        if donor not in measured:
            kin = [n for n in measured if n in table and table[n].mapping == label.mapping]
            kin = [n for n in kin if table[n].index != 0]
            donor = min(kin, key=lambda n: abs(named[n].median - own.median), default=None)
        if donor is None:
            alone.append(name)
            only = (Component(1.0, own.median, own.mad),)
            out[name] = replace(own, location=own.median, scale=own.mad, components=only)
            continue
        lent = named[donor]
        out[name] = replace(
            lent,
            voxels=own.voxels,
            interior_voxels=own.interior_voxels,
            median=own.median,
            mad=own.mad,
            source=f"imputed from {donor}",
            histogram=(),
        )
    return out, alone
