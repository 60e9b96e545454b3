# SPDX-License-Identifier: Apache-2.0
"""Memory that a participant's job needs: that of its largest step, as the stages plan it."""

from __future__ import annotations

import glob
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.bids.names import STRUCTURAL, Scan
from brainseg_bids.settings import Settings
from brainseg_bids.volumes import read_grid

if TYPE_CHECKING:
    from brainseg_bids.workflows.segment_plan import Model

APP_GIB = 1.0
"""Memory of the app itself and its workers beside the largest step: 0.3 GiB were measured."""

MARGIN = 1.25
"""What is asked for, of what the largest step is predicted to take: predictions of segmentations
are within a quarter of what was measured."""

PICTURES_GIB = 1.0
"""Memory set aside for the largest of the small steps: volumes, pictures."""

UNKNOWN_VOXELS = 256**3
"""Size of an image to plan with if no header can be read."""

Images = Sequence[tuple[Scan, Grid]]


@dataclass(frozen=True)
class Networks:
    """What segments images: models that they are shared out among, and those of an ensemble."""

    models: tuple[Model, ...] = ()
    ensemble: tuple[Model, ...] = ()

    def needed_gib(self, images: Images, *, flips: bool) -> float:
        """The most that a segmentation takes, predicted for each image from its network."""
        from brainseg_bids.workflows.segment_plan import SEGMENT_GIB, model_for, predicted_gib

        needs = (
            predicted_gib(scan, (model_for(scan, self.models), *self.ensemble), flips)
            for scan, _ in images
        )
        return max(needs, default=SEGMENT_GIB)


def participant_gib(
    settings: Settings, labels: Iterable[str], networks: Networks, *, at_once: int
) -> float:
    """Memory of one participant's job: of its largest step, for the largest image there is.

    Parameters
    ----------
    settings : Settings
    labels : iterable of str
        Participants, of whom each has a job.
    networks : Networks
    at_once : int
        How many segmentations run at the same time.
    """
    images = list(_images(settings, labels))
    return math.ceil(MARGIN * max(_steps_gib(settings, images, networks, at_once)) + APP_GIB)


def _steps_gib(
    settings: Settings, images: Images, networks: Networks, at_once: int
) -> Iterator[float]:
    """Memory that the app sets aside for its steps, as the plans of its stages do."""
    from brainseg_bids.workflows.contrast_plan import BYTES_PER_VOXEL  # late: nibabel, nipype
    from brainseg_bids.workflows.spaces_plan import REGISTER_GIB

    voxels = max((math.prod(grid.shape) for _, grid in images), default=UNKNOWN_VOXELS)
    flips = settings.test_time_flips
    yield PICTURES_GIB
    if "segment" in settings.stages:
        yield at_once * networks.needed_gib(images, flips=flips)
    if "headlabels" in settings.stages:
        from brainseg_bids.interfaces.tools import find_tool
        from brainseg_bids.workflows.headlabels import MERGE_GIB

        yield MERGE_GIB
        for name in {settings.head_tool, settings.brain_tool}:
            if name == "model":
                yield networks.needed_gib(images, flips=flips)
            else:
                yield find_tool(name).mem_gb(voxels)
    if "upsample" in settings.stages:
        yield from (_upsampled_gib(settings, grid) for _, grid in images)
    if "contrast" in settings.stages:
        yield 0.5 + BYTES_PER_VOXEL * voxels / 2**30
    if settings.output_spaces:
        yield REGISTER_GIB


def _upsampled_gib(settings: Settings, grid: Grid) -> float:
    from brainseg_bids.anatomy.upsample import needed_gib
    from brainseg_bids.workflows.upsample_plan import CERTIFICATE_BYTES, DEFAULT_TARGET_MM

    sizes = settings.target_voxel_size_mm or DEFAULT_TARGET_MM
    finer = grid.with_voxel_size(sizes[0] if len(sizes) == 1 else sizes)
    return needed_gib(finer, grid) + CERTIFICATE_BYTES * math.prod(finer.shape) / 2**30


def _images(settings: Settings, labels: Iterable[str]) -> Iterator[tuple[Scan, Grid]]:
    """Images that may be taken, one of each kind and size.

    Of those that cannot be read their job will tell.
    """
    suffixes = settings.contrasts or STRUCTURAL
    root = glob.escape(str(settings.bids_dir))
    seen = set()
    for label in labels:
        for path in glob.iglob(f"{root}/sub-{label}/**/anat/*.nii*", recursive=True):
            suffix = Path(path).name.split(".")[0].rpartition("_")[2]
            if suffix not in suffixes:
                continue
            try:
                grid = read_grid(Path(path))
            except (OSError, ValueError):
                continue
            kind = (suffix, grid.shape, tuple(map(float, grid.voxel_size_mm)))
            if kind not in seen:
                seen.add(kind)
                yield Scan.from_path(path), grid
