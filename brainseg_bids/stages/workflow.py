# SPDX-License-Identifier: Apache-2.0
"""The table of contents: all participants, one participant, each image and stage."""

from __future__ import annotations

from collections.abc import Sequence

from niworkflows.engine.workflows import LiterateWorkflow as Workflow

from brainseg_bids.interfaces.sinks import SaveDerivative
from brainseg_bids.stages import PARTICIPANT
from brainseg_bids.stages.base import ExecutionOptions
from brainseg_bids.stages.jobs import Job, SubjectPlan
from brainseg_bids.stages.methods import preamble


def init_brainseg_wf(plans: Sequence[SubjectPlan], execution: ExecutionOptions) -> Workflow:
    """All participants for whom there is something to run."""
    workflow = Workflow(name="brainseg_wf")
    workflow.__desc__ = preamble()
    workflow.add_nodes([init_subject_wf(plan, execution) for plan in plans if plan.to_run])
    return workflow


def init_subject_wf(plan: SubjectPlan, execution: ExecutionOptions) -> Workflow:
    """One participant: each image and stage that is to be run."""
    workflow = Workflow(name=plan.name)
    workflow.add_nodes([init_scan_wf(job, execution) for job in plan.to_run])
    return workflow


def init_scan_wf(job: Job, execution: ExecutionOptions) -> Workflow:
    """One image and stage; nothing of it is saved if the image is no longer what was planned."""
    workflow = PARTICIPANT[job.stage].workflow(job, execution)
    for name in workflow.list_node_names():
        node = workflow.get_node(name)
        if isinstance(node.interface, SaveDerivative):
            node.inputs.source = str(job.scan.path)
    return workflow
