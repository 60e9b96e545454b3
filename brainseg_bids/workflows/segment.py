# SPDX-License-Identifier: Apache-2.0
"""Segment one image and what follows from it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from nipype import IdentityInterface
from nipype.pipeline import engine as pe
from niworkflows.engine.workflows import LiterateWorkflow as Workflow

from brainseg_bids.interfaces.labels import BrainMask, Tissue, Volumes
from brainseg_bids.interfaces.reportlets import DrawLabels
from brainseg_bids.interfaces.segment import PREDICT, Segment
from brainseg_bids.workflows import methods
from brainseg_bids.workflows.how import HowToRun
from brainseg_bids.workflows.outputs import init_ds_scan_wf
from brainseg_bids.workflows.segment_plan import SEGMENT_GIB, Model, SegmentPlan, metadata


def init_segment_scan_wf(plan: SegmentPlan, how: HowToRun) -> Workflow:
    """One image: segment it, save what came out."""
    workflow = Workflow(name=plan.name)
    inputnode = pe.Node(IdentityInterface(fields=["image"]), name="inputnode")
    inputnode.inputs.image = str(plan.scan.path)
    segment_wf = init_segment_wf(
        model=str(plan.model.path),
        model_name=plan.model.name,
        model_digest=plan.model.digest,
        images=plan.images,
        ensemble=plan.ensemble,
        flips=plan.flips,
        mem_gib=plan.mem_gib,
        table=str(how.tables["brainseg"]),
        device=how.device,
        threads=how.threads,
        probseg=plan.with_probseg,
        program=how.program,
    )
    ds_scan_wf = init_ds_scan_wf(
        {output: str(path) for output, path in plan.outputs.items()},
        metadata(plan, output_dir=how.output_dir),
    )
    workflow.connect([
        (inputnode, segment_wf, [("image", "inputnode.image")]),
        (segment_wf, ds_scan_wf, [
            (f"outputnode.{field}", f"inputnode.{field}") for field in ["report", *plan.outputs]
        ]),
    ])  # fmt: skip
    return workflow


def init_segment_wf(
    *,
    model: str,
    model_name: str,
    model_digest: str,
    table: str,
    images: str = "",
    ensemble: Sequence[Model] = (),
    flips: bool = False,
    mem_gib: float = SEGMENT_GIB,
    device: str = "auto",
    threads: int = 1,
    probseg: bool = False,
    program: tuple[str, ...] = PREDICT,
    name: str = "segment_wf",
) -> Workflow:
    """Label an image; derive tissues, brain mask and volumes; draw a picture.

    Parameters
    ----------
    model, model_name, model_digest : str
        Bundle folder, its name and SHA-256.
    table : str
        Label table of the model, ``dseg.tsv``.
    images : str
        Which images got the model, of several; empty: all.
    ensemble : sequence of Model
        Further models whose probabilities are averaged with the first one's.
    flips : bool
        Also average with the mirrored image.
    mem_gib : float
        Set aside for the segmentation.
    device : str
    threads : int
        Of the segmentation.
    probseg : bool
        Also write probabilities and their entropy.
    program : sequence of str
        What segments.

    Inputs
    ------
    image
        The image, as it lies in the dataset.

    Outputs
    -------
    labels, tissue, mask, volumes, figure, report
        And ``probseg`` and ``entropy`` if wanted.
    """
    fields = ["labels", "tissue", "mask", "volumes", "figure", "report"]
    workflow = Workflow(name=name)
    workflow.__desc__ = methods.segmentation(
        images,
        (model_name, model_digest),
        ensemble=[(other.name, other.digest) for other in ensemble],
        flips=flips,
    )
    inputnode = pe.Node(IdentityInterface(fields=["image"]), name="inputnode")
    outputnode = pe.Node(
        IdentityInterface(fields=fields + ["probseg", "entropy"] * probseg), name="outputnode"
    )
    segment = pe.Node(
        Segment(
            program=program,
            model=model,
            model_digest=model_digest,
            device=device,
            threads=threads,
            use_gpu=takes_gpu(device),
        ),
        name="segment",
        n_procs=threads,
        mem_gb=mem_gib,
    )
    if ensemble:
        segment.inputs.ensemble = [str(other.path) for other in ensemble]
        segment.inputs.ensemble_digests = [other.digest for other in ensemble]
    if flips:
        segment.inputs.test_time_flips = True
    tissue = pe.Node(Tissue(table=table), name="tissue", mem_gb=0.5)
    mask = pe.Node(BrainMask(table=table), name="mask", mem_gb=0.5)
    volumes = pe.Node(Volumes(table=table), name="volumes", mem_gb=0.5)
    figure = pe.Node(DrawLabels(table=table), name="figure", mem_gb=1.0)
    workflow.connect([
        (inputnode, segment, [("image", "image")]),
        (inputnode, figure, [("image", "image")]),
        (segment, outputnode, [("labels", "labels"), ("report", "report")]),
    ])  # fmt: skip
    for derive in (tissue, mask, volumes, figure):
        workflow.connect([
            (segment, derive, [("labels", "labels")]),
            (derive, outputnode, [("out_file", derive.name)]),
        ])  # fmt: skip
    workflow.connect(segment, "report", volumes, "report")
    if probseg:
        for output in ("probseg", "entropy"):
            setattr(segment.inputs, output, f"{output}.nii.gz")
            workflow.connect(segment, output, outputnode, output)
    return workflow


def takes_gpu(device: str) -> bool:
    """Whether a step on ``device`` needs one of Nipype's GPU slots."""
    return device == "cuda" or (device == "auto" and shutil.which("nvidia-smi") is not None)
