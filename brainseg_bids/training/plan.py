# SPDX-License-Identifier: Apache-2.0
"""``TrainPlan``: everything that decides the outcome of a training run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from brainseg_bids.nets.spec import NetSpec

if TYPE_CHECKING:
    from brainseg_bids.nets.memory_plan import MemoryPlan

STRATEGIES = ("auto", "ddp", "fsdp")
OPTIMIZERS = ("adamw", "muon")
MEMORY_FIELDS = (
    "patch_vox",
    "batch",
    "accumulate",
    "precision",
    "checkpointing",
    "offload",
    "compile",
)
"""What a `MemoryPlan` decides of a `TrainPlan`."""


@dataclass(frozen=True)
class TrainPlan:
    """Everything that decides the outcome of a training run, but the label maps.

    Parameters
    ----------
    net : NetSpec
    spaces : dict of str to float
        Recipe spaces (packaged name or TOML file) to how often they are drawn.
    batch, accumulate, devices, nodes : int
        Pairs that go through a network together, how often before the weights change, and on how
        many accelerators (on CPU: processes) of how many nodes. A step learns from the product
        of the four, and which pairs these are depends on the product alone.
    checkpointing, offload, compile : bool
        Activations computed again, or kept in the host's memory; compiled network.
    loss : {"chosen", "dense"}
    optimizer : {"adamw", "muon"}
        See `training.optimisers`.
    strategy : {"auto", "ddp", "fsdp"}
        ``auto`` is ``ddp`` where there are several processes. With ``fsdp`` weights, gradients
        and optimiser are shared out among GPUs; nobody has tried that yet.
    """

    net: NetSpec
    spaces: dict[str, float]
    source_table: str = "fullhead"
    target_table: str = "brainseg"
    patch_vox: tuple[int, int, int] = (128, 144, 128)
    voxel_size_mm: float = 1.0
    optimizer: str = "adamw"
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    total_steps: int = 10_000
    decay_steps: int = 2_000
    per_label: int = 256
    anywhere: int = 16_384
    dice_weight: float = 0.0
    ema_decay: float = 0.998
    precision: str = "bf16-mixed"
    seed: int = 1
    validate_every: int = 250
    validation_pairs: int = 4
    validation_space: str = "t1w"
    batch: int = 1
    accumulate: int = 1
    checkpointing: bool = False
    offload: bool = False
    compile: bool = False
    loss: str = "chosen"
    devices: int = 1
    nodes: int = 1
    strategy: str = "auto"

    def __post_init__(self) -> None:
        for name in ("batch", "accumulate", "devices", "nodes", "total_steps", "validate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it has to be at least 1")
        if self.strategy not in STRATEGIES:
            raise ValueError(f"unknown strategy {self.strategy!r}; known: {', '.join(STRATEGIES)}")
        if self.optimizer not in OPTIMIZERS:
            known = ", ".join(OPTIMIZERS)
            raise ValueError(f"unknown optimizer {self.optimizer!r}; known: {known}")
        if self.optimizer == "muon" and self.strategy == "fsdp":
            raise ValueError(
                "optimizer muon needs whole kernels, which strategy fsdp shares out: take "
                "strategy ddp, or optimizer adamw"
            )

    @property
    def world(self) -> int:
        """Processes."""
        return self.devices * self.nodes

    @property
    def pairs_per_step(self) -> int:
        """Pairs that one change of the weights learns from."""
        return self.batch * self.accumulate * self.world

    def to_dict(self) -> dict[str, Any]:
        """As files have it."""
        return asdict(self) | {"net": self.net.to_dict()}

    def to_json(self) -> str:
        """All fields as JSON."""
        return json.dumps(self.to_dict(), indent=1)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> TrainPlan:
        """What `to_dict` gave."""
        own = {"net": NetSpec.from_dict(content["net"]), "patch_vox": tuple(content["patch_vox"])}
        return cls(**{**content, **own})

    @classmethod
    def from_json(cls, text: str) -> TrainPlan:
        """The plan that `to_json` wrote."""
        return cls.from_dict(json.loads(text))


def with_memory(plan: TrainPlan, memory: MemoryPlan) -> TrainPlan:
    """The same plan, run in the memory of a `MemoryPlan`."""
    return replace(plan, **{name: getattr(memory, name) for name in MEMORY_FIELDS})
