# SPDX-License-Identifier: Apache-2.0
"""Motion artefacts: lines of k-space that are acquired in different poses of the head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from brainseg_bids.anatomy.grid import triple
from brainseg_bids.synth.deform import rotation
from brainseg_bids.synth.interpolate import slabs
from brainseg_bids.synth.recipe import Motion
from brainseg_bids.synth.view import Crop


@dataclass(frozen=True)
class Shear:
    """Shear along one axis: each line is shifted by ``slope @ position + shift_vox`` voxels.

    Positions are in voxels from the centre of the head; ``slope`` is zero along ``axis``.
    """

    axis: int
    slope: tuple[float, float, float]
    shift_vox: float


def move(image: Tensor, motion: Motion, crop: Crop) -> Tensor:
    """Magnitude image with motion artefacts.

    Lines of k-space are acquired from one end to the other along ``motion.axis``. The labels
    belong to the pose in which the centre of k-space is acquired, since this pose determines the
    position of the head in the image; other poses are relative to it. The crop is periodic, as a
    field of view, so that ghosts wrap around.

    A pose is applied as three shears by Fourier shift (Eddy et al., Magn Reson Med 36, 1996):
    phase changes in k-space, without blur or loss of energy. It is exact for translations. For
    rotations, the strain is of the order of the squared angle (0.3 % at 3 degrees, 0.2 mm at the
    scalp).

    Parameters
    ----------
    image : (X, Y, Z) float
    motion : Motion
        Rotations are about the centre of the head, about z first and x last.
    crop : Crop

    Raises
    ------
    ValueError
        If the numbers of times, translations and rotations differ, or times do not increase.
    """
    _check(motion)
    axis, n = motion.axis, image.shape[motion.axis]
    pose_of_line = np.searchsorted(motion.times_frac, (np.arange(n) + 0.5) / n, side="right")
    at_rest = pose_of_line[n // 2]
    if (pose_of_line == at_rest).all():
        return image
    poses = []
    for number in np.unique(pose_of_line):
        shears = _shears(motion, number, at_rest, crop) if number != at_rest else []
        lines = _line_weights(pose_of_line == number, axis, image.device)
        poses.append(_Pose.of(image, shears, lines, crop))
    moved, across = torch.empty_like(image), _across(axis)
    for start, stop in slabs(image.shape[across]):
        real, imaginary = _mix(poses, axis, n, start, stop)
        real.mul_(real).addcmul_(imaginary, imaginary)
        moved.narrow(across, start, stop - start).copy_(real.sqrt_())
    return moved


@dataclass(frozen=True)
class _Pose:
    """The image in one pose, but for the last shear, and the lines that were read in it."""

    image: Tensor
    last: list[Tensor]
    lines: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, image: Tensor, shears: list[Shear], lines: tuple[Any, ...], crop: Crop) -> _Pose:
        for shear in shears[:-1]:
            image = _sheared(image, shear, crop)
        last = _phases(shears[-1], crop, image.device) if shears else []
        return cls(image, last, lines)


def _line_weights(is_read: np.ndarray, axis: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """What the lines of a real image, 0 to the highest, weigh in the mix's two parts.

    The line at -k of a real image is the conjugate of that at k. So a mix that reads k from one
    image A and -k from another one B has (A + B) / 2 for its real part and (A - B) / 2i for its
    imaginary one.
    """
    n = len(is_read)
    k = np.arange(n // 2 + 1)
    above, below = is_read[(k + n // 2) % n], is_read[n // 2 - k]
    # The highest line of an even number was read on one side only.
    if n % 2 == 0:
        above[-1] = below[-1]
    shape = [1, 1, 1]
    shape[axis] = -1
    real, imaginary = (
        torch.from_numpy(part.astype(np.complex64)).view(shape).to(device)
        for part in ((above + 0j + below) / 2, (above + 0j - below) / 2j)
    )
    return real, imaginary


def _mix(poses: list[_Pose], axis: int, n: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Real and imaginary part of a slab whose lines were read in several poses."""
    parts: list[Tensor] = []
    for pose in poses:
        here = pose.image.narrow(_across(axis), start, stop - start)
        spectrum = _spectrum(here, axis, pose.last, start, stop)
        if not parts:
            parts = [spectrum * weight for weight in pose.lines]
        else:
            for part, weight in zip(parts, pose.lines, strict=True):
                part.addcmul_(spectrum, weight)
    real, imaginary = (torch.fft.irfft(part, n=n, dim=axis) for part in parts)
    return real, imaginary


