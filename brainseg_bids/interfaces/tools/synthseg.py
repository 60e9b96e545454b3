# SPDX-License-Identifier: Apache-2.0
"""SynthSeg 2 of FreeSurfer (7.3 and later): brain structures of any contrast (Billot et al. 2023).

It writes a 1 mm grid of its own. ``--robust`` is for clinical scans (thick slices, much noise)
and costs accuracy on good ones, so it is chosen by the image's quality, and recorded with the
numbers it was chosen by. Its probabilities (``--post``) are not used: the file does not say
which channel is which label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from nipype.interfaces.base import File, traits
from scipy import ndimage

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.head_outline import otsu_threshold
from brainseg_bids.images import read_again
from brainseg_bids.interfaces.tools.base import (
    Tool,
    ToolInputSpec,
    ToolInterface,
    freesurfer_version,
)

LARGEST_VOXEL_MM = 2.0
"""Edge above which slices are thick: structures of a few millimetres are blurred."""
SMALLEST_SNR = 7.0
"""Below it noise is more than a seventh of the signal."""
SMALLEST_CNR = 2.0
"""Little more than noise alone has: the means of its two halves are 1.6 of its spread apart."""


@dataclass(frozen=True)
class Quality:
    """What `--robust` is decided by.

    Parameters
    ----------
    largest_voxel_mm : float
        Longest edge of a voxel.
    snr : float
        Median of the head over the standard deviation of the noise, for voxels of 1 mm3.
    cnr : float
        Distance of the darker and the brighter half of the brain's tissue over that noise.
    """

    largest_voxel_mm: float
    snr: float
    cnr: float

    @property
    def errors(self) -> list[str]:
        """Why the image is not a good one; empty if it is.

        >>> Quality(1.0, 20.0, 4.0).errors, Quality(5.0, 20.0, 4.0).errors
        ([], ['voxels of 5 mm'])
        """
        errors = []
        if self.largest_voxel_mm > LARGEST_VOXEL_MM:
            errors.append(f"voxels of {self.largest_voxel_mm:.3g} mm")
        if self.snr < SMALLEST_SNR:
            errors.append(f"signal is {self.snr:.3g} times the noise")
        if self.cnr < SMALLEST_CNR:
            errors.append(f"contrast is {self.cnr:.3g} times the noise")
        return errors


def measure_quality(image: np.ndarray, grid: Grid) -> Quality:
    """Voxel size, signal and contrast of a head, without a segmentation.

    The noise is the robust spread (1.4826 times the median absolute deviation) of second
    differences along each axis, the smallest of the three, within the head; anatomy adds to it
    little, since most neighbours are of one tissue. Noise of voxels smaller than 1 mm3 is taken
    as what averaging them to 1 mm3 leaves, the size SynthSeg works at. The head is what is
    brighter than Otsu's threshold. The contrast is the distance of Otsu's two classes in the
    middle of the head, between its 2nd and 98th percentile.

    Parameters
    ----------
    image : (X, Y, Z) float
    grid : Grid

    Returns
    -------
    Quality
    """
    image = np.asarray(image, dtype=np.float32)
    head = ndimage.binary_erosion(image > otsu_threshold(image))
    largest_mm = max(grid.voxel_size_mm)
    if head.sum() < 100:
        return Quality(largest_mm, 0.0, 0.0)
    noise_sd = max(min(_noise_sd(image, head, axis) for axis in range(3)), 1e-6)
    noise_sd *= min(1.0, grid.voxel_volume_mm3) ** 0.5
    signal = float(np.median(image[head]))
    box = ndimage.find_objects(head.astype(np.uint8))[0]
    middle = tuple(slice(s.start + (n := s.stop - s.start) // 4, s.stop - n // 4) for s in box)
    tissue = image[middle][head[middle]]
    if tissue.size < 100:
        return Quality(largest_mm, signal / noise_sd, 0.0)
    low, high = np.percentile(tissue, [2, 98])
    tissue = tissue[(tissue >= low) & (tissue <= high)]
    bright = tissue > otsu_threshold(tissue)
    if not 0 < bright.sum() < tissue.size:
        return Quality(largest_mm, signal / noise_sd, 0.0)
    apart = float(tissue[bright].mean() - tissue[~bright].mean())
    return Quality(largest_mm, signal / noise_sd, apart / noise_sd)


def _noise_sd(image: np.ndarray, head: np.ndarray, axis: int) -> float:
    """Spread of ``x[i-1] - 2 x[i] + x[i+1]`` in the head, in units of the voxels' noise."""
    if image.shape[axis] < 3:
        return float("inf")
    values = np.moveaxis(image, axis, 0)
    second = values[:-2] - 2 * values[1:-1] + values[2:]
    inside = second[np.moveaxis(head, axis, 0)[1:-1]]
    if inside.size == 0:
        return float("inf")
    return float(1.4826 * np.median(np.abs(inside - np.median(inside))) / np.sqrt(6))


