# SPDX-License-Identifier: Apache-2.0
"""Bring one label map of a head to finer voxels."""

from __future__ import annotations

from nipype import IdentityInterface
from nipype.pipeline import engine as pe
from niworkflows.engine.workflows import LiterateWorkflow as Workflow

from brainseg_bids.interfaces.labels import Volumes
from brainseg_bids.interfaces.reportlets import DrawUpsampled
from brainseg_bids.interfaces.upsample import Upsample
from brainseg_bids.workflows.how import HowToRun
from brainseg_bids.workflows.methods import upsampling
from brainseg_bids.workflows.outputs import init_ds_scan_wf
from brainseg_bids.workflows.segment import takes_gpu
from brainseg_bids.workflows.upsample_plan import UpsamplePlan, upsample_metadata

CUDA_GIB = 2.0
"""Host memory set aside for PyTorch and CUDA's libraries where a GPU is used (not measured)."""


def init_upsample_scan_wf(plan: UpsamplePlan, how: HowToRun) -> Workflow:
    """One label map: upsample it, measure volumes, draw it beside its source; all of it saved."""
    workflow = Workflow(name=plan.name)
    target, table = plan.target, str(how.tables["fullhead"])
    workflow.__desc__ = upsampling(target)
    on_gpu = takes_gpu(how.device)
    inputnode = pe.Node(IdentityInterface(fields=["labels"]), name="inputnode")
    inputnode.inputs.labels = str(plan.scan.path)
    upsample = pe.Node(
        Upsample(
            table=table,
            voxel_size_mm=list(target.voxel_size_mm),
            kernel=target.kernel,
            smoothing_mm=target.smoothing_mm,
            keep_thin=target.keep_thin,
            threads=how.threads,
            device=how.device,
            use_gpu=on_gpu,
            **dict(zip(("top_codes", "top_weights"), map(str, plan.top), strict=False)),
        ),
        name="upsample",
        n_procs=how.threads,
        mem_gb=plan.mem_gb + on_gpu * CUDA_GIB,
    )
    volumes = pe.Node(Volumes(table=table), name="volumes", mem_gb=plan.mem_gb)
    figure = pe.Node(DrawUpsampled(table=table), name="figure", mem_gb=plan.mem_gb)
    ds_finer_wf = init_ds_scan_wf(
        {output: str(path) for output, path in plan.outputs.items()},
        upsample_metadata(plan, output_dir=how.output_dir),
        facts="facts",
        told=("labels",),
        name="ds_finer_wf",
    )
    workflow.connect([
        (inputnode, upsample, [("labels", "labels")]),
        (inputnode, figure, [("labels", "source")]),
        (upsample, volumes, [("labels", "labels")]),
        (upsample, figure, [("labels", "labels")]),
        (upsample, ds_finer_wf, [("labels", "inputnode.labels"), ("facts", "inputnode.facts")]),
        (volumes, ds_finer_wf, [("out_file", "inputnode.volumes")]),
        (figure, ds_finer_wf, [("out_file", "inputnode.figure")]),
    ])  # fmt: skip
    return workflow
