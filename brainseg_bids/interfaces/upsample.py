# SPDX-License-Identifier: Apache-2.0
"""A label map at finer voxels, with its certificate."""

from __future__ import annotations

import json
import time
from pathlib import Path

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from brainseg_bids import __version__
from brainseg_bids.anatomy.certificate import certificate
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.anatomy.upsample import upsample, upsample_membership
from brainseg_bids.volumes import read_label_map, read_membership, write_label_map


class _UpsampleInputSpec(BaseInterfaceInputSpec):
    labels = File(exists=True, mandatory=True, desc="label map")
    table = File(exists=True, mandatory=True, desc="its label table, dseg.tsv")
    top_codes = File(exists=True, desc="most probable labels, by rank")
    top_weights = File(exists=True, desc="their probabilities")
    voxel_size_mm = traits.List(traits.Float(), mandatory=True, desc="one number, or three")
    kernel = traits.Enum("fitted", "linear", "lossless", usedefault=True)
    smoothing_mm = traits.Float(0.0, usedefault=True)
    keep_thin = traits.Bool(False, usedefault=True)
    threads = traits.Int(1, usedefault=True, nohash=True)
    # Another version may do it otherwise: nothing is taken from Nipype's cache then.
    version = traits.Str(__version__, usedefault=True, desc="of this package")


class _UpsampleOutputSpec(TraitedSpec):
    labels = File(exists=True)
    facts = File(exists=True, desc="method, time, certificate: JSON")


class Upsample(SimpleInterface):
    """Bring a label map to finer voxels: from its probabilities if they were kept."""

    input_spec = _UpsampleInputSpec
    output_spec = _UpsampleOutputSpec

    def _run_interface(self, runtime):
        folder, began_s = Path(runtime.cwd), time.monotonic()
        table = LabelTable.read(self.inputs.table)
        labels = read_label_map(self.inputs.labels, table)
        sizes = self.inputs.voxel_size_mm
        grid = labels.grid.with_voxel_size(sizes[0] if len(sizes) == 1 else tuple(sizes))
        # Lossless is a promise about labels, smoothing and the guard work on labels.
        by_labels = (
            self.inputs.kernel == "lossless" or self.inputs.smoothing_mm or self.inputs.keep_thin
        )
        if isdefined(self.inputs.top_codes) and not by_labels:
            top = read_membership(self.inputs.top_codes, self.inputs.top_weights, table)
            finer, method = upsample_membership(top, grid), "probabilities, cubic"
        else:
            method = f"labels, {self.inputs.kernel}"
            finer = upsample(
                labels,
                grid,
                kernel=self.inputs.kernel,
                smoothing_mm=self.inputs.smoothing_mm,
                keep_thin=self.inputs.keep_thin or None,
                threads=self.inputs.threads,
            )
        facts = {
            "Method": method,
            "Seconds": round(time.monotonic() - began_s, 2),
            "Certificate": certificate(labels, finer),
        }
        (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
        self._results["labels"] = str(write_label_map(finer, folder / "finer_dseg.nii.gz"))
        self._results["facts"] = str(folder / "facts.json")
        return runtime
