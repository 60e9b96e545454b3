# SPDX-License-Identifier: Apache-2.0
"""Flags of a merge: what a person should check in the two sources and in the merged map."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from brainseg_bids.anatomy.cleaning import (
    SagittalPlane,
    code_lookup,
    fit_sagittal_plane,
)
from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labels import count_codes
from brainseg_bids.anatomy.merge_report import MergeReport
from brainseg_bids.anatomy.plausibility import limits
from brainseg_bids.anatomy.rules import MergeRules

SHELL_SHARE = 0.15
"""Volume of bone and soft tissue, relative to the brain, below which an image counts as
skull-stripped. In whole heads it is above one half."""
UNSEEN_BRAIN_ML = 5.0
"""Volume of brain beyond a tool's field of view from which it is flagged; less is the end of the
brainstem."""
EDGES = (("left", "right"), ("posterior", "anterior"), ("inferior", "superior"))
"""Names of the first and last plane of an image along R, A, S."""
BRAIN_ON_EDGE_MM2, HEAD_ON_EDGE_MM2 = 25.0, 400.0
"""Areas of brain and of head on the edge of an image from which a cut is flagged (more than the
tip of a nose or an ear)."""
LEAST_BRAIN_DICE = 0.9
COUNTERPART_MM3 = 50.0


def flag_sides(
    name: str, voxels: np.ndarray, grid: Grid, rules: MergeRules, report: MergeReport
) -> None:
    """Flag a source whose left and right are swapped or rotated against the world axes."""
    plane: SagittalPlane | None = fit_sagittal_plane(voxels, rules.table, grid)
    if plane is None:
        return
    if plane.tilt_deg > 90:
        report.flags.append(
            f"LEFT AND RIGHT LOOK SWAPPED in {name}: its left labels lie on the world's right. "
            "Check the image's orientation before anything is made of this subject"
        )
    elif plane.tilt_deg > 45:
        report.flags.append(
            f"{name}: the left-right axis of its labels is {plane.tilt_deg:.0f} degrees away from "
            "that of the world; check the image's orientation"
        )


def flag_disagreement(report: MergeReport) -> None:
    """Flag two sources whose whole-brain Dice is below `LEAST_BRAIN_DICE`."""
    dice = report.conflicts[0].dice
    if dice is not None and report.conflicts[0].head_mm3 and dice < LEAST_BRAIN_DICE:
        report.flags.append(
            f"{report.head} and {report.brain} disagree about the brain: Dice {dice:.2f}"
        )


def flag_unseen(
    report: MergeReport,
    is_brain: np.ndarray,
    voxels: tuple[np.ndarray, np.ndarray],
    seen: list[np.ndarray | None],
) -> None:
    """Flag brain labels of one source outside of the field of view of the other."""
    names = (report.head, report.brain)
    for number, mask in enumerate(seen):
        if mask is None:
            continue
        beyond = np.count_nonzero(is_brain[voxels[1 - number]] & ~mask)
        beyond_ml = beyond * report.voxel_volume_mm3 / 1000
        if beyond_ml > UNSEEN_BRAIN_ML:
            report.flags.append(
                f"{names[number]}'s field of view ends inside the brain: {names[1 - number]} "
                f"labels {beyond_ml:.0f} mL of brain beyond it"
            )


def flag_result(
    voxels: np.ndarray,
    grid: Grid,
    image: np.ndarray | None,
    rules: MergeRules,
    report: MergeReport,
) -> None:
    """Flag what a person should check in the merged map: skull, air, counterparts, cut edges."""
    counts = count_codes(voxels)
    volume = {code: n * grid.voxel_volume_mm3 for code, n in counts.items()}
    brain_ml = sum(volume.get(code, 0) for code in rules.groups["brain"]) / 1000
    shell_ml = _shell_voxels(voxels, image, rules) * grid.voxel_volume_mm3 / 1000
    if brain_ml >= limits()["Brain", "ml"].low and shell_ml < SHELL_SHARE * brain_ml:
        report.flags.append(
            "nearly no bone and soft tissue around the brain: is the image skull-stripped? "
            "Label maps of whole heads need whole heads"
        )
    if not rules.groups["air"] & set(counts):
        report.flags.append("no air was found inside the head")
    for label in rules.table:
        lone = volume.get(label.index, 0) >= COUNTERPART_MM3 and label.mirror not in counts
        if lone and label.index not in rules.groups["one_sided"]:
            missing = rules.table[label.mirror].name
            report.flags.append(f"{label.name} is present, but {missing} is missing")
    report.flags += _cuts(voxels, grid, code_lookup(rules.groups["brain"], rules.table))


def _shell_voxels(voxels: np.ndarray, image: np.ndarray | None, rules: MergeRules) -> int:
    """Voxels of bone and soft tissue, but for those that the image leaves blank: a tool whose
    atlas has a skull may find one around a stripped brain."""
    shell = code_lookup(rules.groups["bone"] | rules.groups["soft"], rules.table)[voxels]
    if image is not None:
        shell &= image != 0
        shell &= np.isfinite(image)
    return int(np.count_nonzero(shell))


def _cuts(voxels: np.ndarray, grid: Grid, is_brain: np.ndarray) -> Iterator[str]:
    """Sentences about edges of the image that cut brain or head."""
    sizes = grid.voxel_size_mm
    for axis, names in enumerate(EDGES):
        area_mm2 = float(np.prod([size for a, size in enumerate(sizes) if a != axis]))
        for end, name in zip((0, -1), names, strict=True):
            edge = np.take(voxels, end, axis)
            brain = np.count_nonzero(is_brain[edge]) * area_mm2
            if brain >= BRAIN_ON_EDGE_MM2:
                yield f"the head is cut at the {name} edge of the image: brain labels touch it"
            # Every field of view ends somewhere in the neck.
            elif name != "inferior" and np.count_nonzero(edge) * area_mm2 >= HEAD_ON_EDGE_MM2:
                yield f"the head is cut at the {name} edge of the image"
