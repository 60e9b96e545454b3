# SPDX-License-Identifier: Apache-2.0
"""SIAM: tissues of head and brain at 0.75 mm, any contrast (Valabregue et al. 2026).

Its default model (0.3) and the one before (``-m 2``) are understood; the first one (``-m 1``)
counts other labels. Left and right are one class, and so is all white matter. It writes beside its
input, so it is given a link in a folder of its own.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from nipype.interfaces.base import File, traits

from brainseg_bids.images import read_again, write_volume
from brainseg_bids.interfaces.tools.base import Tool, ToolInputSpec, ToolInterface, ending

HOME, IMAGE = "siam", "head.nii.gz"


class _SiamInputSpec(ToolInputSpec):
    image = File(exists=True, mandatory=True, argstr="-i %s", position=0)
    use_gpu = traits.Bool(
        False, usedefault=True, nohash=True, argstr="-device %s", position=1, desc="cuda or cpu"
    )
    threads = traits.Int(1, usedefault=True, nohash=True, argstr="-nbthread %d", position=2)


class Siam(ToolInterface):
    """Run ``siam-pred``."""

    input_spec = _SiamInputSpec
    name = "siam"

    def prepare(self, folder: Path) -> None:
        shutil.rmtree(folder / HOME, ignore_errors=True)
        (folder / HOME).mkdir()
        link = folder / HOME / IMAGE
        if ending(self.image) == ".nii.gz":
            link.symlink_to(os.path.abspath(folder / self.image))
        else:
            write_volume(*read_again(self.inputs.image), link)

    def _format_arg(self, name, spec, value):
        if name == "image":
            return f"-i {HOME}/{IMAGE}"
        if name == "use_gpu":
            return "-device cuda" if value else "-device cpu"
        return super()._format_arg(name, spec, value)

    def _written(self, folder: Path) -> Path:
        # The prefix tells the model; an image on other axes leaves no copy of itself.
        found = sorted((folder / HOME).glob(f"*_{IMAGE}"))
        return found[0] if len(found) == 1 else folder / HOME / f"siamV03_{IMAGE}"

    def facts(self, folder: Path) -> dict:
        return {
            "Model": self._written(folder).name.partition("_")[0],
            "Device": "cuda" if self.inputs.use_gpu else "cpu",
        }


TOOL = Tool(
    name="siam",
    program=("siam-pred",),
    regions=frozenset({"brain"}),
    same_grid=True,
    licence="see its repository",
    about="*SIAM* [@valabregue2026]",
    how_to_get=(
        "Install SIAM (https://github.com/romainVala/SIAM), or use its container "
        "romainvalabregue/siam."
    ),
    mem_base_gb=20.0,  # its own figure for 166 x 240 x 256 mm, at 0.75 mm whatever it gets
    mem_gb_per_mvox=0.05,
    max_threads=8,
    gpu=True,
    existing=(
        "siamV03_{id}.nii.gz",
        "siamV02_{id}.nii.gz",
        "{id}/siamV03_{id}.nii.gz",
        "{id}/siamV02_{id}.nii.gz",
    ),
    interface=Siam,
)
