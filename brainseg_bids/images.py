# SPDX-License-Identifier: Apache-2.0
"""The only door for images: NIfTI (and MGH) files to arrays and grids, and back."""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import nibabel as nib
import numpy as np

from brainseg_bids.anatomy.fill import with_finite_background
from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.anatomy.posteriors import TopPosteriors
from brainseg_bids.documents import InputError
from brainseg_bids.files import whole_or_nothing
from brainseg_bids.headers import (
    APART_MM,
    on_extent,
    on_unit,
    place,
    read_geometry,
    transforms_apart_mm,
)
from brainseg_bids.pointers import why_unfetched

log = logging.getLogger("brainseg")


WHOLE = 0.01
"""Label voxels may be this far from a whole number; an interpolated map is farther."""

_noted: ContextVar[list[str] | None] = ContextVar("noted", default=None)
_NIFTI_STARTS = {size.to_bytes(4, order) for size in (348, 540) for order in ("little", "big")}


def read_volume(path: str | Path) -> tuple[np.ndarray, Grid]:
    """Read one 3D image.

    Parameters
    ----------
    path : path
        NIfTI or MGH; further dimensions are accepted if they hold one volume.

    Returns
    -------
    image : (X, Y, Z) float32
        As stored on disk, in the file's own axis order; NaN and infinite voxels of the background
        are set to its level.
    grid : Grid

    Raises
    ------
    InputError
        Missing, not fetched, unreadable, several volumes, NaN or infinite inside the head, or
        empty.
    """
    image, grid = _load(path)
    _warn(on_unit(grid, path) + on_extent(grid, path))
    if np.iscomplexobj(image):
        raise InputError(f"{path}: voxels are complex numbers. Give the magnitude image.")
    image = image.astype(np.float32, copy=False)
    try:
        image = with_finite_background(image)
    except ValueError as error:
        raise InputError(f"{path}: {error}. Replace them, e.g. with fslmaths -nan.") from error
    if image.min() == image.max():
        raise InputError(
            f"{path}: every voxel is {image.flat[0]:g}, the image is constant. Check the export."
        )
    return image, grid


def holds_numbers_only(path: str | Path) -> bool:
    """Whether no voxel of an image is NaN or infinite: programs that get the file expect that.

    Raises
    ------
    InputError
        If the file cannot be read.
    """
    file, _ = _open(path)
    with _said_as_input_error(path):
        return bool(np.isfinite(np.asanyarray(file.dataobj)).all())


def is_at_one_place(path: str | Path) -> bool:
    """Whether qform and sform of an image agree: some programs go by the one, some by the other.

    Raises
    ------
    InputError
        If the header cannot be read.
    """
    file, _ = _open(path)
    grid, _ = read_geometry(file, Path(path))
    return transforms_apart_mm(file, grid) <= APART_MM


def read_again(path: str | Path) -> tuple[np.ndarray, Grid]:
    """As `read_volume`; what is odd about the image is not said again."""
    with noting():
        return read_volume(path)


@contextmanager
def noting() -> Iterator[list[str]]:
    """Collect what is odd about the files that the block reads, instead of logging it.

    Steps run in processes whose log nobody reads: what they note belongs in their results.

    Yields
    ------
    list of str
        Sentences that begin with the file; it grows while the block reads.
    """
    notes: list[str] = []
    before = _noted.set(notes)
    try:
        yield notes
    finally:
        _noted.reset(before)


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
                f"{path}: voxels are not whole numbers, so this is not a label map "
                "(was it resampled with interpolation?)."
            )
        voxels = whole.astype(np.int32)
    table.check(voxels, what=str(path))
    native = voxels.dtype.newbyteorder("=")  # compiled code takes no other
    return LabelMap(np.ascontiguousarray(voxels, dtype=native), grid, table)


def read_top_posteriors(
    codes: str | Path, weights: str | Path, table: LabelTable
) -> TopPosteriors:
    """Read what `write_top_posteriors` wrote.

    Raises
    ------
    InputError
        If a file cannot be read, or the two do not fit each other.
    UnknownLabelError
        If there are codes that the table does not know.
    """
    arrays = []
    for path in (codes, weights):
        file, _ = _open(path, "Remove it and run again.")
        with _said_as_input_error(path, "Remove it and run again."):
            arrays.append(np.asanyarray(file.dataobj.get_unscaled()))
            _check_sum(Path(path))
    if arrays[0].ndim != 4 or arrays[0].shape != arrays[1].shape:
        raise InputError(f"{weights}: does not fit {codes}. Remove both and run again.")
    table.check(arrays[0], what=str(codes))
    grid, _ = read_geometry(file, path)
    ranked, ranked_weights = (np.ascontiguousarray(np.moveaxis(a, 3, 0)) for a in arrays)
    return TopPosteriors(ranked.astype(np.int16), ranked_weights.astype(np.uint8), grid, table)


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
            data = _open(paths[0])[0].dataobj
            if len(data.shape) != 4 or data.shape[3] != len(codes):
                raise InputError(f"{paths[0]}: shape {data.shape} is not {len(codes)} volumes.")
            with _said_as_input_error(paths[0]):
                _check_sum(Path(paths[0]))
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
    file, _ = _open(path)
    return read_geometry(file, Path(path))[0]


