# SPDX-License-Identifier: Apache-2.0
"""Bring one image and its labels to a standard space."""

from __future__ import annotations

from nipype import IdentityInterface
from nipype.pipeline import engine as pe
from niworkflows.engine.workflows import LiterateWorkflow as Workflow

from brainseg_bids.interfaces.labels import BrainMask, Tissue
from brainseg_bids.interfaces.register import Pull, Register
from brainseg_bids.interfaces.reportlets import DrawLabels
from brainseg_bids.workflows.how import HowToRun
from brainseg_bids.workflows.methods import standard_space
from brainseg_bids.workflows.outputs import init_ds_scan_wf
from brainseg_bids.workflows.spaces_plan import KIND, REGISTER_GIB, SpacePlan, key, space_metadata


def init_spaces_scan_wf(plan: SpacePlan, how: HowToRun) -> Workflow:
    """One image and one space: register once, pull once per resolution, save."""
    workflow = Workflow(name=plan.name)
    name, soft = plan.templates[0].name, plan.probseg is not None
    workflow.__desc__ = standard_space(name, probabilities=soft)
    inputnode = pe.Node(IdentityInterface(fields=["image", "labels", "mask"]), name="inputnode")
    inputnode.inputs.image = str(plan.scan.path)
    inputnode.inputs.labels = str(plan.labels)
    inputnode.inputs.mask = str(plan.mask)
    register = init_register_node(plan, how)
    ds_space_wf = init_ds_scan_wf(
        {output: str(path) for output, path in plan.outputs.items()},
        space_metadata(plan),
        facts="facts",
        told=("forward", "backward"),
        name="ds_space_wf",
    )
    workflow.connect([
        (inputnode, register, [("image", "moving")]),
        (register, ds_space_wf, [
            ("forward", "inputnode.forward"),
            ("backward", "inputnode.backward"),
            ("report", "inputnode.facts"),
        ]),
    ])  # fmt: skip
    if plan.templates[0].mask:
        workflow.connect(inputnode, "mask", register, "moving_mask")
    for number in range(len(plan.templates)):
        pull_wf = init_pull_wf(plan, how, number)
        workflow.connect([
            (inputnode, pull_wf, [
                ("image", "inputnode.image"),
                ("labels", "inputnode.labels"),
            ]),
            (register, pull_wf, [("places", "inputnode.places")]),
            (pull_wf, ds_space_wf, [
                (f"outputnode.{name}", f"inputnode.{key(name, number)}")
                for name in ("labels", "tissue", "mask", "image", "figure")
            ]),
        ])  # fmt: skip
    return workflow


def init_register_node(plan: SpacePlan, how: HowToRun) -> pe.Node:
    """The registration, to the finest of the plan's templates."""
    target = plan.templates[0]
    register = pe.Node(
        Register(
            program=how.register,
            fixed=str(target.image),
            grids=[str(template.image) for template in plan.templates],
            kind=KIND,
            threads=how.threads,
        ),
        name="register",
        n_procs=how.threads,
        mem_gb=REGISTER_GIB,
    )
    if target.mask:
        register.inputs.fixed_mask = str(target.mask)
    return register


def init_pull_wf(plan: SpacePlan, how: HowToRun, number: int) -> Workflow:
    """Labels and image on one template's grid, and what is derived from them there.

    Inputs
    ------
    image, labels
        As they lie in dataset and derivative.
    places
        Of all grids.

    Outputs
    -------
    labels, tissue, mask, image, figure
    """
    workflow = Workflow(name=f"pull{number}_wf")
    table, template = str(how.tables["brainseg"]), str(plan.templates[number].image)
    inputnode = pe.Node(IdentityInterface(fields=["image", "labels", "places"]), name="inputnode")
    outputnode = pe.Node(
        IdentityInterface(fields=["labels", "tissue", "mask", "image", "figure"]),
        name="outputnode",
    )
    pull = pe.Node(Pull(table=table, grid=template, which=number), name="pull", mem_gb=1.0)
    if plan.probseg:
        pull.inputs.probseg = str(plan.probseg)
    figure = pe.Node(DrawLabels(table=table, image=template), name="figure", mem_gb=1.0)
    workflow.connect([
        (inputnode, pull, [("image", "image"), ("labels", "labels"), ("places", "places")]),
        (pull, outputnode, [("labels", "labels"), ("image", "image")]),
    ])  # fmt: skip
    derived = (
        pe.Node(Tissue(table=table), name="tissue", mem_gb=0.5),
        pe.Node(BrainMask(table=table), name="mask", mem_gb=0.5),
        figure,
    )
    for derive in derived:
        workflow.connect([
            (pull, derive, [("labels", "labels")]),
            (derive, outputnode, [("out_file", derive.name)]),
        ])  # fmt: skip
    return workflow
