# SPDX-License-Identifier: Apache-2.0
"""A merged map of the head on a page: who made it, what the merge did, what looks odd."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pandas as pd
from markupsafe import Markup

from brainseg_bids.anatomy.cohort import OUTLIER_Z, Cohort
from brainseg_bids.anatomy.rules import MergeRules
from brainseg_bids.bids.names import sidecar
from brainseg_bids.documents import read_json
from brainseg_bids.reports import page, tables
from brainseg_bids.reports.image_section import (
    TOTALS,
    made_by,
    metadata_of,
    no_asymmetry,
    sides_block,
    source_line,
    totals_ml,
    viewer_and_rating,
    volumes_block,
    written,
)
from brainseg_bids.reports.page import Section
from brainseg_bids.reports.volume_table import anatomical, read_intracranial, read_volumes
from brainseg_bids.units import duration

LOW_DICE = 0.7
"""Two tools that agree less than this on a structure are worth a look."""
SHOWN = (
    "ToolVersion", "Command", "Seconds", "PeakMemoryGiB", "Threads", "Mode", "Device"
)  # fmt: skip
"""What a page says of a tool's run, as it stands in the JSON beside its labels."""


@dataclass(frozen=True)
class ToolRun:
    """One tool that gave a label map.

    Parameters
    ----------
    name, role : str
        E.g. ``samseg``, for the ``head``.
    metadata : mapping
        Of its run: `SHOWN`, or anything else.
    reused_from : str
        Where the map lay, if the tool was not run for it.
    """

    name: str
    role: str = ""
    metadata: Mapping[str, object] = field(default_factory=dict)
    reused_from: str = ""


def section(job, *, output_dir: Path, bids_dir: Path, cohort: Cohort | None) -> Section:
    """One map of a head, from the files that its run left."""
    metadata = read_json(sidecar(job.outputs["merge"]))
    image = job.outputs["volumes"].name.split("_seg-")[0]
    maps = [tool.outputs["labels"] for tool in job.tools.values()]
    return merge_section(
        title=job.scan.title,
        source=job.scan.path.relative_to(bids_dir).as_posix(),
        figures={"merged labels, each tool's, and what changed": job.outputs["figure"]},
        tools=[_tool_run(role, tool) for role, tool in job.tools.items()],
        merge=metadata["Merge"],
        volumes=read_volumes(job.outputs["volumes"], output_dir, "fullhead"),
        intracranial=read_intracranial(job.outputs["volumes"]),
        z=cohort.z.get(image) if cohort else None,
        missing=cohort.missing.get(image, ()) if cohort else (),
        run=made_by(metadata),
        warnings=metadata.get("Warnings", []),
        outputs=written(job.outputs, output_dir),
        no_asymmetry=no_asymmetry(*maps),
        look=viewer_and_rating(job.outputs, output_dir),
    )


def _tool_run(role: str, job) -> ToolRun:
    labels = job.outputs["labels"]
    if job.action == "given":
        return ToolRun(job.tool.name, role, reused_from=str(labels))
    metadata = metadata_of(labels)
    shown = {key: metadata[key] for key in SHOWN if key in metadata}
    return ToolRun(metadata.get("Tool") or "unknown tool", role, shown)


