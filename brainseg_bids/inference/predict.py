# SPDX-License-Identifier: Apache-2.0
"""``segment``: label map of an image on its own grid, from one or several networks.

The image is brought to RAS+ axis order without interpolation, resampled to the voxel size of the
network axis by axis, and segmented with a sliding window. Probabilities, not labels, are
interpolated back to the voxels of the image. The arg-max is taken plane by plane, as soon as all
windows of a plane are done. The result does not depend on the axis order of the image.

Probabilities of several networks, and of the mirrored image, are averaged plane by plane. Regions
outside of the head count as background, and so do fill values.

If the memory of a GPU is not sufficient, windows are reduced first, then sums are kept in main
memory. If this does not help, an error is raised.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from brainseg_bids.anatomy.fill import without_fill, wrapped_share
from brainseg_bids.anatomy.grid import Grid, triple
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.inference.confidence import Accumulator
from brainseg_bids.inference.planes import (
    SLAB_BLOCKS,
    Plane,
    averaged,
    most_probable,
    planes_of,
    taps_of,
)
from brainseg_bids.inference.views import Member, View, flipped, view_of
from brainseg_bids.inference.windows import Triple, count_windows, stitched_rows
from brainseg_bids.nets.architectures import PackedNet
from brainseg_bids.nets.sizes import patch_multiple

PLANES_TO_WINDOWS = 0.35
"""Estimated time of all planes relative to that of all windows, for voxels as large as the
network's, until the first planes are done. Measured: 0.32 on a CPU with bfloat16."""


