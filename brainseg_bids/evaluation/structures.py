# SPDX-License-Identifier: Apache-2.0
"""``Structure``: one or several labels that are evaluated as one; ``Pair``: two maps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable

BACKGROUND = 0
BLOCK_VOXELS = 2**21
"""Voxels of a map that are processed at a time."""
SQUARE = 1e-5
"""Cosine between two axes below which they count as perpendicular, to allow for rounding."""


@dataclass(frozen=True)
class Structure:
    """One label, or several labels that are evaluated as one.

    Parameters
    ----------
    name : str
    codes : tuple of int
        The same codes in both maps; a map may lack some or all of them.
    index : int or None
        Code of a label; None for a group.
    """

    name: str
    codes: tuple[int, ...]
    index: int | None = None


def choose_structures(
    reference: LabelTable,
    prediction: LabelTable,
    labels: Iterable[int | str] | None = None,
    groups: Mapping[str, Iterable[int | str]] | None = None,
) -> list[Structure]:
    """Structures of the reference: its labels in order of code, then groups as given.

    Parameters
    ----------
    reference, prediction : LabelTable
        A code that is in both tables must have the same name in both.
    labels : iterable of int or str, optional
        Codes or names; default: every label of the reference's table except the background.
    groups : mapping of name to codes or names, optional
        Groups may overlap.

    Raises
    ------
    ValueError
        If the tables contradict each other, or a group is empty or has the name of a label.
    UnknownLabelError
        If a requested label is not in the reference's table.

    Examples
    --------
    >>> from brainseg_bids.anatomy.labels import Label
    >>> table = LabelTable([Label(0, "Background"), Label(3, "Left-GM"), Label(42, "Right-GM")])
    >>> for s in choose_structures(table, table, groups={"GM": ["Left-GM", 42]}): print(s)
    Structure(name='Left-GM', codes=(3,), index=3)
    Structure(name='Right-GM', codes=(42,), index=42)
    Structure(name='GM', codes=(3, 42), index=None)
    """
    for label in prediction:
        if label.index == BACKGROUND:  # what it is called does not matter
            continue
        for key in (label.index, label.name):
            if key in reference and (reference[key].index, reference[key].name) != (
                label.index,
                label.name,
            ):
                raise ValueError(
                    f"label tables {reference.name} and {prediction.name} contradict each other: "
                    f"{reference[key].index} {reference[key].name}, {label.index} {label.name}; "
                    "translate one of them by a crosswalk"
                )
    if labels is None:
        labels = [label.index for label in reference if label.index != BACKGROUND]
    structures = [
        Structure(reference[k].name, (reference[k].index,), reference[k].index) for k in labels
    ]
    for name, members in (groups or {}).items():
        if name in reference:
            raise ValueError(f"group {name!r} has the name of a label; choose another")
        codes = tuple(sorted({reference[member].index for member in members}))
        if not codes:
            raise ValueError(f"group {name!r} has no labels")
        structures.append(Structure(name, codes))
    return structures


@dataclass(frozen=True, eq=False)
class Pair:
    """Two maps on the same grid, in the axis order of the reference's memory layout.

    Results do not depend on the order of axes, but contiguous access is ten times faster.

    Parameters
    ----------
    reference, prediction : (X, Y, Z) int
        Codes of both maps.
    within : (X, Y, Z) bool or None
        Voxels that count; all others have code `void` in both maps.
    axes_mm : (3, 3) float
        One column for each axis: the world vector of a step of one voxel.
    codes : (n,) int
        All possible codes, ascending.
    """

    reference: np.ndarray
    prediction: np.ndarray
    within: np.ndarray | None
    axes_mm: np.ndarray
    codes: np.ndarray

    @classmethod
    def of(
        cls, reference: LabelMap, prediction: LabelMap, within: np.ndarray | None = None
    ) -> Pair:
        """Pair of two label maps.

        Raises
        ------
        ValueError
            If the grids differ by more than 0.001 mm, or ``within`` has another shape.
        """
        if not reference.grid.is_close(prediction.grid):
            sizes = [
                f"{g.shape} of {tuple(round(s, 3) for s in g.voxel_size_mm)} mm"
                for g in (prediction.grid, reference.grid)
            ]
            raise ValueError(
                f"prediction and reference lie on different grids ({sizes[0]}; {sizes[1]}): "
                "resample the prediction's posteriors to the reference's grid first"
            )
        if within is not None and within.shape != reference.grid.shape:
            raise ValueError(
                f"the mask of voxels that count has shape {within.shape}, the maps have "
                f"{reference.grid.shape}"
            )
        strides = np.abs(reference.voxels.strides)
        order = sorted(range(3), key=lambda axis: -strides[axis])
        return cls(
            reference.voxels.transpose(order),
            prediction.voxels.transpose(order),
            None if within is None else within.astype(bool, copy=False).transpose(order),
            reference.grid.affine[:3, :3][:, order],
            np.union1d(reference.table.codes, prediction.table.codes),
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along each axis."""
        return self.reference.shape

    @property
    def void(self) -> int:
        """Code of voxels that do not count: the lowest code that no label has."""
        return int(np.setdiff1d(np.arange(len(self.codes) + 1), self.codes)[0])

    @property
    def voxel_mm3(self) -> float:
        """Volume of a voxel in mm³, rounded as `Grid.voxel_volume_mm3`."""
        return round(float(abs(np.linalg.det(self.axes_mm))), 9)

    @property
    def voxel_size_mm(self) -> np.ndarray:
        """Edge length of a voxel in mm along each axis, (3,) float."""
        return np.linalg.norm(self.axes_mm, axis=0)

    @property
    def is_sheared(self) -> bool:
        """Whether the axes are not at right angles; rotated grids are not sheared."""
        cosines = (self.axes_mm / self.voxel_size_mm).T @ (self.axes_mm / self.voxel_size_mm)
        return bool(np.abs(cosines - np.diag(np.diag(cosines))).max() > SQUARE)

    @property
    def metric_mm2(self) -> np.ndarray:
        """Metric tensor, (3, 3): ``step @ metric_mm2 @ step`` is a squared length in mm²."""
        if self.is_sheared:
            return self.axes_mm.T @ self.axes_mm
        return np.diag(self.voxel_size_mm**2)

    def lookup(self, values: Mapping[int, int], otherwise: int, dtype: type) -> np.ndarray:
        """Lookup array from code (including `void`) to a number.

        Parameters
        ----------
        values : mapping of int to int
            Number of each code.
        otherwise : int
            Number of all other codes.
        dtype : type
        """
        table: np.ndarray = np.full(max(int(self.codes[-1]), self.void) + 1, otherwise, dtype)
        for code, value in values.items():
            table[code] = value
        return table

    def part(self, which: str, box: tuple[slice, slice, slice]) -> np.ndarray:
        """Codes of one map in a box, contiguous, (x, y, z) int16.

        Parameters
        ----------
        which : {"reference", "prediction"}
        """
        codes = np.ascontiguousarray(getattr(self, which)[box], dtype=np.int16)
        if self.within is None:
            return codes
        return np.where(self.within[box], codes, np.int16(self.void))

    def blocks(self, box: tuple[slice, slice, slice] | None = None) -> Iterator[Any]:
        """Boxes of a few planes that together cover a box; default: the whole grid."""
        x, y, z = box or tuple(slice(0, n) for n in self.shape)
        area = max(1, (y.stop - y.start) * (z.stop - z.start))
        step = max(1, BLOCK_VOXELS // area)
        for start in range(x.start, x.stop, step):
            yield slice(start, min(start + step, x.stop)), y, z
