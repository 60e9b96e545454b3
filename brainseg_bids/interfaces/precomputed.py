# SPDX-License-Identifier: Apache-2.0
"""Brain mask and tissues as sMRIPrep and fMRIPrep take them over."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    traits,
)

from brainseg_bids import __version__
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.documents import InputError
from brainseg_bids.images import (
    read_label_map,
    read_posteriors,
    write_mask,
    write_volume,
)

TISSUES = {"GM": (8, 9, 11), "WM": (2, 10), "CSF": (3,)}
"""sMRIPrep's tissues in its order (its ``dseg`` counts them from 1), and the codes of BIDS'
standard label table that are in each: the brainstem is white matter, as FSL's FAST has it."""


class _PrecomputedInputSpec(BaseInterfaceInputSpec):
    labels = File(exists=True, mandatory=True, desc="label map")
    probseg = File(exists=True, mandatory=True, desc="probabilities of all labels, 4D")
    table = File(exists=True, mandatory=True, desc="label table, dseg.tsv")
    version = traits.Str(__version__, usedefault=True, desc="of this package")


class _PrecomputedOutputSpec(TraitedSpec):
    mask = File(exists=True)
    tissue = File(exists=True, desc="1 grey matter, 2 white matter, 3 CSF")
    gm = File(exists=True)
    wm = File(exists=True)
    csf = File(exists=True)


class Precomputed(SimpleInterface):
    """Mask, tissues and their probabilities within the mask.

    All on axes turned towards R, A, S: sMRIPrep turns its T1w reference so before it looks for
    these, and multiplies arrays. Nothing is interpolated.
    """

    input_spec = _PrecomputedInputSpec
    output_spec = _PrecomputedOutputSpec

    def _run_interface(self, runtime):
        folder = Path(runtime.cwd)
        table = LabelTable.read(self.inputs.table, name="brainseg")
        labels = read_label_map(self.inputs.labels, table)
        grid, turned = labels.grid.to_ras(), labels.grid.array_to_ras
        mask = labels.brain_mask()
        self._results["mask"] = str(write_mask(turned(mask), grid, folder / "mask.nii.gz"))
        where, posteriors = read_posteriors([self.inputs.probseg], list(table.codes))
        if not where.is_close(labels.grid):
            raise InputError(f"{self.inputs.probseg}: lies on another grid than the labels.")
        sums = {name: np.zeros(labels.grid.shape, np.float32) for name in TISSUES}
        for code, posterior in posteriors:
            for name, mappings in TISSUES.items():
                if table[code].mapping in mappings:
                    sums[name] += posterior
        tissue = np.zeros(labels.grid.shape, np.uint8)
        for number, (name, mappings) in enumerate(TISSUES.items(), start=1):
            codes = [label.index for label in table if label.mapping in mappings]
            tissue[np.isin(labels.voxels, codes) & mask] = number
            share = np.where(mask, np.clip(sums.pop(name), 0, 1), 0)
            path = folder / f"{name.lower()}_probseg.nii.gz"
            self._results[name.lower()] = str(write_volume(turned(share), grid, path))
        # A uint8 image is what write_mask writes.
        path = folder / "tissue_dseg.nii.gz"
        self._results["tissue"] = str(write_mask(turned(tissue), grid, path))
        return runtime
