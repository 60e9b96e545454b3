# SPDX-License-Identifier: Apache-2.0
"""Labels as FreeSurfer's programs read them: MGZ on the image's own grid, and colour tables."""

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
from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.images import read_label_map, write_mgz


class _FreeSurferExportInputSpec(BaseInterfaceInputSpec):
    labels = File(exists=True, mandatory=True, desc="label map")
    table = File(exists=True, mandatory=True, desc="its label table, dseg.tsv")
    version = traits.Str(__version__, usedefault=True, desc="of this package")


class _FreeSurferExportOutputSpec(TraitedSpec):
    aseg = File(exists=True, desc="labels that FreeSurfer has, MGZ")
    aseg_colours = File(exists=True, desc="their colour table")
    head = File(exists=True, desc="all labels, MGZ")
    head_colours = File(exists=True, desc="their colour table")


class FreeSurferExport(SimpleInterface):
    """Two volumes: ``aseg`` with FreeSurfer's own codes alone, ``head`` with all.

    Codes of the head (5xx) are others' in FreeSurfer: 502 is its right CA1. A program that
    looked them up in FreeSurfer's own table would take an artery for hippocampus, so they are
    in a volume of their own, with a colour table that has to be named.
    """

    input_spec = _FreeSurferExportInputSpec
    output_spec = _FreeSurferExportOutputSpec

    def _run_interface(self, runtime):
        folder = Path(runtime.cwd)
        labels = read_label_map(
            self.inputs.labels, LabelTable.read(self.inputs.table, name="brainseg")
        )
        for name, some in (("aseg", freesurfer_labels(labels)), ("head", labels)):
            self._results[name] = str(write_mgz(some, folder / f"{name}.mgz"))
            colours = folder / f"{name}_LUT.txt"
            colours.write_text(colour_table(some.table), encoding="utf-8")
            self._results[f"{name}_colours"] = str(colours)
        return runtime


def freesurfer_labels(labels: LabelMap) -> LabelMap:
    """What FreeSurfer's segmentations have labels for; the rest becomes 0.

    A label is FreeSurfer's if the crosswalk from FreeSurfer has its code and leaves it as it is.
    """
    known = Crosswalk.packaged("freesurfer", "fullhead").pairs
    kept = [code for code in map(int, labels.table.codes) if code == 0 or known.get(code) == code]
    table = labels.table.subset(kept, name="aseg")
    voxels = np.where(np.isin(labels.voxels, kept), labels.voxels, 0)
    return LabelMap(voxels, labels.grid, table)


def colour_table(table: LabelTable) -> str:
    """Text in the format of ``FreeSurferColorLUT.txt``: code, name, red, green, blue, 0.

    >>> from brainseg_bids.anatomy.labels import Label
    >>> demo = LabelTable([Label(0, "Background", "#000000"), Label(17, "Left-Hippocampus",
    ...     "#dcd814")], name="demo")
    >>> print(colour_table(demo).splitlines()[-1])
    17   Left-Hippocampus                            220 216  20   0
    """
    lines = [
        f"# Colours of label table {table.name}, in the format of FreeSurferColorLUT.txt",
        f"#{'No.':<4}{'Label Name:':<44}{'R':>3} {'G':>3} {'B':>3} {'A':>3}",
    ]
    lines += [
        f"{label.index:<4} {'Unknown' if label.index == 0 else label.name:<43}"
        + " ".join(f"{round(255 * value):>3}" for value in label.rgb)
        + "   0"
        for label in table
    ]
    return "\n".join(lines) + "\n"
