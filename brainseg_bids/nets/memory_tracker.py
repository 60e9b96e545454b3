# SPDX-License-Identifier: Apache-2.0
"""``MemoryTracker``: peak memory of all tensors that are allocated while code runs.

It uses ``torch.utils._python_dispatch``, which is documented although its name is private.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

HEAP_BLOCK_BYTES = 32 * 2**20
"""glibc returns larger blocks to the system when they are freed (mallopt(3), M_MMAP_THRESHOLD)."""


class MemoryTracker(TorchDispatchMode):
    """Context in which the bytes of all new storages, and their highest sum, are counted.

    It works with tensors with and without values. Storages that existed before are counted only if
    they are given to `enter`.

    Parameters
    ----------
    kernel : float
        See `Allowance`.

    Examples
    --------
    >>> import torch
    >>> with MemoryTracker() as tracker:
    ...     x = torch.ones(1000) + 1
    >>> tracker.live["device"], tracker.peak
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

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        self.enter(_tensors(out))
        self._mark(self._kernel_bytes(function, args, out))
        return out

    def enter(self, tensors: Iterable[Tensor]) -> None:
        """Count the storages of given tensors, each once, until they are freed."""
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
        """Context in which new storages count as host memory."""
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

    def _kernel_bytes(self, function: Any, args: Any, out: Any) -> int:
        """Copies in the library's own layout: input and output, or gradient and input."""
        if self.kernel == 0 or "convolution" not in function.name():
            return 0
        sizes = sorted(t.numel() * t.element_size() for t in _tensors([args, out]))[-2:]
        in_heap = sum(min(size, HEAP_BLOCK_BYTES) for size in sizes)
        self.largest_in_heap = max(self.largest_in_heap, in_heap)
        return int(self.kernel * sum(sizes))


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, list | tuple):
        for part in tree:
            yield from _tensors(part)
