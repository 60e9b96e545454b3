# SPDX-License-Identifier: Apache-2.0
"""Losses over a class-balanced sample of voxels, or over all voxels.

Neither needs memory for the scores of all labels at all voxels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from brainseg_bids.nets.architectures import PackedNet, space_to_depth

CHUNK_SCORES = 2**21
"""Scores (voxels x labels) that `dense_loss` holds at a time, 8 MiB in float32: small enough for
CPU caches, large enough for GPUs."""


def choose_voxels(
    labels: Tensor, *, n_labels: int, per_label: int, anywhere: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Random sample of voxels: ``anywhere`` of all, and up to ``per_label`` of each label.

    Parameters
    ----------
    labels : (X, Y, Z) uint8
        Class indices.
    n_labels, per_label, anywhere, seed : int

    Returns
    -------
    voxels : (n, 3) int64
    log_odds : (n_labels,) float32
        Logarithm of the frequency of each label in the sample, relative to that in the pair. It is
        added to the scores in training, so that the scores themselves are calibrated to the true
        frequencies (logit adjustment: Menon et al., ICLR 2021).
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
    """Mean cross-entropy of a sample of voxels.

    Parameters
    ----------
    scores : (n, n_labels) float
    labels : (n,) int
    log_odds : (n_labels,) float
        From `choose_voxels`.
    """
    return functional.cross_entropy(scores + log_odds, labels.long())


def chosen_dice_loss(scores: Tensor, labels: Tensor, log_odds: Tensor) -> Tensor:
    """One minus the mean soft Dice of the labels present, estimated from a sample of voxels.

    Each voxel has the weight ``exp(-log_odds)`` of its label, so that sums are estimates of those
    over the whole image. With all voxels it is the usual soft Dice.

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
    # No mask as an index: its result would have a shape that a symbolic run cannot know.
    dice = torch.where(present, 2 * both / sizes.clamp(min=1e-12), 0)
    return 1 - dice.sum() / present.sum()


