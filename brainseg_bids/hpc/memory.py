# SPDX-License-Identifier: Apache-2.0
"""Memory that a participant's job needs: that of its largest step, as the stages plan it."""

from __future__ import annotations

import glob
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.bids.names import STRUCTURAL, Scan
from brainseg_bids.images import read_grid
from brainseg_bids.settings import Settings
from brainseg_bids.stages import PARTICIPANT

APP_GIB = 1.0
"""Memory of the app itself and its workers beside the largest step: 0.3 GiB were measured."""

MARGIN = 1.25
"""What is asked for, of what the largest step is predicted to take: predictions of segmentations
are within a quarter of what was measured."""

PICTURES_GIB = 1.0
"""Memory set aside for the largest of the small steps: volumes, pictures."""

Images = Sequence[tuple[Scan, Grid]]


def participant_gib(settings: Settings, labels: Iterable[str], *, at_once: int) -> float:
    """Memory of one participant's job: of its largest step, for the largest image there is.

    Parameters
    ----------
    settings : Settings
    labels : iterable of str
        Participants, of whom each has a job.
    at_once : int
        How many segmentations run at the same time.
    """
    images = list(_images(settings, labels))
    return math.ceil(MARGIN * max(_steps_gib(settings, images, at_once)) + APP_GIB)


def _steps_gib(settings: Settings, images: Images, at_once: int) -> Iterator[float]:
    """Memory that the app sets aside for its steps, as its stages say."""
    yield PICTURES_GIB
    for stage in PARTICIPANT.values():
        if stage.is_chosen(settings):
            yield from stage.memory_gib(settings, images, at_once)


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