def check_present(path: str | Path) -> None:
    """Raise `InputError` if a file is missing, empty, or a pointer whose content is elsewhere."""
    path = Path(path)
    if why := why_unfetched(path):
        raise InputError(why)
    if path.is_symlink() and not path.exists():
        raise InputError(
            f"{path}: a link to {os.readlink(path)}, where nothing is. Bind or mount that folder, "
            "or copy the file."
        )
    if not path.exists():
        raise InputError(f"{path}: there is no such file.")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty. Copy or export it again.")


def _load(path: str | Path) -> tuple[np.ndarray, Grid]:
    path = Path(path)
    file, mended = _open(path)
    with _said_as_input_error(path):
        data = np.asanyarray(file.dataobj)
        _check_sum(path)
    shape = data.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3:
        raise InputError(
            f"{path}: shape {data.shape} is not one 3D volume. Give one volume, e.g. the mean."
        )
    if data.dtype.names:
        raise InputError(f"{path}: voxels are colours, not intensities.")
    if min(shape) < 2:
        raise InputError(f"{path}: shape {shape} is a single slice, not a volume.")
    grid, notes = read_geometry(file, path)
    _warn(mended + notes)
    return data.reshape(shape), grid


def _warn(notes: Sequence[str]) -> None:
    if (noted := _noted.get()) is not None:
        noted.extend(note for note in notes if note not in noted)
        return
    for note in notes:
        log.warning(note)
        warnings.warn(note, stacklevel=3)


@contextmanager
def _said_as_input_error(path: str | Path, remedy: str = "Copy or export it again."):
    try:
        yield
    except Exception as error:  # nibabel raises a dozen kinds for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: cannot be read as an image ({reason}). {remedy}") from error


def _open(path: str | Path, remedy: str = "Copy or export it again."):
    """An image as nibabel has it, and what it mended in the header; voxels are not read."""
    check_present(path)
    _check_ending(Path(path))
    mended: list[str] = []

    def take(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            mended.append(f"{path}: nibabel mends the header: {record.getMessage()}.")
        return False  # nibabel would print it without the file's name

    nib.imageglobals.logger.addFilter(take)
    try:
        with _said_as_input_error(path, remedy):
            return nib.load(path), mended
    finally:
        nib.imageglobals.logger.removeFilter(take)


def _check_sum(path: Path) -> None:
    """Read a compressed file to its end; only there a check sum tells of damaged voxels."""
    if path.suffix not in (".gz", ".mgz"):
        return
    with gzip.open(path) as packed:
        while packed.read(1 << 20):
            pass


def _check_ending(path: Path) -> None:
    """Refuse a NIfTI whose name says that it is compressed, or is not, and its content not so."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        start = file.read(4)
    named, packed = path.suffix == ".gz", start[:2] == b"\x1f\x8b"
    if path.suffix == ".nii" and packed:
        raise InputError(f"{path}: it is compressed. Rename it to {path.name}.gz.")
    if named and start in _NIFTI_STARTS:
        raise InputError(f"{path}: it is not compressed. Rename it to {path.stem}.")


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
    turned = grid.array_to_ras(array)
    digest = hashlib.sha256(repr(turned.shape).encode())
    for plane in turned:  # plane by plane: a copy of all would be four bytes a voxel
        # Minus zero is zero.
        digest.update(np.ascontiguousarray(plane, dtype=np.float32) + np.float32(0))
    return digest.hexdigest()


def write_label_map(labels: LabelMap, path: str | Path) -> Path:
    """Write codes as int16 NIfTI, whole or not at all."""
    return _save(labels.voxels.astype(np.int16), labels.grid, path, intent="label")


def write_volume(
    image: np.ndarray, grid: Grid, path: str | Path, *, slope: float | None = None
) -> Path:
    """Write an array on a grid (a fourth axis is allowed) as NIfTI, whole or not at all.

    With ``slope``, readers multiply what is stored by it.
    """
    return _save(image, grid, path, slope=slope)


def write_top_posteriors(
    posteriors: TopPosteriors, codes: str | Path, weights: str | Path
) -> tuple[Path, Path]:
    """Write ranks as the last axis: codes as int16, weights as bytes that read as 0..1."""
    by_rank = np.moveaxis(posteriors.codes, 0, 3).astype(np.int16)
    _save(by_rank, posteriors.grid, codes, intent="label")
    _save(np.moveaxis(posteriors.weights, 0, 3), posteriors.grid, weights, slope=1 / 255)
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
    # Without an affine of its own nibabel keeps what `place` says.
    file = nib.Nifti1Image(array, None)
    place(file.header, grid)
    if slope:  # the stored numbers are taken as they are
        file.header.set_slope_inter(slope, 0)
    if intent:
        file.header.set_intent(intent)
    with whole_or_nothing(path) as temporary:
        nib.save(file, temporary)
    return path
