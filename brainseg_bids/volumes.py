# SPDX-License-Identifier: Apache-2.0
"""The only door for images: NIfTI (and MGH) files to arrays and grids, and back."""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import nibabel as nib
import numpy as np

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.anatomy.membership import Membership
from brainseg_bids.documents import InputError
from brainseg_bids.pointers import why_unfetched

log = logging.getLogger("brainseg")


WHOLE = 0.01
"""Label voxels may be this far from a whole number; an interpolated map is farther."""


def read_volume(path: str | Path) -> tuple[np.ndarray, Grid]:
    """Read one 3D image.

    Parameters
    ----------
    path : path
        NIfTI or MGH; four dimensions are accepted if the last holds one volume.

    Returns
    -------
    image : (X, Y, Z) float32
        As stored on disk, in the file's own axis order.
    grid : Grid

    Raises
    ------
    InputError
        Missing, not fetched, unreadable, several volumes, NaN or infinite voxels, or empty.
    """
    image, grid = _load(path)
    if np.iscomplexobj(image):
        raise InputError(f"{path}: voxels are complex numbers. Give the magnitude image.")
    image = image.astype(np.float32, copy=False)
    bad = image.size - int(np.count_nonzero(np.isfinite(image)))
    if bad:
        raise InputError(
            f"{path}: {bad} voxels are NaN or infinite. Replace them, e.g. with fslmaths -nan."
        )
    if image.min() == image.max():
        raise InputError(
            f"{path}: every voxel is {image.flat[0]:g}, the image is constant. Check the export."
        )
    return image, grid


def read_label_map(path: str | Path, table: LabelTable) -> LabelMap:
    """Read a label map; voxels stored as floats are accepted if they are whole within `WHOLE`.

    Raises
    ------
    InputError
        As `read_volume`, or if voxels are not whole numbers.
    UnknownLabelError
        If there are codes that the table does not know.
    """
    voxels, grid = _load(path)
    if not np.issubdtype(voxels.dtype, np.integer):
        whole = np.rint(voxels)
        # CHARM's maps went through floating point; codes lie this close to whole numbers.
        if not (np.abs(whole - voxels) <= WHOLE).all():
            raise InputError(
                f"{path}: voxels are not whole numbers, so this is no label map "
                "(was it resampled with interpolation?)."
            )
        voxels = whole.astype(np.int32)
    table.check(voxels, what=str(path))
    return LabelMap(np.ascontiguousarray(voxels), grid, table)


def read_membership(codes: str | Path, weights: str | Path, table: LabelTable) -> Membership:
    """Read what `write_membership` wrote.

    Raises
    ------
    InputError
        If a file cannot be read, or the two do not fit each other.
    UnknownLabelError
        If there are codes that the table does not know.
    """
    arrays = []
    for path in (codes, weights):
        check_present(path)
        try:
            file = nib.load(path)
            arrays.append(np.asanyarray(file.dataobj.get_unscaled()))
        except Exception as error:  # nibabel raises a dozen kinds for a damaged file
            raise InputError(
                f"{path}: cannot be read as an image ({error}). Remove it and run again."
            ) from error
    if arrays[0].ndim != 4 or arrays[0].shape != arrays[1].shape:
        raise InputError(f"{weights}: does not fit {codes}. Remove both and run again.")
    table.check(arrays[0], what=str(codes))
    grid = Grid(arrays[0].shape[:3], file.affine)
    ranked, ranked_weights = (np.ascontiguousarray(np.moveaxis(a, 3, 0)) for a in arrays)
    return Membership(ranked.astype(np.int16), ranked_weights.astype(np.uint8), grid, table)


def read_posteriors(
    paths: Sequence[str | Path], codes: Sequence[int]
) -> tuple[Grid, Iterator[tuple[int, np.ndarray]]]:
    """Probabilities of labels, one volume at a time.

    Parameters
    ----------
    paths : sequence of path
        One 3D file per code, or one 4D file with the codes along its last axis.
    codes : sequence of int

    Returns
    -------
    grid : Grid
    posteriors : iterator of (code, (X, Y, Z) float32)

    Raises
    ------
    InputError
        If a file cannot be read, has another grid than the first, or numbers do not fit.
    """
    grid = read_grid(paths[0])

    def each() -> Iterator[tuple[int, np.ndarray]]:
        if len(paths) == 1 and len(codes) > 1:
            data = nib.load(paths[0]).dataobj
            if len(data.shape) != 4 or data.shape[3] != len(codes):
                raise InputError(f"{paths[0]}: shape {data.shape} is not {len(codes)} volumes.")
            yield from ((code, np.float32(data[..., i])) for i, code in enumerate(codes))
            return
        for code, path in zip(codes, paths, strict=True):
            data, its_grid = _load(path)
            if not its_grid.is_close(grid):
                raise InputError(f"{path}: lies on another grid than {paths[0]}.")
            yield code, data.astype(np.float32, copy=False)

    return grid, each()


def read_grid(path: str | Path) -> Grid:
    """Where the voxels of an image are; only its header is read.

    Raises
    ------
    InputError
        As `read_volume`, as far as a header tells.
    """
    path = Path(path)
    check_present(path)
    try:
        file = nib.load(path)
        return Grid(file.shape[:3], file.affine)
    except Exception as error:  # nibabel raises a dozen kinds for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path}: cannot be read as an image ({reason}). Copy or export it again."
        ) from error


def check_present(path: str | Path) -> None:
    """Raise `InputError` if a file is missing, empty, or a pointer whose content is elsewhere."""
    path = Path(path)
    if why := why_unfetched(path):
        raise InputError(why)
    if not path.exists():
        raise InputError(f"{path}: there is no such file.")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty. Copy or export it again.")


