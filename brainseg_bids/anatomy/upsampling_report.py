# SPDX-License-Identifier: Apache-2.0
"""Upsampling quality report: volume, position and topology of each label before and after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import count_codes
from brainseg_bids.anatomy.topology import CONNECTIVITY, components, euler_numbers
from brainseg_bids.anatomy.upsample import regrid

PIECES = (2, 5)
"""Factor of the number of components of a label, and additional components, that are allowed."""
VOLUME_CHANGE, LARGE_MM3 = 0.2, 1000.0
"""Largest relative change of volume, and smallest volume of a label for which it is checked. In
real heads the largest change was 0.08."""


def upsampling_report(source: LabelMap, result: LabelMap) -> dict[str, Any]:
    """Compare a label map with its upsampled version, label by label.

    Parameters
    ----------
    source, result : LabelMap
        With the same label table.

    Returns
    -------
    dict
        JSON types: voxel sizes; mean Dice and fraction of equal voxels after the result was
        downsampled again with `regrid`; labels lost and labels added (never by `upsample`); and
        for each label of the source its Dice after downsampling (null if it was lost), volumes in
        mm³, relative change of volume, shift of the centroid in mm, components and Euler number
        before and after.

    Raises
    ------
    ValueError
        If the tables differ.

    Notes
    -----
    Components are 26-connected. The Euler number is that of the union of closed voxels,
    vertices - edges + faces - voxels, which corresponds to 26-connectivity (Toriwaki and
    Yonekura, Forma 17, 2002): components + cavities - tunnels.

    Examples
    --------
    >>> from brainseg_bids.anatomy.grid import Grid
    >>> from brainseg_bids.anatomy.labels import Label, LabelTable
    >>> from brainseg_bids.anatomy.upsample import upsample
    >>> table = LabelTable([Label(0, "Background"), Label(7, "Cube")])
    >>> voxels = np.zeros((6, 6, 6), np.int16); voxels[2:4, 2:4, 2:4] = 7
    >>> cube = LabelMap(voxels, Grid((6, 6, 6), np.eye(4)), table)
    >>> found = upsampling_report(cube, upsample(cube, 0.5, kernel="linear"))
    >>> found["labels"][1]["euler_after"], found["labels"][1]["volume_change"]
    (1, -0.125)
    """
    if source.table != result.table:
        raise ValueError(f"tables {source.table.name} and {result.table.name} differ")
    before, after = count_codes(source.voxels), count_codes(result.voxels)
    back = regrid(result, source.grid).voxels
    rows = _rows(source, result, back)
    dice = [row["round_trip_dice"] for row in rows if row["index"]]
    named = [source.table[code] for code in before if code not in after]
    return {
        "voxel_size_before_mm": list(source.grid.voxel_size_mm),
        "voxel_size_after_mm": list(result.grid.voxel_size_mm),
        "round_trip_mean_dice": float(np.mean(dice)) if dice else None,
        "round_trip_equal_voxels": float(np.mean(back == source.voxels)),
        "labels_lost": [
            {"index": label.index, "name": label.name, "voxels": before[label.index]}
            for label in named
        ],
        "labels_invented": [code for code in after if code not in before],
        "connectivity": CONNECTIVITY,
        "labels": rows,
    }


def upsampling_warnings(report: dict[str, Any]) -> list[str]:
    """Sentences about what a person should check in an upsampled map, from its report.

    These are labels lost, labels whose volume changed by more than `VOLUME_CHANGE`, and labels
    with more components than `PIECES` allows. A few more components are normal in thin vessels
    and nerves.

    Examples
    --------
    >>> row = {"index": 0, "name": "Unknown", "components_before": 1, "components_after": 900,
    ...     "volume_before_mm3": 1e6, "volume_change": 0.003}
    >>> upsampling_warnings({"labels": [row], "labels_lost": []})
    ['many more pieces than in the source: Unknown (1, now 900)']
    """
    rows = report["labels"]
    apart = [
        f"{row['name']} ({row['components_before']}, now {row['components_after']})"
        for row in rows
        if row["components_after"] > PIECES[0] * row["components_before"] + PIECES[1]
    ]
    changed = [
        f"{row['name']} ({row['volume_change']:+.0%})"
        for row in rows
        if row["volume_before_mm3"] >= LARGE_MM3 and abs(row["volume_change"]) > VOLUME_CHANGE
    ]
    lost = [f"{row['name']} ({row['voxels']} voxels)" for row in report["labels_lost"]]
    kinds = {
        "many more pieces than in the source": apart,
        "volume unlike the source's": changed,
        "lost at these voxels": lost,
    }
    return [f"{what}: {', '.join(names)}" for what, names in kinds.items() if names]


def _rows(source: LabelMap, result: LabelMap, back: np.ndarray) -> list[dict[str, Any]]:
    """Lines of the report; ``back`` is the result on the source's grid."""
    same, down = count_codes(source.voxels[back == source.voxels]), count_codes(back)
    before, after = _shapes(source), _shapes(result)
    rows = []
    for code, n in count_codes(source.voxels).items():
        dice = 2 * same.get(code, 0) / (n + down.get(code, 0))
        rows.append(_row(source, result, code, dice, (before.get(code), after.get(code))))
    return rows


def _row(
    source: LabelMap,
    result: LabelMap,
    code: int,
    dice: float,
    shapes: tuple[_Shape | None, _Shape | None],
) -> dict[str, Any]:
    """Line of the report for one label."""
    before, after = shapes
    volumes = [
        (shape.voxels if shape else 0) * labels.grid.voxel_volume_mm3
        for shape, labels in zip(shapes, (source, result), strict=True)
    ]
    shift = None
    if before and after:
        shift = float(np.linalg.norm(after.centroid_mm - before.centroid_mm))
    row = {
        "index": code,
        "name": source.table[code].name,
        "round_trip_dice": float(dice),
        "volume_before_mm3": float(volumes[0]),
        "volume_after_mm3": float(volumes[1]),
        "volume_change": float(volumes[1] / volumes[0] - 1),
        "centroid_shift_mm": shift,
    }
    for when, shape in zip(("before", "after"), shapes, strict=True):
        row[f"components_{when}"] = shape.components if shape else 0
        row[f"euler_{when}"] = shape.euler if shape else 0
    return row


@dataclass(frozen=True, eq=False)
class _Shape:
    voxels: int
    centroid_mm: np.ndarray
    components: int
    euler: int


def _shapes(labels: LabelMap) -> dict[int, _Shape]:
    """Shape of each label present."""
    indices = np.zeros(int(labels.table.codes[-1]) + 1, np.uint16)
    codes = sorted(count_codes(labels.voxels))
    indices[codes] = np.arange(1, len(codes) + 1)
    euler = euler_numbers(labels.voxels)
    found = {}
    boxes = ndimage.find_objects(indices[labels.voxels])
    for code, box in zip(codes, boxes, strict=True):
        mask = labels.voxels[box] == code
        n = int(np.count_nonzero(mask))
        middle = [
            float(mask.sum(axis=tuple({0, 1, 2} - {axis})) @ np.arange(mask.shape[axis])) / n
            + box[axis].start
            for axis in range(3)
        ]
        centroid_mm = labels.grid.affine[:3, :3] @ middle + labels.grid.affine[:3, 3]
        found[code] = _Shape(n, centroid_mm, components(mask), euler[code])
    return found
