# SPDX-License-Identifier: Apache-2.0
"""``predict_gib``: predicted memory of a training step.

The prediction runs a real step on tensors with shapes but without values. Every operation of
forward pass, loss, backward pass and optimiser is dispatched, and storages are counted when they
are allocated and freed, but nothing is computed. Memory of kernels in addition to tensors is added
from a measured table (`ALLOWANCES`).

It uses ``torch._subclasses.fake_tensor``, which is documented although its name is private.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from brainseg_bids.nets.architectures import PackedNet, build
from brainseg_bids.nets.checkpointing import checkpointed
from brainseg_bids.nets.memory_plan import ALLOWANCES, GIB, PRECISIONS
from brainseg_bids.nets.memory_tracker import MemoryTracker
from brainseg_bids.nets.spec import NetSpec

LossOf = Callable[[PackedNet, Tensor, Tensor], Tensor]
"""Function (net, features (B, F, x, y, z), labels (B, X, Y, Z) uint8) that returns a loss."""

_HERE = contextlib.nullcontext()


@dataclass(frozen=True)
class Prediction:
    """Predicted peak memory of a training step, in GiB.

    Parameters
    ----------
    weights, gradients, optimiser : float
    average : float
        Moving average of the weights.
    activations : float
        Everything else at the peak: activations for the backward pass, the pair, and temporaries.
    kernels : float
        Memory in addition to tensors, see `Allowance`.
    host : float
        Activations moved to the host's memory. They are part of ``total`` only if the device
        shares this memory.
    total : float
    """

    weights: float
    gradients: float
    optimiser: float
    average: float
    activations: float
    kernels: float
    host: float
    total: float


FLOAT32_ON_GPUS = (nn.GroupNorm, nn.LayerNorm, nn.Upsample, nn.Softmax)
"""Layers that autocast computes in float32 on GPUs but in bfloat16 on CPUs (torch.amp's
documentation, "Autocast Op Reference")."""


def _as_on_gpus(net: nn.Module) -> None:
    """Autocast of a GPU for a network whose tensors look like a CPU's."""
    for module in net.modules():
        if isinstance(module, FLOAT32_ON_GPUS):
            module.register_forward_pre_hook(
                lambda module, inputs: tuple(_float32(one) for one in inputs)
            )


def _float32(argument: Any) -> Any:
    if isinstance(argument, Tensor) and argument.dtype == torch.bfloat16:
        return argument.float()
    return argument


@dataclass(frozen=True)
class Step:
    """A training step with everything that takes memory, for tensors with or without values.

    Parameters
    ----------
    net : PackedNet
    average : list of Tensor
        Moving average of the weights.
    optimiser : torch.optim.Optimizer
    loss : callable
        See `LossOf`.
    precision : str
    """

    net: PackedNet
    average: list[Tensor]
    optimiser: torch.optim.Optimizer
    loss: LossOf
    precision: str

    @classmethod
    def of(
        cls, net: PackedNet, loss: LossOf, *, precision: str, checkpointing: bool, many: bool
    ) -> Step:
        """Step of a network as in training; ``many``: the optimiser updates tensors together."""
        if checkpointing:
            checkpointed(net.body)
        optimiser = torch.optim.AdamW(net.parameters(), lr=1e-4, foreach=many)
        average = [weight.clone() for weight in net.weights().values()]
        return cls(net, average, optimiser, loss, precision)

    def run(self, image: Tensor, labels: Tensor) -> None:
        """Run a whole step: gradients, then new weights."""
        self.learn(image, labels)
        self.update()

    def learn(
        self,
        image: Tensor,
        labels: Tensor,
        *,
        keep_gradients: bool = False,
        offloaded: contextlib.AbstractContextManager[object] = _HERE,
    ) -> None:
        """Compute gradients; as in Lightning, previous ones are freed after the forward pass.

        Parameters
        ----------
        image : (B, 1, X, Y, Z) float32
        labels : (B, X, Y, Z) uint8
        keep_gradients : bool
            Whether gradients are added to previous ones, as in gradient accumulation.
        offloaded : context manager
            Context of the body's forward pass, which may move activations to other memory.
        """
        mixed = self.precision == "bf16-mixed"
        with torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=mixed):
            with offloaded:
                features = self.net.features(image)
            loss = self.loss(self.net, features, labels)
            del features
        if not keep_gradients:
            self.optimiser.zero_grad()
        loss.backward()

    def update(self) -> None:
        """Update weights and their moving average."""
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimiser.step()
        with torch.no_grad():
            for mean, now in zip(self.average, self.net.weights().values(), strict=True):
                if mean.is_floating_point():
                    mean.lerp_(now, 0.002)


