# SPDX-License-Identifier: Apache-2.0
"""Label one head with the chosen tools and merge what they say."""

from __future__ import annotations

import os
from pathlib import Path

from nipype import IdentityInterface
from nipype.pipeline import engine as pe
from niworkflows.engine.workflows import LiterateWorkflow as Workflow

from brainseg_bids.bids.names import Scan
from brainseg_bids.interfaces.headlabels import MergeHead, ReadTool
from brainseg_bids.interfaces.labels import Volumes
from brainseg_bids.interfaces.reportlets import DrawMerge
from brainseg_bids.volumes import file_state
from brainseg_bids.workflows.headlabels_plan import (
    GIVEN,
    HeadPlan,
    ToolPlan,
    head_metadata,
    tool_metadata,
)
from brainseg_bids.workflows.how import HowToRun
from brainseg_bids.workflows.methods import head_labels
from brainseg_bids.workflows.outputs import init_ds_scan_wf
from brainseg_bids.workflows.plan import REUSE, RUN
from brainseg_bids.workflows.segment import takes_gpu

MERGE_GIB = 1.5
"""Memory set aside for one merge: a 256³ head takes up to 1 GiB (``docs/performance.md``)."""


def init_headlabels_scan_wf(plan: HeadPlan, how: HowToRun) -> Workflow:
    """One head: its tools, the merge of their maps, volumes, a picture; all of it saved.

    Each tool is a workflow of its own (`init_tool_wf`), whatever its labels come from.
    """
    workflow = Workflow(name=plan.name)
    workflow.__desc__ = head_labels([tool.tool.name for tool in plan.tools.values()])
    image = pe.Node(IdentityInterface(fields=["image"]), name="inputnode")
    image.inputs.image = str(plan.scan.path)
    table = str(how.tables["fullhead"])
    merge = pe.Node(MergeHead(), name="merge", mem_gb=MERGE_GIB)
    volumes = pe.Node(Volumes(table=table), name="volumes", mem_gb=0.5)
    figure = pe.Node(DrawMerge(table=table), name="figure", mem_gb=1.5)
    said = head_metadata(plan, output_dir=how.output_dir)
    paths = {output: str(path) for output, path in plan.outputs.items()}
    ds_merge_wf = init_ds_scan_wf(
        {"merge": paths.pop("merge")}, said, facts="facts", name="ds_merge_wf"
    )
    ds_head_wf = init_ds_scan_wf(
        paths,
        said,
        facts="facts",
        outdated=[str(path) for path in plan.outdated],
        name="ds_head_wf",
    )
    merged = ["labels", *(name for name in plan.outputs if name.startswith("top_"))]
    workflow.connect([
        (image, merge, [("image", "image")]),
        (image, figure, [("image", "image")]),
        (merge, volumes, [("labels", "labels")]),
        (merge, figure, [("labels", "labels")]),
        (merge, ds_merge_wf, [("merge", "inputnode.merge"), ("report", "inputnode.facts")]),
        (merge, ds_head_wf, [("facts", "inputnode.facts")]),
        (merge, ds_head_wf, [(name, f"inputnode.{name}") for name in merged]),
        (volumes, ds_head_wf, [("out_file", "inputnode.volumes")]),
        (figure, ds_head_wf, [("out_file", "inputnode.figure")]),
    ])  # fmt: skip
    merge.inputs.made = [role for role, tool in plan.tools.items() if tool.action == RUN]
    for role, tool in plan.tools.items():
        tool_wf = init_tool_wf(tool, plan.scan, how, name=f"{role}_wf")
        for step in (merge, figure):
            setattr(step.inputs, f"{role}_tool", tool.tool.name)
        workflow.connect([
            (image, tool_wf, [("image", "inputnode.image")]),
            (tool_wf, figure, [("outputnode.labels", f"{role}_labels")]),
            (tool_wf, merge, [
                (f"outputnode.{name}", f"{role}_{name}") for name in tool.outputs
            ]),
        ])  # fmt: skip
    return workflow


def init_tool_wf(plan: ToolPlan, scan: Scan, how: HowToRun, *, name: str) -> Workflow:
    """One tool's labels of one head, run, reused or given.

    Inputs
    ------
    image
        The image, as it lies in the dataset.

    Outputs
    -------
    labels, and if the tool gives probabilities top_codes, top_weights
        As `ReadTool` stores them.
    """
    workflow = Workflow(name=name)
    inputnode = pe.Node(IdentityInterface(fields=["image"]), name="inputnode")
    outputnode = pe.Node(IdentityInterface(fields=list(plan.outputs)), name="outputnode")
    if plan.action == REUSE:
        outputnode.inputs.trait_set(**{key: str(path) for key, path in plan.outputs.items()})
        workflow.add_nodes([inputnode, outputnode])
        return workflow
    read = pe.Node(ReadTool(tool=plan.tool.name), name="read", mem_gb=MERGE_GIB)
    workflow.connect([
        (inputnode, read, [("image", "image")]),
        (read, outputnode, [(field, field) for field in plan.outputs]),
    ])  # fmt: skip
    if plan.action == GIVEN:
        read.inputs.trait_set(labels=str(plan.outputs["labels"]), given=True)
        return workflow
    run = _init_run_node(plan, scan, how)
    ds_tool_wf = init_ds_scan_wf(
        {output: str(path) for output, path in plan.outputs.items()},
        tool_metadata(plan),
        facts="facts",
        name="ds_tool_wf",
    )
    posteriors = ("posteriors", "posterior_codes") if plan.tool.posteriors else ()
    workflow.connect([
        (inputnode, run, [("image", "image")]),
        (run, read, [(field, field) for field in ("labels", "log", *posteriors)]),
        (run, ds_tool_wf, [("facts", "inputnode.facts")]),
        (read, ds_tool_wf, [(field, f"inputnode.{field}") for field in plan.outputs]),
    ])  # fmt: skip
    return workflow


def _init_run_node(plan: ToolPlan, scan: Scan, how: HowToRun) -> pe.Node:
    """The node that runs the program; inputs that this tool does not have are left out."""
    threads = min(how.threads, plan.tool.max_threads)
    interface = plan.tool.interface(
        subject="_".join(
            f"{key}-{label}" for key, label in scan.entities.items() if key in ("sub", "ses")
        ),
        command=list(plan.command),
        command_state=[file_state(Path(word)) for word in plan.command if os.path.isfile(word)],
        threads=threads,
        timeout_s=how.tool_timeout_s,
        use_gpu=plan.tool.gpu and takes_gpu(how.device),
    )
    known = set(interface.inputs.copyable_trait_names())
    of_this_tool: dict = {"device": how.device}
    if plan.model is not None:
        of_this_tool |= {"model": str(plan.model.path), "model_digest": plan.model.digest}
        of_this_tool |= {"test_time_flips": plan.flips}
    interface.inputs.trait_set(**{k: v for k, v in of_this_tool.items() if k in known})
    return pe.Node(interface, name="run", n_procs=threads, mem_gb=plan.mem_gb)
