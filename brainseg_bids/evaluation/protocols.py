# SPDX-License-Identifier: Apache-2.0
"""Protocols of comparison: which labels and voxels of two raters' label maps are compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.documents import InputError
from brainseg_bids.evaluation.ratings import (
    Rating,
    fullhead,
    left_of,
    merge_sides,
    merged_name,
    named_structures,
    recoded,
)

PROTOCOLS = ("label-restricted", "within-evaluable")
"""In the first, all voxels count, and labels that are not compared are background. In the second,
voxels are left out that the reference leaves at 0 and any rater labels as tissue that the
reference does not label."""

MEDIAL_TEMPORAL = ("Hippocampus", "Amygdala")
LEFT_OUT, CORTEX = HIPPOCAMPUS = ("left out", "cortex")
"""Handling of predicted hippocampus and amygdala if a reference has one label for these and the
cortex."""


@dataclass(frozen=True)
class Scope:
    """The labels for which a rater can serve as reference.

    Parameters
    ----------
    name : str
        Name of the reference.
    evaluable : tuple of str, or None
        Labels of ``fullhead`` that other raters are evaluated on; None: all labels of the
        reference.
    unlabelled : tuple of str
        Tissue with code 0 in the reference, which other raters may label correctly.
    hippocampus_amygdala : {"left out", "cortex"}
        Whether hippocampus and amygdala are excluded, or counted as cortex.
    """

    name: str
    evaluable: tuple[str, ...] | None = None
    unlabelled: tuple[str, ...] = ()
    hippocampus_amygdala: str = LEFT_OUT


@dataclass(frozen=True, eq=False)
class JudgedMaps:
    """Two label maps prepared for comparison: arguments of `agreement.compare`.

    Parameters
    ----------
    prediction, reference : LabelMap
        On the same grid and with the same table, which has the labels to be compared only.
    within : (X, Y, Z) bool or None
        Voxels that count; None: all.
    groups : mapping of str to tuple of str
        Structures of several labels, named as in ``structures.tsv``.
    protocol : {"label-restricted", "within-evaluable"}
    excluded_mm3 : float
        Volume of the voxels that do not count.
    notes : tuple of str
        Sentences about labels that are not compared, and about hippocampus and amygdala.
    """

    prediction: LabelMap
    reference: LabelMap
    within: np.ndarray | None
    groups: Mapping[str, tuple[str, ...]]
    protocol: str
    excluded_mm3: float
    notes: tuple[str, ...]


def within_evaluable(
    reference: LabelMap, predictions: Sequence[LabelMap], unlabelled: Iterable[str]
) -> np.ndarray:
    """Mask of the voxels that count under the protocol ``within-evaluable``.

    A voxel does not count if the reference has code 0 and any of the predictions has one of the
    structures that the reference does not label. For a fair comparison, give the predictions of
    all raters, so that all have the same mask.

    Parameters
    ----------
    reference : LabelMap
    predictions : sequence of LabelMap
        On the same grid, with codes of ``fullhead`` or of `merge_sides`.
    unlabelled : iterable of str
        Names of labels of ``fullhead``.

    Returns
    -------
    (X, Y, Z) bool
    """
    table = fullhead()
    codes = [table[name].index for name in unlabelled]
    called = np.zeros(reference.grid.shape, dtype=bool)
    for prediction in predictions:
        called |= np.isin(prediction.voxels, codes)
    return ~(called & (reference.voxels == 0))


def comparison(
    reference: Rating,
    rater: Rating,
    scope: Scope,
    *,
    name: str,
    protocol: str = "label-restricted",
    others: Sequence[Rating] = (),
) -> JudgedMaps:
    """Label maps of two ratings, reduced to the labels and voxels that can be compared.

    Parameters
    ----------
    reference, rater : Rating
        On the same grid. Void voxels of the reference do not count; void voxels of the rater are
        wrong if the reference has a label there.
    scope : Scope
        Scope of the reference.
    name : str
        Name of the rater in notes.
    protocol : {"label-restricted", "within-evaluable"}
    others : sequence of Rating
        All raters of this image, for the mask of `within_evaluable`.

    Raises
    ------
    ValueError
        If the protocol does not exist.
    InputError
        If the two have no label in common, or the protocol is ``within-evaluable`` and the scope
        has no unlabelled tissue.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol is one of {', '.join(PROTOCOLS)}")
    notes: list[str] = []
    within = None if reference.void is None else ~reference.void
    if protocol == "within-evaluable":
        evaluable = _evaluable(reference, [rater, *others], scope)
        within = evaluable if within is None else within & evaluable
    if scope.unlabelled:
        rater = _treat_medial_temporal(rater, scope, name, notes)
    if not (reference.has_sides and rater.has_sides):
        reference, rater = merge_sides(reference), merge_sides(rater)
        notes.append(f"{name}: left and right are judged as one.")
    judged = _judged(reference, rater, scope, name, notes)
    outside = 0 if within is None else within.size - int(np.count_nonzero(within))
    return JudgedMaps(
        _restricted(rater.labels, judged),
        _restricted(reference.labels, judged),
        within,
        _groups([reference.labels.table[code].name for code in judged]),
        protocol,
        outside * reference.labels.grid.voxel_volume_mm3,
        tuple(notes),
    )


