# SPDX-License-Identifier: Apache-2.0
"""SAMSEG: the whole head by an atlas of tetrahedra, with probabilities (Puonti et al. 2016).

Both FreeSurfer's (7.2 and later) and the one on PyPI (``samseg`` 0.4a0, its atlas inside) take
these arguments and write these files. The label map lies on the image's own grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nipype.interfaces.base import File, traits

from brainseg_bids.interfaces.tools.base import (
    Tool,
    ToolInputSpec,
    ToolInterface,
    freesurfer_version,
    installed_version,
)

OUTPUT = "samseg"


class _SamsegInputSpec(ToolInputSpec):
    image = File(exists=True, mandatory=True, argstr="-i %s", position=0)
    out_dir = traits.Str(OUTPUT, usedefault=True, argstr="-o %s", position=1)
    threads = traits.Int(1, usedefault=True, nohash=True, argstr="--threads %d", position=2)
    save_posteriors = traits.Bool(True, usedefault=True, argstr="--save-posteriors", position=3)
    options = File(exists=True, argstr="--options %s", desc="JSON, e.g. of fewer iterations")


class Samseg(ToolInterface):
    """Run ``run_samseg``.

    Examples
    --------
    >>> samseg = Samseg(subject="sub-01", image=__file__, threads=2)
    >>> samseg.arguments()[2:]
    ['-o', 'samseg', '--threads', '2', '--save-posteriors']
    """

    input_spec = _SamsegInputSpec
    name = "samseg"
    labels_file = f"{OUTPUT}/seg.mgz"

    @classmethod
    def version(cls, program: Sequence[str]) -> str:
        home = Path(program[-1]).parent.parent
        return installed_version(home, "samseg") or freesurfer_version(home)

    def prepare(self, folder: Path) -> None:
        for path in sorted((folder / OUTPUT).glob("posteriors/*.mgz")):
            path.unlink()
        (folder / OUTPUT / "seg.mgz").unlink(missing_ok=True)

    def posterior_files(self, folder: Path) -> dict[int, Path]:
        """One file a structure, found by its name: the order of the files means nothing."""
        if not self.inputs.save_posteriors:
            return {}
        names = self.tool.crosswalk().names
        return {
            code: folder / OUTPUT / "posteriors" / f"{name}.mgz" for code, name in names.items()
        }


TOOL = Tool(
    name="samseg",
    program=("run_samseg",),
    regions=frozenset({"head", "brain"}),
    same_grid=True,
    posteriors=True,
    licence="MIT",
    about="*SAMSEG* [@puonti2016]",
    how_to_get=(
        "Get it with `make tools-samseg`, which needs Python 3.9 to 3.11, or install FreeSurfer "
        "7.2 or later."
    ),
    # Two measured heads, 9.1 and 40.4 million voxels, took 6.8 and 16.7 GB; and a margin.
    mem_base_gb=4.5,
    mem_gb_per_mvox=0.35,
    max_threads=4,  # two give 120 % of one CPU
    existing=("{id}/seg.mgz", "{id}/samseg/seg.mgz", "{id}/mri/samseg/seg.mgz"),
    interface=Samseg,
)
