# SPDX-License-Identifier: Apache-2.0
"""A label map at finer voxels, with its upsampling_report."""

from __future__ import annotations

import json
import logging
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
from brainseg_bids.anatomy.grid import Grid
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.anatomy.upsample import upsample, upsample_posteriors
from brainseg_bids.anatomy.upsample_cleaning import clean_upsampled
from brainseg_bids.anatomy.upsample_engine import Processor
from brainseg_bids.anatomy.upsampling_report import upsampling_report, upsampling_warnings
from brainseg_bids.images import read_label_map, read_top_posteriors, write_label_map

log = logging.getLogger("brainseg")


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
    # Labels are the same on every device.
    device = traits.Enum("auto", "cpu", "cuda", "mps", usedefault=True, nohash=True)
    # Nipype counts a node with this input as one that needs a GPU slot.
    use_gpu = traits.Bool(
        False, usedefault=True, nohash=True, desc="whether 'auto' may look for a GPU"
    )
    # Another version may do it otherwise: nothing is taken from Nipype's cache then.
    version = traits.Str(__version__, usedefault=True, desc="of this package")


class _UpsampleOutputSpec(TraitedSpec):
    labels = File(exists=True)
    facts = File(exists=True, desc="method, device, time, upsampling_report: JSON")


class Upsample(SimpleInterface):
    """Bring a label map to finer voxels: from its probabilities if they were kept."""

    input_spec = _UpsampleInputSpec
    output_spec = _UpsampleOutputSpec

    def _run_interface(self, runtime):
        folder, began_s = Path(runtime.cwd), time.monotonic()
        labels = read_label_map(self.inputs.labels, LabelTable.read(self.inputs.table))
        sizes = self.inputs.voxel_size_mm
        grid = labels.grid.with_voxel_size(sizes[0] if len(sizes) == 1 else tuple(sizes))
        device = self._device()
        try:
            finer, method = self._finer(labels, grid, device)
        except MemoryError:
            if device == "cpu" or self.inputs.device != "auto":
                raise
            log.warning("memory of %s is too small or in use: upsampling on cpu", device)
            device = "cpu"
            finer, method = self._finer(labels, grid, device)
        facts = {"Method": method, "Device": device}
        if self.inputs.kernel != "lossless":  # whose promise is to give the source back
            finer, done = clean_upsampled(labels, finer)
            facts |= {"HolesFilledVoxels": done.holes, "IslandsRemovedVoxels": done.islands}
        quality = upsampling_report(labels, finer)
        facts |= {
            "Seconds": round(time.monotonic() - began_s, 2),
            "Certificate": quality,
            "ToLookAt": upsampling_warnings(quality),
        }
        (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
        self._results["labels"] = str(write_label_map(finer, folder / "finer_dseg.nii.gz"))
        self._results["facts"] = str(folder / "facts.json")
        return runtime

    def _device(self) -> str:
        """Where to do the sums; PyTorch is imported only where a GPU is asked for or likely."""
        wanted = self.inputs.device
        if wanted != "auto":
            return "cuda" if wanted == "cuda" else "cpu"  # on Apple's, the processor is used
        if not self.inputs.use_gpu:
            return "cpu"
        from brainseg_bids.inference.upsample_device import has_cuda

        return "cuda" if has_cuda() else "cpu"

    def _finer(self, labels: LabelMap, grid: Grid, device: str) -> tuple[LabelMap, str]:
        """The finer map, and how it was made."""
        on_labels, on_posteriors, where = upsample, upsample_posteriors, {}
        if device == "cpu":
            where["engine"] = Processor(self.inputs.threads)
        else:
            from brainseg_bids.inference import upsample_device

            on_labels = upsample_device.upsample_on
            on_posteriors = upsample_device.upsample_posteriors_on
            where["device"] = device
        kernel, smoothing_mm = self.inputs.kernel, self.inputs.smoothing_mm
        # Lossless is a promise about labels, smoothing and the guard work on labels.
        by_labels = kernel == "lossless" or smoothing_mm or self.inputs.keep_thin
        if isdefined(self.inputs.top_codes) and not by_labels:
            top = read_top_posteriors(self.inputs.top_codes, self.inputs.top_weights, labels.table)
            return on_posteriors(top, grid, **where), "probabilities, cubic"
        keep_thin = self.inputs.keep_thin or None
        finer = on_labels(
            labels, grid, kernel=kernel, smoothing_mm=smoothing_mm, keep_thin=keep_thin, **where
        )
        return finer, f"labels, {kernel}"