def _load(path: str | Path) -> tuple[np.ndarray, Grid]:
    path = Path(path)
    check_present(path)
    try:
        file = nib.load(path)
        data = np.asanyarray(file.dataobj)
    except Exception as error:  # nibabel raises a dozen kinds for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path}: cannot be read as an image ({reason}). Copy or export it again."
        ) from error
    if data.ndim == 4 and data.shape[3] == 1:
        data = data[..., 0]
    if data.ndim != 3:
        raise InputError(
            f"{path}: shape {data.shape} is not one 3D volume. Give one volume, e.g. the mean."
        )
    if data.dtype.names:
        raise InputError(f"{path}: voxels are colours, not intensities.")
    if min(data.shape) < 2:
        raise InputError(f"{path}: shape {data.shape} is a single slice, not a volume.")
    warn_about_transforms(file, path)
    try:
        return data, Grid(data.shape, file.affine)
    except ValueError as error:
        raise InputError(f"{path}: {error}. Repair the header.") from error


def warn_about_transforms(file, path: Path) -> list[str]:
    """Warn if qform and sform of a NIfTI disagree by more than 0.1 mm; the sform is used."""
    header = file.header
    if not hasattr(header, "get_qform"):
        return []
    notes = []
    sform, s_code = header.get_sform(coded=True)
    try:
        qform, q_code = header.get_qform(coded=True)
    except ValueError:  # a quaternion longer than one
        qform, q_code = None, 0
        notes.append(f"{path}: the qform is damaged; the sform is used. Repair the header.")
    if q_code == 0 and s_code == 0 and not notes:
        notes.append(
            f"{path}: the header has no orientation (qform and sform are 0); "
            "left and right are a guess."
        )
    elif q_code > 0 and s_code > 0 and qform is not None:
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in file.shape[:3]])).reshape(3, -1)
        corners = np.vstack([corners, np.ones(8)])
        apart_mm = float(np.abs((qform - sform) @ corners).max())
        if apart_mm > 0.1:
            notes.append(
                f"{path}: qform and sform differ by up to {apart_mm:.1f} mm; the sform is used."
            )
    for note in notes:
        log.warning(note)
        warnings.warn(note, stacklevel=2)
    return notes


def sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def voxel_hash(array: np.ndarray, grid: Grid) -> str:
    """SHA-256 of an image's voxels, whatever file, data type or axis order they are kept in.

    Parameters
    ----------
    array : (X, Y, Z)
    grid : Grid
        Voxels are taken along its axes nearest to R, A, S; where they lie does not count.

    Returns
    -------
    str
        Hex.
    """
    turned = np.ascontiguousarray(grid.array_to_ras(array), dtype=np.float32)
    digest = hashlib.sha256(repr(turned.shape).encode())
    digest.update(turned + np.float32(0))  # minus zero is zero
    return digest.hexdigest()


def write_label_map(labels: LabelMap, path: str | Path) -> Path:
    """Write codes as int16 NIfTI, whole or not at all."""
    return _save(labels.voxels.astype(np.int16), labels.grid, path, intent="label")


def write_volume(image: np.ndarray, grid: Grid, path: str | Path) -> Path:
    """Write an array on a grid (a fourth axis is allowed) as NIfTI, whole or not at all."""
    return _save(image, grid, path)


def write_membership(
    membership: Membership, codes: str | Path, weights: str | Path
) -> tuple[Path, Path]:
    """Write ranks as the last axis: codes as int16, weights as bytes that read as 0..1."""
    by_rank = np.moveaxis(membership.codes, 0, 3).astype(np.int16)
    _save(by_rank, membership.grid, codes, intent="label")
    _save(np.moveaxis(membership.weights, 0, 3), membership.grid, weights, slope=1 / 255)
    return Path(codes), Path(weights)


def write_mask(mask: np.ndarray, grid: Grid, path: str | Path) -> Path:
    """Write a mask as uint8 NIfTI, whole or not at all."""
    return _save(mask.astype(np.uint8), grid, path)


def write_mgz(labels: LabelMap, path: str | Path) -> Path:
    """Write codes as int32 MGZ, FreeSurfer's format, whole or not at all."""
    path = Path(path)
    file = nib.MGHImage(labels.voxels.astype(np.int32), labels.grid.affine)
    with whole_or_nothing(path) as temporary:
        nib.save(file, temporary)
    return path


def _save(
    array: np.ndarray,
    grid: Grid,
    path: str | Path,
    *,
    intent: str | None = None,
    slope: float | None = None,
) -> Path:
    path = Path(path)
    file = nib.Nifti1Image(array, grid.affine)
    place(file.header, grid)
    if slope:  # the stored numbers are taken as they are
        file.header.set_slope_inter(slope, 0)
    if intent:
        file.header.set_intent(intent)
    with whole_or_nothing(path) as temporary:
        nib.save(file, temporary)
    return path


def place(header: nib.Nifti1Header, grid: Grid) -> None:
    """Write where the voxels are; a sheared grid has no qform, which cannot hold shear."""
    header.set_sform(grid.affine, code=1)
    header.set_qform(grid.affine, code=1)
    if not np.allclose(header.get_qform(), grid.affine, atol=1e-3):
        header.set_qform(None, code=0)
    header.set_xyzt_units("mm", "sec")


@contextmanager
def whole_or_nothing(path: Path):
    """Write to a temporary name beside ``path``; rename when done, remove when it fails."""
    endings = "".join(path.suffixes[-2:]) if path.name.endswith(".nii.gz") else path.suffix
    # Not the process number: in containers on two nodes it is often the same.
    temporary = path.with_name(f".{path.name.removesuffix(endings)}.{uuid4().hex}{endings}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
