# SPDX-License-Identifier: Apache-2.0
"""``predict_gib``, ``plan_memory``: what a training step needs, and the best one that fits.

The prediction is a real step on tensors that have shapes and no values: every operation of
forward pass, loss, backward pass and optimiser is dispatched, storages are counted as they come
and go, and nothing is computed. What kernels take beside their tensors is added from a measured
table (`ALLOWANCES`).

Two modules of PyTorch are used that its documentation describes and its names call private:
``torch.utils._python_dispatch`` and ``torch._subclasses.fake_tensor``.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import takewhile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from brainseg_bids.nets.architectures import NetSpec, PackedNet, build
from brainseg_bids.nets.checkpointing import checkpointed
from brainseg_bids.nets.sizes import patch_multiple

GIB = 2**30

LossOf = Callable[[PackedNet, Tensor, Tensor], Tensor]
"""(net, features (B, F, x, y, z), labels (B, X, Y, Z) uint8) to a loss."""

_HERE = contextlib.nullcontext()

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

HEAP_BLOCK_BYTES = 32 * 2**20
"""glibc gives larger blocks back to the system when they are freed (mallopt(3),
M_MMAP_THRESHOLD)."""

SHARED_FREE_SHARE = 0.7
"""Of the free memory of a GPU that shares it with the CPU, which needs some, too."""

POOR_MM = 96.0
"""A patch with a shorter edge, unless it holds the whole head, knows too little of where it is."""

FIRST_VOX = 160
"""Longest edge of a patch that is looked for if nobody says what holds a head."""

CLEARLY_LESS = 0.85
"""What `smaller` takes of the memory of what was too large."""


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
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Prediction:
    """Peak of a training step, in GiB.

    ``activations`` is everything else that is alive at the peak: what the backward pass needs,
    the pair, and temporaries; ``kernels`` the allowance. ``host`` are activations moved to the
    host's memory; they are in ``total`` only where that is the same memory.
    """

    weights: float
    gradients: float
    optimiser: float
    average: float
    activations: float
    kernels: float
    host: float
    total: float


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
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> MemoryPlan:
        raw = json.loads(text)
        return cls(**raw | {"patch_vox": tuple(raw["patch_vox"])})

    def describe(self) -> str:
        """The plan in one line."""
        settings = [_by(self.patch_vox), f"batch {self.batch} x {self.accumulate}", self.precision]
        for name in ("checkpointing", "offload", "compile"):
            settings += [name] * getattr(self, name)
        memory = f"{self.predicted_gib:.1f} GiB predicted"
        if self.probed_gib is not None:
            memory += f", {self.probed_gib:.1f} probed"
        if self.used_gib is not None:
            memory += f", {self.used_gib:.1f} used"
        return f"{', '.join(settings)}: {memory} of {self.budget_gib:.1f} on {self.device}"


# What is counted ------------------------------------------------------------------------------


class Ledger(TorchDispatchMode):
    """Counts the bytes of all storages that come and go, and keeps the highest sum.

    Works on tensors with and without values. Storages that were there before are not counted
    unless handed to `enter`.

    Parameters
    ----------
    kernel : float
        See `Allowance`.

    Examples
    --------
    >>> with Ledger() as ledger:
    ...     x = torch.ones(1000) + 1
    >>> ledger.live["device"], ledger.peak
    (4000, 8000)
    """

    def __init__(self, kernel: float = 0.0) -> None:
        super().__init__()
        self.kernel = kernel
        self.live = {"device": 0, "host": 0}
        self.peak = 0  # of the device
        self.peak_kernel = 0  # part of it that kernels worked in
        self.peak_both = 0  # of device and host in one memory
        self.peak_host = 0
        self.largest_in_heap = 0  # blocks that one convolution works on
        self.pool = "device"
        self._known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.enter(_tensors(out))
        self._mark(self._kernel_bytes(function, args, out))
        return out

    def enter(self, tensors: Iterable[Tensor]) -> None:
        """Count the storages of tensors, each once, until they are freed."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self._known or storage.nbytes() == 0:
                continue
            self._known.add(key)
            self.live[self.pool] += storage.nbytes()
            weakref.finalize(storage, self._leave, key, self.pool, storage.nbytes())
        self._mark(0)

    @contextlib.contextmanager
    def on_host(self) -> Iterator[None]:
        """What is made meanwhile lies in the host's memory."""
        self.pool = "host"
        try:
            yield
        finally:
            self.pool = "device"

    def _leave(self, key: int, pool: str, n_bytes: int) -> None:
        self._known.discard(key)
        self.live[pool] -= n_bytes

    def _mark(self, kernel_bytes: int) -> None:
        now = self.live["device"] + kernel_bytes
        if now > self.peak:
            self.peak, self.peak_kernel = now, kernel_bytes
        self.peak_both = max(self.peak_both, now + self.live["host"])
        self.peak_host = max(self.peak_host, self.live["host"])

    def _kernel_bytes(self, function, args, out) -> int:
        """Copies in the library's own layout: input and output, or gradient and input."""
        if self.kernel == 0 or "convolution" not in function.name():
            return 0
        sizes = sorted(t.numel() * t.element_size() for t in _tensors([args, out]))[-2:]
        in_heap = sum(min(size, HEAP_BLOCK_BYTES) for size in sizes)
        self.largest_in_heap = max(self.largest_in_heap, in_heap)
        return int(self.kernel * sum(sizes))