class _SynthsegInputSpec(ToolInputSpec):
    image = File(exists=True, mandatory=True, argstr="--i %s", position=0)
    out_file = traits.Str("synthseg.nii.gz", usedefault=True, argstr="--o %s", position=1)
    threads = traits.Int(1, usedefault=True, nohash=True, argstr="--threads %d", position=2)
    mode = traits.Enum(
        "auto",
        "standard",
        "robust",
        usedefault=True,
        argstr="%s",
        position=3,
        desc="auto: robust for images of low quality only",
    )
    use_gpu = traits.Bool(False, usedefault=True, nohash=True, argstr="%s", position=4)


class Synthseg(ToolInterface):
    """Run ``mri_synthseg``."""

    input_spec = _SynthsegInputSpec
    name = "synthseg"
    labels_file = "synthseg.nii.gz"
    _quality: Quality | None = None

    @classmethod
    def version(cls, program: Sequence[str]) -> str:
        return freesurfer_version(Path(program[-1]).resolve().parent.parent)

    @property
    def quality(self) -> Quality:
        """Of the image; measured once."""
        if self._quality is None:
            self._quality = measure_quality(*read_again(self.inputs.image))
        return self._quality

    @property
    def robust(self) -> bool:
        """Whether `--robust` is told."""
        mode = self.inputs.mode
        return bool(self.quality.errors) if mode == "auto" else mode == "robust"

    def prepare(self, folder: Path) -> None:
        (folder / "synthseg.nii.gz").unlink(missing_ok=True)
        _ = self.robust  # an image that cannot be read is told in its own words

    def environment(self) -> dict[str, str]:
        # The first saves memory (about 3 GB of 16), the second lets newer TensorFlow read the
        # models.
        return {
            "TF_ENABLE_ONEDNN_OPTS": "0",
            "TF_USE_LEGACY_KERAS": "1",
            "TF_CPP_MIN_LOG_LEVEL": "2",
        }

    def _format_arg(self, name, spec, value):
        if name == "mode":
            return "--robust" if self.robust else None
        if name == "use_gpu":
            return None if value else "--cpu"
        return super()._format_arg(name, spec, value)

    def facts(self, folder: Path) -> dict:
        numbers = {key: round(number, 2) for key, number in asdict(self.quality).items()}
        why = "asked for" if self.inputs.mode != "auto" else "; ".join(self.quality.errors)
        return {
            "Mode": "robust" if self.robust else "standard",
            "ModeReason": why or "the image is a good one",
            "Quality": numbers,
        }


TOOL = Tool(
    name="synthseg",
    program=("mri_synthseg",),
    regions=frozenset({"brain"}),
    licence="FreeSurfer (the models: Apache-2.0)",
    about="FreeSurfer's *mri_synthseg* [@billot2023robust]",
    how_to_get="Install FreeSurfer 7.3 or later, or use its container freesurfer/freesurfer.",
    mem_base_gb=14.0,  # reported, not measured: up to 16, 13 with our environment
    mem_gb_per_mvox=0.05,
    max_threads=16,
    gpu=True,
    existing=(
        "{id}/synthseg.nii.gz",
        "{id}/mri/synthseg.mgz",
        "{id}/mri/synthseg.rca.mgz",
        "{id}_synthseg.nii.gz",
    ),
    interface=Synthseg,
)
