# SPDX-License-Identifier: Apache-2.0
"""Tools that label heads: which one is run, whose labels are taken, how a program is run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from brainseg_bids import __version__
from brainseg_bids.bids.names import Scan, ToolNames
from brainseg_bids.documents import InputError
from brainseg_bids.interfaces.tools import tool_names
from brainseg_bids.stages.base import ExecutionOptions, takes_gpu
from brainseg_bids.stages.jobs import REUSE, RUN, present, why_run
from brainseg_bids.stages.models import VIEWS, Model, model_for, predicted_gib, views

if TYPE_CHECKING:
    from nipype.pipeline.engine import Node
    from niworkflows.engine.workflows import LiterateWorkflow as Workflow

    from brainseg_bids.interfaces.tools.base import Tool

MERGE_GIB = 1.5
"""Memory set aside for one merge: a 256³ head takes up to 1 GiB (``docs/performance.md``)."""
GIVEN = "given"
ROLES = ("head", "brain")


@dataclass(frozen=True)
class ToolPlan:
    """Where one tool's labels of one image come from.

    Parameters
    ----------
    tool : Tool
    action : {"run", "reuse", "given"}
        Run it; take what an earlier run of this app left; take what the user has (``-d``).
    reason : str
    outputs : dict of str to Path
        ``labels``, and ``top_codes``, ``top_weights`` if the tool gives probabilities.
    provenance : dict
        Goes into the JSON beside the labels.
    command : tuple of str
        Program and first arguments.
    mem_gb : float
        What it is expected to take.
    model : Model or None
        Of the tool ``model``, for this image.
    flips : bool
        Whether that model sees the mirrored image, too.
    """

    tool: Tool
    action: str
    reason: str
    outputs: dict[str, Path]
    provenance: dict
    command: tuple[str, ...] = ()
    mem_gb: float = 0.0
    model: Model | None = None
    flips: bool = False


@dataclass(frozen=True)
class ToolChoice:
    """What the user wants of tools.

    Parameters
    ----------
    head, brain : str
        Names of tools.
    models : sequence of Model
        For the tool ``model``; each image gets the one that is made for its voxels.
    commands : mapping of str to tuple of str
        Where a tool lives, by name.
    derivatives : mapping of str to Path
        Folders that hold results, by name of the tool.
    memory_gb : float
        What there is.
    flips : bool
        Whether the tool ``model`` sees the mirrored image, too.
    will_run : bool
        Programs are looked for only if they are to be run now.
    """

    head: str
    brain: str
    models: Sequence[Model]
    commands: Mapping[str, tuple[str, ...]]
    derivatives: Mapping[str, Path]
    memory_gb: float
    flips: bool = False
    will_run: bool = True

    def check(self) -> None:
        """Raise `InputError` if this choice can never give a result."""
        from brainseg_bids.interfaces.tools import find_tool  # late: nipype

        for role, name in zip(ROLES, (self.head, self.brain), strict=True):
            tool = find_tool(name)
            if role not in tool.regions:
                raise InputError(
                    f"--{role}-tool {name}: {name} does not label the {role}. Choose another; "
                    "brainseg doctor lists what each labels."
                )
            if not tool.program and name not in self.derivatives:
                raise InputError(
                    f"--{role}-tool {name}: {name} is not run by this app; its results are taken. "
                    f"Say where they are: -d {name}=FOLDER."
                )
        unused = sorted(set(self.derivatives) - {self.head, self.brain})
        if unused:
            raise InputError(
                f"-d {unused[0]}=...: {unused[0]} is neither the head tool ({self.head}) nor the "
                f"brain tool ({self.brain})."
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Tools in use, each once."""
        return tuple(dict.fromkeys((self.head, self.brain)))


