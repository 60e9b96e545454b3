# SPDX-License-Identifier: Apache-2.0
"""FastSurfer 2.3 and later, segmentation only: brain structures and cortex (Henschel et al. 2020).

It works on a conformed copy (LIA, about 1 mm or the smallest voxel edge) and its result stays
there. It wants absolute paths, and its shell scripts split those that hold spaces; such a
folder is reached through a link with a plain name.
"""

from __future__ import annotations

import shlex
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from nipype.interfaces.base import File, traits

from brainseg_bids.interfaces.tools.base import PLAIN, Tool, ToolInputSpec, ToolInterface

OUTPUT = "fastsurfer"


class _FastsurferInputSpec(ToolInputSpec):
    image = File(exists=True, mandatory=True, argstr="--t1 %s", position=0)
    subject = traits.Str(mandatory=True, argstr="--sid %s", position=1)
    out_dir = traits.Str(OUTPUT, usedefault=True, argstr="--sd %s", position=2)
    parts = traits.List(
        traits.Str(),
        ["--seg_only", "--no_cereb", "--no_hypothal", "--no_biasfield"],
        usedefault=True,
        argstr="%s",
        position=3,
    )
    threads = traits.Int(1, usedefault=True, nohash=True, argstr="--threads %d", position=4)
    use_gpu = traits.Bool(False, usedefault=True, nohash=True, argstr="%s", position=5)


class Fastsurfer(ToolInterface):
    """Run ``run_fastsurfer.sh --seg_only``."""

    input_spec = _FastsurferInputSpec
    name = "fastsurfer"
    labels_file = OUTPUT + "/{subject}/mri/aparc.DKTatlas+aseg.deep.mgz"
    _link: Path | None = None

    @classmethod
    def version(cls, program: Sequence[str]) -> str:
        stamp = Path(program[-1]).resolve().parent / "BUILD.info"
        lines = stamp.read_text(errors="replace").splitlines() if stamp.is_file() else []
        return lines[0].strip() if lines else ""

    def _run_interface(self, runtime, correct_return_codes=(0,)):
        if PLAIN.fullmatch(runtime.cwd):
            return super()._run_interface(runtime, correct_return_codes)
        with tempfile.TemporaryDirectory(prefix="brainseg-") as plain:
            self._link = Path(plain) / "node"
            self._link.symlink_to(runtime.cwd)
            try:
                return super()._run_interface(runtime, correct_return_codes)
            finally:
                self._link = None

    def prepare(self, folder: Path) -> None:
        shutil.rmtree(folder / OUTPUT / self.inputs.subject, ignore_errors=True)
        (folder / OUTPUT).mkdir(exist_ok=True)

    def _format_arg(self, name, spec, value):
        home = self._link or self._folder or Path.cwd()
        if name == "image":
            return f"--t1 {shlex.quote(str(home / self.image))}"
        if name == "out_dir":
            return f"--sd {shlex.quote(str(home / value))}"
        if name == "use_gpu":
            return "--device cuda" if value else "--device cpu --viewagg_device cpu"
        return super()._format_arg(name, spec, value)

    def facts(self, folder: Path) -> dict:
        return {"Device": "cuda" if self.inputs.use_gpu else "cpu"}


TOOL = Tool(
    name="fastsurfer",
    program=("run_fastsurfer.sh",),
    regions=frozenset({"brain"}),
    licence="Apache-2.0",
    about="*FastSurfer* [@henschel2020]",
    how_to_get=(
        "Install FastSurfer 2.3 or later (https://github.com/Deep-MI/FastSurfer), or use its "
        "container deepmi/fastsurfer."
    ),
    mem_base_gb=7.0,  # its own figures: 7 GB at 1 mm on the CPU, 9 GB at 0.7 mm
    mem_gb_per_mvox=0.1,
    max_threads=16,
    gpu=True,
    existing=(
        "{id}/mri/aparc.DKTatlas+aseg.deep.mgz",
        "{id}/mri/aseg.auto_noCCseg.mgz",
        "{bids}*_desc-aparcDKTaseg_dseg.nii.gz",
    ),
    interface=Fastsurfer,
)
