# SPDX-License-Identifier: Apache-2.0
"""Stages of the app, one file each: what it is asked, what it decides, runs, leaves and tells.

What several stages use: `base` (what a stage is), `jobs`, `models`, `saving`, `viewer`,
`workflow`, `pages`, `methods`. Long sections of pages: ``NAME_section`` of a participant,
``NAME_page`` of a group. Heavy halves of stages, imported when they run: `head_tools`; `pooling`
of priors; `pairs` and `intensities` of synth; `raters` of evaluate; ``train_*`` and `experiment`
of train.
"""

from __future__ import annotations

from brainseg_bids.stages.base import GroupStage, ParticipantStage, Stage
from brainseg_bids.stages.contrast import Contrast
from brainseg_bids.stages.evaluate import Evaluate
from brainseg_bids.stages.exports import FreeSurferExport, PrecomputedExport
from brainseg_bids.stages.headlabels import Headlabels
from brainseg_bids.stages.parcellation import Parcellation
from brainseg_bids.stages.priors import Priors
from brainseg_bids.stages.segment import Segment
from brainseg_bids.stages.simnibs import SimnibsExport
from brainseg_bids.stages.spaces import StandardSpaces
from brainseg_bids.stages.summary import Summary
from brainseg_bids.stages.synth import Synth
from brainseg_bids.stages.train import Train
from brainseg_bids.stages.upsample import Upsample

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Segment(),
        Headlabels(),
        Parcellation(),
        Upsample(),
        Contrast(),
        StandardSpaces(),
        FreeSurferExport(),
        PrecomputedExport(),
        SimnibsExport(),
        Summary(),
        Priors(),
        Synth(),
        Train(),
        Evaluate(),
    )
}
"""Every stage by name, in the order of pages and of ``--help``; a new one is added here."""

PARTICIPANT = {name: one for name, one in STAGES.items() if isinstance(one, ParticipantStage)}
GROUP = {name: one for name, one in STAGES.items() if isinstance(one, GroupStage)}

PARTICIPANT_STAGES = tuple(name for name, one in PARTICIPANT.items() if one.has_name)
GROUP_STAGES = tuple(GROUP)
"""What ``--stages`` takes at each level."""

OPTIONS = tuple(dict.fromkeys(one.options for one in STAGES.values() if one.options))
"""Options of all stages, a group each."""


def passes(chosen: set[str]) -> list[list[ParticipantStage]]:
    """Stages of the participant level in the order they are run in.

    Those that read the dataset are planned and run together; those that read what these leave
    come after them.

    >>> [[stage.name for stage in one] for one in passes({"upsample", "headlabels", "segment"})]
    [['segment', 'headlabels'], ['upsample']]
    """
    depth = {name: _depth(name) for name in chosen}
    return [
        [stage for name, stage in PARTICIPANT.items() if depth.get(name) == level]
        for level in sorted(set(depth.values()))
    ]


def _depth(name: str) -> int:
    return max((1 + _depth(before) for before in PARTICIPANT[name].after), default=0)
