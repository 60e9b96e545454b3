# SPDX-License-Identifier: Apache-2.0
"""Stage ``headlabels``: label whole heads with external tools and merge what they give."""

from __future__ import annotations

import argparse
import logging
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from brainseg_bids import __version__
from brainseg_bids.bids.description import raw_path, raw_uri
from brainseg_bids.bids.names import HeadNames, Scan, sidecar
from brainseg_bids.bids.reused_transforms import PIPELINES
from brainseg_bids.documents import Number, read_object
from brainseg_bids.interfaces.tools import tool_names
from brainseg_bids.options import OptionGroup, above_zero, folder_by_name, option
from brainseg_bids.stages.base import (
    ExecutionOptions,
    Folders,
    Message,
    ParticipantStage,
    Refused,
    Run,
)
from brainseg_bids.stages.head_tools import (
    GIVEN,
    MERGE_GIB,
    ROLES,
    ToolChoice,
    ToolPlan,
    init_tool_wf,
    plan_tool,
    source_uri,
    tools_used,
    top_metadata,
)
from brainseg_bids.stages.jobs import (
    REUSE,
    RUN,
    Job,
    PlanErrors,
    SubjectPlan,
    decided,
    fingerprint,
    is_current,
    present,
    why_run,
)
from brainseg_bids.stages.viewer import viewer_node
from brainseg_bids.stages.volumes import HEAD_COLUMNS, NO_VOLUME, no_intracranial_volume

if TYPE_CHECKING:
    from niworkflows.engine.workflows import LiterateWorkflow as Workflow

    from brainseg_bids.anatomy.labels import LabelTable
    from brainseg_bids.bids.inputs import Subject
    from brainseg_bids.options import Settings
    from brainseg_bids.reports.page import Section

log = logging.getLogger("brainseg")

UNKNOWN_VOXELS = 256**3
"""Of an image of which nothing is known."""
WHAT_IS_DONE = {
    RUN: "run: {}",
    GIVEN: "not run: {}",
    REUSE: "not run: an earlier run's labels are reused",
}


def named_command(text: str) -> tuple[str, list[str]]:
    """Name and command of a tool.

    >>> named_command("samseg=apptainer exec 'my image.sif' run_samseg")
    ('samseg', ['apptainer', 'exec', 'my image.sif', 'run_samseg'])
    """
    name, _, command = text.partition("=")
    known = (*tool_names(), "ants")  # ants: what registers images to --output-spaces
    if name not in known:
        known = ", ".join(known)
        raise argparse.ArgumentTypeError(f"{text!r}: no tool is called {name!r}; known: {known}")
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error
    if not words:
        raise argparse.ArgumentTypeError(
            f'{text!r}: give a command, e.g. {name}="/opt/{name}/bin/run"'
        )
    return name, words


def _as_named_commands(tools: dict[str, list[str]]) -> list[str]:
    return [f"{name}={shlex.join(command)}" for name, command in tools.items()]


@dataclass(frozen=True, kw_only=True)
class HeadlabelsOptions(OptionGroup):
    """Head label maps."""

    title: ClassVar[str] = "head label maps (--stages headlabels)"
    belongs_to: ClassVar[tuple[str, ...]] = ("headlabels",)

    head_tool: str = option(
        "--head-tool",
        default="model",
        choices=tool_names(),
        metavar="NAME",
        help=f"tool that labels the whole head: {', '.join(tool_names())}; default: model, "
        "which needs no other program",
    )
    brain_tool: str = option(
        "--brain-tool",
        default="model",
        choices=tool_names(),
        metavar="NAME",
        help="tool that labels the brain in it; default: the head tool only",
    )
    tools: dict = option(
        "--tool",
        default={},
        action="append",
        parse=named_command,
        arguments=_as_named_commands,
        stages=("headlabels", "segment"),  # ants, for --output-spaces
        metavar="NAME=COMMAND",
        help='how to start a tool, e.g. samseg="apptainer exec samseg.sif run_samseg"; default: '
        "PATH, or what make tools-NAME has built",
    )
    derivatives: dict = option(
        "-d",
        "--derivatives",
        default={},
        many=True,
        action="extend",
        parse=folder_by_name,
        stages=("segment", "headlabels", "contrast", "synth", "evaluate"),
        metavar="NAME=PATH",
        help="use existing results of a tool instead of running it, e.g. freesurfer=/data/fs; "
        "with --output-spaces: use transforms of fmriprep or smriprep; "
        "stage contrast: measure with these labels; synth: make pairs from these; evaluate: also "
        "evaluate these",
    )
    fs_license_file: Path | None = option(
        "--fs-license-file",
        stages=(),
        metavar="FILE",
        help="licence key of FreeSurfer; default: FS_LICENSE, then $FREESURFER_HOME/license.txt",
    )
    tool_timeout_h: float = option(
        "--tool-timeout",
        default=24.0,
        parse=above_zero("a number of hours", below=10_000),
        fits=Number(0, 1e6, "h", above=True),
        metavar="HOURS",
        help="end an external tool that takes longer; default: 24",
    )


