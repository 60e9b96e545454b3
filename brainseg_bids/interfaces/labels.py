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
    traits,
)

from brainseg_bids.anatomy.crosswalk import Crosswalk
from brainseg_bids.anatomy.intracranial import NAME as INTRACRANIAL
from brainseg_bids.anatomy.intracranial import Intracranial, intracranial
from brainseg_bids.anatomy.labelmap import LabelMap
from brainseg_bids.anatomy.labels import LabelTable, count_codes
from brainseg_bids.images import read_again, read_label_map, write_label_map, write_mask

INSIDE_COLUMNS = ("percent_of_intracranial", "note")
"""Of heads only."""
CONFIDENCE_COLUMNS = ("confidence", "confidence_threshold", "low_confidence")
SEGMENTATION_COLUMNS = ("soft_volume_mm3", *CONFIDENCE_COLUMNS)
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
    report = File(
        exists=True, desc="of the segmentation: confidence and probability of each structure"
    )
    image = File(exists=True, desc="that was labelled")
    inside = traits.Bool(True, usedefault=True, desc="with a row of the inside of the skull")
    stripped = traits.Bool(False, usedefault=True, desc="whether its metadata say skull-stripped")


class _VolumesOutputSpec(_FileOutputSpec):
    facts = File(exists=True, desc="why there is no intracranial volume, or nothing: JSON")


class Volumes(_FromLabels):
    """Voxels and mm³ of each label of the table but background, and of the inside of the skull."""

    input_spec = _VolumesInputSpec
    output_spec = _VolumesOutputSpec

    def _write(self, labels: LabelMap, folder: Path) -> Path:
        report = None
        if isinstance(self.inputs.report, str):
            report = json.loads(Path(self.inputs.report).read_text(encoding="utf-8"))
        facts, inside = {}, None
        if self.inputs.inside:
            image = self.inputs.image
            voxels = read_again(image)[0] if isinstance(image, str) else None
            inside = intracranial(labels, voxels, stripped=self.inputs.stripped)
            facts["NoIntracranialVolume"] = inside.why_none
        (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
        self._results["facts"] = str(folder / "facts.json")
        return write_volumes(labels, folder / "volumes_morph.tsv", inside, report)


def write_volumes(
    labels: LabelMap, path: Path, inside: Intracranial | None, report: Mapping | None = None
) -> Path:
    """Write the volumes table; a label that is absent has 0.

    Parameters
    ----------
    labels : LabelMap
    path : Path
    inside : Intracranial or None
        Of these labels; it adds its row and `INSIDE_COLUMNS`.
    report : mapping, optional
        ``confidence``, rows with the ``index``, ``confidence`` and ``threshold`` of a label;
        ``soft_voxels``, sums of probabilities by code. It adds `SEGMENTATION_COLUMNS`.
    """
    from brainseg_bids.reports.tables import write_rows  # late: pandas

    counts, voxel_mm3 = count_codes(labels.voxels), labels.grid.voxel_volume_mm3
    percent = 100 / inside.n_voxels if inside and inside.n_voxels else None
    told = report or {}
    confidence = {row["index"]: row for row in told.get("confidence", [])}
    soft = {int(code): voxels for code, voxels in told.get("soft_voxels", {}).items()}

    def row(index: object, name: str, side: str, n: int | None, soft_voxels: float | None) -> dict:
        n_inside = inside.n_inside(index) if inside else None
        return {
            "index": index,
            "name": name,
            "hemisphere": side,
            "n_voxels": "n/a" if n is None else n,
            "volume_mm3": _product(n, voxel_mm3, 3),
            "percent_of_intracranial": _product(n_inside, percent, 4),
            "soft_volume_mm3": _product(soft_voxels, voxel_mm3, 3),
            **_confidence(confidence.get(index)),
            "note": "n/a",
        }

    rows = [
        row(lab.index, lab.name, lab.hemisphere, counts.get(lab.index, 0), soft.get(lab.index))
        for lab in labels.table
        if lab.index
    ]
    if inside:
        soft_inside = inside.soft_voxels(soft, counts) if soft else None
        last = row("n/a", INTRACRANIAL, "none", inside.n_voxels, soft_inside)
        of_itself = _product(inside.n_voxels, percent, 4)
        note = inside.why_none or "n/a"
        rows.append(last | {"percent_of_intracranial": of_itself, "note": note})
    left_out = (*(SEGMENTATION_COLUMNS * (report is None)), *(INSIDE_COLUMNS * (inside is None)))
    return write_rows(path, [name for name in rows[0] if name not in left_out], rows)


def _product(value: float | None, factor: float | None, digits: int) -> object:
    """A cell; n/a if one of the two is not known."""
    return "n/a" if value is None or factor is None else round(value * factor, digits)


def _confidence(row: Mapping | None) -> dict[str, object]:
    """`CONFIDENCE_COLUMNS` of a label.

    >>> list(_confidence({"confidence": 0.62, "threshold": 0.7}).values())
    [0.62, 0.7, 'yes']
    >>> list(_confidence(None).values())
    ['n/a', 'n/a', 'n/a']
    """
    cells: list[object] = ["n/a"] * len(CONFIDENCE_COLUMNS)
    if row is not None:
        confidence, threshold = row["confidence"], row["threshold"]
        cells[0] = confidence
        if threshold is not None:
            cells[1:] = [threshold, "yes" if confidence < threshold else "no"]
    return dict(zip(CONFIDENCE_COLUMNS, cells, strict=True))
