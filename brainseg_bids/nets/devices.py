# SPDX-License-Identifier: Apache-2.0
"""``find_device`` and ``MemoryMeter``: the device of the training, and memory in use."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from brainseg_bids.machine import host_memory_gib, resident_gib
from brainseg_bids.nets.memory_plan import GIB, Device


def find_device(wanted: str = "auto", *, host_free_gib: float | None = None) -> Device:
    """Device to train on and its memory.

    Parameters
    ----------
    wanted : {"auto", "cpu", "cuda", "mps"}
        "auto" takes a GPU if there is one.
    host_free_gib : float, optional
        Limit of memory of a batch job or container, if it is less than that of the machine.

    Raises
    ------
    ValueError
        If the device is unknown, or not available on this machine or in this build of PyTorch.
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
    total_gib, free_gib = host_memory_gib()
    if host_free_gib is not None:
        free_gib = min(free_gib, host_free_gib)
        total_gib = min(total_gib, max(host_free_gib, free_gib))
    if wanted == "cuda":
        return _cuda_device(free_gib)
    if wanted == "mps":
        return Device("mps", "Apple GPU", total_gib, free_gib, shared=True, bf16=True)
    return Device("cpu", "CPU", total_gib, free_gib, shared=True, bf16=has_fast_bf16("cpu"))


def has_accelerator(device: str) -> bool:
    """Whether there is a GPU that ``device`` allows; the check takes no GPU memory."""
    wanted = {"auto": ("cuda", "mps"), "cpu": ()}.get(device, (device,))
    there: dict[str, Callable[[], bool]] = {
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
    }
    return any(there[kind]() for kind in wanted)


def cuda_devices(device: str) -> int:
    """Number of CUDA or ROCm GPUs that can be used; 0 if ``device`` is another one."""
    may_be_used = device in ("auto", "cuda") and torch.cuda.is_available()
    return torch.cuda.device_count() if may_be_used else 0


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
        has_fast_bf16("cuda"),
    )


def has_fast_bf16(kind: str) -> bool:
    """Whether a kind of device has bfloat16 instructions; otherwise bfloat16 is slower."""
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = getattr(torch.cpu, "get_capabilities", None)  # since PyTorch 2.11
    if kind != "cpu" or capabilities is None:
        return False
    return bool(capabilities().get("avx512_bf16", False))


class MemoryMeter:
    """Peak memory of training: that of the GPU, or of the process on CPUs.

    Parameters
    ----------
    device : torch.device
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        with suppress(OSError):  # Linux: forget what reading label maps took
            Path("/proc/self/clear_refs").write_text("5")
        self.before_gib = resident_gib("VmRSS")

    def peak_gib(self) -> float:
        """Largest amount of memory in use since the start, in GiB."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / GIB
        return max(0.0, resident_gib("VmHWM") - self.before_gib)

    def peak_reserved_gib(self) -> float:
        """Largest amount of memory reserved by the allocator, in GiB: more than is in use."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_reserved(self.device) / GIB
        if self.device.type == "mps":
            return torch.mps.driver_allocated_memory() / GIB
        return self.peak_gib()
