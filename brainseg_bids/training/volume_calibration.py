# SPDX-License-Identifier: Apache-2.0
"""Volume calibration: offsets of scores that make the volume of each label correct on average.

Before the end of its training, a network segments rare labels too large, since they are
overrepresented in the sample of voxels of the loss. One offset per label, fitted on synthetic
pairs of the label maps of the training, corrects this; no real image is needed.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.nets.architectures import PackedNet
from brainseg_bids.training.data import PairStream, render

VOXELS_PER_PAIR = 400_000
ROUNDS = 60
STEP = 0.3
"""Fraction of the logarithm of a label's volume ratio that is subtracted from its scores in each
iteration."""
LONGEST_STEP = 0.2
"""Largest change in an iteration. Labels compete: one without any voxels must not take all of
another one."""
FEWEST = 5.0
"""Voxels added to both volumes, so that very rare labels have little effect."""


def calibrate_volumes(
    net: PackedNet,
    stream: PairStream,
    table: LabelTable,
    *,
    pairs: int,
    seed: int = 0,
    autocast: bool = False,
) -> Tensor:
    """Offsets of a network's scores, the same for a label and its counterpart.

    Parameters
    ----------
    net : PackedNet
        In evaluation mode; not changed.
    stream : PairStream
        Its pairs with sample index 0 of steps 0 to ``pairs - 1`` are used.
    table : LabelTable
        Table of the class indices.
    pairs : int
    seed : int
        Seed of the sample of voxels: `VOXELS_PER_PAIR` of each pair, with replacement.
    autocast : bool
        Whether features are computed in bfloat16.

    Returns
    -------
    (n_labels,) float32
        To be added to the scores, see `add_offsets`.

    Raises
    ------
    ValueError
        If ``pairs`` is below 1.
    """
    if pairs < 1:
        raise ValueError(f"volumes cannot be calibrated on {pairs} pairs: give 1 or more, e.g. 16")
    scores, truth = [], []
    with torch.inference_mode():
        for step in range(pairs):
            image, labels = render(stream, stream.heads, step, 0, torch.device("cpu"))
            with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
                features = net.features(image[None])
            voxels = _voxels(labels, seed + step)
            scores.append(net.scores_at(features.float(), voxels))
            truth.append(labels[voxels[:, 0], voxels[:, 1], voxels[:, 2]].int())
        return _offsets(torch.cat(scores), torch.cat(truth), torch.from_numpy(table.mirrors()))


def add_offsets(net: PackedNet, offsets: Tensor) -> None:
    """Add offsets (n_labels,) to the bias of a network's head, in place."""
    with torch.no_grad():
        bias = net.head.get_parameter("bias")
        bias.add_(offsets.repeat_interleave(net.spec.block_size**3).to(bias.device))


def _voxels(labels: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(labels.numel(), (VOXELS_PER_PAIR,), generator=generator)
    y, z = labels.shape[1:]
    return torch.stack([chosen // (y * z), chosen // z % y, chosen % z], dim=1)


def _offsets(scores: Tensor, truth: Tensor, mirrors: Tensor) -> Tensor:
    n_labels = scores.shape[1]
    wanted = _volumes(truth, n_labels, mirrors)
    # What no pair has says nothing about how it should be scored; background is what the others
    # are measured against: only differences of scores matter.
    fitted = wanted > 0
    fitted[0] = False
    offsets = torch.zeros(n_labels)
    for _ in range(ROUNDS):
        found = _volumes((scores + offsets).max(1).indices, n_labels, mirrors)
        change = STEP * torch.log((found + FEWEST) / (wanted + FEWEST))
        offsets -= torch.where(fitted, change.clamp(-LONGEST_STEP, LONGEST_STEP), 0.0)
    return offsets


def _volumes(indices: Tensor, n_labels: int, mirrors: Tensor) -> Tensor:
    counts = torch.bincount(indices, minlength=n_labels).float()
    return counts + counts[mirrors]
