# SPDX-License-Identifier: Apache-2.0
"""Labels of a head as SimNIBS' tissues."""

from __future__ import annotations

from dataclasses import replace
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
from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.documents import InputError
from brainseg_bids.images import read_label_map, write_label_map

NEEDED = {"bone": ("Bone", "Compact_bone", "Spongy_bone"), "scalp": ("Scalp",)}
"""Tissues without one of which there is no head to mesh."""


class _SimnibsExportInputSpec(BaseInterfaceInputSpec):
    labels = File(exists=True, mandatory=True, desc="label map of a head")
    table = File(exists=True, mandatory=True, desc="its label table, dseg.tsv")
    version = traits.Str(__version__, usedefault=True, desc="of this package")


class _SimnibsExportOutputSpec(TraitedSpec):
    tissues = File(exists=True, desc="the same grid, SimNIBS' codes")


class SimnibsExport(SimpleInterface):
    """Write what ``meshmesh`` reads: tissue codes, placed by a qform, in mm."""

    input_spec = _SimnibsExportInputSpec
    output_spec = _SimnibsExportOutputSpec

    def _run_interface(self, runtime):
        path = self.inputs.labels
        labels = read_label_map(path, LabelTable.read(self.inputs.table))
        tissues = tissues_of(labels, path)
        for what, names in NEEDED.items():
            if not np.isin(tissues.voxels, [tissues.table[name].index for name in names]).any():
                raise InputError(
                    f"{path}: there is no {what} in it, so no head can be meshed. Is the image "
                    "skull-stripped? Leave out --simnibs-export, or give an image of a whole head."
                )
        if tissues.grid.is_sheared:
            raise InputError(
                f"{path}: its grid is sheared, and meshmesh reads the qform, which cannot hold "
                "that. Resample the image to a grid with right angles first."
            )
        # SimNIBS takes every number of a header for mm.
        tissues = replace(tissues, grid=replace(tissues.grid, file_unit="mm"))
        out = write_label_map(tissues, Path(runtime.cwd) / "simnibs_dseg.nii.gz")
        self._results["tissues"] = str(out)
        return runtime


def tissues_of(labels: LabelMap, what: str | Path) -> LabelMap:
    """A label map of a head in SimNIBS' codes; labels are known by their names.

    Raises
    ------
    InputError
        Naming each label in the map for which no tissue is known.
    """
    walk = Crosswalk.packaged("fullhead", "simnibs")
    known = {label.name: walk.pairs[label.index] for label in LabelTable.packaged("fullhead")}
    present = [labels.table[int(code)] for code in np.unique(labels.voxels)]
    unknown = [label for label in present if label.index and label.name not in known]
    if unknown:
        listed = ", ".join(f"{label.index} {label.name}" for label in unknown)
        raise InputError(
            f"{what}: no SimNIBS tissue is known for {listed}. Leave out --simnibs-export, or use "
            "a model whose labels are those of seg-fullhead_dseg.tsv."
        )
    pairs = {label.index: known.get(label.name, 0) for label in present}
    return Crosswalk(pairs, walk.target, name=walk.name).translate(labels, what=str(what))
