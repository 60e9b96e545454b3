# SPDX-License-Identifier: Apache-2.0
"""Compare raters with references: one step an image."""

from __future__ import annotations

from collections.abc import Mapping

from nipype.pipeline import engine as pe
from niworkflows.engine.workflows import LiterateWorkflow as Workflow

from brainseg_bids.interfaces.evaluate import CompareRaters
from brainseg_bids.stages.raters import EvaluationPlan

WORKFLOW = "evaluate_wf"


def init_evaluate_wf(plan: EvaluationPlan, choices: Mapping) -> Workflow:
    """One node for each image of each reference; ``choices`` are inputs of `CompareRaters`."""
    workflow = Workflow(name=WORKFLOW)
    for image in plan.images:
        compare = pe.Node(
            CompareRaters(
                reference=image.reference.who,
                labels=str(image.case.labels),
                raters=list(image.rated),
                who=[plan.raters[name].who for name in image.rated],
                maps=[str(case.labels) for case in image.rated.values()],
                asked=image.asked(choices),
                **choices,
            ),
            name=image.name,
            mem_gb=image.memory_gib,
        )
        if image.case.image is not None:
            compare.inputs.image = str(image.case.image)
        workflow.add_nodes([compare])
    return workflow
