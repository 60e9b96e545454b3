# SPDX-License-Identifier: Apache-2.0
"""``plan_memory``: the best training step that fits the memory of a device.

Choices are made in this order. Precision: bfloat16 if the device supports it. Patch: the largest
one without memory saving. If this patch is poor (an edge is shorter than `POOR_MM` and than the
head), the first of `SAVINGS` whose patch is not poor, or else the one with the largest patch.
Batch: as many pairs at a time as fit; gradients of the others are accumulated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from typing import Any

from brainseg_bids.anatomy.grid import triple
from brainseg_bids.nets.memory_plan import (
    ALLOWANCES,
    Device,
    MemoryPlan,
    TooLittleMemory,
    budget_of,
    by_edges,
)
from brainseg_bids.nets.memory_prediction import LossOf, predict_gib
from brainseg_bids.nets.sizes import patch_multiple
from brainseg_bids.nets.spec import NetSpec

POOR_MM = 96.0
"""A patch with a shorter edge, unless it contains the whole head, has too little context about its
position."""

FIRST_VOX = 160
"""Longest edge of a patch that is tried if ``largest_vox`` is not given."""

CLEARLY_LESS = 0.85
"""Fraction of the previous memory that a plan of `smaller` needs at most."""


Predict = Callable[..., float]
"""Function with the arguments of `predicted_total`, and its result."""


def predicted_total(spec: NetSpec, patch_vox: tuple[int, int, int], **step: Any) -> float:
    """Total of `predict_gib`, with the same arguments, in GiB."""
    return predict_gib(spec, patch_vox, **step).total


@dataclass(frozen=True)
class _Search:
    """What stays the same while settings and patches are tried."""

    spec: NetSpec
    loss: LossOf
    precision: str
    kind: str
    shared: bool
    accumulate: int
    predicted: Predict = predicted_total

    def predict(self, patch_vox: tuple[int, int, int], batch: int, saving: MemorySaving) -> float:
        return self.predicted(
            self.spec,
            patch_vox,
            loss=self.loss,
            batch=batch,
            precision=self.precision,
            checkpointing=saving.checkpointing,
            offload=saving.offload,
            accumulate=self.accumulate,
            device_kind=self.kind,
            shared=self.shared,
        )

    def most_pairs(
        self, patch_vox: tuple[int, int, int], wanted: int, saving: MemorySaving, room_gib: float
    ) -> int:
        """The largest divisor of the wanted pairs that fits; of one pair it is known.

        Each prediction takes seconds, and more pairs never need less: the first that does not
        fit ends the search.
        """
        divisors = [n for n in range(2, wanted + 1) if wanted % n == 0]
        fitting = takewhile(lambda n: self.predict(patch_vox, n, saving) <= room_gib, divisors)
        return max(fitting, default=1)

    def largest(
        self, patches: list[tuple[int, int, int]], saving: MemorySaving, room_gib: float
    ) -> int:
        """How many of the patches, which grow, fit; by bisection."""
        low, high = 0, len(patches)
        while low < high:
            middle = (low + high + 1) // 2
            if self.predict(patches[middle - 1], 1, saving) <= room_gib:
                low = middle
            else:
                high = middle - 1
        return low


@dataclass(frozen=True)
class MemorySaving:
    """Options that need less memory but more time, see `MemoryPlan`."""

    checkpointing: bool = False
    offload: bool = False


SAVINGS = (
    MemorySaving(),
    MemorySaving(checkpointing=True),
    MemorySaving(offload=True),
    MemorySaving(True, True),
)
"""In order of increasing time: checkpointing costs about 30 % of a step, offloading depends on the
bus."""


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
    predicted: Predict = predicted_total,
) -> MemoryPlan:
    """Memory plan with the best step that fits, in the order of choices given above.

    Parameters
    ----------
    spec : NetSpec
    loss : callable
        As in `predict_gib`.
    device : Device
    budget_gib : float, optional
        Limit of the device's memory, everything included; default: `budget_of`.
    precision : {"", "bf16-mixed", "32-true"}
        Empty: chosen by the device.
    largest_vox : (int, int, int), optional
        Patch that contains a whole head; larger patches are not tried.
    multiple : int, optional
        Edges are multiples of this; default: `patch_multiple` of the network.
    batch_wanted : int
        Pairs per update of the weights.
    voxel_size_mm : float
    predicted : callable
        Predicts the memory of a step.

    Raises
    ------
    TooLittleMemory
        If the smallest patch does not fit; the message says what would.
    """
    budget_gib = budget_of(device) if budget_gib is None else budget_gib
    room_gib = budget_gib - ALLOWANCES[device.kind].context_gib
    precision = precision or ("bf16-mixed" if device.bf16 else "32-true")
    patches = patches_of(multiple or patch_multiple(spec), largest_vox or (FIRST_VOX,) * 3)
    search = _Search(spec, loss, precision, device.kind, device.shared, batch_wanted, predicted)
    patch, saving = _best(search, patches, budget_gib, voxel_size_mm)
    batch = search.most_pairs(patch, batch_wanted, saving, room_gib)
    return MemoryPlan(
        patch_vox=patch,
        batch=batch,
        accumulate=batch_wanted // batch,
        precision=precision,
        **asdict(saving),
        compile=False,  # on CPUs nothing is gained; not measured on GPUs
        budget_gib=budget_gib,
        predicted_gib=search.predict(patch, batch, saving),
        device=device.kind,
        reason=_reason(patch, patch == patches[-1], saving, voxel_size_mm),
        shared=device.shared,
    )


def patches_of(multiple: int, largest_vox: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """Patch sizes to be tried in ascending order: cubes, limited to the size of a head.

    The smallest has at least two multiples along an axis, since a single block at the deepest
    level cannot be normalised.

    >>> patches_of(32, (96, 128, 90))
    [(64, 64, 64), (96, 96, 96), (96, 128, 96)]
    >>> patches_of(32, (30, 30, 30))
    [(32, 32, 64)]
    """
    longest = [multiple * math.ceil(edge / multiple) for edge in largest_vox]
    if max(longest) == multiple:
        longest[-1] *= 2
    edges = range(2 * multiple, max(longest) + 1, multiple)
    return [triple(min(edge, most) for most in longest) for edge in edges]


def _best(
    search: _Search,
    patches: list[tuple[int, int, int]],
    budget_gib: float,
    voxel_size_mm: float,
) -> tuple[tuple[int, int, int], MemorySaving]:
    """Largest patch that fits, and with what."""
    room_gib = budget_gib - ALLOWANCES[search.kind].context_gib
    savings = [one for one in SAVINGS if not (one.offload and search.shared)]
    best, with_what = 0, savings[0]
    for saving in savings:
        index = search.largest(patches, saving, room_gib)
        if index > best:
            best, with_what = index, saving
        if index == len(patches) or (
            index and not _poor(patches[index - 1], patches[-1], voxel_size_mm)
        ):
            break
    if best == 0:
        raise TooLittleMemory(_what_would_fit(search, patches[0], savings, budget_gib))
    return patches[best - 1], with_what


def _poor(patch: tuple[int, ...], whole: tuple[int, ...], voxel_size_mm: float) -> bool:
    return any(
        edge < most and edge * voxel_size_mm < POOR_MM
        for edge, most in zip(patch, whole, strict=True)
    )


def _reason(
    patch: tuple[int, ...], whole: bool, saving: MemorySaving, voxel_size_mm: float
) -> str:
    what = "holds a whole head" if whole else "the largest patch that fits"
    how = [name for name, used in asdict(saving).items() if used]
    if not how:
        return what
    return f"{what}; {' and '.join(how)}: otherwise the patch would be below {POOR_MM:g} mm"


def _what_would_fit(
    search: _Search, patch: tuple[int, int, int], savings: list[MemorySaving], budget_gib: float
) -> str:
    need_gib = min(search.predict(patch, 1, saving) for saving in savings)
    need_gib += ALLOWANCES[search.kind].context_gib
    return (
        f"{search.spec.architecture} with {search.spec.n_labels} labels needs "
        f"{math.ceil(need_gib * 10) / 10:g} GiB for its smallest patch, {by_edges(patch)}, but "
        f"may use {budget_gib:.1f} GiB: raise --memory-budget or choose a smaller --net-size"
    )


def smaller(plan: MemoryPlan, spec: NetSpec, *, loss: LossOf) -> MemoryPlan:
    """Memory plan that needs clearly less, for use when a plan did not fit.

    First the batch is reduced and more gradients are accumulated, then memory is saved at the
    price of time, then the patch is reduced.

    Raises
    ------
    TooLittleMemory
        If there is no such plan.
    """
    search = _Search(spec, loss, plan.precision, plan.device, plan.shared, plan.accumulate)
    for change in _smaller_steps(plan, patch_multiple(spec)):
        tried = replace(plan, **change)
        saving = MemorySaving(tried.checkpointing, tried.offload)
        predicted_gib = search.predict(tried.patch_vox, tried.batch, saving)
        if predicted_gib <= CLEARLY_LESS * plan.predicted_gib:
            reason = f"{by_edges(plan.patch_vox)}, batch {plan.batch}, was too large"
            return replace(
                tried, predicted_gib=predicted_gib, reason=reason, probed_gib=None, used_gib=None
            )
    raise TooLittleMemory(
        f"{spec.architecture} does not fit {plan.budget_gib:.1f} GiB even with a patch of "
        f"{by_edges(plan.patch_vox)}: raise --memory-budget or choose a smaller --net-size"
    )


def _smaller_steps(plan: MemoryPlan, multiple: int) -> Iterator[dict[str, Any]]:
    pairs = plan.batch * plan.accumulate
    for batch in range(plan.batch - 1, 0, -1):
        if pairs % batch == 0:
            yield {"batch": batch, "accumulate": pairs // batch}
    least = {"batch": 1, "accumulate": pairs}
    offers = [saving for saving in SAVINGS if not (saving.offload and plan.shared)]
    offers = offers[offers.index(MemorySaving(plan.checkpointing, plan.offload)) + 1 :]
    for saving in offers:
        yield least | asdict(saving)
    if offers:
        least |= asdict(offers[-1])
    for patch in reversed(patches_of(multiple, plan.patch_vox)[:-1]):
        yield least | {"patch_vox": patch}
