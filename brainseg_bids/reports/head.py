# SPDX-License-Identifier: Apache-2.0
"""What a page says about one head label map: who made it, what the merge did, what looks odd."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from brainseg_bids.anatomy.cohort import OUTLIER_Z
from brainseg_bids.anatomy.rules import MergeRules
from brainseg_bids.reports.html import embedded
from brainseg_bids.reports.volume_table import (
    BRAIN,
    CSF,
    anatomical,
    asymmetries,
    grouped,
    widest_percent,
)

LOW_DICE = 0.7
"""Two tools that agree less than this on a structure are worth a look."""


@dataclass(frozen=True)
class ToolRun:
    """One tool that gave a label map.

    Parameters
    ----------
    name : str
        E.g. ``samseg``.
    role : str
        What its map is used for, e.g. ``head``.
    version, command, log : str
        Empty where unknown. The log is a path to show.
    seconds : float, optional
    reused_from : str
        Where the map lay, if the tool was not run for it.
    facts : dict of str to str
        Anything else, e.g. the mode.
    """

    name: str
    role: str = ""
    version: str = ""
    command: str = ""
    log: str = ""
    seconds: float | None = None
    reused_from: str = ""
    facts: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def from_facts(
        cls, facts: Mapping[str, object], *, role: str = "", log: str = "", reused_from: str = ""
    ) -> ToolRun:
        """From the facts file of a tool's interface: ``Tool``, ``ToolVersion``, ``Command``,
        ``Seconds``, and whatever else there is.

        >>> run = ToolRun.from_facts({"Tool": "synthseg", "Seconds": 95, "Mode": "robust"})
        >>> run.name, run.seconds, run.facts
        ('synthseg', 95.0, {'Mode': 'robust'})
        """
        facts = dict(facts)
        command = facts.pop("Command", "") or ""
        seconds = facts.pop("Seconds", None)
        return cls(
            name=str(facts.pop("Tool", "") or "unknown tool"),
            role=role,
            version=str(facts.pop("ToolVersion", "") or ""),
            command=" ".join(map(str, command)) if isinstance(command, list) else str(command),
            log=log,
            seconds=float(seconds) if isinstance(seconds, int | float) else None,
            reused_from=reused_from,
            facts=facts,
        )


@dataclass(frozen=True)
class HeadReport:
    """What the page says about one head label map.

    Parameters
    ----------
    title : str
        Heading, e.g. ``T1w, session 1``.
    source : str
        The image that was labelled.
    figures : dict of str to Path
        Caption to PNG, copied into the page. A missing file is said in its place.
    tools : list of ToolRun
    merge : dict
        ``MergeReport.to_json()``: ``head``, ``brain``, ``rules``, ``conflicts``, ``holes``,
        ``flags``, ``implausible``. What is left out is not shown.
    volumes : list of dict
        As in `brainseg_bids.reports.page.ScanReport`.
    z : dict of int to float, optional
        Robust z of each label among the heads of the cohort, ``Cohort.z[subject]``.
    missing : sequence of str
        Core structures that this head lacks, ``Cohort.missing.get(subject, ())``.
    facts : dict of str to str
        Shown in the given order.
    warnings, outputs : list of str
    no_asymmetry : str
        Why left and right are not compared; empty if they are.
    """

    title: str
    source: str
    figures: Mapping[str, Path]
    tools: list[ToolRun]
    merge: Mapping
    volumes: list[dict]
    z: Mapping[int, float] | None = None
    missing: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    no_asymmetry: str = ""

    @property
    def flags(self) -> list[str]:
        """Everything that a person should look at, most telling first."""
        found = [
            *self.merge.get("implausible", []),
            *self.merge.get("flags", []),
            *self.warnings,
        ]
        if self.missing:
            found.append(f"Every head has these, this one lacks them: {', '.join(self.missing)}.")
        left = int((self.merge.get("holes") or {}).get("after_voxels") or 0)
        if left:
            found.append(f"{left} voxels inside the head are still without a label.")
        far = [row for row in self._far() if abs(row["z"]) > OUTLIER_Z]
        if far:
            named = ", ".join(f"{row['name']} ({_signed(row['z'])})" for row in far)
            found.append(f"Volumes far from the cohort's (robust z): {named}.")
        return found

    def _far(self) -> list[dict]:
        rows = [
            {"name": row["name"], "z": (self.z or {}).get(int(row["index"]), 0.0)}
            for row in self.volumes
        ]
        return sorted(rows, key=lambda row: -abs(row["z"]))


def head_section(head: HeadReport) -> dict:
    """What the template needs of one head."""
    rows = [row | {"z": (head.z or {}).get(row["index"])} for row in anatomical(head.volumes)]
    present = [row for row in rows if row["volume_mm3"] > 0]
    pairs = [pair for pair in asymmetries(rows) if pair.left_mm3 or pair.right_mm3]
    if head.no_asymmetry:
        pairs = []
    rules = [rule for rule in head.merge.get("rules", []) if _may_act(rule, head.merge)]
    groups = grouped(present)
    totals = {group["name"]: group["total_mm3"] for group in groups}
    return {
        "title": head.title,
        "source": head.source,
        "flags": head.flags,
        "tool_names": " + ".join(
            str(head.merge[role]) for role in ("head", "brain") if head.merge.get(role)
        ),
        "figures": [(caption, embedded(Path(path))) for caption, path in head.figures.items()],
        "tools": [_tool(tool) for tool in head.tools],
        "head_tool": head.merge.get("head") or "head tool",
        "brain_tool": head.merge.get("brain") or "brain tool",
        "changes": [rule for rule in rules if rule["voxels"]],
        "idle": [rule for rule in rules if not rule["voxels"]],
        "conflicts": sorted(
            head.merge.get("conflicts", []),
            # None is "nothing to compare": after the numbers.
            key=lambda line: (line["dice"] is None, line["dice"] or 0.0),
        ),
        "low_dice": LOW_DICE,
        "holes": head.merge.get("holes"),
        "groups": groups,
        "absent": [row["name"] for row in rows if row["volume_mm3"] <= 0],
        "has_z": head.z is not None,
        "outlier_z": OUTLIER_Z,
        "asymmetries": pairs,
        "widest_percent": widest_percent(pairs),
        "no_asymmetry": head.no_asymmetry,
        "brain_mm3": totals.get(BRAIN),
        "csf_mm3": totals.get(CSF),
        "facts": dict(head.facts),
        "outputs": head.outputs,
    }


def _may_act(rule: Mapping, merge: Mapping) -> bool:
    """Whether a rule can have done anything: of one tool alone, none between two."""
    return bool(merge.get("brain")) or bool(rule["voxels"]) or rule["rule"] not in _between_tools()


@cache
def _between_tools() -> frozenset[str]:
    return frozenset(line.rule for line in MergeRules.packaged().precedence)


def _tool(tool: ToolRun) -> dict:
    others = dict(tool.facts)
    facts = {
        "Version": tool.version,
        "Time": "" if tool.seconds is None else _duration(tool.seconds),
        "Peak memory": _gib(others.pop("PeakMemoryGiB", None)),
        "Reused from": tool.reused_from,
        **{str(key): _plain(value) for key, value in others.items()},
        "Log": tool.log,
    }
    return {
        "name": tool.name,
        "role": tool.role,
        "command": tool.command,
        "facts": {key: value for key, value in facts.items() if value},
    }


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


def _duration(seconds: float) -> str:
    """Time for the eye.

    >>> _duration(41.2), _duration(719), _duration(4000)
    ('41 s', '12 min', '1 h 7 min')
    """
    if not math.isfinite(seconds):
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")
