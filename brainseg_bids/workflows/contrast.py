# SPDX-License-Identifier: Apache-2.0
"""Measure how the labels of one image look."""

from __future__ import annotations

from nipype import IdentityInterface
from nipype.pipeline import engine as pe
from niworkflows.engine.workflows import LiterateWorkflow as Workflow

from brainseg_bids.interfaces.contrast import DrawContrast, MeasureContrast
from brainseg_bids.workflows.contrast_plan import ContrastPlan, contrast_metadata
from brainseg_bids.workflows.how import HowToRun
from brainseg_bids.workflows.methods import CONTRAST
from brainseg_bids.workflows.outputs import init_ds_scan_wf


def init_contrast_scan_wf(plan: ContrastPlan, how: HowToRun) -> Workflow:
    """One image and its label map: measure, draw, save."""
    workflow = Workflow(name=plan.name)
    workflow.__desc__ = CONTRAST
    inputnode = pe.Node(IdentityInterface(fields=["image", "labels"]), name="inputnode")
    inputnode.inputs.image = str(plan.scan.path)
    inputnode.inputs.labels = str(plan.labels)
    kind = "ratio" if plan.scan.suffix == "UNIT1" else "auto"
    measure = pe.Node(
        MeasureContrast(tool=plan.tool, kind=kind, said_stripped=plan.said_stripped),
        name="measure",
        mem_gb=plan.mem_gb,
    )
    figure = pe.Node(DrawContrast(tool=plan.tool), name="figure", mem_gb=plan.mem_gb)
    ds_contrast_wf = init_ds_scan_wf(
        {output: str(path) for output, path in plan.outputs.items()},
        contrast_metadata(plan),
        facts="facts",
        name="ds_contrast_wf",
    )
    both = [("image", "image"), ("labels", "labels")]
    workflow.connect([
        (inputnode, measure, both),
        (inputnode, figure, both),
        (measure, figure, [("facts", "facts")]),
        (measure, ds_contrast_wf, [
            ("statistics", "inputnode.statistics"), ("facts", "inputnode.facts"),
        ]),
        (figure, ds_contrast_wf, [("out_file", "inputnode.figure")]),
    ])  # fmt: skip
    return workflow
