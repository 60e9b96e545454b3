# SPDX-License-Identifier: Apache-2.0
"""Dice of networks: counts over images, and accuracy on new synthetic pairs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from brainseg_bids.anatomy.labels import LabelTable

if TYPE_CHECKING:  # late: torch, which reports do without
    from brainseg_bids.nets.architectures import PackedNet
    from brainseg_bids.synth.generator import Generator, LabelVolume
    from brainseg_bids.training.data import Space


@dataclass(frozen=True)
class Score:
    """Accuracy of one run on images of one label map and recipe space.

    Parameters
    ----------
    where : {"on", "off", "real"}
    space : str
        Recipe space, or "real".
    case : str
        Label map or image.
    accuracy : float
        Mean Dice of brain structures.
    dice : dict of str to float
        Dice of each structure that the reference has.
    """

    where: str
    space: str
    case: str
    accuracy: float
    dice: dict[str, float]


class Overlap:
    """Voxel counts of each label in the prediction, in the truth and in both, over images.

    Parameters
    ----------
    table : LabelTable
        Table of the class indices.

    Examples
    --------
    >>> table = LabelTable.packaged("brainseg").subset([0, 2, 41])
    >>> overlap = Overlap(table)
    >>> overlap.add(np.array([0, 1, 1, 2]), np.array([0, 0, 1, 0]))
    >>> overlap.dice()
    {'Left-Cerebral-White-Matter': 0.6666666666666666}
    """

    def __init__(self, table: LabelTable) -> None:
        self.table = table
        self.counts = np.zeros((3, len(table)), dtype=np.int64)

    def add(self, predicted: np.ndarray, truth: np.ndarray) -> None:
        """Add the counts of one image, from class indices of the same shape."""
        predicted, truth = predicted.ravel(), truth.ravel()
        both = predicted[predicted == truth]
        for row, indices in enumerate((both, predicted, truth)):
            self.counts[row] += np.bincount(indices, minlength=len(self.table))

    def dice(self) -> dict[str, float]:
        """Dice of each label that the truth has, without background.

        Labels that are in the prediction only are left out, so that all runs are compared on the
        same structures. Their voxels reduce the Dice of other labels.
        """
        both, predicted, truth = self.counts
        return {
            label.name: float(2 * both[index] / (predicted[index] + truth[index]))
            for index, label in enumerate(self.table)
            if label.index and truth[index]
        }

    def score(self, where: str, space: str, case: str) -> Score:
        """Score from all counts; arguments as in `Score`.

        Raises
        ------
        ValueError
            If the truth has no brain structure.
        """
        dice = self.dice()
        brain = [value for name, value in dice.items() if self.table[name].is_brain]
        if not brain:
            raise ValueError(f"{case}: its reference has no structure of the brain")
        return Score(where, space, case, float(np.mean(brain)), dice)


def score_pairs(
    net: PackedNet,
    generator: Generator,
    heads: Mapping[str, LabelVolume],
    spaces: Iterable[tuple[str, str, Space]],
    *,
    pairs: int,
    seed: int,
    device: str = "cpu",
) -> list[Score]:
    """Accuracy on new synthetic pairs, which are the same for every network.

    Dice is computed over all pairs of one label map and recipe space together, because a crop
    contains a part of a structure only.

    Parameters
    ----------
    net : PackedNet
    generator : Generator
    heads : mapping of str to LabelVolume
        Held-out label volumes by name.
    spaces : iterable of (where, name, Space)
    pairs : int
        Number of pairs for each label volume and recipe space.
    seed : int
    device : str
    """
    import torch

    from brainseg_bids.training.data import PairStream

    net = net.to(device).eval()
    scores = []
    for where, name, space in spaces:
        for index, (case, head) in enumerate(heads.items()):
            overlap = Overlap(generator.target)
            for pair in PairStream(
                [head], [(space, 1.0)], generator, seed=seed, index=index, stop_step=pairs
            ):
                with torch.inference_mode():
                    predicted = net(pair["image"].to(device)).max(1).indices[0].cpu()
                overlap.add(predicted.numpy(), pair["labels"].numpy())
            scores.append(overlap.score(where, name, case))
    return scores
