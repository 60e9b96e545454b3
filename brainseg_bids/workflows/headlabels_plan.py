# SPDX-License-Identifier: Apache-2.0
"""Which tool labels which head, what is there already, and what is said about the results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from brainseg_bids import __version__
from brainseg_bids.bids.description import raw_uri
from brainseg_bids.bids.inputs import Subject
from brainseg_bids.bids.names import HeadNames, Scan, ToolNames, sidecar
from brainseg_bids.interfaces.tools import check_origin, find_existing, find_tool
from brainseg_bids.interfaces.tools.base import MissingToolError, Tool, find_program
from brainseg_bids.volumes import InputError, read_grid, sha256
from brainseg_bids.workflows.plan import (
    REUSE,
    RUN,
    ScanPlan,
    SubjectPlan,
    fingerprint,
    read_object,
    unreadable,
    why_run,
)
from brainseg_bids.workflows.segment_plan import (
    VOLUMES_COLUMNS,
    Model,
    model_for,
    predicted_gib,
    views,
    why_other_views,
)

GIVEN = "given"
WHAT_IS_DONE = {
    RUN: "run: {}",
    GIVEN: "not run: {}",
    REUSE: "not run: an earlier run's labels are reused",
}
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
class HeadPlan(ScanPlan):
    """One head to label. ``outputs``: fields of `HeadNames`.

    Parameters
    ----------
    tools : dict of str to ToolPlan
        ``head``, and ``brain`` if that is another tool.
    """

    tools: dict[str, ToolPlan]

    stage = "headlabels"

    @property
    def outdated(self) -> list[Path]:
        """What an earlier merge may have left and this one does not make: it goes."""
        beside = self.outputs["labels"].parent
        names = HeadNames.of(self.scan)
        top = [beside / names.top_codes.name, beside / names.top_weights.name]
        return [path for path in top if path not in self.outputs.values()]

    @property
    def title(self) -> str:
        """How messages call it."""
        return f"{self.scan.title} head labels"


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


def plan_headlabels(
    subject: Subject, *, bids_dir: Path, output_dir: Path, choice: ToolChoice
) -> SubjectPlan:
    """Decide for each head which tools have to run.

    A tool's labels are reused if they were made from the same input; the user's own results of a
    tool are taken where they are found. The merge is made again if any source of it is.
    """
    plans, faults = [], dict(subject.faults)
    for scan in subject.scans:
        title = f"{scan.title} head labels"
        try:
            plans.append(_plan_scan(scan, bids_dir, output_dir, choice))
        except InputError as error:
            faults[title] = str(error)
        except OSError as error:
            faults[title] = unreadable(scan.path, error)
    return SubjectPlan(subject.label, tuple(plans), faults)


def _plan_scan(scan: Scan, bids_dir: Path, output_dir: Path, choice: ToolChoice) -> HeadPlan:
    names = HeadNames.of(scan)
    beside = sidecar(output_dir / names.labels)
    source = {
        "Input": raw_uri(scan.path, bids_dir),
        **fingerprint(scan.path, known=read_object(beside)),
    }
    tools = {
        role: _plan_tool(scan, find_tool(name), output_dir, choice, source)
        for role, name in zip(ROLES, choice.names, strict=False)
    }
    with_top = any("top_codes" in plan.outputs for plan in tools.values())
    top = ("top_codes", "top_weights") if with_top else ()
    wanted = ("labels", *top, "volumes", "merge", "figure")
    outputs = {name: output_dir / getattr(names, name) for name in wanted}
    provenance = {"BrainsegVersion": __version__, **source, **_sources(tools)}
    reason = why_run(outputs, provenance)
    fresh = [plan.tool.name for plan in tools.values() if plan.action == RUN]
    if fresh:
        reason = reason or f"{' and '.join(fresh)} to be run"
    return HeadPlan(
        scan,
        RUN if reason else REUSE,
        reason or "results are there already",
        outputs,
        provenance,
        tools,
    )


def _sources(tools: Mapping[str, ToolPlan]) -> dict:
    """What the merged map was made of, as its JSON says it."""
    facts = {}
    for role, plan in tools.items():
        key = role.capitalize()
        facts[f"{key}Tool"] = plan.tool.name
        if "Source" in plan.provenance:
            facts[f"{key}Source"] = plan.provenance["Source"]
        if plan.action != RUN:  # of a map that is to be made, the run tells it
            facts[f"{key}SHA256"] = plan.provenance["SHA256"]
        if "ModelDigest" in plan.provenance:
            facts["ModelDigest"] = plan.provenance["ModelDigest"]
    return facts


def _plan_tool(
    scan: Scan, tool: Tool, output_dir: Path, choice: ToolChoice, source: dict
) -> ToolPlan:
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
    reason = why_run(outputs, provenance) or why_other_views(outputs, provenance)
    if not reason:
        provenance |= {"SHA256": sha256(outputs["labels"])}
        return ToolPlan(tool, REUSE, reason, outputs, provenance)
    if root is not None:
        reason = f"no result of {tool.name} was found below {root}"
    plan = ToolPlan(tool, RUN, reason, outputs, provenance, model=model, flips=flips)
    return _ready(plan, scan, choice)


def _given(tool: Tool, found: Path, root: Path) -> ToolPlan:
    provenance = {
        "Tool": tool.name,
        "Source": f"bids:{tool.name}:{found.relative_to(root).as_posix()}",
        "SHA256": sha256(found),
    }
    return ToolPlan(tool, GIVEN, f"found in {root}", {"labels": found}, provenance)


def _ready(plan: ToolPlan, scan: Scan, choice: ToolChoice) -> ToolPlan:
    """The plan with what it takes to run it; too large an image is refused before it begins."""
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


def head_metadata(plan: HeadPlan, *, output_dir: Path) -> dict[str, dict]:
    """JSON of each merged output, less what only the run can tell."""
    raw = plan.provenance["Input"]
    own = f"bids::{plan.outputs['labels'].relative_to(output_dir).as_posix()}"
    tools = " and ".join(tool.tool.name for tool in plan.tools.values())
    sources = [raw, *(_source_uri(tool, output_dir) for tool in plan.tools.values())]
    what = {
        "labels": {
            "Description": f"Labels of the whole head from {tools}, merged into one table. Codes "
            "are explained in seg-fullhead_dseg.tsv.",
            "Manual": False,
            "Sources": sources,
            "SpatialReference": raw,
        },
        **_top_metadata("Merged labels", sources, raw),
        "volumes": {
            "Description": "Volume of each label: voxels times the volume of a voxel.",
            "Sources": [own],
            "index": {"Description": "Code in seg-fullhead_dseg.tsv."},
            **VOLUMES_COLUMNS,
        },
        "merge": {
            "Description": "What each rule of the merge changed. Below, under Merge, where tools "
            "disagreed, holes, and what a human should look at.",
            "Sources": sources,
            "rule": {"Description": "Rule or cleaning step, in the order they were applied."},
            "voxels": {"Description": "Number of voxels it changed."},
            "volume_mm3": {"Description": "Their volume.", "Units": "mm^3"},
            "reason": {"Description": "Why there is this rule."},
        },
    }
    return {name: what[name] | plan.provenance for name in plan.outputs if name in what}


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
        **_top_metadata(f"Labels by {name}", [raw], raw),
    }
    return {output: what[output] | plan.provenance for output in plan.outputs}


def _top_metadata(whose: str, sources: list[str], raw: str) -> dict[str, dict]:
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


def _source_uri(plan: ToolPlan, output_dir: Path) -> str:
    if plan.action == GIVEN:
        return plan.provenance["Source"]
    return f"bids::{plan.outputs['labels'].relative_to(output_dir).as_posix()}"


def describe_tools(plans: Iterable[SubjectPlan]) -> list[str]:
    """One line per tool: run or not, and why."""
    return [
        f"{scan.title}: {tool.tool.name} is {WHAT_IS_DONE[tool.action].format(tool.reason)}"
        for plan in plans
        for scan in plan.scans
        if isinstance(scan, HeadPlan) and scan.action == RUN
        for tool in scan.tools.values()
    ]
