# SPDX-License-Identifier: Apache-2.0
"""Registration to a template in a process of its own, and what is resampled through it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    CommandLineInputSpec,
    File,
    InputMultiObject,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from brainseg_bids import __version__
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.anatomy.resample import resample_image, resample_labels, resample_probabilities
from brainseg_bids.documents import InputError
from brainseg_bids.images import (
    read_again,
    read_grid,
    read_label_map,
    read_posteriors,
    write_label_map,
    write_volume,
)
from brainseg_bids.interfaces.segment import OwnProgram, _reason
from brainseg_bids.transforms import read_transform, source_coordinates

REGISTER = (sys.executable, "-m", "brainseg_bids.programs.register")
LEAST_BRAIN_DICE = 0.8
"""Of a brain and the template's: what is below is shown to the user."""


class RegistrationError(RuntimeError):
    """The process ended without a result; the message is one line for the user."""


def missing_reason(program: Sequence[str] = REGISTER) -> str:
    """Why a program cannot register; empty if it can, as far as is known before it is run."""
    if tuple(program) != REGISTER or find_spec("ants"):
        return ""
    return f"--output-spaces: antspyx, which registers images, is not installed. {remedy()}"


def remedy(version: tuple[int, ...] = sys.version_info[:2]) -> str:
    """How to have antspyx.

    >>> remedy((3, 13)), remedy((3, 14))[:29]
    ('Install it: pip install antspyx', 'It has no builds for this Pyt')
    """
    if version < (3, 14):
        return "Install it: pip install antspyx"
    return "It has no builds for this Python: take 3.13, or another environment (--tool ants=...)"


class _RegisterInputSpec(CommandLineInputSpec):
    moving = File(exists=True, mandatory=True, argstr="--moving %s", desc="image")
    moving_mask = File(exists=True, argstr="--moving-mask %s", desc="its brain")
    fixed = File(exists=True, mandatory=True, argstr="--fixed %s", desc="template")
    fixed_mask = File(exists=True, argstr="--fixed-mask %s", desc="its brain")
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

    def _format_arg(self, name, spec, value):
        if name == "kind":  # it has brackets
            value = shlex.quote(value)
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
        return outputs


class _ResampleInputSpec(BaseInterfaceInputSpec):
    image = File(exists=True, mandatory=True, desc="image")
    labels = File(exists=True, mandatory=True, desc="its label map")
    probseg = File(exists=True, desc="probabilities of all labels of the table, 4D")
    table = File(exists=True, mandatory=True, desc="label table, dseg.tsv")
    grid = File(exists=True, mandatory=True, desc="image on the grid to bring them to")
    brain = File(exists=True, desc="brain mask on that grid, to judge the transform by")
    transforms = InputMultiObject(
        File(exists=True),
        mandatory=True,
        desc="what points of the grid go through to come to the image, in this order",
    )
    version = traits.Str(__version__, usedefault=True, desc="of this package")


class _ResampleOutputSpec(TraitedSpec):
    labels = File(exists=True)
    image = File(exists=True)
    report = File(exists=True, desc="how well brains fit, JSON")


class Resample(SimpleInterface):
    """Labels (from their probabilities, or each label's share) and image on another grid."""

    input_spec = _ResampleInputSpec
    output_spec = _ResampleOutputSpec

    def _run_interface(self, runtime):
        folder = Path(runtime.cwd)
        table, grid = LabelTable.read(self.inputs.table), read_grid(self.inputs.grid)
        transforms = [read_transform(path) for path in self.inputs.transforms]
        coordinates = source_coordinates(transforms, read_grid(self.inputs.image), grid)
        del transforms
        if isdefined(self.inputs.probseg):
            _, posteriors = read_posteriors([self.inputs.probseg], list(table.codes))
            resampled = resample_probabilities(posteriors, coordinates, grid, table)
        else:
            resampled = resample_labels(
                read_label_map(self.inputs.labels, table), coordinates, grid
            )
        self._results["labels"] = str(write_label_map(resampled, folder / "resampled_dseg.nii.gz"))
        image, _ = read_again(self.inputs.image)
        warped = resample_image(image, coordinates, grid)
        self._results["image"] = str(write_volume(warped, grid, folder / "warped_T1w.nii.gz"))
        report = folder / "report.json"
        report.write_text(json.dumps(self._fit(resampled)))
        self._results["report"] = str(report)
        return runtime

    def _fit(self, resampled: LabelMap) -> dict:
        """How well the brain lies in the template's, if that has a mask."""
        if not isdefined(self.inputs.brain):
            return {}
        mask, grid = read_again(self.inputs.brain)
        if not grid.is_close(resampled.grid, tolerance_mm=0.1):
            raise InputError(
                f"{self.inputs.brain}: lies on another grid than {self.inputs.grid}. Fetch both "
                "again."
            )
        brain, own = mask > 0, resampled.brain_mask()
        dice = round(2 * float((brain & own).sum()) / max(1, int(brain.sum() + own.sum())), 3)
        if dice >= LEAST_BRAIN_DICE:
            return {"BrainDice": dice}
        fault = (
            f"image and template do not lie on each other: Dice of their brains is {dice}, and "
            f"above {LEAST_BRAIN_DICE} if all is well"
        )
        return {"BrainDice": dice, "ToLookAt": [fault]}
