# SPDX-License-Identifier: Apache-2.0
"""Agreement of two label maps, with one row for each label or group of labels.

>>> from brainseg_bids.anatomy.grid import Grid
>>> from brainseg_bids.anatomy.labels import Label, LabelTable
>>> table = LabelTable([Label(0, "Background"), Label(7, "Cube")])
>>> truth, guess = np.zeros((2, 6, 6, 6), int); truth[:2] = 7; guess[1:3] = 7
>>> grid = Grid((6, 6, 6), np.diag([2, 1, 1, 1]))
>>> [cube] = compare(LabelMap(guess, grid, table), LabelMap(truth, grid, table))
>>> cube.name, cube.status, cube.dice, cube.reference_mm3, cube.hd100_mm
('Cube', 'both', 0.5, 144.0, 2.0)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.evaluation.overlap import Overlap, confusion, dice_from, tally
from brainseg_bids.evaluation.structures import Pair, Structure, choose_structures
from brainseg_bids.evaluation.surface import SurfaceDistances, surface_distances
from brainseg_bids.evaluation.topology import Topology, topology

__all__ = ["Agreement", "compare", "confusion", "dice_from", "mean_dice"]

TOLERANCES_MM = (0.6, 1.0)
"""Voxel size of ultra-high-field images, and typical difference between raters."""
NAN = float("nan")


@dataclass(frozen=True)
class Agreement:
    """Agreement of two label maps on one structure.

    No value is infinite. Values if a map does not have the structure:

    ================  ==================  ===================  =========
    status            dice, iou, nsd      volumes              distances
    ================  ==================  ===================  =========
    both              0..1                both above 0         numbers
    reference only    0                   predicted is 0       NaN
    prediction only   0                   reference is 0       NaN
    neither           NaN                 0                    NaN
    ================  ==================  ===================  =========

    Parameters
    ----------
    index : int or None
        Code; None for a group of labels.
    name : str
    status : {"both", "reference only", "prediction only", "neither"}
        Maps that have the structure.
    definition : {"surface", "voxel"}
        Definition of surfaces for distances and NSD, see `evaluation.surface`.
    dice, iou : float
        Dice and intersection over union.
    reference_mm3, predicted_mm3 : float
        Volume in each map.
    assd_mm : float
        Average symmetric surface distance: mean distance over both surfaces.
    reference_to_prediction_mm, prediction_to_reference_mm : float
        Mean distance from one surface to the other.
    hd95_mm, hd100_mm : float
        Hausdorff distance: the larger of the two directed percentiles.
    nsd : tuple of (float, float)
        Normalised surface Dice: tolerance in mm, and fraction of both surfaces within it.
    reference_topology, predicted_topology : Topology or None
        None unless `compare` is called with ``with_topology``.
    """

    index: int | None
    name: str
    status: str
    definition: str
    dice: float
    iou: float
    reference_mm3: float
    predicted_mm3: float
    assd_mm: float
    reference_to_prediction_mm: float
    prediction_to_reference_mm: float
    hd95_mm: float
    hd100_mm: float
    nsd: tuple[tuple[float, float], ...]
    reference_topology: Topology | None = None
    predicted_topology: Topology | None = None

    @property
    def volume_error_mm3(self) -> float:
        """Predicted minus reference volume in mm³."""
        return self.predicted_mm3 - self.reference_mm3

    @property
    def volume_error(self) -> float:
        """Relative volume error, (predicted - reference) / reference; NaN for reference 0."""
        return self.volume_error_mm3 / self.reference_mm3 if self.reference_mm3 else NAN

    def nsd_at(self, tolerance_mm: float) -> float:
        """NSD at one of the tolerances given to `compare`.

        Raises
        ------
        KeyError
            If it was not computed at this tolerance.
        """
        return dict(self.nsd)[tolerance_mm]

    def row(self) -> dict[str, int | float | str | None]:
        """Row of a table: values by column, in a fixed order."""
        row = {
            "index": self.index,
            "name": self.name,
            "status": self.status,
            "definition": self.definition,
            "dice": self.dice,
            "iou": self.iou,
            "reference_mm3": self.reference_mm3,
            "predicted_mm3": self.predicted_mm3,
            "volume_error_mm3": self.volume_error_mm3,
            "volume_error_frac": self.volume_error,
            "assd_mm": self.assd_mm,
            "reference_to_prediction_mm": self.reference_to_prediction_mm,
            "prediction_to_reference_mm": self.prediction_to_reference_mm,
            "hd95_mm": self.hd95_mm,
            "hd100_mm": self.hd100_mm,
        }
        row |= {f"nsd_{tolerance:g}mm": share for tolerance, share in self.nsd}
        for when, shape in (
            ("reference", self.reference_topology),
            ("predicted", self.predicted_topology),
        ):
            if shape is not None:
                row |= {f"{when}_components": shape.components, f"{when}_euler": shape.euler}
        return row


def compare(
    prediction: LabelMap,
    reference: LabelMap,
    *,
    labels: Iterable[int | str] | None = None,
    groups: Mapping[str, Iterable[int | str]] | None = None,
    within: np.ndarray | None = None,
    tolerances_mm: Sequence[float] = TOLERANCES_MM,
    definition: str = "surface",
    with_topology: bool = False,
) -> list[Agreement]:
    """Agreement of two label maps on every structure of the reference's label table.

    Parameters
    ----------
    prediction, reference : LabelMap
        On the same grid. Labels that only the prediction's table has count as background; those
        that only the reference's table has are missed by the prediction.
    labels : iterable of int or str, optional
        Codes or names; default: every label of the reference's table except the background.
    groups : mapping of name to codes or names, optional
        Groups of labels to be compared as one structure, in addition to single labels, such as
        ``{"Cerebral-GM": ("Left-Cerebral-Cortex", "Right-Cerebral-Cortex")}``.
    within : (X, Y, Z) bool, optional
        Voxels that count; default: all. If its border cuts a structure, the cut is part of the
        surface in both maps.
    tolerances_mm : sequence of float
        Tolerances of NSD.
    definition : {"surface", "voxel"}
        Definition of surfaces, see `evaluation.surface`. Values of the two are not comparable.
    with_topology : bool
        Whether components and Euler numbers are computed.

    Returns
    -------
    list of Agreement
        Labels in order of code (or as given), then groups as given.

    Raises
    ------
    ValueError
        If the grids differ by more than 0.001 mm, the tables contradict each other, a tolerance is
        not positive, or the definition does not exist.
    UnknownLabelError
        If a requested label is not in the reference's table.
    """
    if invalid := [tolerance for tolerance in tolerances_mm if not 0 < tolerance < np.inf]:
        raise ValueError(f"a tolerance for NSD is a positive number of mm, got {invalid[0]}")
    pair = Pair.of(reference, prediction, within)
    structures = choose_structures(reference.table, prediction.table, labels, groups)
    counts = tally(pair)
    surfaces = surface_distances(pair, counts, structures, definition)
    shapes: list[tuple[Topology | None, Topology | None]] = [(None, None)] * len(structures)
    if with_topology:
        both = [topology(pair, counts, structures, which) for which in ("reference", "prediction")]
        shapes = list(zip(*both, strict=True))
    return [
        _agreement(one, counts.overlap(one), distances, tolerances_mm, definition, shape)
        for one, distances, shape in zip(structures, surfaces, shapes, strict=True)
    ]


def _agreement(
    structure: Structure,
    overlap: Overlap,
    surfaces: SurfaceDistances | None,
    tolerances_mm: Sequence[float],
    definition: str,
    shapes: tuple[Topology | None, Topology | None],
) -> Agreement:
    """Row of one structure."""
    if surfaces is None:
        distances = (NAN, NAN, NAN, NAN, NAN)
        share = NAN if overlap.status == "neither" else 0.0
        nsd = tuple((float(tolerance), share) for tolerance in tolerances_mm)
    else:
        distances = (
            surfaces.assd_mm,
            surfaces.from_reference.mean_mm,
            surfaces.from_prediction.mean_mm,
            surfaces.hausdorff_mm(95),
            surfaces.hausdorff_mm(100),
        )
        nsd = tuple((float(t), surfaces.nsd(t)) for t in tolerances_mm)
    return Agreement(
        structure.index,
        structure.name,
        overlap.status,
        definition,
        overlap.dice,
        overlap.iou,
        overlap.reference_mm3,
        overlap.predicted_mm3,
        *distances,
        nsd,
        *shapes,
    )


def mean_dice(agreements: Iterable[Agreement], codes: Iterable[int]) -> float:
    """Mean Dice over the given codes, without labels that are in neither map.

    Raises
    ------
    ValueError
        If none of the codes is in either map.
    """
    wanted = set(codes)
    values = [a.dice for a in agreements if a.index in wanted and a.status != "neither"]
    if not values:
        raise ValueError("none of the labels is in either map, so there is no mean Dice")
    return float(np.mean(values))
