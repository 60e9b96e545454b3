# SPDX-License-Identifier: Apache-2.0
"""What the stand-ins have in common: how they fail, and the head they find in every image."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np

REPOSITORY = Path(__file__).parents[3]
sys.path.insert(0, str(REPOSITORY))

from brainseg_bids.anatomy.grid import Grid  # noqa: E402
from tests.phantom.head import phantom_head  # noqa: E402

MOST_VOXELS = 1_500_000
UNKNOWN_CODE = 9999

LICENCE = """\
--------------------------------------------------------------------------
ERROR: FreeSurfer license file /usr/local/freesurfer/license.txt not found.
  If you are outside the NMR-Martinos Center,
  go to http://surfer.nmr.mgh.harvard.edu/registration.html to
  get a valid license file (it's free).
  If you are inside the NMR-Martinos Center,
  make sure to set the standard environment.
--------------------------------------------------------------------------
"""


class Switches:
    """Words with ``@`` before a stand-in's arguments."""

    def __init__(self, argv: list[str]) -> None:
        self.words = [word[1:] for word in argv if word.startswith("@")]
        self.arguments = [word for word in argv if not word.startswith("@")]
        self.only = next((w.removeprefix("only=") for w in self.words if w[:5] == "only="), "")
        self.meant = True

    def __contains__(self, word: str) -> bool:
        return self.meant and word in self.words

    def fail_early(self, image: str | Path) -> None:
        """Do what a tool does that writes nothing."""
        self.meant = self.only in os.path.realpath(image)
        if "exit1" in self:
            raise ValueError("the atlas does not fit this head")
        if "licence" in self:
            sys.exit(LICENCE)
        if "memory" in self:
            raise MemoryError("Unable to allocate 9.31 GiB for an array")
        if "sigkill" in self:
            print("half a line", end="", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if "hang" in self:
            hang()
        if "nothing" in self:
            print("nothing to do")
            sys.exit(0)


def hang() -> None:
    """Wait for ever, with a child that has left the process group and minds no SIGTERM."""
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    Path("hanging.pids").write_text(f"{os.getpid()} {child.pid}")
    time.sleep(600)


def read_grid(image: str | Path) -> Grid:
    file = nib.load(image)
    return Grid(file.shape[:3], file.affine)


def head_on(grid: Grid) -> np.ndarray:
    """Codes of ``fullhead``; big grids get the phantom of a coarser one, each voxel repeated."""
    step = 1
    while np.prod(grid.shape) / step**3 > MOST_VOXELS:
        step += 1
    affine = grid.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ np.full(3, (step - 1) / 2)
    affine[:3, :3] *= step
    coarse = phantom_head(grid=Grid(tuple(-(-n // step) for n in grid.shape), affine)).voxels
    for axis in range(3):
        coarse = coarse.repeat(step, axis)
    return coarse[tuple(slice(n) for n in grid.shape)]


def lia(grid: Grid, shape: tuple[int, int, int], voxel_size_mm: float) -> Grid:
    """Conformed grid about the same centre: axes towards left, inferior, anterior."""
    affine = np.zeros((4, 4))
    affine[0, 0], affine[2, 1], affine[1, 2] = np.array([-1, -1, 1]) * voxel_size_mm
    affine[3, 3] = 1
    affine[:3, 3] = grid.center_mm - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, affine)


def recode(voxels: np.ndarray, changes: dict[int, int]) -> np.ndarray:
    """Other codes for some labels."""
    made = voxels.copy()
    for old, new in changes.items():
        made[voxels == old] = new
    return made


def only_brain(voxels: np.ndarray, *, csf: bool = True) -> np.ndarray:
    """Without bone and soft tissue, and without CSF if there is to be none."""
    return recode(voxels, {511: 0, 507: 0, 515: 0} | ({} if csf else {24: 0}))


def save(voxels: np.ndarray, grid: Grid, path: Path, switches: Switches) -> None:
    """Write labels; the switches say what is wrong with them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = grid.affine
    if "empty" in switches:
        voxels = np.zeros_like(voxels)
    if "code" in switches:
        voxels = voxels.astype(np.int32)
        voxels[:2, 0, 0] = UNKNOWN_CODE
    if "inexact" in switches:
        voxels = voxels + np.float32(0.3)
    if "grid" in switches:
        voxels, affine = voxels[:-1], affine @ np.diag([1.0, 1.0, 1.1, 1.0])
    kind = nib.MGHImage if path.suffix == ".mgz" else nib.Nifti1Image
    nib.save(kind(voxels, affine), path)
