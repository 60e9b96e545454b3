# SPDX-License-Identifier: Apache-2.0
"""Sums of probabilities that are made while planes are labelled, so that no volume is kept."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from brainseg_bids.evaluation.calibration import BINS
from brainseg_bids.evaluation.confidence import ProbabilitySums


class Accumulator:
    """`ProbabilitySums` of an image, plane by plane.

    Parameters
    ----------
    n_labels : int
    """

    def __init__(self, n_labels: int) -> None:
        self.n_labels = n_labels
        self.clear()

    def clear(self) -> None:
        """Forget all planes: the image is labelled anew."""
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
        """Of all planes so far."""
        voxels = self.voxels.reshape(self.n_labels, BINS)
        return ProbabilitySums(voxels.numpy(), self.inside.numpy(), self.total.numpy())


def entropy_bits(probabilities: Tensor) -> Tensor:
    """Entropy of (n_labels, rows, columns) probabilities at each voxel, in bits.

    >>> entropy_bits(torch.tensor([[[1.0, 0.5]], [[0.0, 0.5]]])).tolist()
    [[0.0, 1.0]]
    """
    return torch.special.entr(probabilities).sum(0) / np.log(2)
