# SPDX-License-Identifier: Apache-2.0
"""The table of contents: all participants, one participant, each image and stage."""

from __future__ import annotations

from collections.abc import Sequence

from niworkflows.engine.workflows import LiterateWorkflow as Workflow

from brainseg_bids.interfaces.sinks import SaveDerivative
from brainseg_bids.workflows.contrast import init_contrast_scan_wf
from brainseg_bids.workflows.exports import init_freesurfer_scan_wf, init_precomputed_scan_wf
from brainseg_bids.workflows.headlabels import init_headlabels_scan_wf
from brainseg_bids.workflows.how import HowToRun
from brainseg_bids.workflows.methods import preamble
from brainseg_bids.workflows.plan import ScanPlan, SubjectPlan
from brainseg_bids.workflows.segment import init_segment_scan_wf
from brainseg_bids.workflows.spaces import init_spaces_scan_wf
from brainseg_bids.workflows.upsample import init_upsample_scan_wf

SCAN_WORKFLOWS = {
    "segment": init_segment_scan_wf,
    "headlabels": init_headlabels_scan_wf,
    "upsample": init_upsample_scan_wf,
    "contrast": init_contrast_scan_wf,
    "spaces": init_spaces_scan_wf,
    "freesurfer": init_freesurfer_scan_wf,
    "precomputed": init_precomputed_scan_wf,
}
"""What a stage does with one image."""


def init_brainseg_wf(plans: Sequence[SubjectPlan], how: HowToRun) -> Workflow:
    """All participants for whom there is something to run."""
    workflow = Workflow(name="brainseg_wf")
    workflow.__desc__ = preamble()
    workflow.add_nodes([init_subject_wf(plan, how) for plan in plans if plan.to_run])
    return workflow


def init_subject_wf(plan: SubjectPlan, how: HowToRun) -> Workflow:
    """One participant: each image and stage that is to be run."""
    workflow = Workflow(name=plan.name)
    workflow.add_nodes([init_scan_wf(scan, how) for scan in plan.to_run])
    return workflow


def init_scan_wf(plan: ScanPlan, how: HowToRun) -> Workflow:
    """One image and stage; nothing of it is saved if the image is no longer what was planned."""
    workflow = SCAN_WORKFLOWS[plan.stage](plan, how)
    for name in workflow.list_node_names():
        node = workflow.get_node(name)
        if isinstance(node.interface, SaveDerivative):
            node.inputs.source = str(plan.scan.path)
    return workflow
