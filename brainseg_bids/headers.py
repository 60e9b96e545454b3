# SPDX-License-Identifier: Apache-2.0
"""Headers of images: where voxels are, what is doubtful about it, and how it is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.analyze import AnalyzeImage

from brainseg_bids.anatomy.grid import MM_PER_UNIT, Grid
from brainseg_bids.documents import InputError

IMPOSSIBLE_MM = (1.0, 3000.0)
"""Longest edges of an image that is no image of a body: a head in metres taken for mm is 0.2 mm
long, one in microns 200,000 mm; the smallest brains that are imaged (fish) have 2 mm, and a
scanner's table travels 2 to 3 m."""

UNUSUAL_MM = (80.0, 600.0)
"""Longest edges of images of human heads lie between these: a head born at 28 weeks is 80 mm long,
and gradients are linear over 500 to 550 mm. Small animals and specimens are smaller, whole bodies
longer: their images are taken, with a warning."""

SAME_SIZE = 0.01
"""Share by which two descriptions of a voxel's size may differ: volumes differ by as much."""

APART_MM = 0.1
"""Farther apart than this, qform and sform put an image at two places."""

GUESS = "left and right are a guess"

_UNIT_CODES = {1: "meter", 2: "mm", 3: "micron"}
_UNIT_WORDS = {"mm": "mm", "meter": "metres", "micron": "microns"}


def read_geometry(file, path: Path) -> tuple[Grid, list[str]]:
    """Where the voxels of an opened image are, and what its header makes doubtful.

    Descriptions are taken in nibabel's order: sform, qform, voxel sizes alone. Units of length
    are brought to mm.

    Raises
    ------
    InputError
        If nothing says where the voxels are, or no head can be of that size.
    """
    if isinstance(file, nib.Nifti1Image) and file.dataobj.offset == 0:
        raise InputError(
            f"{path}: the header says that voxels begin in it (vox_offset 0). Export it again."
        )
    sizes = _declared_sizes(file)
    unit, notes = _unit(file, path)
    affine = file.affine.copy()
    affine[:3] *= MM_PER_UNIT[unit]
    try:
        grid = Grid(file.shape[:3], affine, unit)
    except ValueError as error:
        raise InputError(f"{path}: {error}. Repair the header.") from error
    _check_size(grid, path)
    if _placed_by_sform(file):
        notes += _on_sizes(sizes * MM_PER_UNIT[unit], grid, path)
    elif not (sizes > 0).all():
        raise InputError(
            f"{path}: the header gives no voxel size along one axis (pixdim {_shown(sizes)}). "
            "Repair the header."
        )
    return grid, notes + _on_orientation(file, grid, path)


def _declared_sizes(file) -> np.ndarray:
    """Voxel sizes that a header gives beside its affine, (3,), in its unit; 0: none is given.

    nibabel puts 1 for what is not given, so NIfTI's are read as they are stored.
    """
    header = file.header
    if not isinstance(header, nib.Nifti1Header):
        return np.array(header.get_zooms()[:3], dtype=float)
    holder = file.file_map.get("header") or file.file_map["image"]
    with holder.get_prepare_fileobj("rb") as stored:
        sizes = type(header).from_fileobj(stored, check=False)["pixdim"][1:4]
    return np.nan_to_num(np.abs(sizes.astype(float)), posinf=0.0)


def _placed_by_sform(file) -> bool:
    return isinstance(file.header, nib.Nifti1Header) and file.header["sform_code"] > 0


def _unit(file, path: Path) -> tuple[str, list[str]]:
    """Unit of length by nibabel's name; what does not say so is in mm."""
    if not isinstance(file.header, nib.Nifti1Header):
        return "mm", []
    code = int(file.header["xyzt_units"]) & 7
    unit = _UNIT_CODES.get(code, "mm")
    if code and code not in _UNIT_CODES:
        return unit, [f"{path}: unit of length {code} is not one of NIfTI's; it is taken for mm."]
    return unit, []


def on_unit(grid: Grid, path: str | Path) -> list[str]:
    """What became of another unit.

    As of an unusual extent, label maps made of the image have it too and say nothing.
    """
    if grid.file_unit == "mm":
        return []
    words = _UNIT_WORDS[grid.file_unit]
    return [
        f"{path}: the header is in {words}: sizes are converted to mm, and results are written in "
        f"{words}, as the image is."
    ]


