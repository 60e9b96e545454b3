# SPDX-License-Identifier: Apache-2.0
"""Confidence: expected Dice of each structure of a segmentation, from its probabilities.

The **expected Dice** is twice the expected overlap of segmentation and truth, divided by the sum
of their expected sizes. Both expectations are computed from the probabilities of the network. A
`ConfidenceCalibration`, fitted on images with known truth, corrects them: it has the accuracy of
voxels by probability, and the fraction of each structure that is missed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.documents import InputError, Items, Kind, Number, Object, check, parse_json
from brainseg_bids.evaluation.calibration import BINS, calibrate

FORMAT = 1
LOW_DICE = 0.7
"""Dice above which agreement is called good (Bartko 1991; Zijdenbos et al. 1994)."""
USUAL_SPREAD = 2.0
LEAST_MARGIN = 0.05
"""Typical difference in Dice between raters of the same image."""
PRIOR_VOXELS = 200.0
"""Number of voxels of all labels together that are added to those of each label, which stabilises
labels with few voxels."""


@dataclass(frozen=True, eq=False)
class ProbabilitySums:
    """Sums of probabilities over the voxels of a segmentation, by class index.

    Parameters
    ----------
    voxels : (n_labels, BINS) int64
        Number of voxels of each label in each bin of its probability; bins as in
        `evaluation.calibration.Reliability`.
    inside : (n_labels,) float
        Sum of each label's probability over the voxels of this label.
    total : (n_labels,) float
        Sum of each label's probability over all voxels.
    """

    voxels: np.ndarray
    inside: np.ndarray
    total: np.ndarray

    @property
    def n_voxels(self) -> np.ndarray:
        """Number of voxels of each label, (n_labels,) int."""
        return self.voxels.sum(1)

    @property
    def outside(self) -> np.ndarray:
        """Sum of each label's probability over the voxels of other labels, (n_labels,) float."""
        return np.maximum(self.total - self.inside, 0)

    def expected_dice(self) -> np.ndarray:
        """Expected Dice of each label without calibration; NaN for labels without voxels.

        >>> voxels = np.eye(2, BINS, dtype=np.int64) * 10
        >>> sums = ProbabilitySums(voxels, np.array([8.0, 10.0]), np.array([10.0, 10.0]))
        >>> sums.expected_dice().tolist()
        [0.8, 1.0]
        """
        return _dice(self.n_voxels, self.inside, self.total)


