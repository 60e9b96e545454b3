# SPDX-License-Identifier: Apache-2.0
"""``Segment``: the network, in a process of its own."""

from __future__ import annotations

import json
import shlex
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from nipype.interfaces.base import CommandLine, CommandLineInputSpec, File, TraitedSpec, traits

from brainseg_bids import __version__
from brainseg_bids.lifetime import for_children

PREDICT = (sys.executable, "-m", "brainseg_bids.programs.segment")


class SegmentationError(RuntimeError):
    """The process ended without a result; the message is one line for the user."""


class _SegmentInputSpec(CommandLineInputSpec):
    image = File(exists=True, mandatory=True, argstr="--image %s", desc="image, 3D")
    model = traits.Str(mandatory=True, argstr="--model %s", desc="bundle folder")
    ensemble = traits.List(traits.Str, argstr="--ensemble %s", desc="further bundle folders")
    test_time_flips = traits.Bool(argstr="--test-time-flips", desc="average with the mirror image")
    # Not told to the program: a model changed in place must not be taken from Nipype's cache.
    model_digest = traits.Str(mandatory=True, desc="SHA-256 of the bundle")
    ensemble_digests = traits.List(traits.Str, desc="SHA-256 of the further bundles")
    # Nor this: another version may segment otherwise.
    version = traits.Str(__version__, usedefault=True, desc="of this package")
    labels = File("dseg.nii.gz", usedefault=True, argstr="--labels %s", desc="to be written")
    probseg = File(argstr="--probseg %s", desc="to be written, 4D")
    entropy = File(argstr="--entropy %s", desc="to be written")
    report = File("report.json", usedefault=True, argstr="--report %s", desc="to be written")
    device = traits.Str("auto", usedefault=True, nohash=True, argstr="--device %s")
    threads = traits.Int(1, usedefault=True, nohash=True, argstr="--threads %d")
    # Nipype counts a node with this input as one that needs a GPU slot.
    use_gpu = traits.Bool(False, usedefault=True, nohash=True)


class _SegmentOutputSpec(TraitedSpec):
    labels = File(exists=True, desc="codes on the image's own grid, int16")
    probseg = File(desc="probabilities, last axis is the label")
    entropy = File(desc="of the probabilities, in bits")
    report = File(exists=True, desc="facts: time, memory, device, warnings")


class OwnProgram(CommandLine):
    """A program of this app, which ends when the process that runs this step is killed."""

    @property
    def cmdline(self) -> str:
        # Nipype starts a shell, and a shell in between would live on.
        return f"exec {super().cmdline}"

    def _run_interface(self, runtime, correct_return_codes=(0,)):
        runtime.environ.update(for_children({}))
        return super()._run_interface(runtime, correct_return_codes)


class Segment(OwnProgram):
    """Run the segmentation program on one image.

    Parameters
    ----------
    program : sequence of str
        Program and first arguments; tests put a stand-in here.
    """

    input_spec = _SegmentInputSpec
    output_spec = _SegmentOutputSpec
    _terminal_output = "file_split"

    def __init__(self, program: tuple[str, ...] = PREDICT, **inputs) -> None:
        super().__init__(command=shlex.join(program), **inputs)

    def _format_arg(self, name, spec, value):
        if name == "model":  # a path may hold spaces
            value = shlex.quote(value)
        if name == "ensemble":
            value = [shlex.quote(path) for path in value]
        return super()._format_arg(name, spec, value)

    def _run_interface(self, runtime, correct_return_codes=(0,)):
        threads = str(self.inputs.threads)
        for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            runtime.environ[variable] = threads
        runtime = super()._run_interface(runtime, correct_return_codes)
        if runtime.returncode not in correct_return_codes:
            image = Path(self.inputs.image)
            raise SegmentationError(_reason(image, runtime.returncode, runtime.stderr))
        report = json.loads((Path(runtime.cwd) / self.inputs.report).read_text(encoding="utf-8"))
        check_model(self.inputs.model, self.inputs.model_digest, report)
        digests = self.inputs.ensemble_digests or ()
        # The ensemble's report may be of a program that says nothing of it.
        for model, digest, one in zip(
            self.inputs.ensemble or (), digests, report.get("ensemble", ()), strict=False
        ):
            check_model(model, digest, one)
        return runtime

    def _list_outputs(self):
        outputs = self.output_spec().get()
        for name in ("labels", "probseg", "entropy", "report"):
            value = getattr(self.inputs, name)
            if isinstance(value, str):
                outputs[name] = str(Path(value).absolute())
        return outputs


def check_model(model: str, digest: str, report: Mapping) -> None:
    """Raise `SegmentationError` if another bundle than the planned one has been read."""
    if report.get("model_digest", digest) != digest:
        raise SegmentationError(f"{model}: the model was changed meanwhile. Run it again.")


def _reason(image: Path, code: int, stderr: str) -> str:
    """One line from how a process ended and what it said.

    >>> _reason(Path("T1w.nii.gz"), 1, "T1w: 10 %\\nbrainseg: ERROR: T1w.nii.gz: is empty.")
    'T1w.nii.gz: is empty.'
    """
    # A shell in between reports signal n as 128 + n.
    number = -code if code < 0 else code - 128
    if number == signal.SIGKILL:
        return (
            f"{image}: the segmentation was killed, most likely because memory ran out. "
            "Give the job more memory, or run fewer at a time with --nprocs or --mem."
        )
    said = [line.strip() for line in (stderr or "").splitlines() if line.strip()]
    for line in reversed(said):
        if line.startswith("brainseg: ERROR: "):
            return line.removeprefix("brainseg: ERROR: ")
    if number > 0:
        if number == signal.SIGBUS:
            return f"{image}: the scratch disk is full. Make room, or choose another with -w."
        name = signal.Signals(number).name if number in set(signal.Signals) else number
        return f"{image}: the segmentation was ended by signal {name}. Run it again."
    last = said[-1] if said else f"exit code {code} without a message"
    return f"{image}: the segmentation failed ({last})."