def _tensors(tree) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, list | tuple):
        for part in tree:
            yield from _tensors(part)


FLOAT32_ON_GPUS = (nn.GroupNorm, nn.LayerNorm, nn.Upsample, nn.Softmax)
"""Layers that autocast takes back to float32 on GPUs and leaves in bfloat16 on CPUs (torch.amp's
documentation, "Autocast Op Reference")."""


def _as_on_gpus(net: nn.Module) -> None:
    """Autocast of a GPU for a network whose tensors look like a CPU's."""
    for module in net.modules():
        if isinstance(module, FLOAT32_ON_GPUS):
            module.register_forward_pre_hook(
                lambda module, inputs: tuple(_float32(one) for one in inputs)
            )


def _float32(argument):
    if isinstance(argument, Tensor) and argument.dtype == torch.bfloat16:
        return argument.float()
    return argument


# The step ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One training step in all that takes memory: run it for real, or on tensors without values.

    Parameters
    ----------
    net : PackedNet
    average : list of Tensor
        Moving average of its weights.
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
    def of(cls, net: PackedNet, loss: LossOf, *, precision: str, checkpointing: bool, many: bool):
        """Step of a network as training runs it; ``many``: weights are updated many at once."""
        if checkpointing:
            checkpointed(net.body)
        optimiser = torch.optim.AdamW(net.parameters(), lr=1e-4, foreach=many)
        average = [weight.clone() for weight in net.weights().values()]
        return cls(net, average, optimiser, loss, precision)

    def run(self, image: Tensor, labels: Tensor) -> None:
        """A whole step."""
        self.learn(image, labels)
        self.update()

    def learn(
        self,
        image: Tensor,
        labels: Tensor,
        *,
        keep_gradients: bool = False,
        offloaded: contextlib.AbstractContextManager = _HERE,
    ) -> None:
        """Gradients, in the order of Lightning's Trainer: old ones go after the forward pass.

        Parameters
        ----------
        image : (B, 1, X, Y, Z) float32
        labels : (B, X, Y, Z) uint8
        keep_gradients : bool
            As in all but the first of accumulated steps.
        offloaded : context manager
            Around the body, whose activations it may take elsewhere.
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
        """New weights and their average."""
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
        `training.losses.loss_of(plan).symbolic`, or any `LossOf` that does not look at values.
    batch, accumulate : int
    precision : {"bf16-mixed", "32-true"}
    checkpointing, offload : bool
        As in `MemoryPlan`.
    device_kind : {"cpu", "cuda", "mps"}
    shared : bool
        Device and host have one memory.

    Raises
    ------
    ValueError
        Unknown precision or device kind.
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
    ledger = Ledger(allowance.kernel)
    offloaded = _offloaded(ledger) if offload else _HERE
    with FakeTensorMode(allow_non_fake_inputs=True), ledger:
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
    bytes_total = ledger.peak_both if shared else ledger.peak
    heap = allowance.heap * ledger.largest_in_heap / GIB
    total = bytes_total / GIB * (1 + allowance.rounding) + heap + allowance.fixed_gib
    kernels = ledger.peak_kernel / GIB + total - bytes_total / GIB
    fixed = 2 * weights + 3 * parameters
    return Prediction(
        weights=weights / GIB,
        gradients=parameters / GIB,
        optimiser=2 * parameters / GIB,
        average=weights / GIB,
        activations=total - kernels - fixed / GIB,
        kernels=kernels,
        host=ledger.peak_host / GIB,
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
def _offloaded(ledger: Ledger) -> Iterator[None]:
    """Do as ``torch.autograd.graph.save_on_cpu`` and count what it moves as the host's."""

    def pack(tensor: Tensor) -> Tensor:
        with ledger.on_host():
            return torch.empty_like(tensor)

    with torch.autograd.graph.saved_tensors_hooks(pack, torch.empty_like):
        yield


