# SPDX-License-Identifier: Apache-2.0
"""Interpolation of labels at arbitrary positions on a device, for rotated grids and posteriors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from brainseg_bids.anatomy import upsample_kernels as kernels
from brainseg_bids.anatomy.upsample_engine import Lookup

ENTRIES = {"cpu": 1 << 20, "cuda": 1 << 23}
"""Entries of neighbourhoods that are processed at a time, of about twenty bytes each: limited by
the cache of CPUs, and sufficient to occupy a GPU."""
NONE = 32767
"""Larger than every code."""


@dataclass(frozen=True, eq=False)
class DeviceLookup:
    """Source and positions of an interpolation on a device, see `Lookup`."""

    codes: Tensor
    weights: Tensor | None
    tables: Tensor
    lookup: Lookup

    @classmethod
    def of(cls, lookup: Lookup, device: torch.device) -> DeviceLookup:
        """Copy of a `Lookup` on a device."""
        weights = None if lookup.weights is None else torch.from_numpy(lookup.weights).to(device)
        codes, tables = (
            torch.from_numpy(array).to(device) for array in (lookup.codes, lookup.tables)
        )
        return cls(codes, weights, tables, lookup)

    def labels(self, start: int, shape: tuple[int, int, int]) -> Tensor:
        """Most probable labels of a block of target planes, flattened to (voxels,) int16.

        Parameters
        ----------
        start : int
            Target index of the first plane.
        shape : tuple of 3 int
            Shape of the block.
        """
        along = [
            torch.arange(n, device=self.codes.device).view(
                [-1 if a == axis else 1 for a in range(3)]
            )
            for axis, n in enumerate(shape)
        ]
        along[0] = along[0] + start
        index = torch.stack([part.expand(shape).flatten() for part in along])
        best, rest = self._settled(index)
        n_entries = len(self.lookup.points) * len(self.codes) * self.tables.shape[2] ** 3
        for some in rest.split(max(1, ENTRIES[index.device.type] // n_entries)):
            best[some] = _winner(*self._weighed(index[:, some]), index[:, some].sum(0) % 2 == 1)
        return best

    def _around(self, index: Tensor, point: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Voxels below positions and fractions, (3, n) int64; whether they are inside, (n,)."""
        # The same order of additions as in the compiled loop, so that rounding is the same.
        u, v, w = (index[a] + float(point[a]) for a in range(3))
        matrix, shift = self.lookup.matrix.tolist(), self.lookup.shift.tolist()
        position = [m[0] * u + m[1] * v + m[2] * w + s for m, s in zip(matrix, shift, strict=True)]
        at = (kernels.ONE * torch.stack(position)).round().to(torch.int64)
        sizes = self._sizes()
        inside = ((at >= -kernels.HALF) & (at <= sizes * kernels.ONE - kernels.HALF)).all(0)
        return at >> kernels.BITS, at & (kernels.ONE - 1), inside

    def _sizes(self) -> Tensor:
        return torch.tensor(self.codes.shape[1:], device=self.codes.device)[:, None]

    def _settled(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Labels of target voxels around which one is certain; the number of each other voxel."""
        settled = torch.ones_like(index[0], dtype=torch.bool)
        code = torch.zeros_like(index[0], dtype=self.codes.dtype)
        for which, point in enumerate(self.lookup.points):
            low, _, inside = self._around(index, point)
            for number in range(8):
                step = low.new_tensor([number >> 2, number >> 1 & 1, number & 1])[:, None]
                x, y, z = (low + step).clamp(min=torch.zeros_like(step), max=self._sizes() - 1)
                here = torch.where(inside, self.codes[0, x, y, z], 0)
                code = here if which == number == 0 else code
                settled &= here == code
                if self.weights is not None:
                    settled &= ~inside | (self.weights[0, x, y, z] == kernels.CERTAIN)
        if not self.lookup.sure:
            settled[:] = False
        return code, (~settled).nonzero()[:, 0]

    def _weighed(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Labels that target voxels see, and their exact weights, (n, entries) int16, int64."""
        taps, (_, size_y, size_z) = self.tables.shape[2], self.codes.shape[1:]
        steps = torch.arange(taps, device=index.device) - (taps // 2 - 1)
        certain = kernels.ONE**3 * (1 if self.weights is None else kernels.CERTAIN)
        seen, parts = [], []
        for point in self.lookup.points:
            low, frac, inside = self._around(index, point)
            x, y, z = (
                (low[a][:, None] + steps).clamp(0, self.codes.shape[a + 1] - 1) for a in range(3)
            )
            at = (x[:, :, None] * size_y + y[:, None]).flatten(1)
            at = (at[:, :, None] * size_z + z[:, None]).flatten(1)
            wx, wy, wz = (self.tables[a][frac[a]] for a in range(3))
            weight = (wx[:, :, None] * wy[:, None]).flatten(1)
            weight = (weight[:, :, None] * wz[:, None]).flatten(1) * inside[:, None]
            seen.append(torch.zeros_like(at[:, :1], dtype=torch.int16))
            parts.append(torch.where(inside, 0, certain)[:, None])
            for nth, codes in enumerate(self.codes):
                seen.append(codes.flatten()[at])
                if self.weights is None:
                    parts.append(weight)
                else:
                    parts.append(weight * self.weights[nth].flatten()[at])
        return torch.cat(seen, 1), torch.cat(parts, 1)


def _winner(seen: Tensor, parts: Tensor, odd: Tensor) -> Tensor:
    """The label with the largest sum of ``parts``; code 0 where none is positive. (n,) int16."""
    seen = torch.where(parts != 0, seen, NONE)
    best = torch.zeros(len(seen), dtype=torch.int64, device=seen.device)
    label, code = torch.zeros_like(seen[:, 0]), seen.amin(1)
    live = (code < NONE).nonzero()[:, 0]
    while len(live):
        here, named = seen[live], code[live]
        score = torch.where(here == named[:, None], parts[live], 0).sum(1)
        old = best[live]
        better = (score > old) | ((score == old) & (score > 0) & odd[live])
        best[live] = torch.where(better, score, old)
        label[live] = torch.where(better, named, label[live])
        code[live] = torch.where(here > named[:, None], here, NONE).amin(1)
        live = live[code[live] < NONE]
    return label
