# SPDX-License-Identifier: Apache-2.0
"""Report of a merge: changes of each rule, disagreement of the sources, holes, flags."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class RuleCount:
    """Number of voxels that one rule changed.

    Parameters
    ----------
    rule : str
    voxels : int
        For rules of precedence, voxels that the rule decided and in which the sources differ. For
        other rules, voxels that it changed.
    volume_mm3 : float
        Volume of these voxels.
    reason : str
        Reason of the rule, from its table.
    """

    rule: str
    voxels: int
    volume_mm3: float
    reason: str


@dataclass(frozen=True)
class Conflict:
    """Agreement of both sources on one structure, within both fields of view.

    Parameters
    ----------
    structure : str
    head_mm3, brain_mm3 : float
        Volume in each source.
    dice : float or None
        None if neither source has the structure.
    """

    structure: str
    head_mm3: float
    brain_mm3: float
    dice: float | None


@dataclass
class MergeReport:
    """Report of a merge.

    Parameters
    ----------
    head, brain : str
        Names of the sources; ``brain`` is None if there is one source only.
    voxel_volume_mm3 : float
    rules : list of RuleCount
        Every rule and every cleaning step in order, also those that changed nothing.
    conflicts : list of Conflict
        Whole brain first, then each structure of both sources; empty if there is one source only.
    holes : dict
        ``before_voxels``, ``before_mm3`` and ``after_voxels``: unlabelled voxels that the head
        encloses, before and after completion.
    flags : list of str
        Sentences about what a person should check.
    implausible : list of str
        Implausible properties of the result, see `brainseg_bids.anatomy.plausibility`.

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
        """Append the count of a rule to `rules`."""
        volume = round(int(voxels) * self.voxel_volume_mm3, 3)
        self.rules.append(RuleCount(rule, int(voxels), volume, reason))

    def to_json(self) -> dict[str, Any]:
        """Report as a dictionary of JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> MergeReport:
        """Report from the dictionary of `to_json`."""
        return cls(
            **facts
            | {
                "rules": [RuleCount(**rule) for rule in facts["rules"]],
                "conflicts": [Conflict(**conflict) for conflict in facts["conflicts"]],
            }
        )