def segment(
    image: np.ndarray,
    grid: Grid,
    net: PackedNet,
    table: LabelTable,
    *,
    voxel_size_mm: float,
    window_vox: Triple,
    others: Sequence[Member] = (),
    flips: bool = False,
    device: str = "cpu",
    overlap_frac: float = 0.25,
    progress: Callable[[float], None] = lambda left_s: None,
    on_probabilities: Callable[[int, slice, slice, Tensor], None] | None = None,
    confidence: Accumulator | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> LabelMap:
    """Label map of an image, by the method described for this module.

    Parameters
    ----------
    image : (X, Y, Z) float
    grid : Grid
        Grid of the image, with any axis order, oblique or anisotropic.
    net, voxel_size_mm, window_vox
        The first network, as in `views.Member`.
    table : LabelTable
        Labels in the order of the channels of all networks; its counterparts are exchanged in
        mirrored images.
    others : sequence of Member
        Further networks with the same labels, whose probabilities are averaged with the first.
    flips : bool
        Flip augmentation at test time, see `views.flipped`.
    device : str
    overlap_frac : float
        Overlap of neighbouring windows, as a fraction of a window.
    progress : callable
        Called after each window and each plane with the estimated remaining time in seconds.
    on_probabilities : callable, optional
        Called for each plane of the image in RAS+ axis order with its index, slices of rows and
        columns, and probabilities (n_labels, rows, columns). All other voxels are background.
    confidence : Accumulator, optional
        Accumulates sums of probabilities.
    note : callable
        Called with a line of text about unusual intensities, or about changes due to lack of
        memory.

    Returns
    -------
    LabelMap
        On ``grid``, int16 codes of ``table``.

    Raises
    ------
    RuntimeError
        If there is not enough memory.
    """
    members = [Member(net, voxel_size_mm, window_vox), *others]
    listeners = _Listeners(progress, on_probabilities, confidence, note)
    return _segment(image, grid, members, table, flips, device, overlap_frac, listeners)


class _Listeners(NamedTuple):
    progress: Callable[[float], None]
    on_probabilities: Callable[[int, slice, slice, Tensor], None] | None
    confidence: Accumulator | None
    note: Callable[[str], None]


def _segment(
    image: np.ndarray,
    grid: Grid,
    members: Sequence[Member],
    table: LabelTable,
    flips: bool,
    device: str,
    overlap_frac: float,
    listeners: _Listeners,
) -> LabelMap:
    progress, on_probabilities, confidence, note = listeners
    image = _without_what_is_no_image(image, note)
    ras = grid.to_ras()
    turned = torch.from_numpy(np.ascontiguousarray(grid.array_to_ras(image), dtype=np.float32))
    views = [view_of(turned, ras, member, device) for member in members]
    if flips:
        mirrors = torch.from_numpy(table.mirrors())
        views = [one for view in views for one in (view, flipped(view, mirrors))]

    def label(saving: _MemorySaving) -> Tensor:
        labelled = torch.zeros(ras.shape, dtype=torch.uint8)
        work = _RemainingTime(progress, views, ras, saving, overlap_frac)
        streams = _streams(views, ras.shape, saving, overlap_frac, work.window_done)
        if confidence is not None:
            confidence.clear()
        for plane, rows, columns, probabilities in averaged(streams):
            indices, largest = most_probable(probabilities)
            labelled[plane, rows, columns] = indices.cpu()
            if confidence is not None:
                confidence.add(indices, largest, probabilities)
            if on_probabilities is not None:
                on_probabilities(plane, rows, columns, probabilities)
            work.plane_done()
        return labelled

    with torch.inference_mode():
        indices = _within_memory(label, device, note)
    codes = table.codes.astype(np.int16)[indices.numpy()]
    return LabelMap(np.ascontiguousarray(grid.array_from_ras(codes)), grid, table)


def _without_what_is_no_image(image: np.ndarray, note: Callable[[str], None]) -> np.ndarray:
    image, fills = without_fill(image)
    for fill in fills:
        note(str(fill))
    if share := wrapped_share(image):
        note(
            f"{100 * share:.2g} % of voxels are negative beside the brightest ones: intensities "
            "above the largest integer of the file's type have wrapped round. Labels there are "
            "wrong. Export the image again as float or as unsigned 16-bit integers."
        )
    return image


@dataclass(frozen=True)
class _MemorySaving:
    """How memory is saved: edges of windows divided by ``shrink``, sums kept on ``keep_on``."""

    device: str
    shrink: int = 1
    keep_on: str = ""

    def describe(self) -> str:
        where = " and sums in main memory" if self.keep_on == "cpu" else ""
        return f"windows of 1/{self.shrink} of the edges{where}"


def _within_memory(
    label: Callable[[_MemorySaving], Tensor], device: str, note: Callable[[str], None]
) -> Tensor:
    """What ``label`` gives, with as little memory as an accelerator asks for."""
    steps = [_MemorySaving(device)]
    if device != "cpu":
        less = ((2, ""), (2, "cpu"), (4, "cpu"))
        steps += [_MemorySaving(device, shrink, keep_on) for shrink, keep_on in less]
    for saving, following in zip(steps, [*steps[1:], None], strict=True):
        try:
            return label(saving)
        except RuntimeError as error:
            if following is None or "out of memory" not in str(error):
                raise
        # Outside of the handler, where the error no longer holds on to what filled the memory.
        if torch.device(device).type == "cuda":  # training names one of several: cuda:1
            torch.cuda.empty_cache()
        note(
            f"not enough memory on {device}: done again with {following.describe()}; labels may "
            "differ a little"
        )
    raise AssertionError("the last step returns or raises")


def _streams(
    views: Sequence[View],
    shape: tuple[int, ...],
    saving: _MemorySaving,
    overlap_frac: float,
    on_window: Callable[[], None],
) -> list[Iterator[Plane]]:
    """Planes of each view; nothing is computed before they are asked for."""
    return [
        planes_of(
            view,
            stitched_rows(
                view.forward,
                view.seen,
                window=_smaller_window(view.member, saving.shrink),
                block_size=view.member.net.spec.block_size,
                rows=SLAB_BLOCKS,
                overlap_frac=overlap_frac,
                keep_on=saving.keep_on or saving.device,
                progress=on_window,
            ),
            shape,
            saving.device,
        )
        for view in views
    ]


class _RemainingTime:
    """How long what is left will take, by how long windows and planes have taken so far.

    Parameters
    ----------
    report : callable
        Called with the seconds that are left.
    views : sequence of View
    ras : Grid
        Of the image.
    saving : _MemorySaving
    overlap_frac : float
    """

    def __init__(
        self,
        report: Callable[[float], None],
        views: Sequence[View],
        ras: Grid,
        saving: _MemorySaving,
        overlap_frac: float,
    ) -> None:
        self.report = report
        self.windows: int = sum(
            count_windows(
                triple(view.seen.shape),
                _smaller_window(view.member, saving.shrink),
                block_size=view.member.net.spec.block_size,
                overlap_frac=overlap_frac,
            )
            for view in views
        )
        inside = [taps_of(view, ras.shape, "cpu") for view in views]
        rows = [taps[0][0] for taps in inside if taps]
        self.planes = max((r.stop for r in rows), default=0) - min(
            (r.start for r in rows), default=0
        )
        finer = [
            view.member.voxel_size_mm**3 / float(np.prod(ras.voxel_size_mm)) for view in views
        ]
        self.ratio = PLANES_TO_WINDOWS * sum(finer) / len(finer)
        self.done = {"window": 0, "plane": 0}
        self.took_s = {"window": 0.0, "plane": 0.0}
        self.last_s = time.monotonic()

    def window_done(self) -> None:
        """To be called after each window."""
        self._done("window")

    def plane_done(self) -> None:
        """To be called after each plane of the image."""
        self._done("plane")

    def _done(self, part: str) -> None:
        now_s = time.monotonic()
        self.took_s[part] += now_s - self.last_s
        self.done[part] += 1
        self.last_s = now_s
        self.report(self.left_s())

    def left_s(self) -> float:
        """Seconds that are likely left."""
        a_window_s = self.took_s["window"] / max(1, self.done["window"])
        all_planes_s = self.ratio * a_window_s * self.windows
        if self.done["plane"]:
            all_planes_s = self.took_s["plane"] * self.planes / self.done["plane"]
        planes_left = 1 - self.done["plane"] / max(1, self.planes)
        return a_window_s * (self.windows - self.done["window"]) + all_planes_s * planes_left


def _smaller_window(member: Member, times: int) -> Triple:
    """The window with edges divided, as far as the network's levels allow."""
    if times == 1:
        return member.window_vox
    multiple = patch_multiple(member.net.spec)
    # Two multiples: a network cannot normalise over a single block at its deepest level.
    return triple(
        min(n, max(2 * multiple, n // times // multiple * multiple)) for n in member.window_vox
    )
