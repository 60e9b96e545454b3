# SPDX-License-Identifier: Apache-2.0
"""The step that makes the viewer of an image and its labels, for every stage that labels one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from brainseg_bids.options import option

if TYPE_CHECKING:
    from pathlib import Path

    from nipype.pipeline.engine import Node

    from brainseg_bids.stages.jobs import Job


def viewer_option() -> bool:
    """Field of a stage's options that says whether a viewer is made."""
    return option(
        "--viewer",
        default=True,
        stages=("segment", "headlabels"),
        help="make an interactive page of each image with its labels (default); it holds the "
        "image itself, face included",
    )


def viewer_node(job: Job, table: str | Path, output_dir: Path) -> Node:
    """A step from ``image`` and ``labels`` to ``out_file``, with the label table ``table``."""
    from nipype.pipeline import engine as pe

    from brainseg_bids.interfaces.reportlets import DrawViewer

    draw = DrawViewer(
        table=str(table),
        title=job.title,
        source=job.provenance["Input"].removeprefix("bids:raw:"),
        page=f"../../sub-{job.scan.subject}.html",
        segmentation=job.outputs["labels"].relative_to(output_dir).as_posix(),
    )
    return pe.Node(draw, name="viewer", mem_gb=1.5)
