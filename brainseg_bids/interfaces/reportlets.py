# SPDX-License-Identifier: Apache-2.0
"""Pictures for the report."""

from __future__ import annotations

from pathlib import Path

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
)

from brainseg_bids.anatomy.labels import LabelTable
from brainseg_bids.volumes import read_label_map, read_volume


class _DrawLabelsInputSpec(BaseInterfaceInputSpec):
    image = File(exists=True, mandatory=True, desc="what was segmented")
    labels = File(exists=True, mandatory=True, desc="label map on the image's grid")
    table = File(exists=True, mandatory=True, desc="label table, dseg.tsv")


class _DrawLabelsOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="PNG")


class DrawLabels(SimpleInterface):
    """Labels over the image, in three planes."""

    input_spec = _DrawLabelsInputSpec
    output_spec = _DrawLabelsOutputSpec

    def _run_interface(self, runtime):
        from brainseg_bids.reports.figures import draw_segmentation  # late: matplotlib

        image, _ = read_volume(self.inputs.image)
        table = LabelTable.read(self.inputs.table, name="brainseg")
        labels = read_label_map(self.inputs.labels, table)
        path = Path(runtime.cwd) / "labels.png"
        self._results["out_file"] = str(draw_segmentation(image, labels, path))
        return runtime