def _dice(n_voxels: np.ndarray, shared: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Dice of sets of ``n_voxels`` and ``expected`` voxels; NaN where the first is empty."""
    both = n_voxels + expected
    out = np.full(len(n_voxels), np.nan)
    return np.divide(2 * shared, both, out=out, where=n_voxels > 0)


@dataclass(frozen=True, eq=False)
class KnownTruth:
    """Comparison of a segmentation with the truth, by class index.

    Parameters
    ----------
    sums : ProbabilitySums
    right : (n_labels, BINS) float
        Number of those ``sums.voxels`` that have the same label in the truth.
    truth : (n_labels,) int64
        Number of voxels of each label in the truth.
    """

    sums: ProbabilitySums
    right: np.ndarray
    truth: np.ndarray

    @classmethod
    def of(
        cls, sums: ProbabilitySums, labels: LabelMap, probability: np.ndarray, truth: LabelMap
    ) -> KnownTruth:
        """Comparison of a segmentation with the truth.

        Parameters
        ----------
        sums : ProbabilitySums
        labels, truth : LabelMap
            Segmentation and truth, on the same grid and with the same table.
        probability : (X, Y, Z) float
            Probability of each voxel's label.
        """
        n_labels = len(labels.table)
        right = np.zeros((n_labels, BINS))
        for index, label in enumerate(labels.table):
            within = labels.voxels == label.index
            if index and within.any():
                found = calibrate([(label.index, probability)], truth, within=within)
                one = found.labels[label.index]
                right[index] = np.nan_to_num(one.accuracy) * one.voxels
        indices = truth.table.positions()[truth.voxels]
        return cls(sums, right, np.bincount(indices.ravel(), minlength=n_labels))

    def dice(self) -> np.ndarray:
        """Dice of each label; NaN for labels without voxels in the segmentation."""
        return _dice(self.sums.n_voxels, self.right.sum(1), self.truth)


@dataclass(frozen=True, eq=False)
class ConfidenceCalibration:
    """Calibration of a model's probabilities, by class index.

    Parameters
    ----------
    accuracy : (n_labels, BINS) float
        Fraction of correct voxels among those of a label, by bin of probability.
    missed : (n_labels,) float
        Number of voxels of a label that the segmentation misses, divided by the sum of the label's
        probability over the voxels of other labels.
    threshold : (n_labels,) float
        Expected Dice below which a structure is flagged.
    usual_dice : (n_labels,) float
        Mean Dice over the images of the calibration; 0 for labels that none of them has.
    about : mapping
        Description of these images.
    """

    accuracy: np.ndarray
    missed: np.ndarray
    threshold: np.ndarray
    usual_dice: np.ndarray
    about: Mapping[str, Any] = field(default_factory=dict)

    def expected_dice(self, sums: ProbabilitySums) -> np.ndarray:
        """Calibrated expected Dice of each label, (n_labels,); NaN for labels without voxels."""
        shared = (sums.voxels * self.accuracy).sum(1)
        return _dice(sums.n_voxels, shared, shared + self.missed * sums.outside)

    def flagged(self, sums: ProbabilitySums) -> np.ndarray:
        """Whether the expected Dice of each label is below its threshold, (n_labels,) bool."""
        return self.expected_dice(sums) < self.threshold

    def to_json(self, table: LabelTable) -> str:
        """Calibration as JSON text for a bundle, with one line per label."""
        rows = [
            f"  {json.dumps(str(label.index))}: "
            + json.dumps(
                {
                    "accuracy": [round(float(share), 4) for share in self.accuracy[index]],
                    "missed": round(float(self.missed[index]), 4),
                    "threshold": round(float(self.threshold[index]), 4),
                    "usual_dice": round(float(self.usual_dice[index]), 4),
                }
            )
            for index, label in enumerate(table)
            if label.index
        ]
        about = json.dumps(dict(self.about))
        labels = ",\n".join(rows)
        return f'{{\n "format": {FORMAT},\n "about": {about},\n "labels": {{\n{labels}\n }}\n}}\n'

    @classmethod
    def from_json(cls, text: str, table: LabelTable, *, what: str) -> ConfidenceCalibration:
        """Calibration from the JSON text of `to_json`.

        Parameters
        ----------
        text : str
        table : LabelTable
        what : str
            Name of the file in messages.

        Raises
        ------
        InputError
            If the text has another format, lacks a label of the table, or has an invalid number.
        """
        document = parse_json(text, what)
        if document.get("format") != FORMAT:
            raise InputError(f"{what}: format {document.get('format')} is not {FORMAT}")
        check(document, {"about": Object(), "labels": Object(Object())}, what)
        labels = document.get("labels", {})
        accuracy = np.zeros((len(table), BINS))
        missed, threshold, usual_dice = np.zeros((3, len(table)))
        for index, label in enumerate(table):
            if label.index == 0:
                continue
            one = labels.get(str(label.index), {})
            if lacking := set(_KINDS) - set(one):
                raise InputError(f"{what}: {min(lacking)} of {label.name} is missing")
            check(one, _KINDS, f"{what}: {label.name}")
            accuracy[index], missed[index] = one["accuracy"], one["missed"]
            threshold[index], usual_dice[index] = one["threshold"], one["usual_dice"]
        return cls(accuracy, missed, threshold, usual_dice, document.get("about", {}))


_KINDS: dict[str, Kind] = {
    "accuracy": Items(Number(0, 1), count=BINS),
    "missed": Number(0, 1e6),
    "threshold": Number(0, 1),
    "usual_dice": Number(0, 1),
}


def fit_calibration(
    images: Sequence[KnownTruth],
    table: LabelTable,
    *,
    heads: Sequence[str] | None = None,
    about: Mapping[str, Any] | None = None,
) -> ConfidenceCalibration:
    """Calibration of probabilities, and thresholds of flags, from images with known truth.

    Left and right labels are pooled. Labels with few voxels are shrunk towards the mean over all
    labels. The threshold is `LOW_DICE` or, if that is higher, the mean expected Dice of the images
    minus the larger of `USUAL_SPREAD` standard deviations and `LEAST_MARGIN`. The expected Dice of
    each image is computed from a calibration on the other heads.

    Parameters
    ----------
    images : sequence of KnownTruth
    table : LabelTable
    heads : sequence of str, optional
        Name of the head of each image. Without it, and with a single head, each image counts as a
        head.
    about : mapping, optional
        Description of the images.

    Raises
    ------
    ValueError
        If there are fewer than two images, since the standard deviation is needed.
    """
    if len(images) < 2:
        raise ValueError(f"give two images or more, got {len(images)}")
    dice = _mean_of_sides(np.array([image.dice() for image in images]), table)
    none = np.zeros(len(table))
    calibration = ConfidenceCalibration(*_fit(images, table), none, dice, about or {})
    # Each image by what other heads say, as a new one would be.
    if heads is None or len(set(heads)) == 1:
        heads = list(map(str, range(len(images))))
    found = []
    for image, head in zip(images, heads, strict=True):
        others = [other for other, of in zip(images, heads, strict=True) if of != head]
        accuracy, missed = _fit(others, table)
        one = replace(calibration, accuracy=accuracy, missed=missed)
        found.append(one.expected_dice(image.sums))
    return replace(calibration, threshold=_thresholds(np.array(found), table))


def _mean_of_sides(values: np.ndarray, table: LabelTable) -> np.ndarray:
    """Mean over images of (n_images, n_labels) and their mirrors; 0 where all are NaN."""
    both_sides = np.concatenate([values, values[:, table.mirrors()]])
    n = np.isfinite(both_sides).sum(0)
    return np.nansum(both_sides, axis=0) / np.maximum(n, 1)


def _thresholds(found: np.ndarray, table: LabelTable) -> np.ndarray:
    """By what was expected of labels in several images, (n_images, n_labels)."""
    both_sides = np.concatenate([found, found[:, table.mirrors()]])
    n = np.isfinite(both_sides).sum(0)
    usual = _mean_of_sides(found, table)
    squares = np.nansum((both_sides - usual) ** 2, axis=0)
    # The few images of a label are mixed with as many as there are of all labels on average.
    pooled = squares[1:].sum() / max(n[1:].sum(), 1)
    spread = np.sqrt((squares + len(found) * pooled) / (n + len(found)))
    below = usual - np.maximum(USUAL_SPREAD * spread, LEAST_MARGIN)
    return np.clip(np.where(n > 0, below, 0), LOW_DICE, 1)


def _fit(images: Sequence[KnownTruth], table: LabelTable) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy by bin, and missed voxels for each unit of probability elsewhere."""
    mirrors = table.mirrors()

    def both_sides(sums: np.ndarray) -> np.ndarray:
        """Background left out; of midline structures everything counts twice, which cancels."""
        sums[0] = 0
        return sums + sums[mirrors]

    voxels = both_sides(np.sum([image.sums.voxels for image in images], axis=0).astype(float))
    right = both_sides(np.sum([image.right for image in images], axis=0))
    outside = both_sides(np.sum([image.sums.outside for image in images], axis=0))
    absent = both_sides(np.sum([image.truth - image.right.sum(1) for image in images], axis=0))
    # Bins that no voxel is in: probabilities are taken at their word.
    middle = (np.arange(BINS) + 0.5) / BINS
    usual = (right.sum(0) + middle) / (voxels.sum(0) + 1)
    # Never above 1, though a probability on the edge of two bins may be counted in either.
    accuracy = np.minimum((right + PRIOR_VOXELS * usual) / (voxels + PRIOR_VOXELS), 1)
    usual_missed = absent.sum() / max(outside.sum(), 1.0)
    missed = (absent + PRIOR_VOXELS * usual_missed) / (outside + PRIOR_VOXELS)
    return accuracy, missed
