# SPDX-License-Identifier: Apache-2.0
"""Workflow graphs, drawn from what stages wire.

With Graphviz' ``dot`` on PATH as pictures, without as text; the build fails for neither.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive

RELAYS = ("inputnode", "outputnode")


def _image(root: Path, name: str = "sub-01_T1w") -> Path:
    """A BIDS dataset with one image that nobody opens."""
    path = root / "bids" / "sub-01" / "anat" / f"{name}.nii.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    said = {"Name": "x", "BIDSVersion": "1.10.1", "DatasetType": "raw"}
    (root / "bids" / "dataset_description.json").write_text(json.dumps(said))
    return path


def _how(root: Path):
    from brainseg_bids.nets.bundle import DEFAULT_MODEL, find_bundle
    from brainseg_bids.stages.base import ExecutionOptions

    tables = dict.fromkeys(("brainseg", "fullhead"), find_bundle(DEFAULT_MODEL) / "labels.tsv")
    return ExecutionOptions(tables=tables, output_dir=root)


def segment(root: Path):
    """One image."""
    from brainseg_bids.bids.names import OutputNames, Scan
    from brainseg_bids.stages import PARTICIPANT
    from brainseg_bids.stages.models import Model
    from brainseg_bids.stages.segment import SegmentJob

    scan = Scan.from_path(_image(root))
    names = vars(OutputNames.of(scan)).items()
    outputs = {name: root / path for name, path in names}
    model = Model(root, "m", "d", (), ())
    job = SegmentJob(scan, "run", "", outputs, {"Input": "bids:raw:x"}, model)
    return PARTICIPANT["segment"].workflow(job, _how(root))


def headlabels(root: Path):
    """One head: CHARM for the head, SynthSeg for the brain in it."""
    import sys

    from brainseg_bids.bids.names import HeadNames, Scan, ToolNames
    from brainseg_bids.interfaces.tools import find_tool
    from brainseg_bids.stages import PARTICIPANT
    from brainseg_bids.stages.head_tools import ToolPlan
    from brainseg_bids.stages.headlabels import HeadJob

    scan = Scan.from_path(_image(root))
    names = HeadNames.of(scan)
    outputs = {k: root / getattr(names, k) for k in ("labels", "volumes", "merge", "figure")}
    tools = {
        role: ToolPlan(
            tool=find_tool(name), action="run", reason="",
            outputs={"labels": root / ToolNames.of(scan, name).labels},
            provenance={"Input": "bids:raw:x"}, command=(sys.executable,), mem_gb=1.0,
        )
        for role, name in (("head", "charm"), ("brain", "synthseg"))
    }  # fmt: skip
    facts = {"Input": "bids:raw:x"}
    plan = HeadJob(scan, "run", "", outputs, facts, tools)
    return PARTICIPANT["headlabels"].workflow(plan, _how(root))


def upsample(root: Path):
    """One label map to finer voxels."""
    from brainseg_bids.bids.names import Scan
    from brainseg_bids.stages import PARTICIPANT
    from brainseg_bids.stages.upsample import Target, UpsampleJob, finer_outputs

    scan = Scan.from_path(_image(root, "sub-01_seg-fullhead_dseg"))
    labels = root / "sub-01" / "anat" / "sub-01_seg-fullhead_res-0p5mm_dseg.nii.gz"
    outputs = finer_outputs(labels, root)
    plan = UpsampleJob(
        scan, "run", "", outputs, {"Input": "bids::x"}, target=Target((0.5,)), top=(), mem_gb=1.0
    )
    return PARTICIPANT["upsample"].workflow(plan, _how(root))


def contrast(root: Path):
    """One image, measured with its labels."""
    from brainseg_bids.bids.names import ContrastNames, Scan
    from brainseg_bids.stages import PARTICIPANT
    from brainseg_bids.stages.contrast import ContrastJob

    image = _image(root)
    labels = image.with_name("sub-01_seg-fullhead_dseg.nii.gz")
    labels.touch()
    scan = Scan.from_path(image)
    names = ContrastNames.of(scan, "fullhead")
    outputs = {"statistics": root / names.statistics, "figure": root / names.figure}
    facts = {"Input": "bids:raw:x", "LabelsOf": "bids::y"}
    plan = ContrastJob(scan, "run", "", outputs, facts, labels, "fullhead", {}, 1.0)
    return PARTICIPANT["contrast"].workflow(plan, _how(root))


GRAPHS: dict[str, Callable] = {
    "segment": segment,
    "headlabels": headlabels,
    "upsample": upsample,
    "contrast": contrast,
}


def edges_of(workflow) -> list[tuple[str, str, list[str]]]:
    """Steps that feed each other, with the fields that are handed on; full names.

    Nodes that only relay (``inputnode`` of an inner workflow) are left out and what they relay is
    followed to its end, so that what is shown is who really needs whom.
    """
    graph = workflow._create_flat_graph()
    own = {node for node in graph.nodes if node.name in RELAYS and node.fullname.count(".") > 1}
    found: dict[tuple[str, str], list[str]] = {}

    def follow(node, field: str):
        """Where a field of a step ends, relays left out."""
        for _, target, data in graph.out_edges(node, data=True):
            for out_field, in_field in data["connect"]:
                if (out_field[0] if isinstance(out_field, tuple) else out_field) != field:
                    continue
                if target in own:
                    yield from follow(target, in_field)
                else:
                    yield target

    for node in graph.nodes:
        if node in own:
            continue
        fields = {
            pair[0][0] if isinstance(pair[0], tuple) else pair[0]
            for _, _, data in graph.out_edges(node, data=True)
            for pair in data["connect"]
        }
        for field in sorted(fields):
            for target in follow(node, field):
                shown = found.setdefault((_name(node), _name(target)), [])
                if field not in shown:
                    shown.append(field)
    return [(source, target, fields) for (source, target), fields in found.items()]


def _name(node) -> str:
    """Full name without the outermost workflow's."""
    return node.fullname.split(".", 1)[1]


