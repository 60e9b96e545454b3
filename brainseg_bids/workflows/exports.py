# SPDX-License-Identifier: Apache-2.0
"""Write results again as other programs read them."""

from __future__ import annotations

from nipype import IdentityInterface
from nipype.pipeline import engine as pe
from niworkflows.engine.workflows import LiterateWorkflow as Workflow

from brainseg_bids.interfaces.freesurfer_export import FreeSurferExport
from brainseg_bids.interfaces.precomputed import Precomputed
from brainseg_bids.workflows.exports_plan import FreeSurferPlan, PrecomputedPlan, export_metadata
from brainseg_bids.workflows.how import HowToRun
from brainseg_bids.workflows.outputs import init_ds_scan_wf


def init_freesurfer_scan_wf(plan: FreeSurferPlan, how: HowToRun) -> Workflow:
    """One segmentation as MGZ with colour tables."""
    export = pe.Node(FreeSurferExport(table=str(how.tables["brainseg"])), "export", mem_gb=0.5)
    return _saved(plan, export, {"labels": str(plan.labels)})


def init_precomputed_scan_wf(plan: PrecomputedPlan, how: HowToRun) -> Workflow:
    """One segmentation under the names that sMRIPrep looks for."""
    export = pe.Node(Precomputed(table=str(how.tables["brainseg"])), "export", mem_gb=1.5)
    given = {"labels": str(plan.labels), "probseg": str(plan.probseg)}
    copied = {name: str(path) for name, path in plan.transforms.items()}
    return _saved(plan, export, given, copied)


def _saved(
    plan: FreeSurferPlan | PrecomputedPlan,
    export: pe.Node,
    given: dict[str, str],
    copied: dict[str, str] | None = None,
) -> Workflow:
    """What a node makes of ``given``, and files that are copied as they are, all saved."""
    workflow, copied = Workflow(name=plan.name), copied or {}
    inputnode = pe.Node(IdentityInterface(fields=[*given, *copied]), name="inputnode")
    inputnode.inputs.trait_set(**given, **copied)
    ds_export_wf = init_ds_scan_wf(
        {output: str(path) for output, path in plan.outputs.items()},
        export_metadata(plan),
        facts="facts",
        told=(),
        name="ds_export_wf",
    )
    workflow.connect([
        (inputnode, export, [(name, name) for name in given]),
        (export, ds_export_wf, [
            (name, f"inputnode.{name}") for name in plan.outputs if name not in copied
        ]),
    ])  # fmt: skip
    if copied:
        workflow.connect([
            (inputnode, ds_export_wf, [(name, f"inputnode.{name}") for name in copied]),
        ])  # fmt: skip
    return workflow