def merge_section(
    *,
    title: str,
    source: str,
    figures: Mapping[str, Path],
    tools: Sequence[ToolRun],
    merge: Mapping,
    volumes: Sequence[dict],
    intracranial: Mapping | None = None,
    z: Mapping[int, float] | None = None,
    missing: Sequence[str] = (),
    run: Mapping[str, str] | None = None,
    warnings: Sequence[str] = (),
    outputs: Sequence[str] = (),
    no_asymmetry: str = "",
    look: Markup | str = "",
) -> Section:
    """One map of a head.

    Parameters
    ----------
    title, source : str
        Heading, e.g. ``T1w, session 1``; the image that was labelled.
    figures : mapping of str to Path
        Caption to PNG. A missing file is said in its place.
    tools : sequence of ToolRun
    merge : mapping
        ``MergeReport.to_json()``: ``head``, ``brain``, ``rules``, ``conflicts``, ``holes``,
        ``flags``, ``implausible``. What is left out is not shown.
    volumes : sequence of dict
        Rows of a volume table, see `brainseg_bids.reports.volume_table`.
    intracranial : mapping, optional
        Row of the inside of the skull, see `read_intracranial` there.
    z : mapping of int to float, optional
        Robust z of each label among the heads of the cohort, ``Cohort.z[subject]``.
    missing : sequence of str
        Core structures that this head lacks, ``Cohort.missing.get(subject, ())``.
    run, warnings, outputs, no_asymmetry, look
        As for `image_section`.
    """
    flags = quality_warnings(merge, warnings, volumes=volumes, z=z or {}, missing=missing)
    present = [row for row in volumes if float(row["volume_mm3"]) > 0]
    body = page.blocks(
        source_line("Labelled image", source),
        page.warnings_box(flags, "Look at this before using the labels"),
        *(_figure(image, caption, title) for caption, image in figures.items()),
        look,
        page.facts(run or {}, "Run"),
        *map(_tool, tools),
        _merge(merge),
        _volumes(volumes, present, z, intracranial, no_asymmetry),
        page.files(outputs),
    )
    return Section(
        "head", title, body, "Head labels",
        counted=("head label map", "made"),
        warnings=flags,
        overview=_overview(source, merge, present, intracranial, flags),
        numbers=(*TOTALS, "Flags"),
    )  # fmt: skip


def _overview(
    source: str,
    merge: Mapping,
    present: Sequence[dict],
    intracranial: Mapping | None,
    flags: Sequence[str],
) -> dict[str, object]:
    """Its row of the table at the top."""
    return {
        "File": page.code(source),
        "Tools": _tool_names(merge),
        **totals_ml(present, intracranial),
        "Flags": len(flags) or "none",
    }


def _volumes(
    volumes: Sequence[dict],
    present: Sequence[dict],
    z: Mapping[int, float] | None,
    intracranial: Mapping | None,
    no_asymmetry: str,
) -> Markup:
    """Volumes of labels, and of left against right."""
    return page.beside(
        page.blocks(volumes_block(present, z, intracranial=intracranial), _absent(volumes)),
        sides_block(volumes, no_asymmetry, found=True),
    )


def _tool_names(merge: Mapping) -> str:
    names = [str(merge[role]) for role in ("head", "brain") if merge.get(role)]
    return " + ".join(names) or "n/a"


def _figure(image: Path, caption: str, title: str) -> Markup:
    return page.figure(
        image,
        f"{caption}, {title}",
        caption=f"{caption}.",
        missing=f"This picture could not be made: {caption}",
    )


# -- warnings -----------------------------------------------------------------------------


def quality_warnings(
    merge: Mapping,
    warnings: Sequence[str] = (),
    *,
    volumes: Sequence[dict] = (),
    z: Mapping[int, float],
    missing: Sequence[str] = (),
) -> list[str]:
    """Everything that a person should look at, most telling first; see `merge_section`."""
    found = [*merge.get("implausible", []), *merge.get("flags", []), *warnings]
    if missing:
        found.append(f"Every head has these, this one lacks them: {', '.join(missing)}.")
    left = int((merge.get("holes") or {}).get("after_voxels") or 0)
    if left:
        found.append(f"{left} voxels inside the head are still without a label.")
    far = [(str(row["name"]), z.get(int(row["index"]), 0.0)) for row in volumes]
    far = sorted((one for one in far if abs(one[1]) > OUTLIER_Z), key=lambda one: -abs(one[1]))
    if far:
        named = ", ".join(f"{name} ({tables.percent(value)})" for name, value in far)
        found.append(f"Volumes far from the cohort's (robust z): {named}.")
    return found


# -- tools --------------------------------------------------------------------------------


def _tool(tool: ToolRun) -> Markup:
    others = {**tool.metadata}
    command, seconds = others.pop("Command", None), others.pop("Seconds", None)
    run = {
        "Version": others.pop("ToolVersion", None),
        "Time": duration(seconds),
        "Peak memory": _gib(others.pop("PeakMemoryGiB", None)),
        "Reused from": tool.reused_from,
        **{str(key): _plain(value) for key, value in others.items()},
    }
    words = " ".join(map(str, command)) if isinstance(command, list) else command
    return page.blocks(
        page.heading(f"Tool: {tool.name}", tool.role),
        page.facts(run),
        page.fold("Command", page.pre(words)) if words else "",
    )