def _check(motion: Motion) -> None:
    counts = {len(motion.times_frac), len(motion.translations_mm), len(motion.rotations_deg)}
    if len(counts) > 1:
        raise ValueError("motion needs one time, one translation and one rotation for each move")
    if list(motion.times_frac) != sorted(motion.times_frac):
        raise ValueError(f"times of moves have to rise: {motion.times_frac}")


def _placement(motion: Motion, pose: int) -> tuple[np.ndarray, np.ndarray]:
    """Rotation (3, 3) and translation (3,) mm; pose 0 is before the first move."""
    if pose == 0:
        return np.eye(3), np.zeros(3)
    turned = rotation(motion.rotations_deg[pose - 1])
    return turned, np.asarray(motion.translations_mm[pose - 1], dtype=float)


def _shears(motion: Motion, pose: int, reference: int, crop: Crop) -> list[Shear]:
    """The moves, one after the other, that bring the head from one pose to another.

    The last one is along the axis of the lines. Their product has the off-diagonal elements of
    the rotation; its diagonal differs by the squared angle.
    """
    (turned, shift), (rest, rest_shift) = _placement(motion, pose), _placement(motion, reference)
    # Where a voxel of the moved image is in the one at rest.
    m = rest @ turned.T
    d = (rest_shift - m @ shift) / crop.voxel_size_mm
    a = motion.axis
    b, c = (axis for axis in range(3) if axis != a)
    b_a, b_c = m[b, a], m[b, c] - m[b, a] * m[a, c]
    c_b = m[c, b] - m[a, b] * m[c, a]
    c_a = m[c, a] - c_b * b_a
    shears = []
    for axis, slopes, shift_vox in (
        (c, {a: c_a, b: c_b}, d[c] - c_a * d[a] - c_b * d[b]),
        (b, {a: b_a, c: b_c}, d[b] - b_a * d[a]),
        (a, {b: m[a, b], c: m[a, c]}, d[a]),
    ):
        slope = triple(float(slopes.get(other, 0.0)) for other in range(3))
        shears.append(Shear(axis, slope, float(shift_vox)))
    return shears


def _across(axis: int) -> int:
    """Axis of the slabs that are worked on when lines along ``axis`` are transformed."""
    return 1 if axis == 0 else 0


def _sheared(image: Tensor, shear: Shear, crop: Crop) -> Tensor:
    if not any(shear.slope) and not shear.shift_vox:
        return image
    phases, across = _phases(shear, crop, image.device), _across(shear.axis)
    out = torch.empty_like(image)
    for start, stop in slabs(image.shape[across]):
        here = image.narrow(across, start, stop - start)
        spectrum = _spectrum(here, shear.axis, phases, start, stop)
        back = torch.fft.irfft(spectrum, n=image.shape[shear.axis], dim=shear.axis)
        out.narrow(across, start, stop - start).copy_(back)
    return out


def _spectrum(slab: Tensor, axis: int, phases: list[Tensor], start: int, stop: int) -> Tensor:
    """Half of the Fourier transform of a slab along one axis, with the phases of a shear."""
    across = _across(axis)
    if axis == 0:
        slab = _rows_apart(slab)
    spectrum = torch.fft.rfft(slab, dim=axis)
    for phase in phases:
        is_across = phase.shape[across] > 1
        spectrum.mul_(phase.narrow(across, start, stop - start) if is_across else phase)
    return spectrum


def _rows_apart(slab: Tensor) -> Tensor:
    """The same slab with its planes side by side in memory.

    Values a power of two apart are kept in one place of the cache and drive each other out:
    copied with a gap, lines along the first axis are transformed in half the time.
    """
    n, rest = slab.shape[0], slab[0].numel()
    apart = slab.new_empty(n, rest + 16)[:, :rest].unflatten(1, slab.shape[1:])
    return apart.copy_(slab)


def _phases(shear: Shear, crop: Crop, device: torch.device) -> list[Tensor]:
    """What a shear multiplies the transform by: one factor for each of the other axes."""
    cycles = torch.fft.rfftfreq(crop.shape[shear.axis], dtype=torch.float64)
    shift_vox, phases = shear.shift_vox, []
    for axis, place_mm in enumerate(crop.axes_mm()):
        if axis == shear.axis or not (shear.slope[axis] or shift_vox):
            continue
        moved = place_mm / crop.voxel_size_mm * shear.slope[axis] + shift_vox
        shift_vox = 0.0  # once is enough
        # Frequencies are next to each other in memory, as in what the phases multiply.
        angle = 2 * torch.pi * moved[:, None] * cycles
        phase = torch.polar(torch.ones_like(angle), angle).to(torch.complex64).to(device)
        phase = phase.T if shear.axis < axis else phase
        phases.append(phase.unsqueeze(3 - shear.axis - axis))
    return phases