@dataclass(frozen=True)
class HeadJob(Job):
    """One head to label. ``outputs``: fields of `HeadNames`.

    Parameters
    ----------
    tools : dict of str to ToolPlan
        ``head``, and ``brain`` if that is another tool.
    """

    tools: dict[str, ToolPlan]

    stage: ClassVar[str] = "headlabels"

    @property
    def outdated(self) -> list[Path]:
        """What an earlier merge may have left and this one does not make: it goes."""
        beside = self.outputs["labels"].parent
        names = HeadNames.of(self.scan)
        top = [beside / names.top_codes.name, beside / names.top_weights.name]
        made = (*top, self.outputs["figure"].with_suffix(".html"))
        return [path for path in made if path not in self.outputs.values()]

    @property
    def title(self) -> str:
        """How messages call it."""
        return f"{self.scan.title} head labels"


def _connect_tool(workflow, tool_wf, role: str, tool: ToolPlan, merge, figure) -> None:
    """Hand a tool's labels to the merge and its picture."""
    given = list(tool.outputs) + ["notes"] * (tool.action != REUSE)
    for step in (merge, figure):
        setattr(step.inputs, f"{role}_tool", tool.tool.name)
    workflow.connect([
        (tool_wf, figure, [("outputnode.labels", f"{role}_labels")]),
        (tool_wf, merge, [(f"outputnode.{name}", f"{role}_{name}") for name in given]),
    ])  # fmt: skip


def plan_headlabels(
    subject: Subject, *, bids_dir: Path, output_dir: Path, choice: ToolChoice, viewer: bool = True
) -> SubjectPlan:
    """Decide for each head which tools have to run.

    A tool's labels are reused if they were made from the same input; the user's own results of a
    tool are taken where they are found. The merge is made again if any source of it is.
    """
    plans, errors = [], PlanErrors(subject.errors)
    for scan in subject.scans:
        with errors.of(f"{scan.title} head labels", scan.path):
            plans.append(_plan_scan(scan, bids_dir, output_dir, choice, viewer))
    return SubjectPlan(subject.label, tuple(plans), errors)


