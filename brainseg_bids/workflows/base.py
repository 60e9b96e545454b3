# SPDX-License-Identifier: Apache-2.0
"""The table of contents: all participants, one participant, one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nipype import IdentityInterface
from nipype.pipeline import engine as pe
from niworkflows.engine.workflows import LiterateWorkflow as Workflow

from brainseg_bids import __version__
from brainseg_bids.interfaces.segment import PREDICT
from brainseg_bids.workflows.outputs import init_ds_scan_wf
from brainseg_bids.workflows.plan import Model, ScanPlan, SubjectPlan, metadata
from brainseg_bids.workflows.segment import init_segment_wf


@dataclass(frozen=True)
class HowToRun:
    """What is the same for every image.

    Parameters
    ----------
    model : Model
    table : Path
        Label table of the model in the derivative's root.
    output_dir : Path
    device : str
    threads : int
    program : sequence of str
        What segments; tests put a stand-in here.
    """

    model: Model
    table: Path
    output_dir: Path
    device: str = "auto"
    threads: int = 1
    program: tuple[str, ...] = PREDICT


def init_brainseg_wf(plans: Sequence[SubjectPlan], how: HowToRun) -> Workflow:
    """All participants for whom there is something to run."""
    workflow = Workflow(name="brainseg_wf")
    workflow.__desc__ = f"""\
Results were made with *brainseg-bids* {__version__}, a BIDS App [@gorgolewski2017] built on
*Nipype* [@gorgolewski2011] and *PyTorch* [@paszke2019].
"""
    workflow.add_nodes([init_subject_wf(plan, how) for plan in plans if plan.to_run])
    return workflow


def init_subject_wf(plan: SubjectPlan, how: HowToRun) -> Workflow:
    """One participant: each image that is to be run."""
    workflow = Workflow(name=plan.name)
    workflow.add_nodes([init_scan_wf(scan, how) for scan in plan.to_run])
    return workflow


def init_scan_wf(plan: ScanPlan, how: HowToRun) -> Workflow:
    """One image: segment it, save what came out."""
    workflow = Workflow(name=plan.name)
    inputnode = pe.Node(IdentityInterface(fields=["image"]), name="inputnode")
    inputnode.inputs.image = str(plan.scan.path)
    segment_wf = init_segment_wf(
        model=str(how.model.path),
        model_name=how.model.name,
        model_digest=how.model.digest,
        table=str(how.table),
        device=how.device,
        threads=how.threads,
        probseg=plan.with_probseg,
        program=how.program,
    )
    ds_scan_wf = init_ds_scan_wf(
        {output: str(path) for output, path in plan.outputs.items()},
        metadata(plan, how.model, output_dir=how.output_dir),
    )
    workflow.connect([
        (inputnode, segment_wf, [("image", "inputnode.image")]),
        (segment_wf, ds_scan_wf, [
            (f"outputnode.{field}", f"inputnode.{field}") for field in ["report", *plan.outputs]
        ]),
    ])  # fmt: skip
    return workflow
