# SPDX-License-Identifier: Apache-2.0
"""A head of nested ellipsoids: sides, tissues and volumes are known exactly."""

from __future__ import annotations

import numpy as np

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable

# name, centre (R, A, S) mm, half axes mm; later ones are painted over earlier ones.
SHELLS = [
    ("Skin", (0, 0, 0), (78, 96, 90)),
    ("Other-Tissues", (0, 0, 0), (75, 93, 87)),
    ("Bone-Cortical", (0, 0, 2), (72, 89, 83)),
    ("CSF", (0, 0, 3), (67, 83, 77)),
]
SIDED = [
    ("Cerebral-Cortex", (34, 2, 12), (33, 75, 60)),
    ("Cerebral-White-Matter", (34, 2, 12), (27, 66, 52)),
    ("Cerebellum-Cortex", (24, -45, -42), (23, 22, 18)),
    ("Lateral-Ventricle", (12, 0, 20), (7, 30, 9)),
    ("Thalamus", (10, -8, 6), (9, 14, 9)),
    ("Putamen", (26, 8, 4), (7, 16, 9)),
]
MIDLINE = [("Brain-Stem", (0, -22, -35), (11, 10, 20))]
INTENSITY = {
    "Unknown": 3,
    "Skin": 150,
    "Other-Tissues": 110,
    "Bone-Cortical": 25,
    "CSF": 35,
    "Cerebral-Cortex": 90,
    "Cerebral-White-Matter": 145,
    "Cerebellum-Cortex": 85,
    "Lateral-Ventricle": 30,
    "Thalamus": 115,
    "Putamen": 105,
    "Brain-Stem": 135,
}


def phantom_grid(shape=(48, 56, 52), voxel_size_mm=4.0) -> Grid:
    """RAS grid centred on the world's origin."""
    sizes = np.broadcast_to(np.asarray(voxel_size_mm, dtype=float), 3)
    affine = np.diag([*sizes, 1.0])
    affine[:3, 3] = -sizes * (np.array(shape) - 1) / 2
    return Grid(shape, affine)


def phantom_head(shape=(48, 56, 52), voxel_size_mm=4.0, grid: Grid | None = None) -> LabelMap:
    """Label map in codes of ``fullhead`` on any grid."""
    grid = grid or phantom_grid(shape, voxel_size_mm)
    table = LabelTable.packaged("fullhead")
    world = np.indices(grid.shape).reshape(3, -1)
    world = grid.affine[:3, :3] @ world + grid.affine[:3, 3:]
    voxels = np.zeros(world.shape[1], dtype=np.int16)

    def paint(name: str, centre, half) -> None:
        inside = sum(((w - c) / h) ** 2 for w, c, h in zip(world, centre, half, strict=True)) <= 1
        voxels[inside] = table[name].index

    for shell in SHELLS:
        paint(*shell)
    for name, centre, half in SIDED:
        paint(f"Right-{name}", centre, half)
        paint(f"Left-{name}", (-centre[0], *centre[1:]), half)
    for shape_ in MIDLINE:
        paint(*shape_)
    return LabelMap(voxels.reshape(grid.shape), grid, table)


def phantom_image(
    labels: LabelMap, rng: np.random.Generator, *, noise_sd: float = 4.0
) -> np.ndarray:
    """T1-like picture of `phantom_head`, (X, Y, Z) float32."""
    lookup = np.zeros(int(labels.table.codes[-1]) + 1)
    for label in labels.table:
        name = label.name.removeprefix("Left-").removeprefix("Right-")
        lookup[label.index] = INTENSITY.get(name, 0)
    image = lookup[labels.voxels] + rng.normal(0, noise_sd, labels.voxels.shape)
    return np.abs(image).astype(np.float32)
