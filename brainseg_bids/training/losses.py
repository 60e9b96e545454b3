# SPDX-License-Identifier: Apache-2.0
"""Losses over chosen voxels: rare labels are seen as often as common ones."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def choose_voxels(
    labels: Tensor, *, n_labels: int, per_label: int, anywhere: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Voxels to learn from: some anywhere, and up to ``per_label`` of each label.

    Parameters
    ----------
    labels : (X, Y, Z) uint8

    Returns
    -------
    voxels : (n, 3) int64
    log_odds : (n_labels,) float32
        Log of how much more often a label was chosen than it occurs. Added to the scores
        while learning, it leaves the bare scores calibrated to the true frequencies (logit
        adjustment: Menon et al., ICLR 2021).
    """
    generator = torch.Generator().manual_seed(seed)
    flat = labels.flatten()
    # A third of all voxels are looked at: enough of the smallest structures is among them.
    n_drawn = max(anywhere, flat.numel() // 3)
    drawn = torch.randint(flat.numel(), (n_drawn,), generator=generator).to(flat.device)
    found = flat[drawn]
    uniform = drawn[:anywhere]
    order = torch.argsort(found, stable=True)
    counts = torch.bincount(found.int(), minlength=n_labels)
    rank = (
        torch.arange(len(found), device=flat.device)
        - (counts.cumsum(0) - counts)[found[order].long()]
    )
    balanced = drawn[order[rank < per_label]]
    chosen = torch.cat([uniform, balanced])
    frequency = torch.bincount(flat.int(), minlength=n_labels) / flat.numel()
    sampled = torch.bincount(flat[chosen].int(), minlength=n_labels) / len(chosen)
    log_odds = torch.log(sampled.clamp(min=1e-9)) - torch.log(frequency.clamp(min=1e-9))
    log_odds = torch.where(frequency > 0, log_odds, torch.zeros_like(log_odds))
    y, z = labels.shape[1:]
    voxels = torch.stack([chosen // (y * z), chosen // z % y, chosen % z], dim=1)
    return voxels, log_odds


def chosen_cross_entropy(scores: Tensor, labels: Tensor, log_odds: Tensor) -> Tensor:
    """Mean cross-entropy of chosen voxels.

    Parameters
    ----------
    scores : (n, n_labels) float
    labels : (n,) int
    log_odds : (n_labels,) float
        From `choose_voxels`.
    """
    return functional.cross_entropy(scores + log_odds, labels.long())


def chosen_dice_loss(scores: Tensor, labels: Tensor, log_odds: Tensor) -> Tensor:
    """One minus the mean soft Dice of the labels present, estimated from chosen voxels.

    Each voxel stands for ``exp(-log_odds)`` of its label's voxels, so the sums estimate those
    over the whole image; with all voxels chosen it is the usual soft Dice.

    Parameters
    ----------
    scores : (n, n_labels) float
    labels : (n,) int
    log_odds : (n_labels,) float
        From `choose_voxels`.
    """
    labels = labels.long()
    weight = torch.exp(-log_odds)[labels][:, None]
    predicted = scores.softmax(1)
    truth = functional.one_hot(labels, scores.shape[1]).to(predicted.dtype)
    both = (weight * predicted * truth).sum(0)
    sizes = (weight * (predicted + truth)).sum(0)
    present = truth.sum(0) > 0
    return 1 - (2 * both[present] / sizes[present]).mean()
