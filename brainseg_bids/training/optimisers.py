# SPDX-License-Identifier: Apache-2.0
"""``OPTIMISERS``: optimisers by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from brainseg_bids.nets.architectures import PackedNet

WEIGHT_DECAY = 1e-4
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of Muon's iteration by its author; after five iterations singular values are
between 0.7 and 1.2."""
ROUNDS = 5
MOMENTUM = 0.95
RMS_OF_ADAM = 0.2
"""Root mean square of AdamW's updates in units of the learning rate; Muon's are scaled to it."""


class Muon(torch.optim.AdamW):
    """Muon for convolution kernels and AdamW for all other weights, as one optimiser.

    Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon) replaces the averaged
    gradient of a matrix by the nearest orthogonal matrix, so that updates have the same size in
    all directions. A kernel is treated as a matrix (out, in * k * k * k). Updates are scaled to
    the size of those of AdamW (Liu et al., 2025, arXiv:2502.16982), so that both share one
    learning rate.

    ``torch.optim.Muon`` is not used because it does not accept kernels, and because Lightning
    supports one optimiser only.

    Parameters
    ----------
    kernels, others : iterable of Tensor
        Weights that are updated by Muon, and by AdamW.
    lr, weight_decay : float
    """

    def __init__(
        self,
        kernels: Iterable[Tensor],
        others: Iterable[Tensor],
        *,
        lr: float,
        weight_decay: float,
    ) -> None:
        groups = [
            {"params": list(kernels), "orthogonal": True},
            {"params": list(others), "orthogonal": False},
        ]
        super().__init__(groups, lr=lr, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the weights; returns the result of the closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["orthogonal"]:
                for kernel in group["params"]:
                    if kernel.grad is not None:
                        self._turn(kernel, kernel.grad, group["lr"], group["weight_decay"])
                        kernel.grad = None  # AdamW leaves out what has none
        super().step()
        return loss

    def _turn(self, kernel: Tensor, gradient: Tensor, lr: float, weight_decay: float) -> None:
        """One step of a kernel."""
        state = self.state[kernel]
        if not state:
            # AdamW asks every state for its step when a checkpoint is read.
            state["step"] = torch.zeros(())
            state["momentum"] = torch.zeros_like(kernel)
        state["step"] += 1
        momentum = state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        ahead = gradient.lerp(momentum, MOMENTUM)  # Nesterov's
        update = orthogonal(ahead.flatten(1)).view_as(kernel)
        rows, columns = len(kernel), kernel[0].numel()
        kernel.mul_(1 - lr * weight_decay)
        kernel.add_(update, alpha=-lr * RMS_OF_ADAM * math.sqrt(max(rows, columns)))


def orthogonal(matrix: Tensor) -> Tensor:
    """Approximately the nearest orthogonal matrix, by Newton-Schulz iteration.

    Parameters
    ----------
    matrix : (n, m) float32

    Returns
    -------
    (n, m) float32
        With singular values close to 1.

    Examples
    --------
    >>> values = torch.linalg.svdvals(orthogonal(torch.diag(torch.tensor([3.0, 0.5, 0.1]))))
    >>> bool(((values > 0.6) & (values < 1.3)).all())
    True
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrix.shape[0] > matrix.shape[1]
    wide = matrix.T if tall else matrix
    wide = wide / wide.norm().clamp(min=1e-7)
    # All factors are polynomials of the Gram matrix, which is small: only two products are large.
    one = torch.eye(len(wide), dtype=wide.dtype, device=wide.device)
    gram, turn = wide @ wide.T, one
    for _ in range(ROUNDS):
        factor = a * one + torch.addmm(gram, gram, gram, beta=b, alpha=c)
        turn = factor @ turn
        gram = factor @ gram @ factor
    wide = turn @ wide
    return wide.T if tall else wide


def kernels_of(net: PackedNet) -> list[Tensor]:
    """Convolution kernels of a network for `Muon`, without first layer, head and depthwise ones.

    The author of Muon recommends AdamW for the first and last layers. A depthwise convolution does
    not mix channels, so its kernel is not a matrix.
    """
    kinds = (nn.Conv3d, nn.ConvTranspose3d)
    convolutions = [module for module in net.body.modules() if isinstance(module, kinds)]
    return [module.weight for module in convolutions[1:] if module.groups == 1]


def adamw(net: PackedNet, learning_rate: float) -> torch.optim.Optimizer:
    """AdamW optimiser (Loshchilov and Hutter, ICLR 2019) of all weights."""
    return torch.optim.AdamW(net.parameters(), lr=learning_rate, weight_decay=WEIGHT_DECAY)


def muon(net: PackedNet, learning_rate: float) -> torch.optim.Optimizer:
    """`Muon` optimiser, with the kernels of `kernels_of`."""
    kernels = kernels_of(net)
    own = set(map(id, kernels))
    others = [weight for weight in net.parameters() if id(weight) not in own]
    return Muon(kernels, others, lr=learning_rate, weight_decay=WEIGHT_DECAY)


OPTIMISERS: dict[str, Callable[[PackedNet, float], torch.optim.Optimizer]] = {
    "adamw": adamw,
    "muon": muon,
}
