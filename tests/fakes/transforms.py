# SPDX-License-Identifier: Apache-2.0
"""Composite transforms as ITK writes them."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from brainseg_bids.anatomy.grid import Grid

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def write_composite(
    path: Path, affine: np.ndarray | None = None, field: Grid | None = None
) -> Path:
    """A linear part (RAS, points of the template to those of the image), and a field of zeros."""
    matrix = LPS @ (np.eye(4) if affine is None else affine) @ LPS
    parts = [
        ("CompositeTransform_double_3_3", None, None),
        (
            "AffineTransform_double_3_3",
            np.concatenate([matrix[:3, :3].ravel(), matrix[:3, 3]]),
            np.zeros(3),
        ),
    ]
    if field is not None:
        to_lps = LPS @ field.affine
        sizes = np.array(field.voxel_size_mm)
        fixed = [field.shape, to_lps[:3, 3], sizes, (to_lps[:3, :3] / sizes).ravel()]
        moved = np.zeros(3 * int(np.prod(field.shape)), np.float32)
        parts.append(("DisplacementFieldTransform_double_3_3", moved, np.concatenate(fixed)))
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for number, (kind, parameters, fixed) in enumerate(parts):
            group = file.create_group(f"TransformGroup/{number}")
            group.create_dataset("TransformType", data=np.array([kind.encode()], dtype=object),
                                 dtype=h5py.string_dtype("ascii"))  # fmt: skip
            if parameters is not None:
                group["TransformParameters"] = parameters
                group["TransformFixedParameters"] = fixed
    return path
