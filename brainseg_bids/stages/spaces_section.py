# SPDX-License-Identifier: Apache-2.0
"""An image in a standard space on a page."""

from __future__ import annotations

from pathlib import Path

from brainseg_bids.bids.names import folder
from brainseg_bids.bids.templates import transform_name
from brainseg_bids.reports.image_section import (
    image_section,
    made_by,
    metadata_of,
    worded,
    written,
)
from brainseg_bids.reports.page import Section


def section(job, *, output_dir: Path, bids_dir: Path) -> Section:
    """One image in a standard space, from the files that its run left."""
    template = job.templates[0]
    own = metadata_of(job.main)
    made_here = not str(own.get("Registration", "")).startswith("bids:")
    transform = output_dir / folder(job.scan) / transform_name(job.scan, template)
    metadata = metadata_of(transform) if made_here else own
    return image_section(
        title=job.title,
        source=job.scan.path.relative_to(bids_dir).as_posix(),
        figure=job.outputs["figure"],
        run={
            "Template": template.space,
            "Resolution": template.resolution,
            "Registration": metadata.get("Registration"),
            "Driven by": metadata.get("DrivenBy"),
            "Dice of brain and template's brain": worded(own.get("BrainDice"), "{:.3f}"),
            "Time": worded(metadata.get("Seconds"), "{:.0f} s"),
            "Peak memory": worded(metadata.get("PeakMemoryGiB"), "{:.1f} GiB"),
            **made_by(own),
        },
        warnings=own.get("ToLookAt", []),
        outputs=written(job.outputs, output_dir),
        what="Registered image",
        counted=("image", "in a standard space"),
        caption="Each cut of the template: alone, with the image's labels, with their outlines.",
    )