def _evaluable(reference: Rating, raters: Sequence[Rating], scope: Scope) -> np.ndarray:
    """`within_evaluable` of ratings."""
    unlabelled = _unlabelled(scope)
    if not unlabelled:
        raise InputError(
            f"{scope.name}: its adapter names no unlabelled tissue, so there is no protocol "
            "within-evaluable. Use label-restricted."
        )
    return within_evaluable(reference.labels, [one.labels for one in raters], unlabelled)


def _unlabelled(scope: Scope) -> list[str]:
    """Unlabelled tissue; what counts as cortex is none of it."""
    if scope.hippocampus_amygdala == LEFT_OUT:
        return list(scope.unlabelled)
    return [name for name in scope.unlabelled if not name.endswith(MEDIAL_TEMPORAL)]


def _treat_medial_temporal(rater: Rating, scope: Scope, name: str, notes: list[str]) -> Rating:
    """Predicted hippocampus and amygdala as the reference wants them, and a note that says how."""
    if scope.hippocampus_amygdala == LEFT_OUT:
        notes.append(f"{name}: hippocampus and amygdala are left out of the cortex.")
        return rater
    notes.append(f"{name}: hippocampus and amygdala count as cortex.")
    full, labels = fullhead(), rater.labels
    codes = {label.index: label.index for label in labels.table}
    for side in ("Left", "Right"):
        for part in MEDIAL_TEMPORAL:
            code = full[f"{side}-{part}"].index
            if code in codes:
                codes[code] = full[f"{side}-Cerebral-Cortex"].index
    return replace(rater, labels=recoded(labels, codes, labels.table))


def _judged(
    reference: Rating, rater: Rating, scope: Scope, name: str, notes: list[str]
) -> list[int]:
    """Codes that the reference labels and the rater can say."""
    full = fullhead()
    wanted = {label.index for label in reference.labels.table} - {0}
    if scope.evaluable is not None:
        names = (n if reference.has_sides else left_of(n) for n in scope.evaluable)
        wanted &= {full[n].index for n in names}
    lacking = sorted(code for code in wanted if code not in rater.labels.table)
    if lacking:
        shown = ", ".join(reference.labels.table[code].name for code in lacking)
        notes.append(f"{name}: has no label for {shown}; not judged.")
    judged = sorted(wanted - set(lacking))
    if not judged:
        raise InputError(f"{name}: has no label that {scope.name} is a reference for.")
    return judged


def _restricted(labels: LabelMap, codes: Sequence[int]) -> LabelMap:
    """Label map with everything but some labels as background."""
    return recoded(labels, {code: code for code in codes}, labels.table.subset([0, *codes]))


def _groups(judged: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Structures all of whose members are judged, and that are more than one label.

    >>> _groups(["Left-Thalamus", "Right-Thalamus"])
    {'Thalamus': ('Left-Thalamus', 'Right-Thalamus')}
    >>> _groups(["Cerebral-GM", "Cerebral-WM"])
    {'Cerebrum': ('Cerebral-GM', 'Cerebral-WM')}
    """
    there = set(judged)
    groups = {}
    for structure in named_structures().values():
        merged = tuple(dict.fromkeys(merged_name(left_of(m)) for m in structure.members))
        for members in (structure.members, merged):
            if len(members) > 1 and there.issuperset(members):
                groups[structure.name] = members
    return groups
