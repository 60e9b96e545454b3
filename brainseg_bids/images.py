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
from nibabel.analyze import AnalyzeImage

from brainseg_bids.anatomy.fill import with_finite_background
from brainseg_bids.anatomy.grid import MM_PER_UNIT, Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.anatomy.posteriors import TopPosteriors
from brainseg_bids.documents import InputError
from brainseg_bids.files import whole_or_nothing
from brainseg_bids.pointers import why_unfetched

log = logging.getLogger("brainseg")


WHOLE = 0.01
"""Label voxels may be this far from a whole number; an interpolated map is farther."""

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

GUESS = "left and right are a guess"
_noted: ContextVar[list[str] | None] = ContextVar("noted", default=None)
_NIFTI_STARTS = {size.to_bytes(4, order) for size in (348, 540) for order in ("little", "big")}
_UNIT_CODES = {1: "meter", 2: "mm", 3: "micron"}
_UNIT_WORDS = {"mm": "mm", "meter": "metres", "micron": "microns"}


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
    _warn(_on_unit(grid, path) + _on_extent(grid, path))
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
    grid, _ = _geometry(file, path)
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
    return _geometry(file, Path(path))[0]


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
    grid, notes = _geometry(file, path)
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


def _geometry(file, path: Path) -> tuple[Grid, list[str]]:
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


def _on_unit(grid: Grid, path: str | Path) -> list[str]:
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


def _on_extent(grid: Grid, path: str | Path) -> list[str]:
    longest_mm = max(grid.extent_mm)
    if longest_mm < UNUSUAL_MM[0]:
        return [f"{path}: the image is {longest_mm:.3g} mm long, shorter than a human head."]
    if longest_mm > UNUSUAL_MM[1]:
        return [f"{path}: the image is {longest_mm:.4g} mm long, more than a scan of a head."]
    return []


def _on_orientation(file, grid: Grid, path: Path) -> list[str]:
    """Whether left and right are known, and whether qform and sform agree within 0.1 mm."""
    header = file.header
    if not isinstance(header, nib.Nifti1Header):
        return [] if _is_oriented(file) else [f"{path}: it has no orientation; {GUESS}."]
    try:
        qform, q_code = header.get_qform(coded=True)
    except ValueError:  # a quaternion longer than one
        return [f"{path}: the qform is damaged; the sform is used. Repair the header."]
    if q_code == 0 and not _placed_by_sform(file):
        return [f"{path}: the header has no orientation (qform and sform are 0); {GUESS}."]
    if q_code > 0 and _placed_by_sform(file):
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in grid.shape])).reshape(3, -1)
        apart = (qform - header.get_sform()) @ np.vstack([corners, np.ones(8)])
        apart_mm = float(np.abs(apart[:3]).max()) * MM_PER_UNIT[grid.file_unit]
        if not np.isfinite(apart_mm):
            return [f"{path}: the qform is damaged; the sform is used. Repair the header."]
        if apart_mm > 0.1:
            return [
                f"{path}: qform and sform differ by up to {apart_mm:.1f} mm; the sform is used."
            ]
    return []


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