# What there is ----------------------------------------------------------------------------------


def find_device(wanted: str = "auto", *, host_free_gib: float | None = None) -> Device:
    """Device to train on and its memory.

    Parameters
    ----------
    wanted : {"auto", "cpu", "cuda", "mps"}
        "auto" takes a GPU if there is one.
    host_free_gib : float, optional
        What a batch job or container allows this process; the machine may have more.

    Raises
    ------
    ValueError
        Unknown device, or one that this machine or this build of PyTorch does not have.
    """
    there = {
        "cuda": torch.cuda.is_available(),  # also for AMD's GPUs
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if wanted == "auto":
        wanted = next(kind for kind, found in there.items() if found)
    if wanted not in there:
        raise ValueError(f"unknown device {wanted!r}; known: auto, {', '.join(sorted(there))}")
    if not there[wanted]:
        raise ValueError(
            f"PyTorch {torch.__version__} finds no {wanted} device here; take another or 'auto'"
        )
    total_gib, free_gib = _host_memory_gib()
    if host_free_gib is not None:
        free_gib = min(free_gib, host_free_gib)
        total_gib = min(total_gib, max(host_free_gib, free_gib))
    if wanted == "cuda":
        return _cuda_device(free_gib)
    if wanted == "mps":
        return Device("mps", "Apple GPU", total_gib, free_gib, shared=True, bf16=True)
    return Device("cpu", "CPU", total_gib, free_gib, shared=True, bf16=_cpu_has_bf16())


def _cuda_device(host_free_gib: float) -> Device:
    """The current device of CUDA or ROCm."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    free, total = torch.cuda.mem_get_info()
    shared = bool(getattr(properties, "is_integrated", 0))
    maker = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
    free_gib = free / GIB
    if shared:  # what one side takes, the other lacks
        free_gib = min(free_gib, host_free_gib)
    return Device(
        "cuda",
        f"{properties.name} ({maker})",
        total / GIB,
        free_gib,
        shared,
        torch.cuda.is_bf16_supported(including_emulation=False),
    )


def _cpu_has_bf16() -> bool:
    capabilities = getattr(torch.cpu, "get_capabilities", dict)  # since PyTorch 2.11
    return bool(capabilities().get("avx512_bf16", False))


def _host_memory_gib(meminfo: Path = Path("/proc/meminfo")) -> tuple[float, float]:
    """Total and free memory of the machine."""
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        total, free = (int(lines[key].split()[0]) for key in ("MemTotal", "MemAvailable"))
        return total * 1024 / GIB, free * 1024 / GIB
    except (OSError, KeyError):  # not Linux: count all as free; a budget or limit says better
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
        return total, total


def budget_of(device: Device) -> float:
    """GiB that a plan takes if nobody says: a share of what is free, see `Allowance`.

    >>> round(budget_of(Device("cuda", "a card", 24.0, 20.0, shared=False, bf16=True)), 3)
    18.0
    """
    share = ALLOWANCES[device.kind].free_share
    if device.shared:
        share = min(share, SHARED_FREE_SHARE)
    return share * device.free_gib


# The plan ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Search:
    """What stays the same while settings and patches are tried."""

    spec: NetSpec
    loss: LossOf
    precision: str
    kind: str
    shared: bool
    accumulate: int

    def predict(self, patch_vox: tuple[int, int, int], batch: int, lean: Lean) -> float:
        return predict_gib(
            self.spec,
            patch_vox,
            loss=self.loss,
            batch=batch,
            precision=self.precision,
            checkpointing=lean.checkpointing,
            offload=lean.offload,
            accumulate=self.accumulate,
            device_kind=self.kind,
            shared=self.shared,
        ).total

    def most_pairs(
        self, patch_vox: tuple[int, int, int], wanted: int, lean: Lean, room_gib: float
    ) -> int:
        """The largest divisor of the wanted pairs that fits; of one pair it is known.

        Each prediction takes seconds, and more pairs never need less: the first that does not
        fit ends the search.
        """
        divisors = [n for n in range(2, wanted + 1) if wanted % n == 0]
        fitting = takewhile(lambda n: self.predict(patch_vox, n, lean) <= room_gib, divisors)
        return max(fitting, default=1)

    def largest(self, patches: list[tuple[int, int, int]], lean: Lean, room_gib: float) -> int:
        """How many of the patches, which grow, fit; by bisection."""
        low, high = 0, len(patches)
        while low < high:
            middle = (low + high + 1) // 2
            if self.predict(patches[middle - 1], 1, lean) <= room_gib:
                low = middle
            else:
                high = middle - 1
        return low


@dataclass(frozen=True)
class Lean:
    """Ways to need less memory, at the price of time."""

    checkpointing: bool = False
    offload: bool = False


LEANER = (Lean(), Lean(checkpointing=True), Lean(offload=True), Lean(True, True))
"""Ever slower: checkpointing costs about 30 % of a step, offloading waits for the bus."""


def plan_memory(
    spec: NetSpec,
    *,
    loss: LossOf,
    device: Device,
    budget_gib: float | None = None,
    precision: str = "",
    largest_vox: tuple[int, int, int] | None = None,
    multiple: int | None = None,
    batch_wanted: int = 1,
    voxel_size_mm: float = 1.0,
) -> MemoryPlan:
    """The best step that fits.

    In this order: bfloat16 where the device computes in it; the largest patch without leaner
    settings; if that patch is poor (an edge below `POOR_MM` that does not hold the whole head),
    the first of `LEANER` whose patch is not poor, or else the one whose patch is largest; then as
    many of the wanted pairs at a time as fit, and the rest accumulated.

    Parameters
    ----------
    spec : NetSpec
    loss : callable
        As in `predict_gib`.
    device : Device
    budget_gib : float, optional
        Of the device, all included; by default `budget_of`.
    precision : {"", "bf16-mixed", "32-true"}
        Empty: what suits the device.
    largest_vox : (int, int, int), optional
        What holds a whole head; larger patches would see nothing more.
    multiple : int, optional
        Edges are multiples of it; by default `patch_multiple` of the network.
    batch_wanted : int
        Pairs per change of weights.
    voxel_size_mm : float

    Raises
    ------
    TooLittleMemory
        If the smallest patch does not fit; the message says what would.
    """
    multiple = multiple or patch_multiple(spec)
    budget_gib = budget_of(device) if budget_gib is None else budget_gib
    room_gib = budget_gib - ALLOWANCES[device.kind].context_gib
    precision = precision or ("bf16-mixed" if device.bf16 else "32-true")
    patches = patches_of(multiple, largest_vox or (FIRST_VOX,) * 3)
    search = _Search(spec, loss, precision, device.kind, device.shared, batch_wanted)
    leaner = [one for one in LEANER if not (one.offload and device.shared)]
    index, lean = _best(search, patches, leaner, room_gib, voxel_size_mm)
    if index == 0:
        raise TooLittleMemory(_what_would_fit(search, patches[0], leaner, budget_gib))
    patch, whole = patches[index - 1], index == len(patches)
    batch = search.most_pairs(patch, batch_wanted, lean, room_gib)
    return MemoryPlan(
        patch_vox=patch,
        batch=batch,
        accumulate=batch_wanted // batch,
        precision=precision,
        checkpointing=lean.checkpointing,
        offload=lean.offload,
        # On CPUs it compiled for a minute and gained nothing; on GPUs it has not been measured.
        compile=False,
        budget_gib=budget_gib,
        predicted_gib=search.predict(patch, batch, lean),
        device=device.kind,
        reason=_reason(patch, whole, lean, voxel_size_mm),
        shared=device.shared,
    )


def patches_of(multiple: int, largest_vox: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """Patches to try, ever larger: cubes, cut to what holds a head.

    The smallest has two multiples along an axis, for nothing can be normalised over one cell.

    >>> patches_of(32, (96, 128, 90))
    [(64, 64, 64), (96, 96, 96), (96, 128, 96)]
    >>> patches_of(32, (30, 30, 30))
    [(32, 32, 64)]
    """
    longest = [multiple * math.ceil(edge / multiple) for edge in largest_vox]
    if max(longest) == multiple:
        longest[-1] *= 2
    edges = range(2 * multiple, max(longest) + 1, multiple)
    return [tuple(min(edge, most) for most in longest) for edge in edges]


def _best(
    search: _Search,
    patches: list[tuple[int, int, int]],
    leaner: list[Lean],
    room_gib: float,
    voxel_size_mm: float,
) -> tuple[int, Lean]:
    """How many patches fit, and with what."""
    best, with_what = 0, leaner[0]
    for lean in leaner:
        index = search.largest(patches, lean, room_gib)
        if index > best:
            best, with_what = index, lean
        if index == len(patches) or (
            index and not _poor(patches[index - 1], patches[-1], voxel_size_mm)
        ):
            break
    return best, with_what


def _poor(patch: tuple[int, ...], whole: tuple[int, ...], voxel_size_mm: float) -> bool:
    return any(
        edge < most and edge * voxel_size_mm < POOR_MM
        for edge, most in zip(patch, whole, strict=True)
    )


def _reason(patch: tuple[int, ...], whole: bool, lean: Lean, voxel_size_mm: float) -> str:
    what = "holds a whole head" if whole else "the largest patch that fits"
    how = [name for name, used in asdict(lean).items() if used]
    if not how:
        return what
    return f"{what}; {' and '.join(how)}, for without the patch would be below {POOR_MM:g} mm"


def _what_would_fit(
    search: _Search, patch: tuple[int, int, int], leaner: list[Lean], budget_gib: float
) -> str:
    need_gib = min(search.predict(patch, 1, lean) for lean in leaner)
    need_gib += ALLOWANCES[search.kind].context_gib
    return (
        f"{search.spec.architecture} with {search.spec.n_labels} labels needs "
        f"{math.ceil(need_gib * 10) / 10:g} GiB for its smallest patch, {_by(patch)}, and may "
        f"take {budget_gib:.1f}: raise --memory-budget or choose a smaller --net-size"
    )


def smaller(plan: MemoryPlan, spec: NetSpec, *, loss: LossOf) -> MemoryPlan:
    """What to try when a plan was too large: the next that needs clearly less.

    First fewer pairs at a time, more often; then leaner settings; then smaller patches.

    Raises
    ------
    TooLittleMemory
        If there is none.
    """
    search = _Search(spec, loss, plan.precision, plan.device, plan.shared, plan.accumulate)
    for change in _smaller_steps(plan, patch_multiple(spec)):
        tried = replace(plan, **change)
        lean = Lean(tried.checkpointing, tried.offload)
        predicted_gib = search.predict(tried.patch_vox, tried.batch, lean)
        if predicted_gib <= CLEARLY_LESS * plan.predicted_gib:
            reason = f"{_by(plan.patch_vox)}, batch {plan.batch}, was too large"
            return replace(
                tried, predicted_gib=predicted_gib, reason=reason, probed_gib=None, used_gib=None
            )
    raise TooLittleMemory(
        f"{spec.architecture} does not fit {plan.budget_gib:.1f} GiB even with a patch of "
        f"{_by(plan.patch_vox)}: raise --memory-budget or choose a smaller --net-size"
    )


def _smaller_steps(plan: MemoryPlan, multiple: int) -> Iterator[dict]:
    pairs = plan.batch * plan.accumulate
    for batch in range(plan.batch - 1, 0, -1):
        if pairs % batch == 0:
            yield {"batch": batch, "accumulate": pairs // batch}
    least = {"batch": 1, "accumulate": pairs}
    offers = [lean for lean in LEANER if not (lean.offload and plan.shared)]
    offers = offers[offers.index(Lean(plan.checkpointing, plan.offload)) + 1 :]
    for lean in offers:
        yield least | asdict(lean)
    if offers:
        least |= asdict(offers[-1])
    for patch in reversed(patches_of(multiple, plan.patch_vox)[:-1]):
        yield least | {"patch_vox": patch}


def _by(patch_vox: tuple[int, ...]) -> str:
    return " x ".join(map(str, patch_vox))