def predict_gib(
    spec: NetSpec,
    patch_vox: tuple[int, int, int],
    *,
    loss: LossOf,
    batch: int = 1,
    precision: str,
    checkpointing: bool = False,
    offload: bool = False,
    accumulate: int = 1,
    device_kind: str = "cpu",
    shared: bool = False,
) -> Prediction:
    """Peak memory of a training step, without computing it.

    Parameters
    ----------
    spec : NetSpec
    patch_vox : (int, int, int)
        Multiples of `patch_multiple`.
    loss : callable
        `training.losses.loss_of(plan).symbolic`, or any `LossOf` that does not depend on values.
    batch, accumulate : int
    precision : {"bf16-mixed", "32-true"}
    checkpointing, offload : bool
        As in `MemoryPlan`.
    device_kind : {"cpu", "cuda", "mps"}
    shared : bool
        Whether device and host share one memory.

    Raises
    ------
    ValueError
        If precision or device kind is unknown.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; known: {', '.join(PRECISIONS)}")
    if device_kind not in ALLOWANCES:
        raise ValueError(f"unknown device {device_kind!r}; known: {', '.join(ALLOWANCES)}")
    return _predict(
        spec.to_json(),
        tuple(patch_vox),
        loss,
        batch,
        precision,
        checkpointing,
        offload,
        accumulate > 1,
        device_kind,
        shared or device_kind == "cpu",
    )


@lru_cache(maxsize=1024)
def _predict(
    spec_json: str,
    patch_vox: tuple[int, int, int],
    loss: LossOf,
    batch: int,
    precision: str,
    checkpointing: bool,
    offload: bool,
    keep_gradients: bool,
    kind: str,
    shared: bool,
) -> Prediction:
    allowance = ALLOWANCES[kind]
    with torch.device("meta"):
        net = build(NetSpec.from_json(spec_json))
    tracker = MemoryTracker(allowance.kernel)
    offloaded = _offloaded(tracker) if offload else _HERE
    with FakeTensorMode(allow_non_fake_inputs=True), tracker:
        _without_values(net)
        if kind != "cpu":
            _as_on_gpus(net)
        weights = sum(t.untyped_storage().nbytes() for t in net.weights().values())
        parameters = sum(t.untyped_storage().nbytes() for t in net.parameters())
        step = Step.of(
            net, loss, precision=precision, checkpointing=checkpointing, many=kind != "cpu"
        )
        for weight in net.parameters():
            weight.grad = torch.empty_like(weight)
            step.optimiser.state[weight] = _adam_state(weight)
        image = torch.empty(batch, 1, *patch_vox)
        labels = torch.empty(batch, *patch_vox, dtype=torch.uint8)
        step.learn(image, labels, keep_gradients=keep_gradients, offloaded=offloaded)
        # AdamW looks at a value, so its update is acted: many weights at once need a copy of all.
        _ = [torch.empty_like(weight) for weight in net.parameters() if kind != "cpu"]
    bytes_total = tracker.peak_both if shared else tracker.peak
    heap = allowance.heap * tracker.largest_in_heap / GIB
    total = bytes_total / GIB * (1 + allowance.rounding) + heap + allowance.fixed_gib
    kernels = tracker.peak_kernel / GIB + total - bytes_total / GIB
    fixed = 2 * weights + 3 * parameters
    return Prediction(
        weights=weights / GIB,
        gradients=parameters / GIB,
        optimiser=2 * parameters / GIB,
        average=weights / GIB,
        activations=total - kernels - fixed / GIB,
        kernels=kernels,
        host=tracker.peak_host / GIB,
        total=total,
    )


def _adam_state(weight: Tensor) -> dict[str, Tensor]:
    """What AdamW keeps of a weight from its first step on."""
    return {
        "step": torch.zeros(()),
        "exp_avg": torch.empty_like(weight),
        "exp_avg_sq": torch.empty_like(weight),
    }


def _without_values(net: nn.Module) -> None:
    """Weights from the meta device, which autocast does not know, to tensors like a CPU's."""
    made: dict[int, Tensor] = {}
    for module in net.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            fresh = made.setdefault(id(weight), nn.Parameter(_empty_as(weight)))
            setattr(module, name, fresh)
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, made.setdefault(id(buffer), _empty_as(buffer)))


def _empty_as(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")


@contextlib.contextmanager
def _offloaded(tracker: MemoryTracker) -> Iterator[None]:
    """Do as ``torch.autograd.graph.save_on_cpu`` and count what it moves as the host's."""

    def space_to_depth(tensor: Tensor) -> Tensor:
        with tracker.on_host():
            return torch.empty_like(tensor)

    with torch.autograd.graph.saved_tensors_hooks(space_to_depth, torch.empty_like):
        yield
