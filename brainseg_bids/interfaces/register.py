# SPDX-License-Identifier: Apache-2.0
"""Registration to a template in a process of its own, and what is resampled through it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    CommandLineInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from brainseg_bids import __version__
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.anatomy.resample import resample_image, resample_labels, resample_probabilities
from brainseg_bids.images import (
    read_again,
    read_grid,
    read_label_map,
    read_posteriors,
    write_label_map,
    write_volume,
)
from brainseg_bids.interfaces.segment import OwnProgram, _reason

REGISTER = (sys.executable, "-m", "brainseg_bids.programs.register")


class RegistrationError(RuntimeError):
    """The process ended without a result; the message is one line for the user."""


def missing_reason(program: Sequence[str] = REGISTER) -> str:
    """Why a program cannot register; empty if it can, as far as is known before it is run."""
    if tuple(program) != REGISTER or find_spec("ants"):
        return ""
    return (
        "--output-spaces: antspyx, which registers images, is not installed. Install it with: "
        "pip install 'brainseg-bids[spaces]'"
    )


class _RegisterInputSpec(CommandLineInputSpec):
    moving = File(exists=True, mandatory=True, argstr="--moving %s", desc="image")
    moving_mask = File(exists=True, argstr="--moving-mask %s", desc="its brain")
    fixed = File(exists=True, mandatory=True, argstr="--fixed %s", desc="template")
    fixed_mask = File(exists=True, argstr="--fixed-mask %s", desc="its brain")
    grids = traits.List(
        File(exists=True), mandatory=True, argstr="--grid %s", desc="to bring results to"
    )
    kind = traits.Str(mandatory=True, argstr="--kind %s", desc="ANTs' name for what is done")
    forward = File("forward.h5", usedefault=True, argstr="--forward %s", desc="to be written")
    backward = File("backward.h5", usedefault=True, argstr="--backward %s", desc="to be written")
    report = File("report.json", usedefault=True, argstr="--report %s", desc="to be written")
    threads = traits.Int(1, usedefault=True, nohash=True, argstr="--threads %d")
    # Not told to the program: another version may do it otherwise.
    version = traits.Str(__version__, usedefault=True, desc="of this package")


class _RegisterOutputSpec(TraitedSpec):
    forward = File(exists=True, desc="image to template, composite ITK transform")
    backward = File(exists=True, desc="template to image")
    places = traits.List(
        File(exists=True), desc="for each grid, where its voxels lie in the image: .npy"
    )
    report = File(exists=True, desc="facts: time, memory, versions")


class Register(OwnProgram):
    """Register an image to a template.

    Parameters
    ----------
    program : sequence of str
        Program and first arguments: `brainseg_bids.programs.register` in another environment, or a
        stand-in.
    """

    input_spec = _RegisterInputSpec
    output_spec = _RegisterOutputSpec
    _terminal_output = "file_split"

    def __init__(self, program: Sequence[str] = REGISTER, **inputs) -> None:
        super().__init__(command=shlex.join(program), **inputs)

    def _places(self) -> list[str]:
        return [f"places{number}.npy" for number in range(len(self.inputs.grids))]

    def _parse_inputs(self, skip=None):
        return [*super()._parse_inputs(skip), "--places " + " ".join(self._places())]

    def _format_arg(self, name, spec, value):
        if name == "kind":  # it has brackets
            value = shlex.quote(value)
        if name == "grids":  # Nipype quotes single files, not those in lists
            value = [shlex.quote(path) for path in value]
        return super()._format_arg(name, spec, value)

    def _run_interface(self, runtime, correct_return_codes=(0,)):
        threads = str(self.inputs.threads)
        for variable in ("OMP_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
            runtime.environ[variable] = threads
        runtime = super()._run_interface(runtime, correct_return_codes)
        if runtime.returncode not in correct_return_codes:
            said = _reason(Path(self.inputs.moving), runtime.returncode, runtime.stderr)
            raise RegistrationError(said.replace("the segmentation", "the registration"))
        return runtime

    def _list_outputs(self):
        outputs = self.output_spec().get()
        for name in ("forward", "backward", "report"):
            outputs[name] = str(Path(getattr(self.inputs, name)).absolute())
        outputs["places"] = [str(Path(path).absolute()) for path in self._places()]
        return outputs


class _PullInputSpec(BaseInterfaceInputSpec):
    image = File(exists=True, mandatory=True, desc="image")
    labels = File(exists=True, mandatory=True, desc="its label map")
    probseg = File(exists=True, desc="probabilities of all labels of the table, 4D")
    table = File(exists=True, mandatory=True, desc="label table, dseg.tsv")
    grid = File(exists=True, mandatory=True, desc="image on the grid to bring them to")
    places = traits.List(File(exists=True), mandatory=True, desc="of all grids, see Register")
    which = traits.Int(0, usedefault=True, desc="number of this grid among them")
    version = traits.Str(__version__, usedefault=True, desc="of this package")


class _PullOutputSpec(TraitedSpec):
    labels = File(exists=True)
    image = File(exists=True)


class Resample(SimpleInterface):
    """Labels (from their probabilities, or each label's share) and image on another grid."""

    input_spec = _PullInputSpec
    output_spec = _PullOutputSpec

    def _run_interface(self, runtime):
        folder = Path(runtime.cwd)
        table, grid = LabelTable.read(self.inputs.table), read_grid(self.inputs.grid)
        places = np.load(self.inputs.places[self.inputs.which], mmap_mode="r")
        if isdefined(self.inputs.probseg):
            _, posteriors = read_posteriors([self.inputs.probseg], list(table.codes))
            resampled = resample_probabilities(posteriors, places, grid, table)
        else:
            resampled = resample_labels(read_label_map(self.inputs.labels, table), places, grid)
        self._results["labels"] = str(write_label_map(resampled, folder / "pulled_dseg.nii.gz"))
        image, _ = read_again(self.inputs.image)
        warped = resample_image(image, places, grid)
        self._results["image"] = str(write_volume(warped, grid, folder / "warped_T1w.nii.gz"))
        return runtime