def _plain(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


def _gib(value: object) -> str:
    """Memory for the eye; empty for what is no number.

    >>> _gib(5.7123), _gib(None)
    ('5.7 GiB', '')
    """
    return f"{value:.1f} GiB" if isinstance(value, int | float) else _plain(value)


# -- merge --------------------------------------------------------------------------------


def _merge(merge: Mapping) -> Markup:
    rules = [rule for rule in merge.get("rules", []) if _may_act(rule, merge)]
    changes = [rule for rule in rules if rule["voxels"]]
    idle = [rule for rule in rules if not rule["voxels"]]
    return page.blocks(
        page.heading("Merge"),
        _holes(merge.get("holes")),
        _rules(changes) if changes else page.text("No rule changed anything."),
        page.fold(f"{page.plural(len(idle), 'rule')} that changed nothing", _rules(idle))
        if idle
        else "",
        _conflicts(merge) if merge.get("conflicts") else "",
    )


def _may_act(rule: Mapping, merge: Mapping) -> bool:
    """Whether a rule can have done anything: of one tool alone, none between two."""
    return bool(merge.get("brain")) or bool(rule["voxels"]) or rule["rule"] not in _between_tools()


@cache
def _between_tools() -> frozenset[str]:
    return frozenset(line.rule for line in MergeRules.packaged().precedence)


def _holes(holes: Mapping | None) -> Markup:
    if not holes:
        return Markup()
    if not holes["before_voxels"]:
        return page.text("No voxel inside the head was without a label.")
    left = holes["after_voxels"]
    words = (
        f"Voxels without a label inside the head: {holes['before_voxels']:,} "
        f"({tables.ml(holes['before_mm3'])} ml) before, {{}} after."
    )
    return page.text(
        Markup(words).format(tables.strong(f"{left:,}", far=True) if left else "none")
    )


def _rules(rules: Sequence[Mapping]) -> Markup:
    frame = pd.DataFrame(
        {
            "Rule": [rule["rule"] for rule in rules],
            "Voxels": [f"{rule['voxels']:,}" for rule in rules],
            "ml": [tables.ml(rule["volume_mm3"]) for rule in rules],
            "Why": [rule["reason"] for rule in rules],
        }
    )
    return tables.html_table(frame, numbers=("Voxels", "ml"), css={"Why": "why"})


def _conflicts(merge: Mapping) -> Markup:
    """Where two tools differ, least agreement first."""
    # None is "nothing to compare": after the numbers.
    found = sorted(
        merge["conflicts"], key=lambda line: (line["dice"] is None, line["dice"] or 0.0)
    )
    head, brain = (f"{merge.get(role) or f'{role} tool'} (ml)" for role in ("head", "brain"))
    frame = pd.DataFrame(
        {
            "Structure": [line["structure"] for line in found],
            0: [tables.ml(line["head_mm3"]) for line in found],
            1: [tables.ml(line["brain_mm3"]) for line in found],
            "Dice": [_dice(line["dice"]) for line in found],
            "Agreement, 0 to 1": [_agreement(line["dice"]) for line in found],
        }
    )
    # Two tools may have one name.
    frame.columns = ["Structure", head, brain, "Dice", "Agreement, 0 to 1"]
    return page.blocks(
        page.heading("Where the tools differ"),
        tables.html_table(frame, numbers=(head, brain, "Dice"), css={"Structure": "name"}),
        page.text(
            "Least agreement first. Dice is twice the shared volume over the sum of both; below "
            f"{LOW_DICE} it is marked. Small structures lose more Dice to the same shift of a "
            "border.",
            faint=True,
        ),
    )


def _dice(dice: float | None) -> str:
    if dice is None:
        return "n/a"
    return tables.strong(f"{dice:.2f}", far=True) if dice < LOW_DICE else f"{dice:.2f}"


def _agreement(dice: float | None) -> Markup:
    if dice is None:
        return tables.faint("neither found it")
    return tables.share_bar(dice, low=dice < LOW_DICE)


def _absent(volumes: Sequence[dict]) -> Markup:
    """Labels that this head lacks."""
    names = [str(row["name"]) for row in anatomical(volumes) if row["volume_mm3"] <= 0]
    if not names:
        return Markup()
    return page.fold(
        f"{page.plural(len(names), 'label')} not in this head", page.text(", ".join(names))
    )
