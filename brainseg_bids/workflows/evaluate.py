# SPDX-License-Identifier: Apache-2.0
"""Compare raters with references: one step an image."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nipype.pipeline import engine as pe
from niworkflows.engine.workflows import LiterateWorkflow as Workflow

from brainseg_bids.files import sha256
from brainseg_bids.interfaces.evaluate import CompareRaters
from brainseg_bids.interfaces.raters import meaning_digest
from brainseg_bids.volumes import InputError, read_grid
from brainseg_bids.workflows.evaluate_plan import EvaluationPlan, ImagePlan

NAME = "evaluate_wf"
BYTES_PER_VOXEL = 14
"""Memory of a label map that is compared: codes, translated codes, void, boxes around labels."""


def init_evaluate_wf(
    plan: EvaluationPlan,
    *,
    tolerances_mm: Sequence[float],
    definition: str = "surface",
    on_other_grid: str = "resample",
    protocol: str = "label-restricted",
) -> Workflow:
    """One node for each image of each reference.

    Parameters
    ----------
    plan : EvaluationPlan
    tolerances_mm : sequence of float
    definition, on_other_grid, protocol : str
        As of `CompareRaters`.
    """
    workflow = Workflow(name=NAME)
    for image in plan.images:
        compare = pe.Node(
            CompareRaters(
                reference=image.reference.who,
                labels=str(image.case.labels),
                raters=list(image.rated),
                who=[plan.raters[name].who for name in image.rated],
                maps=[str(case.labels) for case in image.rated.values()],
                tolerances_mm=list(tolerances_mm),
                definition=definition,
                on_other_grid=on_other_grid,
                protocol=protocol,
                asked=asked(
                    image,
                    tolerances_mm=tolerances_mm,
                    definition=definition,
                    on_other_grid=on_other_grid,
                    protocol=protocol,
                ),
            ),
            name=image.name,
            mem_gb=_mem_gb(image),
        )
        if image.case.image is not None:
            compare.inputs.image = str(image.case.image)
        workflow.add_nodes([compare])
    return workflow


def asked(image: ImagePlan, **settings) -> dict:
    """All that decides a step's result: what is found of an earlier run counts only if it fits."""
    files = {"": (image.case.labels, image.reference.adapter)}
    files |= {name: (case.labels, image.adapters[name]) for name, case in image.rated.items()}
    return {key: list(v) if isinstance(v, tuple) else v for key, v in settings.items()} | {
        "files": {
            name: [str(path), sha256(path), meaning_digest(path, adapter)]
            for name, (path, adapter) in files.items()
        }
    }


def _mem_gb(image: ImagePlan) -> float:
    try:
        n_voxels = math.prod(read_grid(image.case.labels).shape)
    except InputError:
        return 2.0  # the step will say what is wrong
    return 0.3 + BYTES_PER_VOXEL * n_voxels * (1 + len(image.rated)) / 2**30
