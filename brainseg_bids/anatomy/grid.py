# SPDX-License-Identifier: Apache-2.0
"""``Grid``: shape and voxel→world affine, RAS+ millimetres."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from scipy.optimize import linear_sum_assignment

MM_PER_UNIT = {"mm": 1.0, "meter": 1000.0, "micron": 0.001}
"""Units of length of NIfTI, by nibabel's names."""


T = TypeVar("T")


def triple(values: Iterable[T]) -> tuple[T, T, T]:
    """Tuple of the three values, one for each axis.

    Raises
    ------
    ValueError
        If there are not three values.
    """
    x, y, z = values
    return x, y, z


@dataclass(frozen=True, eq=False)
class Grid:
    """Shape and affine of an image.

    Parameters
    ----------
    shape : tuple of 3 int
        Voxels along each axis, (X, Y, Z).
    affine : (4, 4) float
        Voxel index to RAS+ world coordinates in mm. Integer indices are voxel centres.
    file_unit : {"mm", "meter", "micron"}
        Unit of length in the file that the grid was read from, and in files written from it. The
        affine is always in mm; grids are compared without their unit.

    Raises
    ------
    ValueError
        If the shape does not have three positive sizes, the affine is not an invertible (4, 4)
        matrix, or the unit is not in `MM_PER_UNIT`.

    Examples
    --------
    >>> grid = Grid((10, 20, 30), np.diag([2.0, 1, 1, 1]))
    >>> grid.voxel_size_mm, grid.voxel_volume_mm3
    ((2.0, 1.0, 1.0), 2.0)
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    file_unit: str = "mm"

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        affine = np.array(self.affine, dtype=np.float64)
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"a grid needs three positive sizes, got {shape}")
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise ValueError("a grid needs a finite (4, 4) affine")
        # As a share of the box of the same edges: it does not depend on the unit.
        if abs(np.linalg.det(affine[:3, :3])) <= 1e-6 * np.prod(_lengths(affine)):
            raise ValueError("the affine cannot be inverted: one of its axes has no extent")
        if self.file_unit not in MM_PER_UNIT:
            raise ValueError(f"a grid's unit is one of {', '.join(MM_PER_UNIT)}")
        affine.setflags(write=False)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Grid)
            and self.shape == other.shape
            and np.array_equal(self.affine, other.affine)
        )

    def __hash__(self) -> int:
        return hash((self.shape, self.affine.tobytes()))

    @property
    def voxel_size_mm(self) -> tuple[float, float, float]:
        """Edge lengths of a voxel in mm."""
        return triple(float(size) for size in _lengths(self.affine))

    @property
    def voxel_volume_mm3(self) -> float:
        """Volume of a voxel in mm³, correct for sheared affines too."""
        # Rounded at 1e-9 mm3: the determinant of diag(2, 2, 2) is otherwise 7.999999999999998.
        return round(float(abs(np.linalg.det(self.affine[:3, :3]))), 9)

    @property
    def is_sheared(self) -> bool:
        """Whether the axes deviate from right angles, by more than 0.001 in the cosine.

        >>> tilted = np.eye(4); tilted[0, 1] = 0.1
        >>> Grid((2, 2, 2), np.eye(4)).is_sheared, Grid((2, 2, 2), tilted).is_sheared
        (False, True)
        """
        axes = self.affine[:3, :3] / _lengths(self.affine)
        return bool(np.abs(axes.T @ axes - np.eye(3)).max() > 1e-3)

    @property
    def extent_mm(self) -> tuple[float, float, float]:
        """Edge lengths of the whole field of view in mm, voxel borders included."""
        return triple(n * size for n, size in zip(self.shape, self.voxel_size_mm, strict=True))

    @property
    def center_mm(self) -> np.ndarray:
        """World coordinates of the centre of the field of view in mm, (3,) float."""
        middle = (np.array(self.shape) - 1) / 2
        return self.affine[:3, :3] @ middle + self.affine[:3, 3]

    def is_close(self, other: Grid, *, tolerance_mm: float = 1e-3) -> bool:
        """Whether the shapes are equal and no two corners are more than ``tolerance_mm`` apart."""
        if self.shape != other.shape:
            return False
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape])).reshape(3, -1)
        corners = np.vstack([corners, np.ones(corners.shape[1])])
        return bool(np.abs((self.affine - other.affine) @ corners).max() <= tolerance_mm)

    def covers(self, other: Grid) -> np.ndarray:
        """Mask of the other grid's voxels whose centre lies in this field of view, (X, Y, Z) bool.

        >>> Grid((2, 1, 1), np.eye(4)).covers(Grid((3, 1, 1), np.eye(4))).ravel().tolist()
        [True, True, False]
        """
        to_own = np.linalg.inv(self.affine) @ other.affine
        inside = np.ones(other.shape, dtype=bool)
        for axis, n in enumerate(self.shape):
            place = np.float32(to_own[axis, 3])
            for along, m in enumerate(other.shape):
                steps = (to_own[axis, along] * np.arange(m)).astype(np.float32)
                place = place + steps.reshape([-1 if a == along else 1 for a in range(3)])
            # A thousandth of a voxel: a box of the same edge is inside whatever the rounding.
            inside &= (place > -0.501) & (place < n - 0.499)
        return inside

    def orientation(self) -> tuple[tuple[int, int], ...]:
        """Nearest voxel axis and its sign, for each world axis R, A, S.

        Every voxel axis is used once, also if an axis is at 45 degrees to two world axes.

        >>> Grid((4, 5, 6), np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])
        ... ).orientation()
        ((2, 1), (0, -1), (1, 1))
        """
        cosines = self.affine[:3, :3] / np.linalg.norm(self.affine[:3, :3], axis=0)
        _, axes = linear_sum_assignment(-np.abs(cosines))
        return tuple((int(a), 1 if cosines[w, a] >= 0 else -1) for w, a in enumerate(axes))

    def to_ras(self) -> Grid:
        """Grid of the same voxels in RAS+ axis order."""
        order = self.orientation()
        turn = np.zeros((4, 4))
        turn[3, 3] = 1
        for new, (old, sign) in enumerate(order):
            turn[old, new] = sign
            if sign < 0:
                turn[old, 3] = self.shape[old] - 1
        shape = triple(self.shape[old] for old, _ in order)
        return replace(self, shape=shape, affine=self.affine @ turn)

    def array_to_ras(self, array: np.ndarray) -> np.ndarray:
        """View of ``array``, (X, Y, Z) and further axes, in the axis order of `to_ras`."""
        order = self.orientation()
        turned = array.transpose([old for old, _ in order] + list(range(3, array.ndim)))
        return turned[tuple(slice(None, None, sign) for _, sign in order)]

    def array_from_ras(self, array: np.ndarray) -> np.ndarray:
        """View of an array in the axis order of this grid; undoes `array_to_ras`."""
        order = self.orientation()
        turned = array[tuple(slice(None, None, sign) for _, sign in order)]
        return turned.transpose(
            list(np.argsort([old for old, _ in order])) + list(range(3, array.ndim))
        )

    def with_voxel_size(self, voxel_size_mm: float | tuple[float, float, float]) -> Grid:
        """Grid with the same centre and axes, and voxels of another size.

        The number of voxels is rounded up, so that the whole field of view is covered.

        Raises
        ------
        ValueError
            If a voxel size is not positive.

        Examples
        --------
        >>> finer = Grid((10, 10, 10), np.eye(4)).with_voxel_size(0.5)
        >>> finer.shape, finer.affine[:3, 3].tolist()
        ((20, 20, 20), [-0.25, -0.25, -0.25])
        """
        wanted = np.broadcast_to(np.asarray(voxel_size_mm, dtype=float), 3)
        if (wanted <= 0).any():
            raise ValueError(f"voxel size {voxel_size_mm} mm is not positive")
        shape = np.maximum(1, np.ceil(np.array(self.extent_mm) / wanted - 1e-4)).astype(int)
        return self._centred(shape, wanted)

    def _centred(self, shape: np.ndarray, voxel_size_mm: np.ndarray) -> Grid:
        linear = self.affine[:3, :3] / np.array(self.voxel_size_mm) * voxel_size_mm
        affine = np.eye(4)
        affine[:3, :3] = linear
        affine[:3, 3] = self.center_mm - linear @ ((np.asarray(shape) - 1) / 2)
        return replace(self, shape=triple(shape), affine=affine)

    def crop(self, start: tuple[int, int, int], shape: tuple[int, int, int]) -> Grid:
        """Grid of the box of ``shape`` that begins at voxel ``start``; it may extend outside."""
        affine = self.affine.copy()
        affine[:3, 3] = self.affine[:3, :3] @ np.asarray(start) + self.affine[:3, 3]
        return replace(self, shape=triple(shape), affine=affine)


def _lengths(affine: np.ndarray) -> np.ndarray:
    return np.linalg.norm(affine[:3, :3], axis=0)
