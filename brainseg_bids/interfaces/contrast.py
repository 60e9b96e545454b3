# SPDX-License-Identifier: Apache-2.0
"""How the labels of an image look."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from pathlib import Path

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    traits,
)

from brainseg_bids import __version__
from brainseg_bids.anatomy.fill import without_fill
from brainseg_bids.anatomy.labels import LabelTable, UnknownLabelError
from brainseg_bids.contrast.measured import ContrastStatistics
from brainseg_bids.contrast.statistics import measure
from brainseg_bids.documents import InputError
from brainseg_bids.images import noting, read_again, read_grid, read_volume, voxel_hash
from brainseg_bids.interfaces.headlabels import LEAST_SHARED, read_labels, shared_box

COLUMNS = (
    "index",
    "name",
    "n_voxels",
    "n_interior",
    "location",
    "scale",
    "median",
    "mad",
    "components",
    "grain_mm",
    "fit",
    "source",
)


class _MeasureInputSpec(BaseInterfaceInputSpec):
    image = File(exists=True, mandatory=True, desc="what is measured")
    labels = File(exists=True, mandatory=True, desc="label map, the tool's codes")
    tool = traits.Str(mandatory=True, desc="whose codes")
    kind = traits.Enum("auto", "magnitude", "ratio", usedefault=True, desc="of image")
    stated_stripped = traits.Enum(
        None, True, False, usedefault=True, desc="SkullStripped of the image's metadata"
    )
    # Another version may measure otherwise: nothing is taken from Nipype's cache then.
    version = traits.Str(__version__, usedefault=True, desc="of this package")


class _MeasureOutputSpec(TraitedSpec):
    statistics = File(exists=True, desc="one row per label, TSV")
    facts = File(exists=True, desc="all of it, and what the run has to tell: JSON")


class MeasureContrast(SimpleInterface):
    """Statistics of an image, label by label."""

    input_spec = _MeasureInputSpec
    output_spec = _MeasureOutputSpec

    def _run_interface(self, runtime):
        folder, began_s = Path(runtime.cwd), time.monotonic()
        path = self.inputs.image
        with noting() as notes:
            image, grid = read_volume(path)
            labels, resampled = labels_on(grid, self.inputs.labels, self.inputs.tool, path)
        try:
            found = measure(
                image, labels, kind=self.inputs.kind, stripped=self.inputs.stated_stripped
            )
        except ValueError as error:
            raise InputError(f"{path}: {error}") from error
        if resampled:
            found = replace(found, warnings=(resampled, *found.warnings))
        facts = {
            "Seconds": round(time.monotonic() - began_s, 2),
            "VoxelHash": voxel_hash(image, grid),
            "SkullStripped": found.stripped,
            "Warnings": [*notes, *(f"{Path(path).name}: {note}" for note in found.warnings)],
            "Statistics": asdict(found),
        }
        (folder / "facts.json").write_text(json.dumps(facts, allow_nan=False), encoding="utf-8")
        table = LabelTable.packaged(found.table)
        self._results |= {
            "statistics": str(write_statistics(found, table, folder / "contrast_morph.tsv")),
            "facts": str(folder / "facts.json"),
        }
        return runtime


def labels_on(grid, labels: str | Path, tool: str, image: str | Path):
    """Labels in codes of ``fullhead`` on an image's grid, and a sentence if they were resampled.

    Raises
    ------
    InputError
        If the map has unknown codes or belongs to another image.
    """
    own = read_grid(labels)
    if shared_box(own, grid) < LEAST_SHARED:
        raise InputError(
            f"{labels}: this map lies elsewhere than {image}. It belongs to another image, or "
            "its header is wrong."
        )
    try:
        placed = read_labels(grid, tool=tool, labels=str(labels))
    except UnknownLabelError as error:
        raise InputError(
            f"{error}. Is it in codes of {tool}? Give it under its tool's name: -d NAME=FOLDER."
        ) from error
    same = own.is_close(grid, tolerance_mm=0.01)
    return placed, "" if same else (
        "The label map lies on another grid; it was resampled to the image's by its affine."
    )


def write_statistics(found: ContrastStatistics, table: LabelTable, path: Path) -> Path:
    """One row per label that the map has."""
    from brainseg_bids.reports.tables import write_rows  # late: pandas

    rows = []
    for label in table:
        if label.name not in found.labels:
            continue
        own = found[label.name]
        numbers = (own.location, own.scale, own.median, own.mad)
        rows.append(
            [
                label.index,
                label.name,
                own.voxels,
                own.interior_voxels,
                *(f"{number:.6g}" for number in numbers),
                len(own.components),
                "n/a" if own.grain_mm is None else f"{own.grain_mm:.3g}",
                f"{own.fit:.3g}",
                own.source,
            ]
        )
    return write_rows(path, COLUMNS, rows)


class _DrawContrastInputSpec(BaseInterfaceInputSpec):
    image = File(exists=True, mandatory=True)
    labels = File(exists=True, mandatory=True)
    tool = traits.Str(mandatory=True)
    facts = File(exists=True, mandatory=True, desc="of MeasureContrast")


class _DrawContrastOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="PNG")


class DrawContrast(SimpleInterface):
    """Histograms, smooth field, locations."""

    input_spec = _DrawContrastInputSpec
    output_spec = _DrawContrastOutputSpec

    def _run_interface(self, runtime):
        from brainseg_bids.reports.contrast_figures import draw_contrast  # late: matplotlib

        image, grid = read_again(self.inputs.image)
        labels, _ = labels_on(grid, self.inputs.labels, self.inputs.tool, self.inputs.image)
        said = json.loads(Path(self.inputs.facts).read_text(encoding="utf-8"))["Statistics"]
        found = ContrastStatistics.from_json(json.dumps(said))
        image, _ = without_fill(image)  # as it was measured
        path = Path(runtime.cwd) / "contrast.png"
        self._results["out_file"] = str(draw_contrast(path, image, labels, found))
        return runtime
