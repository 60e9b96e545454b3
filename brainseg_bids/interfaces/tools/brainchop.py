# SPDX-License-Identifier: Apache-2.0
"""brainchop: a MeshNet of 18 classes (Masoud et al. 2023).

Left and right are one class. Version 1 brings its models and writes the image's own grid;
version 0.2 downloads a model into ``~/.cache/brainchop`` when it first uses it, needs ``clang`` on
the CPU, and brings its labels back to the image's grid where told. Which version there is, is told
by the program's own help. `brainchop104` is the same program with another model.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from nipype.interfaces.base import File, traits

from brainseg_bids.interfaces.tools.base import (
    Tool,
    ToolInputSpec,
    ToolInterface,
    installed_version,
)

MODELS = {1: "mindmap", 0: "subcortical"}
"""The model of 18 classes, by generation of the program."""
OF_OLD = ("--inverse-conform", "--no-optimize")
"""What version 0 is told beside: back to the image's grid, and ask nothing."""
PROBE_S = 120.0


class _BrainchopInputSpec(ToolInputSpec):
    image = File(exists=True, mandatory=True, argstr="%s", position=0)
    model = traits.Str(argstr="-m %s", position=1, desc="default: the one with 18 classes")
    out_file = traits.Str("brainchop.nii.gz", usedefault=True, argstr="-o %s", position=2)


class Brainchop(ToolInterface):
    """Run ``brainchop``."""

    input_spec = _BrainchopInputSpec
    name = "brainchop"
    labels_file = "brainchop.nii.gz"
    models = MODELS
    _generation: int | None = None

    @classmethod
    def version(cls, program: Sequence[str]) -> str:
        return installed_version(Path(program[-1]).parent.parent, "brainchop")

    @property
    def generation(self) -> int:
        """1, or 0 for the versions before; also where the program does not tell."""
        if self._generation is None:
            said = _help([*self.program(), "--help"], os.environ | self.environment())
            old = not said or (OF_OLD[0] in said and self.models[1] not in said)
            self._generation = 0 if old else 1
        return self._generation

    def prepare(self, folder: Path) -> None:
        (folder / self.labels_file).unlink(missing_ok=True)
        if not self.inputs.model:
            self.inputs.model = self.models[self.generation]

    def commands(self) -> list[list[str]]:
        more = [] if self.generation else OF_OLD
        return [[*self.program(), *self.arguments(), *more]]

    def environment(self) -> dict[str, str]:
        # It starts niimath, which pip puts beside it, by its name.
        beside = str(Path(self.program()[0]).parent)
        return {"PATH": os.pathsep.join([beside, os.environ.get("PATH", "")])}

    def facts(self, folder: Path) -> dict:
        return {"Model": self.inputs.model}


def _help(command: Sequence[str], environment: dict[str, str]) -> str:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PROBE_S,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace") if done.returncode == 0 else ""


TOOL = Tool(
    name="brainchop",
    program=("brainchop",),
    regions=frozenset({"brain"}),
    same_grid=True,
    licence="MIT",
    about="*brainchop* [@masoud2023]",
    how_to_get="Get it with pip install brainchop in an environment of its own.",
    # 0.2.5 took 5.7 GiB and 483 CPU-s; it works on 256³ voxels whatever it gets. And a margin.
    mem_base_gb=7.0,
    mem_gb_per_mvox=0.01,
    max_threads=16,
    gpu=False,  # it takes what it finds
    existing=("{id}/brainchop.nii.gz", "{id}_brainchop.nii.gz"),
    interface=Brainchop,
)
