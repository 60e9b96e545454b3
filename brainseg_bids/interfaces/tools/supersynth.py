# SPDX-License-Identifier: Apache-2.0
"""SuperSynth (FreeSurfer 8.2 and later): brain and head in 56 classes, any contrast, at 1 mm.

Codes of the head are SynthSeg's plus 400, where FreeSurfer's table has room for them; nuclei of
the hypothalamus and around it are FreeSurfer's ScLimbic.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from nipype.interfaces.base import File, traits

from brainseg_bids.interfaces.tools.base import (
    Tool,
    ToolInputSpec,
    ToolInterface,
    freesurfer_version,
)

OUTPUT = "supersynth"


class _SupersynthInputSpec(ToolInputSpec):
    image = File(exists=True, mandatory=True, argstr="--i %s", position=0)
    out_dir = traits.Str(OUTPUT, usedefault=True, argstr="--o %s", position=1)
    mode = traits.Enum("invivo", "exvivo", usedefault=True, argstr="--mode %s", position=2)
    threads = traits.Int(1, usedefault=True, nohash=True, argstr="--threads %d", position=3)
    use_gpu = traits.Bool(
        False, usedefault=True, nohash=True, argstr="--device %s", position=4, desc="cuda or cpu"
    )


class Supersynth(ToolInterface):
    """Run ``mri_super_synth``."""

    input_spec = _SupersynthInputSpec
    name = "supersynth"
    labels_file = f"{OUTPUT}/segmentation.mgz"

    @classmethod
    def version(cls, program: Sequence[str]) -> str:
        return freesurfer_version(Path(program[-1]).resolve().parent.parent)

    def prepare(self, folder: Path) -> None:
        shutil.rmtree(folder / OUTPUT, ignore_errors=True)
        (folder / OUTPUT).mkdir()

    def _format_arg(self, name, spec, value):
        if name == "use_gpu":
            return "--device cuda" if value else "--device cpu"
        return super()._format_arg(name, spec, value)

    def facts(self, folder: Path) -> dict:
        return {
            "Mode": self.inputs.mode,
            "Device": "cuda" if self.inputs.use_gpu else "cpu",
        }


TOOL = Tool(
    name="supersynth",
    program=("mri_super_synth",),
    regions=frozenset({"head", "brain"}),
    licence="FreeSurfer",
    about="FreeSurfer's *SuperSynth* [@liu2025]",
    how_to_get=(
        "Install FreeSurfer 8.2 or later, and its model file, for which mri_super_synth asks "
        "when it is first run."
    ),
    mem_base_gb=32.0,  # reported by others: more than 32 GB at its peak
    mem_gb_per_mvox=0.1,
    max_threads=16,
    gpu=True,
    existing=("{id}/segmentation.mgz", "{id}/supersynth/segmentation.mgz"),
    interface=Supersynth,
)