def plan_tool(
    scan: Scan, tool: Tool, output_dir: Path, choice: ToolChoice, source: dict
) -> ToolPlan:
    from brainseg_bids.files import sha256
    from brainseg_bids.interfaces.existing import check_origin, find_existing  # late: nipype

    root = choice.derivatives.get(tool.name)
    if root is not None:
        found = find_existing(tool, root, scan)
        if found is not None:
            check_origin(found, tool, scan, source["InputSHA256"])
            return _given(tool, found, root)
        if not tool.program:
            raise InputError(
                f"{scan.path}: no result of {tool.name} for it was found below {root}. "
                f"Looked for {' or '.join(tool.existing)}."
            )
    wanted = ("labels", "top_codes", "top_weights") if tool.posteriors else ("labels",)
    names = ToolNames.of(scan, tool.name)
    outputs = {name: output_dir / getattr(names, name) for name in wanted}
    provenance = {"Tool": tool.name, **source}
    model, flips = None, False
    if tool.name == "model":  # another model is another tool
        model, flips = model_for(scan, choice.models), choice.flips
        provenance |= {
            "ModelName": model.name,
            "ModelDigest": model.digest,
            **views((), flips),
            "BrainsegVersion": __version__,
        }
    reason = why_run(outputs, provenance, VIEWS)
    if not reason:
        provenance |= {"SHA256": sha256(outputs["labels"])}
        return ToolPlan(tool, REUSE, reason, outputs, provenance)
    if root is not None:
        reason = f"no result of {tool.name} was found below {root}"
    plan = ToolPlan(tool, RUN, reason, outputs, provenance, model=model, flips=flips)
    return _ready(plan, scan, choice)


def _given(tool: Tool, found: Path, root: Path) -> ToolPlan:
    from brainseg_bids.files import sha256

    provenance = {
        "Tool": tool.name,
        "Source": f"bids:{tool.name}:{found.relative_to(root).as_posix()}",
        "SHA256": sha256(found),
    }
    return ToolPlan(tool, GIVEN, f"found in {root}", {"labels": found}, provenance)


def _ready(plan: ToolPlan, scan: Scan, choice: ToolChoice) -> ToolPlan:
    """The plan with what it takes to run it; too large an image is refused before it begins."""
    from brainseg_bids.images import read_grid
    from brainseg_bids.interfaces.tools._failures import MissingToolError
    from brainseg_bids.interfaces.tools.base import find_program  # late: nipype

    grid = read_grid(scan.path)
    n_voxels = grid.shape[0] * grid.shape[1] * grid.shape[2]
    if plan.model is None:
        mem_gb = plan.tool.mem_gb(n_voxels)
    else:
        mem_gb = predicted_gib(scan, (plan.model,), plan.flips)
    if choice.will_run and mem_gb > choice.memory_gb:
        raise InputError(
            f"{scan.path}: {plan.tool.name} needs about {mem_gb:.0f} GB for its "
            f"{n_voxels / 1e6:.0f} million voxels, and {choice.memory_gb:.0f} GB are there. Crop "
            "air and neck from the image, give the job more memory (--mem), or choose another "
            "tool."
        )
    command = tuple(choice.commands.get(plan.tool.name, ()))
    if not choice.will_run:
        return replace(plan, command=command or plan.tool.program, mem_gb=mem_gb)
    try:
        command = find_program(plan.tool, command)
    except MissingToolError as error:
        if plan.tool.name not in choice.derivatives:
            raise  # for everyone
        raise InputError(f"{scan.path}: {plan.reason}, and it cannot be run: {error}") from error
    return replace(plan, command=command, mem_gb=mem_gb)


def tool_metadata(plan: ToolPlan) -> dict[str, dict]:
    """JSON of what one tool gave, less what only the run can tell."""
    name, raw = plan.tool.name, plan.provenance["Input"]
    what = {
        "labels": {
            "Description": f"Labels by {name}, in its own codes and on its own grid. Codes are "
            f"explained in seg-{name}_dseg.tsv.",
            "Manual": False,
            "Sources": [raw],
            "SpatialReference": raw,
        },
        **top_metadata(f"Labels by {name}", [raw], raw),
    }
    return {output: what[output] | plan.provenance for output in plan.outputs}


def top_metadata(whose: str, sources: list[str], raw: str) -> dict[str, dict]:
    where = {"Sources": sources, "SpatialReference": raw}
    ranks = ["most probable", "second", "third", "fourth"]
    return {
        "top_codes": {
            "Description": f"{whose}: codes of the four most probable labels of each voxel, by "
            "rank along the last axis.",
            "Manual": False,
            **where,
        },
        "top_weights": {
            "Description": f"{whose}: probabilities of the four most probable labels of each "
            "voxel, by rank along the last axis; which labels those are stands in the dseg of "
            "the same name.",
            "LabelMap": ranks,
            **where,
        },
    }


def source_uri(plan: ToolPlan, output_dir: Path) -> str:
    if plan.action == GIVEN:
        return plan.provenance["Source"]
    return f"bids::{plan.outputs['labels'].relative_to(output_dir).as_posix()}"


