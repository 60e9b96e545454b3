# SPDX-License-Identifier: Apache-2.0
"""``checkpointed``: activation checkpointing of a body (Chen et al., arXiv:1604.06174).

Each block stores its input only. The backward pass recomputes the other activations, which costs
about one more forward pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.checkpoint import checkpoint

LAYERS_PER_BLOCK = 4
"""Largest number of convolutions and linear layers of a block. A residual block has two or three,
a ConvNeXt block with its shortcut or a transformer block four. Larger blocks would save little
more, since the activations of one block are in memory while it is recomputed."""


def checkpointed(body: nn.Module) -> None:
    """Checkpoint the activations of each block of a body, in place.

    A block is the largest submodule with one to `LAYERS_PER_BLOCK` layers with weights. Names in
    ``state_dict``, values and gradients do not change. Running statistics of batch norms are
    updated once, and dropout uses the same mask again. A second call has no effect.

    Parameters
    ----------
    body : nn.Module
        Body of any architecture. Blocks must not change their input in place.

    Examples
    --------
    >>> body = nn.Sequential(nn.Conv3d(1, 2, 1), nn.Conv3d(2, 1, 1))
    >>> checkpointed(body)
    >>> list(body.state_dict())
    ['0.weight', '0.bias', '1.weight', '1.bias']
    """
    for block in blocks(body):
        if "forward" not in vars(block):
            block.forward = partial(_recomputed, block)


def blocks(body: nn.Module) -> list[nn.Module]:
    """Submodules that `checkpointed` wraps; they do not overlap, and none occurs twice.

    >>> [type(block).__name__ for block in blocks(nn.ModuleList([nn.Conv3d(1, 2, 1)] * 2))]
    ['Conv3d']
    """
    found: dict[int, nn.Module] = {}
    _collect(body, found)
    return list(found.values())


def _collect(module: nn.Module, found: dict[int, nn.Module]) -> None:
    called = not isinstance(module, nn.ModuleList | nn.ModuleDict)
    n_layers = sum(isinstance(part, _ConvNd | nn.Linear) for part in module.modules())
    if n_layers == 0:
        return
    if called and n_layers <= LAYERS_PER_BLOCK:
        found.setdefault(id(module), module)
        return
    for child in module.children():
        _collect(child, found)


def _recomputed(block: nn.Module, *inputs: Any, **options: Any) -> Any:
    """A block's own ``forward`` as a checkpoint.

    The block is an argument, so that a copy of a body calls its own blocks.
    """
    forward = partial(type(block).forward, block)
    if not torch.is_grad_enabled():
        return forward(*inputs, **options)
    return checkpoint(
        forward,
        *inputs,
        use_reentrant=False,
        # Saving the state of generators stops a GPU; only dropout needs it.
        preserve_rng_state=_draws(block),
        context_fn=lambda: (contextlib.nullcontext(), _still(block)),
        **options,
    )


def _draws(block: nn.Module) -> bool:
    """Whether a block drops anything at random."""
    return any(
        (isinstance(part, _DropoutNd) and part.p > 0)
        or getattr(part, "drop_prob", 0)  # stochastic depth, as MONAI and timm call it
        for part in block.modules()
    )


@contextlib.contextmanager
def _still(block: nn.Module) -> Iterator[None]:
    """Norms whose running statistics do not take in what they have taken in before."""
    counting = [
        (part, part.momentum, part.get_buffer("num_batches_tracked").clone())
        for part in block.modules()
        if isinstance(part, _NormBase) and part.track_running_stats
    ]
    for norm, _, _ in counting:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count in counting:
            norm.momentum = momentum
            norm.get_buffer("num_batches_tracked").copy_(count)