def as_dot(edges: list[tuple[str, str, list[str]]]) -> str:
    """For Graphviz: inner workflows are boxes around their steps."""
    names = list(dict.fromkeys(name for edge in edges for name in edge[:2]))
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.rpartition(".")[0], []).append(name)
    lines = [
        "digraph {", "rankdir=TB; bgcolor=transparent; fontname=Helvetica; fontsize=11;",
        "node [shape=box style=\"rounded,filled\" fillcolor=\"#eef3fb\" color=\"#5b7bb0\""
        " fontname=Helvetica fontsize=11];",
        'edge [color="#777777" fontname=Helvetica fontsize=9 fontcolor="#555555"];',
    ]  # fmt: skip
    for number, (group, members) in enumerate(groups.items()):
        if group:
            lines.append(f'subgraph cluster_{number} {{ label="{group}"; color="#bbbbbb";')
        for name in members:
            relay = name.rpartition(".")[2] in RELAYS
            style = ' fillcolor="#fdf3dc" color="#b08a3b"' if relay else ""
            lines.append(f'"{name}" [label="{name.rpartition(".")[2]}"{style}];')
        if group:
            lines.append("}")
    for source, target, fields in edges:
        label = "" if target.endswith("outputnode") else r"\n".join(fields)
        lines.append(f'"{source}" -> "{target}" [label="{label}"];')
    return "\n".join([*lines, "}"])


def as_text(edges: list[tuple[str, str, list[str]]]) -> str:
    """One line a step that feeds others."""
    width = max(len(source) for source, _, _ in edges)
    return "\n".join(
        f"{source:<{width}} -> {target}  ({', '.join(fields)})" for source, target, fields in edges
    )


@cache
def edges_for(name: str) -> list[tuple[str, str, list[str]]]:
    """Edges of one of `GRAPHS`."""
    with tempfile.TemporaryDirectory() as folder:
        return edges_of(GRAPHS[name](Path(folder)))


def as_svg(edges: list[tuple[str, str, list[str]]]) -> str:
    """A picture, or nothing where there is no ``dot``."""
    if not (program := shutil.which("dot")):
        return ""
    done = subprocess.run(
        [program, "-Tsvg"], input=as_dot(edges), capture_output=True, text=True, check=True
    )
    return re.sub(r"^.*?(?=<svg)", "", done.stdout, flags=re.DOTALL)


class WorkflowGraph(Directive):
    """``{workflow-graph} segment``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        edges = edges_for(self.arguments[0])
        if svg := as_svg(edges):
            return [nodes.raw("", f'<div class="workflow-graph">{svg}</div>', format="html")]
        text = as_text(edges)
        return [nodes.literal_block(text, text, language="text")]


def setup(app) -> dict:
    """For Sphinx."""
    app.add_directive("workflow-graph", WorkflowGraph)
    return {"parallel_read_safe": True}