def _check_size(grid: Grid, path: Path) -> None:
    """Refuse sizes that no head has, with the unit that would be right."""
    longest_mm = max(grid.extent_mm)
    if IMPOSSIBLE_MM[0] <= longest_mm <= IMPOSSIBLE_MM[1]:
        return
    number = longest_mm / MM_PER_UNIT[grid.file_unit]
    fitting = [
        f"{code} ({_UNIT_WORDS[unit]})"
        for code, unit in _UNIT_CODES.items()
        if UNUSUAL_MM[0] <= number * MM_PER_UNIT[unit] <= UNUSUAL_MM[1]
    ]
    remedy = f"set xyzt_units in it to {fitting[0]}" if fitting else "repair its affine"
    raise InputError(
        f"{path}: by its header this image is {number:.6g} {_UNIT_WORDS[grid.file_unit]} long, "
        f"which no head is. If the header is wrong, {remedy}; else export the image again."
    )


def _on_sizes(sizes_mm: np.ndarray, grid: Grid, path: Path) -> list[str]:
    """Whether voxel sizes beside the sform are its own; sizes that are not given say nothing."""
    if not (sizes_mm > 0).all():
        return []
    used_mm = np.array(grid.voxel_size_mm)
    volumes_mm3 = np.array([sizes_mm.prod(), grid.voxel_volume_mm3])
    ratios = np.append(sizes_mm / used_mm, volumes_mm3[0] / volumes_mm3[1])
    if (np.abs(ratios - 1) <= SAME_SIZE).all():
        return []
    return [
        f"{path}: the header contradicts itself: a voxel has {volumes_mm3[0]:.4g} mm3 by pixdim "
        f"({_shown(sizes_mm)} mm) and {volumes_mm3[1]:.4g} mm3 by the sform ({_shown(used_mm)} "
        "mm). The sform is used; find out which is right before you use volumes."
    ]


def on_extent(grid: Grid, path: str | Path) -> list[str]:
    longest_mm = max(grid.extent_mm)
    if longest_mm < UNUSUAL_MM[0]:
        return [f"{path}: the image is {longest_mm:.3g} mm long, shorter than a human head."]
    if longest_mm > UNUSUAL_MM[1]:
        return [f"{path}: the image is {longest_mm:.4g} mm long, more than a scan of a head."]
    return []


def _on_orientation(file, grid: Grid, path: Path) -> list[str]:
    """Whether left and right are known, and whether qform and sform agree."""
    header = file.header
    if not isinstance(header, nib.Nifti1Header):
        return [] if _is_oriented(file) else [f"{path}: it has no orientation; {GUESS}."]
    if header["qform_code"] <= 0 and not _placed_by_sform(file):
        return [f"{path}: the header has no orientation (qform and sform are 0); {GUESS}."]
    apart_mm = transforms_apart_mm(file, grid)
    if not np.isfinite(apart_mm):
        return [f"{path}: the qform is damaged; the sform is used. Repair the header."]
    if apart_mm > APART_MM:
        return [
            f"{path}: qform and sform differ by up to {apart_mm:.1f} mm; the sform is used. "
            "Repair the header."
        ]
    return []


def transforms_apart_mm(file, grid: Grid) -> float:
    """How far qform and sform put the corners of an image apart; infinite: the qform is damaged.

    0 unless both are set.
    """
    if not _placed_by_sform(file) or file.header["qform_code"] <= 0:
        return 0.0
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in grid.shape])).reshape(3, -1)
    try:
        between = file.header.get_qform() - file.header.get_sform()
    except ValueError:  # a quaternion longer than one
        return np.inf
    apart = np.abs((between @ np.vstack([corners, np.ones(8)]))[:3]).max()
    return float(apart) * MM_PER_UNIT[grid.file_unit] if np.isfinite(apart) else np.inf


def _is_oriented(file) -> bool:
    """Whether a file that is no NIfTI tells left from right; of Analyze's, SPM's ``.mat`` does."""
    if isinstance(file, nib.MGHImage):
        with file.file_map["image"].get_prepare_fileobj("rb") as stored:
            return any(stored.read(30)[28:])  # nibabel sets the flag that it does not find
    if not isinstance(file, AnalyzeImage):
        return True
    matrix = file.file_map.get("mat")
    return matrix is not None and Path(matrix.filename).is_file()


def _shown(sizes: Sequence[float]) -> str:
    return " x ".join(f"{size:.3g}" for size in sizes)


def place(header: nib.Nifti1Header, grid: Grid) -> None:
    """Write where the voxels are; a sheared grid has no qform, which cannot hold shear.

    Numbers are in the unit of the image's own file, under its name. So results lie on the image
    in viewers that convert units (ITK-SNAP, 3D Slicer, Freeview) and in those that take every
    number for mm (FSLeyes, nilearn); in mm they would miss it in the latter by a factor of 1000.
    """
    mm = MM_PER_UNIT[grid.file_unit]
    affine = grid.affine.copy()
    affine[:3] /= mm
    header.set_sform(affine, code=1)
    header.set_qform(affine, code=1)
    if not np.allclose(mm * header.get_qform()[:3], grid.affine[:3], atol=1e-3):
        header.set_qform(None, code=0)
    header.set_xyzt_units(grid.file_unit, "sec")
