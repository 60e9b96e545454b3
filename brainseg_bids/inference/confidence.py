# SPDX-License-Identifier: Apache-2.0
"""Sums of probabilities for the confidence, and entropy, computed plane by plane."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from brainseg_bids.evaluation.calibration import BINS
from brainseg_bids.evaluation.confidence import ProbabilitySums


class Accumulator:
    """Accumulates the `ProbabilitySums` of an image from its planes.

    Parameters
    ----------
    n_labels : int
    """

    def __init__(self, n_labels: int) -> None:
        self.n_labels = n_labels
        self.clear()

    def clear(self) -> None:
        """Remove all planes, since the segmentation starts again."""
        self.voxels = torch.zeros(self.n_labels * BINS, dtype=torch.int64)
        self.inside = torch.zeros(self.n_labels, dtype=torch.float64)
        self.total = torch.zeros(self.n_labels, dtype=torch.float64)

    def add(self, indices: Tensor, largest: Tensor, probabilities: Tensor) -> None:
        """Add a plane.

        Parameters
        ----------
        indices : (rows, columns) uint8
            Class index of the most probable label.
        largest : (rows, columns) float
            Its probability.
        probabilities : (n_labels, rows, columns) float
        """
        indices, largest = indices.cpu().flatten().int(), largest.cpu().flatten()
        # Bins hold their upper edge, as those of `evaluation.calibration`.
        bins = (largest * BINS - 1e-5).ceil_().sub_(1).clamp_(0, BINS - 1).int()
        self.voxels += torch.bincount(indices * BINS + bins, minlength=len(self.voxels))
        self.inside += torch.bincount(indices, largest.double(), minlength=self.n_labels)
        self.total += probabilities.sum((1, 2)).cpu().double()

    def sums(self) -> ProbabilitySums:
        """Sums over all planes so far."""
        voxels = self.voxels.reshape(self.n_labels, BINS)
        return ProbabilitySums(voxels.numpy(), self.inside.numpy(), self.total.numpy())


def entropy_bits(probabilities: Tensor) -> Tensor:
    """Entropy in bits of probabilities (n_labels, rows, columns), (rows, columns) float.

    >>> entropy_bits(torch.tensor([[[1.0, 0.5]], [[0.0, 0.5]]])).tolist()
    [[0.0, 1.0]]
    """
    return torch.special.entr(probabilities).sum(0) / np.log(2)
