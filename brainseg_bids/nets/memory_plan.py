# SPDX-License-Identifier: Apache-2.0
"""``Device``, ``MemoryPlan``: what there is to train on, and how a step is run so that it fits.

Nothing heavy is imported here.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

GIB = 2**30

PRECISIONS = ("bf16-mixed", "32-true")


@dataclass(frozen=True)
class Allowance:
    """What a device kind takes beyond tensors.

    Parameters
    ----------
    kernel : float
        Memory that a convolution works in, as a share of its largest tensors: libraries change
        the layout of what they are given.
    heap : float
        What a heap keeps of freed blocks for reuse, in the same measure, but of each tensor no
        more than `HEAP_BLOCK_BYTES`: larger blocks go back at once.
    rounding : float
        Share of all that allocators lose between blocks.
    fixed_gib : float
        Compiled kernels and small things, whatever the patch.
    context_gib : float
        Of a process before it has a tensor. Not part of a prediction; a plan leaves it free.
    free_share : float
        Share of the free memory that a plan takes if no budget is given.
    """

    kernel: float
    heap: float
    rounding: float
    fixed_gib: float
    context_gib: float
    free_share: float


ALLOWANCES = {
    "cpu": Allowance(1.0, heap=3.0, rounding=0.0, fixed_gib=0.02, context_gib=1.0, free_share=0.7),
    "cuda": Allowance(
        1.0, heap=0.0, rounding=0.05, fixed_gib=0.1, context_gib=0.6, free_share=0.9
    ),
    "mps": Allowance(1.0, heap=0.0, rounding=0.05, fixed_gib=0.1, context_gib=0.3, free_share=0.7),
}
"""Those of the CPU are measured (docs/decisions/0013); those of GPUs are careful guesses, which
the probe before training corrects."""

SHARED_FREE_SHARE = 0.7
"""Of the free memory of a GPU that shares it with the CPU, which needs some, too."""


class TooLittleMemory(ValueError):
    """Nothing fits; the message says what would."""


@dataclass(frozen=True)
class Device:
    """What a network is trained on.

    Parameters
    ----------
    kind : {"cpu", "cuda", "mps"}
        AMD's GPUs are "cuda", too: PyTorch's ROCm builds call them so.
    name : str
    total_gib, free_gib : float
    shared : bool
        CPU and GPU have one memory.
    bf16 : bool
        Computes in bfloat16 at a gain.
    """

    kind: str
    name: str
    total_gib: float
    free_gib: float
    shared: bool
    bf16: bool

    def to_json(self) -> str:
        """All fields as JSON."""
        return json.dumps(asdict(self))


def budget_of(device: Device) -> float:
    """GiB that a plan takes if nobody says: a share of what is free, see `Allowance`.

    >>> round(budget_of(Device("cuda", "a card", 24.0, 20.0, shared=False, bf16=True)), 3)
    18.0
    """
    share = ALLOWANCES[device.kind].free_share
    if device.shared:
        share = min(share, SHARED_FREE_SHARE)
    return share * device.free_gib


@dataclass(frozen=True)
class MemoryPlan:
    """How a step is run so that it fits.

    Parameters
    ----------
    patch_vox : (int, int, int)
    batch, accumulate : int
        Pairs at a time, and times before weights change.
    precision : {"bf16-mixed", "32-true"}
    checkpointing, offload, compile : bool
        Activations computed again, or kept in the host's memory; compiled network.
    budget_gib, predicted_gib : float
    device : {"cpu", "cuda", "mps"}
    reason : str
        Why this and nothing larger.
    probed_gib, used_gib : float, optional
        Measured on one step before training, and in training.
    shared : bool
        CPU and GPU have one memory.
    """

    patch_vox: tuple[int, int, int]
    batch: int
    accumulate: int
    precision: str
    checkpointing: bool
    offload: bool
    compile: bool
    budget_gib: float
    predicted_gib: float
    device: str
    reason: str
    probed_gib: float | None = None
    used_gib: float | None = None
    shared: bool = False

    def to_json(self) -> str:
        """All fields as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> MemoryPlan:
        """The plan that `to_json` wrote."""
        raw = json.loads(text)
        return cls(**raw | {"patch_vox": tuple(raw["patch_vox"])})

    def describe(self) -> str:
        """The plan in one line."""
        settings = [
            by_edges(self.patch_vox),
            f"batch {self.batch} x {self.accumulate}",
            self.precision,
        ]
        for name in ("checkpointing", "offload", "compile"):
            settings += [name] * getattr(self, name)
        memory = f"{self.predicted_gib:.1f} GiB predicted"
        if self.probed_gib is not None:
            memory += f", {self.probed_gib:.1f} probed"
        if self.used_gib is not None:
            memory += f", {self.used_gib:.1f} used"
        return f"{', '.join(settings)}: {memory} of {self.budget_gib:.1f} on {self.device}"


def by_edges(patch_vox: tuple[int, ...]) -> str:
    """
    >>> by_edges((96, 128, 96))
    '96 x 128 x 96'
    """
    return " x ".join(map(str, patch_vox))