def _plan_scan(
    scan: Scan, bids_dir: Path, output_dir: Path, choice: ToolChoice, viewer: bool
) -> HeadJob:
    from brainseg_bids.interfaces.tools import find_tool  # late: nipype

    names = HeadNames.of(scan)
    beside = sidecar(output_dir / names.labels)
    source = {
        "Input": raw_uri(scan.path, bids_dir),
        **fingerprint(scan.path, known=read_object(beside)),
    }
    tools = {
        role: plan_tool(scan, find_tool(name), output_dir, choice, source)
        for role, name in zip(ROLES, choice.names, strict=False)
    }
    with_top = any("top_codes" in plan.outputs for plan in tools.values())
    top = ("top_codes", "top_weights") if with_top else ()
    wanted = ["labels", *top, "volumes", "merge", "figure", *(["viewer"] * viewer)]
    outputs = {name: output_dir / getattr(names, name) for name in wanted}
    provenance = {"BrainsegVersion": __version__, **source, **_sources(tools)}
    reason = why_run(outputs, provenance)
    fresh = [plan.tool.name for plan in tools.values() if plan.action == RUN]
    if fresh:
        reason = reason or f"{' and '.join(fresh)} to be run"
    return HeadJob(
        scan,
        *decided(reason),
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


def head_metadata(plan: HeadJob, *, output_dir: Path) -> dict[str, dict]:
    """JSON of each merged output, less what only the run can tell."""
    raw = plan.provenance["Input"]
    own = f"bids::{plan.outputs['labels'].relative_to(output_dir).as_posix()}"
    tools = " and ".join(tool.tool.name for tool in plan.tools.values())
    sources = [raw, *(source_uri(tool, output_dir) for tool in plan.tools.values())]
    what = {
        "labels": {
            "Description": f"Labels of the whole head from {tools}, merged into one table. Codes "
            "are explained in seg-fullhead_dseg.tsv.",
            "Manual": False,
            "Sources": sources,
            "SpatialReference": raw,
        },
        **top_metadata("Merged labels", sources, raw),
        "volumes": {
            "Description": "Volume of each label, and of the inside of the skull.",
            "Sources": [own],
            "index": {"Description": "Code in seg-fullhead_dseg.tsv; n/a of Intracranial."},
            **HEAD_COLUMNS,
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


def describe_tools(plans: Iterable[SubjectPlan]) -> list[str]:
    """One line per tool: run or not, and why."""
    return [
        f"{scan.title}: {tool.tool.name} is {WHAT_IS_DONE[tool.action].format(tool.reason)}"
        for plan in plans
        for scan in plan.scans
        if isinstance(scan, HeadJob) and scan.action == RUN
        for tool in scan.tools.values()
    ]


def methods_text(tools: Sequence[str]) -> str:
    """How maps of whole heads were made, by the names of the tools."""
    from brainseg_bids.interfaces.tools import find_tool  # late: nipype

    named = " and ".join(find_tool(name).about for name in tools)
    merged = "merged" if len(tools) > 1 else "mended"
    return f"""\
Label maps of the whole head were made with {named}. Codes were translated into one table, maps
were brought to the grid of the image by their affines, and {merged} by a table of rules; what no
tool labelled inside the head was divided into tissue and air, islands were removed, and the
voxels that each rule changed were counted.
"""


class Headlabels(ParticipantStage):
    """Label maps of whole heads, merged from one or two tools."""

    name = "headlabels"
    options = HeadlabelsOptions
    results = "*_seg-fullhead_dseg.json"
    result_files: ClassVar[Mapping[str, str]] = {
        "run": "facts.json",
        "volumes": "facts.json",
        "merge": "report.json",
    }

    def check(self, run: Run) -> None:
        run.models  # noqa: B018 - the tool `model` needs them; read once

    def plan(self, run: Run) -> list[SubjectPlan]:
        from brainseg_bids.interfaces.tools._failures import ToolError  # late: nipype

        settings, choice = run.settings, _choice(run)
        choice.check()
        where = {"bids_dir": settings.bids_dir, "output_dir": settings.output_dir}
        try:
            plans = [
                plan_headlabels(subject, **where, choice=choice, viewer=settings.viewer)
                for subject in run.subjects(("T1w",))
            ]
        except ToolError as error:  # a program or a licence is missing: for everyone
            raise Refused(str(error), error.exit_code) from error
        for line in describe_tools(plans):
            log.info("%s", line)
        return plans

    def workflow(self, job: HeadJob, execution: ExecutionOptions) -> Workflow:
        """The tools, the merge of their maps, volumes, a picture; all of it saved.

        Each tool is a workflow of its own (`init_tool_wf`), whatever its labels come from.
        """
        from nipype import IdentityInterface
        from nipype.pipeline import engine as pe
        from niworkflows.engine.workflows import LiterateWorkflow as Workflow

        from brainseg_bids.interfaces.headlabels import MergeHead
        from brainseg_bids.interfaces.labels import Volumes
        from brainseg_bids.interfaces.reportlets import DrawMerge
        from brainseg_bids.stages.saving import init_ds_scan_wf

        workflow = Workflow(name=job.name)
        workflow.__desc__ = methods_text([tool.tool.name for tool in job.tools.values()])
        image = pe.Node(IdentityInterface(fields=["image"]), name="inputnode")
        image.inputs.image = str(job.scan.path)
        table = str(execution.tables["fullhead"])
        merge = pe.Node(MergeHead(), name="merge", mem_gb=MERGE_GIB)
        volumes = pe.Node(Volumes(table=table), name="volumes", mem_gb=1.0)
        figure = pe.Node(DrawMerge(table=table), name="figure", mem_gb=1.5)
        said = head_metadata(job, output_dir=execution.output_dir)
        paths = {output: str(path) for output, path in job.outputs.items()}
        ds_merge_wf = init_ds_scan_wf({"merge": paths.pop("merge")}, said, name="ds_merge_wf")
        ds_head_wf = init_ds_scan_wf(
            paths,
            said,
            own_result=("volumes",),
            outdated=[str(path) for path in job.outdated],
            name="ds_head_wf",
        )
        merged = ["labels", *(name for name in job.outputs if name.startswith("top_"))]
        workflow.connect([
            (image, merge, [("image", "image")]),
            (image, figure, [("image", "image")]),
            (image, volumes, [("image", "image")]),
            (merge, volumes, [("labels", "labels")]),
            (merge, figure, [("labels", "labels")]),
            (merge, ds_merge_wf, [("merge", "inputnode.merge"), ("report", "inputnode.result")]),
            (merge, ds_head_wf, [("facts", "inputnode.result")]),
            (merge, ds_head_wf, [(name, f"inputnode.{name}") for name in merged]),
            (volumes, ds_head_wf, [
                ("out_file", "inputnode.volumes"), ("facts", "inputnode.volumes_result"),
            ]),
            (figure, ds_head_wf, [("out_file", "inputnode.figure")]),
        ])  # fmt: skip
        if "viewer" in job.outputs:
            viewer = viewer_node(job, table, execution.output_dir)
            workflow.connect([
                (image, viewer, [("image", "image")]),
                (merge, viewer, [("labels", "labels")]),
                (viewer, ds_head_wf, [("out_file", "inputnode.viewer")]),
            ])  # fmt: skip
        merge.inputs.made = [role for role, tool in job.tools.items() if tool.action == RUN]
        for role, tool in job.tools.items():
            tool_wf = init_tool_wf(tool, job.scan, execution, name=f"{role}_wf")
            workflow.connect(image, "image", tool_wf, "inputnode.image")
            _connect_tool(workflow, tool_wf, role, tool, merge, figure)
        return workflow

    def tables(self, run: Run) -> dict[str, LabelTable]:
        from brainseg_bids.anatomy.labels import LabelTable
        from brainseg_bids.interfaces.tools import find_tool  # late: nipype

        tables = {"fullhead": LabelTable.packaged("fullhead")}
        for name in (run.settings.head_tool, run.settings.brain_tool):
            if find_tool(name).program:
                tables[name] = find_tool(name).crosswalk().source_table()
        return tables

    def messages(self, title: str, result: Mapping) -> list[Message]:
        if NO_VOLUME in result:
            return no_intracranial_volume(title, result)
        if "Tool" in result:
            text = f"{title}: {result['Tool']} took {result['Seconds']:.0f} s"
            return [Message(logging.INFO, text)]
        return [Message(logging.WARNING, f"{title}: {flag}") for flag in result["Merge"]["flags"]]

    def memory_gib(self, settings: Settings, images: Sequence, at_once: int) -> list[float]:
        from brainseg_bids.interfaces.tools import find_tool  # late: nipype
        from brainseg_bids.stages.models import largest_gib

        voxels = max((math.prod(grid.shape) for _, grid in images), default=UNKNOWN_VOXELS)
        names = {settings.head_tool, settings.brain_tool}
        external = [find_tool(name).mem_gb(voxels) for name in names if name != "model"]
        own = [largest_gib(settings, images)] if "model" in names else []
        return [MERGE_GIB, *external, *own]

    def read(self, path: Path, metadata: Mapping, folders: Folders) -> HeadJob | None:
        image = raw_path(metadata.get("Input", ""), folders.bids_dir)
        if image is None:
            return None
        scan = Scan.from_path(image)
        outputs = present(HeadNames.of(scan), folders.output_dir)
        whole = {"figure", "merge"} <= set(outputs)
        if not whole or not is_current(image, metadata, outputs):
            return None
        tools = tools_used(scan, metadata, folders.output_dir)
        return HeadJob(scan, REUSE, "found", outputs, {"Input": metadata["Input"]}, tools)

    def section(self, job: HeadJob, folders: Folders) -> Section:
        from brainseg_bids.stages.headlabels_section import section

        bids_dir, output_dir, cohort = folders
        return section(job, bids_dir=bids_dir, output_dir=output_dir, cohort=cohort)

    def methods(self, jobs: Iterable[HeadJob]) -> list[str]:
        return [methods_text([tool.tool.name for tool in job.tools.values()]) for job in jobs]


def _choice(run: Run) -> ToolChoice:
    """What the settings say of tools."""
    settings = run.settings
    commands = {n: tuple(command) for n, command in settings.tools.items() if n != "ants"}
    if run.program:
        commands["model"] = run.program
    derivatives = {
        name: Path(path)
        for name, path in settings.derivatives.items()
        # Others may be the labels that contrast is measured with, or have transforms.
        if name in (settings.head_tool, settings.brain_tool)
        or ("contrast" not in settings.stages and name not in PIPELINES)
    }
    return ToolChoice(
        head=settings.head_tool,
        brain=settings.brain_tool,
        models=run.models,
        flips=settings.test_time_flips,
        commands=commands,
        derivatives=derivatives,
        memory_gb=run.memory_gib,
        will_run=not (settings.reports_only or settings.boilerplate_only),
    )
