# SPDX-License-Identifier: Apache-2.0
"""An upsampled label map on a page."""

from __future__ import annotations

from pathlib import Path

from brainseg_bids.bids.names import sidecar
from brainseg_bids.documents import read_json
from brainseg_bids.reports.image_section import (
    image_section,
    made_by,
    metadata_of,
    no_asymmetry,
    worded,
    written,
)
from brainseg_bids.reports.page import Section
from brainseg_bids.reports.volume_table import read_intracranial, read_volumes


def section(job, *, output_dir: Path) -> Section:
    """One label map at finer voxels, from the files that its run left."""
    metadata = read_json(sidecar(job.outputs["labels"]))
    quality = metadata["Certificate"]
    return image_section(
        title=job.title,
        source=job.scan.path.relative_to(output_dir).as_posix(),
        figure=job.outputs["figure"],
        volumes=read_volumes(job.outputs["volumes"], output_dir, "fullhead"),
        intracranial=read_intracranial(job.outputs["volumes"]),
        run={
            "Method": metadata.get("Method"),
            "Holes filled": worded(metadata.get("HolesFilledVoxels"), "{:,} voxels"),
            "Islands removed": worded(metadata.get("IslandsRemovedVoxels"), "{:,} voxels"),
            "Time": worded(metadata.get("Seconds"), "{:.0f} s"),
            "Dice when taken back": worded(quality["round_trip_mean_dice"], "{:.4f}"),
            "Voxels equal when taken back": worded(quality["round_trip_equal_voxels"], "{:.2%}"),
            "Largest change of a volume": _largest_change(quality),
            **made_by(metadata),
        },
        warnings=metadata.get("ToLookAt", []),
        outputs=written(job.outputs, output_dir),
        what="Label map",
        counted=("label map", "upsampled"),
        caption="Above the label map, below the same at finer voxels.",
        no_asymmetry=no_asymmetry(*_maps_of_the_model(job.scan.path)),
    )


def _largest_change(quality: dict) -> str:
    """The label whose volume has changed most."""
    changed = [
        row for row in quality["labels"] if row["index"] and row["volume_change"] is not None
    ]
    most = max(changed, key=lambda row: abs(row["volume_change"]), default=None)
    return f"{most['volume_change']:+.1%} ({most['name']})" if most else ""


def _maps_of_the_model(merged: Path) -> list[Path]:
    """The network's label map that a merged one was made of, if it was."""
    metadata = metadata_of(merged)
    if "model" not in (metadata.get("HeadTool"), metadata.get("BrainTool")):
        return []
    return [merged.with_name(merged.name.replace("_seg-fullhead_", "_seg-model_"))]
