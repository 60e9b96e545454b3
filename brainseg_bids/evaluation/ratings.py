# SPDX-License-Identifier: Apache-2.0
"""``Rating``: the label map of one image by one rater, in the labels of ``fullhead``."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
from scipy import ndimage

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import Label, LabelTable

Targets = tuple[int, ...]
"""Meaning of a code in codes of ``fullhead``. One: that label. Several: the nearest of them. None:
void."""

LARGEST_CODE = 32767
"""Largest code of `LabelTable` and of label maps with two bytes."""
MERGED = "merged sides"
"""Name of the label table in which left and right are merged."""
MARGIN_VOX = 8
"""Margin of the box in which the nearest label is searched for first."""


@cache
def fullhead() -> LabelTable:
    """Label table of all ratings."""
    return LabelTable.packaged("fullhead")


@dataclass(frozen=True)
class NamedStructure:
    """A group of labels that is evaluated as one structure.

    Parameters
    ----------
    name : str
    members : tuple of str
        Names of labels of ``fullhead``.
    group : str
        ``tissue``, ``subcortical``, ``head`` and so on.
    reason : str
    """

    name: str
    members: tuple[str, ...]
    group: str
    reason: str


@cache
def named_structures() -> dict[str, NamedStructure]:
    """Structures of ``data/references/structures.tsv`` by name, in the order of the table.

    >>> named_structures()["Cerebral-GM"].members
    ('Left-Cerebral-Cortex', 'Right-Cerebral-Cortex')
    """
    path = Path(str(resources.files("brainseg_bids") / "data" / "references" / "structures.tsv"))
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return {
        row["name"]: NamedStructure(
            row["name"],
            tuple(fullhead()[name].name for name in row["members"].split()),
            row["group"],
            row["reason"],
        )
        for row in rows
    }


@dataclass(frozen=True, eq=False)
class Rating:
    """Label map of one image by one rater, in common labels.

    Parameters
    ----------
    labels : LabelMap
        In codes of ``fullhead``; its table has the labels of this rater only. A rater without left
        and right has the table of `merge_sides`.
    void : (X, Y, Z) bool or None
        Voxels whose label has no counterpart in ``fullhead``; their code is 0.
    raw_hash : str
        Hash of the codes in the file; empty if the map was not read from a file.
    """

    labels: LabelMap
    void: np.ndarray | None
    raw_hash: str = ""

    @property
    def has_sides(self) -> bool:
        """Whether left and right have labels of their own."""
        return self.labels.table.name != MERGED


# ---- codes and grids


def recoded(labels: LabelMap, codes: Mapping[int, int], table: LabelTable) -> LabelMap:
    """Label map in other codes; codes that are not in ``codes`` become background."""
    lookup = np.zeros(int(labels.table.codes[-1]) + 1, dtype=labels.voxels.dtype)
    lookup[list(codes)] = list(codes.values())
    return LabelMap(lookup[labels.voxels], labels.grid, table)


def reoriented(rating: Rating, grid: Grid) -> Rating:
    """Rating with the axis order of another grid, without interpolation."""
    source = rating.labels.grid

    def turn(array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(grid.array_from_ras(source.array_to_ras(array)))

    return replace(
        rating,
        labels=replace(rating.labels, voxels=turn(rating.labels.voxels), grid=grid),
        void=None if rating.void is None else turn(rating.void),
    )


def resampled(rating: Rating, grid: Grid) -> Rating:
    """Rating on another grid: each voxel gets the label with the largest trilinear weight."""
    from brainseg_bids.anatomy.upsample import regrid  # late: numba

    void = None
    if rating.void is not None:
        table = LabelTable([Label(0, "No"), Label(1, "Yes")])
        mask = LabelMap(rating.void.astype(np.int16), rating.labels.grid, table)
        void = regrid(mask, grid).voxels == 1
    return replace(rating, labels=regrid(rating.labels, grid), void=void)


def translate(
    codes: np.ndarray, grid: Grid, meaning: Mapping[int, Targets]
) -> tuple[LabelMap, np.ndarray | None]:
    """Label map of a rater in codes of ``fullhead``.

    Parameters
    ----------
    codes : (X, Y, Z) int
        Codes of the rater, all of them in ``meaning``.
    grid : Grid
    meaning : mapping of int to tuple of int
        Codes of ``fullhead`` for each code of the rater. If there are several, the nearest voxel
        with one of them decides; if there are none, the voxel is void.

    Returns
    -------
    labels : LabelMap
        With a table of the labels in ``meaning``.
    void : (X, Y, Z) bool or None
        Voxels without a label of ``fullhead``; None if there are no such codes.

    Examples
    --------
    >>> codes = np.array([7, 9, 9, 9, 8, 5]).reshape(6, 1, 1)
    >>> labels, void = translate(codes, Grid((6, 1, 1), np.eye(4)),
    ...     {7: (2,), 8: (41,), 9: (2, 41), 5: ()})
    >>> labels.voxels.ravel().tolist(), void.ravel().tolist()
    ([2, 2, 2, 41, 41, 0], [False, False, False, False, False, True])
    """
    # A code that no label map holds must not decide the size of an array.
    meaning = {code: targets for code, targets in meaning.items() if 0 <= code <= LARGEST_CODE}
    lookup = np.zeros(max(meaning, default=0) + 1, dtype=np.int16)
    for code, targets in meaning.items():
        lookup[code] = targets[0] if len(targets) == 1 else 0
    out = lookup[codes]
    void = np.isin(codes, [code for code, targets in meaning.items() if not targets])
    choices: dict[Targets, list[int]] = {}
    for code, targets in meaning.items():
        if len(targets) > 1:
            choices.setdefault(targets, []).append(code)
    settled = {targets: np.isin(codes, sources) for targets, sources in choices.items()}
    for targets, where in settled.items():
        labels = nearest_labels(out, where, targets, grid.voxel_size_mm)
        if labels is None:
            void |= where  # there is nothing to be near to
        else:
            out[where] = labels
    given = {code for targets in meaning.values() for code in targets}
    table = fullhead().subset(given | {0})
    return LabelMap(out, grid, table), void if void.any() else None


def nearest_labels(
    labels: np.ndarray,
    where: np.ndarray,
    wanted: Sequence[int],
    voxel_size_mm: tuple[float, float, float],
) -> np.ndarray | None:
    """Label of the nearest voxel with one of the wanted labels.

    Parameters
    ----------
    labels : (X, Y, Z) int
    where : (X, Y, Z) bool
        Voxels that need a label.
    wanted : sequence of int
    voxel_size_mm : tuple of 3 float
        Axes are taken to be orthogonal: on sheared grids distances are not exact.

    Returns
    -------
    (n,) int or None
        In the order of ``labels[where]``; None if no voxel has any of the wanted labels.

    Notes
    -----
    Exact Euclidean distance transform (Maurer, Qi and Raghavan 2003, as in scipy) in a box around
    ``where``, which is enlarged until no distance exceeds that to its border.
    """
    if not where.any():
        return labels[where]
    extent = ndimage.find_objects(where.astype(np.uint8))[0]
    margin_vox = MARGIN_VOX
    while True:
        box = tuple(
            slice(max(0, side.start - margin_vox), min(n, side.stop + margin_vox))
            for side, n in zip(extent, labels.shape, strict=True)
        )
        is_whole = all(b == slice(0, n) for b, n in zip(box, labels.shape, strict=True))
        inside, open_ = labels[box], where[box]
        candidates = np.isin(inside, wanted) & ~open_
        if candidates.any():
            distance_mm, place = ndimage.distance_transform_edt(
                ~candidates, sampling=voxel_size_mm, return_indices=True
            )
            if is_whole or distance_mm[open_].max() <= margin_vox * min(voxel_size_mm):
                return inside[tuple(axis[open_] for axis in place)]
        elif is_whole:
            return None
        margin_vox *= 4


# ---- sides


def merge_sides(rating: Rating) -> Rating:
    """Rating whose left and right labels are merged, with the code of the left label.

    If both sides are a structure in ``structures.tsv``, the label gets its name.

    Examples
    --------
    >>> table = fullhead().subset([0, 10, 16, 49])
    >>> codes = np.array([0, 10, 16, 49]).reshape(4, 1, 1)
    >>> both = LabelMap(codes, Grid((4, 1, 1), np.eye(4)), table)
    >>> merged = merge_sides(Rating(both, None)).labels
    >>> merged.voxels.ravel().tolist(), merged.table[10].name
    ([0, 10, 16, 10], 'Thalamus')
    """
    if not rating.has_sides:
        return rating
    full = fullhead()
    codes, merged = {}, {}
    for label in rating.labels.table:
        one = full[_without_side(label.name)]
        codes[label.index] = one.index
        merged[one.index] = Label(
            one.index, merged_name(one.name), one.color, one.mapping, notes=one.notes
        )
    table = LabelTable(merged.values(), name=MERGED)
    return replace(rating, labels=recoded(rating.labels, codes, table))


def _without_side(name: str) -> str:
    """Label that stands for both sides: one that has no side if there is one, else the left.

    >>> _without_side("Right-Thalamus"), _without_side("Right-WM-hypointensities")
    ('Left-Thalamus', 'WM-hypointensities')
    """
    left = left_of(name)
    plain = left.removeprefix("Left-")
    return plain if plain in fullhead() else left


def left_of(name: str) -> str:
    """Name of the left counterpart of a label; its own name if it has none."""
    return name.replace("Right-", "Left-", 1) if name.startswith("Right-") else name


def merged_name(name: str) -> str:
    """Name of a label that is merged with its counterpart."""
    if not name.startswith("Left-"):
        return name
    pair = {name, name.replace("Left-", "Right-", 1)}
    for structure in named_structures().values():
        if set(structure.members) == pair:
            return structure.name
    return name.removeprefix("Left-")
