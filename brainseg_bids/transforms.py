# SPDX-License-Identifier: Apache-2.0
"""Spatial transforms in ITK's files, read and applied by nitransforms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
from nitransforms.base import ImageGrid, TransformBase
from nitransforms.io import itk
from nitransforms.io.base import TransformFileError
from nitransforms.linear import Affine
from nitransforms.manip import TransformChain
from scipy.ndimage import map_coordinates

from brainseg_bids.anatomy.grid import Grid, triple
from brainseg_bids.documents import InputError

SLAB_VOXELS = 1 << 19
"""Voxels whose coordinates are computed at a time."""
MOST_PARTS = 9
"""Of a composite file: nitransforms sorts them by letters, the tenth behind the first."""
FIELD = b"DisplacementFieldTransform"
KNOWN = (b"CompositeTransform", b"AffineTransform", FIELD)
"""Beginnings of the kinds of parts that nitransforms reads."""
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""ITK's world axes in terms of RAS."""


class DisplacementField(TransformBase):
    """Displacements on a grid as ITK applies them: interpolated linearly, none outside the grid.

    nitransforms' own class draws cubic splines through them, and takes displacements from the
    other end of the grid for points that lie on whole voxels beyond it.

    Parameters
    ----------
    field : nibabel image, (X, Y, Z, 3)
        Displacements in mm along R, A, S.
    """

    def __init__(self, field) -> None:
        super().__init__()
        self.reference = ImageGrid(field)
        moved = np.asanyarray(field.dataobj)
        self._displacements = [moved[..., axis].astype(np.float32) for axis in range(3)]

    def map(self, x: np.ndarray, inverse: bool = False) -> np.ndarray:
        """Where points (N, 3), RAS in mm, are taken from.

        Raises
        ------
        ValueError
            If ``inverse`` is asked for: a field holds one direction, the file beside it the other.
        """
        if inverse:
            raise ValueError("a displacement field holds one direction; take the other transform")
        voxels = np.asarray(self.reference.index(x)).T
        sizes = np.array(self.reference.shape)[:, None]
        inside = ((voxels >= -0.5) & (voxels <= sizes - 0.5)).all(0)
        moved = np.array(x, np.float64)
        for axis, displacement in enumerate(self._displacements):
            moved[inside, axis] += map_coordinates(
                displacement, voxels[:, inside], order=1, mode="nearest", prefilter=False
            )
        return moved


def read_transform(path: str | Path) -> TransformBase:
    """Read a transform of ITK: a composite one (``.h5``) or a linear one (``.txt``, ``.mat``).

    Raises
    ------
    InputError
        If it is none, or holds a part that nitransforms does not know.
    """
    path = Path(path)
    try:
        if path.suffix != ".h5":
            return Affine(itk.ITKLinearTransform.from_filename(path).to_ras())
        # A file's last part is what points go through first.
        parts = [_applied(part) for part in reversed(itk.ITKCompositeH5.from_filename(path))]
    except (OSError, KeyError, ValueError, IndexError, TypeError, TransformFileError) as error:
        raise _unusable(path, str(error)) from error
    if not 0 < len(parts) <= MOST_PARTS:
        raise _unusable(path, f"it has {len(parts)} parts")
    return parts[0] if len(parts) == 1 else TransformChain(parts)


def _applied(part) -> TransformBase:
    """A part as nitransforms reads it, as something to apply."""
    if isinstance(part, itk.ITKLinearTransform):
        return Affine(part.to_ras())
    return DisplacementField(part)


def field_grid(path: str | Path) -> Grid | None:
    """Grid of a composite transform's displacements; None if it has none. Nothing long is read.

    Raises
    ------
    InputError
        If it is no composite transform of ITK, or holds a part that nitransforms does not know.
    """
    path = Path(path)
    try:
        with h5py.File(path) as file:
            parts = [(part["TransformType"][0], part) for part in file["TransformGroup"].values()]
            for kind, _ in parts:
                if not kind.startswith(KNOWN):
                    raise ValueError(f"{kind.decode()} is not known")
            fields = [_fixed_parameters(part) for kind, part in parts if kind.startswith(FIELD)]
    except (OSError, KeyError, ValueError, IndexError, TypeError, StopIteration) as error:
        raise _unusable(path, str(error)) from error
    if not fields:
        return None
    fixed = fields[0]
    affine = np.eye(4)
    affine[:3, :3] = fixed[9:18].reshape(3, 3) * fixed[6:9]
    affine[:3, 3] = fixed[3:6]
    return Grid(triple(int(size) for size in fixed[:3]), LPS @ affine)


def _fixed_parameters(part) -> np.ndarray:
    """Numbers that describe a field's grid: sizes, origin, voxel sizes, directions."""
    return np.asarray(part[next(key for key in part if key.endswith("FixedParameters"))], float)


def _unusable(path: Path, why: str) -> InputError:
    why = " ".join(why.split()) or "unknown format"
    return InputError(
        f"{path}: this transform cannot be applied ({why}). Get it again, or leave it out."
    )


def source_coordinates(
    transforms: Sequence[TransformBase], source: Grid, target: Grid
) -> np.ndarray:
    """Where each voxel of ``target`` lies in ``source``, in its voxels, (3, X, Y, Z) float32.

    Parameters
    ----------
    transforms : sequence of TransformBase
        What points of the target go through, in this order.
    source, target : Grid
    """
    coordinates = np.empty((3, *target.shape), np.float32)
    to_source = np.linalg.inv(source.affine)
    thick = max(1, SLAB_VOXELS // (target.shape[1] * target.shape[2]))
    for start in range(0, target.shape[0], thick):
        slab = coordinates[:, start : start + thick]
        voxels = np.indices(slab.shape[1:]).reshape(3, -1)
        voxels[0] += start
        points = voxels.T @ target.affine[:3, :3].T + target.affine[:3, 3]
        for transform in transforms:
            points = transform.map(points)
        slab[:] = (to_source[:3, :3] @ points.T + to_source[:3, 3:]).reshape(slab.shape)
    return coordinates
