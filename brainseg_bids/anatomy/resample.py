# SPDX-License-Identifier: Apache-2.0
"""Labels and images resampled to another grid through a transform.

Labels are resampled once: the mask of each label (or its probability) is interpolated linearly,
and the label with the largest value is taken. This is equal to one-hot interpolation followed by
arg-max, but needs no volume per label.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable

SLAB_VOXELS = 1 << 19
"""Target voxels that are processed at a time; needs about 100 MB besides source and target."""


def resample_labels(labels: LabelMap, coordinates: np.ndarray, grid: Grid) -> LabelMap:
    """Label map on another grid, by linear interpolation of the mask of each label.

    Parameters
    ----------
    labels : LabelMap
        Source.
    coordinates : (3, X, Y, Z) float
        Position of each voxel of ``grid`` in the source, in voxel indices of the source. Voxels
        whose position is more than half a voxel outside of the source get code 0.
    grid : Grid
        Target.

    Returns
    -------
    LabelMap
        Of labels with equal values, that of the nearest source voxel is taken, then the lower
        code.

    Raises
    ------
    ValueError
        If ``coordinates`` and ``grid`` differ in shape.

    Examples
    --------
    >>> from brainseg_bids.anatomy.labels import Label
    >>> table = LabelTable([Label(0, "Background"), Label(7, "Rod")])
    >>> rod = LabelMap(np.array([0, 7, 7, 0]).reshape(4, 1, 1), Grid((4, 1, 1), np.eye(4)), table)
    >>> coordinates = np.zeros((3, 5, 1, 1)); coordinates[0, :, 0, 0] = [0.4, 0.6, 2, 2.6, 9]
    >>> resample_labels(rod, coordinates, Grid((5, 1, 1), np.eye(4))).voxels.ravel().tolist()
    [0, 7, 7, 0, 0]
    """
    _check(coordinates, grid)
    resampled = np.zeros(grid.shape, np.int16)
    for planes in _slabs(grid.shape):
        inside, low, frac = _locate(coordinates[:, planes], labels.grid.shape)
        seen = np.stack(
            [labels.voxels[at] for at, _ in _corners(low, frac, labels.grid.shape)]
        ).astype(np.int16)
        found = seen[0].copy()
        rest = np.flatnonzero(inside & (seen != seen[0]).any(0))
        weights = np.stack([weight for _, weight in _corners(low[:, rest], frac[:, rest], None)])
        found[rest] = _largest_share(seen[:, rest], weights)
        resampled[planes] = np.where(inside, found, 0).reshape(resampled[planes].shape)
    return LabelMap(resampled, grid, labels.table)


def resample_probabilities(
    posteriors: Iterable[tuple[int, np.ndarray]],
    coordinates: np.ndarray,
    grid: Grid,
    table: LabelTable,
) -> LabelMap:
    """Label map on another grid from probabilities of labels, one label at a time.

    Parameters
    ----------
    posteriors : iterable of (code, (X', Y', Z') float)
        Probabilities of each label in the source, including code 0.
    coordinates, grid
        As in `resample_labels`.
    table : LabelTable
        Table with all codes.

    Returns
    -------
    LabelMap
        Of equal probabilities the first code is taken; code 0 where all are 0.
    """
    _check(coordinates, grid)
    best, resampled = np.zeros(grid.shape, np.float32), np.zeros(grid.shape, np.int16)
    for code, posterior in posteriors:
        share = resample_image(posterior, coordinates, grid)
        resampled[share > best] = code
        np.maximum(best, share, out=best)
    return LabelMap(resampled, grid, table)


def resample_image(image: np.ndarray, coordinates: np.ndarray, grid: Grid) -> np.ndarray:
    """Image on another grid, linearly interpolated.

    Parameters
    ----------
    image : (X', Y', Z')
    coordinates, grid
        As in `resample_labels`; outside of the source the result is 0.

    Returns
    -------
    (X, Y, Z) float32

    Examples
    --------
    >>> image = np.array([10.0, 20.0]).reshape(2, 1, 1)
    >>> coordinates = np.zeros((3, 3, 1, 1)); coordinates[0, :, 0, 0] = [0.25, 1.4, 3]
    >>> resample_image(image, coordinates, Grid((3, 1, 1), np.eye(4))).ravel().tolist()
    [12.5, 20.0, 0.0]
    """
    _check(coordinates, grid)
    resampled = np.zeros(grid.shape, np.float32)
    for planes in _slabs(grid.shape):
        inside, low, frac = _locate(coordinates[:, planes], image.shape)
        found = np.zeros(inside.shape, np.float32)
        for at, weight in _corners(low, frac, image.shape):
            found += weight * image[at]
        resampled[planes] = np.where(inside, found, 0).reshape(resampled[planes].shape)
    return resampled


def _check(coordinates: np.ndarray, grid: Grid) -> None:
    if coordinates.shape != (3, *grid.shape):
        raise ValueError(f"coordinates {coordinates.shape} do not fit the grid {grid.shape}")


def _slabs(shape: tuple[int, int, int]) -> Iterator[slice]:
    """Ranges of the first axis with about `SLAB_VOXELS` voxels each."""
    thick = max(1, SLAB_VOXELS // (shape[1] * shape[2]))
    return (slice(start, start + thick) for start in range(0, shape[0], thick))


def _locate(
    coordinates: np.ndarray, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whether coordinates are in the box, (n,), voxels below and fractions, (3, n) each."""
    flat = np.asarray(coordinates, np.float32).reshape(3, -1)
    sizes = np.array(shape, np.float32)[:, None]
    with np.errstate(invalid="ignore"):
        inside = ((flat >= -0.5) & (flat <= sizes - 0.5)).all(0)
    flat = np.where(inside, flat, 0)
    low = np.floor(flat)
    return np.asarray(inside), low.astype(np.int32), flat - low


def _corners(
    low: np.ndarray, frac: np.ndarray, shape: tuple[int, ...] | None
) -> Iterator[tuple[tuple[np.ndarray, ...], np.ndarray]]:
    """The eight voxels around each position (clamped to ``shape``, if given) and their weights."""
    for step in np.ndindex(2, 2, 2):
        weight = np.ones(low.shape[1], np.float32)
        at = []
        for axis, up in enumerate(step):
            weight *= frac[axis] if up else 1 - frac[axis]
            if shape is not None:
                at.append(np.clip(low[axis] + up, 0, shape[axis] - 1))
        yield tuple(at), weight


def _largest_share(seen: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Code with the largest sum of weights at each position; both (8, n), result (n,) int16."""
    best = np.zeros((3, seen.shape[1]), np.float32)  # share, nearest voxel's weight, -code
    best[:2] = -1
    for code in seen:
        same = seen == code
        # Sums of the same weights in the same order, so equal shares are equal.
        share = np.where(same, weights, 0).sum(0)
        nearest = np.where(same, weights, 0).max(0)
        ahead = (share > best[0]) | (
            (share == best[0]) & ((nearest > best[1]) | ((nearest == best[1]) & (-code > best[2])))
        )
        best = np.where(ahead, np.stack([share, nearest, -code.astype(np.float32)]), best)
    return (-best[2]).astype(np.int16)
