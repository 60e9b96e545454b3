# SPDX-License-Identifier: Apache-2.0
"""``Scene``: an image and its labels, cropped to the head and in RAS+ axis order."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from brainseg_bids.anatomy.grid import triple
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import Label, LabelTable, count_codes

MARGIN_MM = 12.0
"""Margin of air around the head, for the border of the skin."""


@dataclass(frozen=True)
class Scene:
    """An image and its labels, cropped to the head and in RAS+ axis order.

    Parameters
    ----------
    image : (X, Y, Z) float32, C order
    indices : (X, Y, Z) uint8 or uint16
        Class index among ``labels``; 0 is air.
    labels : tuple of Label
        Labels of the map; the first is background.
    offset : tuple of 3 int
        Voxel of the whole image at which the crop begins.
    head : tuple of 3 slices
        Bounding box of the head within the crop.
    voxel_size_mm : tuple of 3 float
    whole_shape : tuple of 3 int
        Shape of the whole image.
    """

    image: np.ndarray
    indices: np.ndarray
    labels: tuple[Label, ...]
    offset: tuple[int, int, int]
    head: tuple[slice, slice, slice]
    voxel_size_mm: tuple[float, float, float]
    whole_shape: tuple[int, int, int]


def _indexed(voxels: np.ndarray, table: LabelTable) -> tuple[np.ndarray, list[Label]]:
    """Voxels as class indices among the labels that are there; 0 is outside air."""
    air = table[0] if 0 in table else Label(0, "Background")
    present = [air, *(table[code] for code in count_codes(voxels) if code != 0)]
    lookup = np.zeros(
        int(table.codes[-1]) + 1, dtype=np.uint8 if len(present) < 256 else np.uint16
    )
    for index, label in enumerate(present):
        lookup[label.index] = index
    return np.take(lookup, voxels), present


def crop_scene(image: np.ndarray, voxels: np.ndarray, labels: LabelMap) -> Scene:
    """Image and labels, cropped to the head with a margin of air.

    Parameters
    ----------
    image, voxels : (X, Y, Z)
        Intensities and codes in RAS+ axis order.
    labels : LabelMap
        For its grid and label table.
    """
    order = labels.grid.to_ras()
    size = order.voxel_size_mm
    taken = voxels != 0
    box, wide = [], []
    for axis in range(3):
        lines = np.flatnonzero(taken.any(axis=tuple(a for a in range(3) if a != axis)))
        margin = math.ceil(MARGIN_MM / size[axis])
        start, stop = int(lines[0]), int(lines[-1]) + 1
        wide.append(slice(max(0, start - margin), min(voxels.shape[axis], stop + margin)))
        box.append(slice(start - wide[-1].start, stop - wide[-1].start))
    indices, present = _indexed(voxels[tuple(wide)], labels.table)
    return Scene(
        image=np.ascontiguousarray(image[tuple(wide)], dtype=np.float32),
        indices=np.ascontiguousarray(indices),
        labels=tuple(present),
        offset=triple(s.start for s in wide),
        head=triple(box),
        voxel_size_mm=size,
        whole_shape=voxels.shape,
    )


def partners(labels: tuple[Label, ...]) -> np.ndarray:
    """Class index of each label's counterpart, or its own if that is absent, (labels,) int."""
    index_of = {label.index: index for index, label in enumerate(labels)}
    return np.array([index_of.get(label.mirror, index) for index, label in enumerate(labels)])


def head_positions(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Voxel indices of a random sample of the head, (n, 3) int."""
    flat = np.flatnonzero(scene.indices)
    flat = flat if len(flat) <= 20_000 else rng.choice(flat, 20_000, replace=False)
    return np.stack(np.unravel_index(flat, scene.indices.shape), -1)


def head_range(scene: Scene) -> tuple[float, float]:
    """0.5th and 99.5th percentile of the intensities of all labelled voxels."""
    flat = np.flatnonzero(scene.indices)
    values = scene.image.reshape(-1)[flat[:: max(1, len(flat) // 1_000_000)]]
    low, high = np.percentile(values[np.isfinite(values)], [0.5, 99.5])
    return float(low), float(high)
