# SPDX-License-Identifier: Apache-2.0
"""``TrainPlan``: all settings that determine the result of a training run."""

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
"""Settings of a `TrainPlan` that a `MemoryPlan` determines."""


@dataclass(frozen=True)
class TrainPlan:
    """All settings that determine the result of a training run, except the label maps.

    Parameters
    ----------
    net : NetSpec
    spaces : dict of str to float
        Recipe spaces (name in the package, or TOML file) with their weights.
    source_table, target_table : str
        Label tables of the label maps, and of the network.
    patch_vox : tuple of 3 int
    voxel_size_mm : float
        Voxel size of the pairs, isotropic.
    optimizer : {"adamw", "muon"}
        See `training.optimisers`.
    learning_rate : float
    warmup_steps, total_steps, decay_steps : int
        The learning rate rises over the first and falls over the last of these.
    per_label, anywhere : int
        Sample of voxels for the loss ``chosen``, see `losses.choose_voxels`.
    dice_weight : float
        Weight of the Dice loss relative to cross-entropy.
    ema_decay : float
        Decay of the moving average of the weights.
    precision : {"bf16-mixed", "32-true"}
    seed : int
    validate_every, validation_pairs : int
        Steps between validations, and number of their pairs.
    validation_space : str
        Recipe space of validation pairs.
    batch, accumulate, devices, nodes : int
        Pairs of a forward pass, batches per update of the weights, GPUs (on CPUs: processes) of a
        node, and nodes. The number of pairs per step is the product of the four, and the pairs
        themselves depend on this product only.
    checkpointing, offload, compile : bool
        Whether activations are recomputed, or moved to the host's memory; whether the network is
        compiled.
    loss : {"chosen", "dense"}
        Loss over a sample of voxels, or over all voxels.
    strategy : {"auto", "ddp", "fsdp"}
        ``auto`` is ``ddp`` for several processes. With ``fsdp``, weights, gradients and optimiser
        are sharded among GPUs; this is not tested.

    Raises
    ------
    ValueError
        If a setting is unknown, below its minimum, or cannot be combined with another one.
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
        """Number of processes."""
        return self.devices * self.nodes

    @property
    def pairs_per_step(self) -> int:
        """Number of pairs per update of the weights."""
        return self.batch * self.accumulate * self.world

    def to_dict(self) -> dict[str, Any]:
        """Plan as a dictionary, with the keys of files."""
        return asdict(self) | {"net": self.net.to_dict()}

    def to_json(self) -> str:
        """All fields as JSON."""
        return json.dumps(self.to_dict(), indent=1)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> TrainPlan:
        """Plan from the dictionary of `to_dict`."""
        own = {"net": NetSpec.from_dict(content["net"]), "patch_vox": tuple(content["patch_vox"])}
        return cls(**{**content, **own})

    @classmethod
    def from_json(cls, text: str) -> TrainPlan:
        """Plan from the JSON text of `to_json`."""
        return cls.from_dict(json.loads(text))


def with_memory(plan: TrainPlan, memory: MemoryPlan) -> TrainPlan:
    """Training plan with the settings of a memory plan."""
    return replace(plan, **{name: getattr(memory, name) for name in MEMORY_FIELDS})
