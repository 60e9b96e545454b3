# SPDX-License-Identifier: Apache-2.0
"""``Device`` and ``MemoryPlan``: the device of the training, and how a step fits its memory.

No heavy library is imported here.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

GIB = 2**30

PRECISIONS = ("bf16-mixed", "32-true")


@dataclass(frozen=True)
class Allowance:
    """Memory that a kind of device needs in addition to tensors.

    Parameters
    ----------
    kernel : float
        Workspace of a convolution, as a fraction of its largest tensors: libraries change the
        memory layout of their input.
    heap : float
        Freed memory that the heap keeps for reuse, in the same unit, but at most
        `HEAP_BLOCK_BYTES` of each tensor: larger blocks are returned at once.
    rounding : float
        Fraction of the memory that allocators lose between blocks.
    fixed_gib : float
        Compiled kernels and small objects, independent of the patch.
    context_gib : float
        Memory of a process without any tensor. It is not part of a prediction; a plan leaves it
        free.
    free_share : float
        Fraction of the free memory that a plan uses if no budget is given.
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
"""Values for CPUs are measured (docs/decisions/0013). Those for GPUs are conservative guesses,
which the probe before training corrects."""

SHARED_FREE_SHARE = 0.7
"""Fraction of the free memory that a GPU may use if it shares the memory with the CPU."""


class TooLittleMemory(ValueError):
    """No training step fits the memory; the message says what would."""


@dataclass(frozen=True)
class Device:
    """Device that a network is trained on.

    Parameters
    ----------
    kind : {"cpu", "cuda", "mps"}
        AMD's GPUs are "cuda" as well, as in ROCm builds of PyTorch.
    name : str
    total_gib, free_gib : float
    shared : bool
        Whether CPU and GPU share one memory.
    bf16 : bool
        Whether bfloat16 is faster than float32.
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
    """Default memory budget in GiB: a fraction of the free memory, see `Allowance`.

    >>> round(budget_of(Device("cuda", "a card", 24.0, 20.0, shared=False, bf16=True)), 3)
    18.0
    """
    share = ALLOWANCES[device.kind].free_share
    if device.shared:
        share = min(share, SHARED_FREE_SHARE)
    return share * device.free_gib


@dataclass(frozen=True)
class MemoryPlan:
    """Settings with which a training step fits the memory of a device.

    Parameters
    ----------
    patch_vox : (int, int, int)
    batch, accumulate : int
        Pairs at a time, and number of these before weights are updated.
    precision : {"bf16-mixed", "32-true"}
    checkpointing, offload, compile : bool
        Whether activations are recomputed, or moved to the host's memory; whether the network is
        compiled.
    budget_gib, predicted_gib : float
        Limit of memory, and predicted peak.
    device : {"cpu", "cuda", "mps"}
    reason : str
        Reason for this patch size.
    probed_gib, used_gib : float, optional
        Measured peak of one step before training, and of the training.
    shared : bool
        Whether CPU and GPU share one memory.
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
        """Memory plan from the JSON text of `to_json`."""
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
    """Edge lengths of a patch as text.

    >>> by_edges((96, 128, 96))
    '96 x 128 x 96'
    """
    return " x ".join(map(str, patch_vox))
