# SPDX-License-Identifier: Apache-2.0
"""Our own network as a source of labels: nothing else has to be installed."""

from __future__ import annotations

import json
from pathlib import Path

from nipype.interfaces.base import File, traits

from brainseg_bids import __version__
from brainseg_bids.interfaces.segment import PREDICT, check_model
from brainseg_bids.interfaces.tools._failures import ToolError, log_tail
from brainseg_bids.interfaces.tools._process import Ended
from brainseg_bids.interfaces.tools.base import Tool, ToolInputSpec, ToolInterface
from brainseg_bids.nets.bundle import DEFAULT_MODEL, ModelBundle, find_bundle

OURS = "brainseg: ERROR: "


class _ModelInputSpec(ToolInputSpec):
    image = File(exists=True, mandatory=True, argstr="--image %s", position=0)
    model = traits.Str(DEFAULT_MODEL, usedefault=True, argstr="--model %s", position=1)
    # Not told to the program: a model changed in place must not be taken from Nipype's cache.
    model_digest = traits.Str("", usedefault=True, desc="SHA-256 of the bundle")
    version = traits.Str(__version__, usedefault=True, desc="of this package")
    labels = traits.Str("dseg.nii.gz", usedefault=True, argstr="--labels %s", position=2)
    # Not compressed: labels are read from it one after another.
    probseg = traits.Str("probseg.nii", usedefault=True, argstr="--probseg %s", position=3)
    report = traits.Str("report.json", usedefault=True, argstr="--report %s", position=4)
    device = traits.Enum(
        "auto", "cpu", "cuda", "mps", usedefault=True, nohash=True, argstr="--device %s",
        position=5,
    )  # fmt: skip
    test_time_flips = traits.Bool(
        argstr="--test-time-flips", position=7, desc="average with the mirror image"
    )
    threads = traits.Int(1, usedefault=True, nohash=True, argstr="--threads %d", position=6)


class Model(ToolInterface):
    """Run ``brainseg_bids.programs.segment`` with probabilities."""

    input_spec = _ModelInputSpec
    name = "model"
    labels_file = "dseg.nii.gz"

    def prepare(self, folder: Path) -> None:
        for name in ("dseg.nii.gz", "probseg.nii", "report.json"):
            (folder / name).unlink(missing_ok=True)

    def posterior_files(self, folder: Path) -> dict[int, Path]:
        """One 4D file; its last axis is in the order of the model's table."""
        table = ModelBundle.read(find_bundle(self.inputs.model)).table
        return {int(code): folder / "probseg.nii" for code in table.codes}

    def facts(self, folder: Path) -> dict:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        check_model(self.inputs.model, self.inputs.model_digest or report["model_digest"], report)
        return {
            "ToolVersion": __version__,
            "Model": report["model"],
            "ModelDigest": report["model_digest"],
            "Device": report["metadata"]["Device"],
            "Warnings": report["metadata"]["Warnings"],
        }

    def _failure(self, ended: Ended, log: Path) -> ToolError:
        # What our own program says is a message for the user already.
        for line in reversed(log_tail(log)):
            if line.startswith(OURS) and not ended.timed_out:
                return ToolError(line.removeprefix(OURS))
        return super()._failure(ended, log)


TOOL = Tool(
    name="model",
    program=PREDICT,
    regions=frozenset({"head", "brain"}),
    same_grid=True,
    posteriors=True,
    licence="Apache-2.0",
    about="this app's own network",
    how_to_get="It comes with this package; install it again: pip install brainseg-bids.",
    # For whom asks before a model is chosen, as batch scripts do: what a 256³ head may take
    # (docs/performance.md), and bytes of 42 labels. Then as
    # `brainseg_bids.stages.models.predicted_gib` has it.
    mem_base_gb=4.0,
    mem_gb_per_mvox=0.05,
    max_threads=64,
    gpu=True,
    existing=("{bids}*_seg-brainseg_dseg.nii.gz",),
    interface=Model,
)