def init_tool_wf(
    plan: ToolPlan, scan: Scan, execution: ExecutionOptions, *, name: str
) -> Workflow:
    """One tool's labels of one head, run, reused or given.

    Inputs
    ------
    image
        The image, as it lies in the dataset.

    Outputs
    -------
    labels, and if the tool gives probabilities top_codes, top_weights
        As `ReadTool` stores them.
    notes
        What is odd about the tool's own map, unless its labels are reused.
    """
    from nipype import IdentityInterface
    from nipype.pipeline import engine as pe
    from niworkflows.engine.workflows import LiterateWorkflow as Workflow

    from brainseg_bids.interfaces.headlabels import ReadTool
    from brainseg_bids.stages.saving import init_ds_scan_wf

    workflow = Workflow(name=name)
    inputnode = pe.Node(IdentityInterface(fields=["image"]), name="inputnode")
    read_now = list(plan.outputs) + ["notes"] * (plan.action != REUSE)
    outputnode = pe.Node(IdentityInterface(fields=read_now), name="outputnode")
    if plan.action == REUSE:
        outputnode.inputs.trait_set(**{key: str(path) for key, path in plan.outputs.items()})
        workflow.add_nodes([inputnode, outputnode])
        return workflow
    read = pe.Node(ReadTool(tool=plan.tool.name), name="read", mem_gb=MERGE_GIB)
    workflow.connect([
        (inputnode, read, [("image", "image")]),
        (read, outputnode, [(field, field) for field in read_now]),
    ])  # fmt: skip
    if plan.action == GIVEN:
        read.inputs.trait_set(labels=str(plan.outputs["labels"]), given=True)
        return workflow
    run = _init_run_node(plan, scan, execution)
    ds_tool_wf = init_ds_scan_wf(
        {output: str(path) for output, path in plan.outputs.items()},
        tool_metadata(plan),
        name="ds_tool_wf",
    )
    posteriors = ("posteriors", "posterior_codes") if plan.tool.posteriors else ()
    workflow.connect([
        (inputnode, run, [("image", "image")]),
        (run, read, [(field, field) for field in ("labels", "log", *posteriors)]),
        (run, ds_tool_wf, [("facts", "inputnode.result")]),
        (read, ds_tool_wf, [(field, f"inputnode.{field}") for field in plan.outputs]),
    ])  # fmt: skip
    return workflow


def _init_run_node(plan: ToolPlan, scan: Scan, execution: ExecutionOptions) -> Node:
    """The node that runs the program; inputs that this tool does not have are left out."""
    from nipype.pipeline import engine as pe

    from brainseg_bids.files import file_state

    threads = min(execution.threads, plan.tool.max_threads)
    interface = plan.tool.interface(
        subject="_".join(
            f"{key}-{label}" for key, label in scan.entities.items() if key in ("sub", "ses")
        ),
        command=list(plan.command),
        command_state=[file_state(Path(word)) for word in plan.command if os.path.isfile(word)],
        threads=threads,
        timeout_s=execution.tool_timeout_s,
        use_gpu=plan.tool.gpu and takes_gpu(execution.device),
    )
    known = set(interface.inputs.copyable_trait_names())
    of_this_tool: dict = {"device": execution.device}
    if plan.model is not None:
        of_this_tool |= {"model": str(plan.model.path), "model_digest": plan.model.digest}
        of_this_tool |= {"test_time_flips": plan.flips}
    interface.inputs.trait_set(**{k: v for k, v in of_this_tool.items() if k in known})
    return pe.Node(interface, name="run", n_procs=threads, mem_gb=plan.mem_gb)


def tools_used(scan: Scan, metadata: Mapping, output_dir: Path) -> dict[str, ToolPlan]:
    """What a merged map was made of, from the JSON beside it."""
    from brainseg_bids.interfaces.tools import find_tool  # late: nipype

    tools = {}
    for role in ROLES:
        name = metadata.get(f"{role.capitalize()}Tool")
        if name not in tool_names():
            continue
        source = metadata.get(f"{role.capitalize()}Source")
        own = present(ToolNames.of(scan, name), output_dir)
        if source:
            labels = {"labels": Path(source)}
            tools[role] = ToolPlan(find_tool(name), GIVEN, source, labels, {})
        elif "labels" in own:
            tools[role] = ToolPlan(find_tool(name), REUSE, "found", own, {})
    return tools
