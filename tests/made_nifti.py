# SPDX-License-Identifier: Apache-2.0
"""NIfTI files whose headers say what a test wants, which nibabel would not write."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

BOX_MM = np.diag([30.0, 26.0, 28.0, 1.0])
"""Voxel sizes that make a head-sized box of a few voxels."""


def ramp(shape: tuple[int, ...] = (5, 6, 7)) -> np.ndarray:
    """Every voxel has a number of its own, (X, Y, Z) float32."""
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def write_nifti(
    path: Path,
    array: np.ndarray | None = None,
    *,
    sform: np.ndarray | None = None,
    qform: np.ndarray | None = None,
    endianness: str = "<",
    header_class: type = nib.Nifti1Header,
    **fields,
) -> Path:
    """Write a single file, uncompressed; only the transforms that are given are declared.

    Parameters
    ----------
    path : Path
    array : ndarray, optional
        `ramp` unless given.
    sform, qform : (4, 4) float, optional
        With neither, voxel sizes are those of `BOX_MM`.
    endianness : {"<", ">"}
    header_class : type
        ``nib.Nifti1Header`` or ``nib.Nifti2Header``.
    **fields
        What the header's fields hold in the end, such as ``xyzt_units=3`` or ``pixdim=(4, 4, 8)``
        for the three voxel sizes.
    """
    array = ramp() if array is None else array
    header = header_class(endianness=endianness)
    header.set_data_shape(array.shape)
    header.set_data_dtype(array.dtype)
    header["pixdim"][1:4] = np.diag(BOX_MM)[:3]
    if sform is not None:
        header.set_sform(sform, code=1)
        header["pixdim"][1:4] = np.linalg.norm(sform[:3, :3], axis=0)
    if qform is not None:
        header.set_qform(qform, code=1)
    header["vox_offset"] = 352 if header_class is nib.Nifti1Header else 544
    header["magic"] = header.single_magic
    for name, value in fields.items():
        if name == "pixdim":
            header["pixdim"][1:4] = value
        else:
            header[name] = value
    stored = array.astype(array.dtype.newbyteorder(endianness)).tobytes(order="F")
    path.write_bytes(header.binaryblock + b"\0\0\0\0" + stored)
    return path


def contradict(path: Path, by_mm: float = 7.0) -> str:
    """Move the qform of an image away from its sform; what is to be said of it."""
    file = nib.load(path)
    array, affine = np.asanyarray(file.dataobj), file.affine.copy()
    affine[:3, 3] += by_mm
    file.header.set_qform(affine, code=1)
    nib.save(nib.Nifti1Image(array, None, file.header), path)
    return (
        f"{path}: qform and sform differ by up to {by_mm:.1f} mm; the sform is used. "
        "Repair the header."
    )
