# SPDX-License-Identifier: Apache-2.0
"""A segmented image on a page."""

from __future__ import annotations

from pathlib import Path

from brainseg_bids.bids.names import sidecar
from brainseg_bids.documents import read_json
from brainseg_bids.reports.image_section import (
    image_section,
    made_by,
    no_asymmetry,
    no_intracranial,
    viewer_and_rating,
    worded,
    written,
)
from brainseg_bids.reports.page import Section
from brainseg_bids.reports.volume_table import low_confidence, read_intracranial, read_volumes


def section(job, *, output_dir: Path, bids_dir: Path) -> Section:
    """One segmented image, from the files that its run left."""
    metadata = read_json(sidecar(job.outputs["labels"]))
    volumes = read_volumes(job.outputs["volumes"], output_dir, "brainseg")
    intracranial = read_intracranial(job.outputs["volumes"])
    return image_section(
        title=job.scan.title,
        source=job.scan.path.relative_to(bids_dir).as_posix(),
        figure=job.outputs["figure"],
        volumes=volumes,
        intracranial=intracranial,
        run={
            "Model": metadata.get("ModelName"),
            "Model digest": str(metadata.get("ModelDigest", ""))[:12],
            "Time": worded(metadata.get("SegmentationSeconds"), "{:.0f} s"),
            "Peak memory": worded(metadata.get("PeakMemoryGiB"), "{:.1f} GiB"),
            "Device": metadata.get("Device"),
            "Threads": worded(metadata.get("Threads"), "{}"),
            "Voxel size": worded(metadata.get("InputVoxelSizeMm"), "{} mm"),
            "Model's voxel size": worded(metadata.get("ModelVoxelSizeMm"), "{} mm"),
            "Low confidence": low_confidence(volumes),
            **made_by(metadata),
        },
        warnings=[
            *metadata.get("ToLookAt", []),
            *metadata.get("Warnings", []),
            *no_intracranial(intracranial),
        ],
        outputs=written(job.outputs, output_dir),
        no_asymmetry=no_asymmetry(job.outputs["labels"]),
        look=viewer_and_rating(job.outputs, output_dir),
    )
