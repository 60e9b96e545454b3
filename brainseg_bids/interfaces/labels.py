# SPDX-License-Identifier: Apache-2.0
"""What follows from a label map: tissues, brain mask, volumes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
)

from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable, count_codes
from brainseg_bids.images import read_label_map, write_label_map, write_mask

COLUMNS = ("index", "name", "hemisphere", "n_voxels", "volume_mm3")
CONFIDENCE_COLUMNS = ("confidence", "confidence_threshold", "low_confidence")
"""Of segmentations only."""


class _LabelsInputSpec(BaseInterfaceInputSpec):
    labels = File(exists=True, mandatory=True, desc="label map")
    table = File(exists=True, mandatory=True, desc="its label table, dseg.tsv")


class _FileOutputSpec(TraitedSpec):
    out_file = File(exists=True)


class _FromLabels(SimpleInterface):
    input_spec = _LabelsInputSpec
    output_spec = _FileOutputSpec

    def _run_interface(self, runtime):
        table = LabelTable.read(self.inputs.table, name="brainseg")
        labels = read_label_map(self.inputs.labels, table)
        self._results["out_file"] = str(self._write(labels, Path(runtime.cwd)))
        return runtime

    def _write(self, labels: LabelMap, folder: Path) -> Path:
        raise TypeError("use Tissue, BrainMask or Volumes")


class Tissue(_FromLabels):
    """Labels as BIDS' standard tissues."""

    def _write(self, labels: LabelMap, folder: Path) -> Path:
        tissue = Crosswalk.packaged("brainseg", "tissue").translate(labels)
        return write_label_map(tissue, folder / "tissue_dseg.nii.gz")


class BrainMask(_FromLabels):
    """Brain with its ventricles, without the fluid around."""

    def _write(self, labels: LabelMap, folder: Path) -> Path:
        return write_mask(labels.brain_mask(), labels.grid, folder / "brain_mask.nii.gz")


class _VolumesInputSpec(_LabelsInputSpec):
    report = File(exists=True, desc="of the segmentation, with the confidence of each structure")


class Volumes(_FromLabels):
    """Voxels and mm³ of each label of the table; background is left out."""

    input_spec = _VolumesInputSpec

    def _write(self, labels: LabelMap, folder: Path) -> Path:
        confidence = None
        if isinstance(self.inputs.report, str):
            report = json.loads(Path(self.inputs.report).read_text(encoding="utf-8"))
            confidence = {row["index"]: row for row in report.get("confidence", [])}
        return write_volumes(labels, folder / "volumes_morph.tsv", confidence)


def write_volumes(
    labels: LabelMap, path: Path, confidence: Mapping[int, Mapping] | None = None
) -> Path:
    """Write the volumes table; a label that is absent has 0.

    Parameters
    ----------
    labels : LabelMap
    path : Path
    confidence : mapping, optional
        By code, ``confidence`` and ``threshold``; adds `CONFIDENCE_COLUMNS`.
    """
    from brainseg_bids.reports.tables import write_rows  # late: pandas

    counts, volumes_mm3 = count_codes(labels.voxels), labels.volumes_mm3()
    rows = [
        (
            label.index,
            label.name,
            label.hemisphere,
            counts.get(label.index, 0),
            round(volumes_mm3[label.index], 3),
            *([] if confidence is None else _confidence(confidence.get(label.index))),
        )
        for label in labels.table
        if label.index
    ]
    columns = COLUMNS if confidence is None else COLUMNS + CONFIDENCE_COLUMNS
    return write_rows(path, columns, rows)


def _confidence(row: Mapping | None) -> list[object]:
    """`CONFIDENCE_COLUMNS` of a label.

    >>> _confidence({"confidence": 0.62, "threshold": 0.7}), _confidence(None)
    ([0.62, 0.7, 'yes'], ['n/a', 'n/a', 'n/a'])
    """
    if row is None:
        return ["n/a"] * len(CONFIDENCE_COLUMNS)
    confidence, threshold = row["confidence"], row["threshold"]
    if threshold is None:
        return [confidence, "n/a", "n/a"]
    return [confidence, threshold, "yes" if confidence < threshold else "no"]
