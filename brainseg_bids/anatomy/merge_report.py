# SPDX-License-Identifier: Apache-2.0
"""What a merge did, for a human and for JSON: rules and their counts, conflicts, holes, flags."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class RuleCount:
    """How much one rule did.

    Parameters
    ----------
    rule : str
    voxels : int
        For precedence: voxels that the rule decided and in which the sources differ. For all
        others: voxels that it changed.
    volume_mm3 : float
    reason : str
    """

    rule: str
    voxels: int
    volume_mm3: float
    reason: str


@dataclass(frozen=True)
class Conflict:
    """One structure as both tools see it, where both have looked; ``dice`` is None where neither
    has a voxel of it."""

    structure: str
    head_mm3: float
    brain_mm3: float
    dice: float | None


@dataclass
class MergeReport:
    """What the merge did, for a human and for JSON.

    Parameters
    ----------
    head, brain : str
        Names of the sources; ``brain`` is None with one tool.
    voxel_volume_mm3 : float
    rules : list of RuleCount
        Every rule and every cleaning step, in order, those that did nothing too.
    conflicts : list of Conflict
        The brain as a whole and each structure both know; empty with one tool.
    holes : dict
        ``before_voxels``, ``before_mm3`` and ``after_voxels``: 0-voxels enclosed by the head.
    flags : list of str
        Sentences for a human.
    implausible : list of str
        What cannot be right about the result, see `brainseg_bids.anatomy.plausibility`.

    Examples
    --------
    >>> report = MergeReport("charm", None, 1.0)
    >>> MergeReport.from_json(report.to_json()) == report
    True
    """

    head: str
    brain: str | None
    voxel_volume_mm3: float
    rules: list[RuleCount] = field(default_factory=list)
    conflicts: list[Conflict] = field(default_factory=list)
    holes: dict[str, float] = field(
        default_factory=lambda: {"before_voxels": 0, "before_mm3": 0.0, "after_voxels": 0}
    )
    flags: list[str] = field(default_factory=list)
    implausible: list[str] = field(default_factory=list)

    def count(self, rule: str, voxels: int, reason: str) -> None:
        """Add a rule at the end."""
        volume = round(int(voxels) * self.voxel_volume_mm3, 3)
        self.rules.append(RuleCount(rule, int(voxels), volume, reason))

    def to_json(self) -> dict[str, Any]:
        """As plain types."""
        return asdict(self)

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> MergeReport:
        """Undo `to_json`."""
        return cls(
            **facts
            | {
                "rules": [RuleCount(**rule) for rule in facts["rules"]],
                "conflicts": [Conflict(**conflict) for conflict in facts["conflicts"]],
            }
        )