def dense_loss(
    net: PackedNet,
    features: Tensor,
    labels: Tensor,
    *,
    dice_weight: float,
    chunk_blocks: int | None = None,
    most_chunks: int | None = None,
) -> Tensor:
    """Cross-entropy and soft Dice loss (Milletari et al., 3DV 2016) over all voxels.

    Scores are computed and freed in chunks, and recomputed for the gradient, so that memory does
    not grow with labels x voxels. The result is the mean over pairs. Dice is the mean over the
    labels of a pair.

    Parameters
    ----------
    net : PackedNet
        Only its head is used.
    features : (B, F, x, y, z)
        Features of blocks.
    labels : (B, X, Y, Z) uint8
        Class indices.
    dice_weight : float
        Weight of the Dice loss relative to cross-entropy.
    chunk_blocks : int, optional
        Blocks in a chunk; default: as many as have `CHUNK_SCORES` scores.
    most_chunks : int, optional
        Largest number of pairs, and of chunks of a pair. It saves time in symbolic runs, where
        all pairs and chunks need the same memory, and nothing of one is kept for the next.

    Returns
    -------
    () float32

    Raises
    ------
    ValueError
        If the shapes of labels and features do not match.
    """
    block_size, n_labels = net.spec.block_size, net.spec.n_labels
    shape = (len(features), *(edge * block_size for edge in features.shape[2:]))
    if labels.shape != shape:
        raise ValueError(f"labels are {tuple(labels.shape)}, features are of {shape}")
    if chunk_blocks is None:
        chunk_blocks = max(1, CHUNK_SCORES // (n_labels * block_size**3))
    with torch.autocast(features.device.type, enabled=False):
        return _DenseLoss.apply(
            features.flatten(2),
            net.head.weight.float().view(n_labels, block_size**3, -1),
            net.head.get_parameter("bias").float().view(n_labels, block_size**3),
            space_to_depth(labels[:, None], block_size).flatten(2),
            dice_weight,
            chunk_blocks,
            most_chunks,
        )


class LossPlan(Protocol):
    """Fields of a training plan that define the loss."""

    @property
    def loss(self) -> str:
        """``chosen`` or ``dense``."""

    @property
    def per_label(self) -> int:
        """Largest number of sampled voxels of each label."""

    @property
    def anywhere(self) -> int:
        """Number of voxels sampled from the whole pair."""

    @property
    def dice_weight(self) -> float:
        """Weight of the Dice loss relative to cross-entropy."""


@dataclass(frozen=True)
class ChosenLoss:
    """Loss over a sample of voxels, mean over pairs; fields as in `choose_voxels`."""

    per_label: int
    anywhere: int
    dice_weight: float

    def __call__(
        self, net: PackedNet, features: Tensor, labels: Tensor, seeds: Sequence[int]
    ) -> Tensor:
        """features (B, F, x, y, z), labels (B, X, Y, Z) uint8, a seed per pair."""
        losses = []
        with torch.autocast(features.device.type, enabled=False):
            for blocks, truth, seed in zip(features.split(1), labels, seeds, strict=True):
                voxels, log_odds = choose_voxels(
                    truth,
                    n_labels=net.spec.n_labels,
                    per_label=self.per_label,
                    anywhere=self.anywhere,
                    seed=int(seed),
                )
                scores = net.scores_at(blocks, voxels)
                chosen = truth[voxels[:, 0], voxels[:, 1], voxels[:, 2]]
                losses.append(self._of(scores, chosen, log_odds))
        return torch.stack(losses).mean()

    def symbolic(self, net: PackedNet, features: Tensor, labels: Tensor) -> Tensor:
        """Loss with the same memory for tensors without values.

        The sample has the largest possible number of voxels, at arbitrary positions.
        """
        losses = []
        with torch.autocast(features.device.type, enabled=False):
            for blocks, truth in zip(features.split(1), labels, strict=True):
                n = self.anywhere + self.per_label * net.spec.n_labels
                drawn, chosen, log_odds = _as_if_chosen(truth, n, net.spec.n_labels)
                picked = blocks[0].flatten(1).index_select(1, drawn).float().T
                weight = net.head.weight.view(net.spec.n_labels, net.spec.block_size**3, -1)
                losses.append(self._of(picked @ weight[:, 0].T, chosen, log_odds))
        return torch.stack(losses).mean()

    def _of(self, scores: Tensor, labels: Tensor, log_odds: Tensor) -> Tensor:
        loss = chosen_cross_entropy(scores, labels, log_odds)
        if self.dice_weight > 0:
            loss = loss + self.dice_weight * chosen_dice_loss(scores, labels, log_odds)
        return loss


def _as_if_chosen(labels: Tensor, n: int, n_labels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Allocate what `choose_voxels` allocates, for ``n`` voxels."""
    flat = labels.flatten()
    drawn = torch.zeros(max(n, flat.numel() // 3), dtype=torch.int64, device=flat.device)
    found = flat[drawn]
    order = torch.argsort(found, stable=True)
    positions = torch.arange(len(found), device=flat.device)
    rank = positions - found[order].long()
    _ = (rank, flat.int())
    log_odds = torch.zeros(n_labels, device=flat.device)
    return drawn[:n].clone(), found[:n].clone(), log_odds


@dataclass(frozen=True)
class DenseLoss:
    """Loss over all voxels, see `dense_loss`."""

    dice_weight: float

    def __call__(
        self, net: PackedNet, features: Tensor, labels: Tensor, seeds: Sequence[int]
    ) -> Tensor:
        """As `ChosenLoss`; nothing is drawn, so seeds are not used."""
        return dense_loss(net, features, labels, dice_weight=self.dice_weight)

    def symbolic(self, net: PackedNet, features: Tensor, labels: Tensor) -> Tensor:
        """Loss with the same memory for tensors without values."""
        return dense_loss(net, features, labels, dice_weight=self.dice_weight, most_chunks=3)


def loss_of(plan: LossPlan) -> ChosenLoss | DenseLoss:
    """Loss function of a plan, with arguments (net, features, labels, seeds).

    Its ``symbolic`` is the loss for `nets.memory_prediction.predict_gib`.

    Raises
    ------
    ValueError
        If the loss is unknown; the message lists the known ones.
    """
    if plan.loss == "chosen":
        return ChosenLoss(plan.per_label, plan.anywhere, plan.dice_weight)
    if plan.loss == "dense":
        return DenseLoss(plan.dice_weight)
    raise ValueError(f"unknown loss {plan.loss!r}; known: chosen, dense")


class _DenseLoss(torch.autograd.Function):
    """Cross-entropy and soft Dice over all voxels, chunk by chunk of blocks.

    Both need little of the scores: the cross-entropy a sum, the Dice two sums per label. The
    forward pass keeps these sums; the backward pass makes each chunk's scores again and turns
    them into their gradient, which at once goes into those of features, weight and bias.
    """

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor,
        labels: Tensor,
        dice_weight: float,
        chunk_blocks: int,
        most_chunks: int | None,
    ) -> Tensor:
        """features (B, F, n), weight (L, S, F), bias (L, S), labels (B, S, n); S: a block's."""
        n_pairs, n_labels = len(features), len(weight)
        overlap = weight.new_zeros(3, n_pairs, n_labels)  # of both, predicted, truth
        entropy = weight.new_zeros(n_pairs)
        for pair, blocks in _chunks(features, chunk_blocks, most_chunks):
            scores = _scores(features[pair, :, blocks], weight, bias)
            truth = labels[pair, :, blocks].long()
            highest = scores.amax(0)
            entropy[pair] += (highest - scores.gather(0, truth[None])[0]).sum()
            total = scores.sub_(highest).exp_().sum(0)
            entropy[pair] += total.log().sum()
            predicted = scores.div_(total)
            chosen = predicted.gather(0, truth[None]).flatten()
            overlap[0, pair].index_add_(0, truth.flatten(), chosen)
            overlap[1, pair] += predicted.sum((1, 2))
            overlap[2, pair].index_add_(0, truth.flatten(), torch.ones_like(chosen))
        ctx.save_for_backward(features, weight, bias, labels, overlap)
        ctx.dice_weight, ctx.chunk_blocks, ctx.most_chunks = dice_weight, chunk_blocks, most_chunks
        loss = entropy.mean() / labels[0].numel()
        if dice_weight > 0:
            both, sizes, present = overlap[0], overlap[1] + overlap[2], overlap[2] > 0
            dice = torch.where(present, 2 * both / sizes.clamp(min=1e-12), 0).sum(1)
            loss = loss + dice_weight * (1 - dice / present.sum(1)).mean()
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        features, weight, bias, labels, overlap = ctx.saved_tensors
        to_features, to_weight, to_bias = map(torch.zeros_like, (features, weight, bias))
        on_truth, on_all = _dice_slopes(overlap, ctx.dice_weight)
        share = 1 / labels[0].numel()
        for pair, blocks in _chunks(features, ctx.chunk_blocks, ctx.most_chunks):
            picked = features[pair, :, blocks].float()
            truth = labels[pair, :, blocks].long()[None]
            predicted = _scores(picked, weight, bias).softmax(0)
            if ctx.dice_weight > 0:
                # Softmax turns slopes g per label into p (g - sum of p g).
                slope = on_truth[pair][truth]
                mean = torch.tensordot(on_all[pair], predicted, 1)
                mean += predicted.gather(0, truth)[0] * slope[0]
                slopes = on_all[pair][:, None, None] + (share - mean)
                slopes.scatter_add_(0, truth, slope)
                to_scores = predicted.mul_(slopes)
            else:
                to_scores = predicted.mul_(share)
            to_scores.scatter_add_(0, truth, torch.full_like(predicted[:1], -share))
            to_scores *= upstream / len(features)
            rows = to_scores.flatten(0, 1)
            to_features[pair, :, blocks] = (weight.flatten(0, 1).T @ rows).to(features.dtype)
            to_weight += (rows @ picked.T).view_as(weight)
            to_bias += to_scores.sum(2)
        return to_features, to_weight, to_bias, None, None, None, None


def _chunks(
    features: Tensor, chunk_blocks: int, most: int | None = None
) -> Iterator[tuple[int, slice]]:
    """Pair and slice of blocks, one after the other; ``most`` of pairs, and of blocks of each."""
    for pair in range(len(features))[:most]:
        for start in range(0, features.shape[2], chunk_blocks)[:most]:
            yield pair, slice(start, start + chunk_blocks)


def _scores(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Scores (labels, voxels of a block, blocks) of a chunk."""
    scores = weight.flatten(0, 1) @ features.float()
    return scores.view(*bias.shape, -1).add_(bias[..., None])


def _dice_slopes(overlap: Tensor, dice_weight: float) -> tuple[Tensor, Tensor]:
    """Slope of the Dice loss in a label's probability: where it is the truth (added), anywhere."""
    both, predicted, truth = overlap
    present = truth > 0
    sizes = (predicted + truth).clamp(min=1e-12)
    part = dice_weight * present / present.sum(1, keepdim=True)
    return -2 * part / sizes, 2 * part * both / sizes**2
