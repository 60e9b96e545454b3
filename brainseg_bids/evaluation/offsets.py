# SPDX-License-Identifier: Apache-2.0
"""Signed distance of the surface of a prediction from that of the reference, for each voxel."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from brainseg_bids.anatomy.labelmap import LabelMap


def surface_offsets_mm(
    prediction: LabelMap, reference: LabelMap, wanted: np.ndarray | None = None
) -> np.ndarray:
    """Signed distance of the prediction's surface from the reference's, for each structure.

    The surface is the voxels of which one of the six neighbours has another label. Structures
    that are in one map only have no distance.

    Parameters
    ----------
    prediction, reference : LabelMap
        On the same grid and with the same table; code 0 is not a structure.
    wanted : (X, Y, Z) bool, optional
        Voxels for which a distance is computed; default: all.

    Returns
    -------
    (X, Y, Z) float32
        Distance in mm at voxels of the prediction's surface, negative within the reference; NaN
        elsewhere.

    Examples
    --------
    >>> from brainseg_bids.anatomy.grid import Grid
    >>> from brainseg_bids.anatomy.labels import Label, LabelTable
    >>> table = LabelTable([Label(0, "Background"), Label(7, "Bar")])
    >>> truth, guess = np.zeros((2, 9, 1, 1), int); truth[1:6] = 7; guess[1:8] = 7
    >>> maps = [LabelMap(v, Grid(v.shape, np.diag([2, 1, 1, 1])), table) for v in (guess, truth)]
    >>> surface_offsets_mm(*maps)[:, 0, 0].tolist()
    [nan, 0.0, 0.0, 0.0, 0.0, 0.0, 2.0, 4.0, nan]
    """
    axes_mm = prediction.grid.affine[:3, :3]
    here, there = (edge_voxels(one.voxels) for one in (prediction, reference))
    if wanted is not None:
        here &= wanted
    offsets = np.full(prediction.voxels.shape, np.nan, np.float32)
    own, other = np.argwhere(here), np.argwhere(there)
    own_codes, other_codes = prediction.voxels[here], reference.voxels[there]
    for code in np.unique(own_codes):
        sites = own[own_codes == code]
        goals = other[other_codes == code]
        if not len(goals):
            continue
        distance_mm, _ = cKDTree(goals @ axes_mm.T).query(sites @ axes_mm.T)
        inside = reference.voxels[tuple(sites.T)] == code
        offsets[tuple(sites.T)] = np.where(inside & (distance_mm > 0), -distance_mm, distance_mm)
    return offsets


def edge_voxels(codes: np.ndarray) -> np.ndarray:
    """Mask of labelled voxels of which a face neighbour has another code, (X, Y, Z) bool."""
    edge = np.zeros(codes.shape, bool)
    for axis in range(3):
        turned, out = np.moveaxis(codes, axis, 0), np.moveaxis(edge, axis, 0)
        step = turned[1:] != turned[:-1]
        out[1:] |= step
        out[:-1] |= step
        out[0] = out[-1] = True
    return edge & (codes > 0)
